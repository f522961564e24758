# SPDX-License-Identifier: Apache-2.0
"""The host's neighbours, mirrored: the guest sees a machine of the host's network under its own MAC address.

`choose` says which of the host's entries are mirrored, `Mirror` what the worker is told of them, both pure;
`Neighbours` is the asyncio shell, made by control while it can still open what it needs. What came or changed is
announced to the guest by control (services/neighbour.py).

Adversary: whoever is on the host's network and makes up neighbours by the thousand. The table is read at the pace
of netlink_watch.py, and never more of it than ENTRIES_MAX is kept, in which what is there already goes first, so that a
flood pushes nobody out. Nobody there can be what the guest must find at us: the host under its mapped address, the
guest itself, and its router as advertised.
"""

from __future__ import annotations

import _socket
import struct

from lockgate.plugin import address, netlink
from lockgate.plugin.netlink_watch import NetlinkWatch, Pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lockgate.plugin.netview import Assignments

ENTRIES_MAX = 504  # of LG_NEIGHBOURS_MAX = 512, which has to have room for those that are pinned to us, too

_ENTRY = struct.Struct("=16s6s2x")  # struct lg_neighbour
_MAC_BYTES = 6
_MAC_GROUP = 1
_NO_MAC = bytes(_MAC_BYTES)


def choose(found: Iterable[netlink.Neighbour], before: Mapping[bytes, bytes], view: Assignments) -> dict[bytes, bytes]:
    """MAC by address: the neighbours that can be shown to the guest as they are, those of `before` first."""
    ours = pinned(view)
    usable = {
        one.address: one.mac
        for one in found
        if one.state & netlink.NEIGHBOUR_KNOWN
        and len(one.mac) == _MAC_BYTES
        and one.mac != _NO_MAC
        and not one.mac[0] & _MAC_GROUP
        and not address.is_unspecified(one.address)
        and not address.is_multicast(one.address)
        and not address.is_loopback(one.address)
        and one.address not in (view.guest4, view.guest6)
        and one.address not in ours
    }
    order = sorted(usable, key=lambda one: one not in before)  # stable: else in the kernel's order
    return {one: usable[one] for one in order[:ENTRIES_MAX]}


def pinned(view: Assignments) -> set[bytes]:
    """What the guest finds at us, whoever has it outside."""
    ours = {view.map_host4, view.map_host6, view.map_guest4, view.map_guest6, view.our_link_local}
    return ours - {address.UNSET}


class Mirror:
    """The whole table for the worker. What is not in it is behind the router of its family, if that is a neighbour that
    the guest may know; else it is at us."""

    __slots__ = ("count", "others4", "others6", "packed")

    def __init__(self, entries: Mapping[bytes, bytes], view: Assignments) -> None:
        self.others4 = entries.get(view.gateway4, view.our_mac)
        self.others6 = entries.get(view.gateway6, view.our_mac)
        table = {**entries, **dict.fromkeys(pinned(view), view.our_mac)}
        self.count = len(table)
        self.packed = b"".join(_ENTRY.pack(one, table[one]) for one in sorted(table))


def interfaces(view: Assignments) -> set[int]:
    """The interfaces whose neighbours the guest's are, by number; in local mode none."""
    found = {view.scope_id} - {0}
    try:
        if view.interface4:
            found.add(_socket.if_nametoindex(view.interface4))
    except OSError:
        pass  # it is gone, and so are its neighbours
    return found


class Neighbours:
    """Calls `changed` when the table may be another than at the last `look`. `entries` is what was mirrored last."""

    def __init__(self) -> None:
        self._watch = NetlinkWatch(netlink.NEIGHBOURS_GROUP)
        self.entries: dict[bytes, bytes] = {}

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._watch.start(Pace(self._look).ask)

    def look(self, view: Assignments) -> dict[bytes, bytes]:
        """What is new since the last look, by address. Raises OSError."""
        found: list[netlink.Neighbour] = []
        for index in interfaces(view):
            asking = netlink.open_socket()
            try:
                there = netlink.dump(asking, netlink.neighbour_request(1, index)).neighbours
            finally:
                asking.close()
            found += [one for one in there if one.index == index]
        now = choose(found, self.entries, view)
        new = {one: mac for one, mac in now.items() if self.entries.get(one) != mac}
        self.entries = now
        return new

    def _look(self) -> None:
        self._watch.hear_again()
        self._changed()
