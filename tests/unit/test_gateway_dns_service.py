# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/dns_service.py: scapy sends the frames, a stream socket is the TCP connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest
from fake_resolver import Answering, FakeResolver, records
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lockgate.plugin import address
from lockgate.plugin.gateway.names import dns_service
from lockgate.plugin.gateway.names.dns_message import QUERY_MAX
from lockgate.plugin.gateway.names.dns_service import DnsService
from lockgate.plugin.gateway.names.name_server import NameServer
from lockgate.plugin.gateway.names.upstream import Upstream
from lockgate.plugin.gateway.names.zones import Zones
from lockgate.plugin.gateway.virtual_network import GATEWAY_MAC, Record, Zone
from lockgate.plugin.services.frame import Ignored

GUEST_MAC, GUEST, GUEST6 = "5a:94:ef:e4:0c:ee", "192.168.127.2", "fd00::2"
GATEWAY, GATEWAY6 = "192.168.127.1", "fd00::1"
MTU = 1500
A = records("example.org. 60 A 10.0.0.1")
LONG = records(*(f'example.org. 60 TXT "{number:0100}"' for number in range(20)))


def ip(text: str) -> bytes:
    parsed = address.parse(text)
    assert parsed is not None
    return parsed


def silent(_: FakeResolver, wire: bytes, by_tcp: bool) -> None:
    """Hears all, and says nothing."""


