# SPDX-License-Identifier: Apache-2.0
"""pasta's namespace agent: the one process that enters the target namespace, and hands out what must be made there.

Forked by the wrapper (`start`), which cannot enter itself: a rootless process could not come back. It joins the
namespaces, makes the tap device, configures it as planned, reports, and then answers requests until its channel ends:
those of its parent and of control, and those of the worker, which has a channel of its own and gets less there.

Adversary: the container, which may change, rename and remove its own interfaces at any time, and have any name and any
address there. So nothing of its making is followed: no file is opened after the start, /dev/net/tun and the paths of
the namespaces are the caller's, the interface is known by the number that it had when it was made, and what the kernel
refuses is told and does no harm. What can be done here in the worst case is what the container can do by itself. And
whoever asks, once a guest has broken it: agent_records.py checks each request. A worker that takes no answers loses its
channel, and holds up nobody.

Invariants: after READY it has an empty root, no descriptor but its channels and that of netlink, CAP_NET_ADMIN and
CAP_NET_BIND_SERVICE in the namespace, and nothing is imported any more. It never returns to the code of its parent.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import struct

from lockgate.core import worker as core_worker
from lockgate.core._datapath import lib
from lockgate.plugin import address, forwards, netlink, netlink_change, port_scan
from lockgate.plugin.address import UNSET
from lockgate.plugin.bridge import meeting
from lockgate.plugin.namespace import agent_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockgate.plugin.namespace.agent_records import Agent, SocketsWanted
    from lockgate.plugin.namespace.interface_plan import Plan

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # of x86 and ARM
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_REQUEST = struct.Struct("=16sH22x")  # struct ifreq
# TUN_F_*: what the namespace may leave to us. USO is for both families or none.
_CSUM, _TSO4, _TSO6, _USO4, _USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
_OFFLOADS = (_CSUM | _TSO4 | _TSO6 | _USO4 | _USO6, _CSUM | _TSO4 | _TSO6, 0)

_LOOPBACK_INDEX = 1  # in every namespace
_SO_BINDTOIFINDEX = 62
_NAME_MAX = 15
_WORKER_BUFFER = 4096  # a few answers, as the kernel counts


class Target:
    """The namespaces to join; each by a path, or (the network's) by a descriptor. No user namespace: as we are."""

    __slots__ = ("network", "user")

    def __init__(self, network: str | int, user: str = "") -> None:
        self.network = network
        self.user = user


class Interface:
    """The tap device to be made. Without a name there is none, without a plan it is left down and bare."""

    __slots__ = ("mac", "name", "plan")

    def __init__(self, name: str, plan: Plan | None, mac: bytes = b"") -> None:
        self.name = name
        self.plan = plan
        self.mac = mac  # empty: the kernel makes one up


def start(target: Target, interface: Interface, process_name: str, files: Sequence[str] = ()) -> Agent:
    """Forks the agent. Whether it has got anywhere is what Agent.wait_ready says. `files`, those of port_scan.py, are
    opened inside and handed out. Raises OSError."""
    ours, theirs = core_worker.channel()
    ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 2 * agent_records.RECORD_MAX)
    pid = os.fork()
    if pid == 0:
        try:
            _live(theirs, target, interface, process_name, files)
        finally:
            os._exit(0)  # nothing of the child may reach the code of its parent
    theirs.close()
    return agent_records.Agent(pid, ours)


def _live(end: _socket.socket, target: Target, interface: Interface, process_name: str, files: Sequence[str]) -> None:
    try:
        _keep_only(end, target)
        _join(target)
        opened = [_open_list(name) for name in files]
        life = _Life(interface, len(opened))
        _confine(process_name)
    except (agent_records.AgentError, OSError) as failure:
        end.send(agent_records.FAILED + agent_records.pack_text(str(failure)))
        return
    end.setblocking(True)
    _send(end, life.ready.pack(), [*life.take_tap(), *opened])
    _Desk(end, life).serve()


