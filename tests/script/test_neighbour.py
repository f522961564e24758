# SPDX-License-Identifier: Apache-2.0
"""What the worker answers by itself: ARP, neighbour solicitations, and echo to the gateway's own addresses; and what it
hands to control. Adversary: a guest whose questions are cut off, or about itself."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ipaddress import IPv6Address

import pytest
import segments
from conversation import Conversation
from fake_core import ffi, lib
from segments import (
    GUEST_MAC,
    OUR_MAC,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    checksum,
    ip_packet,
    pseudo_header,
)
from world import GATEWAY, GUEST, OUR_LINK_LOCAL, PEER, World, mapped16

BROADCAST = b"\xff" * 6
GUEST_LINK_LOCAL = segments.address("fe80::15")


@pytest.fixture
def peek_off() -> bool:
    """Nothing here reads a socket."""
    return True


def arp(target: bytes, sender: bytes = GUEST[4], operation: int = 1, head: bytes = b"\0\1\x08\0\6\4") -> bytes:
    body = head + struct.pack("!H", operation) + GUEST_MAC + sender + bytes(6) + target
    return segments.ethernet(segments.ETHERTYPE_ARP, body, destination=BROADCAST)


def asked(world: World, *frames: bytes) -> World:
    for frame in frames:
        world.send(frame)
    world.settle()
    return world


@pytest.mark.parametrize("target", [GATEWAY[4], segments.address("192.0.2.77"), segments.address("8.8.8.8")])
def test_every_address_but_the_guests_own_is_ours(world: World, target: bytes) -> None:
    """The wire has one other end: whatever the guest asks for, it reaches through us."""
    (reply,) = asked(world, arp(target)).arp_replies
    body = b"\0\1\x08\0\6\4\0\2" + OUR_MAC + target + GUEST_MAC + GUEST[4]
    assert reply == GUEST_MAC + OUR_MAC + b"\x08\x06" + body
    assert world.counter("arp_replies") == 1


@pytest.mark.parametrize(
    "frame",
    [
        arp(GUEST[4]),  # a question for its own address
        arp(GUEST[4], sender=GUEST[4]),  # an announcement
        arp(segments.address("192.0.2.99"), sender=bytes(4)),  # a probe for an address that it would like (RFC 5227)
        arp(GATEWAY[4], operation=2),  # an answer
        arp(GATEWAY[4], head=b"\0\6\x08\0\6\4"),  # of another hardware
        arp(GATEWAY[4], head=b"\0\1\x86\xdd\6\x10"),
        arp(GATEWAY[4])[:41],  # cut off
        arp(GATEWAY[4])[:14],
    ],
)
def test_other_arp_is_not_answered(world: World, frame: bytes) -> None:
    """Its own address, a probe, an announcement, an answer, nonsense: a reply would take the address from the guest."""
    assert not asked(world, frame).arp_replies


def test_a_probe_for_the_gateways_address_is_answered(world: World) -> None:
    """RFC 5227, 2.1.1: that address is in use, by us."""
    assert len(asked(world, arp(GATEWAY[4], sender=bytes(4))).arp_replies) == 1


LAN = segments.address("192.0.2.77")
LAN_MAC, ROUTER_MAC, OTHER_MAC = bytes((2, 0, 0, 0, 0, 7)), bytes((2, 0, 0, 0, 0, 8)), bytes((2, 0, 0, 0, 0, 9))


def mirrored(*entries: tuple[bytes, bytes], others4: bytes = bytes(6), others6: bytes = bytes(6)) -> int:
    """What the worker says to a table of these."""
    listed = [{"address": mapped16(one), "mac": mac} for one, mac in entries]
    table = {"count": len(listed), "others4": others4, "others6": others6, "entry": listed}
    return int(lib.script_neighbours(ffi.new("struct lg_neighbours *", table)))


def test_a_neighbour_of_the_host_answers_under_its_own_mac(world: World) -> None:
    """In the answer, and as the source of the frame; who is not listed is behind the router of the family, or at us."""
    assert mirrored((LAN, LAN_MAC), (segments.address("192.0.2.99"), OTHER_MAC)) == 0
    (reply,) = asked(world, arp(LAN)).arp_replies
    assert reply == GUEST_MAC + LAN_MAC + b"\x08\x06" + b"\0\1\x08\0\6\4\0\2" + LAN_MAC + LAN + GUEST_MAC + GUEST[4]
    assert asked(world, arp(GATEWAY[4])).arp_replies[-1][6:12] == OUR_MAC
    assert mirrored((LAN, LAN_MAC), others4=ROUTER_MAC) == 0
    assert asked(world, arp(segments.address("8.8.8.8"))).arp_replies[-1][6:12] == ROUTER_MAC


def test_a_neighbour_of_ipv6_advertises_its_own_mac(world: World) -> None:
    target = segments.address("2001:db8::77")
    assert mirrored((target, LAN_MAC)) == 0
    world.peer_mac = LAN_MAC
    (packet,) = asked(world, solicitation(target)).inbox
    assert packet.frame[6:12] == LAN_MAC and packet.payload[8:] == target + b"\2\1" + LAN_MAC


def test_the_frames_of_a_flow_come_from_the_neighbour_that_it_is_with(
    world: World, talk: Callable[..., Conversation], family: int
) -> None:
    """As they would on the host's own network: all frames of the handshake and after it."""
    assert mirrored((PEER[family], LAN_MAC)) == 0
    world.peer_mac = LAN_MAC
    talk().opened()


