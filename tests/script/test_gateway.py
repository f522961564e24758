# SPDX-License-Identifier: Apache-2.0
"""The gateway of a virtual network: what it answers, whom it lets be reached, and connections from control."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest
from fake_core import ffi, lib
from segments import (
    ACK,
    ETHERTYPE_ARP,
    FIN,
    GUEST_MAC,
    RST,
    SYN,
    Ends,
    Options,
    Segment,
    address,
    ethernet,
    ip_packet,
    parse_segment,
)
from world import World, mapped16

UDP, ICMP = 17, 1
GUEST, GATEWAY, HOST = (address(f"192.168.127.{number}") for number in (2, 1, 254))
STRANGER = address("192.168.127.77")  # in the subnet, and nobody
PEER, METADATA, LOOPBACK = address("198.51.100.7"), address("169.254.169.254"), address("127.0.0.1")
VIRTUAL, LINK_LOCAL4, HOST_PORTS = 32768, 65536, 131072
DNS, HTTP, SSH = 53, 80, 22
GUEST_PORT, ISN = 40000, 5000


@pytest.fixture(name="net")
def virtual_network(world: World) -> Iterator[World]:
    view = world.view
    view.flags |= VIRTUAL
    subnet = address("192.168.127.0")
    for name, raw in {"guest4": GUEST, "gateway4": GATEWAY, "map_host4": HOST, "subnet4": subnet}.items():
        ffi.memmove(getattr(view, name), mapped16(raw), 16)
    ffi.memmove(view.subnet6, address("fd6c:6f63:6b67:127::"), 16)
    view.subnet4_bits, view.subnet6_bits = 24, 64
    view.service_tcp[0], view.service_tcp[1], view.service_udp[0] = DNS, HTTP, DNS
    yield world


def syn_to(world: World, remote: bytes, port: int) -> Ends:
    ends = Ends(GUEST, GUEST_PORT, remote, port)
    world.send(ends.tcp_head(SYN, ISN, 0, 65535, Options(mss=1460, wscale=7, sack_ok=True)))
    world.settle()
    return ends


def answer(world: World) -> Segment:
    """The one segment that the guest got."""
    (packet,) = world.inbox
    world.inbox.clear()
    return parse_segment(packet)


def punted() -> tuple[bytes, int]:
    buffer = ffi.new("uint8_t[]", lib.LG_FRAME_HEAD)
    length = int(lib.script_punted(buffer, lib.LG_FRAME_HEAD))
    return bytes(ffi.buffer(buffer, min(length, lib.LG_FRAME_HEAD))), length


def to_control() -> int:
    """A connected socket whose other end is control's."""
    listener = lib.fake_listen()
    descriptor: int = lib.fake_peer_connect(listener, mapped16(LOOPBACK), 50000)
    assert descriptor >= 0
    lib.sys_close(listener)
    return descriptor


def serve(head: bytes, length: int, fd: int) -> int:
    """What is refused stays ours, and is closed here."""
    result = int(lib.script_gateway_serve(head, len(head), length, fd))
    if result:
        lib.sys_close(fd)
    return result


