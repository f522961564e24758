# SPDX-License-Identifier: Apache-2.0
"""Connections from peers to ports of the host that lead to the guest; test_accept_datagrams.py has the datagrams."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fake_core import ffi, lib
from segments import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Ends,
    Options,
    Segment,
    parse_segment,
)
from world import GATEWAY, GUEST, MAPPED, OUR_LINK_LOCAL, PEER, World, mapped16

LISTENERS_MAX = 5 << 16
BACKLOG = 512  # of fake_kernel.h; a turn takes half of it
PORT, PEER_PORT = 8080, 55555
ANY = bytes(16)
LOOPBACK = {4: bytes((127, 0, 0, 1)), 6: bytes(15) + b"\1"}
OTHER_LOOPBACK = bytes((127, 0, 0, 9))
HERE = {4: bytes((192, 0, 2, 200)), 6: b"\x20\x01\x0d\xb8" + bytes(11) + b"\xc8"}  # an address of the host


class Host:
    """A TCP port of the host that leads to the guest."""

    def __init__(self, world: World, family: int) -> None:
        self.world, self.family = world, family
        self.listener = lib.fake_listen()
        assert lib.script_listen(0, self.listener, 6, PORT, ANY) == 0
        self.fd = -1

    def peer_connects(self, source: bytes | None = None) -> None:
        self.fd = lib.fake_peer_connect(self.listener, mapped16(source or PEER[self.family]), PEER_PORT)
        assert self.fd >= 0
        self.world.settle()

    @property
    def socket(self) -> ffi.CData:
        return lib.fake_socket_at(self.fd)

    def segment(self) -> Segment:
        """The one segment that the guest got."""
        (packet,) = self.world.inbox
        self.world.inbox.clear()
        return parse_segment(packet)

    def ends(self, syn: Segment) -> Ends:
        return Ends(syn.packet.destination, syn.destination_port, syn.packet.source, syn.source_port)

    def guest_answers(self, syn: Segment, flags: int = SYN | ACK, ack: int | None = None, seq: int = 7000) -> None:
        options = Options(mss=1460, wscale=7, sack_ok=True) if flags & SYN else None
        answer = syn.seq + 1 if ack is None else ack
        self.world.send(self.ends(syn).tcp_head(flags, seq, answer, 65535, options))
        self.world.settle()


@pytest.fixture(name="host")
def listening_host(world: World, family: int) -> Host:
    return Host(world, family)


def test_a_peer_is_the_guests_peer_with_its_own_address(host: Host) -> None:
    """The handshake is ours; the address and both ports are the peer's and the guest's."""
    host.peer_connects()
    syn = host.segment()
    assert syn.flags == SYN and syn.ack == 0
    assert (syn.packet.source, syn.packet.destination) == (PEER[host.family], GUEST[host.family])
    assert (syn.source_port, syn.destination_port) == (PEER_PORT, PORT)
    assert syn.options.mss and syn.options.wscale == 8 and syn.options.sack_ok
    host.guest_answers(syn)
    ack = host.segment()
    assert (ack.flags, ack.seq, ack.ack) == (ACK, syn.seq + 1, 7001)


def test_what_the_peer_sends_before_the_guest_has_answered_comes_after_it(host: Host) -> None:
    host.peer_connects()
    syn = host.segment()
    assert lib.fake_peer_send(host.fd, 500) == 500
    host.world.settle()
    assert not host.world.inbox
    host.guest_answers(syn)
    data = [parse_segment(packet) for packet in host.world.inbox]
    host.world.inbox.clear()
    assert [(one.seq - syn.seq, one.length) for one in data if one.length] == [(1, 500)]
    assert data[-1].ack == 7001


def test_what_the_guest_sends_reaches_the_peer(host: Host) -> None:
    host.peer_connects()
    syn = host.segment()
    host.guest_answers(syn)
    host.world.inbox.clear()
    head = host.ends(syn).tcp_head(ACK | PSH, 7001, syn.seq + 1, 65535, payload=100)
    host.world.send(head, host.socket.stream_out, 0, 100)
    host.world.settle()
    assert host.socket.sent == 100
    assert host.segment().ack == 7101


def test_a_guest_that_refuses_resets_the_peer(host: Host) -> None:
    """It had been accepted by the host's kernel already."""
    host.peer_connects()
    host.guest_answers(host.segment(), RST | ACK, seq=0)
    assert host.socket.closed and host.socket.aborted
    assert not host.world.flows() and not host.world.inbox


