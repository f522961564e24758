# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/relay.py: two sockets as one, and how each of them may end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lockgate.plugin.gateway import relay
from lockgate.plugin.gateway.relay import JoinedClients, join

PATIENCE = 20.0  # seconds, for what takes no time


class Pair:
    """`one` and `other` are joined; `near` and `far` are whom they lead to."""

    def __init__(self, behind: bytes = b"", tcp: bool = False) -> None:
        self.near, one = tcp_pair() if tcp else socket.socketpair()
        self.far, other = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.joined = asyncio.create_task(join(one, other, behind))

    async def close(self) -> None:
        self.near.close()
        self.far.close()
        await asyncio.wait([self.joined])
        self.joined.result()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, count: int = 1 << 16) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, count)


async def all_of(sock: socket.socket) -> bytes:
    data = b""
    while piece := await receive(sock):
        data += piece
    return data


def play(part: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            await part()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_read_already_comes_first() -> None:
    async def part() -> None:
        pair = Pair(behind=b"first ")
        await send(pair.near, b"second")
        pair.near.shutdown(socket.SHUT_WR)
        assert await all_of(pair.far) == b"first second"
        await pair.close()

    play(part)


def test_a_direction_that_has_ended_leaves_the_other_one_open() -> None:
    async def part() -> None:
        for near_first in (True, False):
            pair = Pair()
            one, other = (pair.near, pair.far) if near_first else (pair.far, pair.near)
            one.shutdown(socket.SHUT_WR)
            assert await receive(other) == b""
            await send(other, b"late words")
            assert await receive(one) == b"late words"
            assert not pair.joined.done()
            other.shutdown(socket.SHUT_WR)
            assert await receive(one) == b""
            await asyncio.wait([pair.joined])
            await pair.close()

    play(part)


def test_an_end_that_does_not_read_stops_the_other() -> None:
    """And gets every byte when it does; megabytes, both ways at once."""

    async def part() -> None:
        pair = Pair()
        data = os.urandom(8 << 20)
        sending = [asyncio.create_task(send(end, data)) for end in (pair.near, pair.far)]
        await asyncio.wait(sending, timeout=0)
        stopped = await moved(pair)
        assert not any(task.done() for task in sending)
        assert stopped < len(data)
        readings = [asyncio.create_task(all_of(end)) for end in (pair.near, pair.far)]
        for task, end in zip(sending, (pair.near, pair.far), strict=True):
            await task
            end.shutdown(socket.SHUT_WR)
        assert [await task == data for task in readings] == [True, True]
        await pair.close()

    play(part)


async def moved(pair: Pair) -> int:
    """How much has come to wait at the far end, once nothing moves any more."""
    before, now = -1, 0
    while now != before:
        for _ in range(100):
            await asyncio.sleep(0)
        before, now = now, len(pair.far.recv(1 << 24, socket.MSG_PEEK))
    return now


def test_an_end_that_was_reset_resets_the_other() -> None:
    """What is cut off does not look as if it had come to its end."""

    async def part() -> None:
        near, one = tcp_pair()
        far, other = tcp_pair()
        joined = asyncio.create_task(join(one, other))
        far.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, relay._RESET_ON_CLOSE)
        near.close()
        with pytest.raises(ConnectionResetError):
            await receive(far)
        await joined
        far.close()

    play(part)


def test_an_end_that_has_gone_ends_the_other_with_the_next_byte() -> None:
    async def part() -> None:
        pair = Pair()
        pair.far.close()
        assert await receive(pair.near) == b""
        await send(pair.near, b"nobody")
        await asyncio.wait([pair.joined])
        await pair.close()

    play(part)


def test_a_relay_that_has_nothing_to_carry_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when one end has hung up for good: epoll reports that again and again to whoever asks."""

    async def part() -> None:
        pair = Pair()
        pair.near.shutdown(socket.SHUT_RDWR)
        assert await receive(pair.far) == b""
        for _ in range(5):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        selector: Any = loop._selector  # type: ignore[attr-defined]
        assert [ready for ready in selector.select(0) if ready[0].fd != loop._ssock.fileno()] == []  # type: ignore[attr-defined]
        pair.far.close()
        await asyncio.wait([pair.joined])
        await pair.close()

    play(part)


class Place:
    """A listening socket, and what was told of its clients."""

    def __init__(self, path: Path, call: relay.Dial) -> None:
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.told: list[dict[str, object]] = []
        clients = JoinedClients("local", "remote", call, lambda event, /, **fields: self.told.append(fields))
        self.serving = asyncio.create_task(clients.serve(self.listener))

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.setblocking(False)
        return client

    async def close(self) -> None:
        self.serving.cancel()
        await asyncio.wait([self.serving])
        self.listener.close()


def test_each_client_gets_a_connection_of_its_own(tmp_path: Path) -> None:
    """Which outlives the place where it began."""
    fars: list[socket.socket] = []

    async def call() -> socket.socket:
        far, other = socket.socketpair()
        far.setblocking(False)
        fars.append(far)
        return other

    async def part() -> None:
        place = Place(tmp_path / "place", call)
        clients = [place.client(), place.client()]
        for number, client in enumerate(clients):
            await send(client, b"from %d" % number)
        while len(fars) < 2:
            await asyncio.sleep(0)
        assert sorted([await receive(far) for far in fars]) == [b"from 0", b"from 1"]
        await place.close()
        for far in fars:
            await send(far, b"still here")
            far.close()
        for client in clients:
            assert await all_of(client) == b"still here"
            client.close()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)

    play(part)


def test_a_client_that_leads_nowhere_is_let_go_of_and_told_about(tmp_path: Path) -> None:
    async def call() -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    async def part() -> None:
        place = Place(tmp_path / "place", call)
        with place.client() as client:
            assert await receive(client) == b""
        await place.close()
        assert place.told == [{"local": "local", "remote": "remote", "reason": "Connection refused"}]

    play(part)


def test_a_guest_that_does_not_answer_keeps_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "DIAL_SECONDS", 0.05)

    async def call() -> socket.socket:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")

    async def part() -> None:
        place = Place(tmp_path / "place", call)
        with place.client() as client:
            assert await receive(client) == b""
        await place.close()
        assert place.told[0]["reason"] == "no answer within 0 s"

    play(part)


def test_too_many_clients_wait_for_those_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CLIENTS_MAX", 1)
    fars: list[socket.socket] = []

    async def call() -> socket.socket:
        far, other = socket.socketpair()
        fars.append(far)
        return other

    async def part() -> None:
        place = Place(tmp_path / "place", call)
        first, second = place.client(), place.client()
        while not fars:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(fars) == 1
        first.close()
        fars[0].close()
        while len(fars) == 1:
            await asyncio.sleep(0)
        second.close()
        fars[1].close()
        while len(asyncio.all_tasks()) > 2:
            await asyncio.sleep(0)
        await place.close()

    play(part)
