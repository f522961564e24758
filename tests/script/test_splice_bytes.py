# SPDX-License-Identifier: Apache-2.0
"""What moves between two joined sockets, and how they end: halves, resets, bytes that do not fit, and no pipe for them.

Adversary: peers that reset, or do not read."""

from __future__ import annotations

import errno

import pytest
from fake_core import lib
from splice_world import FAR, NEAR, TCP6, SpliceWorld, stuck

SLOT = 4096
EACH_SIDE = pytest.mark.parametrize("first", [NEAR, FAR], ids=["near", "far"])


@pytest.fixture(name="world")
def world_of_two_loopbacks(loopbacks: SpliceWorld) -> SpliceWorld:
    return loopbacks


# ---- halves ----


@EACH_SIDE
def test_each_half_is_closed_by_itself(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    one.says(100)
    one.closes()
    assert (other.got, other.sees, one.sees) == (100, "FIN", "nothing")
    other.says(300)
    assert one.got == 300
    other.closes()
    assert one.sees == other.sees == "FIN" and one.socket.closed and other.socket.closed
    assert world.close_reasons() == ["done"] and not world.splices()


@EACH_SIDE
def test_a_fin_waits_for_the_bytes_before_it(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    other.queue(1000)
    one.says(5000)
    one.closes()
    taken = 0
    while other.sees == "nothing":
        assert other.got - taken == min(1000, 5000 - taken)
        taken = other.got
        other.takes()
    assert other.got == 5000
    other.closes()


def test_both_may_close_at_once(world: SpliceWorld) -> None:
    joint = world.joined()
    for end in (joint.near, joint.far):
        lib.fake_peer_send(end.fd, 10)
        lib.fake_peer_fin(end.fd)
    world.settle()
    assert not joint.lives and joint.near.got == joint.far.got == 10
    assert joint.near.sees == joint.far.sees == "FIN"


# ---- resets ----


@EACH_SIDE
def test_a_reset_is_one_on_both_sides(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    one.resets()
    assert other.sees == "RST" and one.socket.closed
    assert world.close_reasons() == ["peer_reset"]


@EACH_SIDE
def test_what_came_before_a_reset_arrives_before_it(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    lib.fake_peer_send(one.fd, 5000)
    one.resets()
    assert (other.got, other.sees) == (5000, "RST")


@EACH_SIDE
def test_a_reset_waits_until_what_came_before_it_was_taken(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    other.queue(1000)
    one.says(3000)
    one.resets()
    assert (other.got, other.sees) == (1000, "nothing")
    other.takes()
    other.takes()
    assert (other.got, other.sees) == (3000, "RST")


@EACH_SIDE
def test_what_a_peer_said_before_its_reset_arrives_though_a_write_met_the_reset_first(
    world: SpliceWorld, first: int
) -> None:
    """A server that refuses a long request says why, and closes with the rest of it unread."""
    one, other = world.joined().ends(first)
    lib.fake_peer_send(one.fd, 100)
    lib.fake_peer_reset(one.fd)
    lib.fake_peer_send(other.fd, 70000)
    world.settle()
    assert (other.got, other.sees) == (100, "RST")


@EACH_SIDE
def test_a_write_that_meets_a_reset_ends_both_though_the_other_does_not_read(world: SpliceWorld, first: int) -> None:
    """Once the other has taken what was said before."""
    one, other = world.joined().ends(first)
    other.queue(1000)
    one.says(3000)
    lib.fake_peer_reset(one.fd)
    other.says(70000)
    assert (other.got, other.sees) == (1000, "nothing")
    other.takes()
    other.takes()
    assert (other.got, other.sees) == (3000, "RST")


@EACH_SIDE
def test_a_write_may_meet_a_reset_of_which_epoll_has_not_told(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    one.queue(64 << 20)
    assert lib.fake_peer_send(other.fd, 6 << 20) == 6 << 20
    assert lib.script_step()
    assert one.got == 4 << 20, "there is more, in the next step"
    lib.fake_peer_send(one.fd, 100)
    lib.fake_peer_reset(one.fd)
    world.fail_next("epoll_wait", errno.EINTR)
    world.settle()
    assert (other.got, other.sees) == (100, "RST")


@EACH_SIDE
def test_a_reset_behind_more_than_one_turns_bytes_waits_for_them(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    other.queue(64 << 20)
    assert lib.fake_peer_send(one.fd, 6 << 20) == 6 << 20
    one.resets()
    assert (other.got, other.sees) == (6 << 20, "RST")


@EACH_SIDE
def test_of_who_talks_to_one_that_was_reset_little_is_heard(world: SpliceWorld, first: int) -> None:
    """While it does not read what that one had said: nobody will ever take its own bytes."""
    one, other = world.joined().ends(first)
    other.queue(1000)
    one.says(3000)
    one.resets()
    before = world.counter("wakeups_idle")
    for _ in range(50):
        other.says(100)
    assert other.sees == "nothing" and world.counter("wakeups_idle") - before <= 1


def test_what_came_with_a_reset_before_anybody_looked_arrives(world: SpliceWorld) -> None:
    """connect() has succeeded all the same, and the other family is none of its business."""
    joint = world.connect(world.port())
    world.agent_gives()
    far = joint.far
    for act in (lib.fake_peer_accept, lambda fd: lib.fake_peer_send(fd, 100) - 100, lib.fake_peer_reset):
        assert act(far.fd) == 0
    world.settle()
    assert (joint.near.got, joint.near.sees) == (100, "RST") and not lib.script_asked(TCP6)


@EACH_SIDE
def test_a_reset_behind_a_fin_is_passed_on(world: SpliceWorld, first: int) -> None:
    """Who was told of the end might otherwise wait for the other half for ever."""
    one, other = world.joined().ends(first)
    one.says(100)
    one.closes()
    assert other.sees == "FIN"
    one.resets()
    assert other.socket.aborted and one.socket.closed


def test_a_reset_of_who_has_ended_costs_its_own_bytes_nothing(world: SpliceWorld) -> None:
    joint = world.joined()
    joint.far.queue(1000)
    joint.near.says(3000)
    joint.near.closes()
    joint.near.resets()
    joint.far.takes()
    assert joint.far.sees == "nothing"
    joint.far.takes()
    assert (joint.far.got, joint.far.sees) == (3000, "RST")


# ---- bytes that do not fit ----


@pytest.mark.world(pipe_slots=2)
@EACH_SIDE
def test_a_small_pipe_passes_everything(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    one.says(1_000_000)
    assert other.got == 1_000_000 and world.calls("pipe") == 1


@EACH_SIDE
def test_a_side_that_does_not_read_closes_the_other_sides_window(world: SpliceWorld, first: int) -> None:
    """What one call had read lies in a pipe; the rest stays in the kernel's queue."""
    world.pipes_at_most(10, slots=4)
    joint = world.joined()
    one, other = joint.ends(first)
    other.queue(1000)
    one.says(100_000)
    assert (other.got, joint.now.held[first], one.unread) == (1000, 4 * SLOT - 1000, 100_000 - 4 * SLOT)
    while other.got < 100_000:
        other.takes()
    assert one.unread == 0 and joint.now.held[first] == 0


def test_pipes_are_lent_and_given_back(world: SpliceWorld) -> None:
    """One serves all who are not stuck."""
    port = world.port(outward=True)
    joints = [world.joined(port) for _ in range(5)]
    for joint in joints:
        joint.near.says(1000)
        joint.far.says(1000)
    assert world.calls("pipe") == 1
    for joint in joints[:3]:
        joint.far.queue(10)
        joint.near.says(1000)
    joints[3].near.says(1000)
    assert world.calls("pipe") == 4
    for joint in joints[:3]:
        joint.far.queue(1 << 20)
        joint.far.takes()
        assert joint.far.got == 2000


def test_a_long_transfer_lets_others_have_their_turn(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    long, short = world.joined(port), world.joined(port)
    for fd in (long.far.fd, short.far.fd):
        lib.fake_send_limit(fd, 16 << 20)
    assert lib.fake_peer_send(long.near.fd, 6 << 20) == 6 << 20
    assert lib.fake_peer_send(short.near.fd, 100) == 100
    assert lib.script_step()
    assert long.far.got == 4 << 20 and short.far.got == 100
    world.settle()
    assert long.far.got == 6 << 20


@EACH_SIDE
def test_a_call_that_was_interrupted_is_repeated(world: SpliceWorld, first: int) -> None:
    one, other = world.joined().ends(first)
    for _ in range(2):
        world.fail_next("splice", errno.EINTR)
        one.says(1000)
    other.queue(1000)
    one.says(1000)
    world.fail_next("splice", errno.EINTR)
    other.takes()
    assert other.got == 3000


@EACH_SIDE
def test_urgent_bytes_are_passed_on_in_their_place(world: SpliceWorld, first: int) -> None:
    """As ordinary ones: splice() would stop before them for ever."""
    one, other = world.joined().ends(first)
    for _ in range(2):
        one.says(100)
        assert lib.fake_peer_send_urgent(one.fd, 10) == 10
        one.says(50)
        world.settle()
    assert other.got == one.said == 320
    assert lib.fake_peer_send_urgent(one.fd, 1) == 1
    one.closes()
    assert (other.got, other.sees) == (321, "FIN")


def test_urgent_bytes_wait_with_the_others_for_a_side_that_does_not_read(world: SpliceWorld) -> None:
    joint = world.joined()
    joint.far.queue(1000)
    joint.near.says(3000)
    assert lib.fake_peer_send_urgent(joint.near.fd, 10) == 10
    lib.fake_peer_fin(joint.near.fd)
    lib.fake_peer_reset(joint.near.fd)
    world.settle()
    while joint.far.sees == "nothing":
        joint.far.takes()
    assert (joint.far.got, joint.far.sees) == (3010, "RST")


# ---- no pipe ----


@pytest.mark.world(pipes=0)
def test_without_any_pipe_both_are_reset(world: SpliceWorld) -> None:
    """Nobody has one who could give it back."""
    joint = world.connect(world.port(outward=True))
    joint.near.says(10)
    far = joint.far
    joint.far_accepts()
    assert joint.near.sees == far.sees == "RST"
    assert world.close_reasons() == ["no_descriptor"]


@pytest.mark.world(pipes=1)
def test_who_finds_no_pipe_waits_for_one(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    joints = [world.joined(port) for _ in range(4)]
    holder = stuck(world, port)
    for joint in joints:
        joint.near.says(500)
        joint.far.says(500)
        assert joint.far.got == joint.near.got == 0 and joint.now.waits
    holder.far.queue(1 << 20)
    holder.far.takes()
    assert all(joint.far.got == joint.near.got == 500 for joint in joints)


@pytest.mark.world(pipes=1)
@pytest.mark.parametrize("how", ["reset", "evicted"])
def test_the_pipe_of_a_connection_that_ends_is_the_next_ones(world: SpliceWorld, how: str) -> None:
    port = world.port(outward=True)
    joints = [world.joined(port) for _ in range(3)]
    holder = stuck(world, port)
    for joint in joints:
        joint.near.says(500)
    if how == "reset":
        holder.far.resets()
    else:
        world.advance(61)
        for joint in joints:
            assert joint.now.waits
        while holder.lives:
            world.connect(port)
    assert not holder.lives
    assert [joint.far.got for joint in joints if joint.lives] == [500] * sum(joint.lives for joint in joints)


@pytest.mark.world(pipes=1)
def test_a_pipe_that_comes_while_others_wait_reaches_all_of_them(world: SpliceWorld) -> None:
    """Also if the first of them has found one by itself meanwhile, and needs none any more."""
    port = world.port(outward=True)
    first, second = world.joined(port), world.joined(port)
    holder = stuck(world, port)
    first.near.says(500)
    second.near.says(500)
    world.pipes_at_most(2)
    first.near.says(1)
    assert (first.far.got, second.far.got) == (501, 500) and holder.now.held[NEAR]


@pytest.mark.world(pipes=1)
def test_who_is_offered_a_pipe_that_another_has_taken_waits_again(world: SpliceWorld) -> None:
    """And does not pass on what is not there, from one to the next and round again."""
    port = world.port(outward=True)
    waiting = [world.joined(port) for _ in range(3)]
    quick = world.joined(port)
    quick.far.queue(100)
    holder = stuck(world, port)
    for joint in waiting:
        joint.near.says(500)
    holder.far.queue(1 << 20)
    lib.fake_peer_take(holder.far.fd, 1000)
    lib.fake_peer_send(quick.near.fd, 1000)
    world.settle()
    assert quick.now.held[NEAR] and all(joint.now.waits for joint in waiting)
    quick.far.queue(1 << 20)
    quick.far.takes()
    assert [joint.far.got for joint in (*waiting, quick)] == [500, 500, 500, 1000]


@pytest.mark.world(pipes=1)
def test_a_pipe_for_one_that_ends_meanwhile_is_the_next_ones(world: SpliceWorld) -> None:
    """It is offered to one after the other, and these have no use for it any more."""
    port = world.port(outward=True)
    joints = [world.joined(port) for _ in range(5)]
    holder = stuck(world, port)
    for joint in joints:
        joint.near.says(500)
    holder.far.queue(1 << 20)
    lib.fake_peer_take(holder.far.fd, 1000)
    for joint in joints[:4]:
        for end in joint.ends():
            lib.fake_peer_reset(end.fd)
    world.settle()
    assert joints[4].far.got == 500


@pytest.mark.world(pipes=1)
def test_a_reset_of_who_waits_for_a_pipe_waits_with_it(world: SpliceWorld) -> None:
    port = world.port(outward=True)
    joint = world.joined(port)
    holder = stuck(world, port)
    joint.near.says(500)
    joint.near.resets()
    assert joint.far.sees == "nothing"
    holder.far.queue(1 << 20)
    holder.far.takes()
    assert (joint.far.got, joint.far.sees) == (500, "RST")


@pytest.mark.world(pipes=1)
def test_a_connection_that_waits_for_a_pipe_is_heard_of_once(world: SpliceWorld) -> None:
    """And not with each segment that comes meanwhile."""
    port = world.port(outward=True)
    joint = world.joined(port)
    holder = stuck(world, port)
    joint.near.says(100)
    before = world.counter("wakeups_idle")
    for _ in range(50):
        joint.near.says(100)
    assert world.counter("wakeups_idle") - before <= 1
    holder.far.takes()
    holder.far.queue(1 << 20)
    holder.far.takes()
    assert joint.far.got == 5100


def test_a_connection_that_waits_for_a_socket_is_not_heard_of(world: SpliceWorld) -> None:
    joint = world.connect(world.port())
    for _ in range(50):
        joint.near.says(100)
    assert world.counter("wakeups_idle") == 0
    world.agent_gives()
    for _ in range(50):
        joint.near.says(100)
    joint.far_accepts()
    assert joint.far.got == 10_000
    assert world.counter("wakeups_idle") <= 1
