# SPDX-License-Identifier: Apache-2.0
"""link_namespace: the tap device in a network namespace, the agent that has made it there, and the ports that lead out.

Called by start.py: start() in the process that stays, with the caller's rights; follow() in control, when the host's
network has changed. Adversary: nobody here; what the container can do is agent.py's and link_tap.c's matter.
Invariants: all that can be wrong with the namespace is known, and told in one sentence, before the caller goes on.
"""

from __future__ import annotations

import _socket
import os
import resource

from lockgate.plugin import forwards, hostnet, port_scan
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.bridge import meeting
from lockgate.plugin.forward_rule import TCP, UDP
from lockgate.plugin.made_files import FileError
from lockgate.plugin.namespace import agent, agent_records, inside, interface_plan
from lockgate.plugin.namespace.namespace_watch import NamespaceWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.forwards import Listener, OpenPorts
    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.keeper import Closable
    from lockgate.plugin.log import Log
    from lockgate.plugin.made_files import MadeFiles
    from lockgate.plugin.namespace.new_namespace import Command
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec

_USO = 0x20 | 0x40  # TUN_F_USO4, TUN_F_USO6
_MEETING_BACKLOG = 128


class NamespaceLink:
    """Of `pasta`."""

    resumable = True  # another worker gets the same device
    hint = ""

    def __init__(self, spec: NetworkSpec) -> None:
        assert spec.namespace is not None, "a tap is in a namespace"
        self._spec = spec
        self._wanted = spec.namespace
        self._target = agent.Target(spec.namespace.path, spec.namespace.userns)
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # before it is raised
        self.command: Command | None = None  # what the namespace is made for
        self._agent: agent_records.Agent | None = None
        self._plan: interface_plan.Plan | None = None
        self._tables: tuple[port_scan.Tables, port_scan.Tables] | None = None  # inside, and on the host
        self.outward: list[Listener] = []  # those that lead out of the namespace
        self.listeners: list[_socket.socket] = []  # where those meet us who bring containers into a shared namespace
        self.watch: NamespaceWatch | None = None
        self.name = spec.namespace.path or "a new namespace"

    def open(self, made: MadeFiles, log: Log) -> None:
        """What the caller sees: the command, which waits; and the place on the host where ports are asked for, beside a
        namespace that containers share. Nobody waits for that who starts us: it is no reason not to start."""
        if self._wanted.is_new:
            from lockgate.plugin.namespace.new_namespace import Command

            self.command = Command(self._spec, self._descriptors)
            self._target = agent.Target(self.command.netns, self.command.userns)
            if self.command.note:
                log.warning(f"In the namespace: {self.command.note}")
        if self._wanted.is_shared:
            path = os.path.join(os.path.dirname(self._wanted.path), meeting.FILE)
            try:
                self.listeners.append(made.listen(path, "Socket path", _MEETING_BACKLOG, _socket.SOCK_SEQPACKET))
            except FileError as fault:
                log.warning(f"{fault}; ports of containers go through Podman's own rootlessport")

    def start(self, process_name: str, view: Assignments, host: HostNet, log: Log) -> None:
        """Makes the device and gives it addresses and routes. The agent dies with the process that calls this."""
        wanted = self._wanted
        follows = any(rule.auto for rule in (*self._spec.forwards, *wanted.forwards))
        lists = port_scan.ways() if follows else []
        try:
            interface = self._plan_interface(host)
            self._agent = agent.start(self._target, interface, f"{process_name}-agent", lists)
            self._ready, self._tap, files = self._agent.wait_ready()
            if lists:
                self._tables = port_scan.opened(lists, files), port_scan.opened_here(lists)
        except (agent_records.AgentError, hostnet.InterfaceError) as fault:
            raise vocabulary.StartError(str(fault)) from None
        except OSError as failure:
            raise vocabulary.StartError(f"The namespace agent cannot be started: {failure.strerror}") from None
        if wanted.quit_when_gone and not wanted.is_new:
            try:
                self.watch = NamespaceWatch(wanted.path)
            except OSError as failure:
                log.warning(f"The end of namespace {wanted.path} cannot be watched for: {failure.strerror}")
            else:
                if self.watch.gone():  # which nothing will tell
                    raise vocabulary.StartError(f"Network namespace {wanted.path} has been removed meanwhile")
        if wanted.is_shared:
            self._open_meeting(log)
        self._seen = self._ready.mac, view.guest4, view.guest6, self._ready.link_local
        if self._ready.note:  # a route of the host's that leads nowhere, a namespace without IPv6: no fault of a start
            log.info(f"In the namespace: {self._ready.note}")

    def _plan_interface(self, host: HostNet) -> agent.Interface:
        wanted = self._wanted
        if wanted.splice_only:
            return agent.Interface("", None)
        if wanted.config_net:
            self._plan = interface_plan.plan(self._spec, host)
        name = wanted.ns_ifname or interface_plan.name(self._spec, host)
        return agent.Interface(name, self._plan, wanted.ns_mac or b"")

    def open_ports(self, bound: Sequence[Listener], room: int, warn: Callable[[str], None]) -> list[Listener]:
        """Those that lead out of the namespace, and those that follow what listens. `bound` are on the host already;
        returns what is there beside them now. `room`: descriptors for all of these."""
        inner, left = self._open_inside, room - len(bound)
        try:
            rules = [rule for rule in self._wanted.forwards if not rule.auto]
            self.outward = forwards.bind(rules, left, warn, inner)
        except forwards.ForwardError as fault:
            raise vocabulary.StartError(str(fault)) from None
        if self._tables is None:
            return []
        for tables in self._tables:
            tables.look()
        outer = forwards.on_host(self._spec.freebind)
        left -= len(self.outward)
        more = _follow(self._spec.forwards, self._tables[0], self.outward, left, outer)
        bound = [*bound, *more]
        self.outward += _follow(self._wanted.forwards, self._tables[1], bound, left - len(more), inner)
        return more

    def _open_inside(self, rule: ForwardRule, first: int, count: int) -> list[int]:
        return inside.open_ports(self._running, rule, first, count)

    def _open_meeting(self, log: Log) -> None:
        """The same place for those who are in the namespace."""
        record, fds = self._running.ask(agent_records.MEETING)
        errors = agent_records.parse_results(record, len(fds)) or [0]
        self.listeners += [_socket.socket(fileno=fd) for fd in fds]
        if not fds:
            log.warning(f"Networks of the driver lockgate cannot be joined: {os.strerror(errors[0])}")

    @property
    def _running(self) -> agent_records.Agent:
        assert self._agent is not None, "start() comes first"
        return self._agent

    @property
    def connections(self) -> list[Closable]:
        """Control's alone, once it has started."""
        sockets = [_socket.socket(fileno=one.fd) for one in self.outward]
        return [self._running.channel, *sockets, *(self._tables or ())]

    @property
    def descriptors(self) -> list[int]:
        """That control keeps."""
        files = [fd for tables in self._tables or () for fd in tables.descriptors]
        meetings = [one.fileno() for one in self.listeners]
        return [self._tap, self._running.channel.fileno(), *files, *(one.fd for one in self.outward), *meetings]

    def settings(self) -> dict[str, Any]:
        """For control_start.Start, in control's process."""
        from lockgate.core import channel

        device = None
        if self._tap >= 0:
            uso, seen = self._ready.offloads & _USO == _USO, channel.pack_seen(*self._seen)
            device = inside.Device(self._tap, uso, seen, ours=self._plan is not None)
        splices = not self._wanted.no_splice
        return {
            "link_fd": -1,
            "vhost_user": False,
            "inside": inside.Inside(self._running, device, splices, self._tables),
            "meetings": self.listeners,
        }

    def make_spawner(self, warn: Callable[[str], None], may_reach: Callable[[int], bool]) -> None:
        """Nothing here needs ssh."""

    def follow(self, host: HostNet, before: Assignments, log: Log) -> None:
        """The host's network has changed: so does the namespace's."""
        if self._plan is None or self._agent is None:
            return
        plan = interface_plan.plan(self._spec, host, (before.guest4, before.guest6))
        request = agent_records.pack_plan(plan)
        if request == agent_records.pack_plan(self._plan):
            return
        self._plan = plan
        answer = self._agent.ask_for_answer(request)
        if answer is None:
            log.warning("The namespace agent is gone: the namespace keeps the network that it has")
        elif answer[0]:
            log.warning(f"In the namespace: {answer[1]}")


def _follow(
    rules: Iterable[ForwardRule], where: port_scan.Tables, ours: Iterable[Listener], room: int, open_ports: OpenPorts
) -> list[Listener]:
    """What can be had of it. What cannot is told by control, which tries again."""
    own = {wanted: {one.port for one in ours if one.rule.protocol == wanted} for wanted in (TCP, UDP)}
    others: Mapping[int, AbstractSet[int]] = port_scan.others(where.seen, own)
    wanted = [(rule, rule.ports_led_to(others[rule.protocol])) for rule in rules if rule.auto]
    return forwards.bind_some(wanted, room, open_ports)
