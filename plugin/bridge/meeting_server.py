# SPDX-License-Identifier: Apache-2.0
"""The meeting places of a helper that several containers share: who comes is told of the helper, and may have ports of
the host opened for a container. meeting.py has the words.

Called by control.py. Adversary: whoever can connect, in the shared namespace or to the path on the host: of those only
processes of our own user are heard, who may publish ports anyway; and what they say is checked like a command line.

Invariants: ports that were asked for live as long as the connection that asked; one client never waits for another's
silence; there are at most CLIENTS_MAX of them.
Events: forwards.replaced (client, opened, closed, kept, table) is forward_server's; here meeting.ports (client, table),
meeting.claim (the same), meeting.refused (client, reason).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from lockgate.plugin import forwards
from lockgate.plugin.address import UNSET
from lockgate.plugin.bridge import meeting
from lockgate.plugin.bridge.claims import ClaimedTable
from lockgate.plugin.clients import Emit, accept
from lockgate.plugin.contracts.forward_spec import RULES_MAX
from lockgate.plugin.contracts.pesto import FLAG_BEST_EFFORT, RULE_BYTES, FamilyOffError, ProtocolError, unpack_rule
from lockgate.plugin.forward_rule import PROTOCOL_NAMES, ForwardRule
from lockgate.plugin.forward_server import process_of, shown
from lockgate.plugin.forward_table import ConflictError, ForwardTable
from lockgate.plugin.ports import Rights

CLIENTS_MAX = 4096  # containers with ports that one user runs
WAIT_SECONDS = 2.0  # for another client's port: who is restarted may come before its predecessor has been missed
_LOOK_SECONDS = 0.05  # between two tries: nothing tells when a port becomes free
_OPTIONS = ("--tcp-ports", "--udp-ports")  # in the sentences of forwards.py; Podman's users know another


class MeetingServer:
    """All that come, at any number of places."""

    def __init__(
        self,
        rights: Rights,
        table: ForwardTable,
        claims: ClaimedTable,
        facts: Callable[[], meeting.Facts],
        emit: Emit,
    ) -> None:
        self._rights = rights
        self._table = table
        self._claims = claims
        self._facts = facts
        self._emit = emit
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """For ever; raises OSError if the listener is good for nothing any more."""
        listener.setblocking(False)
        while True:
            client = await accept(listener, lambda reason: self._refuse(0, reason))
            if meeting.peer_user(client) != os.geteuid():
                self._refuse(process_of(client), "it belongs to another user")
            elif len(self._clients) >= CLIENTS_MAX:
                self._refuse(process_of(client), f"there are {CLIENTS_MAX} already")
            else:
                task = asyncio.get_running_loop().create_task(self._serve_client(client))
                self._clients.add(task)
                task.add_done_callback(self._clients.discard)
                continue
            client.close()

    async def _serve_client(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        guest = _Guest(process_of(client))
        try:
            while record := await loop.sock_recv(client, meeting.RECORD_MAX):
                await loop.sock_sendall(client, await self._answer(guest, record))
        except OSError:
            pass  # it has left
        finally:
            client.close()
            if guest.rules:
                await self._table.exchange(guest.rules, ())

    async def _answer(self, guest: _Guest, record: bytes) -> bytes:
        if record == meeting.HELLO:
            return self._facts().pack()
        try:
            if record[:1] == meeting.PORTS:
                await self._open(guest, parse_ports(record, self._rights))
            elif record[:1] == meeting.CLAIM:
                await self._claim(guest, record)
            else:
                raise ProtocolError("expected HELLO, PORTS or CLAIM")
        except (ProtocolError, forwards.ForwardError) as refusal:
            self._refuse(guest.process, str(refusal))
            return meeting.pack_refusal(str(refusal))
        return meeting.ANSWER

    async def _open(self, guest: _Guest, rules: list[ForwardRule]) -> None:
        await self._exchange(guest, rules)
        guest.rules = rules
        self._emit("meeting.ports", client=guest.process, table=shown(rules))

    async def _claim(self, guest: _Guest, record: bytes) -> None:
        owner, ports = meeting.split_claim(record)
        rules = parse_ports(ports, self._rights)
        if not owner or any(rule.target == UNSET for rule in rules):
            raise ProtocolError("expected a claim with an owner and with targets")
        if not await self._claims.claim(owner, rules):
            raise ProtocolError("there are too many claims already")
        self._emit("meeting.claim", client=guest.process, table=shown(rules))

    async def _exchange(self, guest: _Guest, rules: list[ForwardRule]) -> None:
        """Raises ForwardError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_SECONDS
        while True:
            hindrance, may_go = await self._try_exchange(guest, rules)
            if not hindrance:
                return
            if not may_go or loop.time() >= until:
                raise forwards.ForwardError(hindrance)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _try_exchange(self, guest: _Guest, rules: list[ForwardRule]) -> tuple[str, bool]:
        """What is in the way, if something is, and whether it may go away by itself."""
        try:
            failures = await self._table.exchange(guest.rules, rules)
        except ConflictError as conflict:
            rule, other = conflict.rule, conflict.other
            port = max(rule.first, other.first)
            return f"{_place(rule, port)}: Address already in use (by another container)", True
        if not failures:
            return "", False
        return _explain(failures[0]), False

    def _refuse(self, client: int, reason: str) -> None:
        self._emit("meeting.refused", client=client, reason=reason)


class _Guest:
    """A client, and what was opened for it."""

    __slots__ = ("process", "rules")

    def __init__(self, process: int) -> None:
        self.process = process
        self.rules: list[ForwardRule] = []


def parse_ports(record: bytes, rights: Rights) -> list[ForwardRule]:
    """Raises ProtocolError."""
    packed = record[len(meeting.PORTS) :]
    count = len(packed) // RULE_BYTES
    if len(packed) % RULE_BYTES or count > RULES_MAX:
        raise ProtocolError(f"expected at most {RULES_MAX} whole rules")
    rules: list[ForwardRule] = []
    for at in range(0, len(packed), RULE_BYTES):
        data = packed[at : at + RULE_BYTES]
        try:
            rule = unpack_rule(data, rights, mixed=True)
        except FamilyOffError:
            if data[-1] & FLAG_BEST_EFFORT:
                continue
            raise
        for other in rules:
            if rule.conflicts(other):
                raise ProtocolError(f"two rules want the same port, [{other}] and [{rule}]")
        rules.append(rule)
    return rules


def _place(rule: ForwardRule, port: int) -> str:
    return f"{PROTOCOL_NAMES[rule.protocol]} port {port} at {rule.listen_text} cannot be published"


def _explain(failure: forwards.Failure) -> str:
    """In words that callers search, and the cause."""
    cause = forwards.explain(failure)
    for option in _OPTIONS:
        cause = cause.replace(option, "--publish")
    return f"{_place(failure.rule, failure.port)}: {failure.reason}; {cause}"
