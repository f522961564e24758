# SPDX-License-Identifier: Apache-2.0
"""The short way of datagrams: each peer of a loopback has a socket on the other side, and its answers.

Adversary: peers by the dozen; an agent that is slow, or has nothing; a service that is not there, or does not read."""

from __future__ import annotations

import errno

import pytest
from fake_core import ffi, lib
from splice_world import GUEST_PORT, LOOPBACK, OTHER_LOOPBACK, PORT, UDP, UDP4, UDP6, SpliceWorld
from world import GUEST, PEER, World, mapped16

PEER_PORT = 55555
KIND = {4: UDP4, 6: UDP6}
IPPROTO_IP, IP_PKTINFO, IPPROTO_IPV6, IPV6_RECVPKTINFO = 0, 8, 41, 49
MAX = 65507
SHORT, LONG = 31, 121  # seconds: longer than a question lives, and than what is used both ways

Sent = tuple[bytes, int, bytes, bytes]  # whom to, from which address, and what


def sent(fd: int) -> list[Sent]:
    """What left the core by this socket since the last time."""
    buffer, found = ffi.new("uint8_t[]", 1 << 16), []
    while (length := lib.fake_datagram_sent(fd, buffer, 1 << 16)) >= 0:
        to, here = (bytes(ffi.buffer(at(), 16)) for at in (lib.fake_datagram_sent_to, lib.fake_datagram_sent_from))
        found.append((to, int(lib.fake_datagram_sent_port()), here, bytes(ffi.buffer(buffer, length))))
    return found


class Port:
    """A UDP port of one side that leads to the other."""

    def __init__(self, world: SpliceWorld, family: int = 4, outward: bool = False) -> None:
        self.world, self.family, self.slot, self.outward = world, family, world.slots, outward
        self.fd = lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0)
        on = ffi.new("int *", 1)
        for level, name in ((IPPROTO_IP, IP_PKTINFO), (IPPROTO_IPV6, IPV6_RECVPKTINFO)):
            assert lib.sys_setsockopt(self.fd, level, name, on, 4) == 0
        lib.fake_bind(self.fd, PORT + self.slot)
        if outward:
            assert lib.script_listen_outward(self.slot, self.fd, UDP, GUEST_PORT) == 0
        else:
            assert lib.script_listen(self.slot, self.fd, UDP, GUEST_PORT, bytes(16)) == 0
        world.slots += 1

    def hears(self, data: bytes, port: int = PEER_PORT, source: bytes | None = None, segment: int = 0) -> None:
        """From a peer of its loopback; the loop does not run yet."""
        here = mapped16(LOOPBACK[self.family])
        peer = mapped16(source or LOOPBACK[self.family])
        assert lib.fake_datagram_arrive_from(self.fd, peer, port, here, here, data, len(data), segment) == 0

    def asked(self, *questions: bytes) -> Far:
        """A peer sends these, and the agent, if it is asked, gives a socket for it."""
        for one in questions:
            self.hears(one)
        self.world.settle()
        if not self.outward and lib.script_asked(KIND[self.family]):
            self.world.agent_gives(KIND[self.family])
        return Far(self.world, int(lib.fake_last_socket()))

    def answers(self) -> list[Sent]:
        return sent(self.fd)


class Far:
    """The service on the other side, by the socket that one peer has there."""

    def __init__(self, world: SpliceWorld, fd: int) -> None:
        self.world, self.fd = world, fd

    @property
    def socket(self) -> ffi.CData:
        return lib.fake_socket_at(self.fd)

    def got(self) -> list[bytes]:
        return [data for *_, data in sent(self.fd)]

    def says(self, *answers: bytes, segment: int = 0) -> None:
        for data in answers:
            assert lib.fake_datagram_arrive(self.fd, data, len(data), segment) == 0
        self.world.settle()

    def is_not_there(self) -> None:
        """ICMP says so of what it was sent; the loop does not run yet."""
        told = ffi.new("struct fake_path_error *", (errno.ECONNREFUSED, 2, 3, 3, 0, bytes(16)))
        assert lib.fake_datagram_error(self.fd, told, b"", 0) == 0


def far_of(world: SpliceWorld, peer_port: int) -> Far:
    """The socket that the peer of this port has on the far side."""
    made = ((fd, lib.fake_socket_at(fd)) for fd in range(3, int(lib.fake_last_socket()) + 1))
    (fd,) = [fd for fd, one in made if one and one.datagrams and one.own_port == peer_port]
    return Far(world, fd)


