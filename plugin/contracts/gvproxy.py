# SPDX-License-Identifier: Apache-2.0
"""The contract `gvproxy`: what its callers (podman machine, libkrun, krunkit, crc) write on a command line and in a
file, as a NetworkSpec.

Called by the wrapper before READY, hence the light imports. Adversary: whoever made the command line. Invariants: the
result is complete and checked, or Stop says how the command ends; nothing is printed here, nothing is made. The machine
is asked whether a socket's path is taken, whether an SSH key is there, and whether there is IPv6.

Two kinds of faults, as callers know them. What is wrong with the words ends the command with one line at level fatal
and status 1. What others find out when they listen (a scheme that is none, an MTU that nothing can have) is one line
"gvproxy exiting: ..." at level error, and status 0; what a start finds out later is told in the same way
(NetworkSpec.failure_prefix, failure_status).

The order of the checks is part of the contract. Where both file and command line say something, the command line
counts; for the subnet and the addresses in it, the file.
"""

from __future__ import annotations

import posix
import time

from lockgate.plugin import address, logrus
from lockgate.plugin import spec as vocabulary
from lockgate.plugin.contracts import goflags, place
from lockgate.plugin.contracts.gvproxy_options import FLAGS, GVPROXY
from lockgate.plugin.contracts.gvproxy_settings import Settings
from lockgate.plugin.forward_rule import TCP, ForwardRule
from lockgate.plugin.gateway.virtual_network import (
    BESS,
    DEVICE_MAC,
    MTU_DEFAULT,
    QEMU,
    STDIO,
    UNIX,
    UNIXGRAM,
    UNIXPACKET,
    VFKIT,
    VPNKIT,
    Place,
    PortForward,
    Record,
    SshForward,
    Zone,
)
from lockgate.plugin.spec import NetworkSpec, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION_LINE = "gvproxy version v0.8.9"  # of the program whose contract this is: macadam and others compare it
FAILURE_PREFIX = "gvproxy exiting: "

SSH_PORT_NONE = -1
SSH_PORTS = range(1024, 65536)
GUEST_SSH_PORT = 22
MTU_RANGE = range(68, 65535 - 14 + 1)  # of IPv4 (RFC 791 §3.2), and of the longest frame less its Ethernet header
SUBNET_BITS_MAX = 29  # the smallest network in which the three addresses are three
DNS_ZONES = ("containers.internal.", "docker.internal.")
VPNKIT_UUID = "c3d68012-0208-11ea-9fd7-f2189899ab08"  # of the guest of Docker Desktop's old HyperKit

_LINK_KINDS = {BESS: vocabulary.SEQPACKET, VFKIT: vocabulary.DGRAM}  # others: a stream
_LINK_SCHEMES = {BESS: (UNIXPACKET,), VFKIT: (UNIXGRAM,)}  # others: whatever can be listened at
# Of these, a file that is there already is in the way: it could be somebody's.
_OWN_FILE = {QEMU: UNIX, BESS: UNIXPACKET, VFKIT: UNIXGRAM}
_LOG_LEVELS = {
    logrus.INFO: vocabulary.INFO,
    logrus.DEBUG: vocabulary.DEBUG,
    logrus.TRACE: vocabulary.TRACE,
}  # others: quiet


def parse(argv: Sequence[str], program_name: str, own_link: str = "") -> NetworkSpec:
    """What the words after the command's name ask for; program_name is argv[0], for the usage text; own_link is the
    path of the link's socket where that has been made for them already. Raises Stop."""
    values = goflags.parse(FLAGS, argv, program_name)
    if values.switch("version"):
        raise Stop(0, f"{VERSION_LINE}\n")
    request = _Request(values, own_link)
    try:
        request.read()
        request.check()
        return request.spec([program_name, *argv])
    except _Fatal as fault:
        raise request.end(1, logrus.FATAL, str(fault)) from None
    except _Failure as fault:
        raise request.end(0, logrus.ERROR, f"{FAILURE_PREFIX}{fault}") from None


def log_file_fault(path: str) -> Stop:
    """How the command ends if there can be no such log file."""
    return Stop(1, "", logrus.line(logrus.FATAL, f"unable to open log file {path}", time.time()))


class _Fatal(Exception):
    """The configuration is wrong."""


class _Failure(Exception):
    """The configuration is right, and cannot be had."""


