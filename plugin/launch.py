# SPDX-License-Identifier: Apache-2.0
"""The start: from the command line to the keeper. main() is what the launcher runs for each of the four commands.

Called by packaging/launcher.c through `python -I`, as whatever command the caller typed.
Adversary: nobody; the caller has all the rights that are used here. What it left behind (descriptors, closed standard
streams, ignored signals) is put right first, because a later stage would trip over it.

Invariants: what needs the caller's rights is opened here and nowhere later; after that the rights are given up. What is
wrong is said in one line, with exit status 1, and a start that does not come to READY takes back the files that it has
made, all but the log. Nothing heavy is imported before READY: a test fixes the list.
"""

from __future__ import annotations

import _socket
import errno
import gc
import os
import sys

from lockgate.core import worker as core_worker
from lockgate.core._datapath import lib
from lockgate.plugin import announcement, forwards, hostnet, identity, keeper, log, netview, ports
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.link_socket import SocketLink
from lockgate.plugin.made_files import FileError, MadeFiles
from lockgate.plugin.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.contracts.forward_spec import ForwardRule
    from lockgate.plugin.gateway.links.link_virtual import VirtualLink
    from lockgate.plugin.hostnet import HostNet
    from lockgate.plugin.link_namespace import NamespaceLink
    from lockgate.plugin.namespace.inside import Inside
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec

LOG_FORMAT_VARIABLE = "LOCKGATE_LOG_FORMAT"  # "json": one JSON object a line on stderr
PEEK_VARIABLE = "LOCKGATE_TCP_PEEK"  # "discard": act as on a kernel without SO_PEEK_OFF for TCP
REORDER_VARIABLE = "LOCKGATE_TCP_REORDER"  # "off": drop what comes ahead of a gap, to compare with

FEW_FLOWS = 512  # a limit on open files that allows no more is worth a warning: a browser alone opens a hundred

CONF_BACKLOG = 16  # clients of --conf-path that wait for their turn; more wait in connect()

_SIGINT = 2  # the `signal` module would import enum

NOBODY = 65534  # uid and gid; the number is the kernel's own "overflow" id, whatever /etc/passwd calls it
_INITIAL_UID_MAP = ("0", "0", "4294967295")

_PLUGIN_COMMANDS = ("create", "setup", "teardown", "info")  # of netavark's, for which `lockgate` is a driver

_LEVELS = {
    vocabulary.QUIET: log.WARNING,
    vocabulary.INFO: log.INFO,
    vocabulary.DEBUG: log.DEBUG,
    vocabulary.TRACE: log.DEBUG,
}

USAGE = """\
usage: lockgate --version

lockgate gives a VM, or a container, a network out of ordinary sockets. It is started by container runtimes and VM
monitors, under the names passt, pasta and gvproxy (see their --help).
"""


