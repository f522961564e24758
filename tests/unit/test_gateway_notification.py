# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/notification.py: what whoever started a network hears, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from lockgate.plugin.gateway import notification
from lockgate.plugin.gateway.notification import QUEUE_MAX, Notifier

PATIENCE = 20.0  # seconds, for what takes no time
MAC = bytes.fromhex("5a94efe40cee")


class Scene:
    """A notifier, and what it told of itself."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.told: list[tuple[str, dict[str, object]]] = []
        self.notifier = Notifier(str(path), self.emit, seconds)
        self.running = asyncio.create_task(self.notifier.run())

    def emit(self, event: str, /, **fields: object) -> None:
        self.told.append((event, fields))

    def listener(self, backlog: int = 100) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(backlog)
        listener.setblocking(False)
        return listener


async def message(listener: socket.socket) -> bytes:
    """All of one connection."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    with connection:
        data = b""
        while piece := await loop.sock_recv(connection, 4096):
            data += piece
    return data


def play(path: Path, part: Callable[[Scene], Awaitable[None]], seconds: float = PATIENCE) -> Scene:
    async def run() -> Scene:
        scene = Scene(path, seconds)
        try:
            async with asyncio.timeout(PATIENCE):
                await part(scene)
        finally:
            scene.running.cancel()
            await asyncio.wait([scene.running])
        return scene

    before = len(os.listdir("/proc/self/fd"))
    scene = asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before
    return scene


def test_each_message_is_a_line_on_a_connection_of_its_own(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        with scene.listener() as listener:
            scene.notifier.send(notification.READY)
            scene.notifier.send(notification.ESTABLISHED, MAC)
            scene.notifier.send(notification.CLOSED, MAC)
            assert await message(listener) == b'{"notification_type":"ready"}\n'
            assert json.loads(await message(listener)) == {
                "notification_type": "connection_established",
                "mac_address": "5a:94:ef:e4:0c:ee",
            }
            assert json.loads(await message(listener))["notification_type"] == "connection_closed"

    assert play(tmp_path / "place", part).told == []


def test_a_message_that_nobody_listens_for_is_lost_and_told_about(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        scene.notifier.send(notification.READY)
        await scene.notifier.delivered()
        with scene.listener() as listener:
            scene.notifier.send(notification.HYPERVISOR_ERROR)
            assert json.loads(await message(listener)) == {"notification_type": "hypervisor_error"}

    path = tmp_path / "place"
    told = play(path, part).told
    assert told == [("notification.failed", {"path": str(path), "reason": "No such file or directory"})]


def test_a_path_that_no_socket_can_have_is_told_about(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        scene.notifier.send(notification.READY)
        await scene.notifier.delivered()

    told = play(tmp_path / ("x" * 200), part).told
    assert [fields["reason"] for _, fields in told] == ["AF_UNIX path too long"]


def test_more_messages_than_can_wait_are_dropped(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        for _ in range(QUEUE_MAX + 7):
            scene.notifier.send(notification.ESTABLISHED, MAC)
        assert scene.notifier.dropped == 7
        await scene.notifier.delivered()

    assert len(play(tmp_path / "place", part).told) == QUEUE_MAX


def test_a_listener_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """Message by message, once its backlog is full."""

    async def part(scene: Scene) -> None:
        with scene.listener(backlog=0):
            for _ in range(3):
                scene.notifier.send(notification.ESTABLISHED, MAC)
            await scene.notifier.delivered()

    told = play(tmp_path / "place", part, seconds=0.06).told
    assert {fields["reason"] for _, fields in told} == {"whoever listens there has not taken the message within 0 s"}
    assert 0 < len(told) < 3


def test_a_listener_that_is_slow_gets_its_messages(tmp_path: Path) -> None:
    async def part(scene: Scene) -> None:
        with scene.listener(backlog=0) as listener:
            for _ in range(4):
                scene.notifier.send(notification.ESTABLISHED, MAC)
            for _ in range(4):
                assert json.loads(await message(listener))["mac_address"] == "5a:94:ef:e4:0c:ee"

    assert play(tmp_path / "place", part).told == []
