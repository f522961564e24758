# SPDX-License-Identifier: Apache-2.0
"""A flow that has carried a mebibyte to the guest is a long transfer: its peer may send as much ahead, and hears of
room in larger steps while the guest is who holds it up.

Adversary: a peer that sends more than the guest reads."""

from __future__ import annotations

import pytest
from conversation import Conversation


@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
def test_of_a_long_transfer_that_the_guest_holds_up_the_peer_hears_in_larger_steps(conversation: Conversation) -> None:
    """Half of what it may send ahead is left by then: it has no use for the rest sooner, nor for answers at once."""
    conversation.opened("mss 1024,wscale 7", window=8192)
    conversation("""
        +0 peer sends 4000000
        +0 > data 1:1048577 ack 1
        +0 stall window
    """)
    assert conversation.socket.quick_ack
    conversation("""
        +0 < . 1:1(0) ack 1048577
        +0 > data 1048577:2097153 ack 1
        +0 kernel holds 2951424
        +0 < . 1:1(0) ack 1571841
        +0 > data 2097153:2620417 ack 1
        +0 kernel holds 2951424
        +0 < . 1:1(0) ack 1572865
        +0 kernel holds 2427136
    """)
    assert not conversation.socket.quick_ack


@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
@pytest.mark.world(receive_limit=1 << 16)
def test_the_peer_of_a_long_transfer_may_send_a_mebibyte_ahead(conversation: Conversation) -> None:
    """The kernel's own tuning takes a guest that reads slowly for a reader that wants little. What is asked for to make
    room is taken back at once, so that the last byte of a stream still wakes."""
    conversation.opened("mss 1024,wscale 10")
    sent = 0
    for _ in range(16):
        sent += 1 << 16
        conversation(f"""
            +0 peer sends 65536
            +0 > data {sent - 65535}:{sent + 1} ack 1
            +0 calls setsockopt 0
            +0 < . 1:1(0) ack {sent + 1}
        """)
    assert (conversation.socket.receive_limit, conversation.socket.low_water) == (1 << 20, 1)
    conversation(f"""
        +0 calls setsockopt 2
        +0 forget
        +0 peer sends 1
        +0 > P. {sent + 1}:{sent + 2}(1) ack 1
        +0 calls setsockopt 0
    """)


@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
def test_a_long_transfer_uses_whole_segments_of_the_window(conversation: Conversation) -> None:
    """The crumb behind them would cost a frame, and the guest an ACK: also when the peer has ended and much is left."""
    conversation.opened("mss 1000,wscale 10", window=100)
    end = 1
    while end <= 1 << 20:
        end += 100000
        conversation(f"""
            +0 peer sends 100000
            +0 > data {end - 100000}:{end} ack 1
            +0 < . 1:1(0) ack {end}
        """)
    conversation(f"""
        +0 peer sends 250000
        +0 > data {end}:{end + 102000} ack 1
        +0 stall window
        +0 peer closes
        +0 < . 1:1(0) ack {end + 102000}
        +0 > data {end + 102000}:{end + 204000} ack 1
        +0 < . 1:1(0) ack {end + 204000}
        +0 > data {end + 204000}:{end + 250000} ack 1
        +0 > F. {end + 250000}:{end + 250000}(0) ack 1
    """)


@pytest.mark.world(mtu=65520)
@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
def test_a_read_of_a_long_transfer_expects_a_segment_at_least(conversation: Conversation) -> None:
    """At an MTU of 65520 several reads would fill several frames, where one does. Not in a window that is smaller: the
    guest may have no memory for one frame of that size."""
    conversation.opened("mss ours,wscale 7")
    mss = conversation.our_mss
    end = 1
    while end <= 1 << 20:
        end += 10000
        conversation(f"""
            +0 peer sends 10000
            +0 > P. {end - 10000}:{end}(10000) ack 1
            +0 < . 1:1(0) ack {end}
        """)
    conversation(f"""
        +0 forget
        +0 peer sends {mss}
        +0 > P. {end}:{end + mss}({mss}) ack 1
        +0 calls recvmsg 1
        +0 < . 1:1(0) ack {end + mss} win 300
        +0 peer sends 10
        +0 > P. {end + mss}:{end + mss + 10}(10) ack 1
        +0 < . 1:1(0) ack {end + mss + 10} win 300
        +0 peer sends 20000
        +0 > P. {end + mss + 10}:{end + mss + 16394}(16384) ack 1
    """)
