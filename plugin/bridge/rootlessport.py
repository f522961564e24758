# SPDX-License-Identifier: Apache-2.0
"""`rootlessport`, in the place of Podman's own: has the shared helper open the ports of a container on a bridge, which
so sees the address of whoever connects; then waits for the container's end, with which the ports go.

Called by launch.py when Podman 5 starts a rootless container with ports, on the host, as root of Podman's user
namespace. What the helper cannot do, or another's helper, is left to the rootlessport of the distribution: that takes
over this very process, and nobody can tell.
Adversary: nobody but processes of the same user, who may write to the socket on which Podman tells a new address.
Invariants: standard output has one sentence if it fails, and Podman's pipes are let go of once it is ready.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import sys

from lockgate.core._datapath import lib
from lockgate.plugin import netlink
from lockgate.plugin.address import UNSET
from lockgate.plugin.bridge import meeting
from lockgate.plugin.bridge.meeting import MeetingError
from lockgate.plugin.contracts import rootlessport
from lockgate.plugin.contracts.rootlessport import Config, ConfigError
from lockgate.plugin.spec import SHARED_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

# Where Podman looks for its own helpers, after folders that the user names.
_FOLDERS = ("/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman")
_NAME = "rootlessport"
_HANDED_ON = "LOCKGATE_ROOTLESSPORT"  # in the environment of the distribution's: it must not come back to us

_INPUT_MAX = 1 << 22
_PACKET_MAX = 4096
_CLIENT_SECONDS = 2.0  # Podman writes one packet, and at once
_RETRY_MILLISECONDS = 1000  # while there is no helper


class NotOurs(Exception):
    """The ports are somebody else's task."""


def main() -> int:
    text = _read_all(0)
    try:
        config = rootlessport.parse(text)
        ports = Ports(config)
        server = _Reload(config)
    except NotOurs:
        return _hand_on(text)
    except (ConfigError, MeetingError, OSError) as fault:
        print(fault, flush=True)
        return 1
    try:
        _tell_ready(config)
        _wait(config, ports, server)
    finally:
        server.close()
    return 0


def _read_all(fd: int) -> bytes:
    text = b""
    while (piece := os.read(fd, 65536)) and len(text) < _INPUT_MAX:
        text += piece
    return text


def _hand_on(text: bytes) -> int:
    if not os.environ.get(_HANDED_ON):
        for folder in _FOLDERS:
            path = os.path.join(folder, _NAME)
            if os.access(path, os.X_OK) and not _is_ours(path):
                _become(path, text)
    print(f"no rootlessport of Podman's own is in {', '.join(_FOLDERS)}", flush=True)
    return 1


def _is_ours(path: str) -> bool:
    try:
        return os.path.samefile(path, sys.orig_argv[0])
    except OSError:
        return False


def _become(path: str, text: bytes) -> NoReturn:
    config = os.memfd_create("config")
    os.write(config, text)
    os.lseek(config, 0, os.SEEK_SET)
    os.dup2(config, 0)
    os.execve(path, [_NAME], {**os.environ, _HANDED_ON: "1"})


def _tell_ready(config: Config) -> None:
    """Nobody who waits for the end of Podman's output waits for us."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)
    os.chdir("/")
    os.write(config.ready_fd, b"1")
    os.close(config.ready_fd)


def _wait(config: Config, ports: Ports, server: _Reload) -> None:
    while True:
        waiting = select.poll()
        for fd in (config.exit_fd, server.fileno(), ports.fileno()):
            if fd >= 0:
                waiting.register(fd, select.POLLIN)
        ready = {fd for fd, _ in waiting.poll(None if ports.fileno() >= 0 else _RETRY_MILLISECONDS)}
        if config.exit_fd in ready and not os.read(config.exit_fd, _PACKET_MAX):
            return
        if ports.fileno() in ready or ports.fileno() < 0:
            ports.find_helper()
        if server.fileno() in ready:
            server.answer(ports)


# ---- the helper ----


class Ports:
    """What is open for the container, as long as the helper lives; another that follows it opens the same again."""

    def __init__(self, config: Config) -> None:
        """Raises NotOurs if this is for the distribution's, MeetingError if it cannot be had at all."""
        self._config = config
        self._helper: meeting.Client | None = None
        if not config.bridge or not config.mappings:
            raise NotOurs
        self._folder = next(filter(_has_helper, _shared_folders(config)), "")
        if not self._folder:
            raise NotOurs
        self._open()

    def fileno(self) -> int:
        return -1 if self._helper is None else self._helper.socket.fileno()

    def find_helper(self) -> None:
        """The one that was there has left."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None
        try:
            self._open()
        except (NotOurs, MeetingError, OSError):
            pass  # not yet, or not again

    def lead_to(self, child: bytes) -> None:
        """The container has joined a network, or left one; unset: it has left the last one. Raises MeetingError."""
        self._config.child = child
        if self._helper is None:
            self.find_helper()
            return
        try:
            self._ask(self._helper)
        except NotOurs:
            self._helper.close()  # and so the ports
            self._helper = None  # to be asked again and again: Podman does not tell of each network that is joined
            if child != UNSET:
                raise MeetingError("its networks have no way back to whoever calls; restart the container") from None

    def _open(self) -> None:
        try:
            helper = meeting.Client(os.path.join(self._folder, meeting.FILE))
        except MeetingError:
            raise NotOurs from None
        try:
            self._ask(helper)
        except BaseException:
            helper.close()
            raise
        self._helper = helper

    def _ask(self, helper: meeting.Client) -> None:
        facts = meeting.parse_facts(helper.ask(meeting.HELLO))
        children = _look_inside(self._config, os.path.join(self._folder, SHARED_NAME))
        rules = rootlessport.rules(self._config, children, (facts.ipv4, facts.ipv6))
        if rules is None:
            raise NotOurs
        helper.ask(meeting.pack_ports(rules))


def _shared_folders(config: Config) -> list[str]:
    """Where Podman keeps the shared namespace, below the folder that it has for what does not outlive the machine; of
    that, we are only told another place in it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", ""), os.path.dirname(os.path.dirname(config.folder))
    return [os.path.join(one, "containers/networks", SHARED_NAME) for one in dict.fromkeys(runtime) if one]


