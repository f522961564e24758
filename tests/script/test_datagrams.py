# SPDX-License-Identifier: Apache-2.0
"""UDP and echo requests: what goes into the host's sockets, what comes back, and how such a flow ends."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from fake_core import ffi, lib
from segments import address, checksum, ip_packet, pseudo_header
from world import GATEWAY, GUEST, MAPPED, PEER, World

UDP, ICMP, ICMPV6 = 17, 1, 58
ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
ORIGIN_LOCAL, ORIGIN_ICMP = 1, {4: 2, 6: 3}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
MAX = 65507
OTHER_PEER = {4: address("198.51.100.8"), 6: address("2001:db8:1::8")}
GUEST_PORT, PEER_PORT, IDENTIFIER = 40000, 4242, 0x1234


def mapped(raw: bytes) -> bytes:
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


class Datagrams:
    """One guest's socket towards one peer, and the host's socket in between."""

    def __init__(self, world: World, family: int, remote: bytes | None = None, port: int = PEER_PORT) -> None:
        self.world, self.family, self.port = world, family, port
        self.guest, self.remote = GUEST[family], remote or PEER[family]

    def queue(self, payload: bytes, hops: int = 64, source_port: int = GUEST_PORT) -> None:
        """The guest sends; the loop does not run yet."""
        header = struct.pack("!HHHH", source_port, self.port, 8 + len(payload), 0)
        self.world.send(ip_packet(self.guest, self.remote, UDP, header + payload, hops=hops))

    def sends(self, *payloads: bytes) -> None:
        """All in one batch."""
        for payload in payloads:
            self.queue(payload)
        self.world.settle()

    @property
    def fd(self) -> int:
        return int(lib.fake_last_socket())

    @property
    def socket(self) -> ffi.CData:
        return lib.fake_socket_at(self.fd)

    def sent(self) -> list[bytes]:
        """What left the host since the last time."""
        buffer, found = ffi.new("uint8_t[]", 1 << 16), []
        while (length := lib.fake_datagram_sent(self.fd, buffer, 1 << 16)) >= 0:
            found.append(bytes(ffi.buffer(buffer, length)))
        return found

    def peer_sends(self, *payloads: bytes, segment: int = 0) -> None:
        for payload in payloads:
            assert lib.fake_datagram_arrive(self.fd, payload, len(payload), segment) == 0
        self.world.settle()

    def gets(self) -> list[bytes]:
        """The datagrams that the guest got since the last time, each with its checksum right."""
        found = []
        for packet in self.world.inbox:
            assert (packet.protocol, packet.source, packet.destination) == (UDP, self.remote, self.guest)
            source, destination, length, check = struct.unpack("!HHHH", packet.payload[:8])
            assert (source, destination, length) == (self.port, GUEST_PORT, len(packet.payload))
            pseudo = pseudo_header(packet.source, packet.destination, UDP, length)
            if packet.offload.needs_csum:
                assert (packet.offload.csum_start, packet.offload.csum_offset) == (packet.payload_offset, 6)
                assert check == ~checksum(pseudo) & 0xFFFF
            else:
                assert check and checksum(pseudo + packet.payload) == 0
            found.append(packet.payload[8:])
        self.world.inbox.clear()
        return found

    def path_error(  # the fields of struct sock_extended_err, whom it came from, and the datagram that it is about
        self, error: int, origin: int, kind: int, code: int, info: int, offender: bytes, data: bytes
    ) -> None:
        told = ffi.new("struct fake_path_error *", (error, origin, kind, code, info, mapped(offender)))
        assert lib.fake_datagram_error(self.fd, told, data, len(data)) == 0
        self.world.settle()

    def icmp(self) -> tuple[bytes, bytes]:
        """Source and message of the one ICMP error that the guest got."""
        (packet,) = self.world.inbox
        self.world.inbox.clear()
        assert packet.protocol == (ICMP if self.family == 4 else ICMPV6) and packet.destination == self.guest
        pseudo = pseudo_header(packet.source, packet.destination, ICMPV6, len(packet.payload))
        assert checksum((pseudo if self.family == 6 else b"") + packet.payload) == 0
        return packet.source, packet.payload


@pytest.fixture(name="talk")
def fresh_talk(world: World, family: int) -> Iterator[Datagrams]:
    yield Datagrams(world, family)


# ---- there and back ----


def test_a_question_and_its_answer(talk: Datagrams) -> None:
    """From the guest's own port, to the address that it asked for; the answer comes from there."""
    talk.sends(b"question")
    assert talk.sent() == [b"question"]
    assert bytes(talk.socket.address) == mapped(talk.remote) and talk.socket.port == PEER_PORT
    assert talk.socket.own_port == GUEST_PORT
    talk.peer_sends(b"answer")
    assert talk.gets() == [b"answer"]


