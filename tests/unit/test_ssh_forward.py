# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/ssh/ssh_forward.py, with a keeper and an ssh of the test's: sockets, clients, what is told of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lockgate.plugin.gateway.ssh import ssh_child, ssh_forward, ssh_life
from lockgate.plugin.gateway.ssh.ssh_child import END, START
from lockgate.plugin.gateway.ssh.ssh_forward import SshForwards, TunnelError
from lockgate.plugin.gateway.ssh.ssh_offer import FIRST_BYTES

PATIENCE = 20  # seconds, for what takes milliseconds
PORT = 40022
KILLED, FAILED = 9, 255 << 8  # wait statuses


class World:
    """What is around the forwards: the keeper's end, ssh's sockets, and the socket of one forward."""

    def __init__(self, folder: Path) -> None:
        self.private = folder / "private"
        self.private.mkdir()
        self.path = folder / "s"
        self.listener = listening(self.path)
        self.asked: asyncio.Queue[bytes] = asyncio.Queue()
        self.lines: list[str] = []
        self.forwards = SshForwards(str(self.private), self.asked.put_nowait, self.lines.append)
        self.stderr: dict[int, int] = {}
        self.sockets: dict[int, socket.socket] = {}

    async def begin(self, number: int = 0) -> None:
        """The keeper has started an ssh, as it was asked."""
        request = ssh_child.parse_request(await self.next())
        assert request is not None and request.number == number and request.kind != END
        read_end, self.stderr[number] = os.pipe()
        os.set_blocking(read_end, False)
        (self.private / ssh_child.key_name(number)).touch()
        assert self.forwards.on_record(ssh_child.pack_begun(number), [read_end])

    async def up(self, number: int = 0) -> None:
        """And the guest has let it in."""
        await self.begin(number)
        self.sockets[number] = listening(self.private / ssh_child.socket_name(number))
        self.sockets[number].setblocking(False)

    async def ready(self) -> None:
        """A guest has come, and its ssh is up."""
        self.forwards.guest_came()
        await self.up()

    async def again(self) -> None:
        """One ssh ends, and the next is up."""
        self.end()
        await self.up()

    def end(self, number: int = 0, status: int = FAILED) -> None:
        if number in self.sockets:
            self.sockets.pop(number).close()
            (self.private / ssh_child.socket_name(number)).unlink()
        os.close(self.stderr.pop(number))
        assert self.forwards.on_record(ssh_child.pack_ended(number, 0, status), [])

    async def next(self) -> bytes:
        return await asyncio.wait_for(self.asked.get(), PATIENCE)

    async def accepted(self, number: int = 0) -> socket.socket:
        """ssh's end of the next connection."""
        loop = asyncio.get_running_loop()
        end, _ = await asyncio.wait_for(loop.sock_accept(self.sockets[number]), PATIENCE)
        return end

    async def turn_away(self, number: int = 0) -> None:
        """ssh takes the next connection, and ends it."""
        (await self.accepted(number)).close()

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))
        client.setblocking(False)
        return client


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


async def read(sock: socket.socket, size: int = 100) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, size), PATIENCE)


async def hears(there: socket.socket, here: socket.socket, text: bytes) -> None:
    """What one end says comes out at the other."""
    here.send(text)
    assert await read(there) == text


async def turns() -> None:
    """Everything that is ready has had its turn, several times over."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(name="play")
def player(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a conversation. What waits in it waits a thousandth of what it would."""
    monkeypatch.setattr(ssh_life, "PAUSE_MIN", 0.0001)
    monkeypatch.setattr(ssh_life, "PAUSE_MAX", 0.0001)
    monkeypatch.setattr(ssh_forward, "TRY_SECONDS", 0.0001)

    def play(part: Callable[[World], Awaitable[None]], known: bool = True) -> None:
        async def run() -> None:
            world = World(tmp_path)
            if known:
                world.forwards.add_known(world.listener, str(world.path), "/guest/s")
            try:
                await part(world)
            finally:
                world.forwards.close()
                await turns()
                for fd in world.stderr.values():
                    os.close(fd)
                for sock in (world.listener, *world.sockets.values()):
                    sock.close()

        asyncio.run(run())

    return play


