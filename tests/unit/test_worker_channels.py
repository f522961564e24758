# SPDX-License-Identifier: Apache-2.0
"""plugin/worker_channels.py: commands find their replies, the end of a worker finds everybody who waits for it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from lockgate.core import channel
from lockgate.core._datapath import lib
from lockgate.plugin.vhost_user.memory import SharedRegion
from lockgate.plugin.vhost_user.messages import Region
from lockgate.plugin.vhost_user.vring import VringStart
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone
from lockgate.plugin.worker_channels import WorkerChannels

HEADER = struct.Struct("=IIII")


class Peer:
    """A worker that answers when it is told to."""

    def __init__(self) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        cmd, self.cmd = socket.socketpair(socket.AF_UNIX, kind)
        up, self.up = socket.socketpair(socket.AF_UNIX, kind)
        self.heard: list[channel.Up] = []
        self.channels = WorkerChannels(cmd, up, self.heard.append)

    async def command(self) -> tuple[int, int, bytes, list[int]]:
        """The next command: kind, number, what follows, descriptors."""
        while True:
            try:
                record, fds, _, _ = socket.recv_fds(self.cmd, 70000, lib.LG_MEM_SLOTS)
            except BlockingIOError:
                await asyncio.sleep(0)
            else:
                kind, seq, _, _ = HEADER.unpack_from(record)
                return kind, seq, record[HEADER.size :], list(fds)

    async def reply(self, kind: int, seq: int, result: int = 0, value: int = 0) -> None:
        record = struct.pack("=IIiIQ", kind, seq, result, 0, value)
        while True:
            try:
                self.cmd.send(record)
            except BlockingIOError:
                await asyncio.sleep(0)
            else:
                return

    def die(self) -> None:
        self.cmd.close()
        self.up.close()


def scene(play: Callable[[Peer], Awaitable[None]]) -> None:
    """Runs one test with a worker of its own."""

    async def run() -> None:
        peer = Peer()
        await play(peer)
        peer.channels.close()
        peer.die()

    asyncio.run(run())


def test_replies_may_come_in_any_order() -> None:
    """Each reaches who asked, by its number."""

    async def play(peer: Peer) -> None:
        stops = [asyncio.create_task(peer.channels.vring_stop(index)) for index in range(2)]
        commands = [await peer.command() for _ in stops]
        for kind, seq, body, _ in reversed(commands):
            await peer.reply(kind, seq, value=100 + struct.unpack("=Q", body)[0])
        assert await asyncio.gather(*stops) == [100, 101]

    scene(play)


def test_replies_are_read_as_fast_as_frames_come() -> None:
    """Cause: one a turn beside 64 frames, each a request, left a guest's connections waiting until it took no more."""

    async def play(peer: Peer) -> None:
        asked = [asyncio.create_task(peer.channels.events(1)) for _ in range(lib.LG_LISTEN_MAX)]
        commands = [await peer.command() for _ in asked]
        for kind, seq, _, _ in commands:
            await peer.reply(kind, seq)
        turns = 0
        while not all(one.done() for one in asked):
            await asyncio.sleep(0)  # one turn of the loop, which is what is counted: nothing is timed
            turns += 1
        assert turns < len(asked)

    scene(play)


def test_a_negative_result_is_an_error_with_its_errno() -> None:
    """The session makes a sentence of it."""

    async def play(peer: Peer) -> None:
        asked = asyncio.create_task(peer.channels.link_reset())
        kind, seq, _, _ = await peer.command()
        assert kind == lib.LG_CMD_LINK_RESET
        await peer.reply(kind, seq, result=-errno.EINVAL)
        with pytest.raises(WorkerError) as refusal:
            await asked
        assert refusal.value.error == errno.EINVAL

    scene(play)


def test_replies_that_nobody_waits_for_are_counted() -> None:
    """As are records that are no replies; what was asked is still answered."""

    async def play(peer: Peer) -> None:
        asked = asyncio.create_task(peer.channels.events(1))
        kind, seq, _, _ = await peer.command()
        await peer.reply(kind, seq + 1)
        peer.cmd.send(b"nonsense")
        await peer.reply(kind, seq)
        await asked
        assert peer.channels.malformed == 2

    scene(play)


def test_the_death_of_a_worker_ends_every_wait() -> None:
    """Those under way, and every later one."""

    async def play(peer: Peer) -> None:
        asked = [asyncio.create_task(peer.channels.vring_stop(index)) for index in range(2)]
        await peer.command()
        peer.die()
        for waiting in asked:
            with pytest.raises(WorkerGone):
                await waiting
        with pytest.raises(WorkerGone):
            await peer.channels.link_reset()

    scene(play)


def test_commands_wait_for_room_and_keep_their_order() -> None:
    """More than the channel holds at once: none is lost, none overtakes another."""

    async def play(peer: Peer) -> None:
        asked = [asyncio.create_task(peer.channels.vring_stop(index)) for index in range(2000)]
        for index in range(2000):
            kind, seq, body, _ = await peer.command()
            assert struct.unpack("=Q", body)[0] == index
            await peer.reply(kind, seq, value=index)
        assert await asyncio.gather(*asked) == list(range(2000))

    scene(play)


