# SPDX-License-Identifier: Apache-2.0
"""What the guest did not get goes again: by the timer (RFC 6298), by duplicate ACKs and SACK (RFC 5681, RFC 6675), and
a closed window is asked (RFC 9293, 3.8.6.1). Adversary: a guest that loses segments, or stops answering."""

from __future__ import annotations

import pytest
from conversation import Conversation
from world import World


@pytest.fixture
def plain(conversation: Conversation) -> Conversation:
    """An open connection without super-segments, whose segments of 1000 bytes are easy to count."""
    conversation.world.set_link(tso4=False, tso6=False)
    return conversation.opened("mss 1000,wscale 7")


@pytest.fixture
def with_sack(conversation: Conversation) -> Conversation:
    conversation.world.set_link(tso4=False, tso6=False)
    return conversation.opened("mss 1000,sackOK,wscale 7")


# ---- the timer ----


def test_what_is_not_acknowledged_is_sent_again_with_back_off(plain: Conversation) -> None:
    """The first interval is the least, 200 ms, since the handshake showed how near the guest is; each next is twice."""
    plain("""
        +0   peer sends 1000
        +0   > P. 1:1001(1000) ack 1
        +.2  > P. 1:1001(1000) ack 1
        +.4  > P. 1:1001(1000) ack 1
        +.8  > P. 1:1001(1000) ack 1
        +1.6 > P. 1:1001(1000) ack 1
        +3.2 > P. 1:1001(1000) ack 1
        +1   < .  1:1(0) ack 1001
        +60  > nothing
        +0   kernel holds 0
    """)


def test_of_a_shrunk_window_whole_segments_are_used_for_what_goes_again(conversation: Conversation) -> None:
    """The guest has no room for the crumb behind them: it would be lost again, and wait for the timer each time."""
    conversation.opened("mss 1000", window=10000)
    conversation("""
        +0   peer sends 5000
        +0   > data 1:5001 ack 1
        +0   < .  1:1(0) ack 1001 win 2056
        +.2  > data 1001:3001 ack 1
        +0   < .  1:1(0) ack 2001 win 1056
        +0   > nothing
        +0   < .  1:1(0) ack 3001 win 2056
        +0   > data 3001:5001 ack 1
        +0   < .  1:1(0) ack 5001 win 2056
        +0   kernel holds 0
    """)


def test_the_interval_begins_anew_with_an_acknowledgement(plain: Conversation) -> None:
    """RFC 6298, (5.3) and (5.7): an ACK of new data ends the back-off."""
    plain("""
        +0   peer sends 1000
        +0   > P. 1:1001(1000) ack 1
        +.2  > P. 1:1001(1000) ack 1
        +.4  > P. 1:1001(1000) ack 1
        +.1  < .  1:1(0) ack 1001
        +0   peer sends 1000
        +0   > P. 1001:2001(1000) ack 1
        +.2  > P. 1001:2001(1000) ack 1
    """)


def test_a_slow_guest_is_given_the_time_that_it_needs(plain: Conversation) -> None:
    """RFC 6298, (2.2) and (2.3): the interval is the smoothed round trip and four times its variation."""
    plain("""
        +0   peer sends 1000
        +0   > P. 1:1001(1000) ack 1
        +.15 < .  1:1(0) ack 1001
        +0   peer sends 1000
        +0   > P. 1001:2001(1000) ack 1
        +.15 < .  1:1(0) ack 2001
        +0   peer sends 1000
        +0   > P. 2001:3001(1000) ack 1
        +.2  > nothing
    """)
    plain.world.advance(2, stop_at_frame=True)
    again = plain.world.now_ms - plain.clock_ms
    assert 0 < again < 400
    plain("+0 > P. 2001:3001(1000) ack 1")


def test_a_retransmission_is_no_measure_of_the_round_trip(plain: Conversation) -> None:
    """Karn: an ACK after a retransmission does not say which of the two it is for."""
    plain("""
        +0   peer sends 1000
        +0   > P. 1:1001(1000) ack 1
        +.2  > P. 1:1001(1000) ack 1
        +.4  > P. 1:1001(1000) ack 1
        +.5  < .  1:1(0) ack 1001
        +0   peer sends 1000
        +0   > P. 1001:2001(1000) ack 1
        +.2  > P. 1001:2001(1000) ack 1
    """)


