# SPDX-License-Identifier: Apache-2.0
"""What control is started with.

Made by start.py in the child that becomes control, and read by control.py. Adversary: nobody.
"""

from __future__ import annotations

import socket

from lockgate.core._datapath import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.forwards import Listener
    from lockgate.plugin.gateway.links.link_virtual import GatewayStart
    from lockgate.plugin.log import Log
    from lockgate.plugin.namespace.inside import Inside
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.ports import Rights


class Start:
    """What control is started with; frozen by convention."""

    __slots__ = (
        "log",
        "view",
        "link",
        "inside",
        "vhost_user",
        "one_off",
        "trace",
        "capture_fd",
        "stats_seconds",
        "forwards",
        "reassign",
        "reach",
        "repair",
        "migrate_exit",
        "migrate_linger",
        "rules",
        "conf",
        "port_rights",
        "room",
        "told",
        "meetings",
        "gateway",
    )

    def __init__(
        self,
        log: Log,
        view: Assignments,
        link_fd: int,
        vhost_user: bool,
        one_off: bool,
        trace: bool,
        capture_fd: int,
        stats_seconds: int = 0,
        forwards: Sequence[Listener] = (),
        reassign: Callable[[Assignments], tuple[Assignments, int]] | None = None,
        reach: int = 0,
        repair_fd: int = -1,
        migrate_exit: bool = False,
        migrate_linger: bool = True,
        rules: Sequence[ForwardRule] = (),
        conf_fd: int = -1,
        port_rights: Rights | None = None,
        inside: Inside | None = None,
        room: int = lib.LG_LISTEN_SLOTS,
        told: bool = False,
        meetings: Sequence[Any] = (),
        gateway: GatewayStart | None = None,
    ) -> None:
        self.log = log
        self.view = view  # as assigned at the start
        # Looks at the host again, with what was assigned before; and whom it reaches now. None: it is not followed.
        self.reassign = reassign
        self.reach = reach  # at the start, one of hostnet.REACH_*
        # Listening, or connected to the one front end; -1 and None: there is a namespace.
        self.link = None if link_fd < 0 else socket.socket(fileno=link_fd)
        self.vhost_user = vhost_user  # else a stream of frames
        self.inside = inside
        self.one_off = one_off
        self.trace = trace
        self.capture_fd = capture_fd  # the file; -1: none
        self.stats_seconds = stats_seconds  # how often counters are printed; 0: never
        self.forwards = forwards  # each worker gets a copy of their sockets
        self.repair = None if repair_fd < 0 else socket.socket(fileno=repair_fd)  # listening, for the repair helper
        self.migrate_exit = migrate_exit  # when the guest has moved away, and its monitor has gone
        self.migrate_linger = migrate_linger  # connections that have moved away keep their sockets
        self.rules = rules  # what these were bound for
        self.conf = None if conf_fd < 0 else socket.socket(fileno=conf_fd)  # where others are asked for
        self.port_rights = port_rights  # what may be asked for there
        self.room = room  # sockets that listen, at once
        self.told = told  # whether the first worker has been told all, by first_words.py
        # Where those come who bring containers into a namespace that they share, and ask for their ports.
        self.meetings = [owned(one) for one in meetings]
        self.gateway = gateway  # of a virtual network; None: there is no such


def owned(raw: Any) -> socket.socket:
    """The same descriptor as an object of the socket module, which the keeper does not import."""
    return socket.socket(fileno=raw.detach())
