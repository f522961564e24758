# SPDX-License-Identifier: Apache-2.0
"""link_virtual: the socket by which the guest of a virtual network comes, and what else is open for its gateway.

Called by start.py, with the caller's rights. Adversary: nobody. The socket is there already (awaited.py).
"""

from __future__ import annotations

from lockgate.core._datapath import lib
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.gateway.opened import Opened
from lockgate.plugin.gateway.ssh.key_file import KeyFileError
from lockgate.plugin.gateway.ssh.ssh_child import NOT_INSTALLED, TargetError
from lockgate.plugin.gateway.virtual_network import BESS, QEMU, STDIO, VFKIT, VPNKIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from lockgate.plugin.forwards import Listener
    from lockgate.plugin.gateway.awaited import Awaited
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

    def __init__(self, spec: NetworkSpec, awaited: Awaited) -> None:
        assert spec.virtual is not None, "a virtual network is what gvproxy is for"
        self._spec = spec
        self._network = spec.virtual
        self._awaited = awaited
        self._opened: Opened | None = None
        # By another worker: guests of a switch come again by themselves; a monitor does not.
        self.resumable = spec.virtual.transport in ("", VPNKIT)
        self.name = "" if spec.virtual.link is None else spec.virtual.link.text

    def open(self, made: MadeFiles, log: Log) -> None:
        try:
            self._opened = Opened(self._network, self._spec.forwards, self._awaited, made)
        except OSError as failure:
            raise vocabulary.StartError(f"cannot listen: {failure.strerror}") from None
        except (KeyFileError, TargetError) as fault:
            raise vocabulary.StartError(str(fault)) from None

    @property
    def _there(self) -> Opened:
        assert self._opened is not None, "open() comes first"
        return self._opened

    @property
    def listeners(self) -> list[_socket.socket]:
        return [*self._awaited.sockets, *self._there.ssh]

    @property
    def connections(self) -> list[_socket.socket]:
        """Control's alone, once it has started: nothing."""
        return []

    @property
    def descriptors(self) -> list[int]:
        return [*(listener.fileno() for listener in self.listeners), *self._awaited.streams]

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

    def follow(self, host: HostNet, before: Assignments, log: Log) -> None:
        """The network is made up: nothing of it changes with the host's."""

    def settings(self) -> dict[str, Any]:
        """For control_start.Start, in control's process."""
        link, streams = self._awaited.link, self._awaited.streams
        return {
            "link_fd": -1 if link is None else link.detach(),
            "vhost_user": False,
            "gateway": GatewayStart(self._network, self._there, FRAMING[self._network.transport], streams),
        }
