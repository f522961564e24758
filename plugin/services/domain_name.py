# SPDX-License-Identifier: Apache-2.0
"""Domain names in the form of RFC 1035 §3.1, as DHCP, DHCPv6 and router advertisements carry search lists.

Called by dhcp.py, dhcpv6.py and ra.py. Adversary: nobody; names come from resolv.conf or the command line and were
checked there (resolvconf.is_domain). Invariant: a name is never cut in the middle; what does not fit is left out whole.
"""

from __future__ import annotations

from collections.abc import Iterable

_POINTER = 0xC000
_POINTER_MAX = 0x3FFF


def encode(domain: str) -> bytes:
    """Uncompressed: what RFC 8106 §5.2 demands for DNSSL, RFC 8415 §10 for DHCPv6, and RFC 4702 §2.3.1 for FQDN."""
    labels = [label.encode("ascii") for label in domain.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def encode_list(domains: Iterable[str], room: int) -> bytes:
    """The first of `domains` that fit in `room` bytes, uncompressed; see encode_compressed for what is left out."""
    encoded = b""
    for domain in domains:
        name = encode(domain)
        if len(encoded) + len(name) > room:
            break
        encoded += name
    return encoded


def encode_compressed(domains: Iterable[str], room: int) -> bytes:
    """The first of `domains` that fit in `room` bytes, with pointers (RFC 1035 §4.1.4) that count from the first byte.

    Names that come after one that does not fit are left out too: a search list is an order of preference, and a
    client that tries the third domain before the second finds other hosts.
    """
    known: dict[str, int] = {}  # ending of a name -> where it starts
    encoded = b""
    for domain in domains:
        addition, starts = _compress(domain, len(encoded), known)
        if len(encoded) + len(addition) > room:
            break
        encoded += addition
        known.update(starts)
    return encoded


def _compress(domain: str, at: int, known: dict[str, int]) -> tuple[bytes, dict[str, int]]:
    labels = domain.lower().split(".")
    written = b""
    starts: dict[str, int] = {}
    for first in range(len(labels)):
        ending = ".".join(labels[first:])
        if ending in known:
            return written + (_POINTER | known[ending]).to_bytes(2), starts
        if at + len(written) <= _POINTER_MAX:
            starts[ending] = at + len(written)
        written += bytes([len(labels[first])]) + labels[first].encode("ascii")
    return written + b"\0", starts
