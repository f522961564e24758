# SPDX-License-Identifier: Apache-2.0
"""core/datapath/packet.c against packets that scapy makes, and against a slow parser of the same rules on any bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

import pytest
from core_pieces import COUNTERS, EXAMPLES, ffi, lib
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    _IPv6ExtHdr,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet as ScapyPacket
from scapy.packet import Raw

HEAD_MAX = lib.FRAME_HEAD_MAX
GUEST_MAC, OUR_MAC = "52:54:00:12:34:56", "9a:55:9a:55:9a:55"
EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options
FRAGMENT = 44
MAPPED = bytes(10) + b"\xff\xff"

ports = st.integers(0, 65535)
ipv4_addresses = st.binary(min_size=4, max_size=4)
ipv6_addresses = st.binary(min_size=16, max_size=16)


class Parsed(NamedTuple):
    ipv6: bool
    protocol: int
    hops: int
    l4_offset: int
    l4_length: int
    source: bytes
    destination: bytes


class Segment(NamedTuple):
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    mss: int
    scale: int | None
    sack_allowed: bool
    sack: list[tuple[int, int]]
    payload_offset: int
    payload_length: int


# ---- the slow parser: RFC 791, RFC 8200 and RFC 9293 on the whole frame, one check a line ----


def slow_parse(frame: bytes) -> Parsed | str:
    """What the frame says, or the counter that its drop must be counted by."""
    kind, packet = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == 0x0800:
        return slow_ipv4(packet)
    if kind == 0x86DD:
        return slow_ipv6(packet)
    return "drop_ethertype"


def slow_ipv4(packet: bytes) -> Parsed | str:
    if len(packet) < 20:
        return "drop_short"
    header, total = packet[0] % 16 * 4, int.from_bytes(packet[2:4], "big")
    if packet[0] // 16 != 4 or header < 20 or total < header:
        return "drop_ip_header"
    if total > len(packet):
        return "drop_short"
    more_fragments, offset = packet[6] & 0x20, int.from_bytes(packet[6:8], "big") % 0x2000
    if more_fragments or offset:
        return "fragments"
    source, destination = MAPPED + packet[12:16], MAPPED + packet[16:20]
    return Parsed(False, packet[9], packet[8], 14 + header, total - header, source, destination)


def slow_ipv6(packet: bytes) -> Parsed | str:
    if len(packet) < 40:
        return "drop_short"
    if packet[0] // 16 != 6:
        return "drop_ip_header"
    length, protocol, at = int.from_bytes(packet[4:6], "big"), packet[6], 40
    if 40 + length > len(packet):
        return "drop_short"
    end = 40 + length
    fragmented = False
    while protocol in (*EXTENSIONS, FRAGMENT):
        if at + 8 > end or 14 + at + 8 > HEAD_MAX:  # an extension header beyond the copied head is not looked for
            return "drop_ip_header"
        size = 8 if protocol == FRAGMENT else 8 * packet[at + 1] + 8
        late_hop_by_hop, unfinished_route = protocol == 0 and at > 40, protocol == 43 and packet[at + 3]
        if late_hop_by_hop or unfinished_route or (protocol == FRAGMENT and fragmented):
            return "drop_ip_header"
        if at + size > end or 14 + at + size > HEAD_MAX:
            return "drop_ip_header"
        if protocol == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF9:
            return "fragments"
        fragmented |= protocol == FRAGMENT
        protocol, at = packet[at], at + size
    return Parsed(True, protocol, packet[7], 14 + at, end - at, packet[8:24], packet[24:40])


def slow_segment(frame: bytes, packet: Parsed) -> Segment | None:
    tcp = frame[packet.l4_offset : packet.l4_offset + packet.l4_length]
    if len(tcp) < 20 or packet.l4_offset + 20 > HEAD_MAX:
        return None
    header = tcp[12] // 16 * 4
    if header < 20 or header > len(tcp) or packet.l4_offset + header > HEAD_MAX:
        return None
    source_port, destination_port, seq, ack, _, flags, window = struct.unpack_from("!HHIIBBH", tcp)
    mss, scale, allowed, blocks = slow_options(tcp[20:header])
    at, left = packet.l4_offset + header, len(tcp) - header
    return Segment(source_port, destination_port, seq, ack, flags, window, mss, scale, allowed, blocks, at, left)


def slow_options(options: bytes) -> tuple[int, int | None, bool, list[tuple[int, int]]]:
    """RFC 9293, 3.1, RFC 7323, 2.3 and RFC 2018: the MSS (0: none), the shift (None: none), whether SACK is allowed,
    and its blocks, up to what makes no sense. Of an option that comes twice the last counts."""
    mss, scale, allowed, blocks = 0, None, False, []
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if len(options) < 2 or not 2 <= options[1] <= len(options):
            break
        body = options[2 : options[1]]
        if options[0] == 2 and len(body) == 2:
            mss = int.from_bytes(body, "big")
        if options[0] == 3 and len(body) == 1:
            scale = min(14, body[0])
        if options[0] == 4 and not body:
            allowed = True
        if options[0] == 5 and len(body) <= 32:
            blocks = [struct.unpack_from("!II", body, at) for at in range(0, len(body) - 7, 8)]
        options = options[options[1] :]
    return mss, scale, allowed, blocks


# ---- ours ----


def guest_frame(frame: bytes) -> Any:
    made = ffi.new("struct guest_frame *")
    made.length, made.head_length = len(frame), min(len(frame), HEAD_MAX)
    ffi.memmove(made.head, frame, made.head_length)
    return made


def address_bytes(address: Any) -> bytes:
    return bytes(ffi.buffer(address.byte))


def parsed(frame: bytes) -> Parsed | str:
    packet = ffi.new("struct packet *")
    drop = lib.packet_parse(guest_frame(frame), packet)
    if drop:
        return str(COUNTERS[drop])
    numbers = (packet.protocol, packet.hops, packet.l4_offset, packet.l4_length)
    return Parsed(bool(packet.ipv6), *numbers, address_bytes(packet.source), address_bytes(packet.destination))


def segment_of(frame: bytes) -> Segment | None:
    whole, packet, s = guest_frame(frame), ffi.new("struct packet *"), ffi.new("struct tcp_segment *")
    assert lib.packet_parse(whole, packet) == 0
    if not lib.tcp_segment_parse(whole, packet, s):
        return None
    scale = s.scale if s.has_scale else None
    numbers = (s.source_port, s.destination_port, s.seq, s.ack, s.flags, s.window)
    blocks = [(s.sack[at].start, s.sack[at].end) for at in range(s.sack_count)]
    return Segment(*numbers, s.mss, scale, s.sack_allowed, blocks, s.payload_offset, s.payload_length)


# ---- packets ----


def text4(raw: bytes) -> str:
    return ".".join(map(str, raw))


def ether(packet: ScapyPacket, padding: bytes = b"") -> bytes:
    return bytes(Ether(src=GUEST_MAC, dst=OUR_MAC) / packet) + padding


def ipv6_header(source: bytes, destination: bytes, **fields: int) -> ScapyPacket:
    return IPv6(src=str(IPv6Address(source)), dst=str(IPv6Address(destination)), **fields)


tcp_options = st.lists(
    st.one_of(
        st.tuples(st.just("MSS"), ports),
        st.tuples(st.just("WScale"), st.integers(0, 255)),
        st.just(("NOP", None)),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("SAck"), st.tuples(*[st.integers(0, 2**32 - 1)] * 4)),
        st.tuples(st.just("Timestamp"), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))),
    ),
    max_size=3,
)


@st.composite
def extension_headers(draw: st.DrawFn) -> list[ScapyPacket]:
    """As RFC 8200, 4.1, has them: hop-by-hop options first, and one fragment header at most."""
    chain: list[ScapyPacket] = []
    for _ in range(draw(st.integers(0, 2))):
        route = IPv6ExtHdrRouting(addresses=["2001:db8::1"] * draw(st.integers(0, 2)), segleft=0)
        chain.append(IPv6ExtHdrDestOpt() if draw(st.booleans()) else route)
    if draw(st.booleans()):
        chain.insert(draw(st.integers(0, len(chain))), IPv6ExtHdrFragment(id=77))  # RFC 6946: of a packet that is whole
    if draw(st.booleans()):
        chain.insert(0, IPv6ExtHdrHopByHop())
    return chain


@st.composite
def scapy_frames(draw: st.DrawFn) -> bytes:
    """A frame that is right: either family, options, extension headers, Ethernet padding behind."""
    body = draw(st.binary(max_size=100))
    inner: ScapyPacket = draw(st.sampled_from([TCP(options=draw(tcp_options)), UDP(), Raw()])) / Raw(body)
    hops = draw(st.integers(0, 255))
    if draw(st.booleans()):
        options = draw(st.sampled_from([[], [IPOption(b"\x01" * 4)], [IPOption(b"\x01" * 40)]]))
        packet = IP(src=text4(draw(ipv4_addresses)), dst=text4(draw(ipv4_addresses)), ttl=hops, options=options) / inner
    else:
        packet = ipv6_header(draw(ipv6_addresses), draw(ipv6_addresses), hlim=hops)
        for extension in draw(extension_headers()):
            packet = packet / extension.copy()
        packet = packet / inner
    return ether(packet, draw(st.binary(max_size=20)))


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """A right frame with some bytes changed, or cut short."""
    frame = bytearray(draw(scapy_frames()))
    for at, value in draw(st.lists(st.tuples(st.integers(12, 90), st.integers(0, 255)), max_size=4)):
        if at < len(frame):
            frame[at] = value
    return bytes(frame[: draw(st.integers(14, len(frame)))] if draw(st.booleans()) else frame)


random_frames = st.builds(
    lambda kind, body: bytes(12) + kind + body,
    st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x08\x06"]),
    st.binary(max_size=200),
)


@settings(max_examples=3 * EXAMPLES)
@given(scapy_frames())
def test_a_right_frame_is_understood_as_scapy_meant_it(frame: bytes) -> None:
    """Protocol, hops, addresses and the place of what IP carries."""
    packet = Ether(frame)
    got = parsed(frame)
    assert isinstance(got, Parsed)
    if IP in packet:
        ip = packet[IP]
        expected = (ip.ttl, ip.proto, ip.len - 4 * ip.ihl, 14 + 4 * ip.ihl)
        assert (text4(got.source[12:]), text4(got.destination[12:])) == (ip.src, ip.dst)
    else:
        chain = [layer for layer in packet.iterpayloads() if isinstance(layer, _IPv6ExtHdr)]
        skipped = sum(8 if isinstance(layer, IPv6ExtHdrFragment) else 8 + 8 * layer.len for layer in chain)
        last = chain[-1] if chain else packet[IPv6]
        expected = (packet[IPv6].hlim, last.nh, packet[IPv6].plen - skipped, 54 + skipped)
    assert (got.hops, got.protocol, got.l4_length, got.l4_offset) == expected


@settings(max_examples=10 * EXAMPLES)
@given(st.one_of(scapy_frames(), damaged_frames(), random_frames))
@example(bytes(14))
@example(bytes(12) + b"\x08\x00" + bytes([0x45]) + bytes(18))
@example(bytes(12) + b"\x86\xdd" + b"\x60\0\0\0\0\0\x3b\xff" + bytes(32))
def test_any_frame_is_parsed_or_dropped_for_the_reason_of_the_slow_parser(frame: bytes) -> None:
    """The same fields, or the same counter, whatever the bytes are."""
    assert parsed(frame) == slow_parse(frame)


@settings(max_examples=10 * EXAMPLES)
@given(st.one_of(damaged_frames(), scapy_frames()))
def test_any_tcp_header_is_read_as_the_slow_parser_reads_it(frame: bytes) -> None:
    """Ports, numbers, options and the place of the payload; or nothing, where the header does not fit."""
    packet = slow_parse(frame)
    assume(isinstance(packet, Parsed))
    assert isinstance(packet, Parsed)
    assert segment_of(frame) == slow_segment(frame, packet)


@settings(max_examples=5 * EXAMPLES)
@given(st.binary(max_size=40))
@example(b"\x02\x04\x05\xb4\x01\x03\x03\x07")
@example(b"\x03\x03\xff\x02")
@example(b"\x02\x00")
@example(b"\x02\xff\x05\xb4")
@example(b"\x04\x02\x05\x0a" + bytes(range(8)))
@example(b"\x05\x22" + bytes(range(32)))
@example(b"\x05\x26" + bytes(range(36)))
def test_any_option_bytes_are_read_as_the_slow_parser_reads_them(options: bytes) -> None:
    """Options that lie about their length end the list and harm nothing."""
    options += bytes(-len(options) % 4)
    tcp = bytes(12) + bytes([(20 + len(options)) // 4 << 4, 2]) + bytes(6) + options
    frame = bytes(12) + b"\x08\0\x45\0" + (20 + len(tcp)).to_bytes(2, "big") + bytes(4) + b"\x40\x06" + bytes(10) + tcp
    segment = segment_of(frame)
    assert segment is not None
    assert (segment.mss, segment.scale, segment.sack_allowed, segment.sack) == slow_options(options)


@settings(max_examples=3 * EXAMPLES)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8191), st.booleans(), st.binary(min_size=1, max_size=60))
def test_a_fragment_is_known_by_its_place_in_its_packet(number: int, offset: int, more: bool, body: bytes) -> None:
    """Number, offset in bytes and whether more follow, and where the piece lies."""
    assume(offset or more)
    four = IP(id=number & 0xFFFF, frag=offset, flags="MF" if more else 0, proto=17) / Raw(body)
    six = ipv6_header(bytes(15) + b"\1", bytes(15) + b"\2") / IPv6ExtHdrHopByHop()
    six = six / IPv6ExtHdrFragment(id=number, offset=offset, m=more, nh=17) / Raw(body)
    for whole, at, known, named_at in ((four, 34, number & 0xFFFF, 0), (six, 70, number, 54)):
        packet = ffi.new("struct packet *")
        assert COUNTERS[lib.packet_parse(guest_frame(ether(whole)), packet)] == "fragments"
        fragment = packet.fragment
        assert (fragment.identification, fragment.offset, fragment.more) == (known, offset * 8, more)
        assert (packet.protocol, packet.l4_offset, packet.l4_length) == (17, at, len(body))
        assert (packet.fragmented, fragment.named_at) == (True, named_at)


@pytest.mark.parametrize(
    "chain",
    [
        IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop(),
        IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=1),
        IPv6ExtHdrFragment() / IPv6ExtHdrFragment(),
    ],
    ids=["hop-by-hop options that are not first", "a route that is not at its end", "a fragment of a fragment"],
)
def test_what_no_receiver_may_pass_over_is_dropped(chain: ScapyPacket) -> None:
    assert parsed(ether(ipv6_header(bytes(15) + b"\1", bytes(15) + b"\2") / chain / UDP())) == "drop_ip_header"


def test_extension_headers_beyond_the_copied_head_are_not_followed() -> None:
    """They would have to be read from memory that the guest can change while we look."""
    packet = ipv6_header(bytes(15) + b"\1", bytes(15) + b"\2")
    many = packet
    for _ in range(14):
        many = many / IPv6ExtHdrDestOpt()
    long = packet / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(120))])
    for chain in (many, long):
        assert parsed(ether(chain / UDP())) == "drop_ip_header"


@settings(max_examples=3 * EXAMPLES)
@given(
    st.booleans(),
    ipv6_addresses,
    ipv6_addresses,
    st.sampled_from([1, 6, 17, 58]),
    st.integers(0, 255),
    st.binary(max_size=64),
)
def test_our_headers_are_byte_for_byte_scapys(
    ipv4: bool, source: bytes, destination: bytes, protocol: int, hops: int, body: bytes
) -> None:
    """Ethernet and IP, with the IPv4 checksum and don't-fragment set."""
    if ipv4:
        source, destination = MAPPED + source[:4], MAPPED + destination[:4]
    path = ffi.new("struct packet_path *")
    path.guest_mac, path.our_mac = bytes.fromhex(GUEST_MAC.replace(":", "")), bytes.fromhex(OUR_MAC.replace(":", ""))
    path.source.byte, path.destination.byte = source, destination
    at = ffi.new("uint8_t[]", 54)
    length = lib.packet_write_headers(at, path, protocol, hops, len(body))
    if lib.address_is_ipv4(ffi.new("address *", (source,))):
        fields = {"src": text4(source[12:]), "dst": text4(destination[12:])}
        packet = IP(**fields, proto=protocol, ttl=hops, id=0, flags="DF") / Raw(body)
    else:
        packet = ipv6_header(source, destination, nh=protocol, hlim=hops) / Raw(body)
    expected = bytes(Ether(src=OUR_MAC, dst=GUEST_MAC) / packet)
    assert bytes(ffi.buffer(at, length)) + body == expected


