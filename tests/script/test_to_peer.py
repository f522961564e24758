# SPDX-License-Identifier: Apache-2.0
"""Payload from the guest to the peer: acknowledged when the host's kernel has taken it, and the window is the room that
the kernel's queue has, if the guest can use that. Adversary: a guest that sends more than it may, twice, or in another
order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conversation import Conversation
from fake_core import lib
from world import World

Talk = Callable[..., Conversation]


def test_data_is_acknowledged_when_the_kernel_took_it(conversation: Conversation) -> None:
    """One segment, one sendmsg, one ACK."""
    conversation.opened()
    conversation("""
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 peer got 1000
        +0 calls sendmsg 1
        +9 > nothing
    """)


def test_segments_of_one_batch_are_one_sendmsg_and_one_ack(conversation: Conversation) -> None:
    """What the guest sent at once goes on at once."""
    conversation.opened()
    conversation("""
        +0 < .  1:1461(1460) ack 1 ...
        +0 < .  1461:2921(1460) ack 1 ...
        +0 < P. 2921:3000(79) ack 1
        +0 > .  1:1(0) ack 3000
        +0 calls sendmsg 1
        +0 calls epoll_ctl 0
        +0 peer got 2999
    """)


def test_super_segments_go_to_the_socket_in_one_piece(conversation: Conversation) -> None:
    """A TSO frame of 64 KiB is one sendmsg, whatever the MTU."""
    conversation.opened()
    conversation("""
        +0 < P. 1:64001(64000) ack 1
        +0 > .  1:1(0) ack 64001
        +0 calls sendmsg 1
        +0 peer got 64000
    """)


def test_small_pieces_of_guest_memory_are_put_together(conversation: Conversation) -> None:
    """Frames scattered over pieces of 100 bytes; more of them than one sendmsg() takes are two."""
    conversation.opened()
    conversation.world.set_link(piece_bytes=100)
    conversation("""
        +0 < .  1:30001(30000) ack 1 ...
        +0 < .  30001:60001(30000) ack 1 ...
        +0 < P. 60001:65001(5000) ack 1
        +0 > .  1:1(0) ack 65001
        +0 peer got 65000
    """)


@pytest.mark.parametrize("piece", [33, 64, 65])
def test_headers_may_be_scattered(conversation: Conversation, piece: int) -> None:
    """The headers themselves lie in several pieces."""
    conversation.world.set_link(piece_bytes=piece)
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 peer got 1000
    """)


def test_a_send_may_come_short_in_any_segment_of_a_batch(conversation: Conversation) -> None:
    """What the kernel took ends in the second of three segments, or exactly between two."""
    conversation.opened()
    conversation("""
        +0 kernel queue 1500
        +0 < .  1:1001(1000) ack 1 ...
        +0 < .  1001:2001(1000) ack 1 ...
        +0 < P. 2001:3001(1000) ack 1
        +0 > .  1:1(0) ack 1501
        +0 kernel queue 2500
        +0 peer takes 1500
        +0 > .  1:1(0) ack 3001
        +0 kernel queue 1000
        +0 peer takes all
        +0 < .  3001:4001(1000) ack 1 ...
        +0 < P. 4001:5001(1000) ack 1
        +0 > .  1:1(0) ack 4001
        +0 kernel queue 100000
        +0 peer takes all
        +0 > .  1:1(0) ack 5001
        +0 peer got 5000
    """)


def test_two_ends_of_one_stream_are_one(conversation: Conversation) -> None:
    """A FIN ahead of a gap, and another one elsewhere: the first counts, the other is challenged."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < F. 1001:1001(0) ack 1
        +0 > .  1:1(0) ack 1
        +0 < F. 501:501(0) ack 1
        +0 > .  1:1(0) ack 1
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1002
        +0 peer got 1000
    """)


def test_a_host_that_does_not_tell_its_room_is_believed_as_before(conversation: Conversation) -> None:
    """A kernel without SO_MEMINFO: the window is what it was, less what was sent; the hold takes what does not fit."""
    conversation.opened()
    conversation("""
        +0 kernel fails getsockopt ENOPROTOOPT
        +0 < .  1:40001(40000) ack 1
        +0 > .  1:1(0) ack 40001 win 99
    """)


