# SPDX-License-Identifier: Apache-2.0
"""How connections of the guest's begin, and how they are refused.

Adversary: a guest that repeats and contradicts itself."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import segments
from conversation import Conversation
from fake_core import ffi, lib
from world import MAPPED, OUR_LINK_LOCAL, PEER, World, mapped16

Talk = Callable[..., Conversation]


def test_syn_ack_waits_for_the_peer(conversation: Conversation) -> None:
    """The guest gets its SYN-ACK when the host's connect() has succeeded, and not before."""
    conversation("""
        +0    < S  0:0(0) win 64240 <mss 1460,wscale 7>
        +2.5  > nothing
        +0    flow SYN SYN
        +0    peer accepts
        +0    > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8>
        +0    flow SYN OPEN
        +0    < .  1:1(0) ack 1
        +0    flow OPEN OPEN
        +9    > nothing
    """)


def test_the_peer_is_who_the_guest_asked_for(conversation: Conversation) -> None:
    """The host connects to the address and port of the guest's SYN, with Nagle off and urgent data in band."""
    conversation("+0 < S 0:0(0)")
    socket = conversation.socket
    assert (bytes(socket.address), socket.port) == (mapped16(PEER[conversation.family]), 80)
    assert socket.nodelay and socket.oob_inline


def test_the_mapped_gateway_is_the_hosts_loopback(talk: Talk, family: int) -> None:
    """A connection to the address that the view maps goes to the host's own 127.0.0.1 or ::1."""
    conversation = talk(remote=MAPPED[family])
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 <mss ours>
    """)
    loopback = bytes(10) + b"\xff\xff\x7f\0\0\1" if family == 4 else bytes(15) + b"\1"
    assert bytes(conversation.socket.address) == loopback


@pytest.mark.parametrize(
    ("hops", "traffic_class", "carried_hops", "carried_class"),
    [
        (64, 0, 0, 0),
        (1, 0, 1, 0),
        (255, 0, 255, 0),
        (0, 0, 0, 0),
        (64, 0xB8, 0, 0xB8),
        (64, 0xBB, 0, 0xB8),
        (64, 3, 0, 0),
    ],
)
def test_hops_and_traffic_class_are_carried(
    conversation: Conversation, hops: int, traffic_class: int, carried_hops: int, carried_class: int
) -> None:
    """TTL or hop limit and DSCP of the guest's SYN are the socket's; ECN is each connection's own."""
    frame = bytearray(conversation.ends.tcp_head(segments.SYN, conversation.guest_isn, 0, 1000))
    if conversation.family == 4:
        frame[22], frame[15] = hops, traffic_class
    else:
        frame[21], frame[14:16] = hops, struct.pack("!H", 6 << 12 | traffic_class << 4)
    conversation.world.send(bytes(frame))
    conversation.world.settle()
    conversation._learn()
    socket = conversation.socket
    assert (socket.hops, socket.traffic_class) == (carried_hops, carried_class)


def test_the_router_of_our_advertisements_is_the_hosts_loopback_too(world: World) -> None:
    """It is what the guest takes for its gateway; with the mapping off it is the interface's own address."""
    world.view.flags |= lib.LG_VIEW_MAP_ROUTER
    mapped = Conversation(world, 6, guest_port=40000, remote=OUR_LINK_LOCAL)
    mapped("+0 < S 0:0(0)")
    assert bytes(mapped.socket.address) == bytes(15) + b"\1"
    mapped.finish()


def test_link_local_peers_are_sought_on_the_views_interface(world: World) -> None:
    """Without its number connect() refuses such an address."""
    world.view.scope_id = 7
    conversation = Conversation(world, 6, guest_port=40000, remote=OUR_LINK_LOCAL)
    conversation("+0 < S 0:0(0)")
    assert (bytes(conversation.socket.address), conversation.socket.scope_id) == (OUR_LINK_LOCAL, 7)
    conversation.finish()


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        ("", "mss ours"),
        ("mss 1460", "mss ours"),
        ("mss 1460,wscale 0", "mss ours,wscale 8"),
        ("mss 1460,sackOK", "mss ours,sackOK"),
        ("mss 1460,sackOK,wscale 14", "mss ours,wscale 8,sackOK"),
        ("mss 1460,raw 080a0000000100000000", "mss ours"),
        ("raw 0101010100", "mss ours"),
        ("raw 02ff05b4", "mss ours"),
        ("raw 0200", "mss ours"),
        ("raw 01010303", "mss ours"),
    ],
)
def test_only_what_was_offered_is_answered(conversation: Conversation, offered: str, answered: str) -> None:
    """Window scale and SACK are in our SYN-ACK only if they were in the SYN; timestamps never; nonsense is nothing."""
    conversation(f"""
        +0 < S  0:0(0) <{offered}>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 <{answered}>
    """)


@pytest.mark.world(mtu=65520)
def test_our_mss_of_many_pages_is_whole_pages(conversation: Conversation) -> None:
    conversation("""
        +0 < S 0:0(0) win 65535 <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 <mss 61440>
    """)


