# SPDX-License-Identifier: Apache-2.0
"""Forwards by SSH: sockets on the host whose clients reach a socket in the guest. Control's part: keeps an ssh for
each, by way of the keeper, and joins its clients with it.

Called by control.py, which hands on the keeper's records (ssh_child.py) and says whether there is a guest, and by the
API, which adds forwards and removes them.
Adversary: the clients of these sockets, and the guest behind ssh: what ssh says of it is shown as one line without
control characters. Clients at once, the time that one waits for an ssh, and its tries are bounded.

Invariants: a client is accepted only while there is an ssh that takes it; until then it waits in the backlog, where it
costs nothing. No byte of a client is lost or sent twice as ssh is replaced under it (ssh_offer.py); a connection that
is joined ends with its ssh. A tunnel has an ssh from its first client on, and no other while it has no client. Sockets
that listen stay the caller's, who closes them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Sequence

from lockgate.core._datapath import lib
from lockgate.plugin.clients import ACCEPT_EXHAUSTED, ACCEPT_RETRY_SECONDS
from lockgate.plugin.gateway.relay import join
from lockgate.plugin.gateway.ssh import ssh_child
from lockgate.plugin.gateway.ssh.ssh_life import Do, SshLife, State
from lockgate.plugin.gateway.ssh.ssh_offer import is_readable, offer
from lockgate.plugin.keeper import describe_end

CLIENTS_MAX = 256  # of one forward, at once; more wait in the backlog
TRIES = 3
TRY_SECONDS = 0.2  # between them: nothing tells when ssh takes more clients, or that the guest listens by now
PATIENCE_SECONDS = 30.0  # for which an accepted client waits for another ssh, all in all

_LOOK_SECONDS = 0.25  # where inotify cannot tell of a new socket
_LINE_BYTES_MAX = 512
_READ_BYTES = 65536


class TunnelError(ValueError):
    """Why a tunnel cannot be added; the text is one sentence, without the full stop."""


class SshForwards:
    """All of them, by number: first those that were known before READY, in their order, then tunnels."""

    def __init__(self, folder: str, tell_keeper: Callable[[bytes], None], debug: Callable[[str], None]) -> None:
        """`folder` is the one in which ssh makes its sockets. To be called with a loop running."""
        self.folder = folder
        self.tell_keeper = tell_keeper
        self.debug = debug
        self.loop = asyncio.get_running_loop()
        self._forwards: dict[int, Forward] = {}
        self._leaving: dict[int, Forward] = {}  # removed, while their ssh has not ended
        self._known = 0
        self.guest = False
        self.watch = self._open_watch()

    def add_known(self, listener: socket.socket, path: str, destination: str) -> None:
        """The next of those that the keeper knows, before any tunnel. `path` is where its clients come."""
        number, self._known = self._known, self._known + 1
        request = ssh_child.pack_request(ssh_child.START, number)
        self._add(number, Forward(self, number, listener, (path, destination), request, lazy=False))

    def add_tunnel(
        self, listener: socket.socket, path: str, port: int, user: str, destination: str, key_path: str
    ) -> int:
        """Its number. `port` is one of the host's loopback that leads to the guest's sshd. Raises TunnelError."""
        fault = ssh_child.fault_of(user, destination) or ssh_child.fault_of_key_path(key_path)
        if fault:
            raise TunnelError(fault)
        last = self._known + ssh_child.TUNNELS_MAX
        free = [n for n in range(self._known, last) if n not in self._forwards and n not in self._leaving]
        if not free:
            raise TunnelError(f"there are {ssh_child.TUNNELS_MAX} tunnels by SSH already")
        request = ssh_child.pack_tunnel(free[0], port, user, destination, key_path)
        self._add(free[0], Forward(self, free[0], listener, (path, destination), request, lazy=True))
        return free[0]

    def remove(self, number: int) -> None:
        """It takes no more clients, its ssh is ended, and with that the connections through it."""
        forward = self._forwards.pop(number, None)
        if forward is not None:
            forward.close()
            if forward.has_ssh:
                self._leaving[number] = forward

    def guest_came(self) -> None:
        """There is somebody at the link."""
        self.guest = True
        for forward in self._forwards.values():
            forward.guest_came()

    def dial_anew(self) -> None:
        """The guest could not hear before."""
        for forward in self._forwards.values():
            forward.dial_anew()

    def guest_left(self) -> None:
        self.guest = False
        for forward in self._forwards.values():
            forward.guest_left()

    def on_record(self, record: bytes, fds: Sequence[int]) -> bool:
        """A record of the keeper's, with its descriptors, which are ours then; False: it is not about ssh."""
        number, end = ssh_child.parse_begun(record), ssh_child.parse_ended(record)
        if number is not None and len(fds) == 1:
            forward = self._forwards.get(number) or self._leaving.get(number)
            if forward is None:
                os.close(fds[0])
            else:
                forward.begun(fds[0])
            return True
        if end is None:
            return False
        forward = self._leaving.pop(end[0], None) or self._forwards.get(end[0])
        if forward is not None:
            forward.ended(end[1], end[2])
        return True

    def close(self) -> None:
        for number in list(self._forwards):
            self.remove(number)
        for forward in self._leaving.values():
            forward.ended(0, 0)
        self._leaving.clear()
        if self.watch >= 0:
            self.loop.remove_reader(self.watch)
            os.close(self.watch)
            self.watch = -1

    def _add(self, number: int, forward: Forward) -> None:
        self._forwards[number] = forward
        if self.guest:
            forward.guest_came()

    def _open_watch(self) -> int:
        """Tells of new sockets in the folder; -1 where the kernel has no inotify left for us."""
        fd = int(lib.lg_watch_open())
        if fd < 0:
            return -1
        if lib.lg_watch_folder(fd, os.fsencode(self.folder), True) < 0:
            os.close(fd)
            return -1
        self.loop.add_reader(fd, self._on_folder)
        return fd

    def _on_folder(self) -> None:
        try:
            os.read(self.watch, _READ_BYTES)
        except BlockingIOError:
            return
        for forward in self._forwards.values():
            forward.look()


