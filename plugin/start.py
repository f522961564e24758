# SPDX-License-Identifier: Apache-2.0
"""The start of a network, from what its command line asks for to the keeper: each step that needs the caller's rights.

Called by launch.py, behind gateway/awaited.py where that has opened what the caller waits for. Adversary: nobody; the
caller has all the rights that are used here.

Invariants: what needs the caller's rights is opened here, or was before, and nowhere later; after that the rights are
given up. What is wrong is a StartError, a FileError or a Stop, and launch.py says it. Nothing heavy is imported before
READY: a test fixes the list.
"""

from __future__ import annotations

import _socket
import errno
import os

from lockgate.core._datapath import lib
from lockgate.plugin import announcement, descriptor_limit, forwards, hostnet, identity, keeper, log, netview, ports
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.launch import fill_standard_streams, open_null
from lockgate.plugin.made_files import FileError, MadeFiles
from lockgate.plugin.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.gateway.awaited import Awaited
    from lockgate.plugin.gateway.links.link_virtual import VirtualLink
    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.link_namespace import NamespaceLink
    from lockgate.plugin.link_socket import SocketLink
    from lockgate.plugin.namespace.inside import Inside
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec

PEEK_VARIABLE = "LOCKGATE_TCP_PEEK"  # "discard": act as on a kernel without SO_PEEK_OFF for TCP
REORDER_VARIABLE = "LOCKGATE_TCP_REORDER"  # "off": drop what comes ahead of a gap, to compare with

FEW_FLOWS = 512  # a limit on open files that allows no more is worth a warning: a browser alone opens a hundred

CONF_BACKLOG = 16  # clients of --conf-path that wait for their turn; more wait in connect()

NOBODY = 65534  # uid and gid; the number is the kernel's own "overflow" id, whatever /etc/passwd calls it
_INITIAL_UID_MAP = ("0", "0", "4294967295")


