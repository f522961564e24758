# SPDX-License-Identifier: Apache-2.0
"""Frames on the stream link of a running helper: wrong checksums, the longest ones, and a monitor that comes back.

libkrun cuts off the header that says which checksums are unfinished, so that from its guests they all count as right;
to the guest, where nobody could say so either, they must be. Adversary: nobody. The guest's address is on the command
line, and the gateway is the host's loopback, so that nothing depends on this machine's network.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from monitor import GATEWAY, GUEST, GUEST_MAC, Monitor
from running import PATIENCE, Foreground
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from vm import ACK, PSH, Connection, checksum

GUEST6, GATEWAY6 = "fe80::5054:ff:fe12:3456", "fe80::1"
ADDRESSES = ("-a", GUEST, "-n", "24", "-g", GATEWAY, "-g", GATEWAY6, "--mtu", "65521")
FRAME_MAX = 65535
IP_MAX = FRAME_MAX - 14
OUR_MAC = "9a:55:9a:55:9a:55"
CHECK_AT = {6: 16, 17: 6, 1: 2, 58: 2}  # in the header of TCP, UDP, ICMP and ICMPv6
DATA = bytes(range(256)) * 256  # 64 KiB


def transport_of(frame: bytes) -> tuple[bytes, int, int]:
    """Of an IP packet: the pseudo-header without protocol and length, the protocol, and where its header begins."""
    if frame[12:14] == b"\x08\x00":
        return frame[26:34], frame[23], 34
    return frame[22:54], frame[20], 54


def is_ip(frame: bytes) -> bool:
    return frame[12:14] in (b"\x08\x00", b"\x86\xdd")


class Spoiler(Monitor):
    """A guest whose every checksum is wrong, and which finds each right that it gets."""

    def send(self, frame: bytes) -> None:
        spoiled = bytearray(frame)
        if is_ip(frame):
            _, protocol, at = transport_of(frame)
            places = [at + CHECK_AT[protocol]] + ([24] if at == 34 else [])
            for place in places:
                spoiled[place] ^= 0xA5
                spoiled[place + 1] ^= 0x5A
        super().send(bytes(spoiled))

    def receive(self) -> bytes:
        frame = super().receive()
        if not is_ip(frame):
            return frame
        ends, protocol, at = transport_of(frame)
        length = int.from_bytes(frame[16:18], "big") - 20 if at == 34 else int.from_bytes(frame[18:20], "big")
        message = frame[at : at + length]
        pseudo = b"" if protocol == 1 else ends + struct.pack("!II", length, protocol)
        assert at != 34 or checksum(frame[14:34]) == 0
        assert checksum(pseudo + message) == 0, f"protocol {protocol}: a wrong checksum to the guest"
        return frame


class Half:
    """A wire over which only the first bytes of a frame go, its length among them."""

    def __init__(self, monitor: Monitor, size: int) -> None:
        self._monitor, self._size = monitor, size
        self.receive = monitor.receive

    def send(self, frame: bytes) -> None:
        self._monitor.socket.sendall((struct.pack("!I", len(frame)) + frame)[: self._size])


class Measure(Monitor):
    longest = 0

    def receive(self) -> bytes:
        frame = super().receive()
        self.longest = max(self.longest, len(frame))
        return frame


@pytest.fixture(name="helper")
def started_helper(start: Callable[..., Foreground]) -> Foreground:
    return start(*ADDRESSES, stream=True)


@pytest.fixture(name="attach")
def attaching(helper: Foreground) -> Iterator[Callable[..., Monitor]]:
    """A monitor that connects."""
    ends: list[socket.socket] = []

    def attach(kind: type[Monitor] = Monitor) -> Monitor:
        ends.append(socket.socket(socket.AF_UNIX))
        ends[-1].connect(str(helper.socket))
        return kind(ends[-1])

    yield attach
    for end in ends:
        end.close()


@pytest.fixture(name="listener")
def tcp_listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture(name="echo")
def udp_socket() -> Iterator[socket.socket]:
    """To be asked by send_back()."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        yield server


def send_back(echo: socket.socket) -> int:
    """One datagram to whom it came from; its length."""
    data, sender = echo.recvfrom(1 << 16)
    echo.sendto(data, sender)
    return len(data)


def accepted(listener: socket.socket, monitor: Monitor) -> tuple[Connection, socket.socket]:
    """A connection of the guest's with this host, both ends."""
    connection = Connection(monitor, GUEST, 40000, GATEWAY, listener.getsockname()[1])
    connection.mss = IP_MAX - 40
    connection.open()
    peer, _ = listener.accept()
    peer.settimeout(PATIENCE)
    return connection, peer


def read_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := peer.recv(1 << 20)):
        data += piece
    return data


def ethernet() -> Ether:
    return Ether(src=GUEST_MAC, dst=OUR_MAC)


def datagram(port: int, data: bytes) -> bytes:
    return bytes(ethernet() / IP(src=GUEST, dst=GATEWAY) / UDP(sport=5000, dport=port) / data)


