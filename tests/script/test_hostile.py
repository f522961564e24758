# SPDX-License-Identifier: Apache-2.0
"""A guest that writes whatever it likes: the core neither crashes, nor reads beyond a frame, nor keeps a flow that its
guest has reset. The sanitizers of fake_core.py watch. Adversary: the guest."""

from __future__ import annotations

import struct
from typing import Any

import segments
from conversation import Conversation
from fake_core import lib
from hypothesis import example, given, settings
from hypothesis import strategies as st
from segments import GUEST_MAC, OUR_MAC, Ends, Options
from world import GATEWAY, GUEST, PEER, World, WorldOptions

EXAMPLES = 400
FLOW_LIMIT = 16

ETHERTYPES = st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100, 0x0000])
LENGTHS = st.sampled_from([0, 1, 13, 14, 15, 33, 34, 53, 54, 73, 74, 159, 160, 161, 1514])
ADDRESSES = {n: st.sampled_from([GUEST[n], PEER[n], GATEWAY[n], b"\xff" * len(GUEST[n])]) for n in (4, 6)}
EDGES = st.sampled_from([-70000, 500, 65280, 65281, 1 << 31, (1 << 31) - 1])
NEAR = st.integers(-3, 3) | EDGES | st.integers(0, 1 << 32)


@st.composite
def noise(draw: Any) -> bytes:
    """An Ethernet header, or half of one, before random bytes."""
    frame = OUR_MAC + GUEST_MAC + struct.pack("!H", draw(ETHERTYPES)) + draw(st.binary(max_size=200))
    return bytes(frame[: draw(LENGTHS)]) if draw(st.booleans()) else bytes(frame)


@st.composite
def half_right_ip(draw: Any) -> bytes:
    """An IP header whose fields each may be wrong, before random bytes of a protocol that we know."""
    protocol = draw(st.sampled_from([0, 1, 6, 17, 43, 44, 58, 60, 255]))
    body = draw(st.binary(max_size=120))
    total = draw(st.sampled_from([0, 8, 20, 40, len(body), len(body) + 20, len(body) + 21, 65535]))
    if draw(st.booleans()):
        first = draw(st.sampled_from([0x45, 0x44, 0x4F, 0x55, 0x40]))
        head = struct.pack("!BBHHHBBH", first, 0, total, 0, 0, 64, protocol, 0)
        frame = head + draw(ADDRESSES[4]) + draw(ADDRESSES[4]) + body
        return segments.ethernet(0x0800, frame)
    version, hops = draw(st.sampled_from([6, 6, 4])), draw(st.sampled_from([255, 64, 0]))
    head = struct.pack("!IHBB", version << 28, total, protocol, hops)
    return segments.ethernet(0x86DD, head + draw(ADDRESSES[6]) + draw(ADDRESSES[6]) + body)


@st.composite
def half_right_tcp(draw: Any) -> tuple[int, int, int, int, Options, int, int]:
    """A segment whose numbers lie near those of the connection, or anywhere: flags, seq, ack, window, options, payload,
    cut."""
    options = Options(
        mss=draw(st.none() | st.integers(0, 65535)),
        wscale=draw(st.none() | st.integers(0, 255)),
        sack_ok=draw(st.booleans()),
        sack=draw(st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)), max_size=2)),
        raw=draw(st.binary(max_size=8)),
    )
    return (
        draw(st.integers(0, 63)),
        draw(NEAR),
        draw(NEAR),
        draw(st.sampled_from([0, 1, 1000, 65535])),
        options,
        draw(st.sampled_from([0, 0, 1, 1000, 60000])),
        draw(st.sampled_from([0, 0, 0, 0, 1, 20, 21])),
    )


def world_of(peek_off: bool) -> World:
    return World(WorldOptions(flow_limit=FLOW_LIMIT, peek_off=peek_off))


