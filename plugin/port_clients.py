# SPDX-License-Identifier: Apache-2.0
"""All who ask for ports of the host while the helper runs: at --conf-path, and where those meet it who bring containers
into a namespace that they share.

Called by control.py, and imported only if there is such a place. Adversary: nobody here; the servers have theirs.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence

from lockgate.plugin.address import UNSET
from lockgate.plugin.bridge import meeting
from lockgate.plugin.bridge.claims import ClaimedTable
from lockgate.plugin.bridge.meeting_server import MeetingServer
from lockgate.plugin.clients import Emit
from lockgate.plugin.forward_server import ForwardServer
from lockgate.plugin.forward_table import ForwardTable
from lockgate.plugin.netview import Assignments
from lockgate.plugin.ports import Rights


class PortClients:
    """`conf` is the place of --conf-path, if there is one; `view` says what is assigned now. `outward`: of ports that
    lead out of the namespace; None: none can."""

    def __init__(
        self,
        rights: Rights,
        outward: Rights | None,
        table: ForwardTable,
        conf: socket.socket | None,
        meetings: Sequence[socket.socket],
        view: Callable[[], Assignments],
        emit: Emit,
    ) -> None:
        self._rights = rights
        self._conf = conf
        self._meetings = meetings
        self._view = view
        claims = ClaimedTable(table)
        self._forward_server = ForwardServer(rights, claims if meetings else table, emit, outward=outward)
        self._meeting_server = MeetingServer(rights, table, claims, self._facts, emit)

    def serve(self) -> Iterator[Awaitable[None]]:
        """What serves each place; see the servers."""
        if self._conf is not None:
            yield self._forward_server.serve(self._conf)
        for place in self._meetings:
            yield self._meeting_server.serve(place)

    def _facts(self) -> meeting.Facts:
        view, rights = self._view(), self._rights
        routed6 = rights.ipv6 and view.guest6 != UNSET  # else nothing leads back to who comes from the host
        return meeting.Facts(ipv4=rights.ipv4, ipv6=routed6, mtu=view.mtu)
