# SPDX-License-Identifier: Apache-2.0
"""A flow that may not move towards the guest is stalled for one reason, and only the end of that reason wakes it. The
mask is set lazily: when an edge comes during a stall of the window or the link, and not before.

Adversary: a peer that goes on sending to a guest that does not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conversation import Conversation
from fake_core import lib
from world import STALLS, World

Talk = Callable[..., Conversation]


@dataclass
class Stalled:
    """A flow with something for the guest, which comes when the line `resume` has run: these numbers."""

    flow: Conversation
    resume: str
    start: int
    end: int

    def before_the_end(self, end: int) -> str:
        """Without SO_PEEK_OFF an urgent mark could have come while PRI was masked, and what lies behind it is not seen
        before the guest has acknowledged all that it was sent: the end is believed only then."""
        return "" if self.flow.world.options.peek_off else f"+0 < . 1:1(0) ack {end}"

    def wait_long(self) -> None:
        """Five minutes, in which a closed window is asked now and then, and nothing else happens."""
        self.flow.world.advance(300)
        assert all(len(packet.payload) == 20 for packet in self.flow.world.inbox)
        self.flow.world.inbox.clear()
        self.flow("+0 woken 0")


def fill_window(conversation: Conversation) -> Conversation:
    """The guest's window is full, and there is more."""
    conversation.opened("mss 1000", window=4000)
    return conversation("""
        +0 peer sends 5000
        +0 > data 1:4001 ack 1
        +0 < . 1:1(0) ack 4001 win 0
        +0 stall window
        +0 forget
    """)


def fill_link(conversation: Conversation) -> Conversation:
    """The guest has given no receive buffers, and there is something for it."""
    conversation.opened("mss 1000,wscale 7")
    return conversation("""
        +0 link full
        +0 forget
        +0 peer sends 1000
        +0 > nothing
        +0 stall link
        +0 woken 1 idle 0
        +0 interest IN|PRI|RDHUP|ET
        +0 forget
    """)


@pytest.fixture
def full_window(conversation: Conversation) -> Conversation:
    return fill_window(conversation)


@pytest.fixture
def full_link(conversation: Conversation) -> Conversation:
    return fill_link(conversation)


@pytest.fixture(params=["window", "link"])
def stalled(request: pytest.FixtureRequest, conversation: Conversation) -> Stalled:
    """Either of the two, with what ends it, and with the numbers of what is still to come."""
    if request.param == "window":
        return Stalled(fill_window(conversation), "+0 < . 1:1(0) ack 4001 win 60000", 4001, 5001)
    return Stalled(fill_link(conversation), "+0 link gives 10", 1, 1001)


# ---- caught up ----


def test_a_flow_that_is_caught_up_sleeps_until_there_is_more(conversation: Conversation) -> None:
    """All that came is in flight to the guest; the next segment is the next edge, and no epoll_ctl() is between."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 stall caught_up
        +0 peer sends 1000
        +0 > P. 1001:2001(1000) ack 1
        +0 peer sends 1000
        +0 > P. 2001:3001(1000) ack 1
        +0 woken 3 idle 0
        +0 < . 1:1(0) ack 3001
        +0 woken 0
        +0 calls epoll_ctl 0
    """)


def test_a_lost_segment_rewinds_a_flow_that_is_caught_up(conversation: Conversation) -> None:
    """A retransmission reads again what was read before, and needs no edge for it."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0  peer sends 1000
        +0  > P. 1:1001(1000) ack 1
        +0  forget
        +.2 > P. 1:1001(1000) ack 1
        +0  stall caught_up
        +0  woken 0
    """)


# ---- window ----


def test_a_full_window_is_masked_at_the_first_edge_and_not_before(full_window: Conversation) -> None:
    """The stall itself costs no system call. The first segment during it is one wasted wake-up, and then there is no
    more."""
    full_window("""
        +0 interest IN|PRI|RDHUP|ET
        +0 calls epoll_ctl 0
        +0 peer sends 1000
        +0 woken 1 idle 1
        +0 interest RDHUP|ET
        +0 calls epoll_ctl 1
        +0 peer sends 1000
        +0 peer sends 1000
        +0 peer sends 1000
        +0 woken 0
        +0 calls epoll_ctl 0
    """)