class Start:
    """All that the caller's rights opened, step by step; each step that fails raises StartError or FileError."""

    def __init__(
        self, name: str, spec: NetworkSpec, lines: log.Log, made: MadeFiles, awaited: Awaited | None = None
    ) -> None:
        """`awaited`: of a virtual network, what is open already."""
        self.name = name
        self.spec = spec
        self.log = lines
        self.made = made
        self.ready_fd = -1  # tells the process that the caller waits for, if that is another
        self._close_what_is_not_ours(awaited)
        self.link = _link_of(spec, awaited)
        self.pid_fd = -1  # written to, and closed, when we are ready
        if awaited is None:
            self._open_log()
            self.pid_fd = self.made.open_for_writing(spec.pid_file, "PID file") if spec.pid_file else -1
        self.host, self.view = self._read_network()
        descriptors = descriptor_limit.raise_it()
        self.room = descriptors - descriptor_limit.SPARED  # for sockets that listen
        self.forwards = self._bind_forwards() if awaited is None else awaited.ports
        fixed = len(self.forwards) + self._check_outward()
        self.flow_limit = descriptor_limit.flows(descriptors - fixed)
        if self.flow_limit < FEW_FLOWS:
            self.log.warning(
                f"The limit of {descriptors} open files allows {self.flow_limit} connections at once; more are refused "
                "(ulimit -n, or LimitNOFILE= of a systemd unit)"
            )
        self.room_later = max(fixed, self.room - FEW_FLOWS)
        self.port_rights = self._port_rights()
        self.stuck = ""  # why root cannot become nobody, where that is so
        self.identity = self._choose_identity()
        self.link.open(made, lines)
        self.conf = made.listen(spec.conf_path, "--conf-path", CONF_BACKLOG) if spec.conf_path else None
        self._tell_identity()  # once nothing is in the way: a mistake is one line
        self.capture_fd = self._open_capture()
        announcement.announce(spec, self.view, self.link.name, self.link.hint, lines)

    def _close_what_is_not_ours(self, awaited: Awaited | None) -> None:
        """What the caller has left open for us by mistake."""
        ours = [] if awaited is None else [*awaited.descriptors, *self.log.descriptors()]
        if self.spec.socket_fd is not None:
            ours.append(self.spec.socket_fd)
        lib.lg_close_all_but(ours, len(ours))

    def _open_log(self) -> None:
        spec = self.spec
        if spec.log_file:
            try:
                self.log.file = log.LogFile(spec.log_file, spec.log_size, f"{spec.contract} {VERSION}")
            except OSError as failure:
                raise vocabulary.StartError(f"Log file {spec.log_file} cannot be opened: {failure.strerror}") from None
        elif self.log.level < log.DEBUG:
            self.log.open_syslog()
        self.log.tell(spec)

    def _read_network(self) -> tuple[HostNet, Assignments]:
        try:
            host = hostnet.read_host()
            return host, netview.assign(self.spec, host)
        except hostnet.InterfaceError as fault:
            raise vocabulary.StartError(f"--interface: {fault}") from None
        except OSError as failure:
            raise vocabulary.StartError(f"The host's network cannot be read (netlink): {failure.strerror}") from None

    def _bind_forwards(self) -> list[forwards.Listener]:
        """One socket for each port, within what the limit on open files leaves beside everything else."""
        rules = [rule for rule in self.spec.forwards if not rule.auto]
        if not rules:
            return []
        try:
            return self._bind(rules)
        except forwards.ForwardError as fault:
            raise vocabulary.StartError(str(fault)) from None

    def _bind(self, rules: list[ForwardRule]) -> list[forwards.Listener]:
        def bind(warn: Callable[[str], None]) -> list[forwards.Listener]:
            return forwards.bind(rules, self.room, warn, forwards.on_host(self.spec.freebind))

        from lockgate.plugin import taken_ports

        return taken_ports.bind(bind, self.log.warning)

    def _check_outward(self) -> int:
        """How many ports lead out of the namespace from the start on. Each will be a socket there."""
        rules = [] if self.spec.namespace is None else [rule for rule in self.spec.namespace.forwards if not rule.auto]
        try:
            forwards.check_room(rules, self.room - len(self.forwards))
        except forwards.ForwardError as fault:
            raise vocabulary.StartError(str(fault)) from None
        return sum(rule.count for rule in rules)

    def _port_rights(self) -> ports.Rights | None:
        """What control may have the keeper bind later: nothing, unless the caller wants forwards to be changed, or to
        follow what listens, or containers come and go."""
        spec = self.spec
        auto = [rule for rule in spec.forwards if rule.auto]
        follows = bool(auto) or (spec.namespace is not None and any(rule.auto for rule in spec.namespace.forwards))
        anybody = bool(spec.conf_path) or spec.is_shared or spec.virtual is not None
        if not anybody and not auto:
            return None
        switched_on = ((_socket.IPPROTO_TCP, not spec.no_tcp), (_socket.IPPROTO_UDP, not spec.no_udp))
        return ports.Rights(
            ipv4=spec.ipv4.enabled,
            ipv6=spec.ipv6.enabled,
            protocols=[protocol for protocol, on in switched_on if on],
            room=self.room_later,
            freebind=spec.freebind,
            auto=follows,
            within=None if anybody else auto,
        )

    def _choose_identity(self) -> tuple[int, int] | None:
        """User and group to go on as; None: those of now. Root of the machine becomes nobody; root of some container,
        who is only somebody outside, stays."""
        wanted = self.spec.runas
        if wanted is None:
            if self.spec.virtual is not None:
                return None  # the API makes sockets in the caller's folders
            if os.geteuid() or not _in_initial_user_namespace():
                return None
            return self._nobody()
        if wanted == (os.geteuid(), os.getegid()) and (wanted[0] or not _in_initial_user_namespace()):
            return None  # who is that already; the machine's root still lets go of what else it has
        try:
            identity.take_on(wanted)()
        except OSError as failure:
            raise vocabulary.StartError(
                f"--runas {wanted[0]}:{wanted[1]}: this process may not become that user ({failure.strerror}); start "
                "as root, or leave --runas out"
            ) from None
        return wanted

    def _nobody(self) -> tuple[int, int] | None:
        """Root without the right to become another, as some containers have it, or without that other, goes on."""
        try:
            identity.take_on((NOBODY, NOBODY))()
        except OSError as failure:
            self.stuck = str(failure.strerror)
            return None
        return NOBODY, NOBODY

    def _tell_identity(self) -> None:
        if self.stuck:
            self.log.warning(f"Started as root and going on as root: it may not become nobody here ({self.stuck})")
        elif self.identity and self.spec.runas is None and not self.link.command:  # which goes on as root
            self.log.warning("Started as root: going on as nobody")

    def _open_capture(self) -> int:
        """With the rights of the user that we go on as; without the file the guest still gets its network."""
        path = self.spec.pcap_file
        if not path:
            return -1
        come_back = identity.take_on(self.identity) if self.identity else None
        try:
            capture = self.made.open_for_writing(path, "Capture file")
            _empty(capture)
            return capture
        except FileError as fault:
            self.log.warning(f"{fault}; nothing is captured")
            return -1
        finally:
            if come_back:
                come_back()

    def _change_identity(self, keep: int = 0) -> None:
        """For good, where we do not go on as who we are."""
        refused = lib.lg_become(*self.identity, keep) if self.identity else 0
        if refused < 0:
            raise OSError(-refused, os.strerror(-refused))

    def _become_keeper(self) -> None:
        """One who may bind any port, as long as there is somebody to ask for it, and end root's command."""
        keep = lib.LG_KEEP_PORTS if self.port_rights is not None and os.geteuid() == 0 else 0
        self._change_identity(keep | (lib.LG_KEEP_KILL if self.link.command and os.geteuid() == 0 else 0))

    # ---- the process that stays ----

    def leave_caller(self) -> None:
        """Returns in the process that stays. The first one waits for READY and exits, with what the caller wants to
        know as its status."""
        read_end, self.ready_fd = os.pipe()
        if os.fork():
            os.close(self.ready_fd)
            if os.read(read_end, 1):
                os._exit(0)
            self.made.take_back()  # the other may have gone on as somebody who may not, or was killed
            os._exit(1)
        os.close(read_end)
        os.setsid()

    def keep(self) -> int:
        spec = self.spec
        self.link.start(self.name, self.view, self.host, self.log)
        os.chdir("/")  # all paths are used; the caller's folder may be unmounted now
        self.forwards += self.link.open_ports(self.forwards, self.room_later, self.log.warning)
        held = ports.Ports(self.forwards, self.port_rights)
        plan = keeper.Plan(
            name=self.name,
            capture=self.capture_fd >= 0,
            worker_flags=_worker_flags(),
            flow_limit=self.flow_limit,
            foreground=spec.foreground,
            resumable=self.link.resumable,
            listeners=[*self.link.listeners, *([] if self.conf is None else [self.conf])],
            ports=held,
            connections=self.link.connections,
            watch=self.link.watch,
            told_early=self.told_early,
            command=self.link.command,
            ssh=self.link.make_spawner(self.log.warning, held.leads_from_loopback),
            interruptible=spec.virtual is not None,
        )
        try:
            return keeper.Keeper(plan, self.log, self._control, self._become_keeper, self._ready).run()
        except OSError as failure:
            raise vocabulary.StartError(f"Processes cannot be started: {failure.strerror}") from None

    def _ready(self) -> None:
        """The PID file is complete before the caller learns that we are ready; nothing of the caller is held after."""
        if self.pid_fd >= 0:
            _empty(self.pid_fd)
            os.write(self.pid_fd, f"{os.getpid()}\n".encode())
            os.close(self.pid_fd)
        if not self.spec.foreground:
            self._let_go_of_streams()
            os.write(self.ready_fd, b"R")
            os.close(self.ready_fd)
        if self.spec.virtual is None:  # its files go with it
            self.made.keep()
        if self.link.command:
            self.link.command.release()

    def _let_go_of_streams(self) -> None:
        self.log.stderr = False
        _let_go_of(range(3))

    def _control(self, ends: keeper.Ends) -> int:
        """In control's process: lets go of what is not its own, imports, and then gives its rights up."""
        spec, pages, name = self.spec, ends.pages, os.fsencode(f"{self.name}-control")
        lib.lg_process_name(name)
        if spec.foreground:
            _let_go_of(range(1))  # what is typed there is for the caller, or for its VM
        else:
            self._let_go_of_streams()
        channels = [ends.keeper.fileno(), ends.cmd.fileno(), ends.up.fileno()]
        shared = [pages.counters_fd, pages.pcap_fd, pages.pcap_event_fd, self.capture_fd]
        listeners = [listener.fd for listener in self.forwards]
        conf_fd = -1 if self.conf is None else self.conf.fileno()
        keep = [*self.link.descriptors, conf_fd, *channels, *shared, *self.log.descriptors(), *listeners]
        lib.lg_close_all_but(keep, len(keep))
        settings = self.link.settings()
        if self.told_early:
            self._tell_worker(ends, settings["inside"])
        if not ends.wait_for_start():
            self.made.take_back()  # still with the caller's rights, which the keeper may have given up
            return 0
        if self.told_early and not ends.rest([*self.link.listeners, *([] if self.conf is None else [self.conf])]):
            return 0
        from lockgate.plugin import lean_asyncio

        lean_asyncio.load()
        from lockgate.plugin import control, control_start

        start = control_start.Start(
            log=self.log,
            view=self.view,
            **settings,
            told=self.told_early,
            one_off=spec.one_off,
            trace=spec.log_level == vocabulary.TRACE,
            capture_fd=self.capture_fd,
            stats_seconds=spec.stats_seconds,
            forwards=[*self.forwards, *self.link.outward],
            reassign=None if spec.virtual is not None else self._reassign,
            reach=netview.reach(spec, self.host),
            migrate_exit=spec.migrate_exit,
            migrate_linger=spec.migrate_linger,
            rules=spec.forwards if spec.namespace is None else spec.forwards + spec.namespace.forwards,
            room=self.room_later,
            conf_fd=-1 if self.conf is None else self.conf.detach(),
            port_rights=self.port_rights,
        )
        mind = control.Control(start, ends)
        self._change_identity()
        refused = lib.lg_control_confine(name)
        if refused < 0:
            self.log.warning(f"Control keeps privileges that it does not need: {os.strerror(-refused)}")
        return control.run(mind)

    @property
    def told_early(self) -> bool:
        """Whether READY means that the guest's network is complete, and control comes later: it is not needed at once
        where the guest has its addresses already, and nobody looks on from the first frame."""
        namespace, looks_on = self.spec.namespace, self.capture_fd >= 0 or self.log.level >= log.DEBUG
        return namespace is not None and namespace.config_net and not looks_on

    def _tell_worker(self, ends: keeper.Ends, inside: Inside) -> None:
        from lockgate.plugin.namespace import agent_records, first_words

        try:
            first_words.tell(ends.cmd, self.view.pack(1), [*self.forwards, *self.link.outward], inside)
        except ConnectionError:
            return  # the keeper says how the worker has ended
        except agent_records.AgentError:
            ends.say_told(errno.ESRCH)
        except OSError as refusal:
            ends.say_told(refusal.errno or errno.EINVAL)
        else:
            ends.say_told(0)

    def _reassign(self, before: Assignments) -> tuple[Assignments, int]:
        """In control, when something has changed on the host."""
        self.host = netview.look_again(self.spec, self.host)
        self.link.follow(self.host, before, self.log)
        return netview.follow(self.spec, self.host, before), netview.reach(self.spec, self.host)


