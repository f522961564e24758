# SPDX-License-Identifier: Apache-2.0
"""Peers of a guest that has said little or nothing yet: where it is sought, and how its MAC address is found."""

from __future__ import annotations

import pytest
from fake_core import lib
from segments import ACK, OUR_MAC, address, checksum, ip_packet, pseudo_header
from test_accept import Host
from test_accept_datagrams import Port, destination, moves
from world import GATEWAY, GUEST, OUR_LINK_LOCAL, World

GUEST_EUI = address("fe80::5054:ff:fe12:3456")  # of GUEST_MAC
OTHER_LINK_LOCAL = address("fe80::1234:5678:9abc:def0")
BROADCAST_MAC = b"\xff" * 6


def solicits_router(world: World, link_local: bytes) -> None:
    """All that a guest without ARP, like muvm's, ever says of its IPv6 by itself."""
    group = address("ff02::2")
    message = bytes((133, 0, 0, 0, 0, 0, 0, 0))
    sum_sent = checksum(pseudo_header(link_local, group, 58, len(message)) + message)
    message = message[:2] + sum_sent.to_bytes(2, "big") + message[4:]
    world.send(ip_packet(link_local, group, 58, message, hops=255))
    world.settle()


def test_a_guest_that_was_only_heard_to_seek_a_router_is_where_the_prefix_puts_it(world: World) -> None:
    """It made its link-local address of its MAC address, and so it makes all others, in silence without detection of
    duplicates. The address that DHCPv6 would give it, it may never have asked for."""
    solicits_router(world, GUEST_EUI)
    made = GUEST[6][:8] + GUEST_EUI[8:]
    assert destination(Port(world, 6)) == made


def test_a_connection_to_a_guest_that_was_only_heard_to_seek_a_router(world: World) -> None:
    solicits_router(world, GUEST_EUI)
    host = Host(world, 6)
    host.peer_connects()
    syn = host.segment()
    assert syn.packet.destination == GUEST[6][:8] + GUEST_EUI[8:]
    host.guest_answers(syn)
    assert host.segment().flags == ACK


@pytest.mark.parametrize("why", ["another way to make it", "no advertisements"])
def test_a_guest_whose_address_nobody_can_tell_is_reached_at_its_link_local_one(world: World, why: str) -> None:
    """Which it has for certain, whether it asked for its assigned one or not."""
    if why == "no advertisements":
        world.view.flags &= ~lib.LG_VIEW_RA
    link_local = GUEST_EUI if why == "no advertisements" else OTHER_LINK_LOCAL
    solicits_router(world, link_local)
    port = Port(world, 6)
    assert destination(port) == link_local
    used = moves(world, 6)
    world.advance(31)
    assert destination(port) == used


def who_has(question: bytes) -> tuple[bytes, bytes]:
    """Which address is asked for, and whose MAC address is to hear the answer."""
    if question[12:14] == b"\x08\x06":
        assert question[:6] == BROADCAST_MAC and question[14:22] == b"\0\1\x08\0\6\4\0\1"
        assert (question[28:32], question[32:38]) == (GATEWAY[4], bytes(6))
        return question[38:42], question[22:28]
    assert question[:6] == b"\x33\x33\xff" + question[75:78] and question[21] == 255
    assert (question[22:38], question[38:54]) == (OUR_LINK_LOCAL, address("ff02::1:ff00:0")[:13] + question[75:78])
    assert checksum(pseudo_header(OUR_LINK_LOCAL, question[38:54], 58, len(question) - 54) + question[54:]) == 0
    assert question[78:80] == b"\1\1"
    return question[62:78], question[80:86]


def test_a_guest_that_was_never_heard_is_asked_for_its_mac_address(world: World, family: int) -> None:
    """Its kernel takes no SYN that was sent to all; the answer is in time for the next."""
    host = Host(world, family)
    host.peer_connects()
    syn = host.segment()
    (question,) = world.questions
    assert who_has(question) == (GUEST[family], OUR_MAC)
    world.advance(1)
    assert host.segment().seq == syn.seq and len(world.questions) == 2
    host.guest_answers(syn)
    assert host.segment().flags == ACK
    host.peer_connects()
    assert len(world.questions) == 2


def test_a_guest_that_was_never_heard_is_asked_once_a_second_however_much_comes(world: World, family: int) -> None:
    port = Port(world, family)
    for _ in range(5):
        port.peer_sends(b"x")
    assert len(world.inbox) == 5 and len(world.questions) == 1
    world.advance(1)
    port.peer_sends(b"x")
    assert len(world.questions) == 2
    world.inbox.clear()


def test_a_guest_without_neighbour_discovery_is_not_asked(world: World) -> None:
    world.view.flags &= ~lib.LG_VIEW_NDP
    Port(world, 6).peer_sends(b"x")
    assert not world.questions and len(world.inbox) == 1
    world.inbox.clear()
