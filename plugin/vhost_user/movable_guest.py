# SPDX-License-Identifier: Apache-2.0
"""A guest behind a vhost-user front end: the session's server, and what takes its connections to another host.

Called by control.py, which imports it for such a link alone: all that hangs on it takes 0.4 MB. Adversary: as in
server.py and migration/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.plugin.migration.move import Mover
from lockgate.plugin.migration.repair import RepairHelper
from lockgate.plugin.migration.stream import Seen
from lockgate.plugin.vhost_user.server import VhostUserServer

if TYPE_CHECKING:
    from lockgate.core import channel
    from lockgate.plugin.clients import Emit
    from lockgate.plugin.control_start import Start
    from lockgate.plugin.worker_channels import WorkerChannels


class MovableGuest:
    """One front end at a time, one worker at a time."""

    def __init__(self, start: Start, worker: WorkerChannels, emit: Emit) -> None:
        self.repair = RepairHelper(start.repair, emit)
        self._mover = Mover(worker, self.repair, emit, start.view.scope_id, start.migrate_linger)
        self.server = VhostUserServer(worker, emit, self._mover)

    def has_other_worker(self, worker: WorkerChannels) -> None:
        """The server hears of it by its resume()."""
        self._mover.worker = worker

    def has_shown(self, seen: channel.Seen) -> None:
        """Its addresses."""
        self._mover.seen = Seen(seen.addr6, seen.link_local, seen.addr4, seen.mac)

    @property
    def has_left(self) -> bool:
        """For another host."""
        return self._mover.has_left
