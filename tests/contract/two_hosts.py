# SPDX-License-Identifier: Apache-2.0
"""Two hosts with one address, of which a third sees one at a time: what a network is to a VM that moves, in namespaces.

Called by the migration tests. Needs root (ip, and sockets of other namespaces). Adversary: nobody.
Invariants: everything is in namespaces that live as long as this object; nothing of the machine's own network is used.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ADDRESS, PEER = "10.9.0.2", "10.9.0.1"
ADDRESS6, PEER6 = "fd09::2", "fd09::1"
MAC = "02:00:00:00:09:02"
GUEST = "10.7.0.50"
OPTIONS = ["-a", GUEST, "-n", "24", "-g", "10.7.0.1", "-m", "1500"]
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_REPAIR = 19  # TCP_REPAIR

T = TypeVar("T")


class Namespace:
    """A network namespace, held by a process that waits for the end of its input."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.prefix = ["nsenter", f"--net={self.path}"]

    def ip(self, *commands: str) -> None:
        for command in commands:
            subprocess.run([*self.prefix, "ip", *command.split()], check=True)

    def receive_buffers(self, first: int, most: int) -> None:
        """What a new TCP socket has here, and what the kernel may make of it."""
        command = ["sh", "-c", f"echo 4096 {first} {most} > /proc/sys/net/ipv4/tcp_rmem"]
        subprocess.run([*self.prefix, *command], check=True)

    @property
    def pid(self) -> int:
        return self._holder.pid

    def inside(self, work: Callable[[], T]) -> T:
        """What `work` returns, made in this namespace: sockets belong to it for ever."""
        results: list[T] = []

        def enter() -> None:
            fd = os.open(self.path, os.O_RDONLY)
            assert ctypes.CDLL(None, use_errno=True).setns(fd, _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
            os.close(fd)
            results.append(work())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return results[0]

    def close(self) -> None:
        self._holder.communicate()


class TwoHosts:
    """`source` and `target`, and `peer`, which reaches the first until move() is called."""

    def __init__(self) -> None:
        self.source, self.target, self.peer = Namespace(), Namespace(), Namespace()
        self.peer.ip("link add br0 type bridge", "link set br0 up", f"addr add {PEER}/24 dev br0")
        self.peer.ip(f"addr add {PEER6}/64 dev br0 nodad", "link set lo up")
        for name, host in (("source", self.source), ("target", self.target)):
            self.peer.ip(f"link add {name} type veth peer name eth0 netns {host.pid}", f"link set {name} master br0")
            host.ip("link set lo up", f"link set eth0 address {MAC}", f"addr add {ADDRESS}/24 dev eth0")
            host.ip(f"addr add {ADDRESS6}/64 dev eth0 nodad", "link set eth0 up", f"route add default via {PEER}")
        self.peer.ip("link set source up")

    def move(self) -> None:
        """The address is at the other host from here on."""
        self.peer.ip("link set source down", "link set target up")

    def server(self, receive_buffer: int = 0, address: str = PEER) -> socket.socket:
        """A listening socket at the peer."""

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((address, 0))
            sock.listen()
            return sock

        return self.peer.inside(listen)

    def close(self) -> None:
        for namespace in (self.source, self.target, self.peer):
            namespace.close()


class RepairHelper:
    """What passt-repair(1) does, in a thread of ours: a byte and sockets come, the byte goes back."""

    def __init__(self, path: Path, refuses: int | None = None) -> None:
        self.modes: list[tuple[int, int]] = []  # that were asked for, and for how many sockets
        self._refuses = refuses  # at this mode it closes the connection
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            word, fds, _, _ = socket.recv_fds(self._sock, 1, 253)
            if not word:
                return
            mode = int.from_bytes(word, "big", signed=True)
            self.modes.append((mode, len(fds)))
            for fd in fds:
                with socket.socket(fileno=fd) as sock:
                    if mode != self._refuses:
                        sock.setsockopt(socket.IPPROTO_TCP, _REPAIR, mode)
            if mode == self._refuses:
                self._sock.shutdown(socket.SHUT_RDWR)
                return
            try:
                self._sock.send(word)
            except BrokenPipeError:
                return  # it did not wait

    def close(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is at its end already
        self._thread.join()
        self._sock.close()


class RepairCommand:
    """passt-repair(1) itself, ours or another's."""

    def __init__(self, command: list[str], path: Path) -> None:
        self._process = subprocess.Popen([*command, str(path)], stderr=subprocess.PIPE)
        self._pidfd = os.pidfd_open(self._process.pid)

    def wait(self, socket_path: str) -> None:
        """Until it is connected to that socket. The kernel tells nobody when it is, so that its table is read again
        after each millisecond."""
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        while not _is_connected(socket_path):
            assert not ended.poll(1), self._process.communicate()[1]

    def close(self) -> None:
        """Once the helper has gone, as it must be."""
        os.close(self._pidfd)
        _, errors = self._process.communicate()
        assert (self._process.returncode, errors) == (0, b"")


def _is_connected(path: str) -> bool:
    """The table of our namespace: an accepted socket is in that of whoever connects, with the path of the listener."""
    connected = "03"  # SS_CONNECTED
    lines = [line.split() for line in Path("/proc/self/net/unix").read_text().splitlines()]
    return any(line[7:] == [path] and line[5] == connected for line in lines)
