# SPDX-License-Identifier: Apache-2.0
"""Namespaces of tests: a process that waits in new ones, with the tools of iproute2 to look into them.

Used by the tests of what lockgate does in a namespace. Adversary: nobody. They are made as rootless callers make them,
by root of a new user namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest


class Namespace:
    """A process in namespaces of its own, `/proc/PID/ns` of which others join. Lives until `close`."""

    def __init__(self, *flags: str, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, "unshare", *flags, "sh", "-c", "echo; exec cat"]
        # An outer `unshare` goes on as the inner one, and that as the shell: all are one process.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stderr is not None
        if not self._process.stdout.readline():
            pytest.skip(f"this machine does not let us make namespaces: {self._process.stderr.read().decode()}")
        self.pid = self._process.pid

    def path(self, kind: str = "net") -> str:
        return f"/proc/{self.pid}/ns/{kind}"

    @property
    def prefix(self) -> list[str]:
        """What runs a command there."""
        return ["nsenter", "--preserve-credentials", f"--user={self.path('user')}", f"--net={self.path('net')}"]

    def run(self, *command: str) -> str:
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ip(self, *words: str) -> Any:
        return json.loads(self.run("ip", "-j", "-N", *words) or "[]")

    def routes(self, family: int) -> list[str]:
        """As `ip route` prints them, in one form: without what is the same for all."""
        lines = self.run("ip", f"-{family}", "route").splitlines()
        return [" ".join(line.split()).replace("pref medium", "").strip() for line in lines]

    def addresses(self, name: str, family: int) -> list[str]:
        (link,) = self.ip(f"-{family}", "addr", "show", "dev", name)
        return [f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"]]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.end()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


def in_child(namespace: Namespace, work: Any) -> Any:
    """What `work` returns, called in a child that has joined a namespace; plain values only."""
    from lockgate.core._datapath import lib

    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for kind in ("user", "net"):
                fd = os.open(namespace.path(kind), os.O_RDONLY)
                assert lib.lg_namespace_enter(fd, kind == "net") == 0, kind
            os.write(send, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with open(receive, "rb") as answer:
        said = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(said)
