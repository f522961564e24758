# SPDX-License-Identifier: Apache-2.0
"""Streams between two joined sockets: at full speed they are told in large pieces, and nobody who pauses waits long.

Adversary: a peer that says a little and waits for the answer, where a little was not told."""

from __future__ import annotations

import pytest
from fake_core import lib
from splice_world import ALL, FAR, NEAR, End, SpliceWorld
from world import NEVER_MS

KB, MB = 1 << 10, 1 << 20
PAUSE_MS, BYTES, LASTING, MOST = 3, 4 * MB, 64 * MB, MB // 2  # SPLICE_STREAM_*
EACH_SIDE = pytest.mark.parametrize("first", [NEAR, FAR], ids=["near", "far"])


@pytest.fixture(name="world")
def world_of_two_loopbacks(loopbacks: SpliceWorld) -> SpliceWorld:
    return loopbacks


def ends(world: SpliceWorld, first: int = NEAR) -> tuple[End, End]:
    """Of a connection whose queues hold all that is said here."""
    joint = world.joined()
    for end in (joint.near, joint.far):
        end.queue(64 * MB)
    return joint.ends(first)


def streams(one: End, other: End, length: int, each_ms: int = 256 * KB) -> None:
    """At one rate; the other reads all of it."""
    while length > 0:
        part = min(length, each_ms)
        one.says(part)
        other.takes()
        one.world.advance(0.001)
        length -= part


def becomes_stream(one: End, other: End, each_ms: int = 256 * KB) -> int:
    """After how many bytes."""
    before = one.said
    while not told_from(one) > 1:
        streams(one, other, each_ms, each_ms)
        assert one.said - before <= BYTES << 12, "it never does"
    return one.said - before


def told_from(end: End) -> int:
    """How many bytes the core wants to hear of."""
    return max(1, int(end.socket.low_water))


def pauses(one: End) -> None:
    """As streams() has let a millisecond go by already, one less would do."""
    one.world.advance((PAUSE_MS + 1) / 1000)


# ---- it becomes one ----


@EACH_SIDE
def test_at_full_speed_it_is_told_once_a_millisecond(world: SpliceWorld, first: int) -> None:
    one, other = ends(world, first)
    assert becomes_stream(one, other) == BYTES
    assert 200 * KB <= told_from(one) <= 300 * KB and told_from(other) == 1
    wakeups = lib.script_wakeups()
    for _ in range(10):
        one.says(16 * KB)
    assert other.got == BYTES and lib.script_wakeups() == wakeups
    one.says(160 * KB)
    assert other.got == one.said and lib.script_wakeups() == wakeups + 1
    assert world.counter("splice_streams") == 1


def test_a_piece_is_never_more_than_a_pipe_holds(world: SpliceWorld) -> None:
    one, other = ends(world)
    becomes_stream(one, other, each_ms=MB)
    assert told_from(one) <= MOST


def test_a_slow_one_is_told_as_it_comes(world: SpliceWorld) -> None:
    one, other = ends(world)
    streams(one, other, 2 * BYTES, each_ms=100 * KB)
    assert told_from(one) == 1


def test_pieces_with_pauses_between_them_are_none(world: SpliceWorld) -> None:
    one, other = ends(world)
    for _ in range(20):
        streams(one, other, BYTES - MB)
        pauses(one)
    assert told_from(one) == 1


def test_what_asked_and_waits_is_none_because_the_other_side_is(world: SpliceWorld) -> None:
    """A download: the next request is told at once."""
    one, other = ends(world)
    becomes_stream(one, other)
    other.says(10)
    assert one.got == 10


