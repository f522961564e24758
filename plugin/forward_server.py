# SPDX-License-Identifier: Apache-2.0
"""The socket of --conf-path: who connects is told the table of forwards, and may send another in its place.

Called by control.py; contracts/pesto.py knows the bytes, forward_table.py carries out what they say.
Adversary: whoever may connect, a local user at worst. One client is served at a time and the others wait in the
backlog, hence each has a deadline; nothing but the next client ever waits for a client.

Invariants: a table is taken as a whole or not at all; its client is let go of when all has been done that it asked for.
Events: forwards.replaced (client, opened, closed, kept, table), forwards.refused (client, reason), forwards.failed
(reason: why ports of a table are not forwarded).
"""

from __future__ import annotations

import asyncio
import socket
import struct

from lockgate.plugin import forwards
from lockgate.plugin.clients import Emit, accept
from lockgate.plugin.contracts.pesto import Message, ProtocolError, greeting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.bridge.claims import ClaimedTable
    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.forward_table import Change, ForwardTable
    from lockgate.plugin.ports import Rights

# From its connection to the end of its message: a client needs milliseconds for it, and whoever does not end it keeps
# the others waiting for that long.
CLIENT_SECONDS = 10.0

_RULES_SHOWN = 8  # in one line
_CREDENTIALS = struct.Struct("=iII")  # struct ucred, unix(7)


class ForwardServer:
    """One client after the other."""

    def __init__(
        self,
        rights: Rights,
        table: ForwardTable | ClaimedTable,
        emit: Emit,
        client_seconds: float = CLIENT_SECONDS,
        outward: Rights | None = None,
    ) -> None:
        """`outward`: of ports that lead out of a namespace; None: there is none."""
        self._rights = rights
        self._outward = outward
        self._table = table
        self._emit = emit
        self._client_seconds = client_seconds

    async def serve(self, listener: socket.socket) -> None:
        """For ever; raises OSError if the listener is good for nothing any more."""
        listener.setblocking(False)
        while True:
            with await accept(listener, lambda reason: self._refuse(0, reason)) as client:
                await self._serve_client(client)

    async def _serve_client(self, client: socket.socket) -> None:
        pid = process_of(client)
        message = Message(self._rights, self._outward)
        try:
            async with asyncio.timeout(self._client_seconds):
                await self._converse(client, message)
        except TimeoutError:
            self._refuse(pid, f"it has not come to an end within {self._client_seconds:.0f} s")
        except (ProtocolError, forwards.ForwardError) as mistake:
            self._refuse(pid, str(mistake))
        except EOFError:
            self._refuse(pid, "it left in the middle of its message")
        except OSError:
            pass  # it left before it had heard all
        else:
            if not message.wanted:
                await self._replace(pid, message)

    async def _converse(self, client: socket.socket, message: Message) -> None:
        """Until the message is whole, or the client has gone without one."""
        loop = asyncio.get_running_loop()
        table = self._table
        await loop.sock_sendall(client, greeting(self._rights, table.rules, self._outward, table.outward_rules))
        begun = False
        while message.wanted:
            data = b""
            while len(data) < message.wanted:
                piece = await loop.sock_recv(client, message.wanted - len(data))
                if not piece and (begun or data):
                    raise EOFError
                if not piece:
                    return
                data += piece
            begun = True
            message.feed(data)
        forwards.check_room([*message.rules, *message.outward], self._rights.room)

    async def _replace(self, pid: int, message: Message) -> None:
        changes = [await self._table.replace(message.rules)]
        if self._outward is not None:
            changes.append(await self._table.replace_outward(message.outward))
        for rules, change in zip((message.rules, message.outward), changes, strict=False):
            for reason in _explain(rules, change):
                self._emit("forwards.failed", reason=reason)
        numbers = {name: sum(getattr(one, name) for one in changes) for name in ("opened", "closed", "kept")}
        there = *self._table.rules, *self._table.outward_rules
        self._emit("forwards.replaced", client=pid, **numbers, table=shown(there))

    def _refuse(self, pid: int, reason: str) -> None:
        self._emit("forwards.refused", client=pid, reason=reason)


def _explain(rules: Sequence[ForwardRule], change: Change) -> list[str]:
    """What is not forwarded: one sentence of what was named, with a cause and a remedy; one of what was welcome."""
    missing: dict[int, list[forwards.Failure]] = {}
    for failure in change.failures:
        missing.setdefault(id(failure.rule), []).append(failure)
    refused: list[forwards.Failure] = []
    missed: list[forwards.Failure] = []
    for rule in rules:
        failures = missing.get(id(rule), [])
        if rule.best_effort and len(failures) < rule.count:
            missed += failures
        elif rule.best_effort:
            refused += failures[:1]
        else:
            refused += failures
    sentences = []
    if refused:
        others = f". Nor are {forwards.examples(refused[1:])}" if refused[1:] else ""
        sentences.append(f"Ports are not forwarded: {forwards.explain(refused[0])}{others}")
    if missed:
        total = sum(rule.count for rule in rules if rule.best_effort)
        sentences.append(f"{len(missed)} of {total} ports are not forwarded: {forwards.examples(missed)}")
    return sentences


def shown(rules: Sequence[ForwardRule]) -> str:
    shown = ", ".join(" ".join(str(rule).split()) for rule in rules[:_RULES_SHOWN]) or "nothing"
    more = len(rules) - _RULES_SHOWN
    return shown + (f", and {more} more" if more > 0 else "")


def process_of(client: socket.socket) -> int:
    """Who connected, as a process id; 0 if it is of a namespace that we do not see."""
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid
