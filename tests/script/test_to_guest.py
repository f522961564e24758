# SPDX-License-Identifier: Apache-2.0
"""Payload from the peer to the guest: in segments that it can take, as large as it takes them, inside its window, and
in the host kernel's queue until it is acknowledged. Adversary: a guest with small buffers and few offloads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import segments
from conversation import Conversation
from fake_core import ffi, lib
from world import World

Talk = Callable[..., Conversation]


def test_data_is_passed_on_at_once(conversation: Conversation) -> None:
    """One segment of the peer's, one wake-up, one frame, and the kernel keeps it until the ACK."""
    conversation.opened()
    conversation("""
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 woken 1 idle 0
        +0 kernel holds 1000
        +0 < .  1:1(0) ack 1001
        +0 kernel holds 0
        +0 stall caught_up
        +0 > nothing
        +0 woken 0
    """)


def test_a_steady_transfer_costs_two_calls_a_read(conversation: Conversation) -> None:
    """One to peek, one to discard what was acknowledged: the peek offset follows by itself, and the mask stays."""
    conversation.opened()
    conversation("""
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 forget
        +0 < .  1:1(0) ack 1001
        +0 peer sends 1000
        +0 > P. 1001:2001(1000) ack 1
        +0 < .  1:1(0) ack 2001
        +0 peer sends 1000
        +0 > P. 2001:3001(1000) ack 1
        +0 peer sends 1000
        +0 > P. 3001:4001(1000) ack 1
        +0 < .  1:1(0) ack 3001
        +0 peer sends 1000
        +0 > P. 4001:5001(1000) ack 1
        +0 calls recvmsg 4
        +0 calls discard 3
        +0 calls setsockopt 0
        +0 calls getsockopt 0
        +0 calls epoll_ctl 0
    """)


@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
def test_what_is_acknowledged_is_dropped_in_steps_while_more_is_there(conversation: Conversation) -> None:
    """Each discard makes the kernel tell the peer of its room; one that might wait for room waits for no step."""
    conversation.opened("mss 1024,wscale 7", window=1024)
    conversation("""
        +0 peer sends 400000
        +0 > data 1:131073 ack 1
        +0 stall window
        +0 < . 1:1(0) ack 65537
        +0 > data 131073:196609 ack 1
        +0 kernel holds 400000
        +0 < . 1:1(0) ack 131073
        +0 > data 196609:262145 ack 1
        +0 kernel holds 268928
        +0 < . 1:1(0) ack 262145
        +0 > data 262145:393217 ack 1
        +0 kernel holds 137856
        +0 < . 1:1(0) ack 300001
        +0 > data 393217:400001 ack 1
        +0 stall caught_up
        +0 kernel holds 100000
    """)


def test_bulk_data_is_super_segments_of_whole_mss(conversation: Conversation) -> None:
    """A guest with TSO gets frames of as many whole segments as 65535 bytes of IP packet hold, whatever the MTU."""
    conversation.opened()
    mss = conversation.our_mss
    conversation("+0 peer sends 200000")
    frames = [segments.parse_segment(packet) for packet in conversation.world.inbox]
    for segment in frames:
        assert len(segment.packet.frame) - segments.ETHERNET <= 65535
        assert segment.gso_size == (mss if segment.length > mss else 0)
    assert [segment.length % mss for segment in frames[:-1]] == [0] * (len(frames) - 1)
    assert max(segment.length for segment in frames) > 60000
    conversation("""
        +0 > data 1:200001 ack 1
        +0 < . 1:1(0) ack 200001
        +0 kernel holds 0
    """)


@pytest.mark.world(mtu=65520)
@pytest.mark.parametrize("peek_off", [True], ids=["peek_off"])
@pytest.mark.parametrize("mss", [1448, 65000])
def test_a_turn_ends_with_a_whole_segment(conversation: Conversation, mss: int) -> None:
    """What is left of a flow's turn before the others have theirs is no reason for a small frame."""
    conversation.opened(f"mss {mss},wscale 10")
    conversation("+0 peer sends 3000000")
    lengths = [segments.parse_segment(packet).length for packet in conversation.world.inbox]
    while lengths[0] < mss:
        del lengths[0]  # the first reads, which expect little
    assert [length % mss for length in lengths[:-1]] == [0] * (len(lengths) - 1) and len(lengths) > 40
    conversation("+0 > data 1:3000001 ack 1")


