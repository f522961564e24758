# SPDX-License-Identifier: Apache-2.0
"""vhost_user_front_end: the other two sides of the vhost-user back end, for its tests: a front end and a worker.

FakeWorker holds every caller to what worker.Worker promises, and checks that each descriptor it is lent is open.
FrontEnd speaks over a real socket, and `served()` runs the real server between the two. Bench puts messages straight
into a session.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lockgate.plugin.vhost_user.dispatch import Answer, Message, Refused, answer
from lockgate.plugin.vhost_user.memory import SharedRegion
from lockgate.plugin.vhost_user.messages import (
    FLAG_NEED_REPLY,
    HEADER,
    HEADER_SIZE,
    U64,
    VERSION,
    Feature,
    Header,
    MemTable,
    Payload,
    ProtocolFeature,
    Region,
    Request,
    VringAddr,
    VringState,
    mask,
    pack_message,
)
from lockgate.plugin.vhost_user.server import VhostUserServer
from lockgate.plugin.vhost_user.session import Session
from lockgate.plugin.vhost_user.vring import VringStart, parts
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

HANG_SECONDS = 60  # a conversation that takes this long is stuck; nothing waits for this in a passing run

T = TypeVar("T")


def run(conversation: Coroutine[Any, Any, T]) -> T:
    """Runs to the end, or fails where it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(HANG_SECONDS):
            return await conversation

    return asyncio.run(bounded())


async def turn() -> None:
    """Lets everything else that is ready run once."""
    loop = asyncio.get_running_loop()
    passed = loop.create_future()
    loop.call_soon(passed.set_result, None)
    await passed