class Forward:
    """One socket and its ssh."""

    def __init__(
        self,
        owner: SshForwards,
        number: int,
        listener: socket.socket,
        names: tuple[str, str],
        request: bytes,
        *,
        lazy: bool,
    ) -> None:
        self._owner = owner
        self._number = number
        self._listener = listener
        self._path, self._destination = names
        self._request = request  # that has the keeper start an ssh
        self._lazy = lazy  # whether there is one for clients alone
        self._life = SshLife()
        self._up = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._said: SaidBySsh | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._listening = self._resting = self._closed = False
        listener.setblocking(False)

    # ---- its ssh ----

    @property
    def has_ssh(self) -> bool:
        """Or will have one, unless the keeper says otherwise."""
        return self._life.state not in (State.IDLE, State.PAUSED)

    def guest_came(self) -> None:
        self._do(None if self._lazy and not self._clients else self._life.want())

    def dial_anew(self) -> None:
        if self._life.state is State.RUNNING:
            self._do(self._life.drop())
            self._do(self._life.want())

    def guest_left(self) -> None:
        self._do(self._life.drop())

    def begun(self, fd: int) -> None:
        self._forget_said()
        self._said = SaidBySsh(self._owner.loop, fd)
        self._life.begun()
        self.look()

    def ended(self, error: int, status: int) -> None:
        what = f"could not be started: {os.strerror(error)}" if error else describe_end(status)
        last = self._forget_said()
        if not self._closed:
            self._owner.debug(f"ssh for {self._path} {what}{': ' if last else ''}{last}")
        self._do(self._life.ended(self._owner.loop.time()))

    def look(self) -> None:
        """Whether its socket is there by now."""
        if self._life.state is not State.RUNNING:
            return
        if _is_socket(self._socket_path):
            self._do(self._life.listens(self._owner.loop.time()))
        elif self._owner.watch < 0:
            self._set_timer(_LOOK_SECONDS, self.look)

    def close(self) -> None:
        """An ssh is told to end; it has when the keeper says so."""
        self._closed = True
        self._do(self._life.drop())
        for task in self._clients:
            task.cancel()

    @property
    def _socket_path(self) -> str:
        return os.path.join(self._owner.folder, ssh_child.socket_name(self._number))

    def _do(self, what: Do | None) -> None:
        if what is Do.START:
            self._owner.tell_keeper(self._request)
        elif what is Do.END:
            self._owner.tell_keeper(ssh_child.pack_request(ssh_child.END, self._number))
        elif what is Do.PAUSE:
            pause = self._life.pause
            self._owner.debug(f"Waiting for sshd ({'1s' if pause >= 1 else f'{1000 * pause:.0f}ms'})")
            self._set_timer(pause, self._resume)
        elif what is Do.SERVE:
            self._hide_key()
            self._owner.debug(f"Socket forward established: {self._path} -> {self._destination}")
        if self._life.state is State.UP:
            self._up.set()
        else:
            self._up.clear()
        if self._life.state is State.IDLE and self._timer is not None:
            self._timer.cancel()
        self._settle()

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._owner.loop.call_later(seconds, then)

    def _resume(self) -> None:
        """After a pause."""
        idle = self._lazy and not self._clients and not is_readable(self._listener)
        self._do(self._life.drop() if idle else self._life.resume())

    def _hide_key(self) -> None:
        """ssh has read it."""
        try:
            os.unlink(os.path.join(self._owner.folder, ssh_child.key_name(self._number)))
        except OSError:
            pass  # the keeper removes it as well, as ssh ends

    def _forget_said(self) -> str:
        """What the ssh that was has said last."""
        said, self._said = self._said, None
        return "" if said is None else said.close()

    # ---- its clients ----

    def _settle(self) -> None:
        """Looks at who comes exactly as long as there is an ssh, and room; or somebody is to come first."""
        takes = self._up.is_set() and len(self._clients) < CLIENTS_MAX
        waits = self._lazy and self._owner.guest and self._life.state is State.IDLE
        wanted = (takes or waits) and not self._resting and not self._closed
        if wanted and not self._listening:
            self._owner.loop.add_reader(self._listener, self._on_client)
        elif self._listening and not wanted:
            self._owner.loop.remove_reader(self._listener)
        self._listening = wanted

    def _on_client(self) -> None:
        if self._life.state is State.IDLE:
            self._do(self._life.want())
        else:
            self._accept()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as failure:
            if failure.errno in ACCEPT_EXHAUSTED:
                self._rest(True)
                self._owner.loop.call_later(ACCEPT_RETRY_SECONDS, self._rest, False)
            elif failure.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self._rest(True)  # it has been shut down: we are about to end
            return
        client.setblocking(False)
        task = self._owner.loop.create_task(self._serve(client))
        self._clients.add(task)
        task.add_done_callback(self._client_left)
        self._settle()

    def _rest(self, on: bool) -> None:
        self._resting = on
        self._settle()

    def _client_left(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._settle()

    async def _serve(self, client: socket.socket) -> None:
        """Until its connection has ended, or no ssh wants it."""
        loop = self._owner.loop
        deadline = loop.time() + PATIENCE_SECONDS
        with client:
            for attempt in range(TRIES):
                if attempt:
                    await asyncio.sleep(TRY_SECONDS)
                if not await self._wait_up(deadline - loop.time()):
                    break
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as end:
                    try:
                        end.connect(self._socket_path)
                        if not await offer(client, end):
                            continue
                    except OSError:
                        continue  # ssh has ended, or has more clients than it takes
                    await join(client, end)
                    return
            self._owner.debug(f"A client of {self._path} is sent away: the guest's {self._destination} does not answer")

    async def _wait_up(self, seconds: float) -> bool:
        if self._up.is_set():
            return True
        try:
            await asyncio.wait_for(self._up.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True


class SaidBySsh:
    """Its standard error: the last line counts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._reading = True
        self._last = self._open = b""  # the last line that is complete, and the beginning of one that is not
        loop.add_reader(fd, self._read)

    def close(self) -> str:
        """Reads what is left, and returns the last line that is not empty."""
        while self._reading and self._read():
            pass
        self._stop()
        os.close(self._fd)
        text = (self._open.strip() or self._last).decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else "?" for letter in text)

    def _read(self) -> bool:
        """Whether there was something."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._stop()  # its end would be readable for ever
            return False
        *complete, rest = (self._open + data).split(b"\n")
        for line in complete:
            self._last = line.strip()[:_LINE_BYTES_MAX] or self._last
        self._open = rest[:_LINE_BYTES_MAX]
        return True

    def _stop(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
        self._reading = False


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
