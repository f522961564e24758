# SPDX-License-Identifier: Apache-2.0
"""Frames as the guest writes and reads them: Ethernet, IPv4 or IPv6, TCP. Written by hand, so that a test can write
what no library would; scapy checks this file itself, once, in test_segments.py.

Used by conversation.py, model_guest.py and the tests. Sans-io: bytes in and out.
Adversary: a core that writes nonsense: every length and checksum of what it sends is checked here, by parse().
Invariants: addresses are in network order, 4 or 16 bytes; numbers of TCP are absolute here, relative in conversations.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

ETHERNET, IPV4, IPV6, TCP = 14, 20, 40, 20
GUEST_MAC = bytes.fromhex("525400123456")
OUR_MAC = bytes.fromhex("9a559a559a55")
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

FLAG_LETTERS = (("S", SYN), ("F", FIN), ("R", RST), ("P", PSH), ("U", URG), (".", ACK))


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def flags_of(letters: str) -> int:
    known = dict(FLAG_LETTERS)
    return sum(known[letter] for letter in set(letters))


def letters_of(flags: int) -> str:
    return "".join(letter for letter, bit in FLAG_LETTERS if flags & bit)


def checksum(data: bytes) -> int:
    """RFC 1071; 0 over bytes that hold their own correct checksum."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!IHBB", length, 0, 0, protocol)


@dataclass
class Options:
    """Of TCP, in the order in which they are written here."""

    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    sack: list[tuple[int, int]] = field(default_factory=list)
    raw: bytes = b""

    def pack(self) -> bytes:
        out = b""
        if self.mss is not None:
            out += struct.pack("!BBH", 2, 4, self.mss)
        if self.wscale is not None:
            out += struct.pack("!BBB", 3, 3, self.wscale)
        if self.sack_ok:
            out += struct.pack("!BB", 4, 2)
        if self.sack:
            out += struct.pack("!BB", 5, 2 + 8 * len(self.sack))
            out += b"".join(struct.pack("!II", *block) for block in self.sack)
        out += self.raw
        return out + b"\1" * (-len(out) % 4)

    @classmethod
    def parse(cls, data: bytes) -> Options:
        options = cls()
        while data and data[0] != 0:
            if data[0] == 1:
                data = data[1:]
                continue
            assert len(data) >= 2 and 2 <= data[1] <= len(data), f"options that run over their end: {data.hex()}"
            kind, body, data = data[0], data[2 : data[1]], data[data[1] :]
            if kind == 2:
                (options.mss,) = struct.unpack("!H", body)
            elif kind == 3:
                options.wscale = body[0]
            elif kind == 4:
                options.sack_ok = True
            elif kind == 5:
                options.sack = list(struct.iter_unpack("!II", body))
            else:
                raise AssertionError(f"option {kind} was never asked for")
        return options


def ethernet(ethertype: int, payload: bytes, source: bytes = GUEST_MAC, destination: bytes = OUR_MAC) -> bytes:
    return destination + source + struct.pack("!H", ethertype) + payload


def ip_packet(source: bytes, destination: bytes, protocol: int, payload: bytes, more: int = 0, hops: int = 64) -> bytes:
    """With room announced for `more` bytes that are not here."""
    length = len(payload) + more
    if len(source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, IPV4 + length, 0, 0x4000, hops, protocol, 0) + source + destination
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return ethernet(ETHERTYPE_IPV4, head + payload)
    head = struct.pack("!IHBB", 6 << 28, length, protocol, hops) + source + destination
    return ethernet(ETHERTYPE_IPV6, head + payload)


@dataclass(frozen=True)
class Ends:
    """The two ends of a connection, as the guest sees them."""

    guest: bytes
    guest_port: int
    remote: bytes
    remote_port: int

    def tcp_head(
        self,
        flags: int,
        seq: int,
        ack: int,
        window: int,
        options: Options | None = None,
        payload: int = 0,
        urgent: int = 0,
    ) -> bytes:
        """A frame of the guest's up to its payload, of which `payload` bytes will follow. The checksum is left to the
        device, as a guest with offloads leaves it."""
        packed = options.pack() if options else b""
        head = struct.pack(
            "!HHIIBBHHH",
            self.guest_port,
            self.remote_port,
            seq & 0xFFFFFFFF,
            ack & 0xFFFFFFFF,
            (TCP + len(packed)) // 4 << 4,
            flags,
            window,
            0,
            urgent,
        )
        return ip_packet(self.guest, self.remote, PROTOCOL_TCP, head + packed, payload)