class Bench:
    """A service, the resolver that it asks, and the frames that it sends."""

    def __init__(self, resolver: FakeResolver, server: tuple[str, int]) -> None:
        self.resolver = resolver
        self.sent: list[tuple[bytes, int]] = []
        self.sent_one = asyncio.Event()
        self.clients: list[socket.socket] = []
        zones = Zones([Zone("containers.internal.", (Record("host", ip("192.168.127.254")),))])
        self.service = DnsService(
            NameServer(zones, dict),
            Upstream(lambda: (server,), lambda _: None),
            GATEWAY_MAC,
            (ip(GATEWAY), ip(GATEWAY6)),
            MTU,
            self._send,
        )

    def _send(self, frame: bytes, port: int) -> None:
        self.sent.append((frame, port))
        self.sent_one.set()

    async def answer(self, frame: bytes, port: int = 0) -> Any:
        """The frame that comes back, as scapy reads it."""
        self.sent.clear()
        self.sent_one.clear()
        assert self.service.handle_frame(frame, port) is None
        await self.sent_one.wait()
        ((frame, to),) = self.sent
        assert to == port
        return Ether(frame)

    def connect(self) -> tuple[socket.socket, asyncio.Task[None]]:
        """A client's end of a TCP connection, and what serves the other."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.clients.append(ours)
        return ours, asyncio.create_task(self.service.serve_connection(theirs))


def run(test: Callable[[Bench], Awaitable[None]], answering: Answering = A) -> None:
    async def inside() -> None:
        resolver = FakeResolver(answering)
        bench = Bench(resolver, await resolver.start())
        try:
            await test(bench)
        finally:
            resolver.stop()
            for client in bench.clients:
                client.close()

    asyncio.run(inside())


def question(name: str = "host.containers.internal.", kind: str = "A", **options: Any) -> bytes:
    return dns.message.make_query(name, kind, **options).to_wire()


def frame(wire: bytes, **fields: Any) -> bytes:
    ends = {"src": GUEST, "dst": GATEWAY} | {name: fields.pop(name) for name in ("src", "dst") if name in fields}
    header = IPv6(**ends) if ":" in ends["src"] else IP(**ends)
    ports = {"sport": 4242, "dport": 53, **fields}
    return bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC.hex(":")) / header / UDP(**ports) / wire)


def message(reply: Any) -> dns.message.Message:
    return dns.message.from_wire(bytes(reply[UDP].payload))


def texts(answer: dns.message.Message) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


@pytest.mark.parametrize(("guest", "gateway", "layer"), [(GUEST, GATEWAY, IP), (GUEST6, GATEWAY6, IPv6)])
@pytest.mark.parametrize("name", ["host.containers.internal.", "example.org."])
def test_an_answer_goes_back_the_way_that_its_query_came(guest: str, gateway: str, layer: Any, name: str) -> None:
    """To the same port of the switch, MAC, address and port, with right lengths and checksums."""

    async def test(bench: Bench) -> None:
        query = question(name)
        reply = await bench.answer(frame(query, src=guest, dst=gateway), port=3)
        assert (reply.src, reply.dst) == (GATEWAY_MAC.hex(":"), GUEST_MAC)
        assert (reply[layer].src, reply[layer].dst) == (gateway, guest)
        assert (reply[UDP].sport, reply[UDP].dport) == (53, 4242)
        again = reply.copy()
        del again[UDP].chksum, again[UDP].len
        if layer is IP:
            del again[IP].chksum, again[IP].len
        assert bytes(again) == bytes(reply)
        assert dns.message.from_wire(query).is_response(message(reply))
        assert len(texts(message(reply))) == 1

    run(test)


@pytest.mark.parametrize(("payload", "fits"), [(0, False), (1472, True), (4096, True)])
def test_an_answer_is_never_longer_than_a_packet(payload: int, fits: bool) -> None:
    """Nor than the client takes: it is told to come by TCP."""

    async def test(bench: Bench) -> None:
        options = {"use_edns": 0, "payload": payload} if payload else {}
        for number, expected in ((10, fits), (20, False)):
            made = (f'example.org. 0 TXT "{one:0120}"' for one in range(number))
            bench.resolver.answering = records(*made)
            reply = await bench.answer(frame(question("example.org.", "TXT", **options)))
            assert len(reply) <= MTU + 14
            answer = message(reply)
            assert (len(texts(answer)), bool(answer.flags & dns.flags.TC)) == (number if expected else 0, not expected)

    run(test)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dst": "192.168.127.254"}, Ignored.NOT_OURS),
        ({"dport": 54}, Ignored.NOT_OURS),
        ({"src": "0.0.0.0"}, Ignored.NO_SOURCE),
        ({"src": "224.0.0.1"}, Ignored.NO_SOURCE),
        ({"src": "255.255.255.255"}, Ignored.NO_SOURCE),
        ({"sport": 0}, Ignored.NO_SOURCE),
    ],
)
def test_a_frame_that_is_not_for_us_has_a_named_reason(fields: dict[str, Any], reason: Ignored) -> None:
    """Or one that nobody could hear the answer to."""

    async def test(bench: Bench) -> None:
        assert bench.service.handle_frame(frame(question(), **fields), 0) is reason
        assert bench.sent == []

    run(test)


def test_what_is_no_query_is_passed_over() -> None:
    """An answer of somebody, a fragment, half a frame."""

    async def test(bench: Bench) -> None:
        response = dns.message.make_response(dns.message.from_wire(question())).to_wire()
        assert bench.service.handle_frame(frame(response), 0) is Ignored.NOT_A_REQUEST
        assert bench.service.handle_frame(frame(question())[:40], 0) is Ignored.TRUNCATED
        fragment = Ether() / IP(src=GUEST, dst=GATEWAY, flags="MF") / UDP(dport=53) / Raw(question())
        assert bench.service.handle_frame(bytes(fragment), 0) is Ignored.FRAGMENT

    run(test)


def test_only_so_many_queries_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is passed over; zones are answered all the same."""
    monkeypatch.setattr(dns_service, "_WAITING_MAX", 2)

    async def test(bench: Bench) -> None:
        for name in ("a.org.", "b.org."):
            assert bench.service.handle_frame(frame(question(name)), 0) is None
        assert bench.service.handle_frame(frame(question("c.org.")), 0) is Ignored.BUSY
        assert texts(message(await bench.answer(frame(question())))) == ["192.168.127.254"]

    run(test, silent)


@given(st.binary(max_size=200))
def test_no_frame_is_worse_than_one_that_is_passed_over(data: bytes) -> None:
    """Any bytes, and any bytes behind a header of ours."""

    async def test(bench: Bench) -> None:
        bench.service.handle_frame(data, 0)
        bench.service.handle_frame(frame(data), 0)
        bench.service.handle_frame(frame(question()[:12] + data), 0)

    run(test, silent)


# ---- TCP ----


async def send(sock: socket.socket, *wires: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, b"".join(len(wire).to_bytes(2) + wire for wire in wires))


async def receive(sock: socket.socket) -> dns.message.Message:
    loop = asyncio.get_running_loop()

    async def exactly(count: int) -> bytes:
        received = b""
        while len(received) < count:
            part = await loop.sock_recv(sock, count - len(received))
            assert part, "the connection has ended"
            received += part
        return received

    return dns.message.from_wire(await exactly(int.from_bytes(await exactly(2))))


