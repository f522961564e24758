# SPDX-License-Identifier: Apache-2.0
"""link_socket: the socket that a VM's monitor connects to, or has connected already, and the one of the repair helper.

Called by start.py, with the caller's rights. Adversary: nobody; the caller, at worst, who passes a descriptor of
another kind. Invariants: what a helper that died left there is replaced, a living one is not (made_files.py).
"""

from __future__ import annotations

import _socket
import errno
import os

from lockgate.plugin import spec as vocabulary
from lockgate.plugin.made_files import FileError, MadeFiles, in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from lockgate.plugin.forwards import Listener
    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.log import Log
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec

# passt's series of paths for a caller that names none: its manual says 1 to 64, its program goes on to 99.
_SERIES = "/tmp/passt_{}.socket"
_SERIES_NUMBERS = range(1, 100)

_STREAM_FAMILIES = (_socket.AF_UNIX, _socket.AF_INET, _socket.AF_INET6)  # of a socket that frames can come by

_QEMU_HINTS = {
    vocabulary.VHOST_USER: (
        "QEMU: -chardev socket,id=c0,path={} -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0 "
        "-object memory-backend-memfd,id=m0,share=on,size=512M -numa node,memdev=m0"
    ),
    vocabulary.STREAM: (
        "QEMU: -netdev stream,id=n0,server=off,addr.type=unix,addr.path={} -device virtio-net-pci,netdev=n0"
    ),
}


class SocketLink:
    """Of --vhost-user, a stream, or --fd."""

    watch = None  # of a namespace, which there is none
    outward: list[Listener] = []  # nor ports that lead out of it
    command = None  # in it

    def __init__(self, spec: NetworkSpec, refill: Callable[[], None]) -> None:
        """Before anything is written to standard error, which the caller's descriptor may have come as; `refill` fills
        the standard streams that are free then."""
        self._spec = spec
        self.name = ""
        self.repair: _socket.socket | None = None
        self._socket: _socket.socket | None = None
        if spec.socket_fd is not None:
            self._socket = _take_descriptor(spec.socket_fd, spec.link, refill)
            self.name = f"descriptor {spec.socket_fd}"
        self.resumable = spec.link == vocabulary.VHOST_USER or spec.socket_fd is None  # by another worker

    def open(self, made: MadeFiles, log: Log) -> None:
        """What the monitor and the repair helper connect to."""
        if self._socket is None:
            self._socket, self.name = self._listen(made)
        self.repair = self._open_repair(made, log)

    def _listen(self, made: MadeFiles) -> tuple[_socket.socket, str]:
        if self._spec.socket_path:
            return made.listen(self._spec.socket_path, "--socket"), self._spec.socket_path
        fault: FileError | None = None  # such as what another user has left there, which we may not remove
        for number in _SERIES_NUMBERS:
            path = _SERIES.format(number)
            try:
                if not in_use(path, "Socket path"):
                    return made.listen(path, "Socket path"), path
            except FileError as failure:
                fault = fault or failure
        raise fault or vocabulary.StartError(
            f"{_SERIES.format('1')} to {_SERIES_NUMBERS[-1]} are all in use; --socket can name another path"
        )

    def _open_repair(self, made: MadeFiles, log: Log) -> _socket.socket | None:
        """Where the helper connects to that moving connections to another host needs. A place beside the link's socket
        is our own choice, and no reason not to start."""
        spec = self._spec
        if spec.link != vocabulary.VHOST_USER or spec.repair_path == "":
            return None
        if spec.repair_path is not None:
            return made.listen(spec.repair_path, "--repair-path")
        if spec.socket_fd is not None:
            return None
        try:
            return made.listen(f"{self.name}.repair", "Socket path")
        except FileError as fault:
            log.warning(f"{fault}; connections cannot move to another host")
            return None

    @property
    def _link(self) -> _socket.socket:
        assert self._socket is not None, "open() comes first"
        return self._socket

    @property
    def listeners(self) -> list[_socket.socket]:
        """Shut down first of all on quitting."""
        return [self._link] if self._spec.socket_fd is None else []

    @property
    def connections(self) -> list[_socket.socket]:
        """Control's alone, once it has started."""
        own = [] if self._spec.socket_fd is None else [self._link]
        return own if self.repair is None else [*own, self.repair]

    @property
    def descriptors(self) -> list[int]:
        """That control keeps."""
        return [self._link.fileno(), *([] if self.repair is None else [self.repair.fileno()])]

    @property
    def hint(self) -> str:
        """How a monitor is told of it."""
        return _QEMU_HINTS[self._spec.link].format(self.name) if self._spec.socket_fd is None else ""

    def start(self, process_name: str, view: Assignments, host: HostNet, log: Log) -> None:
        """Nothing more: whoever connects starts it."""

    def open_ports(self, bound: Sequence[Listener], room: int, warn: Callable[[str], None]) -> list[Listener]:
        """Those of the host, which are there already, are all."""
        return []

    def make_spawner(self, warn: Callable[[str], None], may_reach: Callable[[int], bool]) -> None:
        """Nothing here needs ssh."""

    def follow(self, host: HostNet, before: Assignments, log: Log) -> None:
        """The host's network has changed: the guest is told of it over the link."""

    def settings(self) -> dict[str, Any]:
        """For control_start.Start, in control's process."""
        return {
            "link_fd": self._link.detach(),
            "vhost_user": self._spec.link == vocabulary.VHOST_USER,
            "repair_fd": -1 if self.repair is None else self.repair.detach(),
        }


def _take_descriptor(fd: int, link: str, refill: Callable[[], None]) -> _socket.socket:
    """The caller's socket, out of the way of the standard streams if it came as one of them."""
    fault = _fault_of_descriptor(fd, link)
    if fault:
        kind = "UNIX stream socket" if link == vocabulary.VHOST_USER else "stream socket"
        raise vocabulary.StartError(f"--fd {fd}: {fault}; expected an open, connected {kind}")
    if fd <= 2:
        copy = os.dup(fd)
        os.close(fd)
        refill()
        fd = copy
    os.set_inheritable(fd, False)
    sock = _socket.socket(fileno=fd)
    if sock.family != _socket.AF_UNIX:
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)  # a frame does not wait for the next
    return sock


def _fault_of_descriptor(fd: int, link: str) -> str:
    """What is wrong with it for this link; empty if it can be served. A listening socket can: it brings its client."""
    families = (_socket.AF_UNIX,) if link == vocabulary.VHOST_USER else _STREAM_FAMILIES
    try:
        sock = _socket.socket(fileno=os.dup(fd))
    except OSError as failure:
        return "that is not a socket" if failure.errno == errno.ENOTSOCK else str(failure.strerror)
    try:
        if sock.family not in families or sock.type != _socket.SOCK_STREAM:
            return "that is another kind of socket"
        if not sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            sock.getpeername()
    except OSError:
        return "that socket is not connected"
    finally:
        sock.close()
    return ""
