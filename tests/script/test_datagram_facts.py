# SPDX-License-Identifier: Apache-2.0
"""Every fact of datagram_facts.py, against the real kernel (UDP over loopback) and against the fake one; and those of
which the fake kernel knows nothing.

Adversary: nobody. Invariant: as in test_kernel_facts.py, what the peer did has arrived before a fact is asked.
"""

from __future__ import annotations

import ctypes
import errno
import select
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

import pytest
from datagram_facts import FACTS, Datagrams, Heard, PathError
from fake_core import ffi, lib

UDP_SEGMENT, UDP_GRO = 103, 104  # linux/udp.h
IP_PKTINFO = 8
RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
IP_MULTICAST_ALL = 49
SOCKET_TYPE = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
EPOLL_CTL_ADD = 1
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
BROADCAST = "127.255.255.255"
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
GROUP = "239.1.2.3"
PATIENCE = 30  # seconds until something that must come has failed to
LIBC = ctypes.CDLL(None)


def _result(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError as error:
        return -(error.errno or errno.EIO)


def text(raw: bytes) -> str:
    """As Python shows the address of a socket of its family."""
    if raw == bytes(16):
        return ""
    shown = IPv6Address(raw)
    return str(shown.ipv4_mapped or shown)


class RealDatagrams(Datagrams):
    def __init__(self, family: int) -> None:
        self.family, self.peer_address = family, LOOPBACK[family]
        self.ours = self.peer = socket.socket(FAMILY[family], SOCKET_TYPE)
        self.epoll = select.epoll()
        self.left = False
        self.more: list[socket.socket] = []

    def _bound(self, host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(PATIENCE)
        made.bind((host, 0))
        self.more.append(made)
        return made

    def open(self, connected: bool = True, both_families: bool = False) -> None:
        if both_families:
            self.ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.ours.setsockopt(*RECVERR[self.family], 1)
        self.ours.bind(("", 0))
        self.peer = self._bound(self.peer_address)
        if connected:
            self.ours.connect(self.peer.getsockname())

    def set(self, option: str) -> None:
        if option == "joined":
            self.ours.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        elif option == "quiet":
            self.ours.setsockopt(*RECVERR[self.family], 0)
        elif option == "broadcast":
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        else:
            self.ours.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            if self.family == 6:
                self.ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def connect_to_broadcast(self) -> int:
        return -self.ours.connect_ex((BROADCAST, 9))

    def send(self, length: int, segment: int = 0) -> int:
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))] if segment else []
        sent = _result(lambda: self.ours.sendmsg([bytes(length)], control, socket.MSG_DONTWAIT))
        if self.left and sent >= 0:
            self._until(self.ours, 0)  # ERR belongs to every poll()
        return sent

    def hear(self, length: int = 1 << 16) -> Heard:
        try:
            data, control, flags, peer = self.ours.recvmsg(length, 256)
        except OSError as error:
            return Heard(-(error.errno or errno.EIO))
        told = {(level, kind): value for level, kind, value in control}
        segment = told.get((socket.IPPROTO_UDP, UDP_GRO), bytes(4))
        where4 = told.get((socket.IPPROTO_IP, IP_PKTINFO))
        where6 = told.get((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO))
        return Heard(
            len(data),
            cut=bool(flags & socket.MSG_TRUNC),
            segment=struct.unpack("=i", segment)[0],
            to=socket.inet_ntoa(where4[8:12]) if where4 else "",
            local=socket.inet_ntoa(where4[4:8]) if where4 else "",
            to6=socket.inet_ntop(socket.AF_INET6, where6[:16]) if where6 else "",
            peer=peer[0],
        )

    def hear_error(self) -> PathError | int:
        try:
            data, control, _, _ = self.ours.recvmsg(2048, 256, socket.MSG_ERRQUEUE)
        except OSError as error:
            return -(error.errno or errno.EIO)
        ((_, _, value),) = control
        number, origin, kind, code = struct.unpack_from("=IBBB", value)
        where = value[20:24] if self.family == 4 else value[24:40]
        return PathError(number, origin, (kind, code), socket.inet_ntop(FAMILY[self.family], where), len(data))

    def watch(self, events: int) -> None:
        self.epoll.register(self.ours, events)

    def woken(self) -> int:
        events = self.epoll.poll(0, 1)
        return events[0][1] if events else 0

    def _until(self, end: socket.socket, events: int) -> None:
        poll = select.poll()
        poll.register(end, events)
        assert poll.poll(PATIENCE * 1000), "it never arrived"

    def _send_from(self, end: socket.socket, to: str, length: int, segment: int = 0) -> None:
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))] if segment else []
        assert end.sendmsg([bytes(length)], control, 0, (to, self.ours.getsockname()[1])) == length

    def peer_sends(self, length: int, segment: int = 0) -> None:
        self._send_from(self.peer, self.peer_address, length, segment)
        self._until(self.ours, select.POLLIN)

    def another_sends(self, length: int) -> None:
        self._send_from(self._bound(self.peer_address), self.peer_address, length)

    def peer_broadcasts(self, length: int) -> str:
        end = self._bound(LOOPBACK[4])
        end.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._send_from(end, BROADCAST, length)
        self._until(self.ours, select.POLLIN)
        return BROADCAST

    def peer_gets(self, count: int) -> list[int]:
        lengths = [len(self.peer.recv(1 << 16)) for _ in range(count)]
        self.peer.setblocking(False)
        assert _result(lambda: len(self.peer.recv(1))) == -errno.EAGAIN
        return lengths

    def peer_leaves(self) -> None:
        self.left = True
        self.peer.close()

    def end(self) -> None:
        self.epoll.close()
        for end in (self.ours, *self.more):
            end.close()


