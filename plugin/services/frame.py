# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames for the services of the control plane: IPv4, IPv6, UDP and ICMPv6, taken apart and put together.

Called by dhcp.py, dhcpv6.py and ra.py, and by the servers of a virtual network (gateway/), with frames that the worker
punted; what they answer goes back through it.
Adversary: the guest, which writes every byte that `ip_parse` and `udp_parse` see.

Invariants:
- Sans-io: bytes in, bytes or a named reason out. Only functions named *_parse see raw bytes; none of them raises.
- A length is checked before it is used, and every byte is read once: work is bounded by the frame's length.
- Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, as everywhere in lockgate.
- Checksums of what the guest sent are not verified. With checksum offload a frame carries only the pseudo-header sum,
  and the flag that says so does not reach us (libkrun even cuts it off); frames cross shared memory, not a wire.
"""

from __future__ import annotations

import enum
import struct

from lockgate.plugin.address import IPV4_MAPPED, is_ipv4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
PROTOCOL_UDP = 17
PROTOCOL_ICMP6 = 58

HOP_LIMIT = 255  # of all that we send: RFC 4861 demands it of neighbour discovery, and nothing else minds

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")

_IPV4_FRAGMENT = 0x3FFF  # more-fragments bit and offset, RFC 791 §3.1
_IPV4_DONT_FRAGMENT = 0x4000


class Ignored(enum.Enum):
    """Why a frame gets no answer. The caller counts each by its value; none of them is worth more than that."""

    TRUNCATED = "truncated"  # ends before its own headers or lengths say
    BAD_LENGTH = "bad_length"  # a length field that contradicts another one
    NOT_OURS = "not_ours"  # well formed, and for some other service
    FRAGMENT = "fragment"
    DISABLED = "disabled"  # the service is switched off, or has nothing to hand out
    NOT_A_REQUEST = "not_a_request"  # an answer, or a message that only servers send
    BUSY = "busy"  # as much is under way as there may be
    EXHAUSTED = "exhausted"  # nothing is left to hand out
    RELAYED = "relayed"  # for a host behind the guest, for which we have no address
    OTHER_SERVER = "other_server"  # the client has chosen another DHCP server
    RELEASED = "released"  # nothing to say to DHCPRELEASE
    DECLINED = "declined"  # nor to DHCPDECLINE: there is no second address to offer
    INFORM = "inform"  # nor to DHCPINFORM, where a contract has it so
    UNICAST = "unicast"  # to one server, where DHCPv6 clients must ask all
    NO_SOURCE = "no_source"  # from an address to which nothing can be sent
    MISSING_OPTION = "missing_option"  # without what a message of its kind must say
    MISPLACED_OPTION = "misplaced_option"  # with what a message of its kind must not say
    FROM_AFAR = "from_afar"  # a router forwarded it: hop limit below 255


class Answer:
    """A frame for the guest, and what to tell about it under --debug."""

    __slots__ = ("frame", "event", "fields")

    def __init__(self, frame: bytes, event: str, fields: dict[str, str]) -> None:
        self.frame = frame
        self.event = event
        self.fields = fields


class Truncated(Exception):
    """The data ends too early. Raised by Cursor, turned into Ignored.TRUNCATED by the *_parse function around it."""


class Cursor:
    """Reads forward through bytes of unknown origin; never beyond their end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > len(self):
            raise Truncated
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))


class Packet:
    """An IP packet and where it came from. `payload` is cut to the length that IP states: Ethernet padding is gone."""

    __slots__ = ("eth_source", "source", "destination", "protocol", "hop_limit", "payload")

    def __init__(
        self, eth_source: bytes, source: bytes, destination: bytes, protocol: int, hop_limit: int, payload: bytes
    ) -> None:
        self.eth_source = eth_source
        self.source = source
        self.destination = destination
        self.protocol = protocol
        self.hop_limit = hop_limit
        self.payload = payload


class Datagram:
    """A UDP datagram, its ports in host order."""

    __slots__ = ("source_port", "destination_port", "payload")

    def __init__(self, source_port: int, destination_port: int, payload: bytes) -> None:
        self.source_port = source_port
        self.destination_port = destination_port
        self.payload = payload


class Ends:
    """From whom to whom a built frame goes. Source and destination are of one family, which selects the IP header."""

    __slots__ = ("eth_source", "eth_destination", "source", "destination")

    def __init__(self, eth_source: bytes, eth_destination: bytes, source: bytes, destination: bytes) -> None:
        self.eth_source = eth_source
        self.eth_destination = eth_destination
        self.source = source
        self.destination = destination


