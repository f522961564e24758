# SPDX-License-Identifier: Apache-2.0
"""server: the asyncio shell of the vhost-user session: sockets, messages and descriptors off the wire, answers onto it.

Called by control.py: serve() for as long as there may be front ends, resume() when the worker was replaced.

Adversary: the front end. A message may come in any pieces, with any descriptors, or never to its end: what was read of
it lives and dies with its connection.

Invariants: bytes are read up to the end of a message and no further, so that a descriptor belongs to the message whose
bytes it came with. Each descriptor that was received is closed once, here or by the session. The next front end is
served only after the worker has let go of everything of the one before.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket

from lockgate.plugin.clients import Clients, Emit, has_left, readable
from lockgate.plugin.vhost_user.dispatch import Message, Plan, Refused, Verdict, answer
from lockgate.plugin.vhost_user.messages import (
    FDS_MAX,
    HEADER_SIZE,
    PROTOCOL_FEATURES,
    PROTOCOL_FEATURES_HANDED_OVER,
    Header,
    Request,
    request_name,
)
from lockgate.plugin.vhost_user.session import Session
from lockgate.plugin.vhost_user.worker import StateTransfer, Worker, WorkerError, WorkerGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FDS_BYTES = FDS_MAX * array.array("i").itemsize


class Broken(Exception):
    """The connection cannot go on: one sentence on why, and the name of the request that was being read, if any."""

    def __init__(self, reason: str, request: str = "") -> None:
        super().__init__(reason)
        self.request = request


class MessageReader:
    """Whole messages off one connection."""

    __slots__ = ("_sock", "_fds")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fds: list[int] = []  # those of the message that is being read

    async def read(self) -> Message | None:
        """The next message, or None at the end of the connection. Broken, OSError."""
        self._fds = []
        try:
            data = await self._exactly(HEADER_SIZE)
            if not data:
                return None
            header = Header.unpack(data)
            name = request_name(header.request)
            if fault := header.fault():
                raise Broken(fault, name)
            payload = await self._exactly(header.size)
            if len(payload) < header.size:
                raise Broken("the connection ended in the middle of the message", name)
            return Message(header, payload, self._fds)
        except BaseException:
            for fd in self._fds:
                os.close(fd)
            raise

    async def _exactly(self, size: int) -> bytes:
        """`size` bytes; fewer only of a payload, and none of a header, when the connection has ended."""
        data = b""
        while len(data) < size:
            try:
                piece = self._receive(size - len(data))
            except BlockingIOError:
                await readable(self._sock)
                continue
            if not piece:
                if data and size == HEADER_SIZE:
                    raise Broken("the connection ended in the middle of a header")
                break
            data += piece
        return data

    def _receive(self, size: int) -> bytes:
        data, control, flags, _ = self._sock.recvmsg(size, socket.CMSG_SPACE(FDS_BYTES), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
            # Also what the kernel says when this process may not have more: which ones are missing, nobody knows.
            raise Broken(f"descriptors were lost: more than {FDS_MAX} came with a message, or more than fit here")
        return data


class VhostUserServer:
    """One device: one front end at a time, one worker at a time.

    Events, through `emit`: link.attach (features), link.detach (reason), link.refused (reason, request), link.parked
    (ring, reason), link.resume (rings), link.mtu (mtu), link.rarp (mac), link.failed (reason).
    """

    def __init__(self, worker: Worker, emit: Emit, transfer: StateTransfer | None = None) -> None:
        self._worker = worker
        self._transfer = transfer
        self._emit = emit
        self._session: Session | None = None
        self._client: socket.socket | None = None
        self._protocol_offer = PROTOCOL_FEATURES
        # Held by whoever talks to the worker: a request, the detach, or a resume. A request that lost its worker lends
        # it to the resume that it waits for.
        self._turn = asyncio.Condition()
        self._resumed = 0  # counts

    async def serve(self, sock: socket.socket, *, one_off: bool) -> None:
        """Serves what connects to a listening socket, for ever or with one_off only the first; or, if `sock` is a
        connected socket, that. `sock` stays the caller's."""
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._protocol_offer = PROTOCOL_FEATURES_HANDED_OVER
        await Clients(self._serve_client, self._emit).serve(sock, one_off=one_off)

    async def resume(self, worker: Worker, memory_lost: bool = False) -> None:
        """The worker was replaced: goes on with this one, with the connection that there may be.

        `memory_lost`: the old one met memory that the front end had taken back. A new one would meet the same, so that
        front end is disconnected; it, or another, may connect again.
        WorkerGone: it died, too; to be called again with the next. The front end waits meanwhile.
        """
        async with self._turn:
            self._worker = worker
            if self._session is not None and memory_lost:
                self._session.worker = worker
                self._end_session("the front end took back memory that it shares")
            elif self._session is not None:
                try:
                    await self._session.resume(worker)
                except WorkerError as error:
                    self._end_session(f"the new worker refused: {error}")
            self._resumed += 1
            self._turn.notify_all()

    def _end_session(self, reason: str) -> None:
        self._emit("link.refused", reason=reason, request="resume")
        if self._client is not None:
            with contextlib.suppress(OSError):  # it may just have gone by itself
                self._client.shutdown(socket.SHUT_RDWR)

    # ---- Connections. ----

    async def _serve_client(self, client: socket.socket) -> None:
        session = Session(self._worker, self._emit, self._transfer, self._protocol_offer)
        self._session, self._client = session, client
        try:
            reason = await self._converse(session, client)
            if self._transfer is not None:
                await self._transfer.session_ended()
            async with self._turn:
                with contextlib.suppress(WorkerGone):  # what it held died with it
                    await session.detach(reason)
        except WorkerError as error:
            self._emit("link.refused", reason=f"the worker refused to reset the link: {error}", request="disconnect")
        finally:
            session.close()
            self._session = self._client = None

    async def _converse(self, session: Session, client: socket.socket) -> str:
        """Until the connection is over; why, in a sentence."""
        loop = asyncio.get_running_loop()
        reader = MessageReader(client)
        try:
            while message := await reader.read():
                async with self._while_there(client, message):
                    verdict = await self._request(session, message)
                if isinstance(verdict, Refused):
                    name = request_name(message.header.request)
                    self._emit("link.refused", reason=verdict.reason, request=name)
                out = answer(message, verdict, session.protocol_features)
                if out.reply is not None:
                    await loop.sock_sendall(client, out.reply)
                if out.close:
                    return "the connection was closed because a request was refused"
        except Broken as broken:
            self._emit("link.refused", reason=str(broken), request=broken.request)
            return "the connection was closed because a message was broken"
        except OSError as error:
            return f"the connection broke: {error.strerror}"
        return "the front end closed the connection"

    @contextlib.asynccontextmanager
    async def _while_there(self, client: socket.socket, message: Message) -> AsyncIterator[None]:
        """Of all requests only the end of a transfer may be long in coming, through a pipe that others hold: a front
        end that goes meanwhile gives the transfer up, as it would before it asked."""
        if self._transfer is None or message.header.request != Request.CHECK_DEVICE_STATE:
            yield
            return
        watching = asyncio.create_task(self._abandon_if_left(client, self._transfer))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _abandon_if_left(self, client: socket.socket, transfer: StateTransfer) -> None:
        await readable(client)
        if has_left(client):
            transfer.abandon()

    async def _request(self, session: Session, message: Message) -> Verdict:
        try:
            async with self._turn:
                plan = session.receive(message)
                return await self._carry_out(session, message, plan)
        finally:
            for fd in message.fds:
                os.close(fd)

    async def _carry_out(self, session: Session, message: Message, plan: Plan) -> Verdict:
        while True:
            resumed = self._resumed
            try:
                return await session.carry_out(message, plan)
            except WorkerGone:
                while self._resumed == resumed:
                    await self._turn.wait()
            if not plan.again:
                return plan.verdict