def test_a_guest_that_never_answers_costs_the_peer_a_reset_in_the_end(host: Host) -> None:
    """The SYN is repeated unchanged, ever more seldom."""
    host.peer_connects()
    first = host.segment()
    host.world.advance(200)
    repeated = [parse_segment(packet) for packet in host.world.inbox]
    host.world.inbox.clear()
    assert host.socket.closed and host.socket.aborted and host.world.close_reasons() == ["timed_out"]
    assert all((one.flags, one.seq, one.ack) == (SYN, first.seq, 0) for one in repeated[:-1])
    assert len(repeated) == 7 and repeated[-1].flags == RST
    times = [first.time_ms, *(one.time_ms for one in repeated[:-1])]
    assert [later - earlier for earlier, later in zip(times, times[1:], strict=False)] == [
        1000 << number for number in range(6)
    ]


@pytest.mark.parametrize("ack", [0, 1, 0x7FFFFFFF])
@pytest.mark.parametrize("flags", [SYN | ACK, RST | ACK, ACK])
def test_an_answer_to_another_syn_is_not_believed(host: Host, flags: int, ack: int) -> None:
    """Nor is silence kept about it: a guest that has had enough says so, any other hears that it is none of ours."""
    host.peer_connects()
    syn = host.segment()
    wrong = (syn.seq + 2 + ack) & 0xFFFFFFFF
    host.guest_answers(syn, flags, wrong)
    got = [parse_segment(packet) for packet in host.world.inbox]
    host.world.inbox.clear()
    assert [(one.flags, one.seq) for one in got] == ([] if flags & RST else [(RST, wrong), (SYN, syn.seq)])
    assert not host.socket.closed
    host.guest_answers(syn)
    assert host.segment().ack == 7001


def test_a_guest_that_still_has_an_older_connection_is_asked_again_at_once(host: Host) -> None:
    """It answers a SYN for it with an ACK of its own (RFC 5961, 4.2), loses it to our RST, and has time for the new
    one. Cause: nothing was said, and the port of the peer's was dead until the guest gave the connection up."""
    host.peer_connects()
    syn = host.segment()
    host.guest_answers(syn, ACK, 123456)
    reset, again = (parse_segment(packet) for packet in host.world.inbox)
    host.world.inbox.clear()
    assert (reset.flags, reset.seq, reset.length) == (RST, 123456, 0)
    assert (again.flags, again.seq, again.time_ms) == (SYN, syn.seq, syn.time_ms)
    host.guest_answers(again)
    assert host.segment().ack == 7001


def test_an_old_connection_that_would_go_on_with_our_number_is_reset_as_well(host: Host) -> None:
    """Its last byte was numbered as our SYN is, by chance: its ACK looks like one of ours, but for the missing SYN."""
    host.peer_connects()
    syn = host.segment()
    host.guest_answers(syn, ACK)
    reset, again = (parse_segment(packet) for packet in host.world.inbox)
    host.world.inbox.clear()
    assert (reset.flags, reset.seq, again.flags, again.seq) == (RST, syn.seq + 1, SYN, syn.seq)
    host.guest_answers(again)
    assert host.segment().ack == 7001


def test_a_guest_that_denies_every_syn_gets_no_more_of_them_than_a_silent_one(host: Host) -> None:
    """But for one: each of its answers costs a RST, and no SYN that it could deny again."""
    host.peer_connects()
    syn = host.segment()
    for number in range(10):
        host.guest_answers(syn, ACK, 1000 + number)
    flags = [parse_segment(packet).flags for packet in host.world.inbox]
    host.world.inbox.clear()
    assert flags.count(RST) == 10 and flags.count(SYN) == 1