def ip_parse(frame: bytes) -> Packet | Ignored:
    """The IP packet in an Ethernet frame. IPv6 extension headers are not followed: their protocol is not ours."""
    cursor = Cursor(frame)
    try:
        _, eth_source, ethertype = cursor.unpack(_ETHERNET)
        if ethertype == ETHERTYPE_IPV4:
            return _ipv4_parse(cursor, eth_source)
        if ethertype == ETHERTYPE_IPV6:
            return _ipv6_parse(cursor, eth_source)
    except Truncated:
        return Ignored.TRUNCATED
    return Ignored.NOT_OURS


def _ipv4_parse(cursor: Cursor, eth_source: bytes) -> Packet | Ignored:
    version_ihl, _, length, _, fragment, ttl, protocol, _, source, destination = cursor.unpack(_IPV4)
    header = (version_ihl & 15) * 4
    if version_ihl >> 4 != 4 or header < _IPV4.size or length < header:
        return Ignored.BAD_LENGTH
    if fragment & _IPV4_FRAGMENT:
        return Ignored.FRAGMENT
    cursor.take(header - _IPV4.size)
    payload = cursor.take(length - header)
    return Packet(eth_source, IPV4_MAPPED + source, IPV4_MAPPED + destination, protocol, ttl, payload)


def _ipv6_parse(cursor: Cursor, eth_source: bytes) -> Packet | Ignored:
    version, length, protocol, hop_limit, source, destination = cursor.unpack(_IPV6)
    if version >> 28 != 6:
        return Ignored.BAD_LENGTH
    return Packet(eth_source, source, destination, protocol, hop_limit, cursor.take(length))


def udp_parse(packet: Packet) -> Datagram | Ignored:
    if packet.protocol != PROTOCOL_UDP:
        return Ignored.NOT_OURS
    cursor = Cursor(packet.payload)
    try:
        source_port, destination_port, length, _ = cursor.unpack(_UDP)
        if length < _UDP.size:
            return Ignored.BAD_LENGTH
        return Datagram(source_port, destination_port, cursor.take(length - _UDP.size))
    except Truncated:
        return Ignored.TRUNCATED


def checksum(data: bytes) -> int:
    """RFC 1071: the ones' complement of the ones' complement sum of 16-bit words."""
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _pseudo_header(ends: Ends, protocol: int, length: int) -> bytes:
    if is_ipv4(ends.source):
        return ends.source[12:] + ends.destination[12:] + struct.pack("!xBH", protocol, length)  # RFC 768
    return ends.source + ends.destination + struct.pack("!IxxxB", length, protocol)  # RFC 8200 §8.1


def _ip_build(ends: Ends, protocol: int, payload: bytes) -> bytes:
    if is_ipv4(ends.source):
        ethertype = ETHERTYPE_IPV4
        # Never fragmented, so no identification is needed (RFC 6864 §4.1).
        fields = (0x45, 0, _IPV4.size + len(payload), 0, _IPV4_DONT_FRAGMENT, HOP_LIMIT, protocol)
        addresses = (ends.source[12:], ends.destination[12:])
        header = _IPV4.pack(*fields, checksum(_IPV4.pack(*fields, 0, *addresses)), *addresses)
    else:
        ethertype = ETHERTYPE_IPV6
        header = _IPV6.pack(6 << 28, len(payload), protocol, HOP_LIMIT, ends.source, ends.destination)
    return _ETHERNET.pack(ends.eth_destination, ends.eth_source, ethertype) + header + payload


def udp_build(ends: Ends, source_port: int, destination_port: int, data: bytes) -> bytes:
    """A frame with one UDP datagram, checksum included."""
    length = _UDP.size + len(data)
    summed = _pseudo_header(ends, PROTOCOL_UDP, length) + _UDP.pack(source_port, destination_port, length, 0) + data
    # RFC 768: a sum of zero is sent as ones, for zero says "no checksum".
    header = _UDP.pack(source_port, destination_port, length, checksum(summed) or 0xFFFF)
    return _ip_build(ends, PROTOCOL_UDP, header + data)


def icmp6_build(ends: Ends, message: bytes) -> bytes:
    """A frame with one ICMPv6 message, whose bytes 2 and 3 are filled in here (RFC 4443 §2.3)."""
    value = checksum(_pseudo_header(ends, PROTOCOL_ICMP6, len(message)) + message)
    return _ip_build(ends, PROTOCOL_ICMP6, message[:2] + value.to_bytes(2) + message[4:])


def mac_text(mac: bytes) -> str:
    return mac.hex(":")
