# SPDX-License-Identifier: Apache-2.0
"""Datagrams from peers to ports of the host that lead to the guest, and where the guest is, for these and others."""

from __future__ import annotations

import struct

import pytest
from fake_core import ffi, lib
from segments import address, checksum, ip_packet, pseudo_header
from world import GATEWAY, GUEST, MAPPED, PEER, World, mapped16

UDP = 17
IPPROTO_IP, IP_PKTINFO, IPPROTO_IPV6, IPV6_RECVPKTINFO = 0, 8, 41, 49
PORT, PEER_PORT = 8080, 55555
ANY = bytes(16)
LOOPBACK = {4: bytes((127, 0, 0, 1)), 6: bytes(15) + b"\1"}
HERE = {4: bytes((192, 0, 2, 200)), 6: b"\x20\x01\x0d\xb8" + bytes(11) + b"\xc8"}  # an address of the host


class Port:
    """A UDP port of the host that leads to the guest."""

    def __init__(self, world: World, family: int, slot: int = 0, target: bytes = ANY) -> None:
        self.world, self.family = world, family
        self.fd = lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0)
        on = ffi.new("int *", 1)
        for level, name in ((IPPROTO_IP, IP_PKTINFO), (IPPROTO_IPV6, IPV6_RECVPKTINFO)):
            assert lib.sys_setsockopt(self.fd, level, name, on, 4) == 0
        assert lib.script_listen(slot, self.fd, UDP, PORT, target) == 0

    def peer_sends(
        self,
        data: bytes,
        source: bytes | None = None,
        port: int = PEER_PORT,
        to: bytes | None = None,
        segment: int = 0,
        here: bytes | None = None,
    ) -> None:
        """To an address of the host's, or to a group or broadcast address that it hears there."""
        here, peer = mapped16(here or HERE[self.family]), mapped16(source or PEER[self.family])
        there = here if to is None else mapped16(to)
        assert lib.fake_datagram_arrive_from(self.fd, peer, port, there, here, data, len(data), segment) == 0
        self.world.settle()

    def guest_gets(self) -> list[tuple[bytes, int, int, bytes]]:
        """Source, both ports, payload."""
        found = []
        for packet in self.world.inbox:
            source, destination, length, check = struct.unpack("!HHHH", packet.payload[:8])
            assert packet.protocol == UDP and length == len(packet.payload)
            pseudo = pseudo_header(packet.source, packet.destination, UDP, length)
            assert not packet.offload.needs_csum or check == ~checksum(pseudo) & 0xFFFF
            found.append((packet.source, source, destination, packet.payload[8:]))
        self.world.inbox.clear()
        return found

    def guest_sends(self, *payloads: bytes, to: bytes | None = None, port: int = PEER_PORT) -> None:
        for payload in payloads:
            header = struct.pack("!HHHH", PORT, port, 8 + len(payload), 0)
            remote = to or PEER[self.family]
            self.world.send(ip_packet(GUEST[self.family], remote, UDP, header + payload))
        self.world.settle()

    def sent(self) -> list[tuple[bytes, int, bytes, bytes]]:
        """Whom to, from which of the host's addresses, and what."""
        buffer, found = ffi.new("uint8_t[]", 1 << 16), []
        while (length := lib.fake_datagram_sent(self.fd, buffer, 1 << 16)) >= 0:
            to = bytes(ffi.buffer(lib.fake_datagram_sent_to(), 16))
            here = bytes(ffi.buffer(lib.fake_datagram_sent_from(), 16))
            found.append((to, int(lib.fake_datagram_sent_port()), here, bytes(ffi.buffer(buffer, length))))
        return found


@pytest.fixture(name="port")
def open_port(world: World, family: int) -> Port:
    return Port(world, family)


