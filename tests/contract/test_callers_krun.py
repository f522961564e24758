# SPDX-License-Identifier: Apache-2.0
"""The callers whose VM is libkrun's, each with all that a guest wants from its network: muvm, libkrun's examples and
tests, crun with krun.

Adversary: nobody. What the guest's kernel sends has the offloads of libkrun's device: frames without checksums, and TCP
in super-segments.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import krun
import pytest
from cables import FIRST, FIRST6, PEER, PEER6, Cables, piped
from krun_callers import CALLERS, Called, Caller, Host
from namespace_sockets import NamespaceSockets
from resolver import ANSWER, NAME, answer
from running import PATIENCE, descriptors, ended
from scapy.layers.dns import DNS, DNSQR

GATEWAY, GATEWAY6 = "10.8.1.2", "fd08:1::2"
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
ANY, PEERS, FIRSTS = {4: "0.0.0.0", 6: "::"}, {4: PEER, 6: PEER6}, {4: FIRST, 6: FIRST6}
GATEWAYS, LOOPBACK = {4: GATEWAY, 6: GATEWAY6}, {4: "127.0.0.1", 6: "::1"}
SIZE = 1_000_000
SET_UP = """
echo 0 0 >/proc/sys/net/ipv4/ping_group_range  # the one group that is mapped there
echo 1100 65535 >/proc/sys/net/ipv4/ip_local_port_range  # `all` are the others
"""
FIRST_QUESTIONS = """  # have come, and were taken or dropped
until awk '$1 == "eth0:" && $3 + $5 >= 2 { found = 1 } END { exit !found }' /proc/net/dev; do :; done
"""
WITHOUT_LINK_LOCAL = """
cd /proc/sys/net/ipv6/conf/eth0
echo 1 >addr_gen_mode; echo 0 >accept_ra; echo 0 >disable_ipv6
"""
each_version = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def host(cables: Cables, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun, which makes the guest's eth0, is not here or not for us")
    cables.command(cables.prefix, "sh", "-euc", SET_UP)
    folder = tmp_path_factory.mktemp("host")
    made = Host(cables.prefix, folder, NamespaceSockets(cables.prefix), NamespaceSockets(cables.far_prefix))
    yield made
    made.sockets.close()
    made.far.close()


@pytest.fixture(scope="module", params=CALLERS)
def caller(request: pytest.FixtureRequest) -> Caller:
    return CALLERS[request.param]


@pytest.fixture(scope="module")
def called(host: Host, caller: Caller) -> Iterator[Called]:
    started = caller.starts(host)
    yield started
    started.close()


@pytest.fixture(scope="module")
def lease(called: Called, caller: Caller) -> krun.Lease:
    return caller.configures(called)


@pytest.fixture(scope="module")
def guest(called: Called, lease: krun.Lease) -> NamespaceSockets:
    called.guest.awaits_ipv6()
    return called.guest.sockets


def exchange(one: socket.socket, other: socket.socket) -> None:
    """Both ends send, and say that it is all; then each has got what the other one sent."""
    sent = [os.urandom(SIZE) for _ in range(2)]

    def sends(end: socket.socket, data: bytes) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    with one, other, ThreadPoolExecutor(4) as pool:
        for end, data in zip((one, other), sent, strict=True):
            pool.submit(sends, end, data)
        got = [pool.submit(received, end) for end in (other, one)]
        assert [future.result() for future in got] == [hashlib.sha256(data).digest() for data in sent]


def received(end: socket.socket) -> bytes:
    """Its digest."""
    digest = hashlib.sha256()
    while data := end.recv(1 << 16):
        digest.update(data)
    return digest.digest()


def test_the_lease_is_the_hosts_own_address(lease: krun.Lease, caller: Caller) -> None:
    """It came within the window in one message, an ACK straight away, and the client's own walker read it."""
    assert (lease.address, lease.prefix, lease.router, lease.mtu) == (FIRST, 24, GATEWAY, 65520)
    assert tuple(lease.resolvers) == caller.given
    assert len(lease.message) <= krun.REPLY_MAX - 28
    assert lease.kind == krun.ACK


def test_a_name_is_looked_up(host: Host, guest: NamespaceSockets, lease: krun.Lease, caller: Caller) -> None:
    """By the host's resolver, wherever it is; with --no-dhcp-dns a container has its own file: the gateway is in it."""
    where = host.sockets if caller.resolver.startswith("127.") else host.far
    server, _ = where.bound(DATAGRAM, caller.resolver, 53)
    client = guest.connected(DATAGRAM, (*lease.resolvers, GATEWAY)[0], 53)
    client.send(bytes(DNS(id=7, rd=1, qd=DNSQR(qname=NAME))))
    with server, client:
        question, source = server.recvfrom(512)
        server.sendto(answer(question), source)
        assert DNS(client.recv(512)).an[0].rdata == ANSWER


