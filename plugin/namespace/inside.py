# SPDX-License-Identifier: Apache-2.0
"""What control holds of a namespace: its tap device, its agent, and the lists of who listens there.

Made by link_namespace.py, which knows how all this was opened; used by control. Adversary: nobody here, what the
container can do is agent.py's matter.
"""

from __future__ import annotations

import _socket

from lockgate.plugin import address, ports
from lockgate.plugin.forward_rule import TCP
from lockgate.plugin.namespace import agent_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.namespace.agent_records import Agent
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.port_scan import Tables


class Device:
    """A tap device that is set up: its descriptor, and what its namespace is seen by, before it has sent anything."""

    __slots__ = ("fd", "ours", "seen", "uso")

    def __init__(self, fd: int, uso: bool, seen: bytes, *, ours: bool) -> None:
        self.fd = fd
        self.uso = uso  # it takes and gives several datagrams in one frame
        self.seen = seen  # a whole lg_seen
        self.ours = ours  # it has the addresses that we gave it, and has others as soon as we say so

    def follow(self, view: Assignments) -> None:
        """It has these now: the next worker is told so."""
        from lockgate.core import channel

        seen = channel.Seen(self.seen)
        self.seen = channel.pack_seen(seen.mac, view.guest4, view.guest6, seen.link_local)


class Inside:
    """Frozen by convention."""

    __slots__ = ("_agent", "_splices", "device", "tables")

    def __init__(
        self, agent: Agent, device: Device | None, splices: bool, tables: tuple[Tables, Tables] | None
    ) -> None:
        self._agent = agent
        self._splices = splices  # whether workers ask for sockets that are made there
        self.device = device  # None: there is loopback only
        self.tables = tables  # who listens there, and on the host; None: no ports follow that

    def watch(self, loop: AbstractEventLoop, warn: Callable[[str], None]) -> None:
        """Says once when the agent has ended. It speaks only when asked, and whoever asks waits for the answer."""
        channel = self._agent.channel

        def ended() -> None:
            loop.remove_reader(channel)
            warn(
                "The namespace agent has ended: the namespace keeps the network that it has, and what comes to the "
                "host's loopback does not reach it any more; start the container again"
            )

        loop.add_reader(channel, ended)

    def outward_rights(self, rights: ports.Rights) -> ports.Rights:
        """What may lead out of the namespace, where these may lead into it: also with --no-splice, which is about the
        way in."""
        four, six = rights.ipv4, rights.ipv6
        protocols, follows = rights.protocols, self.tables is not None
        return ports.Rights(ipv4=four, ipv6=six, protocols=protocols, room=rights.room, auto=follows)

    def open_worker_channel(self) -> _socket.socket | None:
        """To the agent, for the next worker; None: it is to have none. Raises AgentError."""
        return self._agent.open_worker_channel() if self._splices else None

    def ask_ports(self, kind: bytes, rule: ForwardRule, first: int, count: int) -> tuple[list[int], list[int]]:
        """forward_table.Ask, answered at once. We alone hold what leads out of the namespace: to close it, nobody has
        to be asked."""
        if kind != ports.OPEN:
            return [0] * count, []
        opened = open_ports(self._agent, rule, first, count)
        return [max(0, -fd) for fd in opened], [fd for fd in opened if fd >= 0]


def open_ports(agent: Agent, rule: ForwardRule, first: int, count: int) -> list[int]:
    """forwards.OpenPorts, for ports that lead out of a namespace."""
    ipv4 = address.is_ipv4(rule.listen)
    flags = agent_records.BIND | agent_records.LOOPBACK
    flags |= agent_records.LISTEN if rule.protocol == TCP else 0
    flags |= agent_records.DUAL_STACK if rule.dual_stack else 0
    family = _socket.AF_INET if ipv4 else _socket.AF_INET6
    return agent.open_sockets(agent_records.SocketsWanted(family, rule.protocol, count, flags=flags, first=first))