class _Request:
    """Command line and file, on the way to a NetworkSpec."""

    __slots__ = ("_from_file", "_level", "_links", "_mtu", "_own_link", "_settings", "_values")

    def __init__(self, values: goflags.Values, own_link: str) -> None:
        self._values = values
        self._own_link = own_link
        self._settings = Settings()
        self._settings.log_file = values.text("log-file")  # the file's own faults go there, too
        self._from_file = bool(values.text("config"))
        self._level = logrus.DEBUG if values.switch("debug") else logrus.INFO
        self._links: dict[str, place.Url] = {}
        self._mtu = MTU_DEFAULT

    def end(self, exit_code: int, level: str, message: str) -> Stop:
        """With what would have been said before, as far as the level lets it; why it ends is said in any case."""
        said = [(logrus.WARNING, text) for text in self._settings.warnings]
        if exit_code == 0:
            said.append((logrus.INFO, VERSION_LINE))
        heard = logrus.LEVELS[: logrus.LEVELS.index(self._level) + 1]
        now = time.time()
        said = [(one, text) for one, text in said if one in heard]
        lines = [logrus.line(one, text, now) for one, text in [*said, (level, message)]]
        return Stop(exit_code, "", "".join(lines), self._settings.log_file or None)

    # ---- file and command line ----

    def read(self) -> None:
        values, settings = self._values, self._settings
        if self._from_file:
            from lockgate.plugin.contracts import gvproxy_config

            try:
                gvproxy_config.read(values.text("config"), settings)
            except gvproxy_config.ConfigError as fault:
                raise _Fatal(str(fault)) from None
        self._choose_level()
        settings.log_file = values.text("log-file") or settings.log_file
        settings.pid_file = values.text("pid-file") or settings.pid_file
        settings.services = values.text("services") or settings.services
        settings.listen = values.list("listen") or settings.listen
        settings.mtu = values.number("mtu") or settings.mtu
        settings.virtual.allow_link_local |= values.switch("ec2-metadata-access")
        settings.subnet = settings.subnet or values.text("subnet")
        settings.gateway_ip = settings.gateway_ip or values.text("gatewayIP")
        settings.device_ip = settings.device_ip or values.text("deviceIP")
        settings.host_ip = settings.host_ip or values.text("hostIP")
        for kind in (QEMU, BESS, VFKIT, VPNKIT, STDIO):
            settings.links[kind] = values.text(f"listen-{kind}") or settings.links.get(kind, "")

    def _choose_level(self) -> None:
        settings = self._settings
        level = logrus.DEBUG if self._values.switch("debug") else logrus.level_of(settings.log_level or logrus.INFO)
        if level is None:
            settings.warnings.append(f'bad log level "{settings.log_level}", falling back to "info"')
        self._level = level or logrus.INFO

    # ---- checks, in their order ----

    def check(self) -> None:
        self._check_addresses()
        self._take_notification()
        for kind in (QEMU, BESS, VFKIT):
            self._check_link(kind)
        self._check_conflicts()
        if self._from_file:
            self._warn_about_ignored_flags()
            self._warn_about_strangers()
        else:
            self._take_defaults()
        self._take_ssh_forwards()

    def _check_addresses(self) -> None:
        settings, virtual = self._settings, self._settings.virtual
        if settings.subnet:
            self._take_subnet()
        virtual.gateway = self._address("gateway", settings.gateway_ip, 1)
        virtual.device = self._address("device", settings.device_ip, 2)
        virtual.host = self._address("host", settings.host_ip, -2)
        if len({virtual.gateway, virtual.device, virtual.host}) < 3:
            raise _invalid("IP addresses need to be distinct")
        virtual.nat = virtual.nat or {virtual.host: address.LOOPBACK4}
        virtual.virtual_addresses = virtual.virtual_addresses or (virtual.host,)

    def _take_subnet(self) -> None:
        """Another than a virtual network has by default."""
        from lockgate.plugin.contracts import subnet

        virtual, text = self._settings.virtual, self._settings.subnet
        try:
            virtual.subnet, virtual.prefix_length = subnet.parse(text)
        except subnet.SubnetError as fault:
            raise _Fatal(f"failed to parse subnet: {logrus.quote(text)}: {fault}") from None

    def _address(self, name: str, text: str, offset: int) -> bytes:
        """One of the three, or the one that is so far from the subnet's beginning, or from its end."""
        virtual = self._settings.virtual
        if not text:
            if virtual.prefix_length > SUBNET_BITS_MAX:
                raise _Fatal(f"failed to identify usable {name} IP address in subnet: subnet too small")
            size = 1 << (32 - virtual.prefix_length)
            number = int.from_bytes(virtual.subnet[12:], "big") + offset % size
            return address.IPV4_MAPPED + number.to_bytes(4, "big")
        ip = address.parse_ipv4(text)
        if ip is None:
            raise _invalid(f"invalid IP address: {text}")
        first, last = address.bounds(virtual.subnet, virtual.prefix_length)
        if not first <= ip <= last:
            raise _invalid(f"IP ({text}) not in subnet ({address.to_text(first)}/{virtual.prefix_length})")
        if ip == last:
            raise _invalid(f"IP must not be broadcast address: {text}")
        return ip

    def _take_notification(self) -> None:
        """A URL on the command line, a path in the file."""
        virtual, text = self._settings.virtual, self._values.text("notification")
        if text:
            url = _url("notification", text)
            if url.scheme != UNIX:
                raise _Fatal("notification listen address must be unix:// address")
            virtual.notification = url.path
        if text or virtual.notification:
            try:
                place.check_path(UNIX, virtual.notification)
            except place.PlaceError as fault:
                raise _Fatal(f"invalid value for notification listen address: {fault}") from None

    def _check_link(self, kind: str) -> None:
        text = self._settings.links[kind]
        if not text:
            return
        self._links[kind] = url = _url(kind, text)
        schemes = _LINK_SCHEMES.get(kind)
        if schemes and url.scheme not in schemes:
            raise _Fatal(f"{kind} listen address must be {schemes[0]}:// address")
        if url.scheme == _OWN_FILE[kind] and url.path != self._own_link and _exists(url.path):
            raise _Fatal(f"{logrus.quote(url.path)} already exists")

    def _check_conflicts(self) -> None:
        """One link of its own is all that a network has; guests more come by `listen`."""
        given = [kind for kind in (QEMU, BESS, VPNKIT, VFKIT, STDIO) if self._settings.links[kind]]
        if len(given) > 1:
            raise _Fatal(f"cannot use {given[0]} and {given[1]} protocol at the same time")

    def _warn_about_ignored_flags(self) -> None:
        values, warnings = self._values, self._settings.warnings
        if values.given("ssh-port"):
            device = address.to_text(self._settings.virtual.device)
            entry = f'"127.0.0.1:{values.number("ssh-port")}: {device}:{GUEST_SSH_PORT}"'
            warnings.append(f"-ssh-port is ignored with -config; add {entry} to stack.forwards of the file instead")
        if values.given("pcap"):
            warnings.append("-pcap is ignored with -config; name the file as stack.capture-file there instead")

    def _warn_about_strangers(self) -> None:
        """What leads out of the subnet is no mistake to other programs, and never answered."""
        settings, virtual = self._settings, self._settings.virtual
        first, last = address.bounds(virtual.subnet, virtual.prefix_length)
        network = f"{address.to_text(first)}/{virtual.prefix_length}"
        targets = [
            (f"stack.forwards: {one.local}", rule.target)
            for one, rule in zip(virtual.forwards, settings.rules, strict=True)
        ]
        leases = [("stack.dhcpStaticLeases", ip) for ip in virtual.device_leases]
        for key, ip in [*targets, *leases]:
            if not first < ip < last:
                settings.warnings.append(f"{key}: no guest can have {address.to_text(ip)}, which is not in {network}")

    def _take_defaults(self) -> None:
        """What only a command line without a file brings along."""
        port = self._values.number("ssh-port")
        if port != SSH_PORT_NONE and port not in SSH_PORTS:
            raise _Fatal("ssh-port value must be between 1024 and 65535")
        settings, virtual = self._settings, self._settings.virtual
        settings.capture_file = self._values.text("pcap")
        records = (Record("gateway", virtual.gateway), Record("host", virtual.host))
        virtual.zones = tuple(Zone(name, records) for name in DNS_ZONES)
        virtual.search = None
        virtual.device_leases = {virtual.device: DEVICE_MAC}
        virtual.vpnkit_macs = {VPNKIT_UUID: DEVICE_MAC}
        if port != SSH_PORT_NONE:
            forward = PortForward("tcp", f"127.0.0.1:{port}", f"{address.to_text(virtual.device)}:{GUEST_SSH_PORT}")
            virtual.forwards = (forward,)
            settings.rules = [ForwardRule.of_port(TCP, address.LOOPBACK4, port, virtual.device, GUEST_SSH_PORT)]

    def _take_ssh_forwards(self) -> None:
        """Those of the command line, which belong together by their places, come behind those of the file."""
        virtual = self._settings.virtual
        names = ("forward-sock", "forward-dest", "forward-user", "forward-identity")
        lists = [self._values.list(name) for name in names]
        if len(set(map(len, lists))) > 1:
            every = ", ".join(f"--{name}" for name in names[:-1])
            raise _Fatal(
                f"{every}, and --{names[-1]} must all be specified together, the same number of times, or not at all"
            )
        ours = [SshForward(*parts) for parts in zip(*lists, strict=True)]
        virtual.ssh_forwards = (*virtual.ssh_forwards, *ours)
        for forward in virtual.ssh_forwards:
            try:
                posix.stat(forward.identity)
            except OSError as failure:
                reason = f"stat {forward.identity}: {_go_error(failure)}"
                raise _Fatal(f"identity file {logrus.quote(forward.identity)} can't be loaded: {reason}") from None

    # ---- what others find out when they listen ----

    def spec(self, words: list[str]) -> NetworkSpec:
        settings, virtual = self._settings, self._settings.virtual
        self._mtu = settings.mtu or MTU_DEFAULT
        if self._mtu not in MTU_RANGE:
            raise _Failure("mtu is out of range")
        virtual.listen = tuple(_place("cannot listen", text) for text in settings.listen)
        virtual.services = _place("cannot listen", settings.services) if settings.services else None
        self._take_link()
        for forward in virtual.ssh_forwards:
            forward.path = _socket_path(forward.path)
        return self._finished(words)

    def _take_link(self) -> None:
        virtual = self._settings.virtual
        for kind, text in self._settings.links.items():
            if kind == STDIO and text:
                virtual.transport, virtual.link = kind, Place(STDIO, text)
            elif text:
                schemes = _LINK_SCHEMES.get(kind, place.LISTENING)
                virtual.transport, virtual.link = kind, _place(f"{kind} listen error", text, schemes)

    def _finished(self, words: list[str]) -> NetworkSpec:
        settings, virtual = self._settings, self._settings.virtual
        link = virtual.link
        spec = NetworkSpec(
            contract=GVPROXY,
            link=_LINK_KINDS.get(virtual.transport, vocabulary.STREAM),
            socket_path=link.path if link and link.path else None,
            one_off=virtual.transport in (QEMU, BESS, VFKIT, STDIO),
            foreground=True,
            log_level=vocabulary.TRACE if settings.debug else _LOG_LEVELS.get(self._level, vocabulary.QUIET),
            log_file=settings.log_file or None,
            pid_file=settings.pid_file or None,
            pcap_file=settings.capture_file or None,
            mtu=self._mtu,
            mac=virtual.gateway_mac,
            search=virtual.search,
        )
        spec.virtual = virtual
        spec.forwards = tuple(settings.rules)
        spec.ipv4.address, spec.ipv4.prefix_length = virtual.device, virtual.prefix_length
        spec.ipv4.gateway, spec.ipv4.dns = virtual.gateway, (virtual.gateway,)
        spec.ipv4.map_host_loopback = _host_loopback(virtual.nat, virtual.host)
        spec.ipv6.enabled = virtual.ipv6 = virtual.ipv6 and address.has_ipv6()
        spec.failure_prefix, spec.failure_status = FAILURE_PREFIX, 0
        spec.warnings, spec.notes = settings.warnings, [VERSION_LINE]
        if spec.log_level in (vocabulary.DEBUG, vocabulary.TRACE):
            spec.details = _details(words)
        return spec


