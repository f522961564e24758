# SPDX-License-Identifier: Apache-2.0
"""What the contracts passt and pasta have in common: the options of both, and the checks that need all of them.

Called by passt.py and pasta.py, before READY, hence the light imports. Adversary: whoever made the command line.
Invariants: as passt.py has them. Each option with more to it than fields of the NetworkSpec has a method here, or in
the contract that alone takes it, named after it: on_mac_addr is that of --mac-addr.
"""

from __future__ import annotations

import _socket
import os

from lockgate.plugin import address, resolvconf
from lockgate.plugin.contracts.getopt import GetoptError
from lockgate.plugin.contracts.passt_options import GROUPS
from lockgate.plugin.contracts.strtoul import strtoul
from lockgate.plugin.spec import DEBUG, TRACE, FamilySpec, NetworkSpec, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockgate.plugin.contracts.getopt import Getopt, Option
    from lockgate.plugin.forward_rule import ForwardRule

    Forward = tuple[str, int, str]  # option, protocol, words

SOCKET_PATH_MAX = 107  # bytes: sun_path of unix(7) holds 108 with the closing NUL
PATH_MAX = 4095  # bytes, <linux/limits.h>, also without the NUL
MTU_MAX = 65535 - 14  # the longest frame less its Ethernet header
MTU_MIN_IPV4 = 68  # RFC 791 §3.2
MTU_MIN_IPV6 = 1280  # RFC 8200 §5
MTU_MIN_TCP = 88  # no Linux sends segments of less than 48 bytes, whatever the MTU; headers take 40
STATS_SECONDS_MAX = 1 << 20  # twelve days: longer than that, nobody waits for a table
LOG_SIZE_MIN = 5 * 8192  # five of passt's buffers: the file is cut at its head by buffers
_GROUP_BIT = 1  # of the first byte of a MAC address

EPHEMERAL_FILE = "/proc/sys/net/ipv4/ip_local_port_range"  # of both families
EPHEMERAL_DEFAULT = (49152, 65535)  # RFC 6335 §6, where the kernel does not say