def test_when_the_window_opens_the_flow_reads_first_and_then_unmasks(full_window: Conversation) -> None:
    """The MOD reports what is there already: one wake-up that finds nothing new, and none after it."""
    full_window("""
        +0 peer sends 1000
        +0 peer sends 1000
        +0 woken 1 idle 1
        +0 < . 1:1(0) ack 4001 win 60000
        +0 > data 4001:7001 ack 1
        +0 stall caught_up
        +0 interest IN|PRI|RDHUP|ET
        +0 woken 1 idle 1
        +0 peer sends 1000
        +0 > P. 7001:8001(1000) ack 1
        +0 woken 1 idle 0
    """)


def test_a_window_that_opens_in_steps_wakes_nobody_in_between(full_window: Conversation) -> None:
    """Each window update moves what it allows; the mask stays until the stall is over."""
    full_window("""
        +0 peer sends 1000
        +0 forget
        +0 peer sends 8000
        +0 < . 1:1(0) ack 4001 win 1000
        +0 > data 4001:5001 ack 1
        +0 stall window
        +0 peer sends 1000
        +0 < . 1:1(0) ack 5001 win 2000
        +0 > data 5001:7001 ack 1
        +0 stall window
        +0 woken 0
        +0 calls epoll_ctl 0
    """)


def test_a_stall_that_ends_before_an_edge_costs_nothing(full_window: Conversation) -> None:
    """Most stalls are short: no mask, no MOD, no wake-up."""
    full_window("""
        +0 < . 1:1(0) ack 4001 win 60000
        +0 > data 4001:5001 ack 1
        +0 woken 0
        +0 calls epoll_ctl 0
    """)


def test_sixteen_peers_and_a_guest_that_does_not_read(talk: Talk, world: World) -> None:
    """Once the windows are full no peer wakes us more than once, however much it sends."""
    flows = [talk().opened("mss 1000", window=4000) for _ in range(16)]
    for flow in flows:
        flow("""
            +0 peer sends 5000
            +0 > data 1:4001 ack 1
            +0 < . 1:1(0) ack 4001 win 0
            +0 forget
        """)
    before = lib.script_wakeups()
    for _ in range(20):
        for flow in flows:
            assert lib.fake_peer_send(flow.fd, 1000) == 1000
            world.settle()
    assert lib.script_wakeups() - before == len(flows)


# ---- link ----


def test_a_full_link_is_masked_at_the_first_edge_and_not_before(full_link: Conversation) -> None:
    """As for the window."""
    full_link("""
        +0 calls epoll_ctl 0
        +0 peer sends 1000
        +0 woken 1 idle 1
        +0 interest RDHUP|ET
        +0 calls epoll_ctl 1
        +0 peer sends 1000
        +0 peer sends 1000
        +0 woken 0
        +0 link gives 10
        +0 > data 1:4001 ack 1
        +0 woken 1 idle 1
        +0 interest IN|PRI|RDHUP|ET
        +0 calls epoll_ctl 1
        +0 stall caught_up
    """)


def test_buffers_that_come_one_by_one_are_used_one_by_one(full_link: Conversation) -> None:
    """Each room event moves a frame; nothing spins in between, and nothing is lost."""
    full_link("+0 peer sends 20000 \n +0 forget")
    full_link.world.set_link(buffer_bytes=1200)
    got = 1
    while got < 21001:
        full_link("+0 link gives 1")
        for packet in full_link.world.inbox:
            assert len(packet.frame) <= 1200
            full_link.clock_ms = packet.time_ms
            length = len(packet.frame) - packet.payload_offset - 20
            full_link(f"+0 > data {got}:{got + length} ack 1")
            got += length
    full_link("+0 woken 1")
    full_link("+0 < . 1:1(0) ack 21001")


def test_room_that_is_too_small_for_a_frame_is_no_room(full_link: Conversation) -> None:
    """Buffers that do not hold even the headers: the flow waits for more, and does not spin."""
    full_link.world.set_link(buffer_bytes=20)
    full_link("""
        +0 link gives 2
        +0 > nothing
        +0 stall link
        +0 link gives 2000
        +0 > data 1:1001 ack 1
    """)


def test_a_link_that_is_full_keeps_no_other_flow_from_the_peer(talk: Talk, world: World) -> None:
    """The direction from the guest goes on; its ACKs come when there is room."""
    first, second = talk().opened("mss 1000,wscale 7"), talk().opened("mss 1000,wscale 7")
    first("""
        +0 link full
        +0 peer sends 1000
    """)
    second("""
        +0 < P. 1:1001(1000) ack 1
        +0 peer got 1000
        +0 > nothing
        +0 link gives 10
        +0 > . 1:1(0) ack 1001
    """)
    first("+0 > P. 1:1001(1000) ack 1")