def test_a_peers_datagram_and_the_guests_answer(port: Port) -> None:
    """The answer goes out of the port that was asked, from the address that was asked."""
    port.peer_sends(b"question")
    assert port.guest_gets() == [(PEER[port.family], PEER_PORT, PORT, b"question")]
    port.guest_sends(b"answer", b"more!!")
    peer, here = mapped16(PEER[port.family]), mapped16(HERE[port.family])
    assert port.sent() == [(peer, PEER_PORT, here, b"answer"), (peer, PEER_PORT, here, b"more!!")]
    assert lib.fake_sockets_open() == 1


def test_who_comes_by_ipv6_to_a_port_that_leads_to_ipv4_is_shown_as_the_host_and_answered(world: World) -> None:
    """Two who have one port are told apart by another."""
    port = Port(world, 4, target=mapped16(GUEST[4]))
    for peer in (PEER[6], LOOPBACK[6]):
        port.peer_sends(b"question", peer, here=HERE[6])
    assert port.guest_gets() == [(GATEWAY[4], PEER_PORT + number, PORT, b"question") for number in range(2)]
    for number, peer in enumerate((PEER[6], LOOPBACK[6])):
        port.guest_sends(b"answer", to=GATEWAY[4], port=PEER_PORT + number)
        assert port.sent() == [(peer, PEER_PORT, HERE[6], b"answer")]


def test_an_answer_leaves_from_the_address_that_was_asked_last(port: Port) -> None:
    for here in (HERE[port.family], MAPPED[port.family]):
        port.peer_sends(b"question", here=here)
        port.guest_sends(b"answer")
        assert port.sent() == [(mapped16(PEER[port.family]), PEER_PORT, mapped16(here), b"answer")]
    assert len(port.world.flows()) == 1


def test_an_answer_leaves_by_the_port_that_was_asked(world: World, family: int) -> None:
    """Two ports of the host lead to one of the guest's, which tells the two apart by the peer's port. Cause: the
    answer to the first left by the second, once that had been asked, too."""
    ports, peer = [Port(world, family, slot) for slot in range(2)], mapped16(PEER[family])
    for port in ports:
        port.peer_sends(b"question")
    assert [shown for _, shown, _, _ in ports[0].guest_gets()] == [PEER_PORT, PEER_PORT + 1]
    for number, port in enumerate(ports):
        port.guest_sends(b"answer", port=PEER_PORT + number)
        assert port.sent() == [(peer, PEER_PORT, mapped16(HERE[family]), b"answer")]
    assert len(world.flows()) == 2
    lib.script_listen_close(1, 1)
    world.settle()
    assert [flow.remote_port for flow in world.flows()] == [PEER_PORT]


def test_a_question_and_its_answer_are_remembered_for_less_time_than_a_conversation(port: Port) -> None:
    port.peer_sends(b"question")
    port.guest_sends(b"answer")
    port.world.advance(31)
    assert not port.world.flows()
    for _ in range(2):
        port.peer_sends(b"question")
        port.guest_sends(b"answer")
    port.world.advance(119)
    assert len(port.world.flows()) == 1
    port.world.advance(2)
    assert not port.world.flows()
    port.world.inbox.clear()
    port.sent()


def test_of_several_ports_the_guest_speaks_from_the_one_with_its_own_number(world: World, family: int) -> None:
    """Whichever was opened last."""
    fds = []
    for slot, number in enumerate((PORT, 6363)):
        fds.append(lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0))
        assert lib.fake_bind(fds[slot], number) == 0
        assert lib.script_listen(slot, fds[slot], UDP, PORT, ANY) == 0
    header = struct.pack("!HHHH", PORT, 9, 8 + 2, 0)
    world.send(ip_packet(GUEST[family], PEER[family], UDP, header + b"hi"))
    world.settle()
    assert [lib.fake_socket_at(fd).out_count for fd in fds] == [1, 0]


def test_a_guest_that_speaks_first_does_so_from_the_port_that_leads_to_it(port: Port) -> None:
    """To whom it speaks there is to know it by one port, and whoever hears of that reaches it."""
    assert lib.fake_bind(port.fd, PORT) == 0
    peer = mapped16(PEER[port.family])
    port.guest_sends(b"hello", port=9)
    assert port.sent() == [(peer, 9, ANY, b"hello")]
    port.peer_sends(b"who is there?", port=9)
    assert port.guest_gets() == [(PEER[port.family], 9, PORT, b"who is there?")]
    assert len(port.world.flows()) == 1 and lib.fake_sockets_open() == 1
    assert port.world.counter("udp_port_taken") == 0
    lib.script_listen_close(0, 1)
    port.world.settle()
    assert not port.world.flows()