def test_ssh_is_started_once_there_is_a_guest(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        await turns()
        assert world.asked.empty()
        world.forwards.guest_came()
        assert await world.next() == ssh_child.pack_request(START, 0)

    play(part)


def test_a_client_waits_for_ssh_and_is_joined_with_it(play: Callable[..., None]) -> None:
    """In both directions, and each has an end of its own."""

    async def part(world: World) -> None:
        with world.client() as client:
            client.send(b"early")
            world.forwards.guest_came()
            await world.up()
            with await world.accepted() as end:
                assert await read(end) == b"early"
                client.shutdown(socket.SHUT_WR)
                assert await read(end) == b""
                await hears(client, end, b"late")
            assert await read(client) == b""
        assert f"Socket forward established: {world.path} -> /guest/s" in world.lines
        assert not (world.private / "0.key").exists(), "ssh has read it"

    play(part)


def test_a_guest_that_speaks_first_is_heard(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client, await world.accepted() as end:
            await hears(client, end, b"220 ready")
            await hears(end, client, b"helo")

    play(part)


def test_ssh_is_started_again_for_ever_and_each_end_is_told(play: Callable[..., None]) -> None:
    """With the last that it said, as one line that a terminal can bear."""

    async def part(world: World) -> None:
        world.forwards.guest_came()
        for _ in range(8):
            await world.begin()
            os.write(world.stderr[0], b"first\nConnection \x1b[31mrefused\r\n\n")
            world.end()
        assert world.lines[:2] == [
            f"ssh for {world.path} ended with exit status 255: Connection ?[31mrefused",
            "Waiting for sshd (0ms)",
        ]
        assert len(world.lines) == 16

    play(part)


def test_pauses_are_told_as_upstream_tells_them(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def part(world: World) -> None:
        world.forwards.guest_came()
        for pause in (0.1, 1.0):
            monkeypatch.setattr(ssh_life, "PAUSE_MIN", pause)
            await world.begin()
            world.end()
            world.forwards.guest_left()
            world.forwards.guest_came()
        waits = [line for line in world.lines if line.startswith("Waiting")]
        assert waits == ["Waiting for sshd (100ms)", "Waiting for sshd (1s)"]

    play(part)


def test_a_keeper_that_cannot_start_one_is_asked_again(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        world.forwards.guest_came()
        await world.next()
        world.forwards.on_record(ssh_child.pack_ended(0, 12), [])
        assert world.lines[0] == f"ssh for {world.path} could not be started: Cannot allocate memory"
        await world.up()

    play(part)


def test_what_ssh_has_not_read_is_given_to_the_next(play: Callable[..., None]) -> None:
    """A guest that was reset: its ssh takes a connection, and dies as it asks for a channel."""

    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client:
            client.send(b"GET /_ping")
            with await world.accepted():
                pass  # with the request in it, unread
            await world.again()
            with await world.accepted() as end:
                assert await read(end) == b"GET /_ping"
                await hears(client, end, b"OK")

    play(part)


def test_what_ssh_has_read_is_not_sent_twice(play: Callable[..., None]) -> None:
    """The guest may have acted upon it."""

    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client:
            client.send(b"POST /create")
            with await world.accepted() as end:
                assert await read(end) == b"POST /create"
            assert await read(client) == b""

    play(part)


def test_a_client_that_said_nothing_gets_the_next_ssh(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client:
            await world.turn_away()
            await world.again()
            with await world.accepted() as end:
                await hears(client, end, b"hello")

    play(part)


def test_more_than_the_first_bytes_goes_through_in_order(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        loop = asyncio.get_running_loop()
        sent = os.urandom(3 * FIRST_BYTES)
        await world.ready()
        with world.client() as client, await world.accepted() as end:
            await loop.sock_sendall(client, sent)
            client.shutdown(socket.SHUT_WR)
            got = b""
            while piece := await read(end, 65536):
                got += piece
            assert got == sent

    play(part)


def test_a_client_is_sent_away_after_three_tries(play: Callable[..., None]) -> None:
    """ssh is there, and what it leads to is not."""

    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client:
            for _ in range(ssh_forward.TRIES):
                await world.turn_away()
            assert await read(client) == b""
        assert "sent away" in world.lines[-1]

    play(part)


def test_a_client_waits_for_another_ssh_no_longer_than_it_should(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_forward, "PATIENCE_SECONDS", 0.0)

    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client:
            await world.turn_away()
            world.end()
            assert await read(client) == b""

    play(part)


def test_no_client_is_accepted_while_there_is_no_ssh(play: Callable[..., None]) -> None:
    """It waits in the backlog, and is served by the next."""

    async def part(world: World) -> None:
        await world.ready()
        await turns()
        world.end()
        with world.client() as client:
            client.send(b"patient")
            await turns()
            await world.up()
            with await world.accepted() as end:
                assert await read(end) == b"patient"

    play(part)


def test_of_many_clients_only_so_many_are_served_at_once(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_forward, "CLIENTS_MAX", 2)

    async def part(world: World) -> None:
        await world.ready()
        clients = [world.client() for _ in range(3)]
        ends = [await world.accepted() for _ in range(2)]
        await turns()
        with pytest.raises(BlockingIOError):
            world.sockets[0].accept()
        clients[0].close()
        assert await read(ends[0]) == b""
        ends[0].close()
        ends.append(await world.accepted())
        for sock in (*clients, *ends):
            sock.close()

    play(part)


def test_a_guest_that_leaves_takes_its_ssh_with_it(play: Callable[..., None]) -> None:
    """Another guest gets another, once the first has ended."""

    async def part(world: World) -> None:
        await world.ready()
        world.forwards.guest_left()
        assert await world.next() == ssh_child.pack_request(END, 0)
        world.forwards.guest_came()
        assert world.asked.empty()
        world.end(status=KILLED)
        await world.up()

    play(part)


def test_where_the_kernel_does_not_tell_of_sockets_they_are_looked_for(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an inotify left."""
    monkeypatch.setattr(SshForwards, "_open_watch", lambda self: -1)
    monkeypatch.setattr(ssh_forward, "_LOOK_SECONDS", 0.0001)

    async def part(world: World) -> None:
        await world.ready()
        with world.client() as client, await world.accepted() as end:
            await hears(end, client, b"found")

    play(part)


# ---- tunnels ----


def add(world: World, **content: str) -> int:
    words = {"user": "core", "destination": "/guest/t", "key_path": "/host/key", **content}
    return world.forwards.add_tunnel(world.listener, str(world.path), PORT, **words)


def test_a_tunnel_has_an_ssh_from_its_first_client_on(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        world.forwards.guest_came()
        number = add(world)
        await turns()
        assert world.asked.empty()
        with world.client() as client:
            client.send(b"hello")
            await world.up(number)
            with await world.accepted(number) as end:
                assert await read(end) == b"hello"

    play(part, known=False)


def test_a_tunnel_without_a_guest_has_no_ssh(play: Callable[..., None]) -> None:
    """Its client waits for one."""

    async def part(world: World) -> None:
        number = add(world)
        with world.client():
            await turns()
            assert world.asked.empty()
            world.forwards.guest_came()
            await world.begin(number)

    play(part, known=False)


def test_a_tunnel_that_nobody_uses_is_not_tried_for_ever(play: Callable[..., None]) -> None:
    """Its client is in the backlog until ssh is up: one that waits there still is a reason to go on."""

    async def part(world: World) -> None:
        world.forwards.guest_came()
        number = add(world)
        with world.client() as client:
            for _ in range(3):
                await world.begin(number)
                world.end(number)
            await world.up(number)
            await world.turn_away(number)
            for _ in range(1, ssh_forward.TRIES):
                await world.turn_away(number)
            assert await read(client) == b""
        world.end(number)
        paused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(2 * ssh_life.PAUSE_MAX, paused.set_result, None)
        await paused  # and with it, before it, the pause
        await turns()
        assert world.asked.empty()

    play(part, known=False)


def test_a_tunnel_that_is_removed_ends_its_ssh_and_its_clients(play: Callable[..., None]) -> None:
    """Its number is free when the keeper says that it has ended."""

    async def part(world: World) -> None:
        world.forwards.guest_came()
        number = add(world)
        with world.client() as client:
            await world.up(number)
            with await world.accepted(number):
                world.forwards.remove(number)
                assert await world.next() == ssh_child.pack_request(END, number)
                assert await read(client) == b""
        assert add(world) != number
        world.end(number, KILLED)
        assert add(world) == number

    play(part, known=False)


def test_numbers_of_tunnels_are_not_those_of_forwards_and_are_not_endless(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        assert [add(world) for _ in range(ssh_child.TUNNELS_MAX)] == list(range(1, ssh_child.TUNNELS_MAX + 1))
        with pytest.raises(TunnelError, match="64 tunnels"):
            add(world)
        world.forwards.remove(7)
        assert add(world) == 7

    play(part)


@pytest.mark.parametrize(
    "wrong",
    [{"user": "-x"}, {"destination": "x"}, {"key_path": "key"}, {"key_path": "/\0"}, {"key_path": "/" + "x" * 1023}],
)
def test_a_tunnel_that_the_keeper_would_refuse_is_not_added(play: Callable[..., None], wrong: dict[str, str]) -> None:
    async def part(world: World) -> None:
        with pytest.raises(TunnelError):
            add(world, **wrong)

    play(part, known=False)


def test_records_of_others_and_of_nobody_are_left_alone(play: Callable[..., None]) -> None:
    async def part(world: World) -> None:
        assert not world.forwards.on_record(b"S", [])
        assert not world.forwards.on_record(b"", [])
        assert world.forwards.on_record(ssh_child.pack_ended(9, 0, 0), [])
        read_end, write_end = os.pipe()
        assert world.forwards.on_record(ssh_child.pack_begun(9), [read_end])
        with pytest.raises(BrokenPipeError):
            os.write(write_end, b"x")
        os.close(write_end)

    play(part)