def memory_file(size: int) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def event_file() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Events:
    """What was emitted."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, object]]] = []
        self._emitted = asyncio.Event()

    def __call__(self, event: str, /, **fields: object) -> None:
        self.all.append((event, fields))
        self._emitted.set()

    async def until(self, name: str) -> None:
        """Returns when an event of this name has been emitted."""
        while name not in self.names():
            self._emitted.clear()
            await self._emitted.wait()

    def names(self) -> list[str]:
        return [event for event, _ in self.all]

    def of(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.all if event == name]

    def refusal(self) -> tuple[object, object]:
        """Request and reason of the only refusal."""
        [fields] = self.of("link.refused")
        return fields["request"], fields["reason"]


class FakeWorker:
    """A worker as the session sees it. `used` is used->idx of each ring, where a worker without a base goes on.

    `dies_at`: it dies over that call, counted from 1. `refuses`: errno by method name.
    """

    def __init__(self, used: Sequence[int] = (0, 0), dies_at: int = 0, refuses: dict[str, int] | None = None) -> None:
        self.used = used
        self.dies_at = dies_at
        self.refuses = refuses or {}
        self.dead = False
        self.count = 0
        self.calls: list[str] = []  # that it answered
        self.touched: set[int] = set()  # rings whose base it may have moved, as far as whoever asked can know
        self.features: int | None = None
        self.regions: list[Region] = []
        self.rings: dict[int, VringStart] = {}
        self.bases: dict[int, int] = {}
        self.log: tuple[int, int] | None = None
        self.lost = asyncio.Event()
        self.idle = asyncio.Event()  # cleared by a test that wants to look at a call in progress
        self.idle.set()
        self.busy = asyncio.Event()

    async def _command(self, method: str, *said: object) -> None:
        self.count += 1
        if method == "vring_start":
            self.touched.add(int(str(said[0])))
        if self.count == self.dies_at:
            self.dead = True
        if not self.dead:
            self.calls.append(" ".join([method, *map(str, said)]))
            self.busy.set()
            await self.idle.wait()
            self.busy.clear()
        if self.dead:
            self.lost.set()
            raise WorkerGone
        if method in self.refuses:
            raise WorkerError(self.refuses[method])

    def kill(self) -> None:
        self.dead = True
        self.idle.set()

    async def link_features(self, features: int) -> None:
        await self._command("link_features", f"{features:#x}")
        self.features = features

    async def link_reset(self) -> None:
        await self._command("link_reset")
        self.features, self.regions, self.log = None, [], None
        self.rings.clear()

    async def mem_table(self, regions: Sequence[SharedRegion]) -> None:
        await self._command("mem_table", *(f"{r.at.guest_addr:#x}+{r.at.size:#x}" for r in regions))
        assert not self.rings, "mem_table while a ring is active"
        for region in regions:
            os.fstat(region.fd)
        self.regions = [region.at for region in regions]

    async def mem_add(self, region: SharedRegion) -> None:
        await self._command("mem_add", f"{region.at.guest_addr:#x}+{region.at.size:#x}")
        os.fstat(region.fd)
        self.regions.append(region.at)

    async def mem_remove(self, region: Region) -> None:
        await self._command("mem_remove", f"{region.guest_addr:#x}+{region.size:#x}")
        self.regions.remove(region)
        for ring in self.rings.values():
            self._check_mapped(ring)

    async def vring_start(self, ring: VringStart) -> None:
        words = [word for word in ("enabled", "logged", "base_from_used") if getattr(ring, word)]
        await self._command("vring_start", ring.index, f"size={ring.size} base={ring.base}", *words)
        assert ring.index not in self.rings, "vring_start of an active ring"
        assert self.features is not None, "vring_start before link_features"
        self._check_mapped(ring)
        for fd in (ring.kick_fd, ring.call_fd, ring.err_fd):
            if fd is not None:
                os.fstat(fd)
        self.rings[ring.index] = ring
        self.bases[ring.index] = self.used[ring.index] if ring.base_from_used else ring.base

    def _check_mapped(self, ring: VringStart) -> None:
        addr = VringAddr(ring.index, 0, ring.desc, ring.used, ring.avail, 0)
        for name, start, length, alignment in parts(addr, ring.size):
            assert start % alignment == 0, name
            assert any(r.user_addr <= start and start + length <= r.user_addr + r.size for r in self.regions), name

    async def vring_stop(self, index: int) -> int:
        await self._command("vring_stop", index)
        assert self.rings.pop(index, None) is not None, "vring_stop of a ring that is not active"
        self.touched.discard(index)
        return self.bases[index]

    async def vring_enable(self, index: int, enabled: bool) -> None:
        await self._command("vring_enable", index, int(enabled))
        assert index in self.rings, "vring_enable of a ring that is not active"

    async def vring_call(self, index: int, fd: int | None) -> None:
        await self._command("vring_call", index, "none" if fd is None else "set")
        assert index in self.rings, "vring_call of a ring that is not active"
        if fd is not None:
            os.fstat(fd)

    async def vring_err(self, index: int, fd: int | None) -> None:
        await self._command("vring_err", index, "none" if fd is None else "set")
        assert index in self.rings, "vring_err of a ring that is not active"
        if fd is not None:
            os.fstat(fd)

    async def dirty_log(self, fd: int | None, size: int, offset: int, event_fd: int | None) -> None:
        await self._command(
            "dirty_log", "off" if fd is None else f"{size}@{offset}", "" if event_fd is None else "event"
        )
        for lent in (fd, event_fd):
            if lent is not None:
                os.fstat(lent)
        self.log = None if fd is None else (size, offset)


class FrontEnd:
    """A front end's end of the socket. Descriptors given to send() stay the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send_bytes(self, data: bytes, fds: Iterable[int] = ()) -> None:
        rights = array.array("i", fds)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent = self.sock.sendmsg([data], control)
                break
            except BlockingIOError:
                room = asyncio.Event()
                loop.add_writer(self.sock, room.set)
                await room.wait()
                loop.remove_writer(self.sock)
        await loop.sock_sendall(self.sock, data[sent:])

    async def send(
        self,
        request: int,
        payload: Payload | bytes = b"",
        fds: Iterable[int] = (),
        *,
        flags: int = VERSION,
    ) -> None:
        data = payload if isinstance(payload, bytes) else payload.pack()
        await self.send_bytes(HEADER.pack(request, flags, len(data)) + data, fds)

    async def receive(self) -> tuple[Header, bytes] | None:
        """The next message; None when the server has closed the connection."""
        head = await self._exactly(HEADER_SIZE)
        if head is None:
            return None
        header = Header.unpack(head)
        payload = await self._exactly(header.size)
        assert payload is not None, "a reply without its payload"
        return header, payload

    async def ask(self, request: int, payload: Payload | bytes = b"", fds: Iterable[int] = ()) -> int:
        """A request that is answered by a u64."""
        await self.send(request, payload, fds)
        answer = await self.receive()
        assert answer is not None, "closed"
        return U64.unpack(answer[1]).value

    async def acknowledged(self, request: int, payload: Payload | bytes = b"", fds: Iterable[int] = ()) -> int | None:
        """With NEED_REPLY: the ack's number, or None for a closed connection."""
        await self.send(request, payload, fds, flags=VERSION | FLAG_NEED_REPLY)
        answer = await self.receive()
        if answer is None:
            return None
        assert answer[0] == Header(request, VERSION | 4, 8)
        return U64.unpack(answer[1]).value

    async def fence(self) -> None:
        """Returns when all that was sent before has been dealt with."""
        await self.ask(Request.GET_FEATURES)

    async def closed(self) -> bool:
        """Waits for the server to close the connection, whatever it says before."""
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(self.sock, 4096):
                pass
        except ConnectionResetError:
            pass  # it closed with bytes of ours unread
        return True

    async def leave(self) -> None:
        """Closes, and returns when the server has finished with us."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        await self.closed()
        self.sock.close()

    async def _exactly(self, size: int) -> bytes | None:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < size:
            piece = await loop.sock_recv(self.sock, size - len(data))
            if not piece:
                assert not data, "closed in the middle of a reply"
                return None
            data += piece
        return data


# ---- A correct session, as a list of messages: what tests leave out, repeat and bend. ----

GUEST_SIZE = 1 << 20
USER_ADDR = 0x7F00_0000_0000
RING_SIZE = 256

NET_FEATURES = mask(
    Feature.NET_F_CSUM,
    Feature.NET_F_HOST_TSO4,
    Feature.NET_F_MRG_RXBUF,
    Feature.RING_F_EVENT_IDX,
    Feature.PROTOCOL_FEATURES,
    Feature.VERSION_1,
)
PROTOCOL = mask(
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.NET_MTU,
    ProtocolFeature.RARP,
    ProtocolFeature.STATUS,
)

GUEST = Region(guest_addr=0, size=GUEST_SIZE, user_addr=USER_ADDR, mmap_offset=0)


def ring_addr(index: int, flags: int = 0) -> VringAddr:
    start = USER_ADDR + 0x10000 * (index + 1)
    return VringAddr(index, flags, desc=start, used=start + 0x2000, avail=start + 0x1000, log=0x12000 + 0x10000 * index)


Step = tuple[int, bytes, tuple[int, ...]]


class Script:
    """The messages of a correct session, and the descriptors that they carry."""

    def __init__(self) -> None:
        self.memory = memory_file(GUEST_SIZE)
        self.kick = [event_file(), event_file()]
        self.call = [event_file(), event_file()]
        self.err = [event_file(), event_file()]

    def close(self) -> None:
        for fd in (self.memory, *self.kick, *self.call, *self.err):
            os.close(fd)

    def negotiate(self, features: int = NET_FEATURES, protocol: int = PROTOCOL) -> list[Step]:
        return [
            (Request.SET_OWNER, b"", ()),
            (Request.SET_PROTOCOL_FEATURES, U64(protocol).pack(), ()),
            (Request.SET_FEATURES, U64(features).pack(), ()),
        ]

    def share(self) -> list[Step]:
        return [(Request.SET_MEM_TABLE, MemTable(1, (GUEST,)).pack(), (self.memory,))]

    def ring(self, index: int, base: int = 0) -> list[Step]:
        return [
            (Request.SET_VRING_NUM, VringState(index, RING_SIZE).pack(), ()),
            (Request.SET_VRING_BASE, VringState(index, base).pack(), ()),
            (Request.SET_VRING_ADDR, ring_addr(index).pack(), ()),
            (Request.SET_VRING_CALL, U64(index).pack(), (self.call[index],)),
            (Request.SET_VRING_ERR, U64(index).pack(), (self.err[index],)),
            (Request.SET_VRING_KICK, U64(index).pack(), (self.kick[index],)),
            (Request.SET_VRING_ENABLE, VringState(index, 1).pack(), ()),
        ]

    def stop(self) -> list[Step]:
        return [(Request.GET_VRING_BASE, VringState(index, 0).pack(), ()) for index in (0, 1)]

    def up(self, protocol: int = PROTOCOL) -> list[Step]:
        return [*self.negotiate(protocol=protocol), *self.share(), *self.ring(0), *self.ring(1)]

    def whole(self) -> list[Step]:
        return [*self.up(), *self.stop()]


async def play(front_end: FrontEnd, steps: Iterable[Step]) -> None:
    for request, payload, fds in steps:
        await front_end.send(request, payload, fds)


async def play_whole(front_end: FrontEnd, script: Script) -> None:
    """A whole session, all sent at once; then its rings, which nobody has used, have said where they stood."""
    await play(front_end, script.whole())
    for index in (0, 1):
        answer = await front_end.receive()
        assert answer is not None and VringState.unpack(answer[1]) == VringState(index, 0)


class Served:
    """A running server, and how to reach it."""

    def __init__(self, server: VhostUserServer, task: asyncio.Task[None], path: Path, events: Events) -> None:
        self.server = server
        self.task = task
        self.path = path
        self.events = events

    async def connect(self) -> FrontEnd:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.path))
        return FrontEnd(sock)

    async def attach(self, script: Script) -> FrontEnd:
        """A front end whose rings run."""
        front_end = await self.connect()
        await play(front_end, script.up())
        await front_end.fence()
        return front_end


@contextlib.asynccontextmanager
async def served(worker: FakeWorker, folder: Path, *, one_off: bool = False) -> AsyncIterator[Served]:
    events = Events()
    server = VhostUserServer(worker, events)
    path = folder / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        task = asyncio.create_task(server.serve(listener, one_off=one_off))
        try:
            yield Served(server, task, path, events)
        finally:
            if task.done() and not task.cancelled():
                task.result()  # a server that fell over must not pass unseen
            task.cancel()
            await asyncio.wait([task])


# ---- A session without a server. ----


class Bench:
    """A session with a worker that cannot die, and messages put straight into it."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.events = Events()
        self.session = Session(worker, self.events)
        self.script = Script()

    async def say(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, ack: bool = False) -> Answer:
        """What goes out for this message. The descriptors are copied, as the kernel would."""
        header = Header(request, VERSION | (FLAG_NEED_REPLY if ack else 0), len(payload))
        message = Message(header, payload, [os.dup(fd) for fd in fds])
        plan = self.session.receive(message)
        verdict = await self.session.carry_out(message, plan)
        self.verdict = verdict
        for fd in message.fds:
            os.close(fd)
        return answer(message, verdict, self.session.protocol_features)

    async def play(self, steps: list[Step]) -> None:
        for request, payload, fds in steps:
            out = await self.say(request, payload, fds)
            assert not out.close, (Request(request).name, self.verdict)

    def reason(self) -> str:
        assert isinstance(self.verdict, Refused), self.verdict
        return self.verdict.reason

    def close(self) -> None:
        self.session.close()
        self.script.close()


def bench_of_one_test() -> Iterator[Bench]:
    """For a fixture: a bench, and after the test the proof that no descriptor was left open."""
    before = open_descriptors()
    bench = Bench(FakeWorker())
    yield bench
    bench.close()
    assert open_descriptors() == before, "descriptors were left open"


def ack(request: int, value: int) -> Answer:
    """The ack of REPLY_ACK, and the connection goes on."""
    return Answer(pack_message(request, U64(value).pack()), close=False)


CLOSED = Answer(None, close=True)
SILENT = Answer(None, close=False)