class FakeDatagrams(Datagrams):
    """tests/script/fake_kernel.c, without a core."""

    def __init__(self, family: int) -> None:
        lib.fake_kernel_reset()
        lib.fake_defaults(262144, 1 << 20, 0, True)
        self.family, self.peer_address = family, LOOPBACK[family]
        self.epoll = lib.fake_epoll()
        self.left = False
        self.fd = int(lib.sys_socket(FAMILY[family], SOCKET_TYPE, 0))

    def _raw(self, host: str) -> bytes:
        return IPv6Address(host if ":" in host else f"::ffff:{host}").packed

    def _connect(self, host: str) -> int:
        if ":" in host:
            where = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", 80, 0, self._raw(host), 0)
        else:
            where = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 80, socket.inet_aton(host))
        return int(lib.sys_connect(self.fd, where, len(where)))

    def _set(self, level: int, name: int, value: int = 1) -> None:
        assert lib.sys_setsockopt(self.fd, level, name, ffi.new("int *", value), 4) == 0

    def open(self, connected: bool = True, both_families: bool = False) -> None:
        self._set(*RECVERR[self.family])
        assert lib.fake_bind(self.fd, 40000) == 0
        assert not connected or self._connect(self.peer_address) == 0

    def set(self, option: str) -> None:
        if option == "joined":
            self._set(socket.IPPROTO_UDP, UDP_GRO)
        elif option == "quiet":
            self._set(*RECVERR[self.family], 0)
        elif option == "broadcast":
            self._set(socket.SOL_SOCKET, socket.SO_BROADCAST)
        else:
            self._set(socket.IPPROTO_IP, IP_PKTINFO)
            if self.family == 6:
                self._set(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)

    def connect_to_broadcast(self) -> int:
        lib.fake_broadcast_address(self._raw(BROADCAST))
        return self._connect(BROADCAST)

    def send(self, length: int, segment: int = 0) -> int:
        data = bytes(length)
        sent = int(lib.fake_say(self.fd, data, length, segment))
        if self.left and sent >= 0:
            kind, code = {4: (3, 3), 6: (1, 4)}[self.family]
            origin = {4: 2, 6: 3}[self.family]
            told = (errno.ECONNREFUSED, origin, kind, code, 0, self._raw(self.peer_address))
            assert lib.fake_datagram_error(self.fd, ffi.new("struct fake_path_error *", told), data, length) == 0
        return sent

    def hear(self, length: int = 1 << 16) -> Heard:
        heard = lib.fake_hear(self.fd, ffi.new("char[]", length), length)
        if heard.length < 0:
            return Heard(int(heard.length))
        return Heard(
            int(heard.length),
            cut=heard.cut,
            segment=heard.segment,
            to=text(bytes(heard.to4)) if heard.where4 else "",
            local=text(bytes(heard.local4)) if heard.where4 else "",
            to6=socket.inet_ntop(socket.AF_INET6, bytes(heard.to6)) if heard.where6 else "",
            peer=text(bytes(heard.peer)),
        )

    def hear_error(self) -> PathError | int:
        told = ffi.new("struct fake_path_error *")
        length = int(lib.fake_hear_error(self.fd, told))
        if length < 0:
            return length
        return PathError(told.error, told.origin, (told.type, told.code), text(bytes(told.offender)), length)

    def watch(self, events: int) -> None:
        assert lib.sys_epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.fd, events, 0) == 0

    def woken(self) -> int:
        events, data = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        return int(events[0]) if lib.fake_epoll_wait_one(self.epoll, events, data) else 0

    def _arrive(self, source: str, port: int, to: str, local: str, length: int) -> None:
        data, ends = bytes(length), (self._raw(to), self._raw(local))
        assert lib.fake_datagram_arrive_from(self.fd, self._raw(source), port, *ends, data, length, 0) == 0

    def peer_sends(self, length: int, segment: int = 0) -> None:
        if segment:
            assert lib.fake_datagram_arrive(self.fd, bytes(length), length, segment) == 0
        else:
            self._arrive(self.peer_address, 80, self.peer_address, self.peer_address, length)

    def another_sends(self, length: int) -> None:
        self._arrive(self.peer_address, 81, self.peer_address, self.peer_address, length)

    def peer_broadcasts(self, length: int) -> str:
        self._arrive(LOOPBACK[4], 80, BROADCAST, LOOPBACK[4], length)
        return BROADCAST

    def peer_gets(self, count: int) -> list[int]:
        buffer = ffi.new("uint8_t[]", 1 << 16)
        lengths = [int(lib.fake_datagram_sent(self.fd, buffer, 1 << 16)) for _ in range(count + 1)]
        assert lengths.pop() == -errno.EAGAIN
        return lengths

    def peer_leaves(self) -> None:
        self.left = True

    def end(self) -> None:
        violation = ffi.string(lib.fake_violation()).decode()
        lib.fake_kernel_reset()
        assert not violation, violation


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"], name="version")
def each_family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[RealDatagrams, FakeDatagrams], ids=["real", "fake"])
def kernel(request: pytest.FixtureRequest, version: int) -> Iterator[Datagrams]:
    made: RealDatagrams | FakeDatagrams = request.param(version)
    yield made
    made.end()