@pytest.mark.parametrize("mss", [1000, 1380, 1440])
def test_segments_are_no_larger_than_the_guest_said(conversation: Conversation, mss: int) -> None:
    """The MSS option of the guest's SYN bounds each segment, and is the size of a super-segment's parts."""
    conversation.opened(f"mss {mss},wscale 7")
    conversation("+0 peer sends 20000")
    for packet in conversation.world.inbox:
        segment = segments.parse_segment(packet)
        assert segment.gso_size == mss or (segment.gso_size == 0 and segment.length <= mss)
    conversation("+0 > data 1:20001 ack 1")


def test_without_an_mss_option_segments_are_536_bytes(conversation: Conversation) -> None:
    """RFC 9293, 3.7.1."""
    conversation.opened("")
    conversation("""
        +0 peer sends 1100
        +0 > P. 1:1101(1100) ack 1 gso 536
    """)


def test_a_tiny_mss_is_not_believed(conversation: Conversation) -> None:
    """An MSS of a few bytes would only multiply our work: 88 is the least."""
    conversation.opened("mss 1")
    conversation("""
        +0 peer sends 100
        +0 > P. 1:101(100) ack 1 gso 88
    """)


def test_without_tso_there_is_a_frame_for_each_segment(conversation: Conversation) -> None:
    """Software segmentation: no frame above the MTU."""
    conversation.world.set_link(tso4=False, tso6=False)
    conversation.opened("mss ours,wscale 7")
    conversation("+0 peer sends 30000")
    top = conversation.our_mss
    for packet in conversation.world.inbox:
        segment = segments.parse_segment(packet)
        assert segment.gso_size == 0 and segment.length <= top and segment.packet.offload.needs_csum
    conversation("""
        +0 > data 1:30001 ack 1
        +0 < . 1:1(0) ack 30001
    """)


@pytest.mark.parametrize("length", [1, 2, 3, 1459, 1460, 1461, 29999])
def test_without_guest_csum_checksums_are_complete(conversation: Conversation, length: int) -> None:
    """Software checksums over odd and even payloads, in buffers of odd size; segments.py adds them up."""
    conversation.world.set_link(csum=False, tso4=False, tso6=False, buffer_bytes=1023)
    conversation.opened("mss ours,sackOK,wscale 7")
    conversation(f"""
        +0 peer sends {length}
        +0 > data 1:{length + 1} ack 1
        +0 < . 1:1(0) ack {length + 1}
        +0 peer closes
        +0 > F. {length + 1}:{length + 1}(0) ack 1
    """)


@pytest.mark.parametrize("buffer", [29, 64, 100, 1500, 4096])
def test_mergeable_buffers_of_any_size_hold_a_frame(conversation: Conversation, buffer: int) -> None:
    """Headers and payload lie over as many buffers as they need, down to headers in three pieces."""
    conversation.world.set_link(buffer_bytes=buffer)
    conversation.opened("mss ours,wscale 7")
    conversation("""
        +0 peer sends 100000
        +0 > data 1:100001 ack 1
        +0 < . 1:1(0) ack 100001
    """)


@pytest.mark.parametrize("buffer", [100, 500, 1514, 9000])
def test_small_buffers_that_are_not_merged_make_small_frames(conversation: Conversation, buffer: int) -> None:
    """Without MRG_RXBUF a frame ends where its buffer ends, and the rest goes into the next."""
    conversation.world.set_link(buffer_bytes=buffer, merge=False)
    conversation.opened("mss ours,wscale 7")
    conversation("+0 peer sends 30000")
    for packet in conversation.world.inbox:
        assert len(packet.frame) <= buffer
    conversation("""
        +0 > data 1:30001 ack 1
        +0 < . 1:1(0) ack 30001
    """)


def test_the_guests_window_is_never_exceeded(conversation: Conversation) -> None:
    """All that fits the window goes, the rest waits for it."""
    conversation.opened("mss 1000", window=10000)
    conversation("""
        +0 peer sends 30000
        +0 > data 1:10001 ack 1
        +0 stall window
        +0 < . 1:1(0) ack 4001 win 6000
        +0 > nothing
        +0 < . 1:1(0) ack 10001 win 10000
        +0 > data 10001:20001 ack 1
        +0 < . 1:1(0) ack 20001 win 65535
        +0 > data 20001:30001 ack 1
        +0 stall caught_up
    """)


