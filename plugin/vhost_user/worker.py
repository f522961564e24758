# SPDX-License-Identifier: Apache-2.0
"""worker: what the session asks of the worker.

Implemented over the cmd channel by the control process; called by session.py. Each call is one command of datapath.h
and returns when the worker has answered it.

Adversary: nobody; the worker is ours. But it parses what the guest sends, and may die at any moment.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from lockgate.plugin.vhost_user.memory import SharedRegion
    from lockgate.plugin.vhost_user.messages import Region
    from lockgate.plugin.vhost_user.vring import VringStart
else:
    Protocol = object


class WorkerError(Exception):
    """The worker answered a command with an errno, and has not carried it out."""

    def __init__(self, error: int) -> None:
        super().__init__(f"{errno.errorcode.get(error, str(error))}: {os.strerror(error)}")
        self.error = error


class WorkerGone(Exception):
    """The worker died before it answered. Raised from each call that waits, and from every later one."""


class StateTransfer(Protocol):
    """Who moves the guest's connections to another host, or takes them over from there; see plugin/migration."""

    def begin(self, direction: int, fd: int) -> str | None:
        """Starts to save to (0), or to load from (1), a descriptor, which is taken over. Why not, or None."""

    async def result(self) -> int:
        """0 or an errno, once what was begun last has ended."""

    def abandon(self) -> None:
        """Nobody waits for what was begun any more."""

    async def link_starts(self) -> None:
        """A ring is about to be started."""

    async def session_ended(self) -> None:
        """The front end has gone, whatever it had begun."""


class Worker(Protocol):
    """One worker's life. Descriptors are lent for the length of a call; the caller keeps its own."""

    async def link_features(self, features: int) -> None:
        """The virtio feature bits that were acknowledged."""

    async def link_reset(self) -> None:
        """Stops the rings, lets go of all memory and of the log, forgets the features. Flows stay."""

    async def mem_table(self, regions: Sequence[SharedRegion]) -> None:
        """Replaces all regions. No ring is active."""

    async def mem_add(self, region: SharedRegion) -> None:
        """One region more; rings may be active."""

    async def mem_remove(self, region: Region) -> None:
        """Lets go of one region, in which no active ring lies."""

    async def vring_start(self, ring: VringStart) -> None:
        """Runs a ring that is not active."""

    async def vring_stop(self, index: int) -> int:
        """Stops an active ring; its next avail index."""

    async def vring_enable(self, index: int, enabled: bool) -> None:
        """Of an active ring."""

    async def vring_call(self, index: int, fd: int | None) -> None:
        """A new call descriptor for an active ring, or none."""

    async def vring_err(self, index: int, fd: int | None) -> None:
        """A new err descriptor for an active ring, or none."""

    async def dirty_log(self, fd: int | None, size: int, offset: int, event_fd: int | None) -> None:
        """Where pages that are written are marked, as long as LOG_ALL is acknowledged; None: nowhere."""
