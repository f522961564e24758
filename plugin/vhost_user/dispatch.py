# SPDX-License-Identifier: Apache-2.0
"""dispatch: what is checked of every request before its handler runs, and what goes out after it.

Called by session.py (table_fault) and server.py (answer). The handlers between the two return verdicts, and no more.

Adversary: the front end. A request that is wrong must neither change anything nor leave the front end waiting for an
answer that does not come; see answer() for how each kind of refusal ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lockgate.plugin.vhost_user.messages import (
    FLAG_NEED_REPLY,
    REQUESTS,
    U64,
    Header,
    Payload,
    ProtocolFeature,
    State,
    mask,
    pack_message,
)
from lockgate.plugin.vhost_user.worker import Worker

ACK_OK, ACK_ERROR = 0, 1  # REPLY_ACK: zero or not is all that counts


class Message:
    """One request as it came. `fds` are the caller's to close, except those that a handler takes out."""

    __slots__ = ("header", "payload", "fds")

    def __init__(self, header: Header, payload: bytes, fds: list[int]) -> None:
        self.header = header
        self.payload = payload
        self.fds = fds


@dataclass(frozen=True, slots=True)
class Done:
    """Carried out; acknowledged if the front end asked for it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Carried out, with an answer of the request's own."""

    payload: Payload


@dataclass(frozen=True, slots=True)
class Refused:
    """Not carried out. `reason` is one sentence for people."""

    reason: str
    close: bool = False  # also where the front end could be told


Verdict = Done | Reply | Refused
Effect = Callable[[Worker], Awaitable[Verdict | None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a handler returns."""

    verdict: Verdict
    effect: Effect | None = None  # on the worker, before the verdict holds; may return another one
    again: bool = False  # by the next worker, if this one dies over it


@dataclass(frozen=True, slots=True)
class Answer:
    """What the front end is told about a verdict, and whether the session goes on."""

    reply: bytes | None
    close: bool


def table_fault(message: Message, protocol_features: int, negotiated: bool, started: bool) -> str | None:
    """What the table (messages.REQUESTS) has against this message now, or None."""
    rule = REQUESTS.get(message.header.request)
    if rule is None:
        return "the specification has no such request"
    if rule.handler is None:
        return "it is not implemented, and was not offered"
    size, fds = message.header.size, len(message.fds)
    if not rule.payload.fits(size):
        return f"a payload of {size} bytes, where {rule.payload.expected()} expected"
    least, most = rule.fds
    if not least <= fds <= most:
        return f"{fds} descriptors came with it, where {least if least == most else f'{least} to {most}'} are expected"
    if rule.needs is not None and not protocol_features >> rule.needs & 1:
        return f"the protocol feature {rule.needs.name}, which it belongs to, has not been acknowledged"
    if (rule.state is State.NEGOTIATED and not negotiated) or (rule.state is State.STOPPED and started):
        return f"it is allowed only {rule.state.value}"
    return None


def answer(message: Message, verdict: Verdict, protocol_features: int) -> Answer:
    """What goes out, and whether the connection ends.

    `protocol_features` as they are after the request: User-mode Linux already asks for an ack of the very
    SET_PROTOCOL_FEATURES that acknowledges REPLY_ACK, and waits for it.
    """
    request, flags, _ = message.header
    ack = bool(flags & FLAG_NEED_REPLY) and bool(protocol_features & mask(ProtocolFeature.REPLY_ACK))
    if isinstance(verdict, Reply):
        return Answer(pack_message(request, verdict.payload.pack()), close=False)
    if isinstance(verdict, Done):
        return Answer(pack_message(request, U64(ACK_OK).pack()) if ack else None, close=False)
    rule = REQUESTS.get(request)
    if rule is not None and rule.reply:
        return Answer(None, close=True)  # it would wait for ever, and the answers of such a request cannot say "no"
    if ack:
        return Answer(pack_message(request, U64(ACK_ERROR).pack()), close=verdict.close)
    # Nothing can be said. What we lack, but know that nobody waits for, is left out. A front end that would believe
    # something wrong of its rings or memory, or that waits for who knows what, is better off without us.
    return Answer(None, close=rule is None or rule.handler is not None)
