# SPDX-License-Identifier: Apache-2.0
"""Packets that the guest sends in pieces: what of them arrives at the host's sockets, and what becomes of the rest.

Adversary: the guest, where a test says so. Pieces by any means and in any order are tests/unit/test_fragments.py's.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest
from fake_core import ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw
from segments import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    checksum,
    ethernet,
    ip_packet,
    pseudo_header,
)
from world import GATEWAY, GUEST, PEER, World

TIMEOUT = 30
TEXT = {4: ("192.0.2.15", "198.51.100.7", "192.0.2.1"), 6: ("2001:db8::15", "2001:db8:1::7", "2001:db8::1")}
MAX = 65507
SMALL, LARGE = 68, 1500


@dataclass
class Pieces:
    """Of the guest's packets to one peer, or to the gateway."""

    world: World
    family: int
    number: int = 1

    def of(self, inner: Packet, mtu: int = LARGE, remote: int = 1) -> list[bytes]:
        """The frames of one packet, as scapy cuts it."""
        self.number += 1
        source, destination = TEXT[self.family][0], TEXT[self.family][remote]
        if self.family == 4:
            cut = fragment(IP(src=source, dst=destination, id=self.number & 0xFFFF) / inner, (mtu - 20) // 8 * 8)
            return [ethernet(ETHERTYPE_IPV4, bytes(piece)) for piece in cut]
        whole = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=self.number) / inner
        return [ethernet(ETHERTYPE_IPV6, bytes(piece)) for piece in fragment6(whole, mtu)]

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.world.send(frame)
        self.world.settle()

    @property
    def sent(self) -> list[bytes]:
        """What left the host through the youngest socket since the last time."""
        buffer, found = ffi.new("uint8_t[]", 1 << 16), []
        while (length := lib.fake_datagram_sent(lib.fake_last_socket(), buffer, 1 << 16)) >= 0:
            found.append(bytes(ffi.buffer(buffer, length)))
        return found


@pytest.fixture
def pieces(world: World, family: int) -> Pieces:
    return Pieces(world, family)


def datagram(payload: bytes, port: int = 4242) -> Packet:
    return UDP(sport=40000, dport=port) / Raw(payload)


def echo(family: int, payload: bytes) -> Packet:
    if family == 4:
        return ICMP(id=7, seq=1) / Raw(payload)
    return ICMPv6EchoRequest(id=7, seq=1, data=payload)


# ---- what arrives ----


@pytest.mark.parametrize("size", [1473, 8000, MAX])
def test_a_datagram_in_pieces_is_sent_as_one(pieces: Pieces, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    pieces.send(*pieces.of(datagram(payload)))
    assert pieces.sent == [payload]
    assert pieces.world.counter("fragments_joined") == 1 and pieces.world.calls("sendmmsg") == 1


@pytest.mark.parametrize("size", [8000, MAX])
def test_the_peer_gets_a_large_echo_request_whole(pieces: Pieces, size: int) -> None:
    payload = bytes(size)
    pieces.send(*pieces.of(echo(pieces.family, payload)))
    (sent,) = pieces.sent
    assert sent[0] == {4: 8, 6: 128}[pieces.family] and sent[8:] == payload


def test_the_gateway_answers_a_large_echo_request(pieces: Pieces) -> None:
    payload = random.Random(2).randbytes(MAX)
    pieces.send(*pieces.of(echo(pieces.family, payload), remote=2))
    (answer,) = pieces.world.inbox
    assert answer.payload[0] == {4: 0, 6: 129}[pieces.family] and answer.payload[8:] == payload


def test_a_connection_opens_by_a_syn_in_pieces(pieces: Pieces) -> None:
    """Nobody does that; but nothing speaks against it."""
    syn = TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1460)] + [("NOP", None)] * 36)
    pieces.send(*pieces.of(syn, mtu=SMALL if pieces.family == 4 else 80))
    assert pieces.world.counter("fragments_joined") == 1 and pieces.world.counter("tcp_opened") == 1