class _Desk:
    """Where requests come in: one channel for ever, and one of the worker of now."""

    def __init__(self, end: _socket.socket, life: _Life) -> None:
        self._end = end
        self._life = life
        self._worker: _socket.socket | None = None
        self._waiting = select.poll()
        self._waiting.register(end, select.POLLIN)

    def serve(self) -> None:
        """One request of each at a time, until the end of the first channel."""
        while True:
            ready = {fd for fd, _ in self._waiting.poll()}
            if self._worker is not None and self._worker.fileno() in ready:
                self._serve_worker(self._worker)
            if self._end.fileno() in ready and not self._serve_parent():
                return

    def _serve_parent(self) -> bool:
        request, rights, _, _ = self._end.recvmsg(agent_records.RECORD_MAX, _socket.CMSG_SPACE(4))
        fds = [fd for _, _, data in rights for fd in struct.unpack(f"={len(data) // 4}i", data)]
        if request == agent_records.WORKER and len(fds) == 1:
            self._take_worker(fds[0])
            _send(self._end, agent_records.pack_answer(0), [])
            return True
        for fd in fds:
            os.close(fd)
        if request:
            _send(self._end, *self._life.answer(request))
        return bool(request)

    def _take_worker(self, fd: int) -> None:
        self._let_worker_go()
        self._worker = _socket.socket(fileno=fd)
        self._worker.setblocking(False)
        # It asks for one thing at a time. What it leaves in the channel counts against the limit on open files of all
        # that its user runs.
        self._worker.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _WORKER_BUFFER)
        self._waiting.register(fd, select.POLLIN)

    def _let_worker_go(self) -> None:
        if self._worker is not None:
            self._waiting.unregister(self._worker)
            self._worker.close()
            self._worker = None

    def _serve_worker(self, worker: _socket.socket) -> None:
        try:
            request = worker.recv(agent_records.SOCKETS_BYTES + 1)
            if request:
                _send(worker, *_open_sockets(agent_records.parse_unbound(request)))
        except OSError:
            request = b""  # it has gone, or takes no answers
        if not request:
            self._let_worker_go()


def _send(end: _socket.socket, record: bytes, fds: Sequence[int]) -> None:
    """Descriptors are not ours any more then. Raises OSError."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
    try:
        end.sendmsg([record], rights)
    finally:
        for fd in fds:
            os.close(fd)


# ---- the start ----


def _keep_only(end: _socket.socket, target: Target) -> None:
    """The caller waits for the end of its pipes, and nobody else's descriptors are ours."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stream in range(3):
        os.dup2(null, stream, inheritable=True)
    keep = [end.fileno(), *([target.network] if isinstance(target.network, int) else [])]
    lib.lg_close_all_but(keep, len(keep))


def _join(target: Target) -> None:
    if target.user:
        fd = _open(target.user, "user")
        if not os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/user")):  # nobody may join where they are
            _enter(fd, network=False)
        os.close(fd)
    fd = target.network if isinstance(target.network, int) else _open(target.network, "network")
    _enter(fd, network=True)
    os.close(fd)


