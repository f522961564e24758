# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 and 1.0 on stream sockets, whoever has accepted or connected them: h11 has the bytes, this has the time.

Called by gateway.py: serve() for a listening socket of the host, take() for one connection that comes from a guest.
api.py answers the requests.
Adversary: whoever can connect. Each is given so many seconds for a request and for taking the reply, and so many bytes.
Where there are as many connections as there may be, whoever has most of them loses the one that we have waited for
longest, whether that has begun a request or not; so nobody can keep others out by saying nothing, or half of it.

Invariants: a body is read only if whoever answers asks for it; a connection that is taken over goes with every byte
that came behind the head of its request; what breaks one connection breaks no other.
Events: http.refused (reason): nobody can be accepted, or served, meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import h11

from lockgate.plugin.clients import Emit, accept
from lockgate.plugin.contracts.place import Url, UrlError

SECONDS = 10.0  # for each of: the first byte of a request, all of it, and taking the reply
HEAD_MAX = 64 << 10  # bytes of a request's line and header fields
BODY_MAX = 1 << 20
CONNECTIONS_MAX = 256
# Of a guest, who asks for a port in a hundred bytes, sent in one go.
GUEST_HEAD_MAX, GUEST_BODY_MAX = 8 << 10, 16 << 10
GUEST_HEAD_SECONDS = 3.0  # from its first byte: a segment may have been lost, twice
# Podman in a guest asks once for each port that a container publishes, and leaves each of those connections open.
GUEST_CONNECTIONS_MAX = 64
TAKEN_MAX = 1024  # connections that are no more of HTTP

_CHUNK = 16 << 10
_LINGER_SECONDS = 0.5  # for a client that is still sending what nobody will read: a reset would cost it the reply
_LINGER_BYTES = 256 << 10

_REASONS = {
    100: b"Continue",
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    413: b"Request Entity Too Large",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",  # what h11 asks for where a client's transfer coding is none that it knows
    503: b"Service Unavailable",
}

# Owns the socket from the call on; gets the bytes that came behind the head of the request.
Run = Callable[[socket.socket, bytes], Awaitable[None]]


class Request:
    """One request. `requester` is the address of the guest that it comes from; empty: it comes from the host."""

    __slots__ = ("_read_body", "method", "path", "query", "requester")

    def __init__(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        requester: str,
        read_body: Callable[[], Awaitable[bytes]],
    ) -> None:
        self.method = method
        self.path = path  # percent-decoded
        self.query = query
        self.requester = requester
        self._read_body = read_body

    async def body(self) -> bytes:
        """All of it; to be called once. What it raises ends the connection, with a fitting reply."""
        return await self._read_body()


class Response:
    """A reply, complete. The length and the date are added."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = [*headers]


class Takeover:
    """In the place of a reply: from now on the connection is not of HTTP any more, and nothing has been sent."""

    __slots__ = ("run",)

    def __init__(self, run: Run) -> None:
        self.run = run


Respond = Callable[[Request], Awaitable[Response | Takeover]]


def text(body: str, status: int = 200) -> Response:
    """A text, whatever it means."""
    return Response(status, body.encode("utf-8", "replace"), [("Content-Type", "text/plain; charset=utf-8")])


def error(status: int, sentence: str) -> Response:
    """In the form in which Go's net/http says it."""
    response = text(f"{sentence}\n", status)
    response.headers.append(("X-Content-Type-Options", "nosniff"))
    return response


class Limits:
    """What a request may have; frozen by convention."""

    __slots__ = ("body", "connections", "head", "head_seconds", "seconds")

    def __init__(
        self,
        head: int = HEAD_MAX,
        body: int = BODY_MAX,
        seconds: float = SECONDS,
        head_seconds: float = SECONDS,
        connections: int = CONNECTIONS_MAX,
    ) -> None:
        self.head = head  # bytes, as is the body
        self.body = body
        self.seconds = seconds
        self.head_seconds = min(head_seconds, seconds)  # from its first byte
        self.connections = connections  # at once