def test_the_windows_scale_counts(conversation: Conversation) -> None:
    """RFC 7323: the field is shifted by what the guest said in its SYN, but not the SYN's own."""
    conversation.opened("mss 1000,wscale 4", window=1000)
    conversation("""
        +0 peer sends 20000
        +0 > data 1:16001 ack 1
        +0 < . 1:1(0) ack 16001
        +0 > data 16001:20001 ack 1
    """)


def test_a_scale_above_14_is_14(conversation: Conversation) -> None:
    """RFC 7323, 2.3."""
    conversation.opened("mss 1024,wscale 255", window=1)
    conversation("""
        +0 peer sends 20000
        +0 > data 1:16385 ack 1
        +0 < . 1:1(0) ack 16385
        +0 > data 16385:20001 ack 1
    """)


def test_an_old_segment_does_not_move_the_window(conversation: Conversation) -> None:
    """RFC 9293, 3.10.7.4: a segment from before the last that moved it says nothing new."""
    conversation.opened("mss 1000", window=2000)
    conversation("""
        +0 < P. 1:101(100) ack 1 win 2000
        +0 > .  1:1(0) ack 101
        +0 < P. 101:201(100) ack 1 win 2000
        +0 > .  1:1(0) ack 201
        +0 < P. 1:101(100) ack 1 win 60000
        +0 > .  1:1(0) ack 201
        +0 peer sends 10000
        +0 > data 1:2001 ack 201
    """)


def test_a_crumb_of_window_is_not_used_while_something_is_in_flight(conversation: Conversation) -> None:
    """Sender's silly window avoidance, RFC 9293, 3.8.6.2.1; but with nothing in flight a crumb is all there is."""
    conversation.opened("mss 1000", window=2500)
    conversation("""
        +0 peer sends 10000
        +0 > data 1:2501 ack 1
        +0 < . 1:1(0) ack 2001 win 900
        +0 > nothing
        +0 < . 1:1(0) ack 2501 win 400
        +0 > P. 2501:2901(400) ack 1
        +0 < . 1:1(0) ack 2901 win 65535
        +0 > data 2901:10001 ack 1
    """)


@pytest.mark.world(mtu=65520)
def test_half_of_the_window_is_used_where_a_segment_is_larger(conversation: Conversation) -> None:
    """A guest of MTU 65520 offers one segment at first: its answer and the end behind it go together all the same."""
    conversation.opened("mss ours", window=64000)
    conversation("""
        +0 peer sends 145
        +0 peer closes
        +0 > P. 1:146(145) ack 1
        +0 > F. 146:146(0) ack 1
    """)


@pytest.mark.world(mtu=65520)
def test_less_than_half_of_the_window_is_not(conversation: Conversation) -> None:
    conversation.opened("mss ours", window=64000)
    conversation("""
        +0 peer sends 33000
        +0 > data 1:33001 ack 1
        +0 peer sends 31000
        +0 > nothing
        +0 < . 1:1(0) ack 33001 win 64000
        +0 > data 33001:64001 ack 1
    """)


def test_after_a_window_stall_less_than_a_quarter_of_the_buffer_is_not_used(conversation: Conversation) -> None:
    """A program that reads a little at a time would cost the guest an interrupt for each of its reads."""
    conversation.opened("mss 1000", window=40000)
    conversation("""
        +0 peer sends 100000
        +0 > data 1:40001 ack 1
        +0 < . 1:1(0) ack 40001 win 1000
        +0 < . 1:1(0) ack 40001 win 9999
        +0 > nothing
        +0 stall window
        +0 < . 1:1(0) ack 40001 win 10000
        +0 > data 40001:50001 ack 1
        +0 < . 1:1(0) ack 50001 win 30000
        +0 > data 50001:80001 ack 1
    """)


