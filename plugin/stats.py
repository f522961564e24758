# SPDX-License-Identifier: Apache-2.0
"""--stats: the worker's counters as a table on standard error, every so many seconds in which something happened.

Called by control. Adversary: a worker that the guest has broken, which can write any numbers there, and no more: the
page is sealed in its size. Invariants: the names are those of core/datapath/counters.h; nothing is written while all
numbers stay as they are.
"""

from __future__ import annotations

import json
import mmap
import struct
from datetime import UTC, datetime

from lockgate.core._datapath import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.log import Log

NAMES = tuple(ffi.string(lib.lg_counter_name(index)).decode() for index in range(lib.lg_counter_count()))
_COUNTERS = struct.Struct(f"={len(NAMES)}Q")
_WRAP = 1 << 64


class Page:
    """The shared page itself."""

    def __init__(self, counters_fd: int) -> None:
        self._page = mmap.mmap(counters_fd, lib.LG_COUNTER_BYTES, prot=mmap.PROT_READ)

    def read(self) -> Sequence[int]:
        """All counters, in the order of NAMES."""
        return _COUNTERS.unpack_from(self._page)


class Printer:
    """Prints what has changed since the last time."""

    def __init__(self, counters_fd: int, log: Log) -> None:
        self._log = log
        self._page = Page(counters_fd)
        self._before: Sequence[int] = (0,) * len(NAMES)

    def print(self) -> None:
        if found := self.look():
            self._log.event_to_stderr(json_line(found) if self._log.json else table(found))

    def look(self) -> dict[str, tuple[int, int]]:
        """Of each counter that is not 0: all, and what was added; empty if nothing has changed at all."""
        before, now = self._before, self._page.read()
        self._before = now
        if now == before:
            return {}
        found = zip(NAMES, now, before, strict=True)
        return {name: (total, (total - then) % _WRAP) for name, total, then in found if total or then}


def table(found: dict[str, tuple[int, int]]) -> str:
    """For people; `flows` is what there is now, so that what was added may be less than nothing."""
    lines = [f"{'all':>20} {'since then':>20}  counter"]
    for name, (total, added) in found.items():
        shown = added - _WRAP if added >= _WRAP >> 1 else added
        lines.append(f"{total:>20} {shown:>20}  {name}")
    return "\n".join(lines)


def json_line(found: dict[str, tuple[int, int]]) -> str:
    """For programs, as all else on standard error is one object a line then; they subtract by themselves."""
    when = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    totals = {name: total for name, (total, _) in found.items()}
    return json.dumps({"event": "stats", "level": "info", "timestamp": when, "counters": totals})