GUEST_LIMITS = Limits(
    GUEST_HEAD_MAX, GUEST_BODY_MAX, head_seconds=GUEST_HEAD_SECONDS, connections=GUEST_CONNECTIONS_MAX
)


class HttpServer:
    """The connections of one place: those of another have a budget of their own."""

    def __init__(self, respond: Respond, emit: Emit, limits: Limits) -> None:
        self._respond = respond
        self._emit = emit
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: dict[_Connection, asyncio.Task[None]] = {}
        self._waiting: dict[_Connection, None] = {}  # of these, for their client; the first for the longest time
        self._leaving: set[_Connection] = set()  # of these, whoever has been told to go
        self._taken = 0
        self._changed = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """For ever; raises OSError if the listener is good for nothing any more."""
        listener.setblocking(False)
        while True:
            client = await accept(listener, lambda reason: self._emit("http.refused", reason=reason))
            try:
                while len(self._serving) >= self._limits.connections:
                    self._changed.clear()
                    self._has_place()
                    await self._changed.wait()
            except BaseException:
                client.close()
                raise
            self._start(client, "")

    def take(self, client: socket.socket, requester: str) -> None:
        """One connection, which is the server's from now on."""
        client.setblocking(False)
        if self._has_place():
            self._start(client, requester)
        else:
            self._emit("http.refused", reason=f"{requester} finds {self._limits.connections} requests under way")
            client.close()

    async def close(self) -> None:
        """Ends all connections, taken over or not."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _has_place(self) -> bool:
        """Whether there is one for one more, now or as soon as whoever has to make it has gone."""
        staying = Counter(one.requester for one in self._serving if one not in self._leaving)
        full = staying.total() >= self._limits.connections
        if full and self._waiting:
            loser = max(self._waiting, key=lambda one: staying[one.requester])  # of equals the first
            del self._waiting[loser]
            self._leaving.add(loser)
            self._serving[loser].cancel()
            return True
        return not full

    def _start(self, client: socket.socket, requester: str) -> None:
        connection = _Connection(client, requester, self._respond, self._limits, self._set_waiting)
        task = asyncio.get_running_loop().create_task(self._run(connection))
        self._serving[connection] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _set_waiting(self, connection: _Connection, waiting: bool) -> None:
        self._waiting.pop(connection, None)
        if waiting and connection not in self._leaving:  # which makes room already
            self._waiting[connection] = None
            self._changed.set()

    def _release(self, connection: _Connection) -> None:
        """It does not count any more."""
        del self._serving[connection]
        self._leaving.discard(connection)
        self._changed.set()

    async def _run(self, connection: _Connection) -> None:
        try:
            takeover = await connection.converse(lambda: self._taken < TAKEN_MAX)
            if takeover is None:
                await connection.linger()
        except OSError:  # also TimeoutError
            return
        finally:
            self._release(connection)
            if connection.owned:
                connection.client.close()
        if takeover is not None:
            self._taken += 1
            try:
                await takeover.run(connection.client, connection.behind)
            finally:
                self._taken -= 1


class _TooLargeError(Exception):
    """A body has more bytes than it may."""


class _Connection:
    """One socket, for as long as it speaks HTTP."""

    def __init__(
        self,
        client: socket.socket,
        requester: str,
        respond: Respond,
        limits: Limits,
        set_waiting: Callable[[_Connection, bool], None],
    ) -> None:
        self.client = client
        self.requester = requester
        self.owned = True  # until it is taken over
        self.behind = b""  # what came behind the head of the request that took it over
        self._respond = respond
        self._limits = limits
        self._seconds = limits.seconds
        self._set_waiting = set_waiting
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head)
        self._until = 0.0  # by the loop's clock: when the request must be there
        self._without_body = False  # the reply to it

    async def converse(self, may_be_taken: Callable[[], bool]) -> Takeover | None:
        """One request after the other, until one takes the connection over, or there will be none. Raises OSError."""
        try:
            while (request := await self._next_request()) is not None:
                answer = await self._respond(request)
                if isinstance(answer, Takeover) and may_be_taken():
                    self.behind, _ = self._http.trailing_data
                    self.owned = False
                    return answer
                if isinstance(answer, Takeover):
                    answer = error(503, f"{TAKEN_MAX} connections have been taken over; end some of them")
                await self._send_response(answer)
                if not await self._ready_for_another():
                    break
        except h11.RemoteProtocolError as mistake:
            await self._refuse(mistake.error_status_hint, str(mistake))
        except UrlError as mistake:
            await self._refuse(400, str(mistake))
        except _TooLargeError:
            await self._refuse(413, f"expected a body of at most {self._limits.body} bytes")
        return None

    async def linger(self) -> None:
        """Lets the client take the reply before the connection is gone. Raises OSError."""
        self.client.shutdown(socket.SHUT_WR)
        left = _LINGER_BYTES
        with self._waiting():
            async with asyncio.timeout(min(_LINGER_SECONDS, self._seconds)):
                while left > 0 and (data := await self._loop.sock_recv(self.client, _CHUNK)):
                    left -= len(data)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """For the client: meanwhile, this connection can make room for another."""
        self._set_waiting(self, True)
        try:
            yield
        finally:
            self._set_waiting(self, False)

    async def _next_request(self) -> Request | None:
        """None: the client will not send any."""
        with self._waiting():
            if not self._http.trailing_data[0]:
                async with asyncio.timeout(self._seconds):
                    self._http.receive_data(await self._loop.sock_recv(self.client, _CHUNK))
            self._until = self._loop.time() + self._seconds
            async with asyncio.timeout(self._limits.head_seconds):
                head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        if head.method == b"CONNECT":  # its target is no path, and a reply to it has no body that h11 would let us send
            raise h11.RemoteProtocolError("CONNECT is for proxies, which this is not", 400)
        self._without_body = head.method == b"HEAD"
        target = Url(head.target.decode("ascii"))  # h11 has seen to that
        return Request(head.method.decode("ascii"), target.path, target.values(), self.requester, self._read_body)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        """What the client says next."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._loop.sock_recv(self.client, _CHUNK))
        assert not isinstance(event, type) or event is h11.PAUSED
        return event

    async def _read_body(self) -> bytes:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[], reason=_REASONS[100]))
        body = bytearray()
        with self._waiting():
            async with asyncio.timeout_at(self._until):
                while isinstance(part := await self._event(), h11.Data):
                    body += part.data
                    if len(body) > self._limits.body:
                        raise _TooLargeError
        return bytes(body)

    async def _send_response(self, answer: Response, last: bool = False) -> None:
        headers = [
            *answer.headers,
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Length", str(len(answer.body))),
        ]
        if last or self._http.they_are_waiting_for_100_continue:  # for a body that nobody has asked for
            headers.append(("Connection", "close"))
        head = h11.Response(status_code=answer.status, headers=headers, reason=_REASONS[answer.status])
        body = b"" if self._without_body else answer.body
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(filter(None, map(self._http.send, events)))
        with self._waiting():
            async with asyncio.timeout(self._seconds):
                await self._loop.sock_sendall(self.client, data)

    async def _refuse(self, status: int, why: str) -> None:
        """If nothing has been said to that request yet."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reason = _REASONS.get(status)
            status = status if reason else 400
            await self._send_response(error(status, f"{status} {_REASONS[status].decode()}: {why}"), last=True)

    async def _ready_for_another(self) -> bool:
        """Passes over what is left of the request's body, unless that is much, or the connection ends here anyway."""
        if self._http.our_state is not h11.DONE:
            return False
        left = self._limits.body
        with self._waiting():
            async with asyncio.timeout_at(self._until):
                while left > 0 and self._http.their_state is h11.SEND_BODY:
                    part = await self._event()
                    left -= len(part.data) if isinstance(part, h11.Data) else 0
        if self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True