@pytest.mark.parametrize("size, may_be_cut", [(1000, False), (1400, True)])
def test_a_large_datagram_may_be_cut_behind_the_guest(world: World, size: int, may_be_cut: bool) -> None:
    """By a network of containers whose MTU is below the guest's: it was lost there. Each has a number of its own."""
    talk = Datagrams(world, 4)
    talk.sends(b"question")
    talk.peer_sends(bytes(size), bytes(size))
    heads = [struct.unpack("!HH", packet.frame[18:22]) for packet in world.inbox]
    assert [not flags & 0x4000 for _, flags in heads] == [may_be_cut] * 2
    assert len({number for number, _ in heads}) == (2 if may_be_cut else 1)
    assert talk.gets() == [bytes(size)] * 2


@pytest.mark.parametrize("size", [0, 1, 1472, 65000])
def test_datagrams_of_every_size_pass_both_ways(talk: Datagrams, size: int) -> None:
    payload = bytes(range(256)) * 256
    talk.sends(payload[:size])
    assert talk.sent() == [payload[:size]]
    talk.peer_sends(payload[:size])
    assert talk.gets() == [payload[:size]]


def test_the_gateway_is_the_hosts_loopback(world: World, family: int) -> None:
    talk = Datagrams(world, family, remote=MAPPED[family])
    talk.sends(b"x")
    loopback = mapped(bytes((127, 0, 0, 1))) if family == 4 else bytes(15) + b"\1"
    assert bytes(talk.socket.address) == loopback
    talk.peer_sends(b"y")
    assert talk.gets() == [b"y"]


def test_the_guests_own_address_is_the_hosts_under_another_name(world: World, family: int) -> None:
    """--map-guest-addr: the guest would keep to itself what it sends to its own."""
    ffi.memmove(getattr(world.view, f"map_guest{family}"), mapped(PEER[family]), 16)
    talk = Datagrams(world, family)
    talk.sends(b"x")
    assert bytes(talk.socket.address) == mapped(GUEST[family])
    talk.peer_sends(b"y")
    assert talk.gets() == [b"y"]


@pytest.mark.parametrize("errno_of_bind", [errno.EADDRNOTAVAIL, errno.ENODEV])
def test_a_way_out_that_is_gone_is_not_replaced_by_another(world: World, family: int, errno_of_bind: int) -> None:
    """Not by the kernel's choice, as a port that is taken would be."""
    ffi.memmove(getattr(world.view, f"outbound{family}"), mapped(GUEST[family]), 16)
    world.fail_next("bind", errno_of_bind)
    talk = Datagrams(world, family)
    talk.sends(b"x")
    assert world.calls("connect") == 0 and len(world.inbox) == 1, "the guest is told that there is no route"


