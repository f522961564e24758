# SPDX-License-Identifier: Apache-2.0
"""pipe: the descriptor that the monitor gives for a device's state, read or written without waiting for the monitor.

Called by move.py. Adversary: the monitor. It may send any descriptor, and neither read nor write what it should: after
a time without a byte it is given up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

STALL_SECONDS = 60  # without a byte; the other end may be at the far end of a slow network
_PIECE = 1 << 20  # what one call may move, so that other work has its turn


class PipeEnded(Exception):
    """The other end was closed in the middle, or nobody wants the transfer any more."""


class Pipe:
    """Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._abandoned = False
        self._ready = asyncio.Event()
        os.set_blocking(fd, False)

    def close(self) -> None:
        os.close(self._fd)

    def abandon(self) -> None:
        """From here on nothing is read or written, also by whoever waits just now."""
        self._abandoned = True
        self._ready.set()

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < size:
            self._check()
            try:
                piece = os.read(self._fd, min(size - len(data), _PIECE))
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._until(loop.add_reader, loop.remove_reader)
                continue
            if not piece:
                raise PipeEnded
            data += piece
            await asyncio.sleep(0)  # others have their turn
        return bytes(data)

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._check()
            try:
                written = os.write(self._fd, left[:_PIECE])
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._until(loop.add_writer, loop.remove_writer)
                continue
            left = left[written:]
            await asyncio.sleep(0)  # likewise

    def _check(self) -> None:
        if self._abandoned:
            raise PipeEnded

    async def _until(self, watch: Callable[..., None], unwatch: Callable[[int], bool]) -> None:
        self._ready.clear()
        watch(self._fd, self._ready.set)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._ready.wait()
        finally:
            unwatch(self._fd)