@settings(max_examples=EXAMPLES)
@given(st.lists(noise() | half_right_ip(), max_size=20), st.sampled_from([1, 7, 64, 65550]))
def test_frames_of_random_bytes_do_no_harm(frames: list[bytes], piece_bytes: int) -> None:
    """Headers cut off anywhere, lengths that lie, protocols that nobody speaks; in pieces of any size."""
    world = world_of(True)
    failed = True
    try:
        world.set_link(piece_bytes=piece_bytes)
        for frame in frames:
            lib.script_from_guest(frame, len(frame), 0, 0, 0)
        world.settle()
        assert len(world.flows()) <= FLOW_LIMIT
        failed = False
    finally:
        world.close(failed)


def _send(world: World, ends: Ends, segment: tuple[int, int, int, int, Options, int, int]) -> None:
    """Numbers are relative to what lockgate expects next of this flow, if it is there; so is the place of the payload
    in the guest's stream, so that whatever is taken of it can be compared."""
    flags, seq, ack, window, options, payload, cut = segment
    flow = world.flow_of(ends)
    rcv_nxt, snd_nxt, stream, position = 0, 0, 0, 0
    if flow is not None:
        rcv_nxt, snd_nxt = int(flow.rcv_nxt), int(flow.snd_nxt)
        if flow.fd >= 0:
            # A payload that starts before the stream reaches into it at its place 0: positions count modulo 2^64.
            ahead = seq - (1 << 32) if seq >= 1 << 31 else seq
            stream, position = 2 * flow.fd + 1, (int(lib.fake_socket_at(flow.fd).sent) + ahead) % (1 << 64)
    head = ends.tcp_head(flags, rcv_nxt + seq, snd_nxt + ack, window, Options(raw=options.pack()[:40]), payload)
    if cut:
        payload, head = 0, head[:-cut]
    world.send(head, stream, position, payload)


PEER_ACTS = st.sampled_from(["", "", "peer sends 3000", "peer closes", "peer resets", "peer takes all", "link gives 5"])


@settings(max_examples=EXAMPLES)
@example(False, 4, "syn_ack", [((24, (1 << 32) - 59999, 0, 0, Options(), 60000, 0), "", False)])
@given(
    st.booleans(),
    st.sampled_from([4, 6]),
    st.sampled_from(["connecting", "syn_ack", "open"]),
    st.lists(st.tuples(half_right_tcp(), PEER_ACTS, st.booleans()), max_size=25),
)
def test_segments_with_wild_numbers_do_no_harm(
    peek_off: bool, family: int, state: str, script: list[tuple[Any, str, bool]]
) -> None:
    """Flags, numbers, windows and options at random, near the edges of the window and far from them, in every state."""
    world = world_of(peek_off)
    conversation = Conversation(world, family)
    failed = True
    try:
        conversation("+0 < S 0:0(0) <mss 1000,sackOK,wscale 7>")
        if state != "connecting":
            conversation("+0 peer accepts \n +0 > S. 0:0(0) ack 1")
        if state == "open":
            conversation("+0 < . 1:1(0) ack 1")
        for segment, peer, settle in script:
            _send(world, conversation.ends, segment)
            _peer(lib.fake_last_socket(), peer)
            if settle:
                world.settle()
                world.inbox.clear()
        world.settle()
        assert len(world.flows()) <= 1
        failed = False
    finally:
        world.close(failed)


def _peer(fd: int, what: str) -> None:
    if what == "link gives 5":
        lib.script_give_room(5)
    elif what == "peer sends 3000":
        lib.fake_peer_send(fd, 3000)
    elif what == "peer takes all":
        lib.fake_peer_take(fd, 1 << 40)
    elif what:
        (lib.fake_peer_fin if what == "peer closes" else lib.fake_peer_reset)(fd)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 65535), half_right_tcp()), min_size=1, max_size=60))
def test_a_guest_that_opens_everything_meets_the_limit(syns: list[tuple[int, Any]]) -> None:
    """SYNs for any port, with any options: never more flows than the limit, and each of them ends."""
    world = world_of(True)
    failed = True
    try:
        for port, (flags, seq, ack, window, options, payload, _) in syns:
            ends = Ends(GUEST[4], port, PEER[4], 80)
            packed = Options(raw=options.pack()[:40])
            world.send(ends.tcp_head(flags | segments.SYN, seq, ack, window, packed, payload), 0, 0, payload)
        world.settle()
        assert len(world.flows()) <= FLOW_LIMIT
        failed = False
    finally:
        world.close(failed)
