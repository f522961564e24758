# SPDX-License-Identifier: Apache-2.0
"""resolv.conf: which resolvers and search domains the host uses.

Called by hostnet.py before READY, hence the light imports. Adversary: nobody, the file is the host's own; still, any
bytes are taken, and a line that makes no sense is passed over, as the host's own resolver does (resolv.conf(5)).

Where this reads more than passt does, on purpose: blanks and tabs before and between words; `domain`, and the last of
several `search` and `domain` lines instead of the first ones; 0.0.0.0 and :: mean the loopback address.
"""

from __future__ import annotations

from lockgate.plugin import address

SERVERS_MAX = 3  # of each family; as many as resolvers use
SEARCH_MAX = 6
SEARCH_BYTES_MAX = 1024  # with it, a router advertisement with all that it can contain stays below 1280 bytes
_LABEL_MAX = 63  # RFC 1035 §2.3.4
_DOMAIN_MAX = 253


class ResolvConf:
    __slots__ = ("search", "servers4", "servers6")

    def __init__(self, servers4: tuple[bytes, ...], servers6: tuple[bytes, ...], search: tuple[str, ...]) -> None:
        self.servers4 = servers4
        self.servers6 = servers6
        self.search = search


def parse(text: str) -> ResolvConf:
    servers4: list[bytes] = []
    servers6: list[bytes] = []
    search: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            server = _server_parse(words[1])
            if server is not None:
                (servers4 if address.is_ipv4(server) else servers6).append(server)
        elif words[0] == "search":
            search = words[1:]
        elif words[0] == "domain":
            search = words[1:2]
    return ResolvConf(tuple(servers4[:SERVERS_MAX]), tuple(servers6[:SERVERS_MAX]), limit_search(search))


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
        0 < len(name) <= _DOMAIN_MAX
        and name.isascii()
        and name.isprintable()
        and all(0 < len(label) <= _LABEL_MAX for label in name.split("."))
    )


def _server_parse(word: str) -> bytes | None:
    server = address.parse(word.partition("%")[0])
    if server == address.UNSET:
        return address.LOOPBACK6
    return address.LOOPBACK4 if server == address.ANY4 else server