@pytest.mark.world(mtu=9000)
def test_our_mss_is_what_the_mtu_leaves(conversation: Conversation) -> None:
    """The MSS that we offer follows from the view's MTU."""
    assert conversation.our_mss == (8960 if conversation.family == 4 else 8940)
    conversation("""
        +0 < S  0:0(0) <mss 8960>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 <mss ours>
    """)


def test_a_syn_repeated_while_connecting_is_ignored(conversation: Conversation) -> None:
    """The guest's own retransmissions of its SYN change nothing while connect() is under way."""
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +1 < S  0:0(0) <mss 1460>
        +2 < S  0:0(0) <mss 1460>
        +1 > nothing
        +0 calls connect 1
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 woken 1 idle 0
    """)


def test_a_lost_syn_ack_is_sent_again_unchanged_by_the_timer(conversation: Conversation) -> None:
    """RFC 6298: after one second, then twice as long each time, with the same numbers and options."""
    conversation("""
        +0 < S  0:0(0) <mss 1460,sackOK,wscale 7>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8,sackOK>
        +1 > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8,sackOK>
        +2 > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8,sackOK>
        +4 > S. 0:0(0) ack 1 win 65280 <mss ours,wscale 8,sackOK>
        +1 < .  1:1(0) ack 1
        +9 > nothing
        +0 flow OPEN OPEN
    """)


def test_a_lost_syn_ack_is_sent_again_unchanged_for_a_repeated_syn(conversation: Conversation) -> None:
    """A SYN that comes again after ours was sent means that ours was lost."""
    conversation("""
        +0  < S  0:0(0) <mss 1460>
        +0  peer accepts
        +0  > S. 0:0(0) ack 1 <mss ours>
        +.5 < S  0:0(0) <mss 1460>
        +0  > S. 0:0(0) ack 1 <mss ours>
        +0  < .  1:1(0) ack 1
        +9  > nothing
    """)


def test_a_guest_that_never_completes_the_handshake_is_given_up(conversation: Conversation) -> None:
    """After six repetitions of the SYN-ACK both sides get RST."""
    conversation("""
        +0  < S  0:0(0) <mss 1460>
        +0  peer accepts
        +0  > S. 0:0(0) ack 1
        +1  > S. 0:0(0) ack 1
        +2  > S. 0:0(0) ack 1
        +4  > S. 0:0(0) ack 1
        +8  > S. 0:0(0) ack 1
        +16 > S. 0:0(0) ack 1
        +32 > S. 0:0(0) ack 1
        +60 > R. 1:1(0) ack 1
        +0  peer sees RST
        +0  closed timed_out
        +0  flow gone
    """)


def test_another_syn_on_an_open_connection_is_challenged(conversation: Conversation) -> None:
    """RFC 5961, 4.2: a SYN with other numbers gets an ACK, to which a guest that was restarted answers RST."""
    conversation.opened()
    conversation("""
        +0 < S 77777:77777(0) <mss 1460>
        +0 > . 1:1(0) ack 1
        +0 < R 1:1(0)
        +0 peer sees RST
        +0 flow gone
    """)


def test_an_ack_of_what_we_never_sent_does_not_open_the_connection(conversation: Conversation) -> None:
    """The third segment of the handshake has to acknowledge our SYN; another is reset, and leaves this one as it is
    (RFC 9293, 3.10.7.4, fifth)."""
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 < .  1:1(0) ack 500
        +0 > R. 500:500(0) ack 1
        +0 flow SYN OPEN
        +0 < .  1:1(0) ack 1
        +0 flow OPEN OPEN
    """)


def test_data_may_come_with_the_ack_of_our_syn(conversation: Conversation) -> None:
    """The last segment of the handshake carries the request, as many guests send it."""
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 < P. 1:501(500) ack 1
        +0 > .  1:1(0) ack 501
        +0 peer got 500
    """)


def test_data_in_the_syn_is_left_to_the_guest_to_repeat(conversation: Conversation) -> None:
    """There is nobody yet to give it to, so it is not acknowledged."""
    conversation("""
        +0 < S  0:100(100) <mss 1460>
        +0 peer accepts
        +0 > S. 0:0(0) ack 1
        +0 < P. 1:101(100) ack 1
        +0 > .  1:1(0) ack 101
        +0 peer got 100
    """)


def test_data_of_the_peer_waits_for_the_handshake(conversation: Conversation) -> None:
    """A peer that speaks first is heard when the guest has acknowledged our SYN."""
    conversation("""
        +0 < S  0:0(0) <mss 1460>
        +0 peer accepts        ...
        +0 peer sends 600
        +0 > S. 0:0(0) ack 1
        +0 < .  1:1(0) ack 1
        +0 > P. 1:601(600) ack 1
    """)


def test_a_peer_that_speaks_first_wakes_once_before_the_handshake_ends(conversation: Conversation) -> None:
    """What cannot go to the guest yet must not wake us with every segment: that is a stall as any other."""
    conversation("""
        +0  < S  0:0(0) <mss 1460,wscale 7>
        +0  peer accepts
        +0  > S. 0:0(0) ack 1
        +0  forget
    """)
    for _ in range(10):
        conversation("+0 peer sends 1000")
    woken = conversation.world.wakeups(conversation.fd, conversation._wakeups_seen)
    assert len(woken) <= 2
    conversation("+0 < . 1:1(0) ack 1").world.settle()
    conversation("+0 > data 1:10001 ack 1")


def test_a_refused_connection_is_reset(conversation: Conversation) -> None:
    """The guest's connect() sees ECONNREFUSED: RST with the ACK of its SYN."""
    conversation("""
        +0  < S  0:0(0) <mss 1460>
        +.3 peer refuses ECONNREFUSED
        +0  > R. 0:0(0) ack 1
        +0  flow gone
        +0  closed refused
    """)