def test_every_entry_of_a_full_table_is_found(world: World) -> None:
    """And none beside them."""
    addresses = [segments.address(f"10.0.{n // 128}.{n % 128 * 2}") for n in range(lib.LG_NEIGHBOURS_MAX)]
    assert mirrored(*((one, b"\2\0\0\0" + struct.pack("!H", n)) for n, one in enumerate(addresses))) == 0
    for number, one in enumerate(addresses):
        assert asked(world, arp(one)).arp_replies[-1][6:12] == b"\2\0\0\0" + struct.pack("!H", number)
    for outside in ("9.255.255.255", "10.0.1.1", "10.0.4.0"):
        assert asked(world, arp(segments.address(outside))).arp_replies[-1][6:12] == OUR_MAC


@pytest.mark.parametrize(
    "entries",
    [
        ((LAN, LAN_MAC), (LAN, OTHER_MAC)),  # twice
        ((segments.address("192.0.2.99"), OTHER_MAC), (LAN, LAN_MAC)),  # out of order
        ((LAN, BROADCAST),),
    ],
)
def test_a_table_that_cannot_be_searched_is_refused(world: World, entries: tuple[tuple[bytes, bytes], ...]) -> None:
    """Nor one with the MAC address of a group; what was there stays."""
    assert mirrored((LAN, LAN_MAC)) == 0
    assert mirrored(*entries) == mirrored(others4=BROADCAST) == -errno.EINVAL
    assert asked(world, arp(LAN)).arp_replies[-1][6:12] == LAN_MAC


def test_without_ipv4_nobody_answers_arp(world: World) -> None:
    """A view without LG_VIEW_IPV4 has no IPv4 neighbours."""
    world.view.flags &= ~lib.LG_VIEW_IPV4
    assert not asked(world, arp(GATEWAY[4])).arp_replies


def icmpv6(source: bytes, destination: bytes, message: bytes, hops: int = 255) -> bytes:
    message = message[:2] + b"\0\0" + message[4:]
    total = checksum(pseudo_header(source, destination, PROTOCOL_ICMPV6, len(message)) + message)
    message = message[:2] + struct.pack("!H", total) + message[4:]
    return ip_packet(source, destination, PROTOCOL_ICMPV6, message, hops=hops)


def solicitation(target: bytes, source: bytes = GUEST_LINK_LOCAL, hops: int = 255, code: int = 0) -> bytes:
    message = struct.pack("!BBHI", 135, code, 0, 0) + target + b"\1\1" + GUEST_MAC
    return icmpv6(source, segments.address("ff02::1:ff00:1"), message, hops)


@pytest.mark.parametrize("target", [GATEWAY[6], OUR_LINK_LOCAL, segments.address("2001:db8::77")])
def test_a_solicitation_is_answered_with_our_mac(world: World, target: bytes) -> None:
    """RFC 4861, 7.2.4: solicited, override, router, hop limit 255, and the checksum is right."""
    (packet,) = asked(world, solicitation(target)).inbox
    assert (packet.source, packet.destination, packet.protocol) == (target, GUEST_LINK_LOCAL, PROTOCOL_ICMPV6)
    assert packet.frame[21] == 255
    assert checksum(pseudo_header(target, GUEST_LINK_LOCAL, PROTOCOL_ICMPV6, len(packet.payload)) + packet.payload) == 0
    assert packet.payload[:2] == b"\x88\0" and packet.payload[4] == 0xE0
    assert packet.payload[8:] == target + b"\2\1" + OUR_MAC


