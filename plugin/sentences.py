# SPDX-License-Identifier: Apache-2.0
"""What is said of events to people who do not debug, and how often.

Used by control.py. Adversary: whoever causes events, a guest or a front end: no disk is filled by what is said of them.
"""

from __future__ import annotations

# Lines of one kind within a second, so that no front end or guest can fill a disk; what is left out is counted.
_LINES_A_SECOND = 5

# Level and sentence, by event.
SENTENCES = {
    "link.attach": ("info", "The guest's network is up"),
    "link.detach": ("info", "The guest's network is down: {reason}"),
    "link.refused": ("warning", "Monitor: {request} refused: {reason}"),
    "link.failed": ("warning", "Monitor: {reason}"),
    "network.change": ("info", "The host's network has changed, and the guest's assignments with it"),
    "network.failed": ("warning", "The host's network cannot be followed: {reason}; the guest keeps what it has"),
    "network.lost": ("info", "The host has lost its network ({reason}); the guest keeps what it has"),
    "network.found": ("info", "The host has a network again"),
    "ring.stopped": ("warning", "The guest broke ring {ring} ({reason}): no network until it resets the device"),
    "ping.refused": (
        "warning",
        "Pings of the guest cannot leave: {error}; the group of this process must be within net.ipv4.ping_group_range "
        '(sysctl -w net.ipv4.ping_group_range="0 2147483647"). The gateway itself answers',
    ),
    "flows.full": (
        "warning",
        "The guest has {limit} connections at once, all that the limit on open files allows: new ones are refused "
        "(ulimit -n, or LimitNOFILE= of a systemd unit)",
    ),
    # gvproxy's line for it, which people look for.
    "flow.unanswered": (
        "info",
        'tcpproxy: for incoming conn {peer}, error dialing "{guest}": {error}',
    ),
    "migration.saved": ("info", "The guest moves to another host with {flows} connections; {left} cannot move"),
    "migration.loaded": (
        "info",
        "The guest comes from another host with {flows} connections; {lost} are lost {reason}",
    ),
    "migration.resumed": ("info", "The guest has not moved: {flows} connections go on here"),
    "migration.failed": ("warning", "Migration: {reason}"),
    "forwards.replaced": ("info", "Forwards of the host's ports, by process {client}: {table}"),
    "forwards.refused": ("warning", "Forwards stay as they are: the table of process {client} is refused: {reason}"),
    "forwards.failed": ("warning", "{reason}"),
    "forwards.followed": ("info", "Ports of the {side} follow what listens: {opened} opened, {closed} closed"),
    "forwards.missed": ("info", "Ports of the {side} cannot follow what listens: {ports}"),
    "meeting.refused": ("warning", "Process {client} is refused: {reason}"),
    "descriptors.short": (
        "warning",
        "Of {limit} open files the last {kept} are kept for clients of the API: names that guests ask for, their "
        "connections to the gateway, and tunnels find none left (ulimit -n, or LimitNOFILE= of a systemd unit)",
    ),
    "http.refused": ("warning", "The API: {reason}"),
    "relay.failed": ("warning", "A client of {local} found nobody at {remote}: {reason}"),
    "notification.failed": ("warning", "Nobody at {path} hears what becomes of guests: {reason}"),
    "link.parked": ("warning", "Monitor: ring {ring} does not run: {reason}"),
}


class LineLimit:
    """At most so many lines of a kind a second; a pure object, the clock comes with the question."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, int]] = {}

    def allows(self, kind: str, now: float) -> bool:
        since, count = self._spent.get(kind, (now, 0))
        if now - since >= 1.0:
            since, count = now, 0
        self._spent[kind] = (since, count + 1)
        return count < _LINES_A_SECOND
