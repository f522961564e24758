# SPDX-License-Identifier: Apache-2.0
"""repair: the program that switches sockets to repair mode for us, which takes a right that we do not have.

Called by control.py (the listening socket) and move.py. The program connects to us, passt-repair(1) or one like it; we
send a byte and sockets, and it sends the byte back when it has done that to all of them. It closes the connection where
it cannot.

Adversary: whoever may connect to the socket, which the rights of its file say. It gets the sockets of the guest that
moves. What it answers is one byte, for a time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from lockgate.plugin.clients import Emit, accept

ON, OFF, OFF_WITHOUT_PROBE = 1, 0, -1  # tcp(7) and linux/tcp.h: TCP_REPAIR_*
FDS_MAX = 253  # SCM_MAX_FD, unix(7): of one message
ANSWER_SECONDS = 5
PRESENT_SECONDS = 0.01  # for a helper that has just been started


class RepairError(Exception):
    """The sockets are not in the mode that was asked for; the text says why."""


class RepairHelper:
    """At most one program at a time; a further one is sent away."""

    def __init__(self, listener: socket.socket | None, emit: Emit) -> None:
        self._listener = listener
        self._emit = emit
        self._helper: socket.socket | None = None
        self._asking = False
        self._came = asyncio.Event()

    async def serve(self) -> None:
        """For ever, if there is a socket at all; raises OSError if it is good for nothing any more."""
        if self._listener is None:
            return
        self._listener.setblocking(False)
        while True:
            helper = await accept(self._listener, lambda reason: self._emit("migration.failed", reason=reason))
            if self._helper is not None:
                helper.close()
            else:
                self._take(helper)

    def _take(self, helper: socket.socket) -> None:
        self._helper = helper
        self._came.set()
        asyncio.get_running_loop().add_reader(helper, self._on_word)

    def _on_word(self) -> None:
        """It speaks only when it was asked: anything else is its end."""
        if not self._asking:
            self._drop()

    def _drop(self) -> None:
        if self._helper is not None:
            asyncio.get_running_loop().remove_reader(self._helper)
            self._helper.close()
            self._helper = None
            self._came.clear()

    async def present(self) -> bool:
        if self._listener is None:
            return False
        try:
            async with asyncio.timeout(PRESENT_SECONDS):
                await self._came.wait()
        except TimeoutError:
            return False
        return True

    async def switch(self, mode: int, sockets: Sequence[socket.socket]) -> None:
        """Puts all of these into a mode, or raises RepairError: then some may be in it."""
        for start in range(0, len(sockets), FDS_MAX):
            await self._ask(mode, [sock.fileno() for sock in sockets[start : start + FDS_MAX]])

    async def _ask(self, mode: int, fds: list[int]) -> None:
        helper, loop = self._helper, asyncio.get_running_loop()
        if helper is None:
            raise RepairError("no repair helper is connected")
        word = mode.to_bytes(1, "big", signed=True)
        self._asking = True
        loop.remove_reader(helper)
        try:
            socket.send_fds(helper, [word], fds)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await loop.sock_recv(helper, 1)
        except TimeoutError:
            self._drop()
            raise RepairError(f"the repair helper has not answered for {ANSWER_SECONDS} s") from None
        except OSError as error:
            self._drop()
            raise RepairError(f"the repair helper cannot be reached: {error.strerror}") from None
        finally:
            self._asking = False
            if self._helper is not None:
                loop.add_reader(helper, self._on_word)
        if answer != word:
            self._drop()
            if not answer:
                raise RepairError("the repair helper went away, as it does without CAP_NET_ADMIN")
            raise RepairError("the repair helper refused")
