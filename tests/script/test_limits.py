# SPDX-License-Identifier: Apache-2.0
"""The flow table has a limit: what goes when it is met, and what is refused.

Adversary: a guest that opens as fast as it can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversation import Conversation
from world import World

Talk = Callable[..., Conversation]


@pytest.mark.world(flow_limit=4)
def test_a_full_table_refuses_with_a_reset(talk: Talk, world: World) -> None:
    """Nobody is idle long enough to go: the new SYN gets a RST, and it is counted."""
    flows = [talk().opened() for _ in range(4)]
    refused = talk()
    refused("""
        +0 < S  0:0(0) <mss 1460>
        +0 > R. 0:0(0) ack 1
    """)
    assert world.counter("flows_refused") == 1 and world.counter("flows_evicted") == 0
    flows[2]("+0 < R. 1:1(0) ack 1")
    refused.our_isn = None
    refused("""
        +1 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
    """)


@pytest.mark.world(flow_limit=4)
def test_the_flow_that_was_idle_longest_makes_room(talk: Talk, world: World) -> None:
    """After a minute without a byte a flow may go; of several the oldest; one that moved a byte stays."""
    flows = []
    for _ in range(4):
        flows.append(talk().opened())
        world.advance(1)
    flows[0]("""
        +0 < P. 1:101(100) ack 1
        +0 > .  1:1(0) ack 101
    """)
    world.advance(60)
    newcomer = talk()
    newcomer("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 < .  1:1(0) ack 1
    """)
    assert world.counter("flows_evicted") == 1
    flows[1]("""
        +0 peer sees RST
        +0 flow gone
        +0 closed evicted
        +0 < P. 1:101(100) ack 1
        +0 > R  1:1(0)
    """)
    for flow in (flows[0], flows[2], flows[3]):
        assert world.flow_of(flow.ends) is not None


@pytest.mark.world(flow_limit=2)
def test_an_evicted_flow_takes_what_it_held_with_it(talk: Talk, world: World) -> None:
    """A hold, a timer, a place on the link's wait list: the shared check finds nothing of it."""
    first = talk().opened("mss 1000,sackOK")
    first("""
        +0 < P. 2001:3001(1000) ack 1
        +0 > .  1:1(0) ack 1
        +0 link full
        +0 peer sends 1000
    """)
    second = talk()
    second("+100 < S 0:0(0) <mss 1460>")
    third = talk()
    third("""
        +100 < S  0:0(0) <mss 1460>
        +0   link gives 5
        +0   > nothing
    """)
    assert world.counter("flows_evicted") == 1
    assert world.flow_of(first.ends) is None
    world.inbox.clear()


def ended_but_for_its_reset(talk: Talk) -> Conversation:
    """Which the link has no room for."""
    refused = talk()
    refused("""
        +0 link full
        +0 < S 0:0(0) <mss 1460>
        +0 peer refuses ECONNREFUSED
    """)
    return refused


@pytest.mark.world(flow_limit=1)
def test_a_flow_that_has_ended_but_for_its_reset_makes_room_at_once(talk: Talk, world: World) -> None:
    """Cause: it was taken to be evicted after a minute and was not, again and again, so that the worker never came back
    from the next SYN."""
    ended = ended_but_for_its_reset(talk)
    third = talk()
    third("""
        +0 < S 0:0(0) <mss 1460>
        +0 peer accepts
    """)
    assert world.flow_of(ended.ends) is None and world.counter("flows_evicted") == 1
    third("""
        +0 link gives 10
        +0 > S. 0:0(0) ack 1
        +0 < .  1:1(0) ack 1
    """)


@pytest.mark.world(flow_limit=2)
def test_what_has_ended_goes_before_what_is_idle(talk: Talk, world: World) -> None:
    """However long that may have been idle."""
    idle = talk().opened()
    world.advance(100)
    ended = ended_but_for_its_reset(talk)
    third = talk()
    third("+0 < S 0:0(0) <mss 1460>")
    assert world.flow_of(ended.ends) is None and world.flow_of(idle.ends) is not None


@pytest.mark.world(flow_limit=512)
def test_many_flows_come_and_go(talk: Talk, world: World) -> None:
    """Slots and handles are used again, and an event of a flow that has gone finds nobody."""
    for turn in range(3):
        flows = [talk(guest_port=20000 + n) for n in range(300)]
        for flow in flows:
            flow("+0 < S 0:0(0) <mss 1460> ...")
        world.settle()
        for flow in flows:
            flow._learn()
            flow("+0 peer accepts ...")
        world.settle()
        for flow in flows:
            flow("+0 > S. 0:0(0) ack 1")
        assert len(world.flows()) == 300
        for number, flow in enumerate(flows):
            if number % 3 == turn:
                flow("+0 peer resets ...")
            flow("+0 < R. 1:1(0) ack 1 ...")
        world.settle()
        assert not world.flows()
        world.inbox.clear()