@pytest.fixture(name="world")
def world_of_two_loopbacks(loopbacks: SpliceWorld) -> SpliceWorld:
    return loopbacks


# ---- there and back ----


def test_a_question_and_its_answer(world: SpliceWorld, family: int) -> None:
    """From the peer's own port, to the guest's address; the answer comes from the address that was asked."""
    port = Port(world, family)
    far = port.asked(b"question")
    assert far.got() == [b"question"]
    assert (bytes(far.socket.address), far.socket.port) == (mapped16(GUEST[family]), GUEST_PORT)
    assert far.socket.own_port == PEER_PORT and far.socket.receive_segments
    far.says(b"answer")
    loopback = mapped16(LOOPBACK[family])
    assert port.answers() == [(loopback, PEER_PORT, loopback, b"answer")]
    assert world.counter("splice_bytes_to_guest") == 8 and world.counter("splice_bytes_from_guest") == 6
    assert world.counter("splice_datagrams") == 2 and not world.inbox


@pytest.mark.parametrize("size", [0, 1, 1472, MAX])
def test_datagrams_of_every_size_pass_both_ways(world: SpliceWorld, size: int) -> None:
    port = Port(world)
    data = bytes(range(256)) * 256
    far = port.asked(data[:size], b"next")
    assert far.got() == [data[:size], b"next"]
    far.says(data[:size], b"next")
    assert [one[3] for one in port.answers()] == [data[:size], b"next"]


def test_what_the_kernel_has_joined_goes_on_joined(world: SpliceWorld) -> None:
    """In one call, with others around it, and each datagram in its bounds."""
    port = Port(world)
    far = port.asked(b"")
    assert far.got() == [b""]
    calls = world.calls("sendmmsg")
    for data, segment in ((b"before", 0), (b"x" * 2500, 1000), (b"y" * 6400, 100), (b"", 0)):
        port.hears(data, segment=segment)
    world.settle()
    assert [len(one) for one in far.got()] == [6, 1000, 1000, 500, *[100] * 64, 0]
    far.says(b"z" * 2500, segment=1000)
    assert [len(one[3]) for one in port.answers()] == [1000, 1000, 500]
    assert world.calls("sendmmsg") == calls + 2


@pytest.mark.parametrize("which", ["far", "near"])
def test_joined_datagrams_go_one_by_one_where_that_is_refused(world: SpliceWorld, which: str) -> None:
    """A loopback whose MTU somebody has lowered."""
    port = Port(world)
    far = port.asked(b"")
    far.got()
    lib.fake_datagram_no_segments(far.fd if which == "far" else port.fd)
    for _ in range(2):
        if which == "far":
            port.hears(b"before")
            port.hears(b"x" * 6450, segment=100)
            port.hears(b"behind")
            world.settle()
            heard = far.got()
        else:
            far.says(b"before")
            far.says(b"x" * 6450, segment=100)
            far.says(b"behind")
            heard = [one[3] for one in port.answers()]
        assert [len(one) for one in heard] == [6, *[100] * 64, 50, 6]
    assert world.counter("datagrams_unsent") == 0


def test_two_peers_in_one_batch_have_a_socket_each(world: SpliceWorld) -> None:
    port = Port(world)
    port.asked(b"")
    world.agent_gives(UDP4, 10)
    calls = world.calls("sendmmsg")
    for number, peer in enumerate((1, 1, 2, 1, 2, 2)):
        port.hears(b"%d" % number, PEER_PORT + peer)
    world.settle()
    assert world.calls("sendmmsg") == calls + 4, "as many as follow each other of one peer are one call"
    found = {peer: far_of(world, PEER_PORT + peer) for peer in (1, 2)}
    assert {peer: far.got() for peer, far in found.items()} == {1: [b"0", b"1", b"3"], 2: [b"2", b"4", b"5"]}
    for peer, far in found.items():
        far.says(b"to %d" % peer)
    assert {(one[1], one[3]) for one in port.answers()} == {(PEER_PORT + peer, b"to %d" % peer) for peer in (1, 2)}