@dataclass(frozen=True)
class Offload:
    """What the virtio header would say (virtio 1.2, 5.1.6)."""

    needs_csum: bool = False
    gso_type: int = 0
    gso_size: int = 0
    header_length: int = 0
    csum_start: int = 0
    csum_offset: int = 0


@dataclass(frozen=True)
class Packet:
    """An IP packet to the guest; its header has been checked."""

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes
    payload_offset: int
    offload: Offload
    time_ms: int
    frame: bytes


@dataclass(frozen=True)
class Segment:
    """A TCP segment to the guest; numbers absolute. payload_offset is in the frame."""

    packet: Packet
    source_port: int
    destination_port: int
    flags: int
    seq: int
    ack: int
    window: int
    options: Options
    payload_offset: int
    length: int

    @property
    def time_ms(self) -> int:
        return self.packet.time_ms

    @property
    def gso_size(self) -> int:
        return self.packet.offload.gso_size if self.packet.offload.gso_type else 0


def group_mac(destination: bytes) -> bytes:
    """RFC 1112, 6.4; RFC 2464, 7. Empty: the address is one host's."""
    if len(destination) == 16:
        return b"\x33\x33" + destination[12:] if destination[0] == 0xFF else b""
    low = bytes([destination[1] & 0x7F]) + destination[2:]
    return b"\x01\x00\x5e" + low if 224 <= destination[0] < 240 else b""


def parse_packet(
    frame: bytes, offload: Offload, time_ms: int, guest_mac: bytes = GUEST_MAC, peer_mac: bytes = OUR_MAC
) -> Packet:
    assert len(frame) >= ETHERNET, "shorter than an Ethernet header"
    (ethertype,) = struct.unpack("!H", frame[12:14])
    ip = frame[ETHERNET:]
    if ethertype == ETHERTYPE_IPV4:
        assert ip[0] == 0x45 and checksum(ip[:IPV4]) == 0, "an IPv4 header whose checksum is wrong"
        total, protocol = struct.unpack("!H", ip[2:4])[0], ip[9]
        source, destination, header = ip[12:16], ip[16:20], IPV4
    else:
        assert ethertype == ETHERTYPE_IPV6 and ip[0] >> 4 == 6, f"neither IPv4 nor IPv6: {ethertype:#x}"
        total, protocol = IPV6 + struct.unpack("!H", ip[4:6])[0], ip[6]
        source, destination, header = ip[8:24], ip[24:40], IPV6
    ends = group_mac(destination) or guest_mac, peer_mac
    assert (frame[:6], frame[6:12]) == ends, f"from or to nobody: {frame[:12].hex()}"
    assert total == len(ip), f"the IP header says {total} bytes, the frame holds {len(ip)}"
    return Packet(source, destination, protocol, ip[header:], ETHERNET + header, offload, time_ms, frame)


def _check_offload(packet: Packet) -> None:
    """The rules of design.md, "Offload rules": a complete checksum, or one that the guest can complete."""
    offload, tcp = packet.offload, packet.payload
    pseudo = pseudo_header(packet.source, packet.destination, PROTOCOL_TCP, len(tcp))
    if offload.needs_csum:
        assert (offload.csum_start, offload.csum_offset) == (packet.payload_offset, 16), offload
        assert tcp[16:18] == struct.pack("!H", ~checksum(pseudo) & 0xFFFF), "not the pseudo-header's sum"
    else:
        assert checksum(pseudo + tcp) == 0, "a TCP checksum that is wrong"
    if offload.gso_type:
        header = packet.payload_offset + (tcp[12] >> 4) * 4
        assert offload.needs_csum, "a super-segment with a complete checksum"
        assert offload.gso_type == (1 if len(packet.source) == 4 else 4), offload
        assert offload.header_length == header and len(packet.frame) - header > offload.gso_size > 0, offload


def parse_segment(packet: Packet) -> Segment:
    assert packet.protocol == PROTOCOL_TCP, f"protocol {packet.protocol}, not TCP"
    _check_offload(packet)
    tcp = packet.payload
    source, destination, seq, ack, offset, flags, window = struct.unpack("!HHIIBBH", tcp[:16])
    header = (offset >> 4) * 4
    assert TCP <= header <= len(tcp), "a TCP header longer than its packet"
    return Segment(
        packet=packet,
        source_port=source,
        destination_port=destination,
        flags=flags,
        seq=seq,
        ack=ack,
        window=window,
        options=Options.parse(tcp[TCP:header]),
        payload_offset=packet.payload_offset + header,
        length=len(tcp) - header,
    )
