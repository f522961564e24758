# SPDX-License-Identifier: Apache-2.0
"""A thousand connections of one guest of gvproxy at once, to the host and to the gateway's own services."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gvproxy_guest import DEVICE_MAC, GATEWAY_MAC, HOST, Gvproxy, WireGuest, stream

COUNT = 1000
FIRST_PORT = 20000
SYN, PSH, ACK, FIN = 2, 8, 16, 1
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


@pytest.fixture(name="guest")
def guest_with_an_address(folder: Path) -> Iterator[WireGuest]:
    with ExitStack() as ends:
        helper = Gvproxy("-listen-qemu", f"unix://{folder}/link")
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