def main() -> None:
    """Never returns. Python's own shutdown is skipped: it would take milliseconds to free what exit frees."""
    gc.disable()  # nothing here makes cycles worth collecting; control turns it on again for itself
    _fill_standard_streams()
    try:
        os._exit(_command(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:  # nothing has been left behind; now the end that the caller expects of this signal
        lib.lg_signals_open(0)  # SIGINT is the kernel's again, not Python's
        os.kill(os.getpid(), _SIGINT)


def _command(name: str, arguments: list[str]) -> int:
    lib.lg_process_name(os.fsencode(name))
    lib.lg_show_command()
    if name == "rootlessport":
        from lockgate.plugin.bridge import rootlessport

        return rootlessport.main()
    if "gvproxy" in name:
        from lockgate.plugin.contracts import gvproxy

        return _serve(name, arguments, gvproxy.parse)
    if "pasta" in name:
        from lockgate.plugin.contracts import pasta

        return _serve(name, arguments, pasta.parse)
    if "passt" in name:
        from lockgate.plugin.contracts import passt

        return _serve(name, arguments, passt.parse)
    if arguments and arguments[0] in _PLUGIN_COMMANDS:
        from lockgate.plugin.bridge import netavark_plugin

        return netavark_plugin.main(arguments)
    if arguments == ["--version"]:
        return _answer(1, f"lockgate {VERSION}\n", 0)
    return _answer(1, USAGE, 0) if arguments in ([], ["--help"], ["-h"]) else _answer(2, USAGE, 1)


def _serve(name: str, arguments: list[str], parse: Callable[[list[str], str], NetworkSpec]) -> int:
    try:
        spec = parse(arguments, name)
    except vocabulary.Stop as stop:
        return _stop(stop)
    form = None
    if spec.virtual is not None:
        from lockgate.plugin import logrus

        form = logrus.line
        # What ends us waits until all that we make can go along.
        os.close(lib.lg_signals_open(lib.LG_SIGNALS_INTERRUPT))
    lines = log.Log(spec.contract, _LEVELS[spec.log_level], os.environ.get(LOG_FORMAT_VARIABLE) == "json", form)
    made = MadeFiles()
    try:
        start = Start(name, spec, lines, made)
        if not spec.foreground:
            start.leave_caller()
        return start.keep()
    except (vocabulary.StartError, FileError) as fault:
        lines.error(f"{spec.failure_prefix}{fault}")
        return spec.failure_status
    except vocabulary.Stop as stop:
        return _stop(stop)
    finally:
        made.take_back()


def _stop(stop: vocabulary.Stop) -> int:
    """How a command ends whose words say so. Where they name a log file, the caller reads there what is wrong with
    them."""
    _answer(1, stop.stdout_text, 0)
    if stop.log_file is None:
        return _answer(2, stop.stderr_text, stop.exit_code)
    try:
        file = log.PlainFile(stop.log_file)
    except OSError:
        from lockgate.plugin.contracts import gvproxy

        return _stop(gvproxy.log_file_fault(stop.log_file))
    return _answer(file.fd, stop.stderr_text, stop.exit_code)


def _answer(stream: int, text: str, exit_code: int) -> int:
    data = os.fsencode(text)
    while data:
        try:
            data = data[os.write(stream, data) :]
        except OSError:
            break  # the caller does not want to know
    return exit_code


def _fill_standard_streams() -> None:
    """A caller that closed 0, 1 or 2 would find our sockets there, and our log lines in them."""
    while True:
        fd = _open_null()  # the lowest free number; Python makes it close-on-exec, we never exec
        if fd > 2:
            os.close(fd)
            return


def _open_null() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:  # a sandbox without /dev: nothing can be read of this one either, and nothing be written
        read_end, write_end = os.pipe()
        os.close(write_end)
        return read_end


def _let_go_of(streams: range) -> None:
    """/dev/null in the place of the caller's own."""
    null = _open_null()
    for stream in streams:
        os.dup2(null, stream)
    os.close(null)


def _link_of(spec: NetworkSpec) -> SocketLink | NamespaceLink | VirtualLink:
    if spec.virtual is not None:
        from lockgate.plugin.gateway.links.link_virtual import VirtualLink

        return VirtualLink(spec)
    if spec.link != vocabulary.TAP:
        return SocketLink(spec, _fill_standard_streams)
    from lockgate.plugin.link_namespace import NamespaceLink

    return NamespaceLink(spec)


class Start:
    """All that the caller's rights opened, step by step; each step that fails raises StartError or FileError."""

    def __init__(self, name: str, spec: NetworkSpec, lines: log.Log, made: MadeFiles) -> None:
        self.name = name
        self.spec = spec
        self.log = lines
        self.made = made
        self.ready_fd = -1  # tells the process that the caller waits for, if that is another
        lib.lg_close_all_but([-1 if spec.socket_fd is None else spec.socket_fd], 1)
        self.link = _link_of(spec)
        self._open_log()
        self.pid_fd = self._open_pid_file()
        self.host, self.view = self._read_network()
        descriptors = core_worker.raise_descriptor_limit()
        self.room = descriptors - core_worker.FLOW_DESCRIPTORS_SPARED  # for sockets that listen
        self.forwards = self._bind_forwards()
        fixed = len(self.forwards) + self._check_outward()
        self.flow_limit = core_worker.flow_limit(descriptors - fixed)
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

    def _open_log(self) -> None:
        spec = self.spec
        if spec.log_file and spec.virtual is not None:
            try:
                self.log.write_only_to(spec.log_file)
            except OSError:
                from lockgate.plugin.contracts import gvproxy

                raise gvproxy.log_file_fault(spec.log_file) from None
        elif spec.log_file:
            try:
                self.log.file = log.LogFile(spec.log_file, spec.log_size, f"{spec.contract} {VERSION}")
            except OSError as failure:
                raise vocabulary.StartError(f"Log file {spec.log_file} cannot be opened: {failure.strerror}") from None
        elif self.log.level < log.DEBUG and spec.virtual is None:
            self.log.open_syslog()
        for warning in spec.warnings:
            self.log.warning(warning)
        for note in spec.notes:
            self.log.info(note)
        for detail in spec.details:
            self.log.debug(detail)

    def _open_pid_file(self) -> int:
        """That of a virtual network is there, whole and without a newline, from the start on, and goes with us: Podman
        takes any other for a machine that cannot be stopped."""
        path = self.spec.pid_file
        if not path:
            return -1
        if self.spec.virtual is None:
            return self.made.open_for_writing(path, "PID file")
        self.made.write_whole(path, "PID file", b"%d" % os.getpid())
        return -1

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
            if self.spec.virtual is not None and fault.refused:
                from lockgate.plugin.gateway import forward_words

                raise vocabulary.StartError(forward_words.start_failure(fault.refused[0])) from None
            raise vocabulary.StartError(str(fault)) from None

    def _bind(self, rules: list[ForwardRule]) -> list[forwards.Listener]:
        def bind(warn: Callable[[str], None]) -> list[forwards.Listener]:
            return forwards.bind(rules, self.room, warn, forwards.on_host(self.spec.freebind))

        if self.spec.virtual is not None:
            return bind(lambda line: None)  # the error says it, in the words of that contract
        if self.spec.namespace is None:
            return bind(self.log.warning)
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
        from lockgate.plugin import control

        start = control.Start(
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
        self.link.follow(self.host, self.log)
        return netview.follow(self.spec, self.host, before), netview.reach(self.spec, self.host)


# ---- small things ----


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
