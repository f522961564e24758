# SPDX-License-Identifier: Apache-2.0
"""plugin/forward_server.py: clients of --conf-path, good and bad, on a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from forwarding import FIRST, HERE, RIGHTS, Scene, rules

from lockgate.plugin.contracts import pesto
from lockgate.plugin.forward_rule import ForwardRule
from lockgate.plugin.forward_server import ForwardServer
from lockgate.plugin.ports import Rights

A, B, C = FIRST, FIRST + 1, FIRST + 2
FOREVER = 3600.0  # seconds, where no deadline is to strike
PATIENCE = 20.0  # seconds, for what takes no time


def table(*specs: str) -> bytes:
    """A whole message."""
    wanted = rules(*specs)
    return b"\1" + struct.pack("!I", len(wanted)) + b"".join(map(pesto.pack_rule, wanted)) + b"\0"


class Clients:
    """The socket of a helper, and what it told about those who connected."""

    def __init__(self, scene: Scene, seconds: float, rights: Rights) -> None:
        self.scene = scene
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract address of the kernel's choice
        self.listener.listen()
        server = ForwardServer(rights, scene.table, self._emit, seconds)
        self.serving = asyncio.create_task(server.serve(self.listener))

    def _emit(self, event: str, /, **fields: object) -> None:
        self.told.append((event, fields))

    def rules(self) -> tuple[ForwardRule, ...]:
        return self.scene.table.rules

    def events(self) -> list[str]:
        return [event for event, _ in self.told]

    async def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.getsockname())
        return Client(sock)


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def greeted(self) -> bytes:
        """The greeting, whose length follows from its count of rules."""
        head = await self._read(157)
        (count,) = struct.unpack_from("!I", head, 153)
        return head + await self._read(56 * count + 1)

    async def _read(self, length: int) -> bytes:
        data = b""
        async with asyncio.timeout(PATIENCE):
            while len(data) < length:
                piece = await asyncio.get_running_loop().sock_recv(self.sock, length - len(data))
                assert piece, "the connection was closed"
                data += piece
        return data

    async def closed(self) -> None:
        """Returns when the helper has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                assert await asyncio.get_running_loop().sock_recv(self.sock, 1) == b""
            except ConnectionResetError:
                pass  # with something unread
            self.sock.close()

    async def says(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


def play(
    part: Callable[[Clients], Awaitable[None]], *specs: str, seconds: float = FOREVER, rights: Rights = RIGHTS
) -> None:
    async def run() -> None:
        scene = Scene(*specs)
        await scene.table.restore(scene.worker)
        clients = Clients(scene, seconds, rights)
        try:
            await part(clients)
            assert not clients.serving.done()
        finally:
            clients.serving.cancel()
            await asyncio.wait([clients.serving])
            clients.listener.close()
            scene.end()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_only_looks_changes_nothing() -> None:
    async def part(clients: Clients) -> None:
        for _ in range(2):
            client = await clients.connect()
            assert await client.greeted() == pesto.greeting(RIGHTS, rules(f"{A}:80"))
            client.sock.close()
        assert not clients.told and clients.rules() == rules(f"{A}:80")

    play(part, f"{A}:80")


def test_a_table_takes_the_place_of_the_other() -> None:
    """The connection is closed when it is done; the next client sees it; one event says what became of it."""

    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.greeted()
        await client.says(table(f"{A}-{B}:80-81"))
        await client.closed()
        assert clients.scene.worker.leads() == {A: 80, B: 81}
        shown = f"TCP {HERE}:{A}-{B} => 80-81"
        numbers = {"client": os.getpid(), "opened": 1, "closed": 1, "kept": 1}
        assert clients.told == [("forwards.replaced", {**numbers, "table": shown})]
        assert await (await clients.connect()).greeted() == pesto.greeting(RIGHTS, rules(f"{A}-{B}:80-81"))

    play(part, f"{A}", f"{C}")


def test_a_message_may_come_in_any_pieces_and_before_the_greeting_is_read() -> None:
    async def part(clients: Clients) -> None:
        client = await clients.connect()
        for byte in table(f"{A}"):
            await client.says(bytes((byte,)))
            await asyncio.sleep(0)  # the server has its turn, so that each byte comes alone
        await client.greeted()
        await client.closed()
        assert clients.rules() == rules(f"{A}")

    play(part)


def test_a_client_need_not_wait_for_its_end() -> None:
    """As the command does not: it sends, and exits."""

    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.greeted()
        await client.says(table(f"{A}"))
        client.sock.close()
        async with asyncio.timeout(PATIENCE):
            while not clients.told:
                await asyncio.sleep(0)  # the server has its turn
        assert clients.rules() == rules(f"{A}")

    play(part)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\7", "no table 7"),
        (b"\1\0\0\1\0", "at most 255 rules"),
        (table(f"{A}")[:-1] + table(f"{A}"), "two rules want the same port"),
    ],
    ids=["unknown table", "256 rules", "twice the same"],
)
def test_a_table_that_is_wrong_changes_nothing(data: bytes, reason: str) -> None:
    """Its client is let go of at once, and the reason is told."""

    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.greeted()
        await client.says(data)
        await client.closed()
        ((event, fields),) = clients.told
        assert event == "forwards.refused" and reason in fields["reason"] and fields["client"] == os.getpid()
        assert clients.rules() == rules(f"{C}")

    play(part, f"{C}")