def test_what_was_sent_twice_is_taken_once(conversation: Conversation) -> None:
    """Repetitions, whole or in part, are acknowledged and go no further."""
    conversation.opened()
    conversation("""
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 < P. 501:1501(1000) ack 1
        +0 > .  1:1(0) ack 1501
        +0 < P. 1001:1501(500) ack 1 ...
        +0 < P. 1401:1601(200) ack 1
        +0 > .  1:1(0) ack 1601
        +0 peer got 1600
    """)


def test_the_window_is_seven_eighths_of_the_queues_room(conversation: Conversation) -> None:
    """What we advertise is what the kernel takes: never more, and an eighth less for its own headers."""
    conversation.opened()
    conversation("""
        +0 kernel queue 160000
        +0 < .  1:40001(40000) ack 1
        +0 > .  1:1(0) ack 40001 win 410     # (160000 - 40000) * 7 / 8 = 105000 = 410 * 256 + 40
        +0 peer takes all
        +0 > nothing
    """)


def test_a_window_once_offered_is_not_taken_back(conversation: Conversation) -> None:
    """RFC 9293, 3.8.6: the right edge stays where it was when the kernel's room shrinks behind it."""
    conversation.opened()
    conversation("""
        +0 kernel queue 50000
        +0 < .  1:40001(40000) ack 1
        +0 > .  1:1(0) ack 40001 win 98      # 65280 offered, 40000 used: 25280 = 98 * 256 + 192; there is room for 8750
    """)


def test_a_full_queue_closes_the_window_and_one_out_opens_it(conversation: Conversation) -> None:
    """The peer does not read: the guest's window closes; when it does, there is one OUT and one window update."""
    conversation.opened()
    conversation("""
        +0 kernel queue 60000
        +0 < .  1:50001(50000) ack 1
        +0 > .  1:1(0) ack 50001
        +0 interest IN|PRI|RDHUP|OUT|ET
        +0 < .  50001:60001(10000) ack 1
        +0 > .  1:1(0) ack 60001 win 20
        +0 < .  60001:65281(5280) ack 1      # the rest of the window that was offered: the kernel does not take it
        +0 > .  1:1(0) ack 60001 win 20
        +0 peer got 60000
        +0 forget
        +9 > nothing
        +0 peer takes 10000
        +9 > nothing
        +0 woken 0
        +0 peer takes 30000
        +0 > .  1:1(0) ack 65281 win 116     # 40000 * 7 / 8 - 5280 = 29720 = 116 * 256 + 24
        +0 woken 1 idle 0
        +0 peer got 65280
        +0 interest IN|PRI|RDHUP|ET
        +0 peer takes all
        +0 > nothing
        +0 woken 0
    """)


@pytest.mark.world(mtu=65520)
def test_a_window_is_never_too_small_for_a_guest_of_large_frames_to_use(conversation: Conversation) -> None:
    """RFC 9293, 3.8.6.2.1: it may wait for half of the most that it was offered, and a queue that is not full makes no
    edge that would tell of more. Where the kernel takes less, the rest is held."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 kernel queue 60000
        +0 < .  1:40001(40000) ack 1
        +0 > .  1:1(0) ack 40001 win 128     # 65280 / 2, in units of 256; there is room for 17500
        +0 < .  40001:72769(32768) ack 1
        +0 > .  1:1(0) ack 60001 win 49
        +0 peer takes all
        +0 > .  1:1(0) ack 72769 win 155     # 60000 * 7 / 8 - 12768
        +0 peer got 72768
    """)


@pytest.mark.world(mtu=65520)
def test_a_guest_that_waits_for_a_window_of_use_hears_of_it(conversation: Conversation) -> None:
    """It was offered some when the queue became full, but no segment of its own fits."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 kernel queue 60000
        +0 < .  1:50001(50000) ack 1
        +0 > .  1:1(0) ack 50001 win 59
        +0 forget
        +0 peer takes 20000
        +0 > .  1:1(0) ack 50001 win 128
        +0 woken 1 idle 0
    """)


