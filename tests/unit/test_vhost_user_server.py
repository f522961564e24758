# SPDX-License-Identifier: Apache-2.0
"""The vhost-user server on a real socket: messages in pieces, descriptors, who is served, and how a connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from pathlib import Path

import pytest
from vhost_user_front_end import (
    GUEST,
    PROTOCOL,
    Events,
    FakeWorker,
    FrontEnd,
    Script,
    event_file,
    open_descriptors,
    play,
    play_whole,
    run,
    served,
    turn,
)

from lockgate.plugin import clients
from lockgate.plugin.vhost_user.messages import (
    FLAG_NEED_REPLY,
    HEADER,
    MEM_SLOTS,
    PAYLOAD_MAX,
    U64,
    VERSION,
    MemTable,
    ProtocolFeature,
    Request,
    VringState,
    mask,
    pack_message,
)
from lockgate.plugin.vhost_user.server import VhostUserServer


@pytest.fixture
def script() -> Script:
    return Script()


def test_a_message_may_come_in_any_pieces(tmp_path: Path, script: Script) -> None:
    """Byte by byte, the descriptors with the first: the session is the same."""

    async def conversation() -> FakeWorker:
        worker = FakeWorker()
        async with served(worker, tmp_path) as service:
            front_end = await service.connect()
            for request, payload, fds in script.up():
                data = HEADER.pack(request, VERSION, len(payload)) + payload
                await front_end.send_bytes(data[:1], fds)
                for i in range(1, len(data)):
                    await front_end.send_bytes(data[i : i + 1])
            await front_end.fence()
            assert service.events.names() == ["link.attach"]
            await front_end.leave()
        return worker

    assert run(conversation()).calls.count("link_reset") == 1
    script.close()


def test_messages_sent_together_keep_their_own_descriptors(tmp_path: Path, script: Script) -> None:
    """All of a session is sent before a byte is read: no message gets another's descriptors."""

    async def conversation() -> None:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await play_whole(front_end, script)
            await front_end.leave()
            assert service.events.names() == ["link.attach", "link.detach"]

    run(conversation())
    script.close()


def test_descriptors_that_come_with_the_payload_are_the_messages_too(tmp_path: Path, script: Script) -> None:
    """Wherever in the message they are attached, as long as its last byte has not been sent."""

    async def conversation() -> FakeWorker:
        worker = FakeWorker()
        async with served(worker, tmp_path) as service:
            front_end = await service.connect()
            await play(front_end, script.negotiate())
            payload = MemTable(1, (GUEST,)).pack()
            await front_end.send_bytes(HEADER.pack(Request.SET_MEM_TABLE, VERSION, len(payload)))
            await front_end.send_bytes(payload, (script.memory,))
            await front_end.fence()
            await front_end.leave()
        return worker

    assert "mem_table 0x0+0x100000" in run(conversation()).calls
    script.close()


BROKEN = {
    "half a header": (b"\x01\x00\x00", "", "the connection ended in the middle of a header"),
    "half a payload": (
        HEADER.pack(Request.SET_FEATURES, VERSION, 8) + b"\x00",
        "SET_FEATURES",
        "the connection ended in the middle of the message",
    ),
    "another version": (
        HEADER.pack(Request.GET_FEATURES, 2, 0),
        "GET_FEATURES",
        "version 2 in the header's flags; version 1 is spoken here",
    ),
    "a reply": (
        pack_message(Request.GET_FEATURES, b""),
        "GET_FEATURES",
        "flags 0x5 in the header; of a request only 0x9 may be set",
    ),
    "a payload of 4 GiB": (
        HEADER.pack(Request.SET_MEM_TABLE, VERSION, 2**32 - 1),
        "SET_MEM_TABLE",
        f"a payload of 4294967295 bytes; the largest message has {PAYLOAD_MAX}",
    ),
}


