# SPDX-License-Identifier: Apache-2.0
"""stream: the life of a link's connections. Their bytes are the worker's; here it is only said whose turn it is.

Called by control.py: serve() for as long as there may be clients, link_ended() when the worker says that a connection
is over, resume() when the worker was replaced.
Adversary: the client, which is the guest's monitor. It may vanish at any moment; the next one starts with an empty
stream.

Invariants: the worker has one connection at most, and the next client is accepted only after it has let go of the last.
A connection dies with its worker: where in a frame the stream stood is not known to anybody else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from lockgate.core import channel
from lockgate.plugin.clients import Clients, Emit
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Worker(Protocol):
    """What is asked of the worker."""

    async def stream_attach(self, fd: int, framing: int = 0, port: int = 0) -> None:
        """Raises WorkerError or WorkerGone."""

    async def dgram_attach(self, fd: int, port: int = 0) -> None:
        """The same."""


class StreamServer:
    """One client at a time, one worker at a time.

    Events: link.attach, link.detach (reason), link.refused (reason, request).
    """

    def __init__(self, worker: Worker, emit: Emit, framing: int = 0) -> None:
        """`framing`: lib.LG_STREAM_*, of streams."""
        self._worker = worker
        self._emit = emit
        self._framing = framing
        self._over: asyncio.Future[str] | None = None  # of the connection that the worker has: why it ended

    async def serve(self, sock: socket.socket, *, one_off: bool) -> None:
        """See Clients.serve()."""
        await Clients(self._serve_client, self._emit).serve(sock, one_off=one_off)

    def link_ended(self, payload: bytes, port: int = 0) -> None:
        """The worker has detached the connection; `payload` is its struct lg_link_end."""
        end = channel.parse_link_end(payload)
        if end is not None:
            self._end(reason_of_end(*end))

    async def resume(self, worker: Worker, memory_lost: bool = False) -> None:
        """The worker was replaced. Its client connects again, if it can."""
        self._worker = worker
        self._end("the worker ended")

    def _end(self, reason: str) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(reason)

    async def _serve_client(self, client: socket.socket) -> None:
        """A connected socket: a stream, or one that keeps messages apart."""
        self._over = asyncio.get_running_loop().create_future()
        stream = client.type == socket.SOCK_STREAM
        try:
            if stream:
                await self._worker.stream_attach(client.fileno(), self._framing)
            else:
                await self._worker.dgram_attach(client.fileno())
            self._emit("link.attach", link="stream" if stream else "messages")
            self._emit("link.detach", reason=await self._over)
        except WorkerError as error:
            self._emit("link.refused", reason=f"the worker refused the connection: {error}", request="connect")
        except WorkerGone:
            pass  # and with it the connection
        finally:
            self._over = None


def reason_of_end(error: int, length: int) -> str:
    if error == errno.EPROTO:
        return f"the monitor sent a frame of {length} bytes; 14 to 65535 are possible, and the stream is lost"
    return f"the connection broke: {os.strerror(error)}" if error else "the monitor closed the connection"