@pytest.mark.parametrize(
    "frame",
    [
        solicitation(GUEST[6]),  # for itself
        solicitation(GUEST_LINK_LOCAL),
        solicitation(OUR_LINK_LOCAL, source=bytes(16)),  # detection of duplicates (RFC 4862, 5.4)
        solicitation(GATEWAY[6], hops=64),  # from beyond the link
        solicitation(GATEWAY[6], code=1),
        solicitation(segments.address("ff02::1")),
        icmpv6(GUEST_LINK_LOCAL, OUR_LINK_LOCAL, struct.pack("!BBHI", 135, 0, 0, 0) + bytes(8)),  # cut off
        icmpv6(GUEST_LINK_LOCAL, OUR_LINK_LOCAL, struct.pack("!BBHI", 136, 0, 0, 0) + GATEWAY[6]),  # an answer
    ],
)
def test_other_neighbour_discovery_is_not_answered(world: World, frame: bytes) -> None:
    """RFC 4861, 7.1.1 says which solicitations are to be looked at at all."""
    assert not asked(world, frame).inbox


def echo(family: int, destination: bytes, data: bytes = b"hello", kind: int | None = None) -> bytes:
    request = struct.pack("!BBHHH", kind if kind is not None else (8 if family == 4 else 128), 0, 0, 77, 1) + data
    if family == 6:
        return icmpv6(GUEST[6], destination, request, 64)
    request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
    return ip_packet(GUEST[4], destination, PROTOCOL_ICMP, request)


@pytest.mark.parametrize("size", [0, 1, 56, 1400, 9000, 65507 - 40])
@pytest.mark.parametrize(
    "destination", [GATEWAY[4], GATEWAY[6], OUR_LINK_LOCAL], ids=["gateway4", "gateway6", "link_local"]
)
def test_the_gateway_answers_echo(world: World, destination: bytes, size: int) -> None:
    """The same bytes come back, from the address that was asked, with a checksum that is right."""
    family = 4 if len(destination) == 4 else 6
    data = bytes(n % 251 for n in range(size))
    (packet,) = asked(world, echo(family, destination, data)).inbox
    assert (packet.source, packet.destination) == (destination, GUEST[family])
    assert packet.payload[:2] == (b"\0\0" if family == 4 else b"\x81\0")
    pseudo = pseudo_header(packet.source, packet.destination, PROTOCOL_ICMPV6, len(packet.payload))
    assert checksum((pseudo if family == 6 else b"") + packet.payload) == 0
    assert packet.payload[4:] == struct.pack("!HH", 77, 1) + data


def test_an_echo_over_small_pieces_is_put_together(world: World) -> None:
    """The request lies in pieces of 50 bytes."""
    world.set_link(piece_bytes=50, buffer_bytes=300)
    data = bytes(n % 251 for n in range(1000))
    (packet,) = asked(world, echo(4, GATEWAY[4], data)).inbox
    assert packet.payload[8:] == data


@pytest.mark.parametrize(
    "frame",
    [
        echo(4, PEER[4], kind=0),
        echo(6, PEER[6], kind=129),
        echo(4, GATEWAY[4], kind=0),
        echo(6, GATEWAY[6], kind=129),
        ip_packet(GUEST[4], GATEWAY[4], PROTOCOL_ICMP, b"\x08\0\0\0"),
        ip_packet(GUEST[4], GATEWAY[4], PROTOCOL_ICMPV6, bytes(8)),
        ip_packet(GUEST[6], GATEWAY[6], PROTOCOL_ICMP, b"\x08\0" + bytes(6)),
        ip_packet(GUEST[4], GATEWAY[4], 132, bytes(20)),
    ],
)
def test_what_nobody_here_answers_is_counted(world: World, frame: bytes) -> None:
    """Echo to others, answers, cut-off messages, the wrong ICMP for the family, protocols that we do not speak."""
    assert not asked(world, frame).inbox
    assert world.counter("drop_protocol") == 1


def test_echo_can_be_switched_off(world: World) -> None:
    """--no-icmp."""
    world.view.flags &= ~lib.LG_VIEW_ICMP
    assert not asked(world, echo(4, GATEWAY[4]), echo(6, GATEWAY[6])).inbox


def test_answers_that_find_no_room_are_counted(world: World) -> None:
    """Nobody repeats them but the guest."""
    lib.script_set_room(0)
    asked(world, arp(GATEWAY[4]), solicitation(GATEWAY[6]), echo(4, GATEWAY[4]))
    assert world.counter("drop_no_room") == 3 and not world.inbox


def test_a_buffer_that_does_not_hold_the_answer_is_no_room(world: World) -> None:
    """The link gives less than was asked for; half an answer is none, and the buffer is given back."""
    world.set_link(buffer_bytes=30, merge=False)
    asked(world, arp(GATEWAY[4]), solicitation(GATEWAY[6]))
    assert world.counter("drop_no_room") == 2 and not world.arp_replies


def test_without_a_driver_nobody_is_answered(world: World) -> None:
    """Frames for a guest that has no driver are counted by themselves."""
    world.set_link(connected=False)
    asked(world, arp(GATEWAY[4]))
    assert world.counter("drop_disconnected") == 1


