# SPDX-License-Identifier: Apache-2.0
"""The subnet of a virtual network, as command line and configuration file of `gvproxy` write it: CIDR notation.

Called by gvproxy.py and gvproxy_config.py, before READY: no imports to speak of. Adversary: whoever wrote the text.
Invariants: a network that parse() returns is one whose addresses guests can have, and their kernels send from; every
other is a SubnetError, whose text says what was expected.
"""

from __future__ import annotations

from lockgate.plugin import address

DEFAULT = "192.168.127.0/24"

# To the guest's kernel, or to ours, an address in there is something else (RFC 6890, 2.2.2).
_NOT_FOR_GUESTS = (
    ("addresses of nobody", "0.0.0.0", 8),
    ("the loopback", "127.0.0.0", 8),
    ("link-local addresses, where clouds have their metadata", "169.254.0.0", 16),
    ("multicast groups", "224.0.0.0", 4),
    ("the broadcast address", "255.255.255.255", 32),
)


class SubnetError(Exception):
    """What was expected instead."""


def parse(text: str) -> tuple[bytes, int]:
    """Its first address and the length of its prefix."""
    host, _, digits = text.partition("/")
    ip = address.parse_ipv4(host)
    length = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 2 else 0
    if ip is None or not 0 < length <= 32:
        raise SubnetError(f"expected an IPv4 network, as in {DEFAULT}")
    for what, first, own_length in _NOT_FOR_GUESTS:
        shorter = min(length, own_length)
        if address.bounds(ip, shorter) == address.bounds(_ipv4(first), shorter):  # one of the two is within the other
            raise SubnetError(f"expected a network without {what} ({first}/{own_length}), as in {DEFAULT}")
    return address.bounds(ip, length)[0], length


def _ipv4(text: str) -> bytes:
    ip = address.parse_ipv4(text)
    assert ip is not None, "it is one of ours"
    return ip