def _has_helper(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, meeting.FILE))


def _look_inside(config: Config, shared: str) -> tuple[bytes, bytes]:
    """The container's addresses of IPv4 and of IPv6 on the link by which it answers, if that leads to the shared
    namespace; unset: none. By a child: who enters could not come back."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(send, _seen_inside(config, shared))
        finally:
            os._exit(0)
    os.close(send)
    said = _read_all(receive)
    os.close(receive)
    os.waitpid(pid, 0)
    return said[:16] or UNSET, said[16:] or UNSET


def _seen_inside(config: Config, shared: str) -> bytes:
    other = os.open(shared, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.open(config.namespace, os.O_RDONLY | os.O_CLOEXEC)
    if lib.lg_namespace_enter(fd, True):
        return b""
    number = netlink.namespace_number(netlink.open_socket(), other)
    links = netlink.dump(netlink.open_socket(), netlink.link_request(1)).links
    joined = {link.index for link in links if link.kind == "veth" and link.peer_namespace == number >= 0}
    addresses = netlink.dump(netlink.open_socket(), netlink.address_request(1)).addresses
    found = b""
    for family in (_socket.AF_INET, _socket.AF_INET6):
        routes = netlink.dump(netlink.open_socket(), netlink.route_request(1, family)).routes
        way = _way_out(routes, family)
        found += _child(addresses, family, way, config.child) if way in joined else UNSET
    return found


def _way_out(routes: Iterable[netlink.Route], family: int) -> int:
    """The link by which answers go to whoever is far away; 0: none, as on an internal network."""
    main = (one for one in routes if (one.family, one.table) == (family, netlink.TABLE_MAIN))
    best = min((one for one in main if one.hops and not one.prefix), key=lambda one: one.priority, default=None)
    return best.hops[0].index if best else 0


def _child(addresses: Iterable[netlink.Address], family: int, link: int, preferred: bytes) -> bytes:
    """Podman names any address of those that the container has on its networks: on another link, a question and its
    answer would go different ways."""
    unfit = netlink.ADDRESS_DEPRECATED | netlink.ADDRESS_DAD_FAILED
    fit = [
        one.address
        for one in addresses
        if (one.family, one.index, one.scope) == (family, link, 0) and not one.flags & unfit
    ]
    return preferred if preferred in fit else next(iter(fit), UNSET)


# ---- Podman, later ----


class _Reload:
    """Where Podman tells the container's new address, when it has joined or left a network."""

    def __init__(self, config: Config) -> None:
        folder = os.path.join(config.folder, "rp")
        os.makedirs(folder, 0o700, exist_ok=True)
        self._path = os.path.join(folder, config.container)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        place = os.open(folder, os.O_PATH | os.O_CLOEXEC)  # the path may be longer than an address of a socket
        try:
            self._socket.bind(f"/proc/self/fd/{place}/{config.container}")
        finally:
            os.close(place)
        self._socket.listen(4)

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self, ports: Ports) -> None:
        accepted: int = self._socket._accept()[0]  # type: ignore[attr-defined]  # what socket.accept() calls
        client = _socket.socket(fileno=accepted)
        try:
            client.settimeout(_CLIENT_SECONDS)
            client.send(_lead(ports, client.recv(_PACKET_MAX)))
        except OSError:
            pass  # whoever it was has left
        finally:
            client.close()

    def close(self) -> None:
        self._socket.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass


def _lead(ports: Ports, packet: bytes) -> bytes:
    try:
        ports.lead_to(rootlessport.parse_child(str(json.loads(packet))))
    except (MeetingError, ValueError) as fault:
        return str(fault).encode("utf-8", "replace")
    return b"OK"
