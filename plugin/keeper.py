# SPDX-License-Identifier: Apache-2.0
"""The keeper: what the wrapper becomes. Starts the worker and control, says how they ended, replaces the worker, quits.

Called by start.py, once everything that needs the caller's rights is open; run() returns the exit code.
Adversary: a child that the guest has broken. What it can say is a few fixed records, and requests for ports and for
ssh, which ports.py and gateway/ssh/ssh_spawner.py check; anything else is ignored.

Invariants: one thread, and a loop that sleeps in poll() without a timeout, so that an idle helper costs nothing here.
No child outlives the keeper: each holds the other end of a channel that only the keeper keeps open, and has asked for
SIGKILL on its parent's death. The keeper never reads a byte that a guest wrote.
"""

from __future__ import annotations

import _socket
import errno
import gc
import os
import select
import struct
import time

from lockgate.core import isolation
from lockgate.core import worker as core_worker
from lockgate.core._datapath import lib
from lockgate.plugin.log import DEBUG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from lockgate.plugin.gateway.ssh.ssh_spawner import SshSpawner
    from lockgate.plugin.log import Log
    from lockgate.plugin.namespace.namespace_watch import NamespaceWatch
    from lockgate.plugin.namespace.new_namespace import Command
    from lockgate.plugin.ports import Ports

    class Closable(Protocol):
        def close(self) -> None: ...


# The records between keeper and control. Control to keeper: DONE (the one client has gone: end all, with success),
# FAILED, and TOLD (the first worker knows all) with an errno or 0. Keeper to control: START (the helper is ready) and
# NEW_WORKER, with the cmd and up ends of a new worker.
# Requests for ports and their answers, on the same channel, are those of ports.py; for ssh, those of ssh_child.py.
CONTROL_DONE = b"D"
CONTROL_FAILED = b"F"
CONTROL_TOLD = struct.Struct("=cB")
CONTROL_START = b"S"
NEW_WORKER = b"W"
NEW_WORKER_MEMORY_LOST = b"M"  # the same, after the front end took its memory back: its session is not to go on
RECORD_MAX = 2048  # the longest asks for a tunnel

# More than this many workers lost within this time: something kills each of them, and another will not help.
RESTARTS_MAX = 5
RESTARTS_SECONDS = 60.0

_QUIT_SECONDS = 1.0  # for a child to finish at end of file (control may have a capture to write); then SIGKILL
_HANGUP_MILLISECONDS = 100
_REST_MILLISECONDS = 1000  # a small container has come and gone by then
_KILL_SIGNAL = 9
_SIGNAL_RECORD = 128  # struct signalfd_siginfo, signalfd(2); the signal, an errno, and who it is of

# The `signal` module would import enum. Numbers of x86 and ARM, which agree on these.
_SIGBUS = 7
_SIGNAL_NAMES = {4: "ILL", 6: "ABRT", _SIGBUS: "BUS", 8: "FPE", 9: "KILL", 11: "SEGV", 15: "TERM", 31: "SYS"}
_SIGCHLD = 17

_WORKER_READY, _TOLD = bytes((lib.LG_KEEPER_READY,)), CONTROL_TOLD.pack(b"T", 0)


def describe_end(status: int) -> str:
    """How a process ended, from its wait status, as the end of a sentence."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        known = _SIGNAL_NAMES.get(number)
        return f"was killed by SIG{known}" if known else f"was killed by signal {number}"
    return f"ended with exit status {os.WEXITSTATUS(status)}"


def lost_memory(status: int) -> bool:
    """Whether a worker ended because the front end took back the memory that it shares: EFAULT from a system call, or
    SIGBUS in the worker's own reads."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == _SIGBUS
    return os.WEXITSTATUS(status) == errno.EFAULT


def describe_worker_end(status: int) -> str:
    """As describe_end; but a worker's exit status is an errno, and lost memory has one line, however it shows."""
    failed = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
    if lost_memory(status):
        return "lost the guest's memory (the VM monitor truncated or unmapped the memory that it shares)"
    return f"failed: {os.strerror(failed)}" if failed else describe_end(status)