def _open(path: str, kind: str) -> int:
    """A FIFO would hold us up for ever."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as failure:
        raise agent_records.AgentError(f"Couldn't open {kind} namespace {path}: {failure.strerror}") from None


def _open_list(name: str) -> int:
    try:
        return port_scan.open_one(name)
    except OSError as failure:
        raise agent_records.AgentError(f"Couldn't open {name} in the namespace: {failure.strerror}") from None


def _enter(fd: int, network: bool) -> None:
    refused = lib.lg_namespace_enter(fd, network)
    if refused:
        raise agent_records.AgentError(f"Couldn't switch to pasta namespaces: {os.strerror(-refused)}")


def _confine(process_name: str) -> None:
    refused = lib.lg_agent_confine(os.fsencode(process_name))
    if refused:
        raise agent_records.AgentError(f"The namespace agent cannot give up its rights: {os.strerror(-refused)}")


def _open_tap(name: str) -> tuple[int, str, int]:
    """Of the namespace that we are in when the device is opened: descriptor, name, TUN_F_*."""
    try:
        tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        raise agent_records.AgentError(f"Couldn't open {_TUN}: {failure.strerror}") from None
    asked = _REQUEST.pack(os.fsencode(name)[:_NAME_MAX], _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    try:
        made = _REQUEST.unpack(fcntl.ioctl(tap, _TUNSETIFF, asked))[0].rstrip(b"\0")
    except OSError as failure:
        raise agent_records.AgentError(f"TUNSETIFF ioctl on {_TUN} failed: {failure.strerror}") from None
    for offloads in _OFFLOADS:
        try:
            fcntl.ioctl(tap, _TUNSETOFFLOAD, offloads)
            break
        except OSError:
            continue  # USO is of Linux 6.2
    return tap, os.fsdecode(made), offloads


# ---- the life ----


class _Life:
    """The interface, and what was done to it last."""

    def __init__(self, interface: Interface, files: int) -> None:
        """Makes and configures it. `files` will be told. Raises AgentError."""
        self._files = files
        self._changes = netlink_change.Changes()
        self._tap = -1
        self._index = 0
        self._applied = interface.plan
        change = self._changes.set_link
        self._change("bring up", "the loopback interface", lambda: change(_LOOPBACK_INDEX, up=True))
        name, offloads, note, link_local = "", 0, "", UNSET
        if interface.name:
            self._tap, name, offloads = _open_tap(interface.name)
            self._index = _socket.if_nametoindex(name)
            if interface.mac:
                self._change("set the MAC address of", name, lambda: change(self._index, mac=interface.mac))
            if interface.plan is not None:
                link_local = self._bring_up(name, interface.plan)
                note = self._configure(name, interface.plan, link_local != UNSET)
        self.ready = self._report(name, offloads, link_local, note)

    def take_tap(self) -> list[int]:
        """To be handed over: of the two ends of the interface, this process keeps none."""
        return [self._tap] if self._tap >= 0 else []

    def answer(self, request: bytes) -> tuple[bytes, list[int]]:
        if request[:1] == agent_records.CONFIGURE:
            return self._answer_plan(request), []
        if request == agent_records.MEETING:
            return _listen_at_meeting()
        return _open_sockets(agent_records.parse_sockets(request))

    # ---- configuration ----

    def _change(self, what: str, name: str, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as failure:
            raise agent_records.AgentError(f"Couldn't {what} {name} in the namespace: {failure.strerror}") from None

    def _bring_up(self, name: str, plan: Plan) -> bytes:
        """Its link-local address; unset if IPv6 is off here. The kernel's own choice would be of no use for a second,
        in which it asks whether the address is somebody else's: the same one comes from us instead, as ours."""
        try:
            self._changes.set_link_local(self._index, by_kernel=False)
        except OSError:
            pass  # no IPv6
        self._change("bring up", name, lambda: self._changes.set_link(self._index, up=True, mtu=plan.mtu))
        own = address.link_local_of(self._link(name).mac)
        failure = self._try_address(netlink.Address(_socket.AF_INET6, 0, own, 64, netlink.SCOPE_LINK, 0, UNSET))
        if failure is None:
            self._changes.set_link_local(self._index, by_kernel=True)  # should the container take it down and up
        return UNSET if failure else own

    def _link(self, name: str) -> netlink.Link:
        link = next((link for link in _dump(netlink.link_request(1)).links if link.index == self._index), None)
        if link is None or len(link.mac) != 6:
            raise agent_records.AgentError(f"Interface {name} is gone from the namespace already")
        return link

    def _try_address(self, one: netlink.Address) -> OSError | None:
        try:
            self._changes.add_address(self._index, one)
        except OSError as failure:
            return failure
        return None

    def _configure(self, name: str, plan: Plan, has_ipv6: bool) -> str:
        """A note about what was refused. A namespace without IPv6 is none of our faults."""
        notes = []
        for one in plan.addresses:
            failure = self._try_address(one)
            if failure is None:
                continue
            words = _about_address(one, failure)
            if has_ipv6 or one.family == _socket.AF_INET:
                raise agent_records.AgentError(f"Couldn't give {name} {words}")
            notes.append(words)
        refused = self._changes.add_routes(self._index, plan.routes)
        return "; ".join(notes + [_about_route(*one) for one in refused])

    def _report(self, name: str, offloads: int, link_local: bytes, note: str) -> agent_records.Ready:
        link = self._link(name) if name else None
        return agent_records.Ready(
            index=self._index,
            mtu=link.mtu if link else 0,
            offloads=offloads,
            mac=link.mac if link else bytes(6),
            name=name,
            link_local=link_local,
            note=note,
            files=self._files,
        )

    def _answer_plan(self, request: bytes) -> bytes:
        plan = agent_records.parse_plan(request)
        if plan is None or self._applied is None or self._index == 0:
            return agent_records.pack_answer(errno.EINVAL)
        failures = self._follow(self._applied, plan)
        self._applied = plan
        if not failures:
            return agent_records.pack_answer(0)
        words = "; ".join(words for words, _ in failures)
        return agent_records.pack_answer(failures[0][1].errno or errno.EIO, words)

    def _follow(self, old: Plan, new: Plan) -> list[tuple[str, OSError]]:
        """Does what is different. What stays is left as the container may have made it, but for what the kernel takes
        away with an address."""
        failures: list[tuple[str, OSError]] = []
        if new.mtu != old.mtu and new.mtu:
            try:
                self._changes.set_link(self._index, mtu=new.mtu)
            except OSError as failure:
                failures.append((f"MTU {new.mtu}: {failure.strerror}", failure))
        old_routes, new_routes = _by_record(old.routes), _by_record(new.routes)
        for record, route in reversed(old_routes.items()):
            if record not in new_routes:
                self._try_delete_route(route, failures)
        had = {agent_records.pack_address(one): one for one in old.addresses}
        has = {agent_records.pack_address(one): one for one in new.addresses}
        shaken = set()  # families that have lost an address
        for record, one in had.items():
            if record not in has:
                shaken.add(one.family)
                self._try_delete_address(one, failures)
        for record, one in has.items():
            refused = None if record in had and one.family not in shaken else self._try_address(one)
            if refused is not None:
                failures.append((_about_address(one, refused), refused))
        again = [one for record, one in new_routes.items() if record not in old_routes or one.family in shaken]
        failures += [(_about_route(*one), one[1]) for one in self._changes.add_routes(self._index, again)]
        return failures

    def _try_delete_route(self, route: netlink.Route, failures: list[tuple[str, OSError]]) -> None:
        try:
            self._changes.delete_route(self._index, route)
        except OSError as failure:
            failures.append((_about_route(route, failure), failure))

    def _try_delete_address(self, one: netlink.Address, failures: list[tuple[str, OSError]]) -> None:
        try:
            self._changes.delete_address(self._index, one)
        except OSError as failure:
            failures.append((_about_address(one, failure), failure))