def _details(words: list[str]) -> list[str]:
    from lockgate.plugin.version import VERSION

    return [
        f"lockgate {VERSION}, as {VERSION_LINE}",
        f"os: {logrus.quote('linux')} arch: {logrus.quote(posix.uname().machine)}",
        f"command line: {logrus.quote_list(words)}",
    ]


def _invalid(reason: str) -> _Fatal:
    return _Fatal(f"failed to validate configuration IPs: {reason}")


def _url(name: str, text: str) -> place.Url:
    try:
        return place.Url(text)
    except place.UrlError as fault:
        raise _Fatal(f"invalid value for {name} listen address: {fault}") from None


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL, which is told later
        return False
    return True


def _place(what: str, text: str, schemes: Sequence[str] = place.LISTENING) -> Place:
    try:
        return place.place(place.Url(text), schemes)
    except (place.UrlError, place.PlaceError) as fault:
        raise _Failure(f"{what}: {fault}") from None


def _socket_path(text: str) -> str:
    """Of -forward-sock: a path, or a URL."""
    if text.startswith(f"{UNIX}://"):
        return _place("cannot listen", text, (UNIX,)).path
    try:
        place.check_path(UNIX, text)
    except place.PlaceError as fault:
        raise _Failure(f"cannot listen: {fault}") from None
    return text


def _host_loopback(nat: dict[bytes, bytes], host: bytes) -> bytes:
    """What guests call the host's loopback; of several addresses, the one that is known as the host's."""
    names = [name for name, real in nat.items() if real == address.LOOPBACK4]
    return host if host in names else names[0] if names else address.UNSET


def _go_error(failure: OSError) -> str:
    """Go has the same texts, in small letters."""
    text = str(failure.strerror)
    return f"{text[:1].lower()}{text[1:]}"