@pytest.mark.parametrize("port", [53, 853, 54])
def test_dns_goes_where_the_view_says(world: World, family: int, port: int) -> None:
    """Only its ports: everything else at that address is what it was."""
    server, name = bytes((192, 0, 2, 53)) if family == 4 else b"\x20\x01" + bytes(13) + b"\x35", "46"[family == 6]
    ffi.memmove(getattr(world.view, f"dns_match{name}"), mapped(PEER[family]), 16)
    ffi.memmove(getattr(world.view, f"dns_host{name}"), mapped(server), 16)
    talk = Datagrams(world, family, port=port)
    talk.sends(b"q")
    assert bytes(talk.socket.address) == mapped(PEER[family] if port == 54 else server)
    talk.peer_sends(b"a")
    assert talk.gets() == [b"a"]


def test_of_several_redirections_the_first_counts(world: World, family: int) -> None:
    """A resolver's ports, then the host's loopback, then the host's own address."""
    server = bytes((192, 0, 2, 53)) if family == 4 else b"\x20\x01" + bytes(13) + b"\x35"
    loopback = mapped(bytes((127, 0, 0, 1))) if family == 4 else bytes(15) + b"\1"
    for name in ("dns_match", "map_host", "map_guest"):
        ffi.memmove(getattr(world.view, f"{name}{family}"), mapped(PEER[family]), 16)
    ffi.memmove(getattr(world.view, f"dns_host{family}"), mapped(server), 16)
    reached = []
    for port in (53, 54):
        talk = Datagrams(world, family, port=port)
        talk.sends(b"x")
        reached.append(bytes(talk.socket.address))
    ffi.memmove(getattr(world.view, f"map_host{family}"), bytes(16), 16)
    talk = Datagrams(world, family, port=55)
    talk.sends(b"x")
    assert [*reached, bytes(talk.socket.address)] == [mapped(server), loopback, mapped(GUEST[family])]


def test_an_address_that_no_route_starts_from_is_told(world: World, family: int) -> None:
    """With --freebind it can be bound; connect() says EINVAL then (IPv4's routes want one of the host's own)."""
    world.view.flags |= lib.LG_VIEW_FREEBIND
    world.fail_next("connect", errno.EINVAL)
    talk = Datagrams(world, family)
    talk.sends(b"x")
    assert talk.socket.freebind and not world.flows()
    _, message = talk.icmp()
    assert message[:2] == {4: bytes((3, 0)), 6: bytes((1, 0))}[family]


def test_a_port_that_cannot_be_kept_costs_no_datagram(world: World, family: int) -> None:
    """It may be below 1024, or taken: the kernel chooses another, which is counted."""
    talk = Datagrams(world, family)
    world.fail_next("bind", errno.EACCES)
    talk.sends(b"x")
    assert talk.sent() == [b"x"] and world.counter("udp_port_taken") == 1


def test_one_port_towards_many_peers_is_kept(world: World, family: int) -> None:
    """The first has it alone, before it lets the others in."""
    talks = [Datagrams(world, family, port=port) for port in (53, 54, 55)]
    for talk in talks:
        talk.sends(b"x")
        assert talk.socket.own_port == GUEST_PORT and talk.socket.reuse_address
        assert talk.socket.bound_shared == (talk is not talks[0])
    assert world.counter("udp_port_taken") == 0


def test_two_addresses_of_the_guest_share_no_port(world: World, family: int) -> None:
    """Of two sockets with one port and one peer, the kernel would give one the answers to both."""
    one, other = Datagrams(world, family), Datagrams(world, family)
    other.guest = OTHER_PEER[family]
    one.sends(b"x")
    first = one.fd
    other.sends(b"y")
    assert other.socket.own_port == 0 and not other.socket.reuse_address and world.counter("udp_port_taken") == 1
    other.peer_sends(b"for the other")
    assert other.gets() == [b"for the other"]
    assert lib.fake_datagram_arrive(first, b"for the one", 11, 0) == 0
    world.settle()
    assert one.gets() == [b"for the one"]