@each_version
def test_bytes_go_both_ways_at_once_to_a_host_far_away(host: Host, guest: NamespaceSockets, version: int) -> None:
    listener, port = host.far.bound(STREAM, PEERS[version])
    with listener:
        end = guest.connected(STREAM, PEERS[version], port)
        exchange(end, listener.accept()[0])


@each_version
def test_the_gateway_is_the_hosts_own_loopback_unless_told_otherwise(
    host: Host, guest: NamespaceSockets, caller: Caller, version: int
) -> None:
    """With --no-map-gw it is the real one, which may well be the resolver."""
    if caller.maps_gateway:
        listener, port = host.sockets.bound(STREAM, LOOPBACK[version])
    else:
        listener, port = host.far.bound(STREAM, GATEWAYS[version])
    with listener:
        end = guest.connected(STREAM, GATEWAYS[version], port)
        exchange(end, listener.accept()[0])


@each_version
def test_datagrams_come_back_to_the_port_that_sent_them(host: Host, guest: NamespaceSockets, version: int) -> None:
    """It is the guest's own that the far end sees; 60000 bytes are one frame on the link, and pieces on the cable."""
    server, port = host.far.bound(DATAGRAM, PEERS[version])
    client = guest.connected(DATAGRAM, PEERS[version], port)
    with server, client:
        for size in (1, 1400, 9000, 60000):
            client.send(sent := os.urandom(size))
            data, source = server.recvfrom(1 << 16)
            assert (data, source[:2]) == (sent, (FIRSTS[version], client.getsockname()[1]))
            server.sendto(data, source)
            assert client.recv(1 << 16) == sent


@each_version
def test_pings_come_back(called: Called, guest: NamespaceSockets, version: int) -> None:
    """From far away by the host's ping sockets, and from the gateway."""
    assert called.guest.pings(PEERS[version])
    assert called.guest.pings(GATEWAYS[version])


@each_version
def test_a_forwarded_port_leads_to_a_server_in_the_guest(
    host: Host, guest: NamespaceSockets, caller: Caller, version: int
) -> None:
    """Which sees who connects."""
    if caller.tcp is None:
        pytest.skip("this caller forwards none")
    outside, inside = caller.tcp
    listener, _ = guest.bound(STREAM, ANY[version], inside)
    with listener:
        end = host.far.connected(STREAM, FIRSTS[version], outside)
        accepted, source = listener.accept()
        assert source[:2] == end.getsockname()[:2]
        exchange(end, accepted)


@each_version
def test_a_forwarded_port_of_udp_leads_to_a_server_in_the_guest(
    host: Host, guest: NamespaceSockets, caller: Caller, version: int
) -> None:
    if caller.udp is None:
        pytest.skip("this caller forwards none")
    outside, inside = caller.udp
    server, _ = guest.bound(DATAGRAM, ANY[version], inside)
    client = host.far.connected(DATAGRAM, FIRSTS[version], outside)
    with server, client:
        client.send(b"who is there?")
        data, source = server.recvfrom(100)
        assert (data, source[:2]) == (b"who is there?", client.getsockname()[:2])
        server.sendto(b"I am", source)
        assert client.recv(100) == b"I am"


def test_the_helper_never_hangs_up_and_ends_with_its_vm(called: Called, lease: krun.Lease, caller: Caller) -> None:
    """A half-closed socket would end libkrun's networking. Nobody sends the helper a signal or looks after it."""
    processes = [os.pidfd_open(pid) for pid in called.processes()]
    called.kill_vm()
    assert all(ended(pidfd) for pidfd in processes)
    assert called.exit_status() == (None if caller.daemonises else 0)
    assert called.guest.end() == "", "its device was not content"
    for pidfd in processes:
        os.close(pidfd)


# ---- each with a VM of its own ----


@pytest.fixture
def starts(host: Host) -> Iterator[Callable[..., Called]]:
    """A caller of this name; what it started ends with the test."""
    started: list[Called] = []

    def begin(name: str, where: Host = host, **options: int) -> Called:
        started.append(CALLERS[name].starts(where, **options))
        return started[-1]

    yield begin
    for called in started:
        called.close()


@pytest.mark.parametrize("name", ["libkrun", "crun"])
def test_a_helper_that_dies_takes_all_its_ends_of_the_socket_with_it(starts: Callable[..., Called], name: str) -> None:
    """So that libkrun says at once that there is no network any more, instead of filling the socket."""
    called = starts(name)
    called.kill()
    assert called.guest.line() == krun.HUNG_UP


def test_muvm_keeps_the_helpers_end_and_its_vm_goes_on_without_one(starts: Callable[..., Called]) -> None:
    """Nobody hears of the helper's death: what the guest sends fills the socket."""
    called = starts("muvm")
    called.kill()
    assert ended(called.pidfd) and called.held
    called.guest.runs("ip link set eth0 up; ip address add 192.0.2.1/24 dev eth0")
    called.guest.sockets.connected(DATAGRAM, "192.0.2.2", 9).send(b"is there anybody?")  # an ARP request
    called.held.settimeout(PATIENCE)
    assert int.from_bytes(called.held.recv(4), "big") >= 14
    called.held.close()
    assert called.guest.line() == krun.HUNG_UP