@pytest.mark.parametrize("which", BROKEN)
def test_a_broken_message_ends_the_connection_and_the_next_one_is_served(
    tmp_path: Path, script: Script, which: str
) -> None:
    """What was half read is forgotten; the line says what was wrong."""
    data, request, reason = BROKEN[which]

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await play(front_end, script.negotiate())
            await front_end.send_bytes(data, (script.memory,))
            await front_end.leave()
            again = await service.attach(script)
            await again.leave()
            return service.events

    before = open_descriptors()
    events = run(conversation())
    assert events.refusal() == (request, reason)
    assert events.names()[-2:] == ["link.attach", "link.detach"]
    assert open_descriptors() == before
    script.close()


def test_more_descriptors_than_any_message_has_end_the_connection(tmp_path: Path) -> None:
    """The ones that the kernel delivered are closed; at once, not when the message is whole."""

    async def conversation() -> None:
        event = event_file()
        async with served(FakeWorker(), tmp_path) as service:
            for burst in ((MEM_SLOTS + 1, 0), (MEM_SLOTS, 1)):
                front_end = await service.connect()
                await front_end.fence()
                before = open_descriptors()
                for count in burst:
                    await front_end.send_bytes(b"\x05", (event,) * count)
                await front_end.closed()
                # The server's end of the connection is closed as well.
                assert open_descriptors() == before - 1
                front_end.sock.close()
                _, reason = service.events.refusal()
                assert str(reason).startswith(f"descriptors were lost: more than {MEM_SLOTS} came with a message")
                service.events.all.clear()
        os.close(event)

    run(conversation())


def test_a_process_without_room_for_descriptors_says_so_and_lives(tmp_path: Path, script: Script) -> None:
    """What the kernel could not hand over is lost, and with it the connection; the next one is served."""

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await play(front_end, script.negotiate())
            await front_end.fence()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            filler = []
            try:
                while True:
                    filler.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
            try:
                await play(front_end, script.share())
                await front_end.closed()
            finally:
                for fd in filler:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            front_end.sock.close()
            await (await service.attach(script)).leave()
            return service.events

    events = run(conversation())
    assert "descriptors were lost" in str(events.refusal()[1])
    assert "link.attach" in events.names()
    script.close()


def test_a_process_without_room_for_a_connection_accepts_it_later(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says that there is no room; the front end waits in the listener's queue until there is."""
    monkeypatch.setattr(clients, "ACCEPT_RETRY_SECONDS", 0)

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            await (await service.attach(script)).leave()
            service.events.all.clear()
            filler = [os.dup(0)]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                front_end = FrontEnd(sock)
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler[0], sock.fileno()) + 1, hard))
                with contextlib.suppress(OSError):
                    while True:
                        filler.append(os.dup(0))
                try:
                    sock.connect(str(service.path))
                    await service.events.until("link.refused")
                finally:
                    for fd in filler:
                        os.close(fd)
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await play(front_end, script.up())
                await front_end.fence()
                await front_end.leave()
            return service.events

    events = run(conversation())
    assert events.of("link.refused")[0] == {
        "request": "connect",
        "reason": "no room for a connection: Too many open files",
    }
    assert events.names()[-2:] == ["link.attach", "link.detach"]
    script.close()


def test_a_worker_that_refuses_the_reset_does_not_keep_the_next_front_end_out(tmp_path: Path, script: Script) -> None:
    """It cannot, unless something of ours is wrong; then the line says so."""

    async def conversation() -> Events:
        worker = FakeWorker(refuses={"link_reset": errno.EIO})
        async with served(worker, tmp_path) as service:
            front_end = await service.connect()
            await front_end.fence()
            await front_end.leave()
            worker.refuses = {}
            await (await service.attach(script)).leave()
            return service.events

    events = run(conversation())
    assert events.refusal() == ("disconnect", "the worker refused to reset the link: EIO: Input/output error")
    assert "link.attach" in events.names()
    script.close()


def test_every_byte_of_a_session_may_be_its_last(tmp_path: Path, script: Script) -> None:
    """A front end that dies anywhere leaves nothing behind, and the next is served."""
    messages = [(HEADER.pack(request, VERSION, len(payload)) + payload, fds) for request, payload, fds in script.up()]

    async def conversation() -> None:
        async with served(FakeWorker(), tmp_path) as service:
            await (await service.attach(script)).leave()
            before = open_descriptors()
            for last, (data, fds) in enumerate(messages):
                for cut in range(0, len(data), 5):
                    front_end = await service.connect()
                    for whole, whole_fds in messages[:last]:
                        await front_end.send_bytes(whole, whole_fds)
                    if cut:
                        await front_end.send_bytes(data[:cut], fds)
                    await front_end.leave()
                    assert open_descriptors() == before
            await (await service.attach(script)).leave()

    run(conversation())
    script.close()


