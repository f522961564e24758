# SPDX-License-Identifier: Apache-2.0
"""DNS at the gateway's port 53: datagrams in frames that the worker punted, and TCP connections opened for it.

Called by control.py. Adversary: the guest. Invariants: nothing raises; at most _WAITING_MAX datagrams and
_CONNECTIONS_MAX connections wait for the host's resolvers, and of one connection _PIPELINE_MAX queries; what is over
that is dropped, or not read until there is room. A connection on which nothing happens for IDLE_SECONDS ends, and so
does one whose client does not read its answers. An answer by UDP is never longer than a packet of the link: what does
not fit says so (TC), and the client comes back by TCP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lockgate.plugin import address
from lockgate.plugin.gateway.names.dns_message import QUERY_MAX, fit
from lockgate.plugin.gateway.names.name_server import Forward
from lockgate.plugin.services.frame import Ends, Ignored, ip_parse, udp_build, udp_parse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Coroutine

    from lockgate.plugin.gateway.names.name_server import NameServer
    from lockgate.plugin.gateway.names.upstream import Upstream
    from lockgate.plugin.services.frame import Datagram, Packet

PORT = 53
IDLE_SECONDS = 10.0
_WAITING_MAX = 1024
_CONNECTIONS_MAX = 64
_PIPELINE_MAX = 16
_HEADERS4, _HEADERS6 = 20 + 8, 40 + 8  # IP and UDP


class DnsService:
    """`addresses` are the gateway's own, of both families; `send` takes a frame and the port of the switch."""

    def __init__(
        self,
        name_server: NameServer,
        upstream: Upstream,
        mac: bytes,
        addresses: Collection[bytes],
        mtu: int,
        send: Callable[[bytes, int], None],
    ) -> None:
        self._name_server = name_server
        self._upstream = upstream
        self._mac = mac
        self._addresses = frozenset(addresses)
        self._mtu = mtu
        self._send = send
        self._waiting = 0
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- UDP ----

    def handle_frame(self, frame: bytes, port: int) -> Ignored | None:
        """Answers a frame that came from `port`, now or later; or says why it does not."""
        packet = ip_parse(frame)
        if isinstance(packet, Ignored):
            return packet
        datagram = udp_parse(packet)
        if isinstance(datagram, Ignored):
            return datagram
        if datagram.destination_port != PORT or packet.destination not in self._addresses:
            return Ignored.NOT_OURS
        if not datagram.source_port or not address.is_unicast(packet.source):
            return Ignored.NO_SOURCE
        answer = self._name_server.answer(datagram.payload)
        if isinstance(answer, Forward):
            if self._waiting >= _WAITING_MAX:
                return Ignored.BUSY
            self._waiting += 1
            self._spawn(self._forward(answer, packet, datagram, port))
            return None
        if answer is None:
            return Ignored.NOT_A_REQUEST
        self._send(self._frame(answer, packet, datagram), port)
        return None

    async def _forward(self, forward: Forward, packet: Packet, datagram: Datagram, port: int) -> None:
        try:
            answer = forward.settle(await self._upstream.resolve(forward.query))
        finally:
            self._waiting -= 1
        largest = self._mtu - (_HEADERS4 if address.is_ipv4(packet.source) else _HEADERS6)
        fitting = fit(answer, forward.query, forward.query.udp_room(largest))
        self._send(self._frame(fitting, packet, datagram), port)

    def _frame(self, answer: bytes, packet: Packet, datagram: Datagram) -> bytes:
        ends = Ends(self._mac, packet.eth_source, packet.destination, packet.source)
        return udp_build(ends, PORT, datagram.source_port, answer)

    # ---- TCP ----

    async def serve_connection(self, sock: socket.socket) -> None:
        """Serves a connected stream socket, which becomes ours, to its end (RFC 7766)."""
        if self._connections >= _CONNECTIONS_MAX:
            sock.close()
            return
        self._connections += 1
        try:
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock, limit=QUERY_MAX)
            try:
                await _Connection(reader, writer, self._answer).run()
            finally:
                writer.transport.abort()
        except OSError:
            sock.close()  # it has gone already
        finally:
            self._connections -= 1

    async def _answer(self, wire: bytes) -> bytes | None:
        answer = self._name_server.answer(wire)
        if isinstance(answer, Forward):
            return answer.settle(await self._upstream.resolve(answer.query))
        return answer

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Connection:
    """One client's. Answers go out as they come, in any order (RFC 7766 §7)."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[bytes], Coroutine[None, None, bytes | None]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer_to = answer
        self._room = asyncio.Semaphore(_PIPELINE_MAX)
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while (wire := await self._next()) is not None:
                await self._room.acquire()
                task = asyncio.create_task(self._serve(wire))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            if self._under_way:
                await asyncio.wait(self._under_way)
            self._writer.close()
            async with asyncio.timeout(IDLE_SECONDS):
                await self._writer.wait_closed()
        except OSError:
            pass  # the client has gone, or does not read
        finally:
            for task in self._under_way:
                task.cancel()

    async def _next(self) -> bytes | None:
        """The next query; None: there is none within the time, though nothing is under way that could explain it."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    length = int.from_bytes(await self._reader.readexactly(2))
                break
            except asyncio.IncompleteReadError:
                return None
            except TimeoutError:
                if not self._under_way:
                    return None
        if length > QUERY_MAX:
            return None
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, TimeoutError):
            return None

    async def _serve(self, wire: bytes) -> None:
        try:
            answer = await self._answer_to(wire)
            if answer is None:
                return
            self._writer.write(len(answer).to_bytes(2) + answer)
            async with asyncio.timeout(IDLE_SECONDS):
                await self._writer.drain()
        except OSError:
            self._writer.transport.abort()
        finally:
            self._room.release()