def test_room_that_comes_while_we_look_is_not_missed(conversation: Conversation) -> None:
    """Between "full" and the wish for the room event the guest may have given buffers: no event will tell of them."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0 link full
        +0 link gives late 5
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 link full
        +0 link gives late 1
        +0 peer sends 70000
    """)
    conversation.world.set_link(buffer_bytes=4000)
    conversation("""
        +0 link gives late 100
        +0 link gives 5
        +0 > data 1001:71001 ack 1
        +0 < . 1:1(0) ack 71001
    """)


def test_a_fin_that_is_sent_again_waits_for_room(conversation: Conversation) -> None:
    """The timer finds the link full: the FIN goes when there is room, once."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0  peer closes
        +0  > F. 1:1(0) ack 1
        +0  link full
        +.3 > nothing
        +0  link gives 5
        +0  > F. 1:1(0) ack 1
        +0  < . 1:1(0) ack 2
        +9  > nothing
    """)


@pytest.mark.parametrize("what", ["syn_ack", "ack", "fin", "reset"])
def test_nothing_that_tcp_says_is_lost_on_a_full_link(conversation: Conversation, what: str) -> None:
    """SYN-ACK, ACK, FIN and RST wait for the link's room event as data does."""
    if what == "syn_ack":
        conversation("""
            +0 < S  0:0(0) <mss 1000>
            +0 link full
            +0 peer accepts
            +0 > nothing
            +0 link gives 1
            +0 > S. 0:0(0) ack 1
        """)
        return
    conversation.opened("mss 1000,wscale 7")
    conversation("+0 link full")
    conversation(
        {
            "ack": """
                +0 < P. 1:101(100) ack 1
                +0 > nothing
                +0 link gives 1
                +0 > .  1:1(0) ack 101
            """,
            "fin": """
                +0 peer closes
                +0 > nothing
                +0 link gives 1
                +0 > F. 1:1(0) ack 1
                +0 < .  1:1(0) ack 2
                +0 flow CLOSED OPEN
            """,
            "reset": """
                +0 peer resets
                +0 > nothing
                +0 link gives 1
                +0 > R. 1:1(0) ack 1
                +0 flow gone
            """,
        }[what]
    )


def test_a_refusal_on_a_full_link_waits_for_room(conversation: Conversation) -> None:
    """The RST for a refused connection, and the ICMP error's substitute."""
    conversation("""
        +0 < S  0:0(0) <mss 1000>
        +0 link full
        +0 peer refuses ECONNREFUSED
        +0 > nothing
        +0 link gives 1
        +0 > R. 0:0(0) ack 1
        +0 flow gone
    """)


def test_a_guest_without_a_driver_gets_all_when_it_has_one(conversation: Conversation) -> None:
    """The link is detached and comes back: what it missed is sent then."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0 link detached
        +0 peer sends 1000
        +0 peer sends 1000
        +0 > nothing
        +0 woken 2
        +0 link attached
        +0 > data 1:2001 ack 1
        +0 < . 1:1(0) ack 2001
    """)


def test_a_timeout_on_a_full_link_is_sent_when_there_is_room(conversation: Conversation) -> None:
    """The retransmission waits for room, and goes once."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0  peer sends 1000
        +0  > P. 1:1001(1000) ack 1
        +0  link full
        +.3 > nothing
        +0  link gives 5
        +0  > P. 1:1001(1000) ack 1
        +0  < . 1:1(0) ack 1001
        +9  > nothing
    """)


# ---- the end during a stall ----


def test_a_fin_during_a_stall_comes_at_its_place(stalled: Stalled) -> None:
    """No spin, and the guest gets the bytes, then the FIN."""
    flow, start, end = stalled.flow, stalled.start, stalled.end + 1000
    flow("""
        +0 peer sends 1000
        +0 peer closes
        +0 woken 2 idle 1
    """)
    stalled.wait_long()
    flow(f"""
        {stalled.resume}
        +0 > data {start}:{end} ack 1
        {stalled.before_the_end(end)}
        +0 > F. {end}:{end}(0) ack 1
        +0 woken 0
        +0 < F. 1:1(0) ack {end + 1}
        +0 > .  {end + 1}:{end + 1}(0) ack 2
        +0 flow gone
    """)


def test_a_fin_as_the_first_edge_of_a_stall_is_one_wake_up(stalled: Stalled) -> None:
    """The FIN is news, not waste; behind it no data can come, so nothing needs a mask."""
    flow, start, end = stalled.flow, stalled.start, stalled.end
    flow("""
        +0 peer closes
        +0 woken 1 idle 0
        +0 calls epoll_ctl 0
    """)
    stalled.wait_long()
    flow(f"""
        {stalled.resume}
        +0 > data {start}:{end} ack 1
        +0 > F. {end}:{end}(0) ack 1
        +0 woken 0
    """)


