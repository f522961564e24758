# SPDX-License-Identifier: Apache-2.0
"""A helper as a caller runs it, `passt` above all, and the few vhost-user messages that a contract test needs.

Called by the tests in this folder. Adversary: nobody.
Invariants: everything is waited for by an event: READY through a PID file that is a FIFO, ends through pidfds, and
whatever needs a living worker through a request that only the worker's answer completes. What a test leaves running is
killed by process id.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

PASST = str(Path(sys.executable).with_name("passt"))
PATIENCE = 20  # seconds, for what takes milliseconds: after that it hangs

_HEADER = struct.Struct("=III")
_NEED_REPLY = 8
GET_FEATURES, SET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 1, 2, 15, 16
SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_ENABLE = 5, 8, 9, 10, 12, 18
VERSION_1 = 1 << 32
PROTOCOL_FEATURES = 1 << 30
REPLY_ACK = 1 << 3


class FrontEnd:
    """The VM monitor's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)

    @classmethod
    def connect(cls, path: Path) -> FrontEnd:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return cls(sock)

    def ask(self, request: int, value: int | None = None, need_reply: bool = False) -> int:
        """Sends a request with or without a number, and returns the number in the reply."""
        payload = b"" if value is None else struct.pack("=Q", value)
        self.sock.sendall(_HEADER.pack(request, 1 | (_NEED_REPLY if need_reply else 0), len(payload)) + payload)
        reply = self.sock.recv(_HEADER.size + 8, socket.MSG_WAITALL)
        assert len(reply) == _HEADER.size + 8, "the helper closed the connection"
        (number,) = struct.unpack_from("=Q", reply, _HEADER.size)
        return int(number)

    def negotiate(self) -> None:
        """Until requests are acknowledged."""
        assert self.ask(GET_FEATURES) & PROTOCOL_FEATURES
        self.ask(GET_PROTOCOL_FEATURES)
        assert self.ask(SET_PROTOCOL_FEATURES, REPLY_ACK, need_reply=True) == 0

    def reach_worker(self) -> None:
        """Returns when a worker has carried out a command: SET_FEATURES is one."""
        assert self.ask(SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES, need_reply=True) == 0

    def tell(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Sends any request, and waits for its acknowledgement."""
        header = _HEADER.pack(request, 1 | _NEED_REPLY, len(payload))
        socket.send_fds(self.sock, [header + payload], list(fds))
        reply = self.sock.recv(_HEADER.size + 8, socket.MSG_WAITALL)
        assert reply[_HEADER.size :] == bytes(8), f"request {request} was refused"

    def share_memory_and_rings(self) -> tuple[int, int]:
        """One megabyte with two empty rings of four descriptors, running. Its descriptor, and the kick of ring 1."""
        memory, base = os.memfd_create("guest"), 1 << 32
        os.ftruncate(memory, 1 << 20)
        self.tell(SET_MEM_TABLE, struct.pack("=IIQQQQ", 1, 0, 0, 1 << 20, base, 0), [memory])
        kick = -1
        for ring in range(2):
            at = base + ring * 0x10000
            self.tell(SET_VRING_NUM, struct.pack("=II", ring, 4))
            self.tell(SET_VRING_ADDR, struct.pack("=IIQQQQ", ring, 0, at, at + 0x1000, at + 0x2000, 0))
            self.tell(SET_VRING_BASE, struct.pack("=II", ring, 0))
            if kick >= 0:
                os.close(kick)
            kick = os.eventfd(0)
            self.tell(SET_VRING_KICK, struct.pack("=Q", ring), [kick])
            self.tell(SET_VRING_ENABLE, struct.pack("=II", ring, 1))
        return memory, kick

    def closed(self) -> bool:
        """Whether the helper ends the connection; what it still says before is read over."""
        while True:
            try:
                if not self.sock.recv(4096):
                    return True
            except ConnectionResetError:
                return True
            except TimeoutError:
                return False

    def close(self) -> None:
        self.sock.close()


class Child:
    """A process that a test starts: its end is told by a pidfd, and its standard error is read by lines."""

    lines_max = sys.maxsize  # among which line_with() looks: fewer where lines come for ever

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
        )
        self._unread = b""
        self._seen: deque[str] = deque(maxlen=40)  # the last lines, for whoever waits for another in vain
        self.pidfd = os.pidfd_open(self.process.pid)

    def named(self, wanted: str) -> list[int]:
        """Those of its processes, by process id."""
        return [pid for pid in tree(self.process.pid) if name(pid) == wanted]

    def line(self) -> str:
        """The next line of standard error."""
        assert self.process.stderr is not None
        waiting = select.poll()
        waiting.register(self.process.stderr, select.POLLIN)
        while b"\n" not in self._unread:
            assert waiting.poll(PATIENCE * 1000), f"no line came after {list(self._seen)}"
            piece = os.read(self.process.stderr.fileno(), 65536)
            assert piece, f"no line is left after {list(self._seen)}"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        self._seen.append(line.decode())
        return self._seen[-1]

    def line_with(self, words: str) -> str:
        """The next line of standard error that has these words."""
        for _ in range(self.lines_max):
            if words in (line := self.line()):
                return line
        raise AssertionError(f"no {words!r} in {list(self._seen)}")

    def errors(self) -> str:
        """All that is left of standard error, once the process has ended."""
        assert self.process.stderr is not None
        return (self._unread + self.process.stderr.read()).decode()

    def wait(self) -> int:
        """The exit status; negative: the signal."""
        assert ended(self.pidfd), "still running"
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            kill_all(tree(self.process.pid))
        self.process.wait()
        os.close(self.pidfd)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Foreground(Child):
    """A helper started with -f; ready when the constructor returns."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        link: Sequence[str] | None = None,
        command: str = PASST,
        stream: bool = False,
    ) -> None:
        self.socket = folder / "s"
        fifo = folder / "pid.fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        link = ["-s", str(self.socket)] if link is None else link
        words = [*prefix, command, *([] if stream else ["--vhost-user"]), "-f", "-P", str(fifo), *link, *arguments]
        super().__init__(words, environment, pass_fds=pass_fds)
        try:
            waiting = select.poll()
            waiting.register(reader, select.POLLIN)
            waiting.register(self.pidfd, select.POLLIN)
            assert waiting.poll(PATIENCE * 1000), "neither ready nor ended"
            self.pid_text = os.read(reader, 32).decode()
        finally:
            os.close(reader)
            fifo.unlink()
        assert self.pid_text, f"ended at once: {self.errors()}"

    def children(self) -> dict[str, int]:
        """Process ids by name."""
        return {name(pid): pid for pid in tree(self.process.pid)[1:]}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def run(*arguments: str, prefix: Sequence[str] = (), **options: object) -> subprocess.CompletedProcess[str]:
    """A whole run of the command that the caller sees: until it exits and nobody holds its standard error any more."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*prefix, PASST, *arguments], capture_output=True, text=True, timeout=PATIENCE, **options
    )


def ended(pidfd: int) -> bool:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(PATIENCE * 1000))


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_all(pids: Sequence[int]) -> None:
    """Returns when all have ended, and with them whatever they held: another test may want the same ports."""
    pidfds = []
    for pid in pids:
        try:
            pidfds.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass  # ended meanwhile
    for pid in pids:
        kill(pid)
    for pidfd in pidfds:
        ended(pidfd)
        os.close(pidfd)


def tree(pid: int) -> list[int]:
    """The process and its descendants, parents first."""
    found = [pid]
    for member in found:
        try:
            found.extend(map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            pass  # ended meanwhile
    return found


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def pss_bytes(pid: int) -> int:
    """Proportional memory of the process and its descendants."""
    return sum(
        int(line.split()[1]) * 1024
        for member in tree(pid)
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, by key."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def descriptors(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(entry.name): os.readlink(entry) for entry in folder.iterdir()}