def _by_record(routes: Sequence[netlink.Route]) -> dict[bytes, netlink.Route]:
    return {agent_records.pack_route(one): one for one in routes}


def _dump(request: bytes) -> netlink.Dump:
    socket = netlink.open_socket()
    try:
        return netlink.dump(socket, request)
    except OSError as failure:
        raise agent_records.AgentError(f"Couldn't look into the namespace: {failure.strerror}") from None
    finally:
        socket.close()


def _about_address(one: netlink.Address, failure: OSError) -> str:
    return f"address {address.to_text(one.address)}/{one.prefix}: {failure.strerror}"


def _about_route(one: netlink.Route, failure: OSError) -> str:
    target = f"{address.to_text(one.destination)}/{one.prefix}" if one.prefix else "default"
    return f"route {target}: {failure.strerror}"


# ---- sockets ----


def _open_sockets(wanted: SocketsWanted | None) -> tuple[bytes, list[int]]:
    if wanted is None:
        return agent_records.pack_results([]), []
    errors, fds = [], []
    for place in range(wanted.count):
        try:
            fds.append(_open_socket(wanted, wanted.first + place))
            errors.append(0)
        except OSError as failure:
            errors.append(failure.errno or errno.EINVAL)
    return agent_records.pack_results(errors), fds


def _open_socket(wanted: SocketsWanted, port: int) -> int:
    kind = _socket.SOCK_STREAM if wanted.protocol == _socket.IPPROTO_TCP else _socket.SOCK_DGRAM
    flags = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    made = _socket.socket(wanted.family, kind | flags, wanted.protocol)
    try:
        if wanted.flags & agent_records.LOOPBACK:
            made.setsockopt(_socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _LOOPBACK_INDEX)
        if wanted.flags & agent_records.BIND:
            dual_stack = bool(wanted.flags & agent_records.DUAL_STACK)
            ipv4 = wanted.family == _socket.AF_INET
            for option in forwards.socket_options(wanted.protocol, ipv4, dual_stack):
                made.setsockopt(*option)
            made.bind((_text(wanted), port))
        if wanted.flags & agent_records.LISTEN:
            made.listen(forwards.BACKLOG)
        return made.detach()
    finally:
        made.close()


def _listen_at_meeting() -> tuple[bytes, list[int]]:
    """An abstract name is the namespace's own, whatever files its users see."""
    flags = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | flags)
    try:
        made.bind(meeting.NAME)
        made.listen(forwards.BACKLOG)
        return agent_records.pack_results([0]), [made.detach()]
    except OSError as failure:
        return agent_records.pack_results([failure.errno or errno.EINVAL]), []
    finally:
        made.close()


def _text(wanted: SocketsWanted) -> str:
    if wanted.address != UNSET:
        return address.to_text(wanted.address)
    return "::" if wanted.family == _socket.AF_INET6 else "0.0.0.0"
