# SPDX-License-Identifier: Apache-2.0
"""link_namespace: the tap device in a network namespace, and the agent that has made it there.

Called by launch.py: start() in the process that stays, with the caller's rights; follow() in control, when the host's
network has changed. Adversary: nobody here; what the container can do is agent.py's and link_tap.c's matter.
Invariants: all that can be wrong with the namespace is known, and told in one sentence, before the caller goes on.
"""

from __future__ import annotations

import resource

from lockgate.plugin import agent, agent_records, hostnet, namespace
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.namespace_watch import NamespaceWatch
from lockgate.plugin.tap_device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.log import Log
    from lockgate.plugin.made_files import MadeFiles
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.new_namespace import Command
    from lockgate.plugin.spec import NetworkSpec

_USO = 0x20 | 0x40  # TUN_F_USO4, TUN_F_USO6


class NamespaceLink:
    """Of `pasta`."""

    resumable = True  # another worker gets the same device
    listeners: list[_socket.socket] = []
    hint = ""

    def __init__(self, spec: NetworkSpec) -> None:
        assert spec.namespace is not None, "a tap is in a namespace"
        self._spec = spec
        self._wanted = spec.namespace
        self._target = agent.Target(spec.namespace.path, spec.namespace.userns)
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # before it is raised
        self.command: Command | None = None  # what the namespace is made for
        self._agent: agent_records.Agent | None = None
        self._plan: namespace.Plan | None = None
        self.watch: NamespaceWatch | None = None
        self.name = spec.namespace.path or "a new namespace"

    def open(self, made: MadeFiles, log: Log) -> None:
        """Nothing that the caller sees, but for the command, which waits."""
        if any(not rule.auto for rule in self._wanted.forwards):
            raise vocabulary.StartError("Ports of the namespace that lead to the host (-T, -U) are not built yet")
        if self._wanted.splice_only:
            raise vocabulary.StartError("--splice-only is not built yet")
        if any(rule.auto for rule in (*self._spec.forwards, *self._wanted.forwards)):
            log.info("Ports that follow what listens (auto) are not built yet: none are forwarded")
        if self._wanted.is_new:
            from lockgate.plugin.new_namespace import Command

            self.command = Command(self._spec, self._descriptors)
            self._target = agent.Target(self.command.netns, self.command.userns)
            if self.command.note:
                log.warning(f"In the namespace: {self.command.note}")

    def start(self, process_name: str, view: Assignments, host: HostNet, log: Log) -> None:
        """Makes the device and gives it addresses and routes. The agent dies with the process that calls this."""
        wanted = self._wanted
        try:
            if wanted.config_net:
                self._plan = namespace.plan(self._spec, host)
            name = wanted.ns_ifname or namespace.name(self._spec, host)
            interface = agent.Interface(name, self._plan, wanted.ns_mac or b"")
            self._agent = agent.start(self._target, interface, f"{process_name}-agent")
            self._ready, self._tap, _ = self._agent.wait_ready()
        except (agent_records.AgentError, hostnet.InterfaceError) as fault:
            raise vocabulary.StartError(str(fault)) from None
        except OSError as failure:
            raise vocabulary.StartError(f"The namespace agent cannot be started: {failure.strerror}") from None
        if wanted.quit_when_gone and not wanted.is_new:
            try:
                self.watch = NamespaceWatch(wanted.path)
            except OSError as failure:
                log.warning(f"The end of namespace {wanted.path} cannot be watched for: {failure.strerror}")
        self._seen = self._ready.mac, view.guest4, view.guest6, self._ready.link_local
        if self._ready.note:
            log.warning(f"In the namespace: {self._ready.note}")

    @property
    def connections(self) -> list[_socket.socket]:
        """Control's alone, once it has started."""
        return [] if self._agent is None else [self._agent.channel]

    @property
    def descriptors(self) -> list[int]:
        """That control keeps."""
        assert self._agent is not None, "start() comes first"
        return [self._tap, self._agent.channel.fileno()]

    def settings(self) -> dict[str, Any]:
        """For control.Start, in control's process."""
        from lockgate.core import channel

        seen = channel.pack_seen(*self._seen)
        return {
            "link_fd": -1,
            "vhost_user": False,
            "device": Device(self._tap, self._ready.offloads & _USO == _USO, seen),
        }

    def follow(self, host: HostNet, log: Log) -> None:
        """The host's network has changed: so does the namespace's."""
        if self._plan is None or self._agent is None:
            return
        plan = namespace.plan(self._spec, host)
        request = agent_records.pack_plan(plan)
        if request == agent_records.pack_plan(self._plan):
            return
        self._plan = plan
        answer = agent_records.parse_answer(self._agent.ask(request)[0])
        if answer is None:
            log.warning("The namespace agent is gone: the namespace keeps the network that it has")
        elif answer[0]:
            log.warning(f"In the namespace: {answer[1]}")