def test_a_flood_arrives_and_lets_others_have_their_turn(world: SpliceWorld) -> None:
    port = Port(world)
    far = port.asked(b"")
    far.got()
    data = [b"%d" % number for number in range(300)]
    for one in data:
        port.hears(one)
    world.settle()
    assert far.got() == data
    far.says(*data)
    assert [one[3] for one in port.answers()] == data


def test_the_peers_own_loopback_address_is_kept_where_the_view_says_so(world: SpliceWorld) -> None:
    world.view.flags |= lib.LG_VIEW_SPLICE_LOOPBACK
    port = Port(world)
    port.hears(b"x", source=OTHER_LOOPBACK)
    world.settle()
    world.agent_gives(UDP4)
    far = Far(world, int(lib.fake_last_socket()))
    assert bytes(far.socket.address) == mapped16(LOOPBACK[4])
    assert (bytes(far.socket.local), far.socket.own_port) == (mapped16(OTHER_LOOPBACK), PEER_PORT)


@pytest.mark.parametrize("address_kept", [False, True])
def test_a_port_that_is_taken_is_not_kept_but_the_address_is(world: SpliceWorld, address_kept: bool) -> None:
    if address_kept:
        world.view.flags |= lib.LG_VIEW_SPLICE_LOOPBACK
    port = Port(world)
    port.hears(b"x", source=OTHER_LOOPBACK)
    world.settle()
    world.fail_next("bind", errno.EADDRINUSE)
    world.agent_gives(UDP4)
    far = Far(world, int(lib.fake_last_socket()))
    assert far.got() == [b"x"] and world.counter("udp_port_taken") == 1
    assert (bytes(far.socket.local), far.socket.own_port) == (
        mapped16(OTHER_LOOPBACK) if address_kept else bytes(16),
        0,
    )


def test_what_a_socket_had_heard_before_it_was_connected_is_nobodys_answer(world: SpliceWorld) -> None:
    port = Port(world)
    port.asked(b"first")
    fd = world.agent_gives(UDP4)
    assert lib.fake_datagram_arrive(fd, b"a stranger's", 12, 0) == 0
    port.hears(b"second", PEER_PORT + 1)
    world.settle()
    far = far_of(world, PEER_PORT + 1)
    assert far.fd == fd and far.got() == [b"second"] and port.answers() == []
    far.says(b"the answer")
    assert [one[3] for one in port.answers()] == [b"the answer"]


# ---- ports that lead out ----


def test_a_port_that_leads_out_needs_no_agent(world: SpliceWorld, family: int) -> None:
    world.view.flags &= ~lib.LG_VIEW_SPLICE
    port = Port(world, family, outward=True)
    far = port.asked(b"question")
    assert far.got() == [b"question"] and not any(lib.script_asked(kind) for kind in range(4))
    assert (bytes(far.socket.address), far.socket.port) == (mapped16(LOOPBACK[family]), GUEST_PORT)
    far.says(b"answer")
    assert [one[3] for one in port.answers()] == [b"answer"]
    assert world.counter("splice_bytes_from_guest") == 8 and world.counter("splice_bytes_to_guest") == 6


def test_a_port_that_leads_out_hears_nobody_but_its_loopback(world: SpliceWorld) -> None:
    port = Port(world, outward=True)
    for source in (PEER[4], GUEST[4], bytes(4)):
        port.hears(b"x", source=source)
    world.settle()
    assert not world.flows() and not world.inbox and world.counter("datagrams_turned_away") == 3


def test_without_a_descriptor_a_datagram_is_turned_away(world: SpliceWorld) -> None:
    port = Port(world, outward=True)
    world.fail_next("socket", errno.EMFILE)
    port.hears(b"x")
    world.settle()
    assert world.counter("datagrams_turned_away") == 1 and not world.flows()


# ---- what does not take it ----


def test_a_peer_of_another_host_goes_over_the_link(world: SpliceWorld) -> None:
    port = Port(world)
    for number, source in enumerate((PEER[4], LOOPBACK[4], PEER[4])):
        port.hears(b"%d" % number, source=source)
    world.settle()
    assert [packet.payload[8:] for packet in world.inbox] == [b"0"], "the others wait behind the one that waits"
    world.agent_gives(UDP4)
    assert [packet.payload[8:] for packet in world.inbox] == [b"0", b"2"]
    assert Far(world, int(lib.fake_last_socket())).got() == [b"1"]
    world.inbox.clear()


