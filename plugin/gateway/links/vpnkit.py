# SPDX-License-Identifier: Apache-2.0
"""Guests of HyperKit, which come by a stream socket and are told their MTU and MAC address before the first frame.

Called by control.py, like the servers of other links. Adversary: who connects: each has a few seconds for its
handshake, and is let go of if that is none.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

from lockgate.plugin.clients import Emit, accept
from lockgate.plugin.gateway.links.switch import Switch, SwitchServer
from lockgate.plugin.stream import Worker

HANDSHAKE_SECONDS = 10.0
_GREETING_BYTES = 49  # comes back as it is
_COMMAND_BYTES = 41
_UUID = slice(1, 37)
_ANSWER_BYTES = 258
_ETHERNET_HEADER = 14


def answer(command: bytes, mtu: int, macs: Mapping[str, bytes]) -> bytes:
    """What a guest is told: the address that its UUID has, or one of its own (locally administered)."""
    mac = macs.get(command[_UUID].decode("ascii", "replace"))
    if mac is None:
        drawn = os.urandom(6)
        mac = bytes((drawn[0] & 0xFE | 2,)) + drawn[1:]
    told = b"\1" + mtu.to_bytes(2, "little") + (mtu + _ETHERNET_HEADER).to_bytes(2, "little") + mac
    return told.ljust(_ANSWER_BYTES, b"\0")


class VpnkitServer(SwitchServer):
    """Any number of guests; the end of one is nobody else's."""

    def __init__(
        self, switch: Switch, worker: Worker, emit: Emit, framing: int, mtu: int, macs: Mapping[str, bytes]
    ) -> None:
        super().__init__(switch, worker, emit, framing)
        self._mtu = mtu
        self._macs = macs
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket, *, one_off: bool) -> None:
        sock.setblocking(False)
        while True:
            client = await accept(sock, self._refuse)
            task = asyncio.get_running_loop().create_task(self._serve_guest(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refuse(self, reason: str) -> None:
        self._emit("link.refused", reason=reason, request="connect")

    async def _serve_guest(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client:
            try:
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await loop.sock_sendall(client, await _receive(client, _GREETING_BYTES))
                    command = await _receive(client, _COMMAND_BYTES)
                    await loop.sock_sendall(client, answer(command, self._mtu, self._macs))
            except (OSError, EOFError):  # also TimeoutError
                self._refuse("it has not come to the end of vpnkit's handshake")
                return
            await self._serve_client(client)


async def _receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(client, count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
