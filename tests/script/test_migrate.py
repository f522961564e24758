# SPDX-License-Identifier: Apache-2.0
"""A flow that moves to another host with its guest: frozen, then thawed where it was, or adopted where it comes to.
Whichever it is, the guest and the peer get each byte once, in order, and nobody is told of anything."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from conversation import Conversation
from fake_core import ffi, lib
from world import World

HALF_WAY = """
    +0 peer sends 5000
    +0 > data 1:5001
    +0 < . 1:1(0) ack 2001
    +0 < P. 1:701(700) ack 2001
    +0 > . 5001:5001(0) ack 701
    +0 peer got 700
"""


def freeze() -> list[Any]:
    """The states of the flows that can move; all the others stay as they are."""
    states = ffi.new("struct lg_tcp_flow[]", 64)
    found = []
    for at in range(lib.script_freeze(states, len(states))):
        found.append(ffi.new("struct lg_tcp_flow *"))
        ffi.memmove(found[-1], ffi.addressof(states, at), ffi.sizeof("struct lg_tcp_flow"))
    return found


def take(world: World) -> tuple[Any, int]:
    """The one flow and its socket, of which this worker knows nothing any more."""
    [state] = freeze()
    fd = lib.script_take(state.id)
    world.settle()
    return state, fd


def move(world: World) -> None:
    """To a worker that knows nothing of the flow, with the same socket."""
    assert lib.script_adopt(*take(world)) == 0
    world.settle()


def test_a_frozen_flow_is_silent_whatever_the_guest_or_the_peer_do(world: World, conversation: Conversation) -> None:
    """Its socket is in other hands; no timer runs."""
    conversation.opened()(HALF_WAY)
    [state] = freeze()
    assert (state.snd_nxt - state.snd_una, state.rcv_nxt - state.rcv_acked) == (3000, 0)
    assert freeze() == [], "once"
    conversation("""
        +0   kernel holds 3000
        +0   forget
        +0   peer sends 4000
        +0   < . 701:701(0) ack 5001
        +0   < P. 701:801(100) ack 5001
        +999 > nothing
        +0   woken 0
        +0   kernel holds 7000
        +0   peer got 700
    """)
    lib.script_forget()
    world.settle()
    conversation("+0 closed moved")


def test_a_thawed_flow_goes_on_where_it_stood(world: World, conversation: Conversation) -> None:
    """What came meanwhile is there."""
    conversation.opened()(HALF_WAY)
    assert len(freeze()) == 1
    conversation("+0 peer sends 1000")
    lib.script_thaw()
    world.settle()
    conversation("""
        +0   > data 5001:6001 ack 701
        +0   < . 701:701(0) ack 6001
        +0   kernel holds 0
        +0   < P. 701:1401(700) ack 6001
        +0   > . 6001:6001(0) ack 1401
        +0   peer got 1400
    """)


def test_an_adopted_flow_goes_on_where_the_other_worker_stood(world: World, conversation: Conversation) -> None:
    """In flight stays in flight: it is sent again only if the guest does not acknowledge it."""
    conversation.opened()(HALF_WAY)
    move(world)
    conversation("""
        +0   > . 5001:5001(0) ack 701
        +0   peer sends 100
        +0   > data 5001:5101 ack 701
        +0   < . 701:701(0) ack 5101
        +0   kernel holds 0
        +0   < P. 701:1401(700) ack 5101
        +0   > . 5101:5101(0) ack 1401
        +0   peer got 1400
        +0   < F. 1401:1401(0) ack 5101
        +0   > . 5101:5101(0) ack 1402
        +0   peer closes
        +0   > F. 5101:5101(0) ack 1402
        +0   < . 1402:1402(0) ack 5102
        +0   closed done
    """)
    assert world.counter("tcp_adopted") == 1


def test_what_was_lost_on_the_way_goes_again(world: World, conversation: Conversation) -> None:
    """The guest acknowledges nothing for the first period of the timer, which begins anew."""
    conversation.opened()(HALF_WAY)
    move(world)
    conversation("""
        +0   > . 5001:5001(0) ack 701
        +1   > data 2001:5001 ack 701
        +0   < . 701:701(0) ack 5001
        +0   kernel holds 0
    """)


def test_bytes_that_the_kernel_had_not_taken_are_asked_for_again(world: World, conversation: Conversation) -> None:
    """They were not acknowledged, and so not moved; nor was the FIN behind them."""
    conversation.opened()("""
        +0   kernel queue 1000
        +0   < P. 1:1401(1400) ack 1
        +0   > . 1:1(0) ack 1001
        +0   < F. 1401:1401(0) ack 1
        +0   > . 1:1(0) ack 1001
    """)
    move(world)
    conversation("""
        +0   > . 1:1(0) ack 1001
        +0   flow OPEN OPEN
        +0   kernel queue 100000
        +0   peer takes all
        +0   < P. 1001:1401(400) ack 1
        +0   > . 1:1(0) ack 1401
        +0   < F. 1401:1401(0) ack 1
        +0   > . 1:1(0) ack 1402
        +0   peer got 1400
    """)


@pytest.mark.parametrize(
    ("field", "value", "base"),
    [
        ("mss", 10, None),
        ("guest_scale", 15, None),
        ("our_scale", 15, None),
        ("snd_window", 1 << 31, None),
        ("snd_nxt", 1 << 31, "snd_una"),
        ("rcv_acked", 1 << 31, "rcv_nxt"),
        ("rcv_edge", 1 << 30, "rcv_nxt"),
        ("guest_ended", 2, None),
        ("peer_ended", 3, None),
        ("peer_ended", 2, None),  # with something in flight
    ],
)
def test_a_state_that_makes_no_sense_is_refused(
    world: World, conversation: Conversation, field: str, value: int, base: str | None
) -> None:
    """It comes from another machine."""
    conversation.opened()(HALF_WAY)
    state, fd = take(world)
    setattr(state, field, value + (getattr(state, base) if base else 0) & 0xFFFFFFFF)
    assert lib.script_adopt(state, fd) == -errno.EINVAL
    assert lib.sys_close(fd) == 0


@pytest.mark.parametrize("field", ["guest_addr", "remote_addr"])
@pytest.mark.parametrize(
    "bad",
    [bytes(16), bytes(15) + b"\1", bytes(10) + b"\xff\xff\x7f\0\0\1", b"\xff\2" + bytes(14)],
    ids=["none", "loopback", "IPv4 loopback", "multicast"],
)
def test_an_address_that_no_guest_has_is_refused(
    world: World, conversation: Conversation, field: str, bad: bytes
) -> None:
    """Nor may the two be of different families; once it is right, there is one flow of that name."""
    conversation.opened()
    state, fd = take(world)
    good = bytes(getattr(state, field))
    other_family = b"\x20" * 16 if conversation.family == 4 else bytes(10) + b"\xff\xff" + b"\x0a\0\0\1"
    for wrong in (bad, other_family):
        ffi.memmove(getattr(state, field), wrong, 16)
        assert lib.script_adopt(state, fd) == -errno.EINVAL
    ffi.memmove(getattr(state, field), good, 16)
    assert lib.script_adopt(state, fd) == 0
    assert lib.script_adopt(state, fd) == -errno.EEXIST
    world.settle()
    conversation("+0 > . 1:1(0) ack 1")


def test_a_connection_that_is_not_made_yet_does_not_move(world: World, talk: Callable[..., Conversation]) -> None:
    """What the peer's kernel knows of it, no other socket can be told."""
    opening = talk()
    opening("+0 < S 0:0(0) win 65535 <mss 1460>")
    assert freeze() == []
    opening("""
        +0 peer refuses ECONNREFUSED
        +0 > R. 0:0(0) ack 1
    """)