@pytest.mark.parametrize("sentence", FACTS)
def test_fact(sentence: str, kernel: Datagrams) -> None:
    """What datagram_facts.py says in this sentence is so."""
    FACTS[sentence](kernel)


# ---- of the real kernel alone: why the core does not do what the fake kernel would not understand ----


@pytest.fixture(name="port")
def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


def test_a_disconnected_socket_is_not_as_it_was(version: int, port: int) -> None:
    """It forgets the interface that it was bound to, and one of IPv6 goes on to hear its old peer alone: so a socket to
    a group never is connected."""
    with socket.socket(FAMILY[version], SOCKET_TYPE) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        ours.bind(("", port))
        ours.connect((LOOPBACK[version], 9))
        nobody = struct.pack("=H14x", socket.AF_UNSPEC)
        assert LIBC.connect(ours.fileno(), nobody, len(nobody)) == 0
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b""
        table = [line.split() for line in open(f"/proc/self/net/udp{'' if version == 4 else '6'}")]
        (peer,) = [row[2] for row in table if row[1].endswith(f":{port:04X}")]
        assert peer == {4: "00000000:0000", 6: f"{1 << 24:032X}:0000"}[version]


def bound(port: int, share: bool) -> socket.socket | None:
    """None: not allowed."""
    made = socket.socket(socket.AF_INET, SOCKET_TYPE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, share)
    try:
        made.bind(("", port))
    except OSError as error:
        assert error.errno == errno.EADDRINUSE
        made.close()
        return None
    return made