@pytest.mark.parametrize("why", ["outbound", "redirected", "another guest address"])
def test_a_guest_that_speaks_first_leaves_by_another_port_where_the_answer_would_not_find_it(
    port: Port, why: str
) -> None:
    """It has to leave by a certain address; or the peer has another name; or the port leads elsewhere."""
    family, view = port.family, port.world.view
    assert lib.fake_bind(port.fd, PORT) == 0
    if why == "outbound":
        ffi.memmove(getattr(view, f"outbound{family}"), mapped16(HERE[family]), 16)
    elif why == "redirected":
        ffi.memmove(getattr(view, f"dns_match{family}"), mapped16(PEER[family]), 16)
        ffi.memmove(getattr(view, f"dns_host{family}"), mapped16(HERE[family]), 16)
    else:
        lib.script_listen_close(0, 1)
        other = Port(port.world, family, target=mapped16(HERE[family]))
        assert lib.fake_bind(other.fd, PORT) == 0
    port.guest_sends(b"x", port=53)
    last = lib.fake_socket_at(lib.fake_last_socket())
    assert last.own_port == 0 and last.out_count == 1 and port.world.counter("udp_port_taken") == 1


def test_two_peers_are_told_apart(port: Port) -> None:
    port.peer_sends(b"a", port=1001)
    port.peer_sends(b"b", port=1002)
    assert [(source, data) for _, source, _, data in port.guest_gets()] == [(1001, b"a"), (1002, b"b")]
    port.guest_sends(b"to b", port=1002)
    assert [(to_port, data) for _, to_port, _, data in port.sent()] == [(1002, b"to b")]


def test_the_hosts_loopback_is_shown_by_its_other_name_and_answered(port: Port) -> None:
    port.peer_sends(b"x", source=LOOPBACK[port.family])
    assert port.guest_gets()[0][0] == MAPPED[port.family]
    port.guest_sends(b"y", to=MAPPED[port.family])
    assert port.sent()[0][0] == mapped16(LOOPBACK[port.family])


def test_datagrams_of_a_port_that_is_closed_end_and_those_of_others_go_on(world: World, family: int) -> None:
    """What the guest answers must leave by the port that was asked, so that without it there is no flow."""
    closing, staying = Port(world, family, 3), Port(world, family, 4)
    closing.peer_sends(b"x", port=1001)
    staying.peer_sends(b"y", port=1002)
    staying.guest_gets()
    lib.script_listen_close(3, 1)
    world.settle()
    assert lib.fake_socket_at(closing.fd).closed and len(world.flows()) == 1
    staying.guest_sends(b"answer", port=1002)
    assert [data for _, _, _, data in staying.sent()] == [b"answer"]


def test_such_a_flow_ends_by_silence_and_the_port_stays(port: Port) -> None:
    port.peer_sends(b"x")
    port.guest_gets()
    port.world.advance(31)
    assert not port.world.flows()
    port.peer_sends(b"y")
    assert len(port.guest_gets()) == 1


def test_datagrams_for_a_guest_without_buffers_wait(port: Port) -> None:
    """Nobody is woken by the port meanwhile."""
    lib.script_set_room(0)
    port.peer_sends(b"first")
    woken = len(port.world.wakeups(port.fd))
    for number in range(5):
        port.peer_sends(bytes([number]))
    assert not port.world.inbox and len(port.world.wakeups(port.fd)) == woken
    lib.script_give_room(3)
    port.world.settle()
    assert [data for *_, data in port.guest_gets()] == [b"first", b"\0", b"\1"]
    lib.script_give_room(1 << 20)
    port.world.settle()
    assert [data for *_, data in port.guest_gets()] == [b"\2", b"\3", b"\4"]