def test_a_short_send_keeps_its_rest(conversation: Conversation) -> None:
    """What the kernel did not take of a super-segment waits with us, not acknowledged, until there is room."""
    conversation.opened()
    conversation("""
        +0 kernel queue 30000
        +0 < P. 1:64001(64000) ack 1
        +0 > .  1:1(0) ack 30001 win 137     # of the 65280 offered at first
        +0 peer got 30000
        +0 peer takes 25000
        +0 > .  1:1(0) ack 55001
        +0 peer got 55000
        +0 peer takes 25000
        +0 > .  1:1(0) ack 64001
        +0 peer got 64000
    """)


def test_data_behind_a_kept_rest_waits_its_turn(conversation: Conversation) -> None:
    """Segments that come while a rest waits are sent behind it, in order."""
    conversation.opened()
    conversation("""
        +0 kernel queue 10000
        +0 < P. 1:20001(20000) ack 1
        +0 > .  1:1(0) ack 10001
        +0 < P. 20001:25001(5000) ack 1
        +0 > nothing                         # a duplicate ACK would make the guest send again what is here
        +0 kernel queue 100000
        +0 peer takes 10000
        +0 > .  1:1(0) ack 25001
        +0 peer got 25000
    """)


def test_a_fin_behind_a_kept_rest_is_shut_down_after_it(conversation: Conversation) -> None:
    """The peer sees the guest's FIN when it has been given all before it."""
    conversation.opened()
    conversation("""
        +0 kernel queue 10000
        +0 < FP. 1:20001(20000) ack 1
        +0 > .  1:1(0) ack 10001
        +0 peer sees nothing
        +0 flow OPEN OPEN
        +0 kernel queue 100000
        +0 peer takes 10000
        +0 > .  1:1(0) ack 20002
        +0 peer sees FIN
        +0 flow OPEN CLOSED
    """)


def test_eagain_takes_nothing_and_acknowledges_nothing(conversation: Conversation) -> None:
    """A kernel that is out of memory is asked again when it says OUT."""
    conversation.opened()
    conversation("""
        +0 kernel fails sendmsg EAGAIN
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1
        +0 > .  1:1(0) ack 1001
        +0 peer got 1000
    """)


def test_more_than_the_window_is_cut_at_its_edge(conversation: Conversation) -> None:
    """Bytes beyond what was offered are not taken; the guest sends them again when it may."""
    conversation.opened("mss 1460")
    conversation("""
        +0 < .  1:60001(60000) ack 1 ...
        +0 < .  60001:70001(10000) ack 1
        +0 > .  1:1(0) ack 65536
        +0 peer got 65535
        +0 < .  65536:70001(4465) ack 1
        +0 > .  1:1(0) ack 70001
    """)


def test_a_probe_of_our_closed_window_is_answered(conversation: Conversation) -> None:
    """One byte beyond the closed window is not taken, and answered with the window as it is."""
    conversation.opened()
    conversation("""
        +0 kernel queue 30000
        +0 < .  1:65281(65280) ack 1
        +0 > .  1:1(0) ack 30001
        +0 < .  65281:65282(1) ack 1
        +0 > .  1:1(0) ack 30001
        +0 kernel queue 200000
        +0 peer takes all
        +0 > .  1:1(0) ack 65281
        +0 peer got 65280
    """)


def test_a_keep_alive_is_answered(conversation: Conversation) -> None:
    """RFC 9293, 3.8.4: a segment one before what we expect, with or without a byte, gets an ACK."""
    conversation.opened()
    conversation("""
        +0    < .  1:1(0) ack 1
        +0    > nothing
        +3600 < .  0:0(0) ack 1
        +0    > .  1:1(0) ack 1
        +75   < .  0:1(1) ack 1
        +0    > .  1:1(0) ack 1
        +0    peer got 0
    """)