def test_a_peer_that_gives_up_early_is_forgotten(host: Host) -> None:
    """The guest, which may be about to answer, hears of it."""
    host.peer_connects()
    syn = host.segment()
    lib.fake_peer_reset(host.fd)
    host.world.settle()
    assert host.segment().flags & RST
    assert not host.world.flows()
    host.guest_answers(syn)
    assert host.segment().flags & RST


def test_a_peer_that_says_its_last_at_once_is_heard(host: Host) -> None:
    host.peer_connects()
    syn = host.segment()
    lib.fake_peer_send(host.fd, 10)
    lib.fake_peer_fin(host.fd)
    host.world.settle()
    host.guest_answers(syn)
    got = [parse_segment(packet) for packet in host.world.inbox]
    host.world.inbox.clear()
    assert sum(one.length for one in got) == 10 and got[-1].flags & FIN


SHOWN: list[tuple[str, Callable[[int], bytes], Callable[[int], bytes]]] = [
    ("loopback", lambda family: LOOPBACK[family], lambda family: MAPPED[family]),
    ("guest", lambda family: GUEST[family], lambda family: GATEWAY[4] if family == 4 else OUR_LINK_LOCAL),
]


@pytest.mark.parametrize(("name", "source", "shown"), SHOWN, ids=[name for name, _, _ in SHOWN])
def test_addresses_that_would_mean_the_guest_are_shown_by_another_name(
    host: Host, name: str, source: Callable[[int], bytes], shown: Callable[[int], bytes]
) -> None:
    host.peer_connects(source(host.family))
    assert host.segment().packet.source == shown(host.family)


def test_other_loopback_addresses_are_the_gateway(world: World) -> None:
    host = Host(world, 4)
    host.peer_connects(OTHER_LOOPBACK)
    assert host.segment().packet.source == GATEWAY[4]


def test_a_port_may_lead_to_an_address_of_its_own(world: World, family: int) -> None:
    target = HERE[family]
    listener = lib.fake_listen()
    assert lib.script_listen(0, listener, 6, 22, mapped16(target)) == 0
    lib.fake_peer_connect(listener, mapped16(PEER[family]), PEER_PORT)
    world.settle()
    syn = parse_segment(world.inbox.pop())
    assert (syn.packet.destination, syn.destination_port) == (target, 22)


def test_a_port_that_may_lead_beyond_the_guest_shows_no_link_local_address(world: World) -> None:
    """The guest would not send on what comes from there: the host is shown by the name that the caller gave it."""
    ffi.memmove(world.view.map_host6, ANY, 16)
    ffi.memmove(world.view.map_guest6, HERE[6], 16)
    listener = lib.fake_listen()
    assert lib.script_listen(0, listener, 6, 22, mapped16(PEER[6])) == 0
    lib.fake_peer_connect(listener, mapped16(LOOPBACK[6]), PEER_PORT)
    world.settle()
    assert parse_segment(world.inbox.pop()).packet.source == HERE[6]


@pytest.mark.parametrize("named", [False, True], ids=["gateway", "map-guest-addr"])
def test_who_comes_by_ipv6_to_a_port_that_leads_to_ipv4_is_shown_as_the_host(world: World, named: bool) -> None:
    """And answered: the connection's other end is of the one family, its segments are of the other."""
    if named:
        ffi.memmove(world.view.map_guest4, mapped16(HERE[4]), 16)
    listener = lib.fake_listen()
    assert lib.script_listen(0, listener, 6, 22, mapped16(PEER[4])) == 0
    for peer in (PEER[6], LOOPBACK[6]):
        lib.fake_peer_connect(listener, mapped16(peer), PEER_PORT + peer[-1])
        world.settle()
        syn = parse_segment(world.inbox.pop())
        assert (syn.packet.source, syn.packet.destination) == (HERE[4] if named else GATEWAY[4], PEER[4])


def test_the_hosts_own_address_has_the_name_that_the_caller_gave_it(world: World, family: int) -> None:
    """--map-guest-addr: the guest has that address itself, and could not answer it."""
    ffi.memmove(getattr(world.view, f"map_guest{family}"), mapped16(HERE[family]), 16)
    host = Host(world, family)
    host.peer_connects(GUEST[family])
    assert host.segment().packet.source == HERE[family]