class Request:
    """A NetworkSpec in the making, and what must be remembered until the last option is known."""

    __slots__ = ("_cidr", "_cidr_length", "_netmask", "_unbuilt", "forwards", "spec")

    synopsis = ""  # of the usage text
    may_follow = False  # whether there is a namespace, so that ports can follow what listens

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self._cidr = False  # whether the last --address came with a prefix length
        self._cidr_length = 0  # that of the last IPv4 --address
        self._netmask: int | None = None
        self.forwards: list[Forward] = []  # from the host to the guest
        self._unbuilt: Option | None = None

    def take_all(self, words: Getopt) -> Sequence[str]:
        """Returns the words that are no options."""
        try:
            for option, argument in words:
                self._take(option, argument)
        except GetoptError as error:
            raise Stop(1, "", f"{error}\n{self._usage()}") from None
        return words.rest

    def _take(self, option: Option, argument: str) -> None:
        if option.mode not in ("", self.spec.contract):
            raise refusal(f"--{option.name} is for {option.mode} only; leave it out, or run {option.mode}")
        if not option.built:
            self._unbuilt = self._unbuilt or option
            return
        for field, value in option.sets.items():
            setattr(self.spec, field, value)
        method: Callable[[str], None] | None = getattr(self, f"on_{option.name.replace('-', '_')}", None)
        if method:
            method(argument)

    def finish(self) -> None:
        """The checks that need all options; forwards come after them."""
        spec = self.spec
        if self._unbuilt:
            raise refusal(f"--{self._unbuilt.name} is not built into lockgate yet")
        self._require_ipv6()
        # A prefix length of 0 counts as not given: it would put the whole Internet on the guest's link.
        length = self._netmask or self._cidr_length
        if not length and spec.ipv4.address != address.UNSET:
            length = address.class_prefix_length(spec.ipv4.address)
        spec.ipv4.prefix_length = length
        self._warn_about_mtu()

    def _require_ipv6(self) -> None:
        """A kernel without IPv6 is no fault, unless nothing else was wanted."""
        spec = self.spec
        if not spec.ipv6.enabled or address.has_ipv6():
            return
        if not spec.ipv4.enabled:
            raise refusal("--ipv6-only: this kernel has no IPv6; leave it out")
        spec.ipv6.enabled = False

    def rules(self, wanted: Sequence[Forward], *, outbound: bool = False) -> tuple[ForwardRule, ...]:
        """What forwards of one direction add up to."""
        if not wanted:
            return ()
        from lockgate.plugin.contracts import forward_spec  # few callers need it, and each module costs time

        spec = self.spec
        scope = forward_spec.Scope(
            ipv4=spec.ipv4.enabled,
            ipv6=spec.ipv6.enabled,
            tcp=not spec.no_tcp,
            udp=not spec.no_udp,
            ephemeral=ephemeral_ports,
            auto=self.may_follow,
            outbound=outbound,
        )
        rules: tuple[ForwardRule, ...] = ()
        for option, protocol, text in wanted:
            before = len(rules)
            try:
                rules = forward_spec.add(rules, option, protocol, text, scope)
            except forward_spec.ForwardSpecError as mistake:
                raise refusal(str(mistake)) from None
            if len(rules) == before and text != "none":
                spec.warnings.append(f"{option} {text}: forwards nothing, because it leaves out all that it names")
        return rules

    def add_forwards(self) -> None:
        """To the guest."""
        self.spec.forwards = self.rules(self.forwards)
        for rule in self.spec.forwards:
            if address.is_loopback(rule.target):
                self.spec.warnings.append(f"{rule}: what comes from outside does not reach the guest's loopback")

    def _warn_about_mtu(self) -> None:
        mtu = self.spec.mtu
        for name, family, least in (("IPv4", self.spec.ipv4, MTU_MIN_IPV4), ("IPv6", self.spec.ipv6, MTU_MIN_IPV6)):
            if 0 < mtu < least and family.enabled:
                self.spec.warnings.append(f"--mtu {mtu}: {name} needs at least {least} and may not work")
        if 0 < mtu < MTU_MIN_IPV4:
            self.spec.warnings.append(f"--mtu {mtu}: packets to the guest are made for {MTU_MIN_IPV4} all the same")
        if 0 < mtu < MTU_MIN_TCP and self.spec.ipv4.enabled:
            self.spec.warnings.append(
                f"--mtu {mtu}: Linux guests fragment TCP below {MTU_MIN_TCP}, and it will not work"
            )

    def want(self, forwards: list[Forward], option: str, protocol: int, text: str) -> None:
        forwards.append((option, protocol, text))

    # What these two need is rarely wanted, and each module costs a tenth of a millisecond.

    def _version(self) -> str:
        from lockgate.plugin.version import VERSION

        name = self.spec.contract
        return (
            f"{name} {VERSION}\nlockgate {VERSION}, a drop-in for {name}\n"
            "Licensed under the Apache License, Version 2.0 <https://www.apache.org/licenses/LICENSE-2.0>\n"
            "There is no warranty.\n"
        )

    def _usage(self) -> str:
        from lockgate.plugin.contracts.usage import usage

        return usage(self.synopsis, self.spec.contract, GROUPS)

    # One method an option, named after it; what only fills a field is in the table.

    def on_help(self, _: str) -> None:
        raise Stop(0, self._usage())

    def on_version(self, _: str) -> None:
        raise Stop(0, self._version())

    def on_debug(self, _: str) -> None:
        if self.spec.log_level != TRACE:
            self.spec.log_level = DEBUG

    def on_stderr(self, _: str) -> None:
        self.spec.warnings.append("--stderr is obsolete and does nothing; leave it out")

    def on_log_file(self, path: str) -> None:
        self.spec.log_file = path_of("--log-file", path)

    def on_log_size(self, text: str) -> None:
        size = strtoul(text)
        if size is None or size < LOG_SIZE_MIN:
            raise refusal(f"--log-size {text}: expected a number of bytes, at least {LOG_SIZE_MIN}")
        self.spec.log_size = size

    def on_stats(self, text: str) -> None:
        if not self.spec.foreground:
            raise refusal(f"--stats {text}: counters are printed in the foreground only; put --foreground before it")
        seconds = strtoul(text)
        if not seconds or seconds > STATS_SECONDS_MAX:
            raise refusal(f"--stats {text}: expected a number of seconds from 1 to {STATS_SECONDS_MAX}")
        self.spec.stats_seconds = seconds

    def on_runas(self, text: str) -> None:
        from lockgate.plugin import identity  # hardly anybody needs it

        try:
            self.spec.runas = identity.parse(text)
        except identity.UnknownIdentity as fault:
            raise refusal(f"--runas {text}: {fault}") from None

    def on_pid(self, path: str) -> None:
        self.spec.pid_file = path_of("--pid", path)

    def on_pcap(self, path: str) -> None:
        self.spec.pcap_file = path_of("--pcap", path)

    def on_conf_path(self, path: str) -> None:
        self.spec.conf_path = path_of("--conf-path", path, SOCKET_PATH_MAX)

    def on_ipv4_only(self, _: str) -> None:
        self.spec.ipv4.enabled, self.spec.ipv6.enabled = True, False

    def on_ipv6_only(self, _: str) -> None:
        self.spec.ipv4.enabled, self.spec.ipv6.enabled = False, True

    def on_address(self, text: str) -> None:
        host, slash, digits = text.partition("/")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        guest = address.parse(host)
        if guest is None or _is_nobodys(guest) or address.is_multicast(guest) or guest == address.BROADCAST4:
            raise refusal(f"--address {text}: expected the address of one host, IPv4 or IPv6, perhaps with /LEN")
        longest = 32 if address.is_ipv4(guest) else 128
        length = _prefix_length(digits, longest) if slash else 0
        if length is None:
            raise refusal(f"--address {text}: expected a prefix length from 0 to {longest} after the slash")
        self._cidr = bool(slash)
        self._refuse_two_lengths()
        self._family(guest).address = guest
        if address.is_ipv4(guest):  # IPv6 is always /64: SLAAC knows no other
            self._cidr_length = length

    def on_netmask(self, text: str) -> None:
        mask = address.parse_ipv4(text)
        length = strtoul(text) if mask is None else address.netmask_prefix_length(mask)
        if length is None or length > 32:
            raise refusal(f"--netmask {text}: expected an IPv4 netmask like 255.255.255.0, or a length from 0 to 32")
        self._netmask = length
        self._refuse_two_lengths()

    def _refuse_two_lengths(self) -> None:
        if self._cidr and self._netmask is not None:
            raise refusal("--netmask and --address with /LEN: redundant prefix length; give one of the two")

    def on_gateway(self, text: str) -> None:
        gateway = address.parse(text)
        if gateway is None or _is_nobodys(gateway) or gateway == address.BROADCAST4:
            raise refusal(f"--gateway {text}: expected the address of a router, IPv4 or IPv6")
        self._family(gateway).gateway = gateway

    def on_interface(self, name: str) -> None:
        self.spec.interface = _interface("--interface", name)

    def on_outbound(self, text: str) -> None:
        """An address that the host does not have (yet) is no mistake: it is tried at each connection."""
        own = _host("--outbound", text, "this host, IPv4 or IPv6")
        if ":" in text and address.is_ipv4(own):
            raise refusal(f"--outbound {text}: an IPv4 address is expected as such, {address.to_text(own)}")
        if own == address.LOOPBACK6:
            raise refusal(f"--outbound {text}: IPv6 that comes from there goes nowhere else; leave it out")
        self._family(own).outbound = own

    def on_outbound_if4(self, name: str) -> None:
        self.spec.ipv4.outbound_interface = _interface("--outbound-if4", name)

    def on_outbound_if6(self, name: str) -> None:
        self.spec.ipv6.outbound_interface = _interface("--outbound-if6", name)

    def on_mtu(self, text: str) -> None:
        mtu = strtoul(text)
        if mtu is None or mtu > MTU_MAX:
            raise refusal(f"--mtu {text}: expected a number of bytes up to {MTU_MAX}, or 0 to leave the guest's alone")
        self.spec.mtu = mtu

    def on_mac_addr(self, text: str) -> None:
        self.spec.mac = mac_of("--mac-addr", text)

    def on_map_host_loopback(self, text: str) -> None:
        if text == "none":
            self.spec.ipv4.map_host_loopback = self.spec.ipv6.map_host_loopback = address.UNSET
            return
        mapped = address.parse(text)
        if mapped is None or _is_nobodys(mapped) or address.is_multicast(mapped):
            raise refusal(
                f"--map-host-loopback {text}: expected the address of a host as the guest is to see it, no loopback "
                "one; or none"
            )
        self._family(mapped).map_host_loopback = mapped

    def on_no_map_gw(self, _: str) -> None:
        """Takes the default away, not what --map-host-loopback says, before or after."""
        for family in (self.spec.ipv4, self.spec.ipv6):
            if family.map_host_loopback is None:
                family.map_host_loopback = address.UNSET

    def on_map_guest_addr(self, text: str) -> None:
        if text == "none":
            self.spec.ipv4.map_guest = self.spec.ipv6.map_guest = address.UNSET
            return
        mapped = _host("--map-guest-addr", text, "a host as the guest is to see it, no loopback one; or none", False)
        self._family(mapped).map_guest = mapped

    def on_tcp_ports(self, text: str) -> None:
        self.want(self.forwards, "--tcp-ports", _socket.IPPROTO_TCP, text)

    def on_udp_ports(self, text: str) -> None:
        self.want(self.forwards, "--udp-ports", _socket.IPPROTO_UDP, text)

    def on_hostname(self, text: str) -> None:
        self.spec.hostname = _domain("--hostname", text) if text else ""  # as passt has it: none, again

    def on_fqdn(self, text: str) -> None:
        self.spec.fqdn = _domain("--fqdn", text) if text else ""

    def on_dns(self, text: str) -> None:
        """One more resolver of its family, up to as many as resolvers use; none takes back all about resolvers."""
        if text == "none":
            for family in (self.spec.ipv4, self.spec.ipv6):
                family.dns, family.dns_forward, family.dns_host = (), address.UNSET, address.UNSET
            return
        server = _host("--dns", text, "a resolver, IPv4 or IPv6, or none")
        family = self._family(server)
        family.dns = (*(family.dns or ()), server)[: resolvconf.SERVERS_MAX]

    def on_dns_forward(self, text: str) -> None:
        """Not a loopback address: packets to those never leave the guest."""
        forward = _host("--dns-forward", text, "a resolver as the guest is to see it, no loopback address", False)
        self._family(forward).dns_forward = forward

    def on_dns_host(self, text: str) -> None:
        server = _host("--dns-host", text, "a resolver that the host can reach, IPv4 or IPv6")
        self._family(server).dns_host = server

    def on_search(self, text: str) -> None:
        """One more domain, or several with blanks between them, as QEMU joins its list."""
        if text == "none":
            self.spec.search = ()
            return
        domains = [word.rstrip(".") for word in text.split()]
        if not domains or not all(map(resolvconf.is_domain, domains)):
            raise refusal(f"--search {text}: expected one or several domain names, or none")
        wanted = list(dict.fromkeys([*(self.spec.search or ()), *domains]))
        self.spec.search = resolvconf.limit_search(wanted)
        if len(self.spec.search) < len(wanted):
            most = f"{resolvconf.SEARCH_MAX} domains or {resolvconf.SEARCH_BYTES_MAX} bytes"
            self.spec.warnings.append(f"--search {text}: what goes beyond {most} in all is left out")

    def _family(self, ip: bytes) -> FamilySpec:
        return self.spec.ipv4 if address.is_ipv4(ip) else self.spec.ipv6