def test_both_may_be(world: SpliceWorld) -> None:
    one, other = ends(world)
    for _ in range(2 * BYTES // (256 * KB)):
        streams(one, other, 128 * KB, 128 * KB)
        streams(other, one, 256 * KB)
    assert told_from(other) > 1


# ---- it ends ----


@EACH_SIDE
def test_what_is_less_than_a_piece_arrives_after_a_pause(world: SpliceWorld, first: int) -> None:
    one, other = ends(world, first)
    becomes_stream(one, other)
    one.says(10)
    assert other.got == one.said - 10
    world.advance(0.001)
    assert other.got == one.said - 10
    world.advance(0.001)
    assert other.got == one.said and told_from(one) == 1
    assert world.next_ms == NEVER_MS and world.counter("splice_pauses") == 1
    one.says(10)
    assert other.got == one.said


def test_one_that_goes_on_has_no_pause(world: SpliceWorld) -> None:
    one, other = ends(world)
    becomes_stream(one, other)
    streams(one, other, 10 * BYTES)
    assert world.counter("splice_pauses") == 0 and world.counter("wakeups_idle") == 0


def test_one_that_says_no_more_leaves_no_timer(world: SpliceWorld) -> None:
    one, other = ends(world)
    becomes_stream(one, other)
    pauses(one)
    assert world.next_ms == NEVER_MS and told_from(one) == 1
    assert world.counter("wakeups_idle") == 0


@EACH_SIDE
@pytest.mark.parametrize("end", ["closes", "resets"])
def test_its_end_is_told_at_once(world: SpliceWorld, first: int, end: str) -> None:
    one, other = ends(world, first)
    becomes_stream(one, other)
    one.says(10)
    getattr(one, end)()
    assert (other.got, other.sees) == (one.said, "FIN" if end == "closes" else "RST")
    world.advance(1)
    assert world.next_ms == NEVER_MS and world.counter("splice_pauses") == 0


def test_an_urgent_byte_is_told_at_once(world: SpliceWorld) -> None:
    one, other = ends(world)
    becomes_stream(one, other)
    one.says(10)
    lib.fake_peer_send_urgent(one.fd, 10)
    world.settle()
    assert other.got == one.said


def test_one_that_the_other_side_does_not_take_has_no_timer(world: SpliceWorld) -> None:
    """The other side's room wakes it."""
    one, other = ends(world)
    becomes_stream(one, other)
    piece = told_from(one)
    other.queue(1000)
    lib.fake_peer_send(one.fd, piece)
    world.settle()
    pauses(one)
    assert world.next_ms == NEVER_MS and told_from(one) == piece
    other.queue(64 * MB)
    other.takes(ALL)
    assert other.got == one.said
    one.says(10)
    pauses(one)
    assert other.got == one.said


def test_a_near_and_a_far_stream_each_have_their_pause(world: SpliceWorld) -> None:
    one, other = ends(world)
    for _ in range(2 * BYTES // (256 * KB)):
        for first, second in ((one, other), (other, one)):
            first.says(256 * KB)
            second.takes()
        world.advance(0.001)
    assert told_from(one) > 1 < told_from(other)
    one.says(10)
    streams(other, one, 8 * MB, each_ms=2 * MB)
    assert other.got == one.said and told_from(one) == 1 < told_from(other)
    pauses(other)
    assert told_from(other) == 1


# ---- it was tried in vain ----


def test_each_pause_doubles_what_must_come_before_it_is_tried_again(world: SpliceWorld) -> None:
    one, other = ends(world)
    needed = []
    for _ in range(10):
        needed.append(becomes_stream(one, other, MB))
        pauses(one)
    assert [round(bytes_ / BYTES) for bytes_ in needed] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]


def test_answers_of_one_size_are_held_up_a_few_times_and_no_more(world: SpliceWorld) -> None:
    server, client = ends(world)
    held_up = 0
    for _ in range(50):
        client.says(100)
        streams(server, client, 20 * MB + 10)
        held_up += told_from(server) > 1
        pauses(server)
        assert client.got == server.said
    assert held_up == 3


def test_one_that_lasted_was_not_tried_in_vain(world: SpliceWorld) -> None:
    """Nor was one before it."""
    one, other = ends(world)
    for times in (1, 2):
        assert round(becomes_stream(one, other) / BYTES) == times
        pauses(one)
    for times in (4, 1, 1):
        assert round(becomes_stream(one, other) / BYTES) == times
        streams(one, other, LASTING + MB)
        pauses(one)


# ---- what the kernel may refuse ----


def test_without_room_for_two_pieces_it_is_told_as_it_comes(world: SpliceWorld) -> None:
    """Cause: where tcp_rmem is small, the sender stood still until a piece was moved."""
    one, other = ends(world)
    one.socket.low_water_limit = 512 * KB
    streams(one, other, 4 * BYTES)
    assert told_from(one) == 1 and world.counter("splice_streams") == 0
    calls = world.calls("setsockopt")
    streams(one, other, 16 * BYTES)
    assert world.calls("setsockopt") == calls, "it is not tried again soon"
    one.socket.low_water_limit = 600 * KB
    assert becomes_stream(one, other, MB // 4) <= BYTES << 8


def test_a_kernel_that_knows_no_low_water_goes_on_as_before(world: SpliceWorld) -> None:
    one, other = ends(world)
    for _ in range(2 * BYTES // (256 * KB)):
        world.fail_next("setsockopt", 92)
        streams(one, other, 256 * KB)
    assert other.got == one.said and told_from(one) == 1
