# SPDX-License-Identifier: Apache-2.0
"""What a virtual network's gateway has open before READY: the sockets of its API, and what its forwards by SSH need.

Called by start.py (through link_virtual.py) with the caller's rights, and handed to control's process and to the
keeper. The caller does not wait for what is opened here (awaited.py). Adversary: nobody; the contract has checked what
was asked for.
"""

from __future__ import annotations

import _socket
import os

from lockgate.plugin import address
from lockgate.plugin.forward_rule import TCP, ForwardRule
from lockgate.plugin.forwards import Listener
from lockgate.plugin.gateway.ssh import key_file, ssh_child
from lockgate.plugin.gateway.ssh.ssh_spawner import SshSpawner
from lockgate.plugin.made_files import FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lockgate.plugin.gateway.awaited import Awaited
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork
    from lockgate.plugin.made_files import MadeFiles

SSH_PORT = 22  # of the guest
_SSH_BACKLOG = 4096  # as far as net.core.somaxconn allows
_SSH_FOLDER = "lockgate-ssh-"


class Opened:
    """Listening sockets, and the folder in which ssh makes its own."""

    __slots__ = (
        "listen",
        "port_to_sshd",
        "services",
        "ssh",
        "ssh_folder",
        "ssh_port",
        "started_in",
        "_ssh_program",
        "_ssh_targets",
    )

    def __init__(
        self, network: VirtualNetwork, rules: Iterable[ForwardRule], awaited: Awaited, made: MadeFiles
    ) -> None:
        """`rules` are of the ports that are bound. Raises FileError, OSError, KeyFileError or TargetError."""
        self.listen, self.services = awaited.listen, awaited.services
        self.ssh: list[_socket.socket] = []  # of forwards; none where there is no ssh to serve them
        self.port_to_sshd: Listener | None = None  # of ours, where the caller has asked for none
        self.ssh_folder = ""
        self.ssh_port = 0  # of the host's loopback, that leads to the first guest's sshd
        self.started_in = _working_folder()  # where paths begin that do not say where
        self._ssh_program = ""
        self._ssh_targets: list[ssh_child.Target] = []
        if network.ssh_forwards or network.listen or network.services:  # the API can ask for tunnels
            self._ssh_program = ssh_child.find_program(os.environ.get("PATH", ""))
        if self._ssh_program:
            self._prepare_ssh(network, rules, made)

    def _prepare_ssh(self, network: VirtualNetwork, rules: Iterable[ForwardRule], made: MadeFiles) -> None:
        try:
            self.ssh_folder = made.private_folder(_folders(), _SSH_FOLDER)
        except FileError:
            if network.ssh_forwards:
                raise
            self._ssh_program = ""  # the API cannot make tunnels, and that is all
            return
        self.ssh_port = self._find_port(network, rules)
        self._ssh_targets = [
            ssh_child.Target(one.user, one.destination, self.ssh_port, key_file.load(one.identity))
            for one in network.ssh_forwards
        ]
        self.ssh = [made.replace(one.path, "-forward-sock", _SSH_BACKLOG) for one in network.ssh_forwards]

    def make_spawner(self, may_reach: Callable[[int], bool]) -> SshSpawner | None:
        """What the keeper starts ssh with; None: there is no use for one, or there is no ssh."""
        if not self._ssh_program:
            return None
        return SshSpawner(self._ssh_program, self.ssh_folder, self._ssh_targets, may_reach)

    def _find_port(self, network: VirtualNetwork, rules: Iterable[ForwardRule]) -> int:
        """-ssh-port, or one that nobody was told of."""
        for rule in rules:
            leads_there = (rule.protocol, rule.target, rule.to_first) == (TCP, network.device, SSH_PORT)
            if leads_there and rule.listen == address.LOOPBACK4:
                return rule.first
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        sock.bind(("127.0.0.1", 0))
        sock.listen(_SSH_BACKLOG)
        port: int = sock.getsockname()[1]
        rule = ForwardRule.of_port(TCP, address.LOOPBACK4, port, network.device, SSH_PORT)
        self.port_to_sshd = Listener(sock.detach(), rule, port)
        return port


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


def _folders() -> list[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return [runtime, "/tmp"] if runtime[:1] == "/" else ["/tmp"]