def test_nothing_behind_a_message_is_read() -> None:
    """It says no more, and its client gets an error for it."""

    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.greeted()
        await client.says(table(f"{A}") + b"\7more")
        await client.closed()
        assert clients.events() == ["forwards.replaced"] and clients.rules() == rules(f"{A}")

    play(part)


@pytest.mark.parametrize("length", [1, 4, 5, 30, 61])
def test_half_a_message_changes_nothing(length: int) -> None:
    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.says(table(f"{A}")[:length])
        client.sock.shutdown(socket.SHUT_WR)
        await client.greeted()
        await client.closed()
        assert clients.told == [
            ("forwards.refused", {"client": os.getpid(), "reason": "it left in the middle of its message"})
        ]
        assert clients.rules() == rules(f"{C}")

    play(part, f"{C}")


def test_a_table_with_more_ports_than_there_is_room_for_is_refused_as_a_whole() -> None:
    async def part(clients: Clients) -> None:
        client = await clients.connect()
        await client.says(table(f"{A}-{A + 10}"))
        await client.greeted()
        await client.closed()
        assert "11 ports need a socket each" in clients.told[0][1]["reason"]
        assert clients.rules() == rules(f"{C}")

    play(part, f"{C}", rights=Rights(ipv4=True, ipv6=True, protocols=RIGHTS.protocols, room=10))


@pytest.mark.parametrize("said", [b"", b"\1\0\0\0"], ids=["nothing", "something"])
def test_a_silent_client_is_sent_away_and_those_behind_it_are_served(said: bytes) -> None:
    """In their turn; nothing else waits for it."""

    async def part(clients: Clients) -> None:
        silent = await clients.connect()
        await silent.greeted()
        await silent.says(said)
        others = [await clients.connect() for _ in range(2)]
        await others[0].says(table(f"{A}"))
        await silent.closed()
        await others[0].greeted()
        await others[0].closed()
        assert await others[1].greeted() == pesto.greeting(RIGHTS, rules(f"{A}"))
        others[1].sock.close()
        assert clients.events() == ["forwards.refused", "forwards.replaced"]
        assert "not come to an end" in clients.told[0][1]["reason"]

    play(part, f"{C}", seconds=0.2)


def test_one_client_is_served_at_a_time() -> None:
    """So that none of them takes away what another has just added."""

    async def part(clients: Clients) -> None:
        first, second = await clients.connect(), await clients.connect()
        await first.greeted()
        await second.says(table(f"{B}"))
        await first.says(table(f"{A}"))
        await first.closed()
        assert await second.greeted() == pesto.greeting(RIGHTS, rules(f"{A}"))
        await second.closed()
        assert clients.rules() == rules(f"{B}")

    play(part)


def test_a_port_that_is_taken_is_told_with_its_holder() -> None:
    """One sentence: the first port with who has it and what to do, then what else is missing."""

    async def part(clients: Clients) -> None:
        with socket.create_server((HERE, A)), socket.create_server((HERE, C)):
            client = await clients.connect()
            await client.says(table(f"{A}-{C}"))
            await client.greeted()
            await client.closed()
        (event, fields), (last, _) = clients.told
        assert (event, last) == ("forwards.failed", "forwards.replaced")
        reason = fields["reason"]
        assert reason.startswith(f"Ports are not forwarded: TCP port {A} is held by ")
        assert f"(process {os.getpid()}); stop that, or choose another port" in reason
        assert reason.endswith(f". Nor are TCP {C} (Address already in use)")

    play(part)
