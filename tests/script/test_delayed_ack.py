# SPDX-License-Identifier: Apache-2.0
"""The ACK of what a guest asks waits a moment for the answer (RFC 9293, 3.8.6.3), unless it is waited for in vain."""

from __future__ import annotations

import pytest
from conversation import Conversation

pytestmark = pytest.mark.world(ack_delay_ms=2)


def test_the_ack_of_a_question_travels_with_its_answer(conversation: Conversation) -> None:
    conversation.opened("mss 1460")
    conversation("""
        +0     < P. 1:101(100) ack 1
        +0     > nothing
        +0.001 peer takes all
        +0     peer sends 300
        +0     > P. 1:301(300) ack 101
        +0     < P. 101:201(100) ack 301
        +0.001 > nothing
        +0     peer sends 300
        +0     > P. 301:601(300) ack 201
        +0.1   > nothing
    """)


def test_without_an_answer_the_ack_goes_by_itself_and_the_next_at_once(conversation: Conversation) -> None:
    conversation.opened("mss 1460")
    conversation("""
        +0     < P. 1:101(100) ack 1
        +0.002 > . 1:1(0) ack 101
        +0     < P. 101:201(100) ack 1
        +0     > . 1:1(0) ack 201
        +0.050 peer sends 300
        +0     > P. 1:301(300) ack 201
        +0     < P. 201:301(100) ack 301
        +0     > . 301:301(0) ack 301
    """)


def test_an_answer_in_time_brings_patience_back(conversation: Conversation) -> None:
    conversation.opened("mss 1460")
    conversation("""
        +0     < P. 1:101(100) ack 1
        +0.002 > . 1:1(0) ack 101
        +0     < P. 101:201(100) ack 1
        +0     > . 1:1(0) ack 201
        +0.001 peer sends 300
        +0     > P. 1:301(300) ack 201
        +0     < P. 201:301(100) ack 301
        +0.001 > nothing
        +0     peer sends 300
        +0     > P. 301:601(300) ack 301
    """)


def test_a_full_segment_is_acknowledged_at_once(conversation: Conversation) -> None:
    """RFC 5681, 4.2: the guest's own window grows by our ACKs."""
    conversation.opened("mss 1460")
    conversation("""
        +0 < P. 1:1461(1460) ack 1
        +0 > . 1:1(0) ack 1461
    """)


def test_small_segments_that_make_a_full_one_are_acknowledged_at_once(conversation: Conversation) -> None:
    conversation.opened("mss 1460")
    conversation("""
        +0     < P. 1:1001(1000) ack 1
        +0.001 > nothing
        +0     < P. 1001:1461(460) ack 1
        +0     > . 1:1(0) ack 1461
        +0.5   > nothing
    """)


def test_the_end_of_what_the_guest_says_is_acknowledged_at_once(conversation: Conversation) -> None:
    conversation.opened("mss 1460")
    conversation("""
        +0 < FP. 1:101(100) ack 1
        +0 > . 1:1(0) ack 102
    """)


def test_a_gap_is_told_at_once_while_an_ack_waits(conversation: Conversation) -> None:
    """RFC 5681, 4.2."""
    conversation.opened("mss 1460,sackOK")
    conversation("""
        +0 < P. 1:101(100) ack 1
        +0 < P. 201:301(100) ack 1
        +0 > . 1:1(0) ack 101 <sack 201:301>
    """)


def test_a_retransmission_timer_runs_on_while_an_ack_waits(conversation: Conversation) -> None:
    """One timer for both: the earlier sets it, and the other is not lost."""
    conversation.opened("mss 1460")
    conversation("""
        +0     peer sends 300
        +0     > P. 1:301(300) ack 1
        +0.150 < P. 1:101(100) ack 1
        +0.002 > . 301:301(0) ack 101
        +0.048 > P. 1:301(300) ack 101
    """)


def timers_in(conversation: Conversation, seconds: float, counter: str) -> int:
    before = conversation.world.counter(counter)
    conversation.world.advance(seconds)
    return conversation.world.counter(counter) - before


def test_an_ack_that_finds_the_link_full_wakes_nobody_until_there_is_room(conversation: Conversation) -> None:
    """Once its timer fired each millisecond for as long as a guest was stopped."""
    conversation.opened("mss 1460")
    conversation("+0 link full\n+0 < P. 1:101(100) ack 1")
    assert timers_in(conversation, 60, "timers_fired") == 1
    conversation("+0 link gives 5\n+0 > . 1:1(0) ack 101")


def test_a_retransmission_timer_runs_on_while_an_ack_finds_the_link_full(conversation: Conversation) -> None:
    """A guest that has gone is given up at last."""
    conversation.opened("mss 1460")
    conversation("""
        +0     peer sends 300
        +0     > P. 1:301(300) ack 1
        +0     link full
        +0     < P. 1:101(100) ack 1
    """)
    assert timers_in(conversation, 2, "tcp_timeouts") == 3
    conversation("+0 link gives 5\n+0 > P. 1:301(300) ack 101")


def sent(conversation: Conversation, first: int, end: int, size: int = 40000) -> None:
    """By the guest, and taken by the peer: super-segments that are acknowledged one by one."""
    for at in range(first, end, size):
        conversation(f"+0 < . {at}:{at + size}({size}) ack 1\n+0 > . 1:1(0) ack {at + size}\n+0 peer takes all")


def test_in_a_long_transfer_several_super_segments_have_one_ack(conversation: Conversation) -> None:
    """An emulated guest sends them one by one, and each ACK costs it more than us. Not in the first megabyte, when its
    congestion window is small."""
    conversation.opened("mss 1460,wscale 7")
    sent(conversation, 1, 1_040_001)
    conversation("""
        +0 < . 1040001:1080001(40000) ack 1
        +0 peer takes all
        +0 < . 1080001:1120001(40000) ack 1
        +0 peer takes all
        +0 > nothing
        +0 < . 1120001:1160001(40000) ack 1
        +0 > . 1:1(0) ack 1160001
        +0 peer takes all
    """)


def slow_guest(conversation: Conversation) -> None:
    """Whose ACK has waited as long as it may, once, in the middle of a long transfer."""
    conversation.opened("mss 1460,wscale 7")
    sent(conversation, 1, 1_040_001)
    conversation("""
        +0     < . 1040001:1050001(10000) ack 1
        +0     peer takes all
        +0.002 > . 1:1(0) ack 1050001
    """)


def test_a_slow_guest_has_an_ack_for_fewer_bytes(conversation: Conversation) -> None:
    slow_guest(conversation)
    conversation("""
        +0     < . 1050001:1060001(10000) ack 1
        +0     < . 1060001:1070001(10000) ack 1
        +0     peer takes all
        +0     > nothing
        +0     < . 1070001:1080001(10000) ack 1
        +0     > . 1:1(0) ack 1080001
        +0     peer takes all
    """)


def test_a_guest_that_waits_for_its_ack_has_each_one_for_a_long_while(conversation: Conversation) -> None:
    """Its buffer may hold no more: it has lost 2 ms twice, and not again soon."""
    slow_guest(conversation)
    conversation("""
        +0     < . 1050001:1060001(10000) ack 1
        +0     peer takes all
        +0.002 > . 1:1(0) ack 1060001
    """)
    sent(conversation, 1_060_001, 2_060_001, 10000)