def test_two_names_of_one_peer_share_no_port(world: World, family: int) -> None:
    """The resolver under the address of --dns-forward, and under its own; other peers share on."""
    server, name = bytes((192, 0, 2, 53)) if family == 4 else b"\x20\x01" + bytes(13) + b"\x35", "46"[family == 6]
    ffi.memmove(getattr(world.view, f"dns_match{name}"), mapped(PEER[family]), 16)
    ffi.memmove(getattr(world.view, f"dns_host{name}"), mapped(server), 16)
    for remote, keeps in ((PEER[family], True), (server, False), (OTHER_PEER[family], True)):
        talk = Datagrams(world, family, remote=remote, port=53)
        talk.sends(b"x")
        assert (talk.socket.own_port == GUEST_PORT) == keeps
    assert world.counter("udp_port_taken") == 1


def test_a_port_is_free_again_when_the_last_flow_has_gone(world: World, family: int) -> None:
    """For another address of the guest's."""
    talks = [Datagrams(world, family, port=port) for port in (53, 54)]
    for talk in talks:
        talk.sends(b"x")
    world.advance(31)
    assert not world.flows()
    later = Datagrams(world, family)
    later.guest = OTHER_PEER[family]
    later.sends(b"x")
    assert later.socket.own_port == GUEST_PORT and not later.socket.bound_shared


def test_a_port_that_another_program_shares_is_not_taken(world: World, family: int) -> None:
    """It may be the helper of another guest, which would get the answers to this one, or this its."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    theirs = lib.sys_socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind, 0)
    assert lib.sys_setsockopt(theirs, socket.SOL_SOCKET, socket.SO_REUSEADDR, ffi.new("int *", 1), 4) == 0
    assert lib.fake_bind(theirs, GUEST_PORT) == 0
    talk = Datagrams(world, family)
    talk.sends(b"x")
    assert talk.socket.own_port == 0 and talk.sent() == [b"x"] and world.counter("udp_port_taken") == 1
    lib.sys_close(theirs)


def test_the_families_have_their_ports_apart(world: World) -> None:
    for family in (6, 4):
        talk = Datagrams(world, family)
        talk.sends(b"x")
        assert talk.socket.own_port == GUEST_PORT and not talk.socket.bound_shared


# ---- batches ----


def test_datagrams_of_one_size_are_one_message_and_arrive_each_by_itself(talk: Datagrams, world: World) -> None:
    """UDP_SEGMENT: the last may be shorter."""
    batch = [bytes([number]) * 1200 for number in range(10)] + [b"end"]
    talk.sends(*batch)
    assert talk.sent() == batch
    assert world.calls("sendmmsg") == 1


def test_datagrams_of_different_sizes_are_one_call(talk: Datagrams, world: World) -> None:
    batch = [b"a" * 100, b"b" * 200, b"", b"c" * 200, b"d" * 199, b"e" * 300]
    talk.sends(*batch)
    assert talk.sent() == batch
    assert world.calls("sendmmsg") == 1


def test_a_path_that_refuses_segments_gets_datagrams(talk: Datagrams, world: World) -> None:
    """None is lost, and none is tried that way again."""
    talk.sends(b"first")
    lib.fake_datagram_no_segments(talk.fd)
    batch = [bytes([number]) * 1200 for number in range(5)]
    talk.sends(*batch)
    assert talk.sent() == [b"first", *batch]
    before = world.calls("sendmmsg")
    talk.sends(*batch)
    assert talk.sent() == batch and world.calls("sendmmsg") == before + 1


def test_what_the_hosts_queue_does_not_take_is_counted(talk: Datagrams, world: World) -> None:
    talk.sends(b"first")
    world.fail_next("sendmmsg", errno.EAGAIN)
    talk.sends(b"lost")
    assert talk.sent() == [b"first"] and world.counter("datagrams_unsent") == 1


def test_an_error_of_the_past_does_not_cost_the_next_datagram(talk: Datagrams) -> None:
    """The call that meets it sends nothing; it is made again."""
    talk.sends(b"first")
    talk.world.fail_next("sendmmsg", errno.ECONNREFUSED)
    talk.sends(b"second")
    assert talk.sent() == [b"first", b"second"]


def test_many_answers_at_once_are_few_calls(talk: Datagrams, world: World) -> None:
    talk.sends(b"q")
    answers = [bytes([number]) * 900 for number in range(100)]
    for answer in answers:
        assert lib.fake_datagram_arrive(talk.fd, answer, len(answer), 0) == 0
    world.settle()
    assert talk.gets() == answers and world.calls("recvmmsg") <= 5


def test_what_the_kernel_joined_is_taken_apart(talk: Datagrams) -> None:
    """UDP_GRO: all of one size but the last."""
    talk.sends(b"q")
    talk.peer_sends(b"a" * 1000 + b"b" * 1000 + b"c" * 10, segment=1000)
    assert talk.gets() == [b"a" * 1000, b"b" * 1000, b"c" * 10]


def test_answers_wait_for_the_guests_buffers(talk: Datagrams, world: World) -> None:
    """What was taken from the socket is not lost, nor is what still lies there; and nobody spins."""
    talk.sends(b"q")
    world.set_link(buffer_bytes=2048)
    lib.script_set_room(2)
    answers = [bytes([number]) * 500 for number in range(40)]
    for answer in answers:
        assert lib.fake_datagram_arrive(talk.fd, answer, len(answer), 0) == 0
    world.settle()
    got = talk.gets()
    assert 0 < len(got) < 40
    while len(got) < 40:
        lib.script_give_room(5)
        world.settle()
        more = talk.gets()
        assert more
        got += more
    assert got == answers
    lib.script_give_room(1 << 20)


# ---- what the path says ----


def test_a_port_that_nobody_has_is_told_with_the_guests_own_header(talk: Datagrams) -> None:
    """Type, code and offender as they came; the ports are those of the guest's socket."""
    talk.sends(b"hello")
    kind, code = PORT_UNREACHABLE[talk.family]
    talk.path_error(errno.ECONNREFUSED, ORIGIN_ICMP[talk.family], kind, code, 0, talk.remote, b"hello")
    source, message = talk.icmp()
    assert source == talk.remote and message[:2] == bytes((kind, code))
    header = 20 if talk.family == 4 else 40
    assert message[8 + header :][:6] == struct.pack("!HHH", GUEST_PORT, PEER_PORT, 13)
    assert message[8 + header + 8 :] == b"hello"
    talk.sends(b"again")
    assert talk.sent() == [b"hello", b"again"]