def test_kinds_of_addresses_are_told_apart() -> None:
    """As RFC 4291, RFC 5735 and RFC 1112 name them."""
    samples = ["0.0.0.0", "10.1.2.3", "127.0.0.1", "127.255.3.4", "128.0.0.1", "223.255.255.255", "224.0.0.1"]
    samples += ["255.255.255.255", "169.254.1.1", "::", "::1", "::2", "fe80::1", "febf::1", "fec0::1", "ff02::1"]
    samples += ["2001:db8::1", "::ffff:0:0", "fe00::1"]
    for text in samples:
        known = ip_address(text)
        raw = known.packed if known.version == 6 else MAPPED + known.packed
        address = ffi.new("address *", (raw,))
        mapped = known.ipv4_mapped if isinstance(known, IPv6Address) else known
        plain = known if mapped is None else mapped
        assert lib.address_is_ipv4(address) == (plain.version == 4), text
        assert lib.address_is_unset(address) == (raw == bytes(16)), text
        assert lib.address_is_loopback(address) == plain.is_loopback, text
        reserved = plain.version == 4 and plain.packed[0] >= 240
        assert lib.address_is_multicast(address) == (plain.is_multicast or reserved), text
        assert lib.address_is_link_local(address) == (plain.version == 6 and plain.is_link_local), text