@pytest.mark.parametrize("name", ["muvm", "libkrun", "crun"])
def test_what_the_helper_inherits_is_its_callers(starts: Callable[..., Called], name: str) -> None:
    """It reads nothing of its standard input, and a daemon does not keep it; what else was open it has not."""
    reader, writer = os.pipe()
    leaked = os.pipe()
    os.write(writer, b"for the console of the VM")
    called = starts(name, stdin=reader, leaked=leaked[1])
    CALLERS[name].configures(called)  # so that all of its processes are there
    streams = [os.readlink(f"/proc/self/fd/{fd}") for fd in (reader, leaked[1])]
    first, *others = [set(descriptors(pid).values()) for pid in called.processes()]
    assert (streams[0] in first) == (not CALLERS[name].daemonises) and streams[1] not in first
    assert not any(others_have.intersection(streams) for others_have in others)
    assert os.read(reader, 100) == b"for the console of the VM"
    for fd in (reader, writer, *leaked):
        os.close(fd)


def test_a_server_in_muvms_guest_is_reached_before_the_guest_has_said_a_word(
    host: Host, starts: Callable[..., Called]
) -> None:
    """It has only asked for its lease, under an address that it does not have any more, and for a router: without any
    detection of duplicates, the address that it made has not been heard of. One port is the host's own."""
    called = starts("muvm")
    called.guest.configured_by_muvm()
    reaches_a_server(called.guest.sockets, STREAM, (4, 80), host.far, (FIRST, 8080))
    for kind, inside, outside in ((STREAM, 80, 8080), (DATAGRAM, 54, 5301)):
        reaches_a_server(called.guest.sockets, kind, (6, inside), host.far, (FIRST6, outside))
    assert reaches_a_server(called.guest.sockets, STREAM, (6, 81), host.sockets, ("::1", 8081)) == GATEWAYS[6]


def test_a_server_is_reached_in_a_guest_that_makes_its_addresses_in_another_way(
    host: Host, starts: Callable[..., Called]
) -> None:
    """Each by a secret and its prefix (RFC 7217). It is reached where it was heard, from whatever address."""
    called = starts("muvm")
    called.guest.runs("echo 3 >/proc/sys/net/ipv6/conf/eth0/addr_gen_mode")
    called.guest.configured_by_muvm()
    reaches_a_server(called.guest.sockets, STREAM, (6, 80), host.far, (FIRST6, 8080))


@each_version
def test_a_server_is_reached_in_a_guest_that_was_never_heard(
    host: Host, starts: Callable[..., Called], version: int
) -> None:
    """It has the addresses that are meant for it, and asks nobody. The first SYN is not for it, the next one is."""
    called = starts("muvm")
    called.guest.runs("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip link set eth0 up")
    own = "ip address add $1/24 dev eth0; ip route add default via $2"
    if version == 6:
        own = "ip -6 address add $1/64 dev eth0 nodad; ip -6 route add default via $2 dev eth0"
        called.guest.runs(WITHOUT_LINK_LOCAL)
    called.guest.runs(FIRST_QUESTIONS)  # which are for addresses that it has not got yet
    called.guest.runs(own, FIRSTS[version], GATEWAYS[version])
    reaches_a_server(called.guest.sockets, STREAM, (version, 80), host.far, (FIRSTS[version], 8080))


def reaches_a_server(
    guest: NamespaceSockets, kind: int, inside: tuple[int, int], where: NamespaceSockets, outside: tuple[str, int]
) -> str:
    """Bytes go there and back; who it was for the server. `inside` is a version of IP and a port."""
    listener, _ = guest.bound(kind, ANY[inside[0]], inside[1])
    with listener, where.connected(kind, *outside) as client:
        client.send(b"who is there?")
        if kind == DATAGRAM:
            data, source = listener.recvfrom(100)
            listener.sendto(b"I am", source)
        else:
            server, source = listener.accept()
            with server:
                data = server.recv(100)
                server.send(b"I am")
        assert (data, client.recv(100)) == (b"who is there?", b"I am")
    return str(source[0])


def test_the_host_of_a_namespace_without_any_interface_is_reached_by_its_guest(
    host: Host, starts: Callable[..., Called]
) -> None:
    """As libkrun's own integration test has it: addresses that nobody else has, and the gateway is the host."""
    with piped(*host.prefix, "unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec cat") as alone:
        assert alone.stdout is not None and alone.stdout.readline()
        prefix = (*host.prefix[:-1], str(alone.pid))
        sockets = NamespaceSockets(prefix)
        called = starts("libkrun", Host(prefix, host.folder, sockets, sockets))
        lease = called.guest.configured_by_init()
        assert (lease.address, lease.prefix, lease.router) == ("169.254.2.1", 16, "169.254.2.2")
        listener, _ = sockets.bound(STREAM, "127.0.0.1", 9000)
        exchange(called.guest.sockets.connected(STREAM, "169.254.2.2", 9000), listener.accept()[0])
        sockets.close()
