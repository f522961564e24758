# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on socket pairs, and clients that send bytes as they like. Used by test_gateway_http and _api.
Adversary: nobody."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from lockgate.plugin.gateway.http.http_server import HttpServer, Limits, Respond

PATIENCE = 20.0  # seconds, for what takes no time
GUEST = "192.168.127.2"


class Client:
    """One connection, at the far end of a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def end(self) -> None:
        """Nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    async def take(self, count: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
            assert piece, f"the connection ended after {data!r}"
            data += piece
        return data

    async def rest(self) -> bytes:
        """Until the server has ended the connection."""
        data = b""
        try:
            while piece := await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16):
                data += piece
        except ConnectionError:
            pass  # which it may do
        return data

    async def reply(self, head_only: bool = False) -> Reply:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.take(1)
        reply = Reply(head)
        if not head_only:
            reply.body = await self.take(int(reply.headers.get("content-length", "0")))
        return reply

    async def ask(self, method: str, target: str, body: bytes = b"") -> Reply:
        head = f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)
        return await self.reply()


class Reply:
    """Taken apart."""

    def __init__(self, head: bytes) -> None:
        line, *fields = head.decode().split("\r\n")[:-2]
        self.version, status, self.reason = line.split(" ", 2)
        self.status = int(status)
        self.headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.body = b""

    @property
    def text(self) -> str:
        return self.body.decode()


class Scene:
    """The server, and what it told."""

    def __init__(self, respond: Respond, limits: Limits) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.server = HttpServer(respond, self.emit, limits)
        self.clients: list[Client] = []

    def emit(self, event: str, /, **fields: object) -> None:
        self.told.append((event, fields))

    def client(self, requester: str = GUEST) -> Client:
        near, far = socket.socketpair()
        client = Client(near)
        self.clients.append(client)
        self.server.take(far, requester)
        return client


def play(
    part: Callable[[Scene], Awaitable[None]],
    respond: Respond,
    limits: Limits | None = None,
) -> Scene:
    """Whatever happens, no descriptor is left."""

    async def run() -> Scene:
        scene = Scene(respond, limits or Limits())
        try:
            async with asyncio.timeout(PATIENCE):
                await part(scene)
        finally:
            await scene.server.close()
            for client in scene.clients:
                client.sock.close()
        return scene

    before = len(os.listdir("/proc/self/fd"))
    scene = asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before
    return scene