def test_the_interval_is_a_minute_at_most_and_then_both_sides_are_reset(plain: Conversation) -> None:
    """A guest that has stopped for good is given up after twelve repetitions."""
    plain("""
        +0    peer sends 1000
        +0    > P. 1:1001(1000) ack 1
        +.2   > P. 1:1001(1000) ack 1
        +.4   > P. 1:1001(1000) ack 1
        +.8   > P. 1:1001(1000) ack 1
        +1.6  > P. 1:1001(1000) ack 1
        +3.2  > P. 1:1001(1000) ack 1
        +6.4  > P. 1:1001(1000) ack 1
        +12.8 > P. 1:1001(1000) ack 1
        +25.6 > P. 1:1001(1000) ack 1
        +51.2 > P. 1:1001(1000) ack 1
        +60   > P. 1:1001(1000) ack 1
        +60   > P. 1:1001(1000) ack 1
        +60   > P. 1:1001(1000) ack 1
        +60   > R. 1001:1001(0) ack 1
        +0    peer sees RST
        +0    closed timed_out
        +0    flow gone
    """)


def test_timeouts_of_different_data_do_not_add_up(plain: Conversation) -> None:
    """A guest that loses one segment now and then is there: each ACK begins the count anew."""
    for start in range(1, 20001, 1000):
        plain(f"""
            +0  peer sends 1000
            +0  > P. {start}:{start + 1000}(1000) ack 1
            +.2 > P. {start}:{start + 1000}(1000) ack 1
            +0  < .  1:1(0) ack {start + 1000}
        """)


def test_all_that_is_outstanding_follows_the_first(plain: Conversation) -> None:
    """RFC 6298, (5.4), and what the guest then acknowledges does not go a second time."""
    plain("""
        +0  peer sends 3000
        +0  > data 1:3001 ack 1
        +.2 > data 1:3001 ack 1
        +0  < .  1:1(0) ack 3001
        +9  > nothing
    """)


def test_data_behind_a_timeout_follows_what_was_lost(plain: Conversation) -> None:
    """New data waits its turn, and every byte goes in order."""
    plain("""
        +0  peer sends 2000
        +0  > data 1:2001 ack 1
        +.1 peer sends 1000
        +0  > P. 2001:3001(1000) ack 1
        +.1 > data 1:3001 ack 1
        +0  < .  1:1(0) ack 3001
        +9  > nothing
    """)


def test_a_fin_is_sent_again_unchanged(plain: Conversation) -> None:
    """The same sequence number each time, and it is acknowledged once."""
    plain("""
        +0  peer sends 500  ...
        +0  peer closes
        +0  > P. 1:501(500) ack 1
        +0  > F. 501:501(0) ack 1
        +.2 > P. 1:501(500) ack 1
        +0  > F. 501:501(0) ack 1
        +.1 < .  1:1(0) ack 501
        +0  > F. 501:501(0) ack 1
        +.2 > F. 501:501(0) ack 1
        +.4 > F. 501:501(0) ack 1
        +0  < .  1:1(0) ack 502
        +9  > nothing
        +0  flow CLOSED OPEN
    """)


# ---- duplicate ACKs ----


def test_three_duplicate_acks_resend_one_segment(plain: Conversation) -> None:
    """RFC 5681, 3.2: the first that is missing, and only that; further duplicates send nothing."""
    plain("""
        +0   peer sends 8000
        +0   > data 1:8001 ack 1
        +.01 < .  1:1(0) ack 2001
        +0   < .  1:1(0) ack 2001
        +0   < .  1:1(0) ack 2001
        +0   > nothing
        +0   < .  1:1(0) ack 2001
        +0   > P. 2001:3001(1000) ack 1
        +0   < .  1:1(0) ack 2001
        +0   < .  1:1(0) ack 2001
        +0   > nothing
        +0   < .  1:1(0) ack 8001
        +9   > nothing
    """)


def test_an_ack_of_new_data_ends_the_count_of_duplicates(plain: Conversation) -> None:
    """Two and two are not three."""
    plain("""
        +0   peer sends 8000
        +0   > data 1:8001 ack 1
        +.01 < .  1:1(0) ack 1
        +0   < .  1:1(0) ack 1
        +0   < .  1:1(0) ack 2001
        +0   < .  1:1(0) ack 2001
        +0   < .  1:1(0) ack 2001
        +0   > nothing
        +0   < .  1:1(0) ack 8001
    """)


