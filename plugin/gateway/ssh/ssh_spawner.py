# SPDX-License-Identifier: Apache-2.0
"""The keeper's part of forwards by SSH: starts ssh when control asks for it, reaps it, says how it ended.

Called by keeper.py, and made by opened.py before READY; hence the light imports. What may be asked for, and what ssh
is started with, is ssh_child.py's.
Adversary: control, once a guest has broken it. It can have ssh run for the forwards that were known before READY and
for TUNNELS_MAX others, each of which leads to a port that is ours, with a private key that a file holds; one ssh for
each at a time. ssh itself talks to the guest: it has no capabilities, and nothing of ours open but the end of a pipe.

Invariants: a request costs a bounded piece of work; no ssh outlives the keeper (the kernel ends it) or shut_down(); a
key lies in the folder only while ssh is about to read it; the keeper reads nothing that ssh writes.
"""

from __future__ import annotations

import errno
import os

from lockgate.core._datapath import ffi, lib
from lockgate.plugin.gateway.ssh import key_file, ssh_child
from lockgate.plugin.gateway.ssh.ssh_child import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Send = Callable[[bytes, Sequence[int]], bool]

_KILL_SIGNAL = 9


class SshSpawner:
    """All ssh processes, by the numbers of their forwards."""

    def __init__(self, program: str, folder: str, known: Sequence[Target], may_reach: Callable[[int], bool]) -> None:
        """`folder` is ours alone; `may_reach` says of a port of the host's loopback whether it leads to the guest."""
        self._program = program
        self._folder = folder
        self._known = known  # by number
        self._may_reach = may_reach
        self._pids: dict[int, int] = {}  # by number

    def serve(self, record: bytes, send: Send) -> bool:
        """Does what a record asks for; False if it is none of these records. What send() cannot deliver is ended."""
        if not ssh_child.is_request(record):
            return False
        request = ssh_child.parse_request(record)
        if request is None:
            return True  # of a control that is broken: nothing waits for an answer
        if request.kind == ssh_child.END:
            self._kill(self._pids.get(request.number, 0))
            return True
        try:
            begun = self._start(request)
        except OSError as failure:
            send(ssh_child.pack_ended(request.number, failure.errno or errno.EINVAL), [])
            return True
        if not send(ssh_child.pack_begun(request.number), [begun]):
            self._kill(self._pids[request.number])
        os.close(begun)
        return True

    def ended(self, pid: int, status: int, send: Send) -> bool:
        """Whether this process, which has been reaped, was one of these; then control hears of it."""
        for number, one in self._pids.items():
            if one == pid:
                del self._pids[number]
                self._tidy(number)
                send(ssh_child.pack_ended(number, 0, status), [])
                return True
        return False

    def shut_down(self) -> None:
        """Ends all, and returns when they have ended."""
        for pid in self._pids.values():
            self._kill(pid)
        for pid in self._pids.values():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # reaped already
        self._pids.clear()

    def _start(self, request: ssh_child.Request) -> int:
        """The end of a pipe, from which what ssh has to say is read. Raises OSError."""
        number, target = request.number, self._target(request)
        if number in self._pids:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self._tidy(number)
        read_end, write_end = os.pipe()
        try:
            os.set_blocking(read_end, False)
            self._write_key(number, target.key)
            self._pids[number] = self._spawn(ssh_child.arguments(number, target), write_end)
        except OSError:
            os.close(read_end)
            self._tidy(number)
            raise
        finally:
            os.close(write_end)
        return read_end

    def _target(self, request: ssh_child.Request) -> Target:
        """Raises OSError if it is not one that may be asked for."""
        number, first = request.number, len(self._known)
        if request.kind == ssh_child.START and number < first:
            return self._known[number]
        is_tunnel = request.kind == ssh_child.TUNNEL and first <= number < first + ssh_child.TUNNELS_MAX
        if not is_tunnel or not self._may_reach(request.port):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        try:
            key = key_file.load(request.key_path)
        except key_file.KeyFileError:
            raise OSError(errno.ENOKEY, os.strerror(errno.ENOKEY)) from None
        return Target(request.user, request.destination, request.port, key)

    def _spawn(self, words: Sequence[bytes], error_fd: int) -> int:
        lists, kept = [], []
        for texts in (words, ssh_child.ENVIRONMENT):
            held = [ffi.new("char[]", text) for text in texts]
            kept += held
            lists.append(ffi.new("char *[]", [*held, ffi.NULL]))
        named = [ffi.new("char[]", os.fsencode(text)) for text in (self._program, self._folder)]
        content: dict[str, Any] = dict(zip(("file", "folder"), named, strict=True))
        content |= {"arguments": lists[0], "environment": lists[1], "error_fd": error_fd}
        pid = int(lib.lg_program_spawn(ffi.new("struct lg_program *", content)))
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def _write_key(self, number: int, key: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(os.path.join(self._folder, ssh_child.key_name(number)), flags, 0o600)
        try:
            os.write(fd, key)
        finally:
            os.close(fd)

    def _tidy(self, number: int) -> None:
        """Nothing is left of an ssh that has ended: a socket stands for one that lives."""
        for name in (ssh_child.key_name(number), ssh_child.socket_name(number)):
            try:
                os.unlink(os.path.join(self._folder, name))
            except OSError:
                pass  # not there, in most cases

    def _kill(self, pid: int) -> None:
        """It is ours and not reaped, or it is 0: then there is none."""
        if pid:
            os.kill(pid, _KILL_SIGNAL)
