# SPDX-License-Identifier: Apache-2.0
"""Two connected stream sockets, joined: what one end sends the other gets, and so do their ends.

Called by api.py for tunnels, and by exposed.py for the clients of a socket file. Ports of the host are no business of
this: the worker carries those.
Adversary: both ends. One that does not read stops the other, and costs a chunk of memory meanwhile; one that breaks
breaks both.

Invariants: join() returns with both sockets closed; a direction that has ended (FIN) leaves the other one open; nothing
is read before what was read last has been written, so that nothing here wakes without moving a byte.
Events: relay.failed (local, remote, reason): a client of a socket file found nobody.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from lockgate.plugin.clients import Emit, accept

DIAL_SECONDS = 10.0  # for whoever is in the virtual network; upstream's limit as well
CLIENTS_MAX = 256  # of one socket file at once; the next ones wait in its backlog

_CHUNK = 64 << 10
_RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger, socket(7)

# A connected socket, or OSError.
Dial = Callable[[], Awaitable[socket.socket]]


async def join(one: socket.socket, other: socket.socket, behind: bytes = b"") -> None:
    """Until both directions have ended. `behind`: what has been read from `one` already."""
    try:
        for end in (one, other):
            end.setblocking(False)
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_carry(one, other, behind))
            directions.create_task(_carry(other, one, b""))
    except* OSError:
        for end in (one, other):
            _reset(end)
    finally:
        one.close()
        other.close()


async def dial(call: Dial) -> socket.socket:
    """In time, or OSError."""
    async with asyncio.timeout(DIAL_SECONDS):
        return await call()


class JoinedClients:
    """Those of one socket file, each joined to a connection of its own."""

    def __init__(self, local: str, remote: str, call: Dial, emit: Emit) -> None:
        self._names = {"local": local, "remote": remote}
        self._call = call
        self._emit = emit
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CLIENTS_MAX)

    async def serve(self, listener: socket.socket) -> None:
        """For ever. Those who are joined stay so when this is cancelled."""
        listener.setblocking(False)
        while True:
            await self._room.acquire()
            try:
                client = await accept(listener, self._tell)
            except BaseException:
                self._room.release()
                raise
            task = asyncio.get_running_loop().create_task(self._join(client))
            self._tasks.add(task)
            task.add_done_callback(self._end)
            await asyncio.sleep(0)  # one for whom no descriptor is left has gone before the next is taken

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _join(self, client: socket.socket) -> None:
        try:
            far = await dial(self._call)
        except OSError as failure:
            self._tell(failure.strerror or str(failure) or f"no answer within {DIAL_SECONDS:.0f} s")
            client.close()
        except BaseException:
            client.close()
            raise
        else:
            await join(client, far)

    def _tell(self, reason: str) -> None:
        self._emit("relay.failed", **self._names, reason=reason)


async def _carry(source: socket.socket, sink: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    if data:
        await loop.sock_sendall(sink, data)
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    """What is cut off must not look as if it had come to its end."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass  # not a socket for that