def test_each_address_that_the_guest_has_in_common_with_the_host_means_the_host(host: Host) -> None:
    ffi.memmove(host.world.view.shared[0], mapped16(HERE[10 - host.family]), 16)
    ffi.memmove(host.world.view.shared[1], mapped16(HERE[host.family]), 16)
    host.peer_connects(HERE[host.family])
    assert host.segment().packet.source == (GATEWAY[4] if host.family == 4 else OUR_LINK_LOCAL)


def test_a_peer_that_the_guest_could_not_be_shown_is_reset(world: World) -> None:
    """No gateway, and the host's loopback has no name there."""
    ffi.memmove(world.view.map_host4, ANY, 16)
    ffi.memmove(world.view.gateway4, ANY, 16)
    host = Host(world, 4)
    host.peer_connects(LOOPBACK[4])
    assert host.socket.closed and host.socket.aborted
    assert world.counter("tcp_turned_away") == 1 and not world.flows()


def test_a_connection_outlives_its_port(host: Host) -> None:
    """The port is closed, and nobody else is let in; who is in goes on."""
    host.peer_connects()
    syn = host.segment()
    lib.script_listen_close(0, 1)
    assert lib.fake_socket_at(host.listener).closed
    host.guest_answers(syn)
    assert not host.socket.closed and len(host.world.flows()) == 1


def test_only_the_ports_that_are_named_are_closed(world: World) -> None:
    """A slot is free then for another; in one that is taken, nothing is put."""
    fds = [lib.fake_listen() for _ in range(4)]
    for slot, fd in zip((0, 1, 5), fds, strict=False):
        assert lib.script_listen(slot, fd, 6, PORT, ANY) == 0
    assert lib.script_listen(1, fds[3], 6, PORT, ANY) == -errno.EEXIST
    assert lib.script_listen(LISTENERS_MAX, fds[3], 6, PORT, ANY) == -errno.EINVAL
    lib.script_listen_close(1, 4)  # of which only the first has a socket
    assert [bool(lib.fake_socket_at(fd).closed) for fd in fds] == [False, True, False, False]
    assert lib.script_listen(1, fds[3], 6, PORT, ANY) == 0
    lib.script_listen_close(0, LISTENERS_MAX)
    assert all(lib.fake_socket_at(fd).closed for fd in fds)


def test_who_found_no_descriptor_is_let_in_once_a_flow_has_given_one_back(host: Host) -> None:
    """Without another peer that would have to come first: the edge that told of this one has gone."""
    host.peer_connects()
    syn, first = host.segment(), host.fd
    host.world.fail_next("accept", errno.EMFILE)
    waiting = lib.fake_peer_connect(host.listener, mapped16(PEER[host.family]), PEER_PORT + 1)
    host.world.settle()
    assert host.world.counter("tcp_accept_failed") == 1 and not host.world.inbox
    host.guest_answers(syn, RST | ACK, seq=0)
    assert lib.fake_socket_at(first).closed and host.segment().source_port == PEER_PORT + 1
    assert not lib.fake_socket_at(waiting).closed


def test_who_found_no_descriptor_is_let_in_after_a_while_if_no_flow_had_any(host: Host) -> None:
    """Others hold them, or there was no memory: nothing tells when that is over, and nobody spins until then."""
    world = host.world
    world.fail_next("accept", errno.EMFILE)
    host.peer_connects()
    assert not world.inbox and world.next_ms - world.now_ms == 1000
    world.fail_next("accept", errno.EMFILE)
    world.advance(1)
    assert not world.inbox and world.counter("tcp_accept_failed") == 2
    world.advance(1)
    assert host.segment().flags == SYN


@pytest.mark.world(flow_limit=BACKLOG)
def test_more_peers_at_once_than_one_turn_takes_are_all_served(host: Host) -> None:
    """The edge that told of the first was also that of the last."""
    ports = list(range(1000, 1000 + BACKLOG))
    for port in ports:
        assert lib.fake_peer_connect(host.listener, mapped16(PEER[host.family]), port) >= 0
    host.world.settle()
    assert sorted(parse_segment(packet).source_port for packet in host.world.inbox) == ports
    host.world.inbox.clear()