class Plan:
    """What the keeper is to start; frozen by convention."""

    __slots__ = (
        "name",
        "capture",
        "worker_flags",
        "flow_limit",
        "foreground",
        "resumable",
        "listeners",
        "ports",
        "connections",
        "watch",
        "told_early",
        "command",
        "ssh",
        "interruptible",
    )

    def __init__(
        self,
        name: str,
        capture: bool,
        worker_flags: int,
        flow_limit: int,
        foreground: bool,
        resumable: bool,
        listeners: Sequence[_socket.socket],
        ports: Ports,
        connections: Sequence[Closable],
        watch: NamespaceWatch | None = None,
        told_early: bool = False,
        command: Command | None = None,
        ssh: SshSpawner | None = None,
        interruptible: bool = False,
    ) -> None:
        self.name = name
        self.capture = capture
        self.worker_flags = worker_flags
        self.flow_limit = flow_limit
        self.foreground = foreground
        self.resumable = resumable  # whether a link survives its worker
        self.listeners = listeners  # shut down first of all on quitting
        self.ports = ports  # the same, for those of the host that lead to the guest
        self.connections = connections  # control's alone, once it has started
        self.watch = watch  # of the namespace that we are there for: when that is gone, so are we
        self.told_early = told_early  # whether control tells the first worker all before we are ready
        self.command = command  # the same as `watch`, where we have made the namespace
        self.interruptible = interruptible  # whether SIGINT is an orderly end, too
        self.ssh = ssh  # what starts it; None: no forward needs any


class Ends:
    """What control gets: its ends of the channels, and the shared pages."""

    __slots__ = ("keeper", "cmd", "up", "pages")

    def __init__(
        self,
        keeper: _socket.socket,
        cmd: _socket.socket,
        up: _socket.socket,
        pages: core_worker.SharedPages,
    ) -> None:
        self.keeper = keeper
        self.cmd = cmd
        self.up = up
        self.pages = pages

    def wait_for_start(self) -> bool:
        """Until the helper is ready: control's imports would take the processor from what READY waits for. False if
        it never will be."""
        waiting = select.poll()
        waiting.register(self.keeper, select.POLLIN)
        waiting.poll()
        return _receive(self.keeper) == CONTROL_START

    def say_told(self, error: int) -> None:
        """That the first worker knows all; or why not."""
        try:
            self.keeper.send(CONTROL_TOLD.pack(b"T", error))
        except OSError:
            pass  # the keeper is gone: so are we, in a moment

    def rest(self, others: Sequence[_socket.socket]) -> bool:
        """A while in which a start has the processors to itself; less if one of the `others` has a client, or there is
        another worker. False: the helper has come to its end already."""
        waiting = select.poll()
        for one in (self.keeper, *others):
            waiting.register(one, select.POLLIN)
        waiting.poll(_REST_MILLISECONDS)
        try:
            return bool(self.keeper.recv(1, _socket.MSG_PEEK))
        except BlockingIOError:
            return True