def test_a_partial_ack_names_the_next_hole(plain: Conversation) -> None:
    """RFC 6582, 3.2: without SACK one segment goes for each ACK that does not cover all."""
    plain("""
        +0   peer sends 8000
        +0   > data 1:8001 ack 1
        +.01 < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1
        +0   > P. 1:1001(1000) ack 1
        +.01 < .  1:1(0) ack 4001
        +0   > P. 4001:5001(1000) ack 1
        +.01 < .  1:1(0) ack 8001
        +9   > nothing
    """)


def test_a_second_loss_is_recovered_as_the_first_was(plain: Conversation) -> None:
    """A recovery ends with the ACK of all that was outstanding when it began; then duplicates count anew."""
    plain("""
        +0   peer sends 4000
        +0   > data 1:4001 ack 1
        +.01 < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1
        +0   > P. 1:1001(1000) ack 1
        +.01 < .  1:1(0) ack 4001
        +0   peer sends 4000
        +0   > data 4001:8001 ack 1
        +.01 < .  1:1(0) ack 4001 ...
        +0   < .  1:1(0) ack 4001 ...
        +0   < .  1:1(0) ack 4001
        +0   > P. 4001:5001(1000) ack 1
        +.01 < .  1:1(0) ack 8001
    """)


def test_duplicates_that_are_made_up_for_at_once_resend_nothing(plain: Conversation) -> None:
    """Three duplicates and the ACK of all in one batch: nothing is missing, now or later."""
    plain("""
        +0   peer sends 4000
        +0   > data 1:4001 ack 1
        +.01 < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 4001
        +0   > nothing
        +0   peer sends 1000
        +0   > P. 4001:5001(1000) ack 1
        +0   < .  1:1(0) ack 5001
        +9   > nothing
    """)


def test_window_updates_and_data_are_no_duplicates(plain: Conversation) -> None:
    """RFC 5681, 2: an ACK with data, or with another window, says nothing of a loss."""
    plain("""
        +0   peer sends 4000
        +0   > data 1:4001 ack 1
        +.01 < .  1:1(0) ack 1 win 60000
        +0   < .  1:1(0) ack 1 win 60001
        +0   < .  1:1(0) ack 1 win 60002
        +0   < .  1:1(0) ack 1 win 60003
        +0   < P. 1:101(100) ack 1 win 60003
        +0   > .  4001:4001(0) ack 101
        +0   < P. 101:201(100) ack 1 win 60003
        +0   > .  4001:4001(0) ack 201
        +0   < P. 201:301(100) ack 1 win 60003
        +0   > .  4001:4001(0) ack 301
    """)


def test_a_resent_segment_never_exceeds_the_window(conversation: Conversation) -> None:
    """What is resent was sent before: nothing new slips in beyond the guest's window."""
    conversation.world.set_link(tso4=False, tso6=False)
    conversation.opened("mss 1000", window=500)
    conversation("""
        +0   peer sends 3000
        +0   > P. 1:501(500) ack 1
        +.01 < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1
        +0   > P. 1:501(500) ack 1
        +.01 < .  1:1(0) ack 501 win 65535
        +0   > data 501:3001 ack 1
    """)


def test_what_was_resent_and_lost_again_waits_for_the_timer(plain: Conversation) -> None:
    """Further duplicates do not send it a third time; the timer does."""
    plain("""
        +0   peer sends 5000
        +0   > data 1:5001 ack 1
        +.01 < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1 ...
        +0   < .  1:1(0) ack 1
        +0   > P. 1:1001(1000) ack 1
        +0   < .  1:1(0) ack 1
        +.19 > data 1:5001 ack 1
    """)


# ---- SACK ----


def test_only_what_is_missing_goes_again(with_sack: Conversation) -> None:
    """RFC 6675: every hole below the highest block, each once."""
    with_sack("""
        +0   peer sends 10000
        +0   > data 1:10001 ack 1
        +.01 < .  1:1(0) ack 1001 <sack 2001:3001>
        +0   < .  1:1(0) ack 1001 <sack 4001:5001 2001:3001>
        +0   < .  1:1(0) ack 1001 <sack 4001:7001 2001:3001>
        +0   > P. 1001:2001(1000) ack 1
        +0   > P. 3001:4001(1000) ack 1
        +0   < .  1:1(0) ack 1001 <sack 4001:8001 2001:3001>
        +0   < .  1:1(0) ack 1001 <sack 4001:10001 2001:3001>
        +0   > nothing
        +.01 < .  1:1(0) ack 10001
        +9   > nothing
    """)


