# SPDX-License-Identifier: Apache-2.0
"""-notification: whoever started a virtual network hears at a socket that it is ready, and which guests come and go.

Called by control.py. Each message is a connection of its own with one line of JSON.
Adversary: whoever listens there, or does not: it is waited for, for so long and no longer, and nobody here waits with
it. What guests cause in the meantime is dropped once QUEUE_MAX messages wait.

Invariants: messages arrive in their order, or not at all; one that could not be delivered is not tried again.
Events: notification.failed (path, reason).
"""

from __future__ import annotations

import asyncio
import json
import socket

from lockgate.plugin.clients import Emit
from lockgate.plugin.services.frame import mac_text

QUEUE_MAX = 100
SECONDS = 5.0  # for one message
_LOOK_SECONDS = 0.05  # between two tries: nothing tells when a backlog has room

READY = "ready"
ESTABLISHED = "connection_established"
CLOSED = "connection_closed"
HYPERVISOR_ERROR = "hypervisor_error"


class Notifier:
    """What is sent to one path."""

    def __init__(self, path: str, emit: Emit, seconds: float = SECONDS) -> None:
        self._path = path
        self._emit = emit
        self._seconds = seconds
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self.dropped = 0  # that found the queue full

    def send(self, kind: str, mac: bytes = b"") -> None:
        """Returns at once."""
        try:
            self._queue.put_nowait(line(kind, mac))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """For ever."""
        while True:
            message = await self._queue.get()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._deliver(message)
            except TimeoutError:
                self._fail(f"whoever listens there has not taken the message within {self._seconds:.0f} s")
            except OSError as failure:
                self._fail(failure.strerror or str(failure))
            self._queue.task_done()

    async def delivered(self) -> None:
        """Until nothing waits any more."""
        await self._queue.join()

    async def _deliver(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            while not _connected(connection, self._path):
                await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.get_running_loop().sock_sendall(connection, message)

    def _fail(self, reason: str) -> None:
        self._emit("notification.failed", path=self._path, reason=reason)


def _connected(connection: socket.socket, path: str) -> bool:
    """False: its backlog is full. (What asyncio has for this takes that for a connection on its way.)"""
    try:
        connection.connect(path)
    except BlockingIOError:
        return False
    return True


def line(kind: str, mac: bytes = b"") -> bytes:
    """One message; `mac` is whom it is about."""
    message = {"notification_type": kind}
    if mac:
        message["mac_address"] = mac_text(mac)
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