# ---- small things ----


def _link_of(spec: NetworkSpec, awaited: Awaited | None) -> SocketLink | NamespaceLink | VirtualLink:
    if awaited is not None:
        from lockgate.plugin.gateway.links.link_virtual import VirtualLink

        return VirtualLink(spec, awaited)
    if spec.link != vocabulary.TAP:
        from lockgate.plugin.link_socket import SocketLink

        return SocketLink(spec, fill_standard_streams)
    from lockgate.plugin.link_namespace import NamespaceLink

    return NamespaceLink(spec)


def _let_go_of(streams: range) -> None:
    """/dev/null in the place of the caller's own."""
    null = open_null()
    for stream in streams:
        os.dup2(null, stream)
    os.close(null)


def _worker_flags() -> int:
    """What tests and comparisons switch off."""
    flags: int = lib.LG_WORKER_NO_PEEK_OFF if os.environ.get(PEEK_VARIABLE) == "discard" else 0
    return flags | (lib.LG_WORKER_NO_REORDER if os.environ.get(REORDER_VARIABLE) == "off" else 0)


def _empty(fd: int) -> None:
    try:
        os.ftruncate(fd, 0)
    except OSError:
        pass  # a FIFO, a terminal: there is nothing to be emptied


def _in_initial_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", "rb", buffering=0) as file:
            return tuple(file.read(128).decode().split()) == _INITIAL_UID_MAP
    except OSError:
        return True  # without /proc, the careful answer