def test_a_router_on_the_path_keeps_its_name(talk: Datagrams) -> None:
    """traceroute: time exceeded, from whoever it was."""
    router = bytes((192, 0, 2, 77)) if talk.family == 4 else b"\x20\x01" + bytes(13) + b"\x77"
    talk.queue(b"probe", hops=1)
    talk.world.settle()
    assert talk.socket.hops == 1
    kind = {4: 11, 6: 3}[talk.family]
    talk.path_error(errno.EHOSTUNREACH, ORIGIN_ICMP[talk.family], kind, 0, 0, router, b"probe")
    source, message = talk.icmp()
    assert source == router and message[0] == kind


def test_a_datagram_beyond_the_paths_mtu_is_told_the_mtu(talk: Datagrams) -> None:
    talk.sends(b"x" * 2000)
    talk.path_error(errno.EMSGSIZE, ORIGIN_LOCAL, 0, 0, 1400, bytes(4), b"x" * 2000)
    _, message = talk.icmp()
    assert message[:2] == {4: bytes((3, 4)), 6: bytes((2, 0))}[talk.family]
    assert struct.unpack("!I", message[4:8]) == (1400,)


def test_the_hosts_loopback_is_the_gateway_also_in_errors(world: World, family: int) -> None:
    talk = Datagrams(world, family, remote=MAPPED[family])
    talk.sends(b"x")
    kind, code = PORT_UNREACHABLE[family]
    loopback = bytes((127, 0, 0, 1)) if family == 4 else bytes(15) + b"\1"
    talk.path_error(errno.ECONNREFUSED, ORIGIN_ICMP[family], kind, code, 0, loopback, b"x")
    assert talk.icmp()[0] == MAPPED[family]


