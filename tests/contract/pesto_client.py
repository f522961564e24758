# SPDX-License-Identifier: Apache-2.0
"""Clients of --conf-path: one that writes its bytes by hand, and the real `pesto`; and the host of a helper: a network
namespace that ends with the test. Used by test_conf_path and test_pasta_conf. Adversary: nobody.
"""

from __future__ import annotations

import os
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import PATIENCE

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
DUAL_STACK = 1

# An ordinary process, without capabilities, which others of its user may look into. It connects to a port and hands
# the socket out, or says the errno of the refusal; or holds a port until it is to hold none.
ORDINARY = """
ip link set lo up
exec setpriv --bounding-set=-all --inh-caps=-all "$@"
"""
IN_THE_NAMESPACE = """
import socket, sys
tests = socket.socket(fileno=int(sys.argv[1]))
tests.send(b"ready")
held = None
while words := tests.recv(100).split():
    where = "127.0.0.1", int(words[1])
    if words[0] == b"connect":
        with socket.socket() as end:
            refusal = end.connect_ex(where)
            socket.send_fds(tests, [b"%d" % refusal], [] if refusal else [end.fileno()])
    else:
        if held:
            held.close()
        held = socket.create_server(where) if where[1] else None
        tests.send(b"0")
"""

# Connects without a pause until its standard input ends; says how often it did, and what it met.
CONNECTING = """
import select, socket, sys
count, errors = 0, set()
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    end = socket.socket()
    error = end.connect_ex(("127.0.0.1", int(sys.argv[1])))
    end.close()
    count += 1
    errors |= {error}
print(count, sorted(errors))
"""


def rule(first: int, last: int = 0, to: int = 0, protocol: int = TCP, flags: int = DUAL_STACK) -> bytes:
    """At every address of the host, to the guest as it is seen."""
    return bytes(48) + struct.pack("!HHHBB", first, last or first, to or first, protocol, flags)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def greeted(client: socket.socket) -> list[bytes]:
    """The rules that the helper has, 56 bytes each."""
    head = client.recv(157, socket.MSG_WAITALL)
    assert head[:25] == b"basil:s\0" + struct.pack("!III", 2, 128, 16) + b"\1HOST"
    (count,) = struct.unpack_from("!I", head, 153)
    rules = client.recv(56 * count + 1, socket.MSG_WAITALL)
    assert rules[-1:] == b"\0" and len(rules) == 56 * count + 1
    return [rules[at : at + 56] for at in range(0, 56 * count, 56)]


def shown(path: Path) -> list[bytes]:
    with connect(path) as client:
        return greeted(client)


def replace(path: Path, *rules: bytes) -> None:
    """The whole table; returns when the helper has done it."""
    with connect(path) as client:
        greeted(client)
        client.sendall(b"\1" + struct.pack("!I", len(rules)) + b"".join(rules) + b"\0")
        assert client.recv(1) == b""


def real_pesto(path: Path) -> Callable[..., list[str]]:
    """Runs the command, and returns the lines of rules that it shows. Where there is none, the test is skipped."""
    root, words = os.environ.get("LOCKGATE_PEER_ROOT"), shlex.split(os.environ.get("LOCKGATE_PEER_RUN", ""))
    if not root or not words or not Path(root, "usr/bin/pesto").exists():
        pytest.skip("no pesto: LOCKGATE_PEER_ROOT and LOCKGATE_PEER_RUN do not name a root that has it")
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip(f"no pesto: {words[0]} runs nothing here")

    def command(*options: str) -> list[str]:
        done = subprocess.run([*words, "pesto", *options, str(path)], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return [" ".join(line.split()) for line in done.stdout.splitlines() if "=>" in line]

    return command


class Host:
    """A namespace, and somebody in it. `words` make it: unshare(1) and its options."""

    def __init__(self, *words: str) -> None:
        self.tests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tests.settimeout(PATIENCE)
        ordinary = ["sh", "-euc", ORDINARY, "sh", sys.executable, "-c", IN_THE_NAMESPACE, str(theirs.fileno())]
        command = [*words, *ordinary]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        assert self.tests.recv(10) == b"ready"
        user = ["--preserve-credentials", "-U"] if "--user" in words else []
        self.prefix = ("nsenter", *user, "-n", "-t", str(self.process.pid))

    def _ask(self, what: str, port: int) -> tuple[int, list[int]]:
        self.tests.send(f"{what} {port}".encode())
        answer, fds, _, _ = socket.recv_fds(self.tests, 10, 1)
        return int(answer), list(fds)

    def connects(self, port: int) -> socket.socket:
        refusal, fds = self._ask("connect", port)
        assert not refusal, os.strerror(refusal)
        end = socket.socket(fileno=fds[0])
        end.settimeout(PATIENCE)
        return end

    def refusal(self, port: int) -> int:
        """Why nobody can connect there; 0 if somebody can."""
        refusal, fds = self._ask("connect", port)
        for fd in fds:
            os.close(fd)
        return refusal

    def holds(self, port: int) -> None:
        """That port from now on, and no other; 0: none."""
        assert self._ask("hold", port) == (0, [])

    def connecting(self, port: int) -> subprocess.Popen[str]:
        """Somebody who does nothing else."""
        command = [*self.prefix, sys.executable, "-c", CONNECTING, str(port)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        return process

    def close(self) -> None:
        self.tests.close()
        self.process.wait(PATIENCE)