def test_a_reset_during_a_stall_comes_behind_the_last_byte(stalled: Stalled) -> None:
    """No spin, no byte lost: all that the peer sent before its RST reaches the guest, then the RST does."""
    flow, start, end = stalled.flow, stalled.start, stalled.end + 1000
    flow("""
        +0 peer sends 1000
        +0 peer resets
        +0 woken 2 idle 1
    """)
    stalled.wait_long()
    flow(f"""
        {stalled.resume}
        +0 > data {start}:{end} ack 1
        {stalled.before_the_end(end)}
        +0 > R. {end}:{end}(0) ack 1
        +0 flow gone
    """)


def test_a_reset_as_the_first_edge_of_a_stall_is_one_wake_up(stalled: Stalled) -> None:
    """As for a FIN: ERR and HUP cannot be masked, and are not told twice."""
    flow, start, end = stalled.flow, stalled.start, stalled.end
    flow("""
        +0 peer resets
        +0 woken 1 idle 0
        +0 calls epoll_ctl 0
    """)
    stalled.wait_long()
    flow(f"""
        {stalled.resume}
        +0 > data {start}:{end} ack 1
        +0 > R. {end}:{end}(0) ack 1
        +0 flow gone
    """)


def test_a_guest_that_resets_a_stalled_flow_ends_it(full_window: Conversation) -> None:
    """Both sides are told, and nothing is left."""
    full_window("""
        +0 peer sends 1000
        +0 < R. 1:1(0) ack 4001
        +0 peer sees RST
        +0 flow gone
    """)


def test_a_guest_that_sends_during_a_stall_is_heard(full_window: Conversation) -> None:
    """The two directions are stalled, or not, each by itself."""
    full_window("""
        +0 peer sends 1000
        +0 < P. 1:1001(1000) ack 4001 win 0
        +0 > .  4001:4001(0) ack 1001
        +0 peer got 1000
        +0 interest RDHUP|ET
    """)


def test_a_flow_with_a_full_queue_and_a_full_window_waits_for_both(full_window: Conversation) -> None:
    """OUT and the mask are set independently of each other."""
    full_window("""
        +0 kernel queue 1000
        +0 peer sends 1000
        +0 < P. 1:2001(2000) ack 4001 win 0
        +0 > .  4001:4001(0) ack 1001
        +0 interest RDHUP|OUT|ET
        +0 forget
        +0 peer sends 1000
        +0 woken 0
        +0 kernel queue 10000
        +0 peer takes 1000
        +0 > .  4001:4001(0) ack 2001
        +0 woken 1 idle 0
        +0 interest RDHUP|ET
    """)


def test_a_flow_that_is_closed_in_the_batch_in_which_it_got_data_leaves_nothing(conversation: Conversation) -> None:
    """Its segments of the batch are forgotten with it, and the next flow's are its own."""
    conversation.opened("mss 1000,wscale 7")
    conversation("""
        +0 < P. 1:1001(1000) ack 1 ...
        +0 < P. 1001:2001(1000) ack 1 ...
        +0 < R. 2001:2001(0) ack 1
        +0 peer sees RST
        +0 flow gone
        +0 > nothing
    """)


def test_a_flow_that_is_opened_again_in_the_batch_in_which_it_ended(talk: Talk, world: World) -> None:
    """RST and a new SYN of the same ports in one batch: the old ends, and the SYN is repeated by the guest."""
    first = talk().opened("mss 1000,wscale 7")
    first("""
        +0 < R. 1:1(0) ack 1 ...
        +0 < S 5000:5000(0) <mss 1000>
    """)
    assert len(world.flows()) <= 1


def test_why_a_flow_is_stalled_can_be_seen(full_window: Conversation) -> None:
    """The snapshot names the stall, and the events tell of its beginning and end."""
    assert STALLS[full_window.flow.stall] == "window"
    assert full_window.world.counter("stall_window") == 1
    full_window("""
        +0 < . 1:1(0) ack 4001 win 60000
        +0 > data 4001:5001 ack 1
    """)
    events = [lib.script_event(i) for i in range(lib.script_events())]
    told = [(e.kind, STALLS[e.reason]) for e in events if e.kind in (lib.LG_EVENT_FLOW_STALL, lib.LG_EVENT_FLOW_RESUME)]
    assert told == [(lib.LG_EVENT_FLOW_STALL, "window"), (lib.LG_EVENT_FLOW_RESUME, "window")]