async def ended(sock: socket.socket) -> bool:
    return await asyncio.get_running_loop().sock_recv(sock, 1) == b""


def test_a_connection_answers_one_query_after_the_other() -> None:
    """In one piece, in many, and a long one whole."""

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        await send(client, question(id=1), question(id=2))
        assert [(await receive(client)).id for _ in range(2)] == [1, 2]
        for byte in len(question()).to_bytes(2) + question(id=3):
            await asyncio.get_running_loop().sock_sendall(client, bytes((byte,)))
        assert (await receive(client)).id == 3
        await send(client, question("example.org.", "TXT"))
        answer = await receive(client)
        assert (len(texts(answer)), answer.flags & dns.flags.TC) == (20, 0)
        client.close()
        await served

    run(test, LONG)


def test_a_query_that_waits_holds_up_no_other() -> None:
    """Answers come as they are there (RFC 7766 §7)."""

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        await send(client, question("example.org.", id=1), question(id=2))
        assert (await receive(client)).id == 2
        await bench.resolver.came.wait()
        answer = A(bench.resolver, bench.resolver.asked[0], False)
        bench.resolver.reply(answer, bench.resolver.from_ports[0])
        assert (await receive(client)).id == 1
        client.close()
        await served

    run(test, silent)


def test_a_client_that_has_no_more_to_ask_gets_what_is_due() -> None:
    """And then the end."""

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        await send(client, question("example.org."))
        client.shutdown(socket.SHUT_WR)
        assert texts(await receive(client)) == ["10.0.0.1"]
        assert await ended(client)
        await served

    run(test)


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0\x40half"])
def test_a_connection_on_which_nothing_happens_ends(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose query does not come to its end."""
    monkeypatch.setattr(dns_service, "IDLE_SECONDS", 0.01)

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        client.send(begun)
        await served
        assert await ended(client)

    run(test)


def test_a_connection_is_not_idle_while_a_resolver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes."""
    monkeypatch.setattr(dns_service, "IDLE_SECONDS", 0.1)

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        await send(client, question("example.org."))
        await bench.resolver.came.wait()
        rounds = asyncio.Event()
        asyncio.get_running_loop().call_later(0.25, rounds.set)
        await rounds.wait()
        answer = A(bench.resolver, bench.resolver.asked[0], False)
        bench.resolver.reply(answer, bench.resolver.from_ports[0])
        assert texts(await receive(client)) == ["10.0.0.1"]
        await served

    run(test, silent)


def test_a_client_that_does_not_read_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it asks for is kept for it only so long."""
    monkeypatch.setattr(dns_service, "IDLE_SECONDS", 0.05)

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        asking = asyncio.create_task(send(client, *[question("example.org.", "TXT")] * 2000))
        await served
        await asyncio.wait([asking])
        client.close()

    run(test, LONG)


@pytest.mark.parametrize("wire", [b"\0\0", (QUERY_MAX + 1).to_bytes(2), b"\0\x0c" + b"\1\2\x81\x80" + bytes(8)])
def test_what_is_no_query_gets_nothing_by_tcp_either(wire: bytes) -> None:
    """An empty message, one that is too long, an answer; the client's end comes after it."""

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        client.send(wire)
        client.shutdown(socket.SHUT_WR)
        assert await ended(client)
        await served

    run(test)


def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more ends at once; when one has gone, there is room again."""
    monkeypatch.setattr(dns_service, "_CONNECTIONS_MAX", 1)

    async def test(bench: Bench) -> None:
        first, served = bench.connect()
        await send(first, question())
        await receive(first)
        refused, over = bench.connect()
        assert await ended(refused)
        await over
        first.close()
        await served
        second, served = bench.connect()
        await send(second, question())
        assert texts(await receive(second)) == ["192.168.127.254"]
        second.close()
        await served

    run(test)


def test_a_client_may_leave_at_any_moment() -> None:
    """Also while a resolver is asked for it: what comes then is for nobody."""

    async def test(bench: Bench) -> None:
        client, served = bench.connect()
        await send(client, question("example.org."))
        await bench.resolver.came.wait()
        client.close()
        answer = A(bench.resolver, bench.resolver.asked[0], False)
        bench.resolver.reply(answer, bench.resolver.from_ports[0])
        await served

    run(test, silent)