def test_a_timeout_leaves_out_what_was_reported(with_sack: Conversation) -> None:
    """What the guest has is not sent again the first time; a receiver may take it back, so later it is."""
    with_sack("""
        +0   peer sends 4000
        +0   > data 1:4001 ack 1
        +.01 < .  1:1(0) ack 1 <sack 2001:3001>
        +.19 > data 1:2001 ack 1
        +0   > P. 3001:4001(1000) ack 1
        +.4  > data 1:4001 ack 1
        +0   < .  1:1(0) ack 4001
    """)


@pytest.mark.parametrize("block", ["1:1", "5001:4001", "9001:12001", "0:2001", "100001:200001"])
def test_blocks_that_make_no_sense_are_ignored(with_sack: Conversation, block: str) -> None:
    """A block counts only inside what is outstanding."""
    with_sack(f"""
        +0   peer sends 10000
        +0   > data 1:10001 ack 1
        +.01 < .  1:1(0) ack 1001 <sack {block}>
        +0   > nothing
        +0   < .  1:1(0) ack 10001
        +9   > nothing
    """)


# ---- the closed window ----


def test_a_closed_window_is_asked_at_growing_intervals_and_never_sent_to(conversation: Conversation) -> None:
    """RFC 9293, 3.8.6.1: a probe carries no data, and the time between two of them doubles, for ever."""
    conversation.opened("mss 1000", window=1000)
    conversation("""
        +0   peer sends 5000
        +0   > P. 1:1001(1000) ack 1
        +0   < .  1:1(0) ack 1001 win 0
        +.2  > .  1000:1000(0) ack 1
        +0   < .  1:1(0) ack 1001 win 0
        +.4  > .  1000:1000(0) ack 1
        +0   < .  1:1(0) ack 1001 win 0
        +.8  > .  1000:1000(0) ack 1
        +0   < .  1:1(0) ack 1001 win 0
        +1.6 > .  1000:1000(0) ack 1
        +0   < .  1:1(0) ack 1001 win 0
        +.1  < .  1:1(0) ack 1001 win 65535
        +0   > data 1001:5001 ack 1
        +.2  > data 1001:5001 ack 1           # the probes' back-off is not the retransmission's
    """)


def test_probes_go_on_for_as_long_as_they_are_answered(conversation: Conversation) -> None:
    """A guest whose program sleeps for a day is not given up; the interval ends at a minute."""
    conversation.opened("mss 1000", window=1000)
    conversation("""
        +0   peer sends 5000
        +0   > P. 1:1001(1000) ack 1
        +0   < .  1:1(0) ack 1001 win 0
    """)
    probes = 0
    last = conversation.world.now_ms
    while conversation.world.now_ms < last + 86_400_000 and probes < 2000:
        conversation.world.advance(61, stop_at_frame=True)
        conversation("""
            +0 > . 1000:1000(0) ack 1
            +0 < . 1:1(0) ack 1001 win 0
        """)
        probes += 1
    assert 1440 <= probes <= 1460
    conversation("""
        +0 < . 1:1(0) ack 1001 win 65535
        +0 > data 1001:5001 ack 1
    """)


def test_a_closed_window_that_nobody_answers_for_is_given_up(conversation: Conversation) -> None:
    """A guest that has gone is noticed by its silence."""
    conversation.opened("mss 1000", window=1000)
    conversation("""
        +0 peer sends 5000
        +0 > P. 1:1001(1000) ack 1
        +0 < .  1:1(0) ack 1001 win 0
    """)
    probes = 0
    while True:
        conversation.world.advance(61, stop_at_frame=True)
        if conversation.world.flow_of(conversation.ends) is None:
            break
        conversation("+0 > . 1000:1000(0) ack 1")
        probes += 1
    assert probes == 12
    conversation("""
        +0 > R. 1001:1001(0) ack 1
        +0 peer sees RST
        +0 closed timed_out
    """)