def test_pieces_of_one_packet_come_in_several_batches_and_between_others(pieces: Pieces) -> None:
    first, second = pieces.of(datagram(b"a" * 5000)), pieces.of(datagram(b"b" * 5000))
    for frames in zip(first, second, strict=True):
        pieces.send(*frames)
    assert pieces.sent == [b"a" * 5000, b"b" * 5000]


def test_many_packets_become_whole_in_one_batch(pieces: Pieces) -> None:
    """As many as a batch has frames: each stays until the batch is sent."""
    packets = [pieces.of(datagram(bytes([number]) * 1600)) for number in range(32)]
    pieces.send(*(packet[1] for packet in packets))
    pieces.send(*(packet[0] for packet in packets))
    assert pieces.sent == [bytes([number]) * 1600 for number in range(32)]
    assert pieces.world.next_ms > pieces.world.now_ms + 1000


def test_destination_options_before_the_transport_are_passed_over(world: World) -> None:
    pieces = Pieces(world, 6)
    pieces.send(*pieces.of(IPv6ExtHdrDestOpt() / datagram(b"x" * 3000)))
    assert pieces.sent == [b"x" * 3000]


def test_a_configuration_request_in_pieces_is_controls(world: World) -> None:
    """It gets a frame like any other."""
    pieces = Pieces(world, 4)
    pieces.send(*pieces.of(datagram(b"x" * 1600, port=67)))
    assert lib.script_punts() == 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([4, 6]),
    st.randoms(use_true_random=False),
    st.lists(st.tuples(st.integers(0, MAX), st.sampled_from([576, 1280, 1500, 9000])), min_size=1, max_size=4),
    st.sampled_from([1, 7, 64]),
    st.sampled_from([100, 1514, 65550]),
)
def test_shuffled_packets_leave_as_they_were(
    family: int, order: random.Random, sizes: list[tuple[int, int]], batch: int, piece_bytes: int
) -> None:
    """Of any size, cut for any MTU, all pieces of all of them in any order, out of scattered memory."""
    world = World()
    world.set_link(batch_max=batch, piece_bytes=piece_bytes)
    pieces, failed = Pieces(world, family), True
    try:
        payloads = [order.randbytes(size) for size, _ in sizes]
        frames = [
            frame
            for payload, (_, mtu) in zip(payloads, sizes, strict=True)
            for frame in pieces.of(datagram(payload), max(mtu, 1280 if family == 6 else 0))
        ]
        order.shuffle(frames)
        pieces.send(*frames)
        assert sorted(pieces.sent) == sorted(payloads)
        failed = False
    finally:
        world.close(failed)


# ---- what does not ----


def test_a_datagram_with_a_hole_is_told_of_when_its_time_is_over(pieces: Pieces) -> None:
    """Time exceeded, code 1, from where it went, with the first piece in it: RFC 792, RFC 4443, 3.3."""
    world, family = pieces.world, pieces.family
    frames = pieces.of(datagram(b"x" * 5000))
    pieces.send(*frames[:-1])
    world.advance(TIMEOUT - 1)
    assert not world.inbox
    world.advance(1)
    (packet,) = world.inbox
    assert (packet.source, packet.destination) == (PEER[family], GUEST[family])
    assert packet.protocol == (PROTOCOL_ICMP if family == 4 else PROTOCOL_ICMPV6)
    assert packet.payload[:2] == bytes([{4: 11, 6: 3}[family], 1])
    pseudo = pseudo_header(packet.source, packet.destination, PROTOCOL_ICMPV6, len(packet.payload))
    assert checksum((pseudo if family == 6 else b"") + packet.payload) == 0
    quoted = packet.payload[8:]
    assert frames[0][14:].startswith(quoted) and len(quoted) >= {4: 28, 6: 56}[family]
    assert world.counter("fragments_late") == 1 and not world.flows()


def test_a_packet_without_its_first_piece_goes_in_silence(pieces: Pieces) -> None:
    pieces.send(*pieces.of(datagram(b"x" * 5000))[1:])
    pieces.world.advance(TIMEOUT)
    assert not pieces.world.inbox and pieces.world.counter("fragments_late") == 1


