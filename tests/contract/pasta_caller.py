# SPDX-License-Identifier: Apache-2.0
"""`pasta` as rootless Podman starts it, and programs that talk through it. Adversary: nobody."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
from pathlib import Path

import host_namespace
import pytest
from host_namespace import Namespace
from running import PATIENCE, kill_all, tree

PASTA = str(Path(sys.executable).with_name("pasta"))
# What Podman adds to every `podman run --network pasta`.
PODMAN = "--dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet"
BYTES = 10_000_000

# How a server begins: it says its port.
LISTENS = """
import hashlib, socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print(listener.getsockname()[1], flush=True)
"""
BINDS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
end = socket.socket(family, socket.SOCK_DGRAM)
end.bind((sys.argv[1], int(sys.argv[2])))
print(end.getsockname()[1], flush=True)
"""
# One connection: says whom it sees, and the digest of what came until the end.
SERVER = LISTENS + """
end, peer = listener.accept()
seen = hashlib.sha256()
while data := end.recv(1 << 20):
    seen.update(data)
end.sendall(f"{peer[0]} {seen.hexdigest()}".encode())
"""
CLIENT = """
import hashlib, socket, sys
end = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
end.sendall(b"0123456789" * (int(sys.argv[3]) // 10))
end.shutdown(socket.SHUT_WR)
print(end.recv(1000).decode())
"""
ECHO = BINDS + """
data, peer = end.recvfrom(65536)
end.sendto(peer[0].encode() + b" " + data, peer)
"""
ASK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
end = socket.socket(family, socket.SOCK_DGRAM)
end.settimeout(20)
end.connect((sys.argv[1], int(sys.argv[2])))
end.send(b"question")
print(end.recv(1000).decode())
"""


def runs(namespace: Namespace, code: str, *words: object) -> str:
    """What a program of Python says there."""
    return namespace.does(f"exec {sys.executable} -Ic '{code}' {' '.join(map(str, words))}")


def serves(namespace: Namespace, code: str, address: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """In the background; its port."""
    command = [*namespace.prefix, sys.executable, "-Ic", code, address, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, int(server.stdout.readline())


def host() -> Namespace:
    """Root of a user namespace, with a network of its own."""
    made = host_namespace.host()
    if made.does("test -w /dev/net/tun && echo yes || echo no") != "yes":
        made.close()
        pytest.skip("/dev/net/tun is not there for everybody: no tap devices without root here")
    return made


def container(on: Namespace) -> Namespace:
    """Without a network."""
    return Namespace(*on.prefix, "unshare", "--net", "--mount")


class Pasta:
    """One that has been started, and stays; by its PID file."""

    def __init__(
        self, host: Namespace, folder: Path, netns: str, options: str, more: str = PODMAN, here: str = "/"
    ) -> None:
        """`here`: the caller's own folder."""
        self.pid_file = folder / "pid"
        words = f"--config-net {options} {more} --pid {self.pid_file} --netns {netns} --map-guest-addr 169.254.1.2"
        # The end of both pipes is waited for, as Podman does: nobody may hold them any more.
        command = [*host.prefix, "env", "-C", here, PASTA, *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.status, self.told = done.returncode, done.stdout + done.stderr
        self.pid = int(self.pid_file.read_text()) if self.status == 0 else 0
        self._end = os.pidfd_open(self.pid) if self.pid else -1

    def wait_end(self) -> None:
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        assert waiting.poll(PATIENCE * 1000), "it stays"

    def close(self) -> None:
        """With all its processes: one that a test has stopped does not see that the others end."""
        if self.pid:
            if not select.select([self._end], [], [], 0)[0]:
                kill_all(tree(self.pid))
            os.close(self._end)


def digest() -> str:
    return hashlib.sha256(b"0123456789" * (BYTES // 10)).hexdigest()