def test_wrong_checksums_of_a_connection_are_taken(attach: Callable[..., Monitor], listener: socket.socket) -> None:
    """Of IPv4 and TCP, from the SYN on; what comes back is right."""
    connection, peer = accepted(listener, attach(Spoiler))
    with peer:
        connection.send(b"question" * 1000)
        assert read_exactly(peer, 8000) == b"question" * 1000
        peer.sendall(b"answer" * 1000)
        assert connection.read(6000) == b"answer" * 1000


def test_wrong_checksums_of_datagrams_are_taken(attach: Callable[..., Monitor], echo: socket.socket) -> None:
    """Of UDP to a host, and of DHCP, which control reads."""
    monitor = attach(Spoiler)
    monitor.send(datagram(echo.getsockname()[1], b"question" * 4))
    assert send_back(echo) == 32
    assert bytes(monitor.receives(UDP)[UDP].payload) == b"question" * 4
    assert socket.inet_ntoa(monitor.discovers()[16:20]) == GUEST


def test_wrong_checksums_of_questions_to_neighbours_are_taken(attach: Callable[..., Monitor]) -> None:
    """An echo request and a neighbour solicitation, which the worker answers itself."""
    monitor = attach(Spoiler)
    monitor.send(bytes(ethernet() / IP(src=GUEST, dst=GATEWAY) / ICMP(id=7, seq=1) / (b"x" * 32)))
    answer = monitor.receives(ICMP)[ICMP]
    assert (answer.type, answer.id, bytes(answer.payload)[:32]) == (0, 7, b"x" * 32)
    ask = IPv6(src=GUEST6, dst=GATEWAY6) / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
    monitor.send(bytes(ethernet() / ask))
    assert monitor.receives(ICMPv6ND_NA)[ICMPv6ND_NA].tgt == GATEWAY6


def test_the_longest_datagram_of_one_frame_goes_both_ways(attach: Callable[..., Monitor], echo: socket.socket) -> None:
    monitor, data = attach(), DATA[: IP_MAX - 28]
    frame = datagram(echo.getsockname()[1], data)
    assert len(frame) == FRAME_MAX
    monitor.send(frame)
    assert send_back(echo) == len(data)
    answer = monitor.receives(UDP)
    assert len(answer) == FRAME_MAX and bytes(answer[UDP].payload) == data


def test_the_longest_segment_of_one_frame_goes_both_ways(
    attach: Callable[..., Monitor], listener: socket.socket
) -> None:
    monitor = attach(Measure)
    assert isinstance(monitor, Measure)
    connection, peer = accepted(listener, monitor)
    with peer:
        connection.send(DATA[:50000])  # the first window is a little smaller than that segment
        connection.until_acked(50000)
        connection.segment(ACK | PSH, DATA[: IP_MAX - 40])
        connection.seq += IP_MAX - 40
        assert read_exactly(peer, 50000 + IP_MAX - 40) == DATA[:50000] + DATA[: IP_MAX - 40]
        peer.sendall(DATA * 4)
        assert connection.read(len(DATA) * 4) == DATA * 4
    assert monitor.longest == FRAME_MAX


def test_a_monitor_that_comes_back_goes_on_where_it_was(
    attach: Callable[..., Monitor], listener: socket.socket
) -> None:
    """It left with half a segment in the stream and in the middle of a frame to it, with megabytes behind that. Of all
    this the next one gets nothing, and the connection of the guest loses nothing."""
    monitor = attach()
    connection, peer = accepted(listener, monitor)
    with peer, ThreadPoolExecutor() as sender:
        sent = sender.submit(peer.sendall, DATA * 64)
        got = b""
        for cut in (1, 3, 4, 50, 1000):
            got += connection.read(cut * 100)
            connection.vm = Half(monitor, cut)
            connection.segment(ACK | PSH, b"never whole" * 100)
            (length,) = struct.unpack("!I", monitor.socket.recv(4, socket.MSG_WAITALL))
            monitor.socket.recv(min(length - 1, cut), socket.MSG_WAITALL)
            monitor.socket.close()
            connection.vm = monitor = attach(Spoiler)
            connection.segment(ACK)
        got += connection.read(len(DATA) * 64 - len(got))
        assert got == DATA * 64
        sent.result()
        connection.send(b"the rest")
        assert read_exactly(peer, 8) == b"the rest"


def test_what_the_one_before_did_not_read_is_not_for_the_next(
    attach: Callable[..., Monitor], echo: socket.socket
) -> None:
    """Neither what is in its socket nor what had no place there."""
    monitor = attach()
    count = 64
    for number in range(count):
        monitor.send(datagram(echo.getsockname()[1], b"old".ljust(60000, b"-")))
        assert send_back(echo) == 60000, number
    monitor.socket.recv(100)
    monitor.socket.close()
    monitor = attach()
    monitor.send(datagram(echo.getsockname()[1], b"new"))
    assert send_back(echo) == 3
    assert bytes(monitor.receives(UDP)[UDP].payload).startswith(b"new")