@pytest.mark.parametrize("kind", ["an error", "to a group", "from nobody"])
def test_what_must_not_be_answered_is_not(world: World, family: int, kind: str) -> None:
    """RFC 1122, 3.2.2; RFC 4443, 2.4 (e)."""
    group = {4: bytes((224, 0, 0, 251)), 6: b"\xff\x02" + bytes(13) + b"\xfb"}[family]
    error = {4: (PROTOCOL_ICMP, 3), 6: (PROTOCOL_ICMPV6, 1)}[family] if kind == "an error" else (17, 0)
    source = bytes(len(group)) if kind == "from nobody" else GUEST[family]
    destination = group if kind == "to a group" else PEER[family]
    world.send(piece(family, bytes([error[1]]) + bytes(63), error[0], source, destination))
    world.settle()
    world.advance(TIMEOUT)
    assert not world.inbox and world.counter("fragments_late") == 1


def piece(
    family: int, payload: bytes, protocol: int, source: bytes, destination: bytes, offset: int = 0, more: bool = True
) -> bytes:
    """One piece of packet 99."""
    if family == 6:
        return ip_packet(source, destination, 44, struct.pack("!BBHI", protocol, 0, offset | more, 99) + payload)
    frame = bytearray(ip_packet(source, destination, protocol, payload))
    frame[18:22] = struct.pack("!HH", 99, more << 13 | offset // 8)
    return bytes(frame)


def test_a_flood_of_first_pieces_costs_one_wake_up_and_so_many_errors(world: World, family: int) -> None:
    """Adversary: the guest. What does not fit is dropped at once, the rest together."""
    pieces = Pieces(world, family)
    for _ in range(500):
        pieces.send(pieces.of(datagram(bytes(1600)))[0])
    assert world.counter("fragments_evicted") == 500 - 32
    world.advance(TIMEOUT)
    assert world.counter("fragments_late") == 32 == len(world.inbox)
    assert world.counter("timers_fired") == 1


def test_pieces_that_overlap_spoil_their_packet(pieces: Pieces) -> None:
    """Adversary: the guest. The port that a filter has seen is not written over (RFC 5722); others pass."""
    path = 17, GUEST[pieces.family], PEER[pieces.family]
    seen, meant = (struct.pack("!HHHH", 40000, port, 80, 0) for port in (80, 22))
    pieces.send(
        piece(pieces.family, seen + bytes(32), *path),
        piece(pieces.family, meant + bytes(8), *path),
        piece(pieces.family, bytes(40), *path, offset=40, more=False),
        *pieces.of(datagram(b"x" * 2000)),
    )
    assert pieces.sent == [b"x" * 2000]
    assert pieces.world.counter("drop_fragment") == 2
    pieces.world.advance(TIMEOUT)
    assert not pieces.world.inbox and pieces.world.counter("fragments_late") == 0


def test_a_family_that_is_switched_off_keeps_nothing(pieces: Pieces) -> None:
    pieces.world.view.flags &= ~(1 if pieces.family == 4 else 2)
    before = pieces.world.next_ms
    pieces.send(*pieces.of(datagram(b"x" * 3000)))
    assert pieces.world.next_ms == before and not pieces.world.counter("fragments_joined")


def test_a_tcp_header_in_two_pieces_opens_nothing(world: World, family: int) -> None:
    """Adversary: the guest (RFC 3128)."""
    syn = bytes(TCP(sport=40000, dport=80, flags="S"))
    world.send(piece(family, syn[:16], PROTOCOL_TCP, GUEST[family], PEER[family]))
    world.send(piece(family, syn[16:] + bytes(4), PROTOCOL_TCP, GUEST[family], PEER[family], 16))
    world.settle()
    world.advance(TIMEOUT)
    assert not world.flows() and not world.inbox and world.counter("drop_fragment") == 1


def test_extension_headers_that_go_on_in_the_next_piece_are_not_waited_for(world: World) -> None:
    """Adversary: the guest (RFC 7112)."""
    options = bytes([17, 1, 1, 12]) + bytes(12)
    world.send(piece(6, options, 60, GUEST[6], GATEWAY[6]))
    world.settle()
    assert world.counter("drop_fragment") == 1 and world.next_ms > 2**63
