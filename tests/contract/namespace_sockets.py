# SPDX-License-Identifier: Apache-2.0
"""Sockets of another network namespace, to use like one's own: a socket stays in the namespace that it was made in.

Called by the tests in this folder. Adversary: nobody.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence

from running import PATIENCE

# Lives until its standard input, a socket, is closed.
MAKER = """
import socket
end = socket.socket(fileno=0)
while asked := end.recv(100):
    with socket.socket(*map(int, asked.split())) as made:
        socket.send_fds(end, [b"."], [made.fileno()])
"""


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class NamespaceSockets:
    """`prefix` is what runs a command in the namespace."""

    def __init__(self, prefix: Sequence[str]) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.settimeout(PATIENCE)
        with theirs:
            self._process = subprocess.Popen([*prefix, sys.executable, "-I", "-S", "-c", MAKER], stdin=theirs.fileno())
        self._made: list[socket.socket] = []

    def make(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        self._end.send(f"{int(family)} {int(kind)} {protocol}".encode())
        _, fds, _, _ = socket.recv_fds(self._end, 1, 1)
        made = socket.socket(fileno=fds[0])
        made.settimeout(PATIENCE)
        self._made.append(made)
        return made

    def bound(self, kind: int, address: str, port: int = 0) -> tuple[socket.socket, int]:
        """The socket, which listens if it is of a stream, and its port."""
        end = self.make(family(address), kind)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        end.bind((address, port))
        if kind == socket.SOCK_STREAM:
            end.listen()
        return end, end.getsockname()[1]

    def connected(self, kind: int, address: str, port: int) -> socket.socket:
        end = self.make(family(address), kind)
        end.connect((address, port))
        return end

    def close(self) -> None:
        for made in self._made:
            made.close()
        self._end.close()
        self._process.wait(PATIENCE)