def test_what_the_host_found_out_itself_is_told_by_the_gateway(talk: Datagrams) -> None:
    """Its address is the guest's too, and no kernel listens to itself: a missing neighbour was told in vain."""
    talk.sends(b"x")
    kind, code = {4: (3, 1), 6: (1, 3)}[talk.family]
    talk.path_error(errno.EHOSTUNREACH, ORIGIN_ICMP[talk.family], kind, code, 0, talk.guest, b"x")
    source, message = talk.icmp()
    assert message[:2] == bytes((kind, code))
    assert source == GATEWAY[4] if talk.family == 4 else source[:2] == b"\xfe\x80"


def test_an_address_without_a_route_is_told_at_once(world: World, family: int) -> None:
    """And leaves no flow behind."""
    talk = Datagrams(world, family)
    world.fail_next("connect", errno.ENETUNREACH)
    talk.sends(b"x")
    source, message = talk.icmp()
    assert message[:2] == {4: bytes((3, 0)), 6: bytes((1, 0))}[family]
    assert source == GATEWAY[4] if family == 4 else source[:2] == b"\xfe\x80"
    assert not world.flows() and lib.fake_sockets_open() == 0


def test_errors_are_told_so_often_and_no_more(talk: Datagrams, world: World) -> None:
    """RFC 4443, 2.4 (f): a guest that asks for trouble gets so much of it in a second."""
    talk.sends(b"x")
    kind, code = PORT_UNREACHABLE[talk.family]
    for _ in range(300):
        talk.path_error(errno.ECONNREFUSED, ORIGIN_ICMP[talk.family], kind, code, 0, talk.remote, b"x")
    assert len(world.inbox) == world.counter("datagram_errors") == 100
    world.inbox.clear()


# ---- the end ----


def test_a_question_is_waited_for_half_a_minute(talk: Datagrams, world: World) -> None:
    talk.sends(b"q")
    world.advance(29.9)
    assert len(world.flows()) == 1
    world.advance(0.2)
    assert not world.flows() and lib.fake_sockets_open() == 0 and world.close_reasons() == ["idle"]


def test_what_goes_on_both_ways_lives_two_minutes(talk: Datagrams, world: World) -> None:
    for _ in range(2):
        talk.sends(b"q")
        talk.peer_sends(b"a")
    talk.gets()
    world.advance(119.9)
    assert len(world.flows()) == 1
    world.advance(0.2)
    assert not world.flows()


def test_a_datagram_keeps_its_flow_alive(talk: Datagrams, world: World) -> None:
    for _ in range(5):
        talk.sends(b"q")
        world.advance(20)
    assert len(world.flows()) == 1 and len(talk.sent()) == 5


@pytest.mark.world(flow_limit=8)
def test_a_full_table_forgets_who_was_silent_longest(world: World, family: int) -> None:
    talk = Datagrams(world, family)
    for port in range(8):
        talk.queue(b"x", source_port=50000 + port)
    world.settle()
    talk.queue(b"x", source_port=50100)
    world.settle()
    assert len(world.flows()) == 8 and world.counter("flows_refused") == 1
    world.advance(29)
    assert len(world.flows()) == 8


# ---- pings ----


def echo(
    world: World, family: int, kind: int, payload: bytes, sequence: int = 1, hops: int = 64, to: bytes | None = None
) -> None:
    message = struct.pack("!BBHHH", kind, 0, 0, IDENTIFIER, sequence) + payload
    protocol = ICMP if family == 4 else ICMPV6
    world.send(ip_packet(GUEST[family], to or PEER[family], protocol, message, hops=hops))
    world.settle()