def test_the_end_of_the_peer_moves_though_the_new_socket_has_not_heard_it(
    world: World, conversation: Conversation
) -> None:
    """It is where the queue ends, behind what the guest has still to get."""
    conversation.opened()("""
        +0   peer sends 1000
        +0   > P. 1:1001(1000) ack 1
    """)
    state, fd = take(world)
    state.peer_ended = 1
    assert lib.script_adopt(state, fd) == 0
    world.settle()
    conversation("""
        +0   > F. 1001:1001(0) ack 1
        +0   flow FIN_SENT OPEN
        +0   < . 1:1(0) ack 1002
        +0   flow CLOSED OPEN
        +0   < P. 1:101(100) ack 1002
        +0   > . 1002:1002(0) ack 101
        +0   < F. 101:101(0) ack 1002
        +0   > . 1002:1002(0) ack 102
        +0   peer got 100
        +0   closed done
    """)


@pytest.mark.parametrize("taken", [False, True], ids=["on its way", "taken"])
def test_a_connection_whose_peer_has_ended_moves(world: World, conversation: Conversation, taken: bool) -> None:
    """Its FIN goes again if the guest has not acknowledged it."""
    conversation.opened()("""
        +0   peer sends 500
        +0   > P. 1:501(500) ack 1
        +0   peer closes
        +0   > F. 501:501(0) ack 1
    """)
    if taken:
        conversation("+0 < . 1:1(0) ack 502")
    state, fd = take(world)
    assert (state.peer_ended, state.guest_ended) == (2 if taken else 1, 0)
    assert state.snd_nxt - state.snd_una == (0 if taken else 500)
    assert lib.script_adopt(state, fd) == 0
    world.settle()
    if taken:
        conversation("+0 > . 502:502(0) ack 1")
    else:
        conversation("""
            +0 > F. 501:501(0) ack 1
            +0 < . 1:1(0) ack 502
        """)
    conversation("""
        +0   flow CLOSED OPEN
        +0   < P. 1:101(100) ack 502
        +0   > . 502:502(0) ack 101
        +0   < F. 101:101(0) ack 502
        +0   > . 502:502(0) ack 102
        +0   peer got 100
        +0   closed done
    """)


def test_a_connection_whose_guest_has_ended_moves(world: World, conversation: Conversation) -> None:
    """Twice, so that its initial sequence number is told again. It takes no more data from the guest."""
    conversation.opened()("""
        +0   < P. 1:101(100) ack 1
        +0   > . 1:1(0) ack 101
        +0   < F. 101:101(0) ack 1
        +0   > . 1:1(0) ack 102
    """)
    [first, fd] = take(world)
    assert (first.guest_ended, first.rcv_nxt - first.irs) == (1, 102)
    assert lib.script_adopt(first, fd) == 0
    world.settle()
    conversation("+0 > . 1:1(0) ack 102")
    state, fd = take(world)
    assert (state.irs, state.rcv_nxt) == (first.irs, first.rcv_nxt)
    assert lib.script_adopt(state, fd) == 0
    world.settle()
    conversation("""
        +0   > . 1:1(0) ack 102
        +0   flow OPEN CLOSED
        +0   peer sends 700
        +0   > P. 1:701(700) ack 102
        +0   < . 102:102(0) ack 701
        +0   peer closes
        +0   > F. 701:701(0) ack 102
        +0   < . 102:102(0) ack 702
        +0   closed done
    """)
