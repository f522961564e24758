# SPDX-License-Identifier: Apache-2.0
"""The zones of a virtual network: names that are answered here, and may be added to while it runs.

Called by name_server.py for each query, and by the API (`listing`, `add`). Adversary: the guest, which chooses the
names; the zones are the host's own, but a caller of the API that adds for ever is stopped by the limits.

A name belongs to the first zone in the order of the list whose name is its ending; the zone's own name does not. Of
the zone's records the first that matches counts, by its name or by its pattern, else the zone's default address.

Where this differs from gvisor-tap-vsock, on purpose: case does not matter (RFC 4343; a resolver that mixes it to be
harder to fool, as unbound may, found nothing there), and a zone may be written without the dot at its end. A pattern
matches a name if it matches that as it is written, as there, or in lower case.

Invariant: a look-up costs the labels of the name, and the patterns of one zone (see regexp.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lockgate.plugin.address import UNSET
from lockgate.plugin.gateway.names.regexp import Regexp
from lockgate.plugin.gateway.virtual_network import RECORDS_MAX, Zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lockgate.plugin.gateway.virtual_network import Record

ZONES_MAX = 1024
_SPECIAL = re.compile(rb"[^!-~]|[.\\\"'();@]")  # what is written with a backslash (RFC 1035 §5.1)


class ZoneError(ValueError):
    """A zone that cannot be added."""


class _Names:
    """The records of one zone, for look-ups."""

    __slots__ = ("default", "exact", "name", "patterns", "position", "records")

    def __init__(self, name: str, position: int) -> None:
        self.name = name
        self.position = position  # in the list of zones
        self.default = UNSET
        self.records: tuple[Record, ...] = ()
        self.exact: dict[bytes, tuple[int, bytes]] = {}  # by the left part in lower case
        self.patterns: list[tuple[int, Regexp, bytes]] = []

    def fill(self, records: tuple[Record, ...], patterns: dict[str, Regexp], default: bytes) -> None:
        self.records, self.default = records, default
        self.exact, self.patterns = {}, []
        for place, record in enumerate(records):
            if record.name:
                self.exact.setdefault(_folded(record.name), (place, record.address))
            if record.pattern:
                self.patterns.append((place, patterns[record.pattern], record.address))

    def lookup(self, left: bytes, lowered: bytes) -> bytes:
        place, address = self.exact.get(lowered, (len(self.records), self.default))
        for other, pattern, of_pattern in self.patterns:
            if other >= place:
                break
            if pattern.matches(lowered) or (left != lowered and pattern.matches(left)):
                return of_pattern
        return address


class Zones:
    """All zones. Raises ZoneError or RegexpError for one that cannot be taken, here and in `add`."""

    def __init__(self, zones: Iterable[Zone] = ()) -> None:
        self._list: list[_Names] = []
        self._by_ending: dict[bytes, _Names] = {}
        self._patterns: dict[str, Regexp] = {}
        self._records = 0
        for zone in zones:
            self._append(zone)

    def add(self, zone: Zone) -> None:
        """Adds a zone at the end; or to the one of that name its records, in front, and its default address, which
        replaces the old one also where it is none. Nothing is changed if it cannot be taken."""
        known = self._by_ending.get(_ending(zone.name))
        if known is None:
            self._append(zone)
        else:
            self._fill(known, zone, known.records)

    def _append(self, zone: Zone) -> None:
        if len(self._list) >= ZONES_MAX:
            raise ZoneError(f"zone {zone.name!r} is one too many: there are {ZONES_MAX}")
        names = _Names(zone.name, len(self._list))
        self._fill(names, zone, ())
        self._list.append(names)
        self._by_ending.setdefault(_ending(zone.name), names)  # a later one of that name is listed, and never asked

    def _fill(self, names: _Names, zone: Zone, behind: tuple[Record, ...]) -> None:
        records = tuple(zone.records)
        if self._records + len(records) > RECORDS_MAX:
            raise ZoneError(f"zone {zone.name!r} has {len(records)} records: all zones have room for {RECORDS_MAX}")
        new = {one.pattern for one in records if one.pattern} - self._patterns.keys()
        self._patterns |= {pattern: Regexp(pattern) for pattern in new}
        names.fill(records + behind, self._patterns, zone.default_address)
        self._records += len(records)

    def lookup(self, labels: Sequence[bytes]) -> bytes | None:
        """The address of a name, given by its labels. UNSET: there is no such name. None: it belongs to no zone."""
        name = b".".join(labels)
        if len(labels) != name.count(b".") + 1 or _SPECIAL.search(name.replace(b".", b"")):
            labels = [_escaped(label) for label in labels]
            name = b".".join(labels)
        lowered = name.lower()
        start, left, found = 0, 0, None
        for label in labels:
            start += len(label) + 1
            zone = self._by_ending.get(lowered[start:])
            if zone is not None and (found is None or zone.position < found.position):
                found, left = zone, start - 1
        return None if found is None else found.lookup(name[:left], lowered[:left])

    def all(self) -> list[Zone]:
        """As they are now, in the order in which they count."""
        return [Zone(zone.name, zone.records, zone.default) for zone in self._list]


def _folded(name: str) -> bytes:
    return name.lower().encode("utf-8", "replace")


def _ending(zone: str) -> bytes:
    """Of all that belongs to it; empty: the root, to which everything does."""
    return _folded(zone.removesuffix("."))


def _escaped(label: bytes) -> bytes:
    """As a label is written in a zone file: with it, a dot inside of a label is none between two of them."""

    def escape(found: re.Match[bytes]) -> bytes:
        code = found[0][0]
        return b"\\" + found[0] if 0x21 <= code <= 0x7E else b"\\%03d" % code

    return _SPECIAL.sub(escape, label)
