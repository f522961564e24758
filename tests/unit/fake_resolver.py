# SPDX-License-Identifier: Apache-2.0
"""A resolver on the loopback address, by UDP and TCP, which answers what a test tells it to.

Called by the tests of the gateway's name server. Adversary: nobody.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Answering = Callable[["FakeResolver", bytes, bool], "bytes | None"]


def records(*lines: str, rcode: int = 0, authority: tuple[str, ...] = ()) -> Answering:
    """Answers every query with these records, each "name ttl type text"; a long answer by UDP is cut."""

    def answer(_: FakeResolver, wire: bytes, by_tcp: bool) -> bytes:
        query = dns.message.from_wire(wire)
        made = dns.message.make_response(query)
        made.flags |= dns.flags.RA
        made.set_rcode(dns.rcode.Rcode(rcode))
        for section, texts in ((made.answer, lines), (made.authority, authority)):
            for text in texts:
                name, ttl, kind, rest = text.split(" ", 3)
                section.append(dns.rrset.from_text(name, int(ttl), "IN", kind, rest))
        full = made.to_wire(max_size=65535)
        room = query.payload if query.edns >= 0 else 512
        if by_tcp or len(full) <= room:
            return full
        made = dns.message.make_response(query)
        made.flags |= dns.flags.TC
        return made.to_wire()

    return answer


class FakeResolver(asyncio.DatagramProtocol):
    """`asked` and `asked_by_tcp` are the queries that came; `from_ports` where those by UDP came from."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.asked: list[bytes] = []
        self.asked_by_tcp: list[bytes] = []
        self.from_ports: list[int] = []
        self.came = asyncio.Event()

    async def start(self, tcp: bool = True) -> tuple[str, int]:
        """Where it is."""
        loop = asyncio.get_running_loop()
        while True:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            address: tuple[str, int] = udp.getsockname()
            try:
                self._tcp = await asyncio.start_server(self._serve, *address) if tcp else None
                break
            except OSError as fault:
                udp.close()
                if fault.errno != errno.EADDRINUSE:
                    raise
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)
        return address

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        self.from_ports.append(addr[1])
        self.came.set()
        self.reply(self.answering(self, data, False), addr[1])

    def reply(self, wire: bytes | None, port: int) -> None:
        if wire is not None:
            self._udp.sendto(wire, ("127.0.0.1", port))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        self.asked_by_tcp.append(wire)
        answer = self.answering(self, wire, True)
        if answer is not None:
            writer.write(len(answer).to_bytes(2) + answer)
        writer.close()

    def stop(self) -> None:
        self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
