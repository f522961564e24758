# SPDX-License-Identifier: Apache-2.0
"""move: the order of things when a guest moves, on the host that it leaves and on the one that it reaches.

Called by the vhost-user session (begin, result), by control.py (the rest). One move at a time.

Leaving: the worker freezes the flows that can move and gives us copies of their sockets; these are sealed and put into
repair mode, and all of it is written to the monitor. From then on the sockets are silent, also when they are closed:
whatever happens here, the peers hear nothing of it. Should the monitor start the guest here again, all goes on.
Arriving: sockets are made and filled one by one, in repair mode, so that a stream that turns out to be broken leaves
no trace. Only when all of it has been read, they come to life, and the worker gets them.

Without a repair helper no flow moves: the guest does, and finds its connections reset.

Adversary: on arrival, whoever wrote the stream (see stream.py). The repair helper is trusted with sockets alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import replace
from typing import Protocol

from lockgate.core import channel, flow_records
from lockgate.plugin.address import UNSET
from lockgate.plugin.clients import Emit
from lockgate.plugin.migration import connection, stream
from lockgate.plugin.migration.pipe import Pipe, PipeEnded
from lockgate.plugin.migration.repair import FDS_MAX, OFF, ON, RepairError, RepairHelper
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

SAVE, LOAD = 0, 1  # of SET_DEVICE_STATE_FD
UNSENT_MAX = 256 << 20  # bytes of send queues that are kept here until their sockets may send

_FAILURES = (OSError, RepairError, WorkerError, WorkerGone, stream.Malformed, PipeEnded, TimeoutError)


class Worker(Protocol):
    """What is asked of the worker here; see worker_channels.py."""

    async def seen(self, seen: bytes) -> None: ...
    async def freeze(self, cursor: int) -> tuple[list[tuple[flow_records.TcpFlow, int]], int]: ...
    async def thaw(self, flow: int = 0) -> None: ...
    async def forget(self, flow: int = 0) -> None: ...
    async def adopt(self, flow: flow_records.TcpFlow, fd: int) -> None: ...


class Frozen:
    """A flow that is leaving."""

    __slots__ = ("guest", "sock", "state")

    def __init__(self, guest: flow_records.TcpFlow, fd: int) -> None:
        self.guest = guest
        self.sock = socket.socket(fileno=fd)
        self.state: stream.Socket | None = None  # None: its socket cannot move


class Arrival:
    """A flow that has come. Without a socket it is lost; `fault` says why."""

    __slots__ = ("flow", "sock", "unsent", "fault")

    def __init__(self, flow: stream.Flow) -> None:
        self.flow = flow
        self.sock: socket.socket | None = None
        self.unsent = b""
        self.fault = flow.fault

    def lose(self, why: str) -> None:
        self.fault = self.fault or why
        if self.sock is not None:
            self.sock.close()
            self.sock = None


class Mover:
    """Events: migration.saved (flows, left), migration.loaded (flows, lost, reason), migration.failed (reason),
    migration.resumed (flows), migration.left: the monitor of a guest that was saved has gone."""

    def __init__(self, worker: Worker, repair: RepairHelper, emit: Emit, scope_id: int, linger: bool) -> None:
        self.worker = worker  # replaced when another one takes over
        self.seen = stream.Seen(UNSET, UNSET, UNSET, b"\xff" * 6)
        self.has_left = False  # the guest's state was saved, and it was not started again
        self._may_return = False  # it could be, by the same monitor
        self._repair = repair
        self._emit = emit
        self._scope_id = scope_id
        self._linger = linger
        self._frozen: list[Frozen] = []
        self._unsent = 0  # bytes that arrivals have still to send
        self._task: asyncio.Task[int] | None = None
        self._pipe: Pipe | None = None  # of the task, while it runs

    # ---- what the session asks ----

    def begin(self, direction: int, fd: int) -> str | None:
        """Starts to save to, or to load from, the descriptor, which is taken over. Why not, or None."""
        if self._task is not None and not self._task.done():
            return "the state is being transferred already"
        try:
            pipe = Pipe(fd)
        except OSError as error:
            return f"the descriptor cannot be used: {error.strerror}"
        self._pipe = pipe
        self._task = asyncio.get_running_loop().create_task(self._transfer(direction, pipe))
        return None

    async def result(self) -> int:
        """0, or an errno, once the transfer has ended. Without one: that nothing was transferred."""
        if self._task is None:
            return errno.ENODATA
        return await asyncio.shield(self._task)

    def abandon(self) -> None:
        """Nobody waits for the transfer any more: it ends at the next byte."""
        if self._pipe is not None:
            self._pipe.abandon()

    async def _transfer(self, direction: int, pipe: Pipe) -> int:
        try:
            await (self._leave(pipe) if direction == SAVE else self._arrive(pipe))
        except _FAILURES as failure:
            self._emit("migration.failed", reason=_reason(failure))
            return failure.errno or errno.EIO if isinstance(failure, OSError) else errno.EIO
        finally:
            pipe.close()
            self._pipe = None
        return 0

    async def link_starts(self) -> None:
        """The rings are about to run: a guest whose state was saved has not left after all."""
        if self._may_return:
            self._may_return = self.has_left = False
            count = len(self._frozen)
            if fault := await self._go_on():
                self._emit("migration.failed", reason=f"{fault}: connections that should go on here are reset")
            self._emit("migration.resumed", flows=count)

    async def session_ended(self) -> None:
        """The front end has gone. A transfer that it has not waited for is given up, at the next byte: what has been
        begun with worker or helper is brought to its end. Flows that have left stay silent, so that a late segment of a
        peer's is not answered by a reset; unless they are not to linger."""
        task, self._task = self._task, None
        self.abandon()
        if task is not None:
            await asyncio.wait([task])
        self._drop_copies()
        if self._may_return and not self._linger:
            try:
                await self.worker.forget()
            except (WorkerError, WorkerGone):
                pass
        if self._may_return:
            self._may_return = False
            self._emit("migration.left")

    def _drop_copies(self) -> None:
        for frozen in self._frozen:
            frozen.sock.close()
        self._frozen = []

    # ---- leaving ----

    async def _leave(self, pipe: Pipe) -> None:
        try:
            if await self._repair.present():
                await self._freeze()
            moving = [frozen for frozen in self._frozen if frozen.state is not None]
            await pipe.write(stream.pack_head(self.seen, len(moving)))
            for frozen in moving:
                local, peer = connection.ends(frozen.sock)
                flow = stream.Flow(frozen.guest, local, peer)
                await pipe.write(stream.pack_flow(flow, connection.send_buffer(frozen.sock)))
            for frozen in moving:
                assert frozen.state is not None
                await pipe.write(stream.pack_socket(frozen.state))
                await pipe.write(connection.read_queue(frozen.sock, frozen.state, sending=True))
                await pipe.write(connection.read_queue(frozen.sock, frozen.state, sending=False))
        except BaseException:
            await self._go_on()
            raise
        self.has_left = self._may_return = True
        self._emit("migration.saved", flows=len(moving), left=len(self._frozen) - len(moving))

    async def _freeze(self) -> None:
        cursor = 0
        while True:
            page, cursor = await self.worker.freeze(cursor)
            arrived = [Frozen(guest, fd) for guest, fd in page]
            self._frozen += arrived
            for frozen in arrived:
                connection.seal(frozen.sock)
            if not cursor:
                break
        await self._repair.switch(ON, [frozen.sock for frozen in self._frozen])
        for frozen in self._frozen:
            state = connection.read_state(frozen.sock)
            if not state.fault() and max(state.send_queue, state.receive_queue) <= stream.QUEUE_MAX:
                frozen.state = state
                if state.state in stream.PEER_ENDED_STATES and not frozen.guest.peer_ended:
                    frozen.guest = replace(frozen.guest, peer_ended=1)  # behind what the worker has read

    async def _go_on(self) -> str:
        """As if nothing had been: also after a failure in the middle, whatever state each socket is in. Why those that
        are in repair mode stay so, and are good for nothing; empty: they are not."""
        sockets = [frozen.sock for frozen in self._frozen]
        fault = ""
        try:
            await self._repair.switch(OFF, sockets)
        except RepairError as error:
            fault = str(error)
        for sock in sockets:
            try:
                connection.unseal(sock)
            except OSError:
                pass  # it was not sealed yet
        self._drop_copies()
        try:
            await self.worker.thaw()
        except (WorkerError, WorkerGone):
            pass  # another worker knows none of them
        return fault

    # ---- arriving ----

    async def _arrive(self, pipe: Pipe) -> None:
        stream.check_header(await pipe.read(stream.HEADER.size))
        seen = stream.unpack_seen(await pipe.read(stream.SEEN.size))
        count = stream.unpack_count(await pipe.read(stream.COUNT.size))
        arrivals = [Arrival(stream.unpack_flow(await pipe.read(stream.FLOW_SIZE))) for _ in range(count)]
        self._unsent = 0
        try:
            present = bool(arrivals) and await self._repair.present()
            for start in range(0, count, FDS_MAX):
                await self._fill(pipe, arrivals[start : start + FDS_MAX], present)
            await self.worker.seen(channel.pack_seen(seen.mac, seen.addr4, seen.addr6, seen.link_local))
            await self._bring_to_life(arrivals)
        finally:
            for arrival in arrivals:
                if arrival.sock is not None:
                    arrival.sock.close()
        lost = [arrival for arrival in arrivals if arrival.fault]
        reason = lost[0].fault if lost else ""
        self._emit("migration.loaded", flows=count - len(lost), lost=len(lost), reason=reason)

    async def _fill(self, pipe: Pipe, batch: list[Arrival], present: bool) -> None:
        """Makes the sockets of a batch, and reads what goes into them: also of those that are lost."""
        for arrival in batch:
            if not present:
                arrival.lose("no repair helper is connected")
            elif not arrival.fault:
                try:
                    arrival.sock = connection.new_socket(arrival.flow.local, self._scope_id)
                except OSError as error:
                    arrival.lose(_reason(error))
        try:
            await self._repair.switch(ON, [arrival.sock for arrival in batch if arrival.sock is not None])
        except RepairError as error:
            for arrival in batch:
                arrival.lose(str(error))
        for arrival in batch:
            await self._fill_one(pipe, arrival)

    async def _fill_one(self, pipe: Pipe, arrival: Arrival) -> None:
        state = stream.unpack_socket(await pipe.read(stream.SOCKET_SIZE))
        to_send = await pipe.read(state.send_queue)
        received = await pipe.read(state.receive_queue)
        if why := state.fault() or stream.mismatch(arrival.flow, state):
            arrival.lose(why)
        if self._unsent + state.not_sent > UNSENT_MAX:
            arrival.lose(f"more than {UNSENT_MAX} bytes in all were still to be sent")
        if arrival.sock is None:
            return
        sent = len(to_send) - state.not_sent
        try:
            connection.connect(arrival.sock, arrival.flow.peer, state, self._scope_id)
            connection.write_queues(arrival.sock, state, to_send[:sent], received)
        except OSError as error:
            arrival.lose(_reason(error))
        else:
            arrival.unsent = to_send[sent:]
            self._unsent += len(arrival.unsent)

    async def _bring_to_life(self, arrivals: list[Arrival]) -> None:
        living = [arrival for arrival in arrivals if arrival.sock is not None]
        for arrival in living:
            assert arrival.sock is not None
            connection.unseal(arrival.sock)
        try:
            await self._repair.switch(OFF, [arrival.sock for arrival in living if arrival.sock is not None])
        except RepairError as error:
            for arrival in living:
                arrival.lose(str(error))
        for arrival in living:
            if arrival.sock is None:
                continue
            try:
                connection.write_not_sent(arrival.sock, arrival.unsent, bool(arrival.flow.guest.guest_ended))
                await self.worker.adopt(arrival.flow.guest, arrival.sock.fileno())
            except (OSError, WorkerError) as error:
                arrival.lose(_reason(error))
            else:
                arrival.sock.close()
                arrival.sock = None


def _reason(failure: BaseException) -> str:
    if isinstance(failure, WorkerGone):
        return "the worker ended"
    if isinstance(failure, PipeEnded):
        return "the stream ended before its time"
    if isinstance(failure, TimeoutError):
        return "the monitor does not go on"
    if isinstance(failure, OSError) and failure.errno:
        return failure.strerror or os.strerror(failure.errno)
    return str(failure)