@pytest.mark.parametrize("family, flag", [(4, lib.LG_VIEW_IPV4), (6, lib.LG_VIEW_IPV6)])
def test_a_family_that_is_switched_off_is_dropped(world: World, family: int, flag: int) -> None:
    """-4 and -6: packets of the other family reach nobody."""
    world.view.flags &= ~flag
    ends = segments.Ends(GUEST[family], 4000, PEER[family], 80)
    asked(world, ends.tcp_head(segments.SYN, 1, 0, 1000), echo(family, GATEWAY[family]))
    assert not world.flows() and not world.inbox
    assert world.counter("drop_protocol") == 2


def test_dhcp_and_router_solicitations_go_to_control(world: World) -> None:
    """They are punted, with what they are answered from there; other UDP is not."""
    dhcp = struct.pack("!HHHH", 68, 67, 8 + 240, 0) + bytes(240)
    other = struct.pack("!HHHH", 68, 6767, 8, 0)
    router = icmpv6(GUEST_LINK_LOCAL, segments.address("ff02::2"), struct.pack("!BBHI", 133, 0, 0, 0))
    asked(
        world,
        ip_packet(bytes(4), b"\xff" * 4, PROTOCOL_UDP, dhcp),
        ip_packet(GUEST[4], PEER[4], PROTOCOL_UDP, other),
        router,
    )
    assert lib.script_punts() == 2 and world.counter("datagram_opened") == 1


def test_what_is_seen_of_the_guest_is_remembered(world: World) -> None:
    """Its MAC and its three addresses, by family and scope; nobody's address is none."""
    mac = bytes.fromhex("02aabbccddee")
    frame = echo(4, PEER[4])
    asked(world, frame[:6] + mac + frame[12:], echo(6, PEER[6]), solicitation(GATEWAY[6]))
    asked(world, frame[:6] + b"\xff" * 6 + frame[12:])
    seen = world.seen
    assert bytes(seen.mac) == GUEST_MAC
    assert bytes(seen.addr4)[12:] == GUEST[4]
    assert (bytes(seen.addr6), bytes(seen.link_local)) == (GUEST[6], GUEST_LINK_LOCAL)


def test_an_address_that_the_guest_is_about_to_take_is_remembered_until_it_speaks(world: World) -> None:
    """Detection of duplicates (RFC 4862, 5.4): a guest that only answers says nothing else of its address."""
    tentative = segments.address("2001:db8::abcd")
    asked(world, solicitation(tentative, source=bytes(16)))
    assert bytes(world.seen.addr6) == tentative
    asked(world, echo(6, PEER[6]))
    assert bytes(world.seen.addr6) == GUEST[6]
    asked(world, solicitation(tentative, source=bytes(16)))
    assert bytes(world.seen.addr6) == GUEST[6]


def test_neighbours_do_not_speak_in_fragments(world: World) -> None:
    """RFC 6980, 5: not even in one that is all of its packet, in which an echo request is as good as any."""
    for asks, answers in ((echo(6, GATEWAY[6]), 1), (solicitation(GATEWAY[6]), 0)):
        atomic = bytes([PROTOCOL_ICMPV6]) + bytes(7) + asks[54:]
        asked(world, ip_packet(asks[22:38], asks[38:54], 44, atomic, hops=255))
        assert len(world.inbox) == answers
        world.inbox.clear()


def test_ipv6_extension_headers_are_passed_over(world: World) -> None:
    """RFC 8200, 4.1: hop-by-hop options and destination options before an echo request."""
    plain = echo(6, GATEWAY[6])[54:]
    chain = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([PROTOCOL_ICMPV6, 1]) + bytes([1, 12]) + bytes(12)
    (packet,) = asked(world, ip_packet(GUEST[6], GATEWAY[6], 0, chain + plain)).inbox
    assert packet.payload[:2] == b"\x81\0" and packet.payload[8:] == b"hello"


@pytest.mark.parametrize(
    "source, destination", [("2001:db8::15", "::ffff:192.0.2.1"), ("::ffff:192.0.2.15", "2001:db8::1")]
)
def test_ipv4_addresses_do_not_travel_in_ipv6(world: World, source: str, destination: str) -> None:
    """A mapped address in an IPv6 header would be taken for IPv4 further on, past what the view allows."""
    ends = segments.Ends(IPv6Address(source).packed, 4000, IPv6Address(destination).packed, 80)
    asked(world, ends.tcp_head(segments.SYN, 1, 0, 1000), ends.tcp_head(segments.ACK, 1, 0, 1000))
    assert not world.flows() and not world.inbox
    assert world.counter("drop_address") == 2