def test_a_socket_that_shares_its_port_only_later_takes_none(port: int) -> None:
    """Not that of one who shares; but lets in who comes after. Of two that share, the later one gets what comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        first = bound(port, share=True)
        assert first and not bound(port, share=False)
        later = bound(port, share=True)
        assert later
        sender.sendto(b"x", ("127.0.0.1", port))
        assert later.recv(1) == b"x", "the first lost it"
        first.close()
        later.close()
        ours = bound(port, share=False)
        assert ours and not bound(port, share=True)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other = bound(port, share=True)
        assert other
        other.connect(("127.0.0.1", sender.getsockname()[1]))
        sender.sendto(b"y", ("127.0.0.1", port))
        assert other.recv(1) == b"y", "a connected one comes first"
        ours.close()
        other.close()


@pytest.mark.parametrize("alone", [False, True], ids=["both families", "IPV6_V6ONLY"])
def test_a_port_of_one_family_is_the_others_too_unless_the_socket_says(alone: bool, port: int) -> None:
    with socket.socket(socket.AF_INET6, SOCKET_TYPE) as six:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        six.bind(("", port))
        four = bound(port, share=False)
        assert (four is not None) == alone
        if four:
            four.close()


@pytest.mark.parametrize(
    ("version", "option", "hears"),
    [(4, None, True), (4, 0, False), (6, None, False), (6, 1, True)],
    ids=["IPv4", "IPv4, IP_MULTICAST_ALL off", "both families", "both families, IP_MULTICAST_ALL on"],
)
def test_groups_that_others_have_joined(version: int, option: int | None, hears: bool, port: int) -> None:
    """A socket of IPv4 hears them unless IP_MULTICAST_ALL is off, one of both families only if it is on."""
    member = socket.socket(socket.AF_INET, SOCKET_TYPE)
    joined = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
    with member, socket.socket(FAMILY[version], SOCKET_TYPE) as ours, socket.socket(type=socket.SOCK_DGRAM) as sender:
        if option is not None:
            ours.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, option)
        if version == 6:
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        ours.bind(("", port))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(b"to the group", (GROUP, port))
        sender.sendto(b"to us", ("127.0.0.1", port))
        heard = [ours.recv(100)]
        if hears:
            heard.append(ours.recv(100))
        assert heard == ([b"to the group"] if hears else []) + [b"to us"]


# ---- ping sockets, in a namespace where they are allowed ----

PING = """
import errno, select, socket, struct, sys
version = int(sys.argv[1])
protocol, request, reply = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}[version]
family, host = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}[version]
def bound(share):
    made = socket.socket(family, socket.SOCK_DGRAM, protocol)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, share)
    made.bind(("", 0x1234))  # in the place of a port
    return made
def asks(end, sequence):
    end.connect((host, 0))
    message = struct.pack("!BBHHH", request, 0, 0, 999, sequence) + b"ping"
    assert end.send(message) == len(message)
def hears(end):
    assert select.select([end], [], [], 30)[0]
    kind, code, _, identifier, sequence = struct.unpack("!BBHHH", end.recv(100)[:8])
    assert (kind, code, identifier) == (reply, 0, 0x1234), "the socket's own identifier, not the message's"
    return sequence
def error_of(call):
    try:
        call()
    except OSError as error:
        return error.errno
first = bound(True)
asks(first, 7)
assert hears(first) == 7
second = bound(True)
asks(first, 8)
assert hears(second) == 8, "whose it is, nobody looks at"
first.close()
second.close()
alone = bound(False)
assert error_of(lambda: bound(True)) == errno.EADDRINUSE
asks(alone, 9)
assert hears(alone) == 9
assert error_of(lambda: alone.send(struct.pack("!BBHHH", reply, 0, 0, 999, 7))) == errno.EINVAL
"""
ALLOW = 'ip link set lo up && echo "0 0" >/proc/sys/net/ipv4/ping_group_range && exec "$@"'
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def test_a_ping_socket_is_known_by_its_own_identifier(version: int) -> None:
    """Which bind() chooses, and the kernel writes into each request. Two may share one unless SO_REUSEADDR is off, and
    the replies of both go to one of them. Nothing but requests may be sent."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make a user and a network namespace")
    command = [*NAMESPACE, "sh", "-c", ALLOW, "sh", sys.executable, "-c", PING, str(version)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