def test_memory_goes_with_one_descriptor_for_each_region() -> None:
    """In the order of the regions; the caller's own stay open."""

    async def play(peer: Peer) -> None:
        fds = [os.memfd_create(str(number)) for number in range(3)]
        for number, fd in enumerate(fds):
            os.ftruncate(fd, 4096 * (number + 1))
        regions = [SharedRegion(Region(number, 4096, number, 0), fd) for number, fd in enumerate(fds)]
        asked = asyncio.create_task(peer.channels.mem_table(regions))
        kind, seq, body, received = await peer.command()
        assert kind == lib.LG_CMD_MEM_TABLE and struct.unpack_from("=I", body)[0] == 3
        assert [os.fstat(fd).st_size for fd in received] == [4096, 8192, 12288]
        await peer.reply(kind, seq)
        await asked
        for fd in (*fds, *received):
            os.close(fd)

    scene(play)


@pytest.mark.parametrize("present", [(False, False), (True, False), (False, True), (True, True)])
def test_a_ring_says_which_descriptors_it_has(present: tuple[bool, bool]) -> None:
    """Kick always; call and err as the flags say, in this order."""

    async def play(peer: Peer) -> None:
        kick, call, err = os.eventfd(1), os.eventfd(2), os.eventfd(3)
        ring = VringStart(
            index=1,
            size=256,
            base=5,
            desc=1,
            avail=2,
            used=3,
            log_addr=0,
            enabled=True,
            logged=False,
            base_from_used=True,
            kick_fd=kick,
            call_fd=call if present[0] else None,
            err_fd=err if present[1] else None,
        )
        asked = asyncio.create_task(peer.channels.vring_start(ring))
        kind, seq, body, received = await peer.command()
        command = channel.copied("lg_cmd_vring", HEADER.pack(kind, seq, 0, 0) + body)
        flags = lib.LG_VRING_HAS_KICK | lib.LG_VRING_ENABLED | lib.LG_VRING_BASE_FROM_USED
        flags |= lib.LG_VRING_HAS_CALL * present[0] | lib.LG_VRING_HAS_ERR * present[1]
        assert (command.index, command.size, command.base, command.flags) == (1, 256, 5, flags)
        assert [os.eventfd_read(fd) for fd in received] == [1, *([2] * present[0]), *([3] * present[1])]
        await peer.reply(kind, seq)
        await asked
        for fd in (kick, call, err, *received):
            os.close(fd)

    scene(play)


def test_a_request_that_was_given_up_sends_no_descriptors() -> None:
    """Cancelled while it waited for room: its descriptors may be closed by then, or be somebody else's."""

    async def play(peer: Peer) -> None:
        asked = [asyncio.create_task(peer.channels.vring_stop(index)) for index in range(2000)]
        await asyncio.sleep(0)
        call = os.eventfd(0)
        given_up = asyncio.create_task(peer.channels.vring_call(0, call))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        os.close(call)
        for _ in range(2000):
            kind, seq, _, fds = await peer.command()
            assert kind == lib.LG_CMD_VRING_STOP and fds == []
            await peer.reply(kind, seq)
        await asyncio.gather(*asked)
        last = asyncio.create_task(peer.channels.link_reset())
        kind, seq, _, _ = await peer.command()
        assert kind == lib.LG_CMD_LINK_RESET
        await peer.reply(kind, seq)
        await last

    scene(play)


def test_what_comes_up_is_handed_on_and_nonsense_counted() -> None:
    """A record that lies about its length is dropped."""

    async def play(peer: Peer) -> None:
        peer.up.send(channel.pack_up(lib.LG_UP_PUNT, b"frame"))
        peer.up.send(b"nonsense")
        peer.up.send(channel.pack_up(lib.LG_UP_EVENT, b"event"))
        while len(peer.heard) < 2:
            await asyncio.sleep(0)
        assert [(up.kind, up.payload) for up in peer.heard] == [(lib.LG_UP_PUNT, b"frame"), (lib.LG_UP_EVENT, b"event")]
        assert peer.channels.malformed == 1

    scene(play)


def test_frames_for_a_worker_that_does_not_read_are_lost_and_counted() -> None:
    """As on any network; nobody waits."""

    async def play(peer: Peer) -> None:
        while not peer.channels.lost:
            peer.channels.send_frame(bytes(60000))
        assert channel.parse_up(peer.up.recv(70000)) is not None

    scene(play)


def test_a_worker_is_given_an_agent_and_ports_that_lead_out() -> None:
    """Each with its descriptors; of ports that lead in, the byte is zero."""

    async def play(peer: Peer) -> None:
        fd = os.open("/dev/null", os.O_RDONLY)
        for outward in (True, False):
            listening = peer.channels.listen(6, bytes(16), [3], [80], [fd], outward)
            asking = asyncio.create_task(listening)
            kind, seq, body, fds = await peer.command()
            assert (kind, body[:8], len(fds)) == (lib.LG_CMD_LISTEN, struct.pack("=IBBxx", 1, 6, outward), 1)
            await peer.reply(kind, seq)
            await asking
            os.close(fds[0])
        asking = asyncio.create_task(peer.channels.splice_agent(fd))
        kind, seq, body, fds = await peer.command()
        assert (kind, body, len(fds)) == (lib.LG_CMD_SPLICE_AGENT, b"", 1)
        await peer.reply(kind, seq)
        await asking
        os.close(fds[0])
        os.close(fd)

    scene(play)