def asks_for(world: World, target: bytes) -> bool:
    """Whether anybody answers an ARP request for it."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + GUEST + bytes(6) + target
    world.send(ethernet(ETHERTYPE_ARP, body, destination=b"\xff" * 6))
    world.settle()
    replies, world.arp_replies = world.arp_replies, []
    return bool(replies)


# ---- who is there ----


@pytest.mark.parametrize("target, there", [(GATEWAY, True), (HOST, True), (STRANGER, False), (PEER, False)])
def test_the_gateway_answers_arp_for_its_own_addresses_alone(net: World, target: bytes, there: bool) -> None:
    """Another guest of the subnet has its own."""
    assert asks_for(net, target) == there


def test_a_further_address_of_the_gateway_is_answered_for_too(net: World) -> None:
    ffi.memmove(net.view.gateway_other[0], mapped16(STRANGER), 16)
    assert asks_for(net, STRANGER)


# ---- what control answers ----


@pytest.mark.parametrize("port", [DNS, HTTP])
def test_a_syn_to_a_service_of_the_gateway_is_controls(net: World, port: int) -> None:
    syn_to(net, GATEWAY, port)
    assert lib.script_punts() == 1 and not net.flows() and not net.inbox


def test_the_guest_is_answered_when_control_has_given_a_socket(net: World) -> None:
    ends = syn_to(net, GATEWAY, HTTP)
    fd = to_control()
    assert serve(*punted(), fd) == 0
    net.settle()
    got = answer(net)
    assert (got.flags, got.ack, got.source_port) == (SYN | ACK, ISN + 1, HTTP)
    net.send(ends.tcp_head(ACK, ISN + 1, got.seq + 1, 65535))
    assert lib.fake_peer_send(fd, 300) == 300
    net.settle()
    assert sum(parse_segment(packet).length for packet in net.inbox) == 300


def test_a_syn_that_is_repeated_while_control_thinks_makes_one_connection(net: World) -> None:
    syn_to(net, GATEWAY, HTTP)
    syn_to(net, GATEWAY, HTTP)
    assert lib.script_punts() == 2
    assert serve(*punted(), to_control()) == 0
    assert serve(*punted(), to_control()) == -errno.EEXIST
    net.settle()
    assert len(net.flows()) == 1
    net.inbox.clear()


def test_when_the_table_is_full_control_keeps_its_socket(world: World, net: World) -> None:
    syn_to(net, GATEWAY, HTTP)
    head, length = punted()
    for port in range(64):
        net.send(Ends(GUEST, 1000 + port, PEER, 80).tcp_head(SYN, 1, 0, 65535))
        net.settle()
    assert serve(head, length, to_control()) == -errno.ENFILE


@pytest.mark.parametrize(
    "flags", [0, ACK, SYN | ACK, RST, SYN | FIN], ids=["none", "ACK", "SYN-ACK", "RST", "SYN-FIN"]
)
def test_control_cannot_open_a_connection_with_anything_but_a_syn(net: World, flags: int) -> None:
    head = Ends(GUEST, GUEST_PORT, GATEWAY, HTTP).tcp_head(flags, ISN, 0, 65535)
    assert serve(head, len(head), to_control()) == -errno.EINVAL and not net.flows()


@pytest.mark.parametrize("cut", [0, 13, 20, 40, 53])
def test_control_cannot_open_a_connection_with_a_part_of_a_syn(net: World, cut: int) -> None:
    head = Ends(GUEST, GUEST_PORT, GATEWAY, HTTP).tcp_head(SYN, ISN, 0, 65535)
    assert serve(head[:cut], cut, to_control()) == -errno.EINVAL and not net.flows()


def test_a_datagram_to_the_gateways_resolver_is_controls(net: World) -> None:
    net.send(ip_packet(GUEST, GATEWAY, UDP, struct.pack("!HHHH", GUEST_PORT, DNS, 8 + 12, 0) + bytes(12)))
    net.settle()
    assert lib.script_punts() == 1 and not net.flows()


def test_the_same_ports_elsewhere_are_ordinary(net: World) -> None:
    syn_to(net, PEER, HTTP)
    assert not lib.script_punts() and len(net.flows()) == 1


def test_without_a_virtual_network_the_gateway_has_no_such_services(net: World) -> None:
    net.view.flags &= ~VIRTUAL
    syn_to(net, GATEWAY, HTTP)
    assert not lib.script_punts() and len(net.flows()) == 1


# ---- who may send ----


@pytest.mark.parametrize(
    "source",
    ["10.88.0.5", "192.168.126.2", "192.168.128.0", "0.0.0.0", "0.0.0.1", "169.254.7.7", "127.0.0.1", "2001:db8::2"]
    + ["fd6c:6f63:6b67:128::2"],
)
def test_a_source_that_no_guest_can_have_opens_no_flow(net: World, source: str) -> None:
    """Cause: a guest that made its sources up filled the table with flows of addresses that nobody has."""
    ours = address(source)
    remote, ping = PEER, (ICMP, b"\x08\0\xf7\xfe\0\1\0\0")
    if len(ours) == 16:
        remote, ping = address("2001:db8::99"), (58, b"\x80\0\0\0\0\1\0\0")
    net.send(Ends(ours, GUEST_PORT, remote, 80).tcp_head(SYN, ISN, 0, 65535))
    net.send(ip_packet(ours, remote, UDP, struct.pack("!HHHH", GUEST_PORT, 9, 8, 0)))
    net.send(ip_packet(ours, remote, *ping))
    net.settle()
    assert net.counter("drop_source") == 3 and not net.inbox
    assert not net.flows() and not net.calls("socket") and not lib.script_punts()


def test_a_piece_of_a_packet_from_nowhere_is_dropped_like_a_whole_one(net: World) -> None:
    head = ip_packet(address("10.88.0.5"), PEER, UDP, struct.pack("!HHHH", GUEST_PORT, 9, 8 + 16, 0))
    net.send(head[:20] + b"\x20\0" + head[22:])  # more of it is to come
    net.settle()
    assert net.counter("drop_source") == 1 and not net.counter("fragments_joined")


@pytest.mark.parametrize("source", ["192.168.127.200", "fd6c:6f63:6b67:127::abcd", "fe80::1"])
def test_any_guest_of_the_network_may_send(net: World, source: str) -> None:
    ours = address(source)
    remote = PEER if len(ours) == 4 else address("2001:db8::99")
    net.send(ip_packet(ours, remote, UDP, struct.pack("!HHHH", GUEST_PORT, 9, 8, 0)))
    net.settle()
    assert len(net.flows()) == 1 and not net.counter("drop_source")


def test_who_has_no_address_yet_may_ask_for_one_and_for_nothing_else(net: World) -> None:
    nobody = address("0.0.0.0")
    net.view.flags |= 64  # DHCP
    net.send(ip_packet(nobody, address("255.255.255.255"), UDP, struct.pack("!HHHH", 68, 67, 8, 0)))
    net.settle()
    assert lib.script_punts() == 1 and not net.counter("drop_source")
    net.send(ip_packet(nobody, address("255.255.255.255"), UDP, struct.pack("!HHHH", 68, 68, 8, 0)))
    net.settle()
    assert lib.script_punts() == 1 and net.counter("drop_source") == 1


def test_who_looks_for_duplicates_has_no_address_and_is_heard(net: World) -> None:
    """RFC 4862, 5.4.3: that is how a guest is known that says nothing else of its address."""
    tentative = address("fd6c:6f63:6b67:127::abcd")
    asked = b"\x87\0\0\0" + bytes(4) + tentative
    net.send(ip_packet(bytes(16), address("ff02::1:ff00:abcd"), 58, asked, hops=255))
    net.settle()
    assert bytes(net.seen.addr6) == tentative and not net.counter("drop_source")


# ---- who is to be reached ----


@pytest.mark.parametrize(
    "remote, port",
    [(GATEWAY, 8080), (STRANGER, 80), (METADATA, 80)],
    ids=["another port of the gateway", "a free address of the subnet", "a cloud's metadata"],
)
def test_what_is_nobodys_is_refused_and_never_looked_for_on_the_hosts_network(
    net: World, remote: bytes, port: int
) -> None:
    syn_to(net, remote, port)
    got = answer(net)
    assert (got.flags, got.ack) == (RST | ACK, ISN + 1)
    assert not net.calls("connect") and not net.flows()


@pytest.mark.parametrize(
    "group", [address("255.255.255.255"), address("192.168.127.255"), address("224.0.0.251"), address("ff02::fb")]
)
def test_what_is_said_to_all_of_the_network_does_not_leave_it(net: World, group: bytes) -> None:
    """As with passt it would, whose guest stands for the host."""
    source = GUEST if len(group) == 4 else address("fd6c:6f63:6b67:127::2")
    net.send(ip_packet(source, group, UDP, struct.pack("!HHHH", GUEST_PORT, 5353, 8 + 4, 0) + b"who?"))
    net.settle()
    assert not net.flows() and not net.calls("socket") and net.counter("drop_address") == 1


@pytest.mark.parametrize("remote", [GATEWAY, STRANGER, METADATA])
def test_datagrams_and_pings_to_nobody_are_dropped(net: World, remote: bytes) -> None:
    net.send(ip_packet(GUEST, remote, UDP, struct.pack("!HHHH", GUEST_PORT, 9, 8, 0)))
    if remote != GATEWAY:
        net.send(ip_packet(GUEST, remote, ICMP, b"\x08\0\xf7\xfe\0\1\0\0"))
    net.settle()
    assert not net.flows() and not net.inbox
    assert net.counter("drop_address") == (1 if remote == GATEWAY else 2)


@pytest.mark.parametrize("metadata", ["fd00:ec2::254", "fd20:ce::254"])
def test_a_clouds_metadata_is_no_more_to_be_had_by_ipv6(net: World, metadata: str) -> None:
    ends = Ends(address("fd6c:6f63:6b67:127::2"), GUEST_PORT, address(metadata), 80)
    net.send(ends.tcp_head(SYN, ISN, 0, 65535, Options(mss=1440)))
    net.settle()
    assert answer(net).flags == RST | ACK and not net.flows()


def test_a_guest_that_is_not_there_is_given_up_within_seconds(net: World) -> None:
    fd = to_control()
    assert dial(GUEST, SSH, 50123, fd) == 0
    net.settle()
    net.advance(16)
    net.inbox.clear()
    assert lib.fake_socket_at(fd).aborted and not net.flows()


def test_link_local_addresses_can_be_allowed(net: World) -> None:
    net.view.flags |= LINK_LOCAL4
    syn_to(net, METADATA, 80)
    assert len(net.flows()) == 1


def test_the_hosts_loopback_can_be_narrowed_to_some_ports(net: World) -> None:
    net.view.flags |= HOST_PORTS
    net.view.host_port[0].first, net.view.host_port[0].last = 8000, 8010
    syn_to(net, HOST, 8011)
    assert answer(net).flags == RST | ACK and not net.flows()
    syn_to(net, HOST, 8010)
    assert bytes(lib.fake_socket_at(net.flows()[0].fd).address) == mapped16(LOOPBACK)


def test_an_address_of_the_subnet_can_mean_somebody_else(net: World) -> None:
    ffi.memmove(net.view.nat[0].shown, mapped16(STRANGER), 16)
    ffi.memmove(net.view.nat[0].real, mapped16(PEER), 16)
    syn_to(net, STRANGER, 80)
    assert bytes(lib.fake_socket_at(net.flows()[0].fd).address) == mapped16(PEER)


@pytest.mark.parametrize("error", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT])
def test_whatever_the_reason_the_guest_is_reset(net: World, error: int) -> None:
    """gvproxy's guests know no ICMP errors for connections."""
    syn_to(net, PEER, 80)
    assert lib.fake_peer_refuse(net.flows()[0].fd, error) == 0
    net.settle()
    assert answer(net).flags == RST | ACK


