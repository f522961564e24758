# SPDX-License-Identifier: Apache-2.0
"""clients: who connects to a link's socket, one at a time.

Called by the servers of both links, vhost-user and stream. Adversary: whoever can connect: of those only one is served,
the others are sent away at once, so that none of them waits for an answer that will not come.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Awaitable, Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

ACCEPT_RETRY_SECONDS = 1.0  # with no descriptor left, the listener stays readable: look again later, do not spin
ACCEPT_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Emit(Protocol):
    """Hears of an event: its name and its fields."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


async def readable(sock: socket.socket) -> None:
    """Until there is something to read, or to accept."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def accept(listener: socket.socket, tell: Callable[[str], None]) -> socket.socket:
    """The next client; tell() hears why none can be taken meanwhile."""
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await readable(listener)
        except OSError as error:
            if error.errno in ACCEPT_EXHAUSTED:
                tell(f"no room for a connection: {error.strerror}")
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
            elif error.errno != errno.ECONNABORTED:
                raise
        else:
            client.setblocking(False)
            return client


def has_left(client: socket.socket) -> bool:
    """Whether the other end is closed, whatever is still to be read."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


class Clients:
    """Serves one client after the other by `serve_client`, which returns once its client has gone.

    Events: link.refused (reason, request="connect").
    """

    def __init__(self, serve_client: Callable[[socket.socket], Awaitable[None]], emit: Emit) -> None:
        self._serve_client = serve_client
        self._emit = emit

    async def serve(self, sock: socket.socket, *, one_off: bool) -> None:
        """Serves what connects to a listening socket, for ever or with one_off only the first; or, if `sock` is a
        connected socket, that. `sock` stays the caller's."""
        sock.setblocking(False)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            await self._serve_client(sock)
            return
        while True:
            with await self._accept(sock) as client:
                others = asyncio.create_task(self._send_away(sock, client))
                try:
                    await self._serve_client(client)
                finally:
                    if one_off:
                        sock.shutdown(socket.SHUT_RDWR)  # whoever is started anew as its client goes finds nobody here
                    client.close()
                    others.cancel()
                    await asyncio.wait([others])
            if one_off:
                return

    async def _accept(self, listener: socket.socket) -> socket.socket:
        return await accept(listener, lambda reason: self._emit("link.refused", reason=reason, request="connect"))

    async def _send_away(self, listener: socket.socket, client: socket.socket) -> None:
        """Closes what connects while `client` is served. Not its own successor: one that reconnects at once is here
        before the end of its first connection has been read, and waits in the backlog for the detach."""
        while True:
            await readable(listener)
            if has_left(client):
                return
            (await self._accept(listener)).close()
            self._emit("link.refused", reason="another front end is being served", request="connect")
