# SPDX-License-Identifier: Apache-2.0
"""Many connections of one guest of gvproxy at once, to the host and to the gateway's own services."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import host_namespace
import pytest
from gvproxy_guest import DEVICE_MAC, GATEWAY, GATEWAY_MAC, GVPROXY, HOST, Gvproxy, WireGuest, stream
from running import PATIENCE
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import UDP

COUNT = 1000
FIRST_PORT = 20000
SYN, PSH, ACK, FIN = 2, 8, 16, 1
HALF, REST = b"GET /services/forwarder/all HTTP/1.1\r\nHo", b"st: a\r\nConnection: close\r\n\r\n"  # of a request
HALVES = 300
PATIENT = FIRST_PORT + 250  # neither among those that make room, nor among those that once waited for it
AT_ONCE = 50
FILES = 256
MACS = bytes.fromhex((GATEWAY_MAC + DEVICE_MAC).replace(":", ""))


class EchoServer:
    """Sends back what comes, to all at once, until it is closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=COUNT)
        self.port = self.listener.getsockname()[1]
        self.most = 0  # connections at once
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, ExitStack() as ends:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopped:
                        return
                    if key.fileobj is self.listener:
                        selector.register(ends.enter_context(self.listener.accept()[0]), selectors.EVENT_READ)
                        self.most = max(self.most, len(selector.get_map()) - 2)
                        continue
                    client = key.fileobj
                    assert isinstance(client, socket.socket)
                    data = client.recv(1 << 16)
                    if data:
                        client.sendall(data)
                    else:
                        selector.unregister(client)
                        client.close()

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self.listener.close()


@pytest.fixture(name="server")
def echo_server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture(name="port")
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(name="guest")
def guest_with_an_address(folder: Path, port: int) -> Iterator[WireGuest]:
    """Beside it, the API is at a file, and at a port that the guest reaches, too."""
    with ExitStack() as ends:
        places = ("-listen", f"unix://{folder}/api", "-listen", f"tcp://127.0.0.1:{port}")
        helper = Gvproxy("-listen-qemu", f"unix://{folder}/link", *places)
        ends.callback(helper.close)
        sock = ends.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(str(folder / "link"))
        guest = WireGuest(stream(sock))
        guest.gets_address()
        yield guest


def segment(
    guest: WireGuest, port: int, to: tuple[str, int], numbers: tuple[int, int], flags: int, data: bytes
) -> bytes:
    """A frame, its checksums left out: gvproxy's guests may do that."""
    addresses = socket.inet_aton(guest.address) + socket.inet_aton(to[0])
    tcp = struct.pack("!HHIIBBHHH", port, to[1], *numbers, 5 << 4, flags, 60000, 0, 0) + data
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + addresses
    return MACS + b"\x08\0" + ip + tcp


def parsed(frame: bytes) -> tuple[int, int, int, int, bytes] | None:
    """Our port, its sequence number, what it acknowledges, flags and data; None: it is no segment of TCP."""
    if frame[12:14] != b"\x08\0" or frame[23] != 6:
        return None
    total, tcp = int.from_bytes(frame[16:18]), frame[34:]
    _, port, seq, ack, offset, flags = struct.unpack("!HHIIBB", tcp[:14])
    return port, seq, ack, flags, tcp[(offset >> 4) * 4 : total - 20]


def test_a_thousand_connections_at_once_are_all_intact(guest: WireGuest, server: EchoServer) -> None:
    """Each says its own number, and hears it again; the reference leaves all but ten half-open ones unanswered."""
    to = HOST, server.port
    ports = range(FIRST_PORT, FIRST_PORT + COUNT)
    for port in ports:
        guest.wire.send(segment(guest, port, to, (100, 0), SYN, b""))
    theirs: dict[int, int] = {}
    heard: dict[int, bytes] = {port: b"" for port in ports}
    wanted = {port: f"connection {port} ".encode() * 20 for port in ports}
    while any(heard[port] != wanted[port] for port in ports):
        found = parsed(guest.wire.receive())
        if found is None:
            continue
        port, seq, _, flags, data = found
        if flags & SYN and port not in theirs:
            theirs[port] = seq + 1
            if len(theirs) == COUNT:  # all are open before the first says a word
                for one in ports:
                    guest.wire.send(segment(guest, one, to, (101, theirs[one]), ACK | PSH, wanted[one]))
        elif data and seq == theirs[port]:
            heard[port] += data
            theirs[port] += len(data)
            guest.wire.send(segment(guest, port, to, (101 + len(wanted[port]), theirs[port]), ACK, b""))
    assert server.most == COUNT
    for port in ports:
        guest.wire.send(segment(guest, port, to, (101 + len(wanted[port]), theirs[port]), ACK | FIN, b""))
    ended: set[int] = set()
    while len(ended) < COUNT:
        found = parsed(guest.wire.receive())
        if found is not None and found[3] & FIN:
            ended.add(found[0])


