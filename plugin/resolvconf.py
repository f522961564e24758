# SPDX-License-Identifier: Apache-2.0
"""resolv.conf: which resolvers and search domains the host uses.

Called by hostnet.py before READY, hence the light imports. Adversary: nobody, the file is the host's own; still, any
bytes are taken, and a line that makes no sense is passed over, as the host's own resolver does (resolv.conf(5)).

Where this reads more than passt does, on purpose: blanks and tabs before and between words; comments behind them;
`domain`, and the last of several `search` and `domain` lines instead of the first ones; 0.0.0.0 and :: mean the
loopback address; the zone of a link-local server, which lies on one interface of the host alone.
"""

from __future__ import annotations

from lockgate.plugin import address

SERVERS_MAX = 3  # of each family; as many as resolvers use
SEARCH_MAX = 6
SEARCH_BYTES_MAX = 1024  # with it, a router advertisement with all that it can contain stays below 1280 bytes
LABEL_MAX = 63  # RFC 1035 §2.3.4
DOMAIN_MAX = 253


class ResolvConf:
    """`zones6` belong to `servers6`, one each: the interface behind the % of a link-local server, else empty."""

    __slots__ = ("search", "servers4", "servers6", "zones6")

    def __init__(
        self,
        servers4: tuple[bytes, ...],
        servers6: tuple[bytes, ...],
        zones6: tuple[str, ...],
        search: tuple[str, ...],
    ) -> None:
        self.servers4 = servers4
        self.servers6 = servers6
        self.zones6 = zones6
        self.search = search


def parse(text: str) -> ResolvConf:
    servers4: list[bytes] = []
    servers6: list[tuple[bytes, str]] = []
    search: list[str] = []
    for line in text.splitlines():
        words = _words(line)
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            server, zone = _server_parse(words[1])
            if server is None:
                continue
            if address.is_ipv4(server):
                servers4.append(server)
            else:
                servers6.append((server, zone))
        elif words[0] == "search":
            search = words[1:]
        elif words[0] == "domain":
            search = words[1:2]
    del servers4[SERVERS_MAX:], servers6[SERVERS_MAX:]
    return ResolvConf(
        tuple(servers4),
        tuple(server for server, _ in servers6),
        tuple(zone for _, zone in servers6),
        limit_search(search),
    )


def _words(line: str) -> list[str]:
    """Those before a comment, which may also follow what it explains."""
    words = line.split()
    for at, word in enumerate(words):
        if word[0] in "#;":
            return words[:at]
    return words


def limit_search(domains: list[str]) -> tuple[str, ...]:
    """The domains that can be handed out: valid ones, in their order, as many as the limits allow."""
    kept: list[str] = []
    room = SEARCH_BYTES_MAX
    for domain in domains:
        name = domain.rstrip(".")  # "search ." says that there are none
        encoded = len(name) + 2
        if is_domain(name) and name not in kept and encoded <= room and len(kept) < SEARCH_MAX:
            kept.append(name)
            room -= encoded
    return tuple(kept)


def is_domain(name: str) -> bool:
    """Whether a name, without a dot at its end, can be encoded (RFC 1035 §3.1)."""
    return (
        0 < len(name) <= DOMAIN_MAX
        and name.isascii()
        and name.isprintable()
        and " " not in name
        and all(0 < len(label) <= LABEL_MAX for label in name.split("."))
    )


def _server_parse(word: str) -> tuple[bytes | None, str]:
    """A server and its zone, which says something only of an address that each interface can have anew."""
    plain, _, zone = word.partition("%")
    server = address.parse(plain)
    if server == address.UNSET:
        return address.LOOPBACK6, ""
    if server == address.ANY4:
        return address.LOOPBACK4, ""
    return server, zone if server is not None and address.is_link_local(server) else ""