# ---- from control to the guest ----


def dial(guest: bytes, port: int, gateway_port: int, fd: int) -> int:
    result = int(lib.script_gateway_dial(mapped16(guest), port, gateway_port, fd))
    if result:
        lib.sys_close(fd)
    return result


def test_control_speaks_to_a_port_of_the_guest_as_the_gateway(net: World) -> None:
    fd = to_control()
    assert dial(GUEST, SSH, 50123, fd) == 0
    net.settle()
    syn = answer(net)
    assert (syn.flags, syn.packet.source, syn.packet.destination) == (SYN, GATEWAY, GUEST)
    assert (syn.source_port, syn.destination_port) == (50123, SSH)
    ends = Ends(GUEST, SSH, GATEWAY, 50123)
    net.send(ends.tcp_head(SYN | ACK, 7000, syn.seq + 1, 65535, Options(mss=1460)))
    net.settle()
    assert answer(net).flags == ACK
    assert lib.fake_peer_send(fd, 99) == 99
    net.settle()
    assert sum(parse_segment(packet).length for packet in net.inbox) == 99


def test_a_guest_that_refuses_resets_controls_connection(net: World) -> None:
    fd = to_control()
    assert dial(GUEST, SSH, 50123, fd) == 0
    net.settle()
    syn = answer(net)
    net.send(Ends(GUEST, SSH, GATEWAY, 50123).tcp_head(RST | ACK, 0, syn.seq + 1, 0))
    net.settle()
    assert lib.fake_socket_at(fd).aborted and not net.flows()