@pytest.mark.parametrize("error", ["ETIMEDOUT", "ECONNRESET"])
def test_a_connection_that_fails_otherwise_is_reset(conversation: Conversation, error: str) -> None:
    """Whatever else ends connect() is a RST to the guest."""
    conversation(f"""
        +0   < S  0:0(0) <mss 1460>
        +127 peer refuses {error}
        +0   > R. 0:0(0) ack 1
        +0   flow gone
    """)


CODES = {
    "EHOSTUNREACH": {4: "3/1", 6: "1/3"},
    "ENETUNREACH": {4: "3/0", 6: "1/0"},
    "EACCES": {4: "3/13", 6: "1/1"},
}


@pytest.mark.parametrize("error", CODES)
def test_an_unreachable_peer_is_an_icmp_error_first_and_a_reset_next(conversation: Conversation, error: str) -> None:
    """The first SYN gets an ICMP error, the next of the same connection a RST, and then it begins anew."""
    code = CODES[error][conversation.family]
    conversation(f"""
        +0 < S 0:0(0) <mss 1460>
        +0 peer refuses {error}
        +0 > icmp {code}
        +0 flow gone
        +1 < S 0:0(0) <mss 1460>
        +0 peer refuses {error}
        +0 > R. 0:0(0) ack 1
        +2 < S 0:0(0) <mss 1460>
        +0 peer refuses {error}
        +0 > icmp {code}
    """)


def test_a_peer_that_is_unreachable_at_once_is_an_icmp_error_too(conversation: Conversation) -> None:
    """connect() itself may say so: there is no route."""
    code = CODES["ENETUNREACH"][conversation.family]
    conversation(f"""
        +0 kernel fails connect ENETUNREACH
        +0 < S 0:0(0) <mss 1460>
        +0 > icmp {code}
        +0 flow gone
    """)


def test_without_an_address_of_the_gateway_unreachable_is_a_reset(conversation: Conversation) -> None:
    """An ICMP error needs a source; a view without gateway has none."""
    view = conversation.world.view
    ffi.memmove(view.gateway4, bytes(16), 16)
    ffi.memmove(view.gateway6, bytes(16), 16)
    conversation("""
        +0 < S 0:0(0) <mss 1460>
        +0 peer refuses EHOSTUNREACH
        +0 > R. 0:0(0) ack 1
    """)


def test_a_guest_that_gives_up_while_connecting_is_forgotten(conversation: Conversation) -> None:
    """RST before the handshake ends closes the host's socket."""
    conversation("""
        +0 < S 0:0(0) <mss 1460>
        +0 < R 1:1(0)
        +0 flow gone
        +0 closed guest_reset
        +9 > nothing
    """)


@pytest.mark.parametrize("call", ["socket", "epoll_ctl"])
def test_a_host_without_descriptors_refuses(conversation: Conversation, call: str) -> None:
    """When the host gives no socket the guest gets a RST, not silence."""
    conversation(f"""
        +0 kernel fails {call} EMFILE
        +0 < S 0:0(0) <mss 1460>
        +0 > R. 0:0(0) ack 1
        +0 flow gone
        +0 closed no_descriptor
    """)


REMOTES = {
    4: ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255"],
    6: ["::1", "::", "ff02::1", "::ffff:127.0.0.1"],
}


def test_nobody_connects_to_loopback_or_multicast(talk: Talk, world: World, family: int) -> None:
    """A guest must not reach the host's own loopback by its address, nor call a group."""
    for remote in REMOTES[family]:
        before = world.counter("drop_address")
        conversation = talk(remote=segments.address(remote))
        conversation("+0 < S 0:0(0) <mss 1460>")
        assert world.counter("drop_address") == before + 1, remote
    assert lib.fake_last_socket() == -1


def test_switched_off_protocols_reach_nobody(talk: Talk, world: World) -> None:
    """Without LG_VIEW_TCP a SYN is dropped, and counted."""
    world.view.flags &= ~lib.LG_VIEW_TCP
    talk()("+0 < S 0:0(0)")
    assert world.counter("drop_protocol") == 1
    assert lib.fake_last_socket() == -1
