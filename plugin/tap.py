# SPDX-License-Identifier: Apache-2.0
"""tap: the life of a namespace's link. Its frames are the worker's; each worker gets the device, and its end is told.
With --splice-only there is none, and nothing to be told of.

Called by control.py: serve() once, link_ended() when the worker says that the device has gone, resume() when there is
a new worker.
Adversary: the namespace, which may delete the device at any moment; then there is no link, and no other will come.
"""

from __future__ import annotations

import asyncio

from lockgate.core import channel
from lockgate.plugin.clients import Emit
from lockgate.plugin.namespace.inside import Device
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Worker(Protocol):
    """What is asked of the worker."""

    async def tap_attach(self, fd: int, uso: bool) -> None:
        """Raises WorkerError or WorkerGone."""

    async def seen(self, seen: bytes) -> None:
        """The same."""


class TapServer:
    """One device, one worker at a time.

    Events: link.attach, link.detach (reason).
    """

    def __init__(self, worker: Worker, emit: Emit, device: Device | None) -> None:
        self._worker = worker
        self._emit = emit
        self._device = device
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Until the device has gone, which is for ever."""
        self._emit("link.detach", reason=await self._over)

    def link_ended(self, payload: bytes, port: int = 0) -> None:
        """The worker has let go of the device; `payload` is its struct lg_link_end."""
        if channel.parse_link_end(payload) is not None and not self._over.done():
            self._over.set_result("the tap device has gone from the namespace")

    async def resume(self, worker: Worker, memory_lost: bool = False) -> None:
        """There is a worker, the first or another: it gets the device."""
        self._worker = worker
        if self._device is None:
            return
        try:
            await worker.seen(self._device.seen)
            await worker.tap_attach(self._device.fd, self._device.uso)
        except WorkerGone:
            return  # another will come
        except WorkerError as refusal:
            if not self._over.done():
                self._over.set_result(f"the worker refused the tap device: {refusal}")
            return
        self._emit("link.attach", link="tap")