def ephemeral_ports(path: str = EPHEMERAL_FILE) -> tuple[int, int]:
    """The ports from which the kernel chooses for the host's own connections; "all" leaves them out."""
    try:
        with open(path, "rb", buffering=0) as file:
            low, high = map(int, file.read(64).split())
    except (OSError, ValueError):
        return EPHEMERAL_DEFAULT
    return (low, high) if 0 <= low <= high <= 65535 else EPHEMERAL_DEFAULT


def _is_nobodys(ip: bytes) -> bool:
    return address.is_unspecified(ip) or address.is_loopback(ip)


def _host(option: str, text: str, expected: str, loopback: bool = True) -> bytes:
    """An address that one host can have."""
    ip = address.parse(text)
    if ip is None or address.is_unspecified(ip) or address.is_multicast(ip) or ip == address.BROADCAST4:
        raise refusal(f"{option} {text}: expected the address of {expected}")
    if address.is_loopback(ip) and not loopback:
        raise refusal(f"{option} {text}: expected the address of {expected}")
    return ip


def _interface(option: str, name: str) -> str:
    try:
        _socket.if_nametoindex(name)
    except OSError:  # which carries no errno here
        raise refusal(f"{option} {name}: there is no such interface; `ip link` lists what there is") from None
    return name


def mac_of(option: str, text: str) -> bytes:
    pairs = text.lower().split(":")
    if len(pairs) != 6 or any(len(pair) != 2 or pair.strip("0123456789abcdef") for pair in pairs):
        raise refusal(f"{option} {text}: expected six pairs of hexadecimal digits, as in 9a:55:9a:55:9a:55")
    mac = bytes(int(pair, 16) for pair in pairs)
    if mac[0] & _GROUP_BIT:
        raise refusal(f"{option} {text}: expected the address of one interface, not that of a group")
    return mac


def _domain(option: str, text: str) -> str:
    """A name in the form that DHCP can carry; the dot that ends an absolute name says nothing here."""
    name = text.removesuffix(".")
    if not resolvconf.is_domain(name):
        raise refusal(
            f"{option} {text}: expected a name of at most {resolvconf.DOMAIN_MAX} ASCII characters without blanks, "
            f"at most {resolvconf.LABEL_MAX} between its dots"
        )
    return name


def _prefix_length(digits: str, longest: int) -> int | None:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 3):
        return None
    length = int(digits)
    return length if length <= longest else None


def path_of(option: str, path: str, longest: int = PATH_MAX) -> str:
    if 0 < len(os.fsencode(path)) <= longest:
        return path
    raise refusal(f"{option} {path}: expected a path of 1 to {longest} bytes")


def refusal(sentence: str) -> Stop:
    return Stop(1, "", sentence + "\n")