class Keeper:
    """Two children and their channels.

    `control` runs in a child of its own and returns its exit status. `change_identity` is called once that exists: it
    starts with the user that we were started by, because its modules may lie where only that user may read (a checkout
    in /root), and becomes another itself once it has imported them.
    """

    def __init__(
        self,
        plan: Plan,
        log: Log,
        control: Callable[[Ends], int],
        change_identity: Callable[[], None],
        ready: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._log = log
        self._control_main = control
        self._announce = ready
        self._ready = False
        self._awaited = {_WORKER_READY, *([_TOLD] if plan.told_early else [])}  # before we are ready
        self._exit_code: int | None = None
        self._losses: list[float] = []
        self._poll = select.poll()
        self._signals = lib.lg_signals_open(lib.LG_SIGNALS_HANGUP if plan.command else int(plan.interruptible))
        if self._signals < 0:
            raise OSError(-self._signals, os.strerror(-self._signals))
        self._poll.register(self._signals, select.POLLIN)
        self._pages = core_worker.SharedPages(plan.capture)
        channels = core_worker.Channels()
        # The children start as copies of us. Frozen, no collector writes to (and thereby copies) what all could share.
        gc.freeze()
        self._control_pid = self._fork_control(channels)
        change_identity()
        self._worker = self._spawn_worker(channels)
        channels.close_control_ends()
        for connection in plan.connections:
            connection.close()
        if plan.watch is not None and plan.watch.fileno() >= 0:
            self._poll.register(plan.watch, select.POLLIN)

    def run(self) -> int:
        """Until the end of the helper; the exit code of the process."""
        watch = self._plan.watch
        while self._exit_code is None:
            ready = {fd for fd, _ in self._poll.poll(watch.interval if watch else None)}
            # A record that a child sent before it died is read before its death is judged.
            if self._worker.keeper.fileno() in ready:
                self._on_worker_record()
            if self._control.fileno() in ready:
                self._on_control_record()
            if self._signals in ready and self._exit_code is None:
                self._on_signals()
            if watch and (watch.fileno() in ready or watch.interval) and watch.gone() and self._exit_code is None:
                self._on_namespace_end()
        self._end_children()
        return self._exit_code

    # ---- starting ----

    def _fork_control(self, channels: core_worker.Channels) -> int:
        self._control, end = core_worker.channel()
        self._poll.register(self._control, select.POLLIN)
        pid = os.fork()
        if pid == 0:
            self._become_control(channels, end)
        end.close()
        return pid

    def _become_control(self, channels: core_worker.Channels, end: _socket.socket) -> None:
        status = 1
        try:
            self._control.close()
            os.close(self._signals)
            channels.close_worker_ends()
            status = self._control_main(Ends(end, channels.cmd, channels.up, self._pages))
        except BaseException as failure:  # nothing of the child may reach the code of its parent
            self._log.error(f"Control failed: {type(failure).__name__}: {failure}")
            if self._log.level >= DEBUG:
                import traceback

                self._log.debug(traceback.format_exc())
        finally:
            os._exit(status)

    def _spawn_worker(self, channels: core_worker.Channels) -> core_worker.Worker:
        plan = self._plan
        name = f"{plan.name}-worker"
        worker = core_worker.Worker(self._pages, channels, plan.worker_flags, plan.flow_limit, name, plan.foreground)
        self._poll.register(worker.keeper, select.POLLIN)
        return worker

    # ---- what children say ----

    def _on_worker_record(self) -> None:
        record = _receive(self._worker.keeper)
        if not record:
            self._stop_watching(self._worker.keeper)  # SIGCHLD will say the rest
            return
        report = isolation.parse_report(record)
        if report is not None and report.refused and not self._ready:
            self._log.warning(report.warning())
        elif record == _WORKER_READY:
            self._tell_ready(_WORKER_READY)

    def _tell_ready(self, part: bytes) -> None:
        """Once, when all parts are."""
        self._awaited.discard(part)
        if self._ready or self._awaited:
            return
        self._ready = True
        try:
            self._announce()
        except OSError as failure:
            self._log.error(f"Nobody can be told that the helper is ready: {failure.strerror}")
            self._exit_code = 1
            return
        try:
            self._control.send(CONTROL_START)
        except OSError:
            pass  # control is gone: SIGCHLD will say the rest

    def _on_control_record(self) -> None:
        record = _receive(self._control)
        if not record:
            self._stop_watching(self._control)
        elif record == CONTROL_DONE:
            self._exit_code = 0
        elif record == CONTROL_FAILED:
            self._exit_code = 1
        elif record == _TOLD:
            self._tell_ready(_TOLD)
        elif len(record) == CONTROL_TOLD.size and record[:1] == _TOLD[:1]:
            self._log.error(f"The worker refused its configuration: {os.strerror(record[-1])}")
            self._exit_code = 1
        elif self._plan.ssh is None or not self._plan.ssh.serve(record, self._answer_control):
            self._plan.ports.serve(record, self._answer_control)

    def _answer_control(self, answer: bytes, fds: Sequence[int]) -> bool:
        """Whether it could be sent: control takes one answer before it asks again, unless it is broken."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            self._control.sendmsg([answer], rights)
        except OSError:
            return False
        return True

    # ---- what happens to children ----

    def _on_signals(self) -> None:
        number, _, code = struct.unpack_from("=Iii", os.read(self._signals, _SIGNAL_RECORD))
        if number != _SIGCHLD:
            self._exit_code = self._plan.command.on_signal(number, code > 0) if self._plan.command else 0
            return
        while self._exit_code is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._control_pid:
                self._on_control_end(status)
            elif pid == self._worker.pid:
                self._on_worker_end(status)
            elif self._plan.command and pid == self._plan.command.pid:
                self._exit_code = self._plan.command.exit_code(status, self._log)
            elif self._plan.ssh:
                self._plan.ssh.ended(pid, status, self._answer_control)

    def _on_control_end(self, status: int) -> None:
        self._control_pid = 0
        self._on_control_record()  # its last word, if it had one, is the reason
        if self._exit_code is None:
            self._log.error(f"The control process {describe_end(status)}; without it no guest can be served, ending")
            self._exit_code = 1

    def _on_worker_end(self, status: int) -> None:
        end = describe_worker_end(status)
        self._forget_worker()
        if status == 0 and self._control_is_ending():
            return  # it saw the end of its channel; what happened to control is told when that is known
        if not self._ready:
            self._log.error(f"The worker {end} before it was ready")
            self._exit_code = 1
        elif not self._plan.resumable:
            self._log.error(f"The worker {end}; this kind of link cannot be resumed, ending")
            self._exit_code = 1
        elif lost_memory(status):
            # The front end's doing, and the end of its session: no fault of ours to be counted.
            self._log.warning(f"The worker {end}; another takes over, that front end is disconnected")
            self._replace_worker(NEW_WORKER_MEMORY_LOST)
        elif self._too_many_losses():
            self._log.error(f"The worker {end}, the {RESTARTS_MAX + 1}th within {RESTARTS_SECONDS:.0f} s; giving up")
            self._exit_code = 1
        else:
            self._log.warning(f"The worker {end}; another takes over, connections of the guest are reset")
            self._replace_worker(NEW_WORKER)

    def _control_is_ending(self) -> bool:
        """A process that is killed closes all its descriptors in one go, before its parent gets to know."""
        ending = select.poll()
        ending.register(self._control, 0)  # POLLHUP is always reported
        return bool(ending.poll(_HANGUP_MILLISECONDS))

    def _on_namespace_end(self) -> None:
        if not self._ready:
            self._log.error("The network namespace has been removed meanwhile")
        self._exit_code = 0 if self._ready else 1

    def _too_many_losses(self) -> bool:
        now = time.monotonic()
        self._losses = [when for when in self._losses if now - when < RESTARTS_SECONDS] + [now]
        return len(self._losses) > RESTARTS_MAX

    def _replace_worker(self, record: bytes) -> None:
        channels = core_worker.Channels()
        try:
            self._worker = self._spawn_worker(channels)
            rights = struct.pack("2i", channels.cmd.fileno(), channels.up.fileno())
            self._control.sendmsg([record], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError as failure:
            self._log.error(f"Another worker cannot be started: {failure.strerror}")
            self._exit_code = 1
        channels.close_control_ends()

    def _forget_worker(self) -> None:
        self._worker.pid = 0
        self._stop_watching(self._worker.keeper)
        self._worker.keeper.close()

    def _stop_watching(self, channel: _socket.socket) -> None:
        """A channel at its end would be readable for ever."""
        try:
            self._poll.unregister(channel)
        except KeyError:
            pass  # its end was seen before

    # ---- the end ----

    def _end_command(self, command: Command) -> None:
        """If it ends by itself in the moment that it is given, how it does is how we do."""
        if command.pid:
            status = self._wait(command.pid, command.patience)
            if status is not None and command.patience:
                self._exit_code = command.exit_code(status, self._log)
        command.give_terminal_back()

    def _end_children(self) -> None:
        """Ports are free at once, whatever still holds a copy of their sockets; then the worker, so that the ring of
        captured frames is complete when control, the last, writes the rest of it."""
        for listener in self._plan.listeners:
            try:
                listener.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass  # not listening any more
        self._plan.ports.shut_down()
        if self._plan.command:
            self._end_command(self._plan.command)
        if self._plan.ssh:
            self._plan.ssh.shut_down()
        self._worker.keeper.close()
        self._wait(self._worker.pid)
        self._control.close()
        self._wait(self._control_pid)

    def _wait(self, pid: int, patience: float = _QUIT_SECONDS) -> int | None:
        """The wait status of a child that ends by itself within so many seconds."""
        deadline = time.monotonic() + patience
        signals = select.poll()
        signals.register(self._signals, select.POLLIN)
        while pid:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
            left = deadline - time.monotonic()
            if left <= 0:
                try:
                    os.kill(pid, _KILL_SIGNAL)
                except PermissionError:
                    return None  # control, before it left root: it will find its channel closed
                os.waitpid(pid, 0)
                return None
            if signals.poll(left * 1000):
                os.read(self._signals, _SIGNAL_RECORD)
        return None


def _receive(channel: _socket.socket) -> bytes:
    """A record, or nothing at the end of the channel."""
    try:
        return channel.recv(RECORD_MAX)
    except BlockingIOError:
        return b"?"  # nothing to read after all: a record that means nothing
    except OSError:
        return b""