def test_a_refused_request_without_ack_ends_the_connection(tmp_path: Path, script: Script) -> None:
    """The front end would believe that its memory is shared; with an ack it is told, and goes on."""

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await play(front_end, script.negotiate())
            bad = MemTable(1, (GUEST._replace(size=0),)).pack()
            assert await front_end.acknowledged(Request.SET_MEM_TABLE, bad, (script.memory,)) == 1
            await front_end.send(Request.SET_MEM_TABLE, bad, (script.memory,))
            assert await front_end.receive() is None
            front_end.sock.close()
            await (await service.attach(script)).leave()
            return service.events

    events = run(conversation())
    assert [fields["request"] for fields in events.of("link.refused")] == ["SET_MEM_TABLE"] * 2
    assert len(events.of("link.attach")) == 1
    script.close()


def test_acks_come_one_for_each_request_that_asks(tmp_path: Path, script: Script) -> None:
    """As User-mode Linux speaks: each request with NEED_REPLY, from SET_PROTOCOL_FEATURES on."""

    async def conversation() -> None:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await front_end.send(Request.SET_OWNER)
            for request, payload, fds in script.up()[1:]:
                assert await front_end.acknowledged(request, payload, fds) == 0, request
            await front_end.leave()

    run(conversation())
    script.close()


def test_a_second_front_end_is_sent_away_while_the_first_is_served(tmp_path: Path, script: Script) -> None:
    """At once, with a line; the first notices nothing, and when it has gone another one is welcome."""

    async def conversation() -> Events:
        async with served(FakeWorker(), tmp_path) as service:
            first = await service.attach(script)
            second = await service.connect()
            assert await second.closed()
            second.sock.close()
            await first.fence()
            await first.leave()
            third = await service.attach(script)
            await third.leave()
            return service.events

    events = run(conversation())
    assert events.refusal() == ("connect", "another front end is being served")
    assert len(events.of("link.attach")) == 2
    script.close()


def test_one_off_returns_when_its_front_end_has_gone(tmp_path: Path, script: Script) -> None:
    """And not before the worker has let go of everything."""

    async def conversation() -> None:
        worker = FakeWorker()
        async with served(worker, tmp_path, one_off=True) as service:
            front_end = await service.attach(script)
            worker.idle.clear()
            worker.busy.clear()
            front_end.sock.close()
            await worker.busy.wait()
            assert worker.calls[-1] == "link_reset"
            assert not service.task.done()
            worker.idle.set()
            await service.task

    run(conversation())
    script.close()


def test_the_next_front_end_is_served_only_after_the_detach(tmp_path: Path, script: Script) -> None:
    """One that connects before the worker has answered the reset waits, and is not sent away: its first request is
    answered once the link is clean. Two guests never share a worker."""

    async def conversation() -> None:
        worker = FakeWorker()
        async with served(worker, tmp_path) as service:
            front_end = await service.attach(script)
            worker.idle.clear()
            worker.busy.clear()
            front_end.sock.close()
            await worker.busy.wait()
            early = await service.connect()
            await play(early, script.up())
            answered = asyncio.create_task(early.fence())
            await turn()
            assert not answered.done()
            assert service.events.names().count("link.attach") == 1
            worker.idle.set()
            await answered
            assert service.events.names().count("link.attach") == 2
            await early.leave()

    run(conversation())
    script.close()