def test_a_port_is_heard_while_anothers_datagrams_wait_for_room_and_after(world: World, family: int) -> None:
    ports = [Port(world, family, slot) for slot in range(2)]
    lib.script_set_room(0)
    for port in ports:
        port.peer_sends(b"%d" % port.fd)
    lib.script_give_room(1 << 20)
    world.settle()
    assert [data for *_, data in ports[0].guest_gets()] == [b"%d" % port.fd for port in ports]


def test_a_port_that_is_closed_while_its_datagrams_wait_takes_them_along(world: World, family: int) -> None:
    closing, staying = Port(world, family, 3), Port(world, family, 4)
    lib.script_set_room(0)
    closing.peer_sends(b"gone")
    closing.peer_sends(b"never read")
    staying.peer_sends(b"y")
    lib.script_listen_close(3, 1)
    lib.script_give_room(1 << 20)
    world.settle()
    assert [data for *_, data in staying.guest_gets()] == [b"y"]
    assert world.counter("datagrams_turned_away") == 1


def test_a_guest_that_leaves_takes_along_what_waits_for_it(port: Port) -> None:
    """The next one hears nothing of it; nor does anybody spin."""
    lib.script_set_room(0)
    port.peer_sends(b"x")
    port.world.set_link(connected=False)
    lib.script_attach()  # as the worker does when a link ends
    port.world.settle()
    port.peer_sends(b"y")
    port.world.set_link(connected=True)
    lib.script_give_room(1 << 20)
    lib.script_attach()
    port.world.settle()
    assert not port.guest_gets() and port.world.counter("drop_disconnected") == 2


GROUP = {4: address("239.1.2.3"), 6: address("ff05::1:3")}


def test_what_a_group_was_asked_the_guest_hears_as_such(port: Port) -> None:
    """And what it answers comes from the host's own address, or from whatever the kernel chooses."""
    port.peer_sends(b"anybody?", to=GROUP[port.family])
    (packet,) = port.world.inbox
    assert (packet.source, packet.destination) == (PEER[port.family], GROUP[port.family])
    assert port.guest_gets()[0][3] == b"anybody?"
    port.guest_sends(b"I am")
    here = mapped16(HERE[4]) if port.family == 4 else bytes(16)
    assert port.sent() == [(mapped16(PEER[port.family]), PEER_PORT, here, b"I am")]


def test_a_port_that_leads_to_an_address_of_its_own_hears_groups_there(world: World, family: int) -> None:
    port = Port(world, family, target=mapped16(HERE[family]))
    port.peer_sends(b"x", to=GROUP[family])
    assert world.inbox[0].destination == HERE[family]
    world.inbox.clear()


def test_a_broadcast_is_answered_from_the_hosts_own_address(world: World) -> None:
    """No socket may send from a broadcast address."""
    port = Port(world, 4)
    port.peer_sends(b"x", to=address("192.0.2.255"))
    (packet,) = world.inbox
    assert packet.destination == GUEST[4]
    world.inbox.clear()
    port.guest_sends(b"y")
    assert port.sent() == [(mapped16(PEER[4]), PEER_PORT, mapped16(HERE[4]), b"y")]


# ---- where the guest is ----


def moves(world: World, family: int) -> bytes:
    """The guest sends from another address than its assigned one."""
    used = {4: address("169.254.1.1"), 6: address("2001:db8::77")}[family]
    world.send(ip_packet(used, PEER[family], UDP, struct.pack("!HHHH", 1, 0, 8, 0)))  # no such port: nothing follows
    world.settle()
    return used


def destination(port: Port) -> bytes:
    port.peer_sends(b"x")
    (packet,) = port.world.inbox
    port.world.inbox.clear()
    return packet.destination


def test_peers_reach_the_guest_where_it_was_seen_last(port: Port) -> None:
    assert destination(port) == GUEST[port.family]
    used = moves(port.world, port.family)
    port.world.advance(31)
    assert destination(port) == used


