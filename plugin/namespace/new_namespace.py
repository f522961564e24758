# SPDX-License-Identifier: Apache-2.0
"""The command that is run in namespaces of its own: its birth in them, its start once it has a network, its end.

Made by link_namespace.py while the caller's folder is still ours, released by start.py at READY, watched by keeper.py.
Adversary: nobody; the command is the caller's own. Invariants: it starts when all is ready and not before, and never
outlives us. All that can be wrong with its namespaces is known, and told in one sentence, before anything else is made
for them.

Signals. The first process of a PID namespace is not ended by a signal that it has not asked for, not even by one that
is meant to end it: where the command has not, we end it, as the kernel would anywhere else. What a terminal sends has
reached the command by itself, if that is in the foreground; what only we were sent is handed on.
"""

from __future__ import annotations

import os
import select
import struct

from lockgate.core import worker as core_worker
from lockgate.core._datapath import ffi, lib
from lockgate.plugin import identity
from lockgate.plugin import spec as vocabulary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.log import Log
    from lockgate.plugin.spec import NetworkSpec

_SHELL = "/bin/sh"
_HOSTNAME_MAX = 64  # __NEW_UTS_LEN
_REPORT = struct.Struct("=ii")  # struct lg_command_report
_COERCED = "LC_CTYPE"  # Python sets it where the caller has chosen no language, PEP 538
_SETTINGS = "user.max_user_namespaces kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns"
_TERMINAL = 0  # our standard input
# Numbers of x86 and ARM: the `signal` module would import enum.
_SIGHUP, _SIGTERM = 1, 15

_PATIENCE, _LITTLE_PATIENCE = 1.0, 0.1


class Command:
    """One process, as its parent sees it."""

    def __init__(self, spec: NetworkSpec, descriptors: int) -> None:
        """It is there and waits. `descriptors` is the limit that the caller has. Raises StartError."""
        assert spec.namespace is not None and spec.namespace.is_new
        wanted = spec.namespace
        self._words = wanted.command or (os.environ.get("SHELL") or _SHELL,)
        self._had_terminal = _has_terminal()
        self.patience = 0.0  # seconds that it gets to end by itself, once we are to end
        self._channel, end = core_worker.channel()
        end.setblocking(True)
        other = spec.runas if spec.runas != (os.geteuid(), os.getegid()) and not wanted.netns_only else None
        come_back = identity.take_on(other) if other else None
        try:
            self.pid = self._spawn(spec, end.fileno(), descriptors)
        finally:
            end.close()
            if come_back:
                come_back()
        self.netns = f"/proc/{self.pid}/ns/net"
        self.userns = "" if wanted.netns_only else f"/proc/{self.pid}/ns/user"
        step, error = self._wait_report()
        if step != lib.LG_COMMAND_BORN:
            raise vocabulary.StartError(f"Couldn't become root of a new user namespace: {os.strerror(error)}")
        self.note = f"/proc shows the processes of the host: {os.strerror(error)}" if error else ""

    def _spawn(self, spec: NetworkSpec, channel: int, descriptors: int) -> int:
        assert spec.namespace is not None
        words = self._words if spec.namespace.command else (f"-{os.path.basename(self._words[0])}",)
        arguments = [ffi.new("char[]", os.fsencode(word)) for word in words]
        hostname = spec.hostname or f"pasta-{os.uname().nodename}"
        named = ffi.new("char[]", os.fsencode(hostname)[:_HOSTNAME_MAX])
        file = ffi.new("char[]", os.fsencode(self._words[0]))
        listed = ffi.new("char *[]", [*arguments, ffi.NULL])
        flags = 0 if spec.namespace.netns_only else lib.LG_COMMAND_USER
        flags |= lib.LG_COMMAND_PID if spec.namespace.pidns else 0
        content = {"file": file, "arguments": listed, "hostname": named, "channel": channel, "flags": flags}
        _undo_coercion()
        pid = int(lib.lg_command_spawn(ffi.new("struct lg_command *", {**content, "descriptors": descriptors})))
        if pid < 0:
            reason = os.strerror(-pid)
            if spec.namespace.netns_only:
                raise vocabulary.StartError(f"--netns-only: a new network namespace is for root only here: {reason}")
            raise vocabulary.StartError(f"Couldn't make new namespaces: {reason}; see `sysctl {_SETTINGS}`")
        return pid

    def _wait_report(self) -> tuple[int, int]:
        waiting = select.poll()
        waiting.register(self._channel, select.POLLIN)
        waiting.poll()
        return self._report()

    def _report(self) -> tuple[int, int]:
        """What the child says, or that it has no more to say."""
        try:
            record = self._channel.recv(_REPORT.size)
        except OSError:
            record = b""
        return _REPORT.unpack(record) if len(record) == _REPORT.size else (0, 0)

    def release(self) -> None:
        """Its network is ready."""
        try:
            self._channel.send(b"G")
        except OSError:
            pass  # it has been ended: its status will say how

    def on_signal(self, number: int, by_kernel: bool) -> int | None:
        """What we are to end with, as we have been sent this; None: we go on."""
        if not by_kernel:
            self._send(number)
        minds = self._minds(number)
        if minds and number not in (_SIGTERM, _SIGHUP):
            return None
        # It may have minded, and be about to end: then it does not mind any more.
        self.patience = _PATIENCE if minds else _LITTLE_PATIENCE
        return 128 + number

    def _minds(self, number: int) -> bool:
        """Whether it has said what is to become of a signal; where that cannot be known, it has."""
        try:
            with open(f"/proc/{self.pid}/status", "rb") as file:  # proc_pid_status(5)
                sets = [int(line.split()[1], 16) for line in file if line.startswith((b"SigIgn:", b"SigCgt:"))]
        except (OSError, ValueError):
            return True
        return any(one >> number - 1 & 1 for one in sets)

    def _send(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except OSError:
            pass  # it has ended

    def exit_code(self, status: int, log: Log) -> int:
        """Ours, from its wait status."""
        self.pid = 0
        step, error = self._report()
        if step == lib.LG_COMMAND_BECAME:
            log.error(f"Couldn't run {self._words[0]}: {os.strerror(error)}")
            return 1
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def give_terminal_back(self) -> None:
        """An interactive shell takes the terminal for a group of its own. It cannot give it back, since it sees no
        group outside its namespace; whoever called us could not read from it."""
        if not self._had_terminal:
            return
        try:
            os.killpg(os.tcgetpgrp(_TERMINAL), 0)
        except ProcessLookupError:  # and has ended
            import signal  # for which nobody waits by now

            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(_TERMINAL, os.getpgrp())
        except OSError:
            pass  # somebody else's; or there is no terminal any more


def _has_terminal() -> bool:
    try:
        return os.tcgetpgrp(_TERMINAL) == os.getpgrp()
    except OSError:
        return False


def _undo_coercion() -> None:
    """The command gets the environment that we were started with."""
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read().split(b"\0")
    except OSError:
        return
    if not any(entry.startswith(f"{_COERCED}=".encode()) for entry in given):
        os.unsetenv(_COERCED)