def test_a_window_that_closed_over_unacknowledged_data_is_asked_too(conversation: Conversation) -> None:
    """Linux drops what its receive buffer cannot hold, and closes the window: that guest lives, and is waited for."""
    conversation.opened("mss 1000", window=4000)
    conversation("""
        +0   peer sends 4000
        +0   > data 1:4001 ack 1
        +0   < .  1:1(0) ack 2001 win 0
    """)
    for _ in range(40):
        conversation.world.advance(61, stop_at_frame=True)
        conversation("""
            +0 > . 2000:2000(0) ack 1
            +0 < . 1:1(0) ack 2001 win 0
        """)
    conversation("""
        +0   < .  1:1(0) ack 2001 win 4000
        +0   > P. 2001:3001(1000) ack 1
        +.01 < .  1:1(0) ack 3001 win 4000
        +0   > P. 3001:4001(1000) ack 1
        +.01 < .  1:1(0) ack 4001 win 4000
        +9   > nothing
    """)


def test_a_window_that_opens_again_before_the_first_probe_is_used_at_once(conversation: Conversation) -> None:
    """The ordinary case: the guest's program reads, and the transfer goes on."""
    conversation.opened("mss 1000", window=2000)
    conversation("""
        +0  peer sends 5000
        +0  > data 1:2001 ack 1
        +0  < .  1:1(0) ack 2001 win 0
        +.1 < .  1:1(0) ack 2001 win 65535
        +0  > data 2001:5001 ack 1
        +0  < .  1:1(0) ack 5001
        +9  > nothing
    """)


def test_a_closed_window_with_nothing_to_send_is_left_alone(conversation: Conversation) -> None:
    """There is nothing to ask about until the peer sends something."""
    conversation.opened("mss 1000", window=1000)
    conversation("""
        +0   peer sends 999
        +0   > P. 1:1000(999) ack 1
        +0   < .  1:1(0) ack 1000 win 0
        +600 > nothing
        +0   peer sends 1
        +.2  > .  999:999(0) ack 1
    """)


# ---- keep-alives ----


def test_a_guest_that_was_silent_for_two_hours_is_asked_whether_it_is_there(conversation: Conversation) -> None:
    """RFC 9293, 3.8.4: then every 75 s, nine times; a guest that answers is left alone for two more hours."""
    conversation.opened()
    conversation("""
        +7200 > . 0:0(0) ack 1
        +1    < . 1:1(0) ack 1
        +7199 > nothing
        +1    > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > . 0:0(0) ack 1
        +75   > R. 1:1(0) ack 1
        +0    peer sees RST
        +0    closed timed_out
    """)


def test_a_half_closed_connection_lives_for_hours(conversation: Conversation) -> None:
    """The guest has said its last, and listens: as long as it answers, it may."""
    conversation.opened()
    conversation("""
        +0     < F. 1:1(0) ack 1
        +0     > .  1:1(0) ack 2
        +7200  > .  0:0(0) ack 2
        +0     < .  2:2(0) ack 1
        +7200  > .  0:0(0) ack 2
        +0     < .  2:2(0) ack 1
        +3600  peer sends 1000
        +0     > P. 1:1001(1000) ack 2
        +0     < .  2:2(0) ack 1001
        +0     peer closes
        +0     > F. 1001:1001(0) ack 2
        +0     < .  2:2(0) ack 1002
        +0     flow gone
    """)


def test_the_guests_keep_alives_make_the_host_ask_the_peer(conversation: Conversation) -> None:
    """Only its kernel can say whether the peer lives: SO_KEEPALIVE is set when the guest first asks."""
    conversation.opened()
    assert not conversation.socket.keepalive
    conversation("""
        +600 < . 0:0(0) ack 1
        +0   > . 1:1(0) ack 1
    """)
    assert conversation.socket.keepalive


def test_the_timer_of_an_idle_flow_costs_nothing(conversation: Conversation, world: World) -> None:
    """Between two bytes that are hours apart nothing runs but the keep-alive."""
    conversation.opened()
    conversation("""
        +0    peer sends 1000
        +0    > P. 1:1001(1000) ack 1
        +0    < .  1:1(0) ack 1001
    """)
    before = world.calls("epoll_wait")
    world.advance(7000)
    assert world.calls("epoll_wait") - before <= 2 and not world.inbox