def test_a_buffer_that_has_shrunk_is_used_as_it_is_after_a_moment(conversation: Conversation) -> None:
    """It will never offer a quarter of what it once was: the override timer of RFC 9293, 3.8.6.2.1."""
    conversation.opened("mss 1000", window=40000)
    conversation("""
        +0 peer sends 100000
        +0 > data 1:40001 ack 1
        +0 < . 1:1(0) ack 40001 win 3000
        +0 > nothing
        +0.200 > data 40001:43001 ack 1
        +0 < . 1:1(0) ack 43001 win 3000
        +0 > data 43001:46001 ack 1
        +0 < . 1:1(0) ack 46001 win 400
        +0 > P. 46001:46401(400) ack 1
    """)


def test_the_last_bytes_of_a_stream_do_not_wait_for_window_to_spare(conversation: Conversation) -> None:
    conversation.opened("mss 1000", window=40000)
    conversation("""
        +0 peer sends 43000
        +0 > data 1:40001 ack 1
        +0 peer closes
        +0 < . 1:1(0) ack 40001 win 3000
        +0 > data 40001:43001 ack 1
        +0 < . 1:1(0) ack 43001 win 100
        +0 > F. 43001:43001(0) ack 1
    """)


def test_a_window_that_came_ahead_of_a_gap_does_not_outlast_it(conversation: Conversation) -> None:
    """Regression, found by fuzzing: the segments that would have filled the gap could not open the window again."""
    conversation.opened("mss 1000,sackOK", window=4000)
    conversation("""
        +0 < P. 101:201(100) ack 1 win 0
        +0 > . 1:1(0) ack 1 <sack 101:201>
        +0 peer sends 3000
        +0 > nothing
        +0 < P. 1:101(100) ack 1 win 4000
        +0 > data 1:3001 ack 201
    """)


def test_our_sequence_numbers_wrap_around(talk: Talk, world: World) -> None:
    """A connection whose initial number lies just below 2^32 goes on behind it, lost segments and FIN included."""
    probe = talk()("+0 < S 0:0(0)")
    assert probe.our_isn is not None
    probe("+0 < R 1:1(0)")
    # RFC 6528: the number moves on with the clock, by one each 4 microseconds.
    world.advance(((1 << 32) - 3000 - probe.our_isn) * 4e-6)
    conversation = talk(guest_port=probe.ends.guest_port).opened("mss 1000,sackOK,wscale 7")
    assert conversation.our_isn is not None and (1 << 32) - 4000 < conversation.our_isn < (1 << 32) - 2500
    world.set_link(tso4=False, tso6=False)
    conversation("""
        +0 peer sends 8000
        +0 > data 1:8001 ack 1
        +0 < .  1:1(0) ack 2001 <sack 3001:4001>
        +0 < .  1:1(0) ack 2001 <sack 3001:5001>
        +0 < .  1:1(0) ack 2001 <sack 3001:8001>
        +0 > P. 2001:3001(1000) ack 1
        +0 < .  1:1(0) ack 8001
        +0 kernel holds 0
        +0 peer closes
        +0 > F. 8001:8001(0) ack 1
        +0 < F. 1:1(0) ack 8002
        +0 > .  8002:8002(0) ack 2
        +0 flow gone
    """)


def test_data_both_ways_at_once(conversation: Conversation) -> None:
    """Acknowledgements go along with data, in both directions."""
    conversation.opened()
    conversation("""
        +0 peer sends 1000   ...
        +0 < P. 1:501(500) ack 1
        +0 > P. 1:1001(1000) ack 501
        +0 < P. 501:1001(500) ack 1001
        +0 > .  1001:1001(0) ack 1001
        +0 peer got 1000
        +0 kernel holds 0
    """)


@pytest.mark.parametrize("peek_off", ["peek_off"], indirect=True)
def test_a_large_backlog_goes_in_turns(talk: Talk, world: World) -> None:
    """One flow sends a mebibyte, then others have their turn; nobody waits for an event meanwhile."""
    first, second = talk().opened("mss 1460,wscale 14"), talk().opened("mss 1460,wscale 14")
    lib.fake_peer_send(first.fd, 4 << 20)
    lib.fake_peer_send(second.fd, 4 << 20)
    world.settle()
    order = [int.from_bytes(packet.payload[2:4], "big") for packet in world.inbox]
    assert sum(a != b for a, b in zip(order, order[1:], strict=False)) >= 7
    first(f"+0 > data 1:{(4 << 20) + 1} ack 1")
    second(f"+0 > data 1:{(4 << 20) + 1} ack 1")