def test_the_answer_of_a_barrier_waits_for_the_worker(tmp_path: Path, script: Script) -> None:
    """GET_VRING_BASE is answered only when the worker has stopped the ring."""

    async def conversation() -> None:
        worker = FakeWorker()
        async with served(worker, tmp_path) as service:
            front_end = await service.attach(script)
            worker.idle.clear()
            worker.busy.clear()
            await front_end.send(Request.GET_VRING_BASE, VringState(0, 0))
            await worker.busy.wait()
            assert worker.calls[-1] == "vring_stop 0"
            with pytest.raises(BlockingIOError):
                front_end.sock.recv(1)
            worker.idle.set()
            assert await front_end.receive() is not None
            await front_end.leave()

    run(conversation())
    script.close()


def test_a_connected_socket_is_served_to_its_end(script: Script) -> None:
    """As with --fd: one front end, and serve() returns; the socket stays the caller's."""

    async def conversation() -> Events:
        ours, theirs = socket.socketpair()
        events = Events()
        task = asyncio.create_task(VhostUserServer(FakeWorker(), events).serve(ours, one_off=False))
        front_end = FrontEnd(theirs)
        await play(front_end, script.up(PROTOCOL & ~mask(ProtocolFeature.BACKEND_REQ)))
        await front_end.fence()
        theirs.shutdown(socket.SHUT_WR)
        await task
        ours.send(b"still open")
        ours.close()
        theirs.close()
        return events

    events = run(conversation())
    assert events.all[-1] == ("link.detach", {"reason": "the front end closed the connection"})
    script.close()


def test_a_socket_that_was_handed_over_is_not_offered_a_channel_back(tmp_path: Path) -> None:
    """QEMU 10.1 to 11.1 with its own -netdev passt would close their end of that channel by mistake."""

    async def offers() -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(VhostUserServer(FakeWorker(), Events()).serve(ours, one_off=False))
        first = await FrontEnd(theirs).ask(Request.GET_PROTOCOL_FEATURES)
        theirs.close()
        await task
        ours.close()
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            second = await front_end.ask(Request.GET_PROTOCOL_FEATURES)
            await front_end.leave()
        return first, second

    handed_over, listening = run(offers())
    assert listening & ~handed_over == mask(ProtocolFeature.BACKEND_REQ)


def test_a_front_end_that_reads_no_answers_is_only_its_own_trouble(tmp_path: Path, script: Script) -> None:
    """The answers that it does not take wait for it; when it goes, the next is served."""

    async def conversation() -> None:
        async with served(FakeWorker(), tmp_path) as service:
            deaf = await service.connect()
            request = HEADER.pack(Request.GET_FEATURES, VERSION, 0) * 100
            try:
                while True:
                    deaf.sock.send(request)
                    await turn()
            except BlockingIOError:
                pass
            deaf.sock.close()
            while service.events.names()[-1:] != ["link.attach"]:
                front_end = await service.connect()
                try:
                    await play(front_end, script.up())
                    await front_end.fence()
                except (OSError, AssertionError):
                    front_end.sock.close()
            await front_end.leave()

    run(conversation())
    script.close()


def test_a_server_that_is_cancelled_leaves_no_descriptor(tmp_path: Path, script: Script) -> None:
    """Control is quitting: what the front end sent is closed, in the middle of a message or of a command."""

    async def conversation(midway: str) -> None:
        worker = FakeWorker()
        async with served(worker, tmp_path) as service:
            front_end = await service.attach(script)
            if midway == "message":
                await front_end.send_bytes(b"\x05", (script.memory,))
                await turn()
            else:
                worker.idle.clear()
                worker.busy.clear()
                await play(front_end, script.share())
                await worker.busy.wait()
            service.task.cancel()
            await asyncio.wait([service.task])
            front_end.sock.close()

    before = open_descriptors()
    for midway in ("message", "command"):
        run(conversation(midway))
        assert open_descriptors() == before
    script.close()


def test_need_reply_before_reply_ack_gets_no_answer(tmp_path: Path) -> None:
    """The next answer on the wire is that of the next request."""

    async def conversation() -> None:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()
            await front_end.send(Request.SET_OWNER, flags=VERSION | FLAG_NEED_REPLY)
            await front_end.send(Request.GET_QUEUE_NUM)
            answer = await front_end.receive()
            assert answer is not None and answer[0].request == Request.GET_QUEUE_NUM
            assert await front_end.acknowledged(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL)) == 0
            await front_end.leave()

    run(conversation())
