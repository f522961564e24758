# SPDX-License-Identifier: Apache-2.0
"""A TCP server on the host's loopback that tells whether bytes arrived as they were sent.

Called by the tests and the demo. Adversary: nobody.
Invariants: the payload is one fixed pseudo-random sequence, of which every answer is a prefix; a digest is sha256 of
what really came. Python does not limit the speed: sendfile() one way, 1 MiB reads and hashlib (which drops the GIL)
the other.

The first line of a connection says what is wanted:
  GET N           N bytes, then the end
  PUT N           takes N bytes, answers with their digest in a line, then the end
  SUM             takes bytes until the client half-closes, then answers with their digest: guest-side half-close
  FIRST N         sends N bytes and half-closes, then takes bytes to the end; see `received`: peer-side half-close
  HOLD            answers "held" and keeps the connection open until the client goes away
  GET /N HTTP/…   the same bytes over HTTP, or the range of them that is asked for;  PUT /… HTTP/…: answers with the
                  digest of the body
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import re
import socket
import threading
from collections.abc import Callable

PAYLOAD_BYTES = 200_000_000
READ_BYTES = 1 << 20
RANGE = re.compile(rb" *bytes=(\d+)-(\d*)")


class Payload:
    """The fixed bytes, in a memory file that sendfile() takes them from."""

    def __init__(self, size: int = PAYLOAD_BYTES) -> None:
        self.size = size
        self._fd = os.memfd_create("payload")
        content = hashlib.shake_128(b"lockgate").digest(size)
        with os.fdopen(os.dup(self._fd), "wb") as file:
            file.write(content)
        self._sums: dict[int, str] = {size: hashlib.sha256(content).hexdigest()}

    def sha256(self, size: int) -> str:
        """The digest of the first `size` bytes."""
        if size not in self._sums:
            self._sums[size] = hashlib.sha256(os.pread(self._fd, size, 0)).hexdigest()
        return self._sums[size]

    def send(self, connection: socket.socket, size: int, start: int = 0) -> None:
        """The bytes from `start` up to `size`."""
        offset = start
        while offset < size:
            sent = os.sendfile(connection.fileno(), self._fd, offset, size - offset)
            if sent == 0:
                raise ValueError(f"the payload has {self.size} bytes, {size} were asked for")
            offset += sent

    def close(self) -> None:
        """Gives the memory back."""
        os.close(self._fd)


class DataServer:
    """Listens on 127.0.0.1 and ::1, one port for both, a thread for each connection."""

    def __init__(self) -> None:
        self.payload = Payload()
        self.received: queue.Queue[tuple[int, str]] = queue.Queue()  # bytes and digest of each FIRST
        first = socket.create_server(("127.0.0.1", 0))
        self.port: int = first.getsockname()[1]
        self._listeners = [first]
        if socket.has_ipv6:
            self._listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Ends the listeners; connections end with their clients."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.payload.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                self._answer(connection, stream, stream.readline(4096).decode().split())
            except (ConnectionError, ValueError):
                pass  # the guest went away, or sent what we do not know: it sees the end of the connection

    def _answer(self, connection: socket.socket, stream: io.BufferedReader, words: list[str]) -> None:
        if words[-1:] and words[-1].startswith("HTTP/"):
            self._answer_http(connection, stream, words)
            return
        handlers: dict[str, Callable[[socket.socket, io.BufferedReader, int], None]] = {
            "GET": lambda connection, _stream, size: self.payload.send(connection, size),
            "PUT": self._put,
            "SUM": self._sum,
            "FIRST": self._first,
            "HOLD": self._hold,
        }
        if not words or words[0] not in handlers:
            raise ValueError(f"unknown request {words}")
        handlers[words[0]](connection, stream, int(words[1]) if len(words) > 1 else 0)

    def _put(self, connection: socket.socket, stream: io.BufferedReader, size: int) -> None:
        _, digest = _taken(stream, size)
        connection.sendall(digest.encode() + b"\n")

    def _sum(self, connection: socket.socket, stream: io.BufferedReader, _size: int) -> None:
        _, digest = _taken(stream, None)
        connection.sendall(digest.encode() + b"\n")

    def _first(self, connection: socket.socket, stream: io.BufferedReader, size: int) -> None:
        self.payload.send(connection, size)
        connection.shutdown(socket.SHUT_WR)
        self.received.put(_taken(stream, None))

    def _hold(self, connection: socket.socket, stream: io.BufferedReader, _size: int) -> None:
        connection.sendall(b"held\n")
        stream.read(1)

    def _answer_http(self, connection: socket.socket, stream: io.BufferedReader, words: list[str]) -> None:
        length, wants_continue, wanted = 0, False, None
        while (line := stream.readline(4096).strip().lower()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
            wants_continue = wants_continue or (name == b"expect" and b"100-continue" in value)
            wanted = RANGE.fullmatch(value) if name == b"range" else wanted
        if wants_continue:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if words[0] == "GET":
            self._send_http(connection, int(words[1].strip("/")), wanted)
        else:
            _, digest = _taken(stream, length)
            answer = digest.encode() + b"\n"
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(answer)
            connection.sendall(head + answer)

    def _send_http(self, connection: socket.socket, size: int, wanted: re.Match[bytes] | None) -> None:
        """A range as in RFC 9110, 14.2, of the one form that download managers ask for."""
        if wanted is None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            self.payload.send(connection, size)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1) + 1
        head = b"HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: %d\r\n" % (end - start)
        connection.sendall(head + b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (start, end - 1, size))
        self.payload.send(connection, end, start)


def _taken(stream: io.BufferedReader, size: int | None) -> tuple[int, str]:
    """Reads `size` bytes, or to the end; how many came, and their digest."""
    digest, taken = hashlib.sha256(), 0
    while size is None or taken < size:
        wanted = READ_BYTES if size is None else min(READ_BYTES, size - taken)
        data = stream.read1(wanted)
        if not data:
            break
        digest.update(data)
        taken += len(data)
    return taken, digest.hexdigest()