@pytest.mark.parametrize("flag", ["LG_VIEW_UDP", "guest4"])
def test_what_nobody_may_have_is_turned_away(world: SpliceWorld, flag: str) -> None:
    if flag == "guest4":
        for at in range(16):
            world.view.guest4[at] = world.view.guest6[at] = 0
    else:
        world.view.flags &= ~getattr(lib, flag)
    port = Port(world)
    port.hears(b"x")
    port.hears(b"y")
    world.settle()
    assert world.counter("datagrams_turned_away") == 2 and not world.flows() and not lib.script_asked(UDP4)


# ---- the agent ----


def test_other_ports_wait_with_the_one_that_waits_for_a_socket(world: SpliceWorld) -> None:
    """Nothing is lost, and nobody spins."""
    ports = [Port(world) for _ in range(3)]
    for number in range(3):
        for port in ports:
            port.hears(b"%d" % number, PEER_PORT + port.slot)
            world.settle()
    assert world.calls("recvmmsg") == 1 and lib.script_asked(UDP4) == 1
    world.agent_gives(UDP4, 3)
    for port in ports:
        assert far_of(world, PEER_PORT + port.slot).got() == [b"0", b"1", b"2"]


def test_one_socket_for_two_that_wait_has_the_agent_asked_again(world: SpliceWorld) -> None:
    ports = [Port(world) for _ in range(2)]
    for port in ports:
        port.hears(b"x", PEER_PORT + port.slot)
        world.settle()
    for port in ports:
        assert lib.script_asked(UDP4) == 1
        fd = world.agent_gives(UDP4)
        assert Far(world, fd).got() == [b"x"] and lib.fake_socket_at(fd).own_port == PEER_PORT + port.slot


def test_an_agent_that_refuses_costs_the_datagrams_that_waited(world: SpliceWorld) -> None:
    """Those of one peer; the next is a question of its own, and so is the next datagram."""
    port = Port(world)
    for peer in (1, 1, 2):
        port.hears(b"x", PEER_PORT + peer)
    world.settle()
    world.agent_refuses(UDP4)
    assert world.counter("datagrams_turned_away") == 2 and lib.script_asked(UDP4) == 1
    world.agent_refuses(UDP4)
    assert world.counter("datagrams_turned_away") == 3 and not lib.script_asked(UDP4)
    far = port.asked(b"again")
    assert far.got() == [b"again"]


def test_a_refusal_that_comes_when_nobody_waits_any_more_is_forgotten(world: SpliceWorld) -> None:
    port = Port(world)
    port.hears(b"x")
    world.settle()
    lib.script_listen_close(port.slot, 1)
    world.agent_refuses(UDP4)
    far = Port(world).asked(b"y")
    assert far.got() == [b"y"]


def test_an_agent_that_cannot_be_asked_costs_the_datagram(world: SpliceWorld) -> None:
    port = Port(world)
    lib.script_agent_fails(errno.ENOTCONN)
    port.hears(b"x")
    world.settle()
    assert world.counter("datagrams_turned_away") == 1
    lib.script_agent_fails(0)
    assert port.asked(b"y").got() == [b"y"]


def test_the_view_may_change_while_a_datagram_waits(world: SpliceWorld) -> None:
    """Over the link then."""
    port = Port(world)
    port.hears(b"x")
    world.settle()
    world.view.flags &= ~lib.LG_VIEW_SPLICE
    world.agent_gives(UDP4)
    assert [packet.payload[8:] for packet in world.inbox] == [b"x"]
    world.inbox.clear()


def test_a_port_that_is_closed_takes_what_waits_along(world: SpliceWorld) -> None:
    """The others are heard again with the next answer."""
    first, second = Port(world), Port(world)
    first.hears(b"x")
    world.settle()
    second.hears(b"y")
    world.settle()
    lib.script_listen_close(first.slot, 1)
    assert world.counter("datagrams_turned_away") == 1
    world.agent_gives(UDP4)
    assert Far(world, int(lib.fake_last_socket())).got() == [b"y"]


# ---- a far side that is not as it should be ----


