# SPDX-License-Identifier: Apache-2.0
"""IP addresses as they cross between our processes: 16 bytes in network order, IPv4 mapped into IPv6 (RFC 4291 §2.5.5).

Called by everything that reads an address from a person, a file, the kernel or a frame, before READY too, hence the
light imports: the standard library's ipaddress costs 4 ms. Adversary: whoever wrote the text; what is no address is
None, never an exception. Invariants: an address is `bytes` of length 16; where there is none, it is UNSET.
"""

from __future__ import annotations

import _socket
import errno

UNSET = bytes(16)  # also ::, which nobody can have (RFC 4291 §2.5.2)
IPV4_MAPPED = bytes(10) + b"\xff\xff"
ANY4 = IPV4_MAPPED + bytes(4)
BROADCAST4 = IPV4_MAPPED + b"\xff" * 4
LOOPBACK4 = IPV4_MAPPED + b"\x7f\0\0\1"
LOOPBACK6 = bytes(15) + b"\1"


def parse(text: str) -> bytes | None:
    """An address of either family; no brackets, no zone, no prefix length."""
    return parse_ipv6(text) if ":" in text else parse_ipv4(text)


def parse_ipv4(text: str) -> bytes | None:
    """Four decimal numbers; what inet_aton also takes (octal, fewer than four) means different things to others."""
    raw = _inet_pton(_socket.AF_INET, text)
    return raw and IPV4_MAPPED + raw


def parse_ipv6(text: str) -> bytes | None:
    return _inet_pton(_socket.AF_INET6, text)


def to_text(address: bytes) -> str:
    if is_ipv4(address):
        return _socket.inet_ntop(_socket.AF_INET, address[12:])
    return _socket.inet_ntop(_socket.AF_INET6, address)


def is_ipv4(address: bytes) -> bool:
    return address.startswith(IPV4_MAPPED)


def is_unspecified(address: bytes) -> bool:
    return address in (UNSET, ANY4)


def is_loopback(address: bytes) -> bool:
    """127.0.0.0/8 (RFC 1122 §3.2.1.3 g) or ::1."""
    return address == LOOPBACK6 or (is_ipv4(address) and address[12] == 127)


def is_multicast(address: bytes) -> bool:
    """224.0.0.0/4 (RFC 5771 §3) or ff00::/8 (RFC 4291 §2.7)."""
    if is_ipv4(address):
        return address[12] >> 4 == 0xE
    return address[0] == 0xFF


def is_unicast(address: bytes) -> bool:
    """Whether it can be somebody's: what an answer can be sent to."""
    return not is_unspecified(address) and not is_multicast(address) and address != BROADCAST4


def is_link_local(address: bytes) -> bool:
    """169.254.0.0/16 (RFC 3927 §1.4) or fe80::/10 (RFC 4291 §2.4)."""
    if is_ipv4(address):
        return address[12:14] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def link_local_of(mac: bytes) -> bytes:
    """fe80::/64 with the modified EUI-64 of a MAC address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def class_prefix_length(address: bytes) -> int:
    """What an IPv4 address says about its network all by itself (RFC 791 §3.2): class A 8, B 16, C 24, others 32."""
    first = address[12]
    if first < 128:
        return 8
    if first < 192:
        return 16
    return 24 if first < 224 else 32


def netmask_prefix_length(mask: bytes) -> int | None:
    """How many leading ones an IPv4 mask has; None if a zero comes before a one."""
    inverted = ~int.from_bytes(mask[12:], "big") & 0xFFFFFFFF
    if inverted & (inverted + 1):
        return None
    return 32 - inverted.bit_length()


def bounds(address: bytes, prefix_length: int) -> tuple[bytes, bytes]:
    """First and last address of an IPv4 address's network."""
    rest = (1 << (32 - prefix_length)) - 1
    last = int.from_bytes(address[12:], "big") | rest
    return IPV4_MAPPED + (last - rest).to_bytes(4, "big"), IPV4_MAPPED + last.to_bytes(4, "big")


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 sockets at all."""
    try:
        _socket.socket(_socket.AF_INET6, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC).close()
    except OSError as failure:
        return failure.errno != errno.EAFNOSUPPORT
    return True


def _inet_pton(family: int, text: str) -> bytes | None:
    try:
        return _socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: a NUL, or bytes that are no UTF-8
        return None
