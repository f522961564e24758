# SPDX-License-Identifier: Apache-2.0
"""What the caller of `gvproxy` waits for: the log, the PID file, the ports, the sockets of the API, and at last the one
that the guest comes by.

Called by launch.py, with the caller's rights, before almost anything else is imported: Podman starts a machine when the
link's socket is there. Whoever connects then waits in its backlog for all that is still to come. Adversary: nobody; the
contract has checked what was asked for.

For the command lines that Podman 5 writes the launcher has opened it all before Python started (packaging/awaited.c):
that is the normal case, and this then takes it over.

Invariants: the link's socket is made last of all: its file means that everything else here is there. What comes later
can still fail, and takes it back (made_files.py).
"""

from __future__ import annotations

import _socket
import posix

from lockgate.plugin import forwards
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.gateway import places
from lockgate.plugin.gateway.virtual_network import STDIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork
    from lockgate.plugin.log import Log
    from lockgate.plugin.made_files import MadeFiles
    from lockgate.plugin.spec import NetworkSpec


_FEW_PORTS = 64  # for which the limit on open files need not be raised


class Early:
    """What the launcher has opened. The files are taken back with all others, if the words turn out to be wrong."""

    __slots__ = ("link", "log_fd", "path", "port")

    def __init__(self, option: str, made: MadeFiles) -> None:
        """`option` is what packaging/awaited.h says: nine things, of which eight are numbers. From here on we take the
        files back ourselves, and the launcher's guard need not."""
        *numbers, pid_file = option.split(",", 8)
        log, port, link, guard, *files = map(int, numbers)
        self.log_fd = log
        self.port = _socket.socket(fileno=port)
        self.link = _socket.socket(fileno=link)
        self.path: str = self.link.getsockname()
        made.adopt(self.path, *files[:2])
        if pid_file:
            made.adopt(pid_file, *files[2:])
        for fd in filter(lambda fd: fd >= 0, (log, port, link)):
            posix.set_inheritable(fd, False)
        try:
            posix.write(guard, b"K")
        except OSError:
            pass  # somebody has killed it
        posix.close(guard)

    def listener(self, spec: NetworkSpec) -> forwards.Listener:
        """The one of -ssh-port. We must have read the same in the command line."""
        (rule,) = spec.forwards
        port = self.port.getsockname()[1]
        assert (self.path, port) == (spec.socket_path, rule.first), "packaging/awaited.c reads these words otherwise"
        return forwards.Listener(self.port.detach(), rule, port)


class Awaited:
    """All of it is open once there is one of these; frozen by convention."""

    __slots__ = ("link", "listen", "ports", "services", "streams")

    def __init__(
        self, spec: NetworkSpec, network: VirtualNetwork, log: Log, made: MadeFiles, early: Early | None = None
    ) -> None:
        """`network` is that of the spec; `early` is everything, if the launcher has opened it. Raises Stop, StartError
        or FileError."""
        self.streams = (posix.dup(0), posix.dup(1)) if network.transport == STDIO else ()  # from the guest, and to it
        self.listen: list[_socket.socket] = []
        self.services: list[_socket.socket] = []
        self.link: _socket.socket | None = None
        _open_log(spec, log, -1 if early is None else early.log_fd)
        if early is not None:
            self.ports, self.link = [early.listener(spec)], early.link
            return
        if spec.pid_file:  # whole and without a newline: Podman takes any other for a machine that cannot be stopped
            made.write_whole(spec.pid_file, "PID file", b"%d" % posix.getpid())
        self.ports = _bind(spec)
        try:
            self.listen += [places.listen(place, "-listen", made) for place in network.listen]
            if network.services is not None:
                self.services.append(places.listen(network.services, "-services", made))
            if network.link is not None and not self.streams:
                self.link = places.listen(network.link, f"-listen-{network.transport}", made)
        except OSError as failure:
            where = f" {failure.filename}" if failure.filename else ""
            raise vocabulary.StartError(f"cannot listen{where}: {failure.strerror}") from None

    @property
    def sockets(self) -> list[_socket.socket]:
        """Those that listen, but for ports."""
        return [*([] if self.link is None else [self.link]), *self.listen, *self.services]

    @property
    def descriptors(self) -> list[int]:
        return [*(one.fileno() for one in self.sockets), *self.streams, *(one.fd for one in self.ports)]


def _open_log(spec: NetworkSpec, log: Log, fd: int) -> None:
    if spec.log_file:
        try:
            log.write_only_to(spec.log_file, fd)
        except OSError:
            from lockgate.plugin.contracts import gvproxy

            raise gvproxy.log_file_fault(spec.log_file) from None
    log.tell(spec)


def _bind(spec: NetworkSpec) -> list[forwards.Listener]:
    """One socket for each port, within what the limit on open files leaves beside everything else."""
    if not spec.forwards:
        return []
    room = _FEW_PORTS
    if len(spec.forwards) > _FEW_PORTS:
        from lockgate.plugin import descriptor_limit

        room = descriptor_limit.raise_it() - descriptor_limit.SPARED
    try:
        return forwards.bind(spec.forwards, room, _forget)
    except forwards.ForwardError:
        pass  # mostly nothing is in the way, and what can wait for it is not imported yet
    from lockgate.plugin import taken_ports
    from lockgate.plugin.gateway import forward_words

    try:
        return taken_ports.bind(lambda warn: forwards.bind(spec.forwards, room, warn), _forget)
    except forwards.ForwardError as fault:
        if not fault.refused:
            raise vocabulary.StartError(str(fault)) from None
        raise vocabulary.StartError(forward_words.start_failure(fault.refused[0])) from None


def _forget(line: str) -> None:
    """The error says it, in this contract's words."""