def test_a_queue_that_is_full_loses_what_it_does_not_take(world: SpliceWorld) -> None:
    """As between any two programs of one host. The rest goes on."""
    port = Port(world)
    far = port.asked(b"0")
    for call_fails, data in ((True, b"1"), (False, b"2")):
        if call_fails:
            world.fail_next("sendmmsg", errno.EAGAIN)
        port.hears(data)
        world.settle()
    assert far.got() == [b"0", b"2"] and world.counter("datagrams_unsent") == 1
    world.fail_next("sendmmsg", errno.EAGAIN)
    far.says(b"3")
    far.says(b"4")
    assert [one[3] for one in port.answers()] == [b"4"]


def test_of_several_the_one_that_is_refused_is_lost_alone(world: SpliceWorld) -> None:
    port = Port(world)
    far = port.asked(b"0")
    world.fail_next("sendmmsg", errno.EAGAIN)
    for number in range(1, 4):
        port.hears(b"%d" % number)
    world.settle()
    assert far.got() == [b"0", b"2", b"3"]


def test_a_service_that_is_not_there_ends_nothing(world: SpliceWorld) -> None:
    """The error is met by the next datagram, which goes out all the same, or by a read, which goes on."""
    port = Port(world)
    far = port.asked(b"0")
    far.is_not_there()
    world.settle()
    assert len(world.flows()) == 1 and world.counter("wakeups_idle") <= 1
    port.hears(b"1")
    world.settle()
    assert far.got() == [b"0", b"1"] and far.socket.error == 0
    far.is_not_there()
    far.says(b"2")
    assert [one[3] for one in port.answers()] == [b"2"] and far.socket.error == 0


@pytest.mark.parametrize("call", ["connect", "epoll_ctl"])
def test_a_socket_that_cannot_be_used_is_closed(world: SpliceWorld, call: str) -> None:
    port = Port(world, outward=True)
    if call == "connect":
        world.fail_next(call, errno.ENETUNREACH)
    port.hears(b"x")
    if call == "epoll_ctl":
        world.fail_next(call, errno.ENOMEM)
    world.settle()
    assert not world.flows() and lib.fake_socket_at(lib.fake_last_socket()).closed
    assert world.counter("splice_refused") == 1 and world.counter("datagrams_turned_away") == 1


# ---- its end ----


def test_a_question_lives_for_half_a_minute_and_what_goes_both_ways_for_two(world: SpliceWorld) -> None:
    port = Port(world, outward=True)
    far = port.asked(b"x")
    world.advance(SHORT)
    assert far.socket.closed and world.close_reasons() == ["idle"]
    far = port.asked(b"x")
    far.says(b"y")
    port.hears(b"z")
    world.settle()
    world.advance(SHORT)
    assert not far.socket.closed
    world.advance(LONG)
    assert far.socket.closed
    port.answers()


def test_a_flow_ends_with_its_port(world: SpliceWorld) -> None:
    ports = [Port(world, outward=True) for _ in range(2)]
    ends = [port.asked(b"x") for port in ports]
    lib.script_listen_close(ports[0].slot, 1)
    world.settle()
    assert [far.socket.closed for far in ends] == [True, False]


@pytest.mark.world(flow_limit=2)
def test_in_a_full_table_a_newcomer_is_turned_away_and_loses_its_socket(world: SpliceWorld) -> None:
    port = Port(world, outward=True)
    for peer in range(3):
        port.hears(b"x", PEER_PORT + peer)
    world.settle()
    assert len(world.flows()) == 2 and world.counter("datagrams_turned_away") == 1
    assert lib.fake_socket_at(lib.fake_last_socket()).closed
    world.advance(6)
    port.hears(b"x", PEER_PORT + 3)
    world.settle()
    assert world.counter("flows_evicted") == 1


def test_each_datagram_of_a_peer_wakes_once(world: SpliceWorld) -> None:
    """Nothing is idle but what is read to its end."""
    port = Port(world)
    far = port.asked(b"x")
    for _ in range(20):
        far.says(b"y")
        port.hears(b"z")
        world.settle()
    assert world.counter("wakeups_idle") == 0
    port.answers()


def test_both_ways_of_the_same_peer_are_two_flows(world: World) -> None:
    """The addresses alone do not tell them apart."""
    assert isinstance(world, SpliceWorld)
    ports = Port(world), Port(world, outward=True)
    ends = [port.asked(b"%d" % port.slot) for port in ports]
    assert [far.got() for far in ends] == [[b"0"], [b"1"]] and len(world.flows()) == 2
