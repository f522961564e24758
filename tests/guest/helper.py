# SPDX-License-Identifier: Apache-2.0
"""Runs the network helper under test, ours or another that speaks the same contract, and watches it.

Called by the tests and the demo. Adversary: nobody.
Invariants: started in the foreground in a session of its own, and gone when `close` returns; its standard error is
kept in build/guest-logs. The socket is never connected to for a test of readiness: with -1 that would be the only
client.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import SOCK_STREAM

import process_tree
from free_ports import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
LOGS = ROOT / "build" / "guest-logs"
OUR_COMMAND = str(ROOT / ".venv" / "bin" / "passt")
LISTENING = 0x10000  # __SO_ACCEPTCON in the Flags column of /proc/net/unix


class HelperFailed(Exception):
    """The helper ended or did not do what the contract says."""


def default_command() -> str:
    """LOCKGATE_TEST_HELPER names another helper, with leading options if it likes; else ours from the tree's venv."""
    return os.environ.get("LOCKGATE_TEST_HELPER", OUR_COMMAND)


def command_line(command: str, socket: Path, options: str, link: str = "--vhost-user") -> list[str]:
    """A command that says {socket} somewhere is whole; any other gets what every caller adds, and the options."""
    if "{socket}" in command:
        return filled(shlex.split(command), socket)
    return [*shlex.split(command), *link.split(), "-s", str(socket), "-f", *shlex.split(options)]


def filled(words: Sequence[str], socket: Path) -> list[str]:
    """With that path where they say {socket}, and a port that nobody has where they say {port}."""
    port = str(free_ports(SOCK_STREAM, 1)[0]) if any("{port}" in word for word in words) else ""
    return [word.replace("{socket}", str(socket)).replace("{port}", port) for word in words]


def listens(socket: Path, pid: int | str = "self") -> bool:
    """Whether somebody listens on that Unix socket, by the kernel's table of the network namespace of `pid`."""
    try:
        table = Path(f"/proc/{pid}/net/unix").read_text()
    except OSError:  # a process that has ended is in no namespace
        return False
    for line in table.splitlines():
        fields = line.split()
        if fields[7:] == [str(socket)] and int(fields[3], 16) & LISTENING:
            return True
    return False


class Helper:
    """One helper process tree behind one vhost-user socket."""

    def __init__(
        self,
        name: str,
        options: str = "-1",
        command: str | None = None,
        environment: Mapping[str, str] | None = None,
        stderr_to_terminal: bool = False,
        link: str = "--vhost-user",
        prefix: Sequence[str] = (),
    ) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.helper.log"
        self._folder = tempfile.TemporaryDirectory(prefix="lockgate-")  # short: a socket's path has 107 bytes
        self.socket = Path(self._folder.name, "s")
        self.arguments = [*prefix, *command_line(command or default_command(), self.socket, options, link)]
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=None if stderr_to_terminal else log,
                stderr=None if stderr_to_terminal else log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self.ready_seconds = 0.0

    @property
    def pid(self) -> int:
        """Of the process that a caller knows."""
        return self._process.pid

    def wait_ready(self, timeout: float = 20) -> None:
        """Until the socket listens. The kernel tells nobody when it does, so its table is read again after each ms."""
        while not listens(self.socket, self.pid):
            if self._ended(0.001) is not None:
                raise HelperFailed(f"{shlex.join(self.arguments)} ended at once:\n{self.errors()}")
            if time.monotonic() - self.started > timeout:
                raise HelperFailed(f"{self.socket} does not listen after {timeout} s:\n{self.errors()}")
        self.ready_seconds = time.monotonic() - self.started

    def watch(self, seconds: float) -> None:
        """Lets time pass, and fails if the helper ends meanwhile."""
        if (status := self._ended(seconds)) is not None:
            raise HelperFailed(f"{shlex.join(self.arguments)} ended with status {status}:\n{self.errors()}")

    def _ended(self, timeout: float) -> int | None:
        """The exit status (negative: the signal) once the process ended within `timeout`, else None."""
        watched = select.poll()
        watched.register(self._pidfd, select.POLLIN)
        return self._process.wait() if watched.poll(timeout * 1000) else None

    def wait_exit(self, timeout: float = 10) -> int:
        """The exit status of a helper that is expected to end by itself."""
        status = self._ended(timeout)
        if status is None:
            raise HelperFailed(f"{shlex.join(self.arguments)} still runs after {timeout} s:\n{self.errors()}")
        return status

    def terminate(self, timeout: float = 10) -> int:
        """Sends SIGTERM; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def processes(self) -> dict[int, str]:
        """Every process of the helper with its name."""
        return {pid: process_tree.name(pid) for pid in process_tree.tree(self.pid)}

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return process_tree.cpu_seconds(self.pid)

    def pss_bytes(self) -> int | None:
        """Of all its processes, if we may see it."""
        return process_tree.pss_bytes(self.pid)

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        """Ends what still runs of it."""
        members = process_tree.tree(self.pid) if self._process.poll() is None else []
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        os.close(self._pidfd)
        self._folder.cleanup()
