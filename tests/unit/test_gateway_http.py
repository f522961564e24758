# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/http/http_server.py: connections, well-behaved and not, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from http_talk import Client, Scene, play
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin.gateway.http.http_server import (
    BODY_MAX,
    GUEST_LIMITS,
    HEAD_MAX,
    Limits,
    Request,
    Response,
    Takeover,
    error,
    text,
)

GET = b"GET /here HTTP/1.1\r\nHost: a\r\n\r\n"
POST_TWO = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx"  # the first of two bytes


async def echo(request: Request) -> Response | Takeover:
    """Says what it was asked. /blind looks at no body; /taken is no more of HTTP, and its bytes come back."""
    if request.path == "/blind":
        return error(404, "404 page not found")
    if request.path == "/taken":
        return Takeover(repeat)
    body = await request.body()
    return text(f"{request.method} {request.path} {dict(request.query)} {request.requester} {body.decode('latin-1')}")


async def repeat(client: socket.socket, behind: bytes) -> None:
    loop = asyncio.get_running_loop()
    with client:
        await loop.sock_sendall(client, b"<" + behind)
        while data := await loop.sock_recv(client, 4096):
            await loop.sock_sendall(client, data)
        await loop.sock_sendall(client, b">")


def test_a_connection_carries_one_request_after_the_other() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        first = await client.ask("POST", "/a?b=c&d=%20", b"body")
        assert (first.version, first.status, first.reason) == ("HTTP/1.1", 200, "OK")
        assert first.text == "POST /a {'b': 'c', 'd': ' '} 192.168.127.2 body"
        assert first.headers["content-type"] == "text/plain; charset=utf-8" and first.headers["date"].endswith(" GMT")
        assert (await client.ask("GET", "/b")).text == "GET /b {} 192.168.127.2 "

    play(part, echo)


def test_a_proxys_request_is_refused_and_the_server_lives() -> None:
    async def part(scene: Scene) -> None:
        assert (await scene.client().ask("CONNECT", "a:80")).status == 400
        assert (await scene.client().ask("GET", "/b")).status == 200

    play(part, echo)


def test_requests_that_are_sent_ahead_are_answered_in_order() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(20)))
        client.end()
        for number in range(20):
            assert (await client.reply()).text.split()[1] == f"/{number}"
        assert await client.rest() == b""

    play(part, echo)


def test_a_request_may_come_byte_by_byte() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        for byte in b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.reply()).text.endswith(" abcde")

    play(part, echo)


def test_http_1_0_gets_one_reply_and_the_end() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"GET /old HTTP/1.0\r\n\r\n")
        reply = await client.reply()
        assert reply.status == 200 and reply.text.startswith("GET /old")
        assert await client.rest() == b""

    play(part, echo)


def test_head_is_told_the_length_of_what_it_does_not_get() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        reply = await client.reply(head_only=True)
        assert int(reply.headers["content-length"]) == len("HEAD /x {} 192.168.127.2 ")
        assert (await client.reply()).text.startswith("GET /here")

    play(part, echo)


def test_a_target_may_be_a_whole_url() -> None:
    async def part(scene: Scene) -> None:
        reply = await scene.client().ask("GET", "http://gateway:80/a/b?c=d")
        assert reply.text == "GET /a/b {'c': 'd'} 192.168.127.2 "

    play(part, echo)


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.reply()).status == 100
        await client.send(b"hi")
        assert (await client.reply()).text.endswith(" hi")
        assert (await client.ask("GET", "/again")).status == 200

    play(part, echo)


def test_a_client_whose_body_nobody_wants_is_told_so_at_once() -> None:
    """And the connection ends, for nobody knows whether the body will come."""

    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (404, "close")
        assert await client.rest() == b""

    play(part, echo)


def test_a_body_that_nobody_wants_is_passed_over() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        reply = await client.ask("POST", "/blind", b"x" * 100_000)
        assert (reply.status, reply.text) == (404, "404 page not found\n")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert (await client.ask("GET", "/again")).status == 200

    play(part, echo)


def test_a_client_that_sends_more_than_it_may_still_gets_its_reply() -> None:
    cases = {
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (HEAD_MAX + 40_000): 431,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (BODY_MAX + 1) + b"x" * (BODY_MAX + 1): 413,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n" % (BODY_MAX + 1)
        + b"x" * (BODY_MAX + 1): 413,
    }

    async def part(scene: Scene) -> None:
        for data, status in cases.items():
            client = scene.client()
            sending = asyncio.create_task(client.send(data))
            reply = await client.reply()
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            await client.rest()
            await asyncio.wait([sending])
            sending.exception()  # it may have been cut off

    play(part, echo)