def test_pings_of_one_identifier_to_two_peers_are_told_apart(talk: Datagrams, world: World) -> None:
    """As fping sends them: the host's kernel would give the replies of both to one of two sockets that share it."""
    echo(world, talk.family, ECHO_REQUEST[talk.family], b"ping")
    first = talk.socket
    other = OTHER_PEER[talk.family]
    echo(world, talk.family, ECHO_REQUEST[talk.family], b"ping", to=other)
    assert (first.own_port, talk.socket.own_port) == (IDENTIFIER, 0), "the second is the kernel's choice"
    talk.peer_sends(struct.pack("!BBHHH", ECHO_REPLY[talk.family], 0, 0, 999, 1) + b"ping")
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.source == other and struct.unpack("!H", packet.payload[4:6]) == (IDENTIFIER,)


def test_a_ping_and_its_reply(talk: Datagrams, world: World) -> None:
    """The host's kernel has an identifier of its own; the guest's is in the reply."""
    echo(world, talk.family, ECHO_REQUEST[talk.family], b"ping", hops=7)
    assert talk.socket.protocol == (ICMP if talk.family == 4 else ICMPV6) and talk.socket.hops == 7
    (request,) = talk.sent()
    assert request[0] == ECHO_REQUEST[talk.family] and request[8:] == b"ping"
    talk.peer_sends(struct.pack("!BBHHH", ECHO_REPLY[talk.family], 0, 0, 999, 1) + b"ping")
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.source == talk.remote
    kind, _, _, identifier, sequence = struct.unpack("!BBHHH", packet.payload[:8])
    assert (kind, identifier, sequence, packet.payload[8:]) == (ECHO_REPLY[talk.family], IDENTIFIER, 1, b"ping")


def test_a_host_that_gives_no_ping_socket_is_told_of_once(talk: Datagrams, world: World) -> None:
    """At any level of events: without it, pings just fail."""
    for sequence in range(3):
        world.fail_next("socket", errno.EACCES)
        echo(world, talk.family, ECHO_REQUEST[talk.family], b"ping", sequence)
    told = [lib.script_event(i) for i in range(lib.script_events())]
    assert sum(event.kind == lib.LG_EVENT_NO_PING for event in told) == 1
    world.inbox.clear()
    assert not world.flows()


def test_an_error_about_a_ping_has_the_guests_identifier(talk: Datagrams, world: World) -> None:
    echo(world, talk.family, ECHO_REQUEST[talk.family], b"ping")
    original = struct.pack("!BBHHH", ECHO_REQUEST[talk.family], 0, 0, 999, 1) + b"ping"
    kind = {4: 11, 6: 3}[talk.family]
    talk.path_error(errno.EHOSTUNREACH, ORIGIN_ICMP[talk.family], kind, 0, 0, talk.remote, original)
    _, message = talk.icmp()
    quoted = message[8 + (20 if talk.family == 4 else 40) :]
    assert quoted[4:6] == struct.pack("!H", IDENTIFIER)


# ---- what is no datagram ----


@pytest.mark.parametrize("length", [0, 7, 9, 65535])
def test_a_length_that_does_not_fit_is_dropped(world: World, family: int, length: int) -> None:
    header = struct.pack("!HHHH", GUEST_PORT, PEER_PORT, length, 0)
    world.send(ip_packet(GUEST[family], PEER[family], UDP, header))
    world.settle()
    assert world.counter("drop_udp_header") == 1 and not world.flows()


def test_a_header_in_part_is_dropped(world: World, family: int) -> None:
    world.send(ip_packet(GUEST[family], PEER[family], UDP, b"\1\2\3\4\5\6\7"))
    world.settle()
    assert world.counter("drop_short") == 1 and not world.flows()
