# SPDX-License-Identifier: Apache-2.0
"""Answers of the host's resolvers, kept for as long as they say.

Called by upstream.py. Adversary: the guest, which chooses what is asked and so what is kept. Invariants: at most
ENTRIES_MAX answers and BYTES_MAX bytes; the one that was not asked for the longest makes room. Pure: time is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.plugin.gateway.names.dns_message import lifetime

if TYPE_CHECKING:
    from lockgate.plugin.gateway.names.dns_message import Lifetime, Query

ENTRIES_MAX = 1024  # a page of the web asks for some dozens
BYTES_MAX = 256 << 10  # of keys and answers
_SECONDS_MAX = 3600  # kept, whatever they say; who asks is told what they say


class _Entry:
    __slots__ = ("answer", "life", "since")

    def __init__(self, answer: bytes, life: Lifetime, since: float) -> None:
        self.answer = answer
        self.life = life
        self.since = since


class DnsCache:
    """Answers, by the `key` of queries."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}  # the longest unused first
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, query: Query, answer: bytes, now: float) -> None:
        """Keeps an answer that may be kept."""
        life = lifetime(answer, query)
        if life is None or len(answer) + len(query.key) > BYTES_MAX:
            return
        key = query.key
        self._drop(key)
        self._entries[key] = _Entry(answer, life, now)
        self._size += len(key) + len(answer)
        while len(self._entries) > ENTRIES_MAX or self._size > BYTES_MAX:
            self._drop(next(iter(self._entries)))

    def get(self, key: bytes, now: float) -> bytes | None:
        """The answer, with the time that is left to it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age = int(now - entry.since)
        if age >= min(entry.life.seconds, _SECONDS_MAX):
            self._drop(key)
            return None
        self._entries[key] = self._entries.pop(key)
        aged = bytearray(entry.answer)
        for place in entry.life.places:
            left = int.from_bytes(aged[place : place + 4]) - age
            aged[place : place + 4] = left.to_bytes(4)
        return bytes(aged)

    def clear(self) -> None:
        self._entries.clear()
        self._size = 0

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= len(key) + len(entry.answer)
