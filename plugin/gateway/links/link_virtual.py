# SPDX-License-Identifier: Apache-2.0
"""link_virtual: the socket by which the guest of a virtual network comes, and what else is open for its gateway.

Called by launch.py, with the caller's rights. Adversary: nobody. Invariants: the link's socket is made last of all: to
Podman its file means that everything else is there.
"""

from __future__ import annotations

import _socket
import os

from lockgate.core._datapath import lib
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.gateway.links import places
from lockgate.plugin.gateway.opened import Opened
from lockgate.plugin.gateway.ssh.key_file import KeyFileError
from lockgate.plugin.gateway.ssh.ssh_child import NOT_INSTALLED, TargetError
from lockgate.plugin.gateway.virtual_network import BESS, QEMU, STDIO, VFKIT, VPNKIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from lockgate.plugin.forwards import Listener
    from lockgate.plugin.gateway.ssh.ssh_spawner import SshSpawner
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork
    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.log import Log
    from lockgate.plugin.made_files import MadeFiles
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec

FRAMING = {
    QEMU: lib.LG_STREAM_SKIP,
    VPNKIT: lib.LG_STREAM_LENGTH_16 | lib.LG_STREAM_SKIP,
    STDIO: lib.LG_STREAM_LENGTH_16 | lib.LG_STREAM_SKIP,
    BESS: 0,
    VFKIT: 0,
    "": 0,
}


class GatewayStart:
    """What control's part of the gateway is started with; frozen by convention."""

    __slots__ = ("framing", "network", "opened", "streams")

    def __init__(self, network: VirtualNetwork, opened: Opened, framing: int, streams: tuple[int, ...]) -> None:
        self.network = network
        self.opened = opened
        self.framing = framing  # of the link, lib.LG_STREAM_*
        self.streams = streams  # from the guest and to it, where it comes by those; else empty


class VirtualLink:
    """Of `gvproxy`."""

    watch = None  # of a namespace, which there is none
    outward: list[Listener] = []  # nor ports that lead out of it
    command = None  # in it
    repair = None
    hint = ""

    def __init__(self, spec: NetworkSpec) -> None:
        assert spec.virtual is not None, "a virtual network is what gvproxy is for"
        self._spec = spec
        self._network = spec.virtual
        self._opened: Opened | None = None
        # By another worker: guests of a switch come again by themselves; a monitor does not.
        self.resumable = spec.virtual.transport in ("", VPNKIT)
        self._streams = (os.dup(0), os.dup(1)) if spec.virtual.transport == STDIO else ()
        self._socket: _socket.socket | None = None
        self.name = "" if spec.virtual.link is None else spec.virtual.link.text

    def open(self, made: MadeFiles, log: Log) -> None:
        try:
            self._opened = Opened(self._network, self._spec.forwards, made)
            if self._network.link is not None and not self._streams:
                self._socket = places.listen(self._network.link, f"-listen-{self._network.transport}", made)
        except OSError as failure:
            where = f" {failure.filename}" if failure.filename else ""
            raise vocabulary.StartError(f"cannot listen{where}: {failure.strerror}") from None
        except (KeyFileError, TargetError) as fault:
            raise vocabulary.StartError(str(fault)) from None

    @property
    def _there(self) -> Opened:
        assert self._opened is not None, "open() comes first"
        return self._opened

    @property
    def listeners(self) -> list[_socket.socket]:
        return self._there.sockets if self._socket is None else [self._socket, *self._there.sockets]

    @property
    def connections(self) -> list[_socket.socket]:
        """Control's alone, once it has started: nothing."""
        return []

    @property
    def descriptors(self) -> list[int]:
        return [*(listener.fileno() for listener in self.listeners), *self._streams]

    def start(self, process_name: str, view: Assignments, host: HostNet, log: Log) -> None:
        """Nothing more: whoever connects starts it."""

    def open_ports(self, bound: Sequence[Listener], room: int, warn: Callable[[str], None]) -> list[Listener]:
        """The one that nobody asked for: to the guest's sshd."""
        own = self._there.port_to_sshd
        return [] if own is None else [own]

    def make_spawner(self, warn: Callable[[str], None], may_reach: Callable[[int], bool]) -> SshSpawner | None:
        """What starts ssh."""
        spawner = self._there.make_spawner(may_reach)
        if spawner is None and self._network.ssh_forwards:
            warn(NOT_INSTALLED)
        return spawner

    def follow(self, host: HostNet, log: Log) -> None:
        """The network is made up: nothing of it changes with the host's."""

    def settings(self) -> dict[str, Any]:
        """For control.Start, in control's process."""
        return {
            "link_fd": -1 if self._socket is None else self._socket.detach(),
            "vhost_user": False,
            "gateway": GatewayStart(self._network, self._there, FRAMING[self._network.transport], self._streams),
        }