def test_a_guest_may_send_less() -> None:
    async def part(scene: Scene) -> None:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 50_000
        body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000
        for data, status in ((head, 431), (body, 413)):
            client = scene.client()
            await client.send(data)
            assert (await client.reply()).status == status

    play(part, echo, GUEST_LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"\x00\x00\x05\xdc" + bytes(1500) + b"\r\n\r\n",  # frames
    ],
)
def test_a_request_that_makes_no_sense_gets_400_and_hurts_nobody(data: bytes) -> None:
    async def part(scene: Scene) -> None:
        other = scene.client()
        assert (await other.ask("GET", "/before")).status == 200
        client = scene.client()
        await client.send(data)
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert await client.rest() == b""
        assert (await other.ask("GET", "/after")).status == 200

    play(part, echo)


def test_a_transfer_coding_that_nobody_knows_gets_501() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n")
        assert (await client.reply()).status == 501

    play(part, echo)


@pytest.mark.parametrize("data", [b"", b"GET / HT", GET[:-2], POST_TWO])
def test_a_client_that_stops_is_let_go_of(data: bytes) -> None:
    """Wherever it stops; there is nothing that it could be told."""

    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(data)
        assert await client.rest() == b""

    play(part, echo, Limits(seconds=0.05))


def test_a_client_that_does_not_take_its_reply_is_let_go_of() -> None:
    async def much(request: Request) -> Response:
        return text("x" * (8 << 20))

    async def part(scene: Scene) -> None:
        near, far = socket.socketpair()
        client = Client(near)
        scene.clients.append(client)
        scene.server.take(far, "")
        await client.send(GET)
        while far.fileno() >= 0:
            await asyncio.sleep(0)
        assert 0 < len(await client.rest()) < 8 << 20

    play(part, much, Limits(seconds=0.05))


@pytest.mark.parametrize("data", [b"GET / HT", POST_TWO])
def test_a_client_that_leaves_in_the_middle_hears_why_nothing_came_of_it(data: bytes) -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(data)
        client.end()
        assert (await client.reply()).status == 400
        assert await client.rest() == b""

    play(part, echo)


def test_who_takes_a_connection_over_gets_every_byte_behind_the_head() -> None:
    """What belongs to a body by the head, too; and nothing has been sent before."""
    for head in (
        b"POST /taken HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n",
        b"POST /taken HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
        b"GET /taken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /taken HTTP/1.0\r\n\r\n",
    ):

        async def part(scene: Scene, head: bytes = head) -> None:
            client = scene.client()
            await client.send(head + b"\0\1\r\n\r\nframes")
            assert await client.take(13) == b"<\0\1\r\n\r\nframes"
            await client.send(b" and more")
            assert await client.take(9) == b" and more"
            client.end()
            assert await client.rest() == b">"

        play(part, echo)


def test_a_connection_may_be_taken_over_after_other_requests() -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(GET + b"GET /taken HTTP/1.1\r\nHost: a\r\n\r\nrest")
        client.end()
        assert (await client.reply()).status == 200
        assert await client.rest() == b"<rest>"

    play(part, echo)