def test_sequence_numbers_of_the_guest_wrap_around(talk: Talk) -> None:
    """A connection that begins just below 2^32 goes on behind it."""
    conversation = talk(guest_isn=0xFFFFFFFF - 1500).opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 < P. 2001:3001(1000) ack 1
        +0 > .  1:1(0) ack 1001 <sack 2001:3001>
        +0 < P. 1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 3001 <>
        +0 peer got 3000
        +0 kernel queue 1000
        +0 < P. 3001:9001(6000) ack 1
        +0 > .  1:1(0) ack 3001
        +0 kernel queue 100000
        +0 peer takes all
        +0 > .  1:1(0) ack 9001
        +0 < F. 9001:9001(0) ack 1
        +0 > .  1:1(0) ack 9002
    """)


# ---- what comes ahead of a gap ----


def test_a_gap_is_reported_by_sack_and_filled(conversation: Conversation) -> None:
    """Segments behind a lost one are kept; when it comes again all go on at once."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < .  1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 1 <sack 1001:2001>
        +0 < .  3001:4001(1000) ack 1
        +0 > .  1:1(0) ack 1 <sack 3001:4001 1001:2001>
        +0 < .  2001:3001(1000) ack 1
        +0 > .  1:1(0) ack 1 <sack 1001:4001>
        +0 peer got 0
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 4001 <>
        +0 peer got 4000
    """)


def test_a_gap_is_reported_also_while_data_goes_the_other_way(conversation: Conversation) -> None:
    """Segments with data have no room for SACK: its report goes by itself."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 peer sends 500       ...
        +0 < .  1001:2001(1000) ack 1
        +0 > P. 1:501(500) ack 1
        +0 > .  501:501(0) ack 1 <sack 1001:2001>
        +0 < .  1:1001(1000) ack 501
        +0 > .  501:501(0) ack 2001
    """)


def test_without_sack_each_segment_behind_a_gap_is_a_duplicate_ack(conversation: Conversation) -> None:
    """RFC 5681, 4.2: three of them make the guest send the lost one again."""
    conversation.opened()
    conversation("""
        +0 < .  1001:2001(1000) ack 1 ...
        +0 < .  2001:3001(1000) ack 1 ...
        +0 < .  3001:4001(1000) ack 1
        +0 > .  1:1(0) ack 1 <>
        +0 > .  1:1(0) ack 1 <>
        +0 > .  1:1(0) ack 1 <>
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 4001
        +0 peer got 4000
    """)


@pytest.mark.world(reorder=False)
def test_with_the_queue_switched_off_what_is_ahead_is_dropped(conversation: Conversation) -> None:
    """The comparison build: the guest sends everything behind the gap again, and is not promised reports of it."""
    conversation("""
        +0 < S  0:0(0) <mss ours,sackOK,wscale 7>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 <mss ours,wscale 8>
        +0 < .  1:1(0) ack 1
        +0 < .  1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 1 <>
        +0 < .  1:2001(2000) ack 1
        +0 > .  1:1(0) ack 2001
        +0 peer got 2000
    """)


def test_a_fin_ahead_of_a_gap_waits_for_it(conversation: Conversation) -> None:
    """The end is known, but does not count before all bytes are there."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < FP. 1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 1 <sack 1001:2001>
        +0 peer sees nothing
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 2002 <>
        +0 peer sees FIN
        +0 peer got 2000
    """)


def test_a_bare_fin_ahead_of_a_gap_waits_for_it(conversation: Conversation) -> None:
    """Also when the segment has no byte of its own."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < F. 1001:1001(0) ack 1
        +0 > .  1:1(0) ack 1
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1002
        +0 peer sees FIN
    """)


def test_nothing_counts_behind_the_guests_fin(conversation: Conversation) -> None:
    """Bytes beyond the end that the guest has named are not its stream any more."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < F. 1001:1001(0) ack 1
        +0 > .  1:1(0) ack 1
        +0 < .  1:2001(2000) ack 1
        +0 > .  1:1(0) ack 1002
        +0 peer got 1000
        +0 peer sees FIN
    """)


def test_what_comes_next_is_taken_however_many_gaps_lie_behind(conversation: Conversation) -> None:
    """Cause: sixteen ranges that came ahead left no place for a segment that touched none, each time it came."""
    conversation.opened("mss ours,sackOK,wscale 7")
    for start in range(2001, 2001 + 20 * 200, 200):
        conversation(f"""
            +0 < .  {start}:{start + 100}(100) ack 1
            +0 > .  1:1(0) ack 1
        """)
    conversation("""
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001
        +0 peer got 1000
        +0 < .  1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 2101
        +0 peer got 2100
    """)


def test_overlapping_segments_behind_a_gap_are_kept_once(conversation: Conversation) -> None:
    """Whatever pieces a retransmission comes in, each byte goes on once."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < .  2001:4001(2000) ack 1
        +0 > .  1:1(0) ack 1 <sack 2001:4001>
        +0 < .  1501:2501(1000) ack 1
        +0 > .  1:1(0) ack 1 <sack 1501:4001>
        +0 < .  3501:5001(1500) ack 1
        +0 > .  1:1(0) ack 1 <sack 1501:5001>
        +0 < .  1:6001(6000) ack 1
        +0 > .  1:1(0) ack 6001 <>
        +0 peer got 6000
    """)


def test_what_is_kept_goes_when_its_flow_goes(conversation: Conversation) -> None:
    """A flow that ends gives back what it held; the shared check finds none left."""
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation("""
        +0 < .  1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 1
        +0 < R. 1:1(0) ack 1
        +0 flow gone
    """)


@pytest.mark.world(flow_limit=256)
def test_when_all_holds_are_in_use_a_flow_does_without(talk: Talk, world: World) -> None:
    """Sixty-four flows may keep segments; the next one drops them, and the guest sends them again."""
    flows = [talk().opened("mss ours,sackOK,wscale 7") for _ in range(65)]
    for flow in flows[:64]:
        flow("""
            +0 < .  1001:2001(1000) ack 1
            +0 > .  1:1(0) ack 1 <sack 1001:2001>
        """)
    flows[64]("""
        +0 < .  1001:2001(1000) ack 1
        +0 > .  1:1(0) ack 1 <>
        +0 kernel queue 500
        +0 < .  1:2001(2000) ack 1
        +0 > .  1:1(0) ack 501 win 253       # not one byte more than before: (65281 - 501) / 256
        +0 kernel queue 100000
        +0 peer takes all
        +0 > nothing                         # the guest's own timer sends again what was not kept
        +0 < .  501:2001(1500) ack 1
        +0 > .  1:1(0) ack 2001
    """)
    assert world.counter("tcp_hold_full") == 2
    flows[0]("""
        +0 < .  1:1001(1000) ack 1
        +0 > .  1:1(0) ack 2001
    """)
    flows[64]("""
        +0 < .  3001:4001(1000) ack 1
        +0 > .  1:1(0) ack 2001 <sack 3001:4001>
    """)


def test_urgent_data_of_the_guest_is_in_band(conversation: Conversation) -> None:
    """The flag and the pointer go no further; the bytes are bytes."""
    conversation.opened()
    conversation("""
        +0 < PU. 1:101(100) ack 1 urg 50
        +0 > .   1:1(0) ack 101
        +0 peer got 100
    """)


def test_a_guest_without_window_scale_is_offered_less(conversation: Conversation) -> None:
    """Without scaling the window ends at 65535."""
    conversation.opened("mss 1460")
    conversation("""
        +0 < P. 1:1001(1000) ack 1
        +0 > .  1:1(0) ack 1001 win 64535
        +0 < P. 1001:40001(39000) ack 1
        +0 > .  1:1(0) ack 40001 win 65535
    """)


def test_fault_of_guest_memory_is_noticed(conversation: Conversation) -> None:
    """EFAULT means that the guest's memory has gone from under us: this worker will end."""
    conversation.opened()
    conversation("""
        +0 kernel fails sendmsg EFAULT
        +0 < P. 1:1001(1000) ack 1
        +0 > R. 1:1(0) ack 1
    """)
    assert lib.script_memory_fault()
