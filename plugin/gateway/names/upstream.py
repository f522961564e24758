# SPDX-License-Identifier: Apache-2.0
"""Queries that go on to the host's resolvers, and their answers, unchanged.

Called by dns_service.py. Adversary: the guest, which chooses the queries and how many there are; and whoever can send
datagrams that look like those of a resolver: each query has a socket of its own, connected to its resolver, from a port
of the kernel's choice, with a random id and one question, all of which an answer must fit.

Resolvers are asked in the order of resolv.conf, read anew whenever it changes; one that was silent or refused is asked
last for a while. The next one is asked after silence, and after SERVFAIL, REFUSED or NOTIMP, as by the host's own
library; what the last one said stays what it is, for a failure is no NXDOMAIN. An answer that was cut is asked for
again by TCP. Equal queries under way are one. With no resolver, and with none that answers, the answer is SERVFAIL.

Invariants: at most ASKING_MAX queries are under way, each for at most TOTAL_SECONDS and with one descriptor; resolve()
does not raise. What was kept is forgotten when there are other resolvers: then the host is in another network.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from dns.rcode import NOTIMP, REFUSED, SERVFAIL

from lockgate.plugin.clients import ACCEPT_EXHAUSTED
from lockgate.plugin.gateway.names.dns_cache import DnsCache
from lockgate.plugin.gateway.names.dns_message import addressed, build, is_answer, is_truncated, rcode_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockgate.plugin.gateway.names.dns_message import Query

    Server = tuple[str, int]

ASKING_MAX = 512
TOTAL_SECONDS = 10.0  # clients give up after 5 (resolv.conf(5)) and ask again: the second time, they join
_ATTEMPT_SECONDS = 3.0
_ROUNDS = 2
_AVOIDED_SECONDS = 30.0
_STRANGE_MAX = 64  # datagrams to one query that do not fit; with more, somebody is guessing
_ANSWER_MAX = 65535
_OTHERS_MAY_KNOW = frozenset({int(SERVFAIL), int(NOTIMP), int(REFUSED)})


class Upstream:
    """`servers` are the host's resolvers at the moment (host_files.servers_of)."""

    def __init__(
        self,
        servers: Callable[[], Sequence[Server]],
        check: Callable[[socket.socket], None],
        attempt_seconds: float = _ATTEMPT_SECONDS,
    ) -> None:
        """`check` closes a socket, and raises OSError, where there is no descriptor to spare for it."""
        self._servers = servers
        self._check = check
        self._attempt_seconds = attempt_seconds
        self._known: Sequence[Server] = ()
        self._avoided: dict[Server, float] = {}  # until when
        self._asking: dict[bytes, asyncio.Task[bytes]] = {}
        self._cache = DnsCache()
        self.counts = dict.fromkeys(("asked", "kept", "joined", "refused", "failed"), 0)

    async def resolve(self, query: Query) -> bytes:
        """The answer, with the id of `query`."""
        self._look_at_servers()
        key = query.key
        kept = self._cache.get(key, asyncio.get_running_loop().time())
        if kept is not None:
            self.counts["kept"] += 1
            return addressed(kept, query)
        asking = self._asking.get(key)
        if asking is not None:
            self.counts["joined"] += 1
        elif len(self._asking) >= ASKING_MAX:
            self.counts["refused"] += 1
            return build(query, SERVFAIL)
        else:
            self.counts["asked"] += 1
            asking = self._asking[key] = asyncio.create_task(self._ask(query))
            asking.add_done_callback(lambda _: self._asking.pop(key))
        return addressed(await asyncio.shield(asking), query)

    def _look_at_servers(self) -> None:
        servers = self._servers()
        if servers != self._known:
            self._known = servers
            self._avoided.clear()
            self._cache.clear()

    async def _ask(self, query: Query) -> bytes:
        known = self._known
        loop = asyncio.get_running_loop()
        answer = None
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                answer = await self._ask_all(query)
        except TimeoutError:
            pass
        if answer is None:
            self.counts["failed"] += 1
            return build(query, SERVFAIL)
        if known is self._known:
            self._cache.put(query, answer, loop.time())
        return answer

    async def _ask_all(self, query: Query) -> bytes | None:
        """The first answer that is of use; or else the last of those that are not."""
        failure = None
        for _ in range(_ROUNDS):
            for server in self._in_order():
                answer = await self._ask_one(server, query)
                if answer is not None and rcode_of(answer) not in _OTHERS_MAY_KNOW:
                    return answer
                failure = answer or failure
            if failure is not None:
                break
        return failure

    def _in_order(self) -> list[Server]:
        now = asyncio.get_running_loop().time()
        return sorted(self._known, key=lambda server: self._avoided.get(server, 0.0) > now)

    async def _ask_one(self, server: Server, query: Query) -> bytes | None:
        """None: no answer came."""
        wire = os.urandom(2) + query.wire[2:]
        answer = None
        try:
            async with asyncio.timeout(self._attempt_seconds):
                answer = await self._by_udp(server, wire, query.question_end)
            if answer is not None and is_truncated(answer):
                async with asyncio.timeout(self._attempt_seconds):
                    answer = await self._by_tcp(server, wire, query.question_end) or answer
        except OSError as fault:  # silence is one, too
            if answer is None and fault.errno not in ACCEPT_EXHAUSTED:
                self._avoided[server] = asyncio.get_running_loop().time() + _AVOIDED_SECONDS
            return answer
        self._avoided.pop(server, None)
        return answer

    def _socket(self, server: Server, kind: socket.SocketKind) -> socket.socket:
        """Raises OSError."""
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._check(sock)
        return sock

    async def _by_udp(self, server: Server, wire: bytes, question_end: int) -> bytes | None:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        with self._socket(server, socket.SOCK_DGRAM) as sock:
            sock.connect(_address(server))
            sock.send(wire)
            for _ in range(_STRANGE_MAX):
                answer = await loop.sock_recv(sock, _ANSWER_MAX)
                if is_answer(answer, wire[:question_end]):
                    return answer
        return None

    async def _by_tcp(self, server: Server, wire: bytes, question_end: int) -> bytes | None:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        with self._socket(server, socket.SOCK_STREAM) as sock:
            await loop.sock_connect(sock, _address(server))
            await loop.sock_sendall(sock, len(wire).to_bytes(2) + wire)
            length = int.from_bytes(await _receive(sock, 2))
            answer = await _receive(sock, length)
        return answer if is_answer(answer, wire[:question_end]) else None


def _address(server: Server) -> tuple[str, int] | tuple[str, int, int, int]:
    """For connect(), which would look up a zone in a thread of its own."""
    host, port = server
    host, _, zone = host.partition("%")
    if not zone:
        return host, port
    return host, port, 0, int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)


async def _receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if the other end has no more."""
    received = b""
    while len(received) < count:
        part = await asyncio.get_running_loop().sock_recv(sock, count - len(received))
        if not part:
            break
        received += part
    return received