@pytest.mark.parametrize("peek_off", ["reread"], indirect=True)
def test_without_peek_off_a_mebibyte_is_in_flight_at_most(conversation: Conversation) -> None:
    """What is in flight is read again with each read; hence the bound, whatever the guest's window."""
    conversation.opened("mss 1024,wscale 14")
    conversation(f"""
        +0 peer sends {3 << 20}
        +0 > data 1:{(1 << 20) + 1} ack 1
        +0 stall window
        +0 > nothing
        +0 < . 1:1(0) ack {(1 << 20) + 1}
        +0 > data {(1 << 20) + 1}:{(2 << 20) + 1} ack 1
        +0 < . 1:1(0) ack {(2 << 20) + 1}
        +0 > data {(2 << 20) + 1}:{(3 << 20) + 1} ack 1
    """)


def test_urgent_data_of_the_peer_is_in_band(conversation: Conversation) -> None:
    """SO_OOBINLINE: the urgent byte keeps its place, and what is behind it does not wait for it."""
    conversation.opened()
    conversation("""
        +0 peer sends 100           ...
        +0 peer sends 10 urgent     ...
        +0 peer sends 50
        +0 > data 1:110 ack 1
    """)
    if conversation.world.options.peek_off:
        conversation("+0 > data 110:161 ack 1")
        conversation("+0 < . 1:1(0) ack 161")
    else:  # a read from the queue's head stops at the mark, until what is before it was acknowledged
        conversation("+0 < . 1:1(0) ack 110")
        conversation("+0 > data 110:161 ack 1")
        conversation("+0 < . 1:1(0) ack 161")
    conversation("""
        +0 kernel holds 0
        +0 peer sends 100
        +0 > data 161:261 ack 1
    """)


def test_an_urgent_byte_alone_arrives(conversation: Conversation) -> None:
    """As telnet's interrupt sends it; then ordinary data goes on."""
    conversation.opened()
    conversation("""
        +0 peer sends 1 urgent
        +0 > P. 1:2(1) ack 1
        +0 < .  1:1(0) ack 2
        +0 peer sends 10
        +0 > P. 2:12(10) ack 1
        +0 < .  1:1(0) ack 12
        +0 peer sends 1 urgent
        +0 > P. 12:13(1) ack 1
        +0 < .  1:1(0) ack 13
        +0 peer closes
        +0 > F. 13:13(0) ack 1
    """)


def test_a_queue_that_has_lost_bytes_is_a_connection_that_was_reset(conversation: Conversation) -> None:
    """What the guest has acknowledged must be there to be discarded."""
    conversation.opened()
    conversation("""
        +0 peer sends 1000
        +0 > P. 1:1001(1000) ack 1
        +0 kernel fails discard ECONNRESET
        +0 < .  1:1(0) ack 1001
        +0 > R. 1001:1001(0) ack 1
        +0 flow gone
        +0 closed peer_reset
    """)


def test_buffers_of_the_guest_that_are_gone_end_the_worker(conversation: Conversation) -> None:
    """EFAULT from recvmsg(): the memory has shrunk under us. No loop goes on for it."""
    conversation.opened()
    conversation("""
        +0 kernel fails recvmsg EFAULT
        +0 peer sends 1000
        +0 > nothing
    """)
    assert lib.script_memory_fault()


@pytest.mark.world(mtu=1280)
def test_no_segment_is_larger_than_the_mtu_allows(conversation: Conversation) -> None:
    """Whatever MTU the guest believes in: the view's is the link's."""
    conversation.opened("mss 8960,wscale 7")
    conversation("+0 peer sends 20000")
    for packet in conversation.world.inbox:
        assert segments.parse_segment(packet).gso_size in (0, conversation.our_mss)
    conversation("+0 > data 1:20001 ack 1")


def test_the_guests_mac_is_the_one_that_was_seen(conversation: Conversation) -> None:
    """Frames go to the address that the guest's own frames come from; world.py compares each."""
    conversation.opened()
    assert bytes(ffi.buffer(lib.script_seen().mac)) == segments.GUEST_MAC