def test_a_connection_that_was_taken_over_has_all_the_time_in_the_world() -> None:
    async def part(scene: Scene) -> None:
        client, silent = scene.client(), scene.client()
        await client.send(b"GET /taken HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await silent.rest() == b""  # whose time is up
        await client.send(b"here")
        assert await client.take(5) == b"<here"

    play(part, echo, Limits(seconds=0.05))


def test_whoever_was_silent_longest_makes_room() -> None:
    async def part(scene: Scene) -> None:
        first, second, third = (scene.client() for _ in range(3))
        for client in (first, second, third):
            assert (await client.ask("GET", "/")).status == 200
        fourth = scene.client()
        assert await first.rest() == b""
        for client in (second, third, fourth):
            assert (await client.ask("GET", "/")).status == 200

    assert not play(part, echo, Limits(connections=3)).told


@pytest.mark.parametrize(
    "half", [b"G", GET[:-2], POST_TWO, b"POST /blind HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx"]
)
def test_half_a_request_keeps_nobody_out(half: bytes) -> None:
    """Cause: 300 connections of a guest, each with a request that does not go on, and its Podman was refused for ten
    seconds."""

    async def part(scene: Scene) -> None:
        halves = [scene.client() for _ in range(4)]
        for client in halves:
            await client.send(half)
        while len(scene.server._waiting) < len(halves):
            await asyncio.sleep(0)
        assert (await scene.client().ask("GET", "/here")).status == 200
        assert b"200" not in await halves[0].rest()

    assert not play(part, echo, Limits(connections=4)).told


def test_a_client_that_takes_no_reply_keeps_nobody_out() -> None:
    async def much(request: Request) -> Response:
        return text("x" * (8 << 20)) if request.path == "/much" else text("little")

    async def part(scene: Scene) -> None:
        greedy = scene.client()
        await greedy.send(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await greedy.take(1) == b"H"
        assert (await scene.client().ask("GET", "/")).text == "little"

    assert not play(part, much, Limits(connections=1)).told


def test_a_guest_with_many_connections_costs_another_guest_none() -> None:
    async def part(scene: Scene) -> None:
        modest = scene.client("192.168.127.3")
        assert (await modest.ask("GET", "/before")).status == 200
        for _ in range(20):
            assert (await scene.client("192.168.127.2").ask("GET", "/")).status == 200
        assert (await modest.ask("GET", "/after")).status == 200

    assert not play(part, echo, Limits(connections=4)).told


def test_a_guests_head_has_to_come_soon_and_its_body_may_take_longer() -> None:
    async def part(scene: Scene) -> None:
        slow, body = scene.client(), scene.client()
        await body.send(POST_TWO)
        await slow.send(b"GET / HTTP/1.1\r\nX: ")
        assert await slow.rest() == b""
        await body.send(b"y")
        assert (await body.reply()).text.endswith(" xy")

    play(part, echo, Limits(head_seconds=0.05))


class Held:
    """Requests that are being answered until they are let go of."""

    def __init__(self) -> None:
        self.under_way = 0
        self._go = asyncio.Event()

    async def respond(self, request: Request) -> Response:
        self.under_way += 1
        await self._go.wait()
        return text(request.path)

    async def wait_for(self, count: int) -> None:
        while self.under_way < count:
            await asyncio.sleep(0)

    def let_go(self) -> None:
        self._go.set()


def test_with_all_requests_being_answered_a_connection_from_a_guest_is_refused() -> None:
    held = Held()

    async def part(scene: Scene) -> None:
        busy = scene.client()
        await busy.send(GET)
        await held.wait_for(1)
        assert await scene.client("192.168.127.9").rest() == b""
        held.let_go()
        assert (await busy.reply()).text == "/here"

    scene = play(part, held.respond, Limits(connections=1))
    assert scene.told == [("http.refused", {"reason": "192.168.127.9 finds 1 requests under way"})]


def test_with_all_requests_being_answered_a_client_of_the_host_waits(tmp_path: Path) -> None:
    held = Held()

    async def part(scene: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "api"))
            listener.listen()
            serving = asyncio.create_task(scene.server.serve(listener))
            busy, waiting = (Client(socket.socket(socket.AF_UNIX)) for _ in range(2))
            scene.clients += [busy, waiting]
            busy.sock.connect(str(tmp_path / "api"))
            await busy.send(GET)
            await held.wait_for(1)
            waiting.sock.connect(str(tmp_path / "api"))
            asked = asyncio.create_task(waiting.ask("GET", "/w"))
            held.let_go()
            assert (await busy.reply()).text == "/here"
            assert (await asked).text == "/w"
            serving.cancel()
            await asyncio.wait([serving])

    play(part, held.respond, Limits(connections=1))


def test_there_are_never_more_connections_than_there_may_be(tmp_path: Path) -> None:
    """Not even for the moment in which some make room: each is a descriptor."""

    async def part(scene: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "api"))
            listener.listen(20)
            clients = [Client(socket.socket(socket.AF_UNIX)) for _ in range(20)]
            scene.clients += clients
            for client in clients:
                client.sock.connect(str(tmp_path / "api"))
            serving = asyncio.create_task(scene.server.serve(listener))
            asked = asyncio.create_task(clients[-1].ask("GET", "/"))
            while not asked.done():
                assert len(scene.server._tasks) <= 3
                await asyncio.sleep(0)
            assert (await asked).status == 200
            serving.cancel()
            await asyncio.wait([serving])

    play(part, echo, Limits(connections=3))


def test_with_too_many_taken_over_the_next_one_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.plugin.gateway.http.http_server.TAKEN_MAX", 1)

    async def part(scene: Scene) -> None:
        first, second = scene.client(), scene.client()
        await first.send(b"GET /taken HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await first.take(1) == b"<"
        assert (await second.ask("GET", "/taken")).status == 503
        first.end()
        assert await first.rest() == b">"
        while scene.server._taken:
            await asyncio.sleep(0)
        await second.send(b"GET /taken HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await second.take(1) == b"<"

    play(part, echo)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([GET, b"\r\n", b"HTTP/1.1", b"Host: a\r\n", b"POST / "]) | st.binary(max_size=40)))
def test_no_bytes_break_the_server(pieces: list[bytes]) -> None:
    async def part(scene: Scene) -> None:
        client = scene.client()
        await client.send(b"".join(pieces))
        client.end()
        rest = await client.rest()
        assert rest == b"" or rest.startswith((b"HTTP/1.1 ", b"<"))
        assert (await scene.client().ask("GET", "/")).status == 200

    assert not play(part, echo).told