def test_two_connections_from_one_port_of_the_gateway_come_from_two(net: World) -> None:
    """The gateway has many clients: two of them may have the same port, and both are let in."""
    assert dial(GUEST, SSH, 50123, to_control()) == 0
    assert dial(GUEST, SSH, 50123, to_control()) == 0
    net.settle()
    assert [parse_segment(packet).source_port for packet in net.inbox] == [50123, 50124]
    net.inbox.clear()


@pytest.mark.parametrize("guest, port, gateway_port", [(bytes(16), 22, 1), (GUEST, 0, 1), (GUEST, 22, 0)])
def test_nobody_and_port_zero_cannot_be_dialled(net: World, guest: bytes, port: int, gateway_port: int) -> None:
    assert dial(guest, port, gateway_port, to_control()) == -errno.EINVAL


def test_a_client_on_the_hosts_loopback_comes_to_the_guest_as_the_gateway(net: World) -> None:
    """Not as the address by which the guest knows the host's loopback, as with passt."""
    listener = lib.fake_listen()
    assert lib.script_listen(0, listener, 6, SSH, mapped16(GUEST)) == 0
    assert lib.fake_peer_connect(listener, mapped16(LOOPBACK), 50200) >= 0
    net.settle()
    assert answer(net).packet.source == GATEWAY


def test_datagrams_from_the_hosts_loopback_are_answered_to_the_gateway(net: World) -> None:
    """Which is nobody to whom the guest could send any of its own accord."""
    fd = lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0)
    assert lib.script_listen(0, fd, UDP, 9, mapped16(GUEST)) == 0
    here = mapped16(LOOPBACK)
    assert lib.fake_datagram_arrive_from(fd, here, 50300, here, here, b"hello", 5, 0) == 0
    net.settle()
    (packet,) = net.inbox
    net.inbox.clear()
    assert (packet.source, packet.payload[8:]) == (GATEWAY, b"hello")
    net.send(ip_packet(GUEST, GATEWAY, UDP, struct.pack("!HHHH", 9, 50300, 8 + 3, 0) + b"you"))
    net.settle()
    buffer = ffi.new("uint8_t[]", 16)
    assert lib.fake_datagram_sent(fd, buffer, 16) == 3 and bytes(buffer[0:3]) == b"you"