def test_names_are_resolved_meanwhile(guest: WireGuest, server: EchoServer) -> None:
    """A thousand that were begun, and not ended."""
    for port in range(FIRST_PORT, FIRST_PORT + COUNT):
        guest.wire.send(segment(guest, port, (HOST, server.port), (100, 0), SYN, b""))
    assert guest.resolves("host.containers.internal") == HOST
    assert guest.asks_api("GET", "/services/forwarder/all")[0] == 200


def send_halves(guest: WireGuest, to: tuple[str, int]) -> dict[int, int]:
    """Opens connections, with the first half of a request on each; what to acknowledge, by port."""
    theirs: dict[int, int] = {}
    for first in range(FIRST_PORT, FIRST_PORT + HALVES, AT_ONCE):
        ports = range(first, first + AT_ONCE)
        for port in ports:
            guest.wire.send(segment(guest, port, to, (100, 0), SYN, b""))
        while not theirs.keys() >= {*ports}:
            found = parsed(guest.wire.receive())
            if found is not None and found[3] & SYN:
                port, seq, *_ = found
                theirs[port] = seq + 1
                guest.wire.send(segment(guest, port, to, (101, seq + 1), ACK | PSH, HALF))
    return theirs


def finish(guest: WireGuest, to: tuple[str, int], port: int, theirs: int) -> bytes:
    """The second half of the request; the first part of the reply."""
    guest.wire.send(segment(guest, port, to, (101 + len(HALF), theirs), ACK | PSH, REST))
    while True:
        found = parsed(guest.wire.receive())
        if found is not None and found[0] == port and (found[4] or found[3] & FIN):
            return found[4]


def ask_host(family: socket.AddressFamily, place: tuple[str, int] | str) -> bytes:
    """What a client of the host's hears."""
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(place)
        client.sendall(HALF + REST)
        return client.recv(1 << 16)


@pytest.mark.parametrize("by_host", [False, True])
def test_half_requests_keep_nobody_off_the_api(guest: WireGuest, folder: Path, port: int, by_host: bool) -> None:
    """They are still under way when all others have been answered: then one of them is finished."""
    to = (HOST, port) if by_host else (GATEWAY, 80)
    halves = send_halves(guest, to)
    assert ask_host(socket.AF_UNIX, str(folder / "api")).startswith(b"HTTP/1.1 200 ")
    assert ask_host(socket.AF_INET, ("127.0.0.1", port)).startswith(b"HTTP/1.1 200 ")
    assert guest.asks_api("GET", "/services/forwarder/all")[0] == 200
    assert finish(guest, to, PATIENT, halves[PATIENT]).startswith(b"HTTP/1.1 200 ")


def ask_names(guest: WireGuest, count: int) -> None:
    """Of none of which an answer comes; when this returns, all have been heard."""
    for number in range(count):
        query = DNS(id=number, rd=1, qd=DNSQR(qname=f"n{number}.example.org"))
        guest.send(guest.to_gateway() / UDP(sport=30000 + number, dport=53) / query)
        if number % AT_ONCE == AT_ONCE - 1:
            assert guest.resolves("host.containers.internal") == HOST


def test_a_small_limit_on_open_files_leaves_the_api_its_own(folder: Path) -> None:
    """Cause: a guest's queries to a silent resolver took the last descriptor, and accept() found none."""
    with ExitStack() as ends:
        host = host_namespace.host()
        ends.callback(host.close)
        few = (*host.prefix, "prlimit", f"--nofile={FILES}:{FILES}", GVPROXY)
        places = ("-listen-qemu", f"unix://{folder}/link", "-services", f"unix://{folder}/api")
        helper = Gvproxy(*places, command=few)
        ends.callback(helper.close)
        sock = ends.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(str(folder / "link"))
        guest = WireGuest(stream(sock))
        guest.gets_address()
        ask_names(guest, 2 * FILES)
        for _ in range(FILES):
            client = ends.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(folder / "api"))
            client.sendall(HALF)
        assert ask_host(socket.AF_UNIX, str(folder / "api")).startswith(b"HTTP/1.1 200 ")
        client.sendall(REST)  # it has been under way all the time
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        sock.close()
        assert helper.ends() == 0
    said = "".join(helper.said)
    assert "no room for a connection" not in said
    assert said.count(" are kept for clients of the API") == 1