def assign(world: World, family: int, guest: bytes) -> None:
    """To a guest whose addresses are set for it."""
    world.view.flags |= lib.LG_VIEW_PLACED
    view = ffi.new("struct lg_net_view *", world.view[0])
    ffi.memmove(getattr(view, f"guest{family}"), mapped16(guest), 16)
    lib.script_take_view(view)


def test_a_guest_that_was_moved_is_not_where_its_old_connections_still_send_from(port: Port) -> None:
    """A namespace gets other addresses without a word, more than once. What it shows by itself counts as before."""
    world, family = port.world, port.family
    port.guest_sends(b"from where it was")
    for other in (HERE[family], MAPPED[family]):
        assign(world, family, other)
        port.guest_sends(b"from there, still")
        assert destination(port) == other
    used = moves(world, family)
    world.advance(31)
    assert destination(port) == used
    assign(world, family, GUEST[family])
    assert destination(port) == used
    port.guest_sends(b"from where it is again")
    assert destination(port) == GUEST[family]


def test_an_address_that_a_guest_has_chosen_outlives_a_change_of_those_that_it_was_given(world: World) -> None:
    """Of either family. Cause: both were placed when one had changed, and what was seen until then counted no more."""
    used = {version: moves(world, version) for version in (4, 6)}
    assign(world, 6, HERE[6])
    for version in (4, 6):
        assert destination(Port(world, version, version)) == used[version]


def test_an_address_that_is_only_for_asking_for_another_is_not_the_guests(world: World) -> None:
    """muvm's guest makes one up for its DHCP; a server in it that waits for its first peer sends nothing after that."""
    made_up = address("169.254.1.1")
    world.send(ip_packet(made_up, bytes((255, 255, 255, 255)), UDP, struct.pack("!HHHH", 68, 67, 8, 0)))
    world.settle()
    assert destination(Port(world, 4)) == GUEST[4]


def test_an_address_that_the_caller_gave_is_the_guests_whatever_it_uses(world: World) -> None:
    """--address: a guest that configures itself may for a while send from another."""
    world.view.flags |= lib.LG_VIEW_FIXED4
    port = Port(world, 4)
    moves(world, 4)
    assert destination(port) == GUEST[4]


@pytest.mark.parametrize("version", [4, 6])
def test_what_comes_from_behind_a_guest_is_not_the_guest(world: World, version: int) -> None:
    """Containers that send through it in turn are no news each time; nor are they remembered."""
    fixed = {4: lib.LG_VIEW_FIXED4, 6: lib.LG_VIEW_FIXED6}[version]
    world.view.flags |= fixed
    port = Port(world, version)
    assert destination(port) == GUEST[version]
    port.guest_sends(b"from its own address")
    world.advance(31)
    moves(world, version)
    world.advance(31)
    world.view.flags &= ~fixed
    assert destination(port) == GUEST[version]


def test_an_address_of_ipv6_that_the_caller_gave_is_the_guests_once_it_has_used_it(world: World) -> None:
    """Without DHCPv6 it makes one of its own; with it, it may have others beside the one that is meant."""
    world.view.flags |= lib.LG_VIEW_FIXED6
    port = Port(world, 6)
    assert destination(port) == GUEST[6]
    used = moves(world, 6)
    world.advance(31)
    assert destination(port) == used
    port.guest_sends(b"from its assigned one")
    world.advance(31)
    assert destination(port) == GUEST[6]
    moves(world, 6)
    world.advance(31)
    assert destination(port) == GUEST[6]


def test_a_guest_with_a_link_local_address_only_is_reached_there(world: World) -> None:
    """Local mode: no other address was assigned, and the host has one to copy none from."""
    ffi.memmove(world.view.guest6, bytes(16), 16)
    port = Port(world, 6)
    port.peer_sends(b"x")
    assert not world.inbox and world.counter("datagrams_turned_away") == 1
    link_local = address("fe80::77")
    world.send(ip_packet(link_local, PEER[6], UDP, struct.pack("!HHHH", 1, 0, 8, 0)))
    world.settle()
    assert destination(port) == link_local
