# SPDX-License-Identifier: Apache-2.0
"""The vocabulary between the contracts and the rest: what a caller's command line asks for, and how parsing can end.

Made by contracts/*, read by launch, start, keeper, netview and control; nobody else needs to know which contract was
spoken. Adversary: nobody, contracts have checked all that is here. Invariants: once a contract's parse() has returned
it, a spec is never changed (no frozen dataclass: importing dataclasses costs 11 ms before READY). Addresses are 16
bytes as in address.py, UNSET where the caller said nothing. What the host has to offer is not known here: that is
hostnet, and netview joins the two.
"""

from __future__ import annotations

from lockgate.plugin.address import UNSET, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork

VHOST_USER = "vhost-user"  # link kinds
STREAM = "stream"
DGRAM = "dgram"
SEQPACKET = "seqpacket"
TAP = "tap"

SHARED_NAME = "rootless-netns"

QUIET = "quiet"  # log levels, from few lines to many
INFO = "info"
DEBUG = "debug"
TRACE = "trace"

LOG_SIZE_DEFAULT = 1 << 20
MTU_DEFAULT = 65520  # with its Ethernet header just within the 65535 bytes of the longest frame
MAC_DEFAULT = b"\x9a\x55\x9a\x55\x9a\x55"


class Stop(Exception):
    """Parsing ends the command: print both texts (native_text.py: they may quote arguments), exit with exit_code.

    With a log_file, the second text is meant for that, emptied before.
    """

    def __init__(
        self, exit_code: int, stdout_text: str = "", stderr_text: str = "", log_file: str | None = None
    ) -> None:
        super().__init__(stdout_text or stderr_text)
        self.exit_code = exit_code
        self.stdout_text = stdout_text
        self.stderr_text = stderr_text
        self.log_file = log_file


class StartError(Exception):
    """What keeps the helper from starting; the text is the one line for the caller."""


class FamilySpec:
    """What the caller asked for in one of the two IP families."""

    __slots__ = (
        "address",
        "dns",
        "dns_forward",
        "dns_host",
        "enabled",
        "gateway",
        "map_guest",
        "map_host_loopback",
        "outbound",
        "outbound_interface",
        "prefix_length",
    )

    def __init__(
        self,
        *,
        enabled: bool = True,
        address: bytes = UNSET,
        prefix_length: int = 0,
        gateway: bytes = UNSET,
        map_host_loopback: bytes | None = None,
        dns: tuple[bytes, ...] | None = None,
        dns_forward: bytes = UNSET,
        dns_host: bytes = UNSET,
        map_guest: bytes = UNSET,
        outbound: bytes = UNSET,
        outbound_interface: str = "",
    ) -> None:
        self.enabled = enabled
        self.address = address  # the guest's
        self.prefix_length = prefix_length  # of the guest's address; 0: as the host's
        self.gateway = gateway
        # What the guest calls the host's loopback address. None: the gateway, whatever that will be. UNSET: nothing.
        self.map_host_loopback = map_host_loopback
        self.dns = dns  # the guest's resolvers, as they are; None: the host's, as far as the guest can reach them
        self.dns_forward = dns_forward  # what the guest asks here is answered by a resolver of the host
        self.dns_host = dns_host  # that resolver; UNSET: the host's first
        self.map_guest = map_guest  # what the guest calls the host's own address, which it has too; UNSET: nothing
        self.outbound = outbound  # the host's address that the guest's connections come from; UNSET: as routed
        self.outbound_interface = outbound_interface  # and the interface that they leave by; empty: as routed

    def __repr__(self) -> str:
        mapped = self.map_host_loopback
        dns = "host" if self.dns is None else [to_text(server) for server in self.dns]
        return (
            f"FamilySpec(enabled={self.enabled}, address={to_text(self.address)}/{self.prefix_length}, "
            f"gateway={to_text(self.gateway)}, map_host_loopback={'gateway' if mapped is None else to_text(mapped)}, "
            f"dns={dns}, dns_forward={to_text(self.dns_forward)}, dns_host={to_text(self.dns_host)}, "
            f"map_guest={to_text(self.map_guest)}, outbound={to_text(self.outbound)}%{self.outbound_interface})"
        )


class NamespaceSpec:
    """The network namespace that the network is for, with `pasta`: which it is, and what is done in it.

    A spec has either a path or none; without one there is a command, for which new namespaces are made.
    """

    __slots__ = (
        "command",
        "config_net",
        "copy_addrs",
        "copy_routes",
        "forwards",
        "host_lo_to_ns_lo",
        "netns_only",
        "no_splice",
        "ns_ifname",
        "ns_mac",
        "path",
        "pid",
        "pidns",
        "quit_when_gone",
        "splice_only",
        "userns",
    )

    def __init__(self) -> None:
        self.path = ""  # of the network namespace to join, whether the caller wrote a path, a name or a process
        self.pid = 0  # that process, if it was one
        self.command: tuple[str, ...] = ()  # to run in new namespaces; neither this nor a path: the user's login shell
        self.userns = ""  # path of the user namespace to join before; empty: none
        self.netns_only = False  # for a command: make no user namespace
        self.pidns = True  # for a command: make a process namespace
        self.quit_when_gone = True  # when `path` is deleted
        self.config_net = False  # give the interface addresses and routes, and bring it up
        # With config_net only: all addresses of the host's interface, in families without an address of their own, or
        # the one that DHCP would hand out. And its routes, in families without a gateway of their own, or one by it.
        self.copy_addrs = self.copy_routes = True
        self.ns_ifname = ""  # of the interface; empty: as the host's
        self.ns_mac: bytes | None = None  # of the interface; None: the kernel's choice
        self.no_splice = False  # also what comes from the host's loopback goes through the interface
        self.splice_only = False  # nothing else is there: no interface at all
        self.host_lo_to_ns_lo = False  # what comes from the host's loopback arrives at the same address, not our own
        self.forwards: tuple[ForwardRule, ...] = ()  # ports of the namespace's loopback that lead to the host's

    @property
    def is_new(self) -> bool:
        """Whether the namespace is made for a command, and ends with it."""
        return not self.path

    @property
    def is_shared(self) -> bool:
        """Whether it is the one that the bridge networks of a user have in common, by the name that Podman gives it:
        it is no container's, so that who is in it may be spoken with."""
        return self.path.rpartition("/")[2] == SHARED_NAME

    def __repr__(self) -> str:
        return f"NamespaceSpec({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


class NetworkSpec:
    """One network, as asked for. What is None, UNSET or empty was left to us."""

    __slots__ = (
        "conf_path",
        "contract",
        "details",
        "failure_prefix",
        "failure_status",
        "foreground",
        "forwards",
        "fqdn",
        "freebind",
        "hostname",
        "interface",
        "ipv4",
        "ipv6",
        "link",
        "log_file",
        "log_level",
        "log_size",
        "mac",
        "migrate_exit",
        "migrate_linger",
        "mtu",
        "namespace",
        "no_dhcp",
        "no_dhcp_dns",
        "no_dhcp_search",
        "no_dhcpv6",
        "no_icmp",
        "no_ndp",
        "no_ra",
        "no_tcp",
        "no_udp",
        "notes",
        "one_off",
        "pcap_file",
        "pid_file",
        "repair_path",
        "runas",
        "search",
        "socket_fd",
        "socket_path",
        "stats_seconds",
        "virtual",
        "warnings",
    )

    def __init__(
        self,
        *,
        contract: str,
        link: str = STREAM,
        socket_path: str | None = None,
        socket_fd: int | None = None,
        one_off: bool = False,
        foreground: bool = False,
        log_level: str = INFO,
        log_file: str | None = None,
        log_size: int = LOG_SIZE_DEFAULT,
        pid_file: str | None = None,
        pcap_file: str | None = None,
        conf_path: str | None = None,
        interface: str | None = None,
        mtu: int = MTU_DEFAULT,
        mac: bytes = MAC_DEFAULT,
        hostname: str = "",
        fqdn: str = "",
        search: tuple[str, ...] | None = None,
    ) -> None:
        self.contract = contract
        self.link = link
        # Where the link comes from: a descriptor that we were given, else a path to listen on, else the first free
        # path of the contract's own series. Never both.
        self.socket_path = socket_path
        self.socket_fd = socket_fd
        self.one_off = one_off  # exit with 0 when the first client has gone
        # Where the helper that switches sockets to repair mode connects to, when the guest moves to another host or
        # comes from one. None: beside the link's socket, if that has a path. Empty: nowhere.
        self.repair_path: str | None = None
        self.migrate_exit = False  # exit with 0 when the guest has moved away
        self.migrate_linger = True  # sockets of connections that have moved stay open, so that their peers get no reset
        self.foreground = foreground
        self.log_level = log_level
        self.log_file = log_file
        self.log_size = log_size  # bytes, of log_file
        self.pid_file = pid_file
        self.pcap_file = pcap_file
        self.conf_path = conf_path  # the socket by which forwards are changed later
        self.ipv4 = FamilySpec()
        self.ipv6 = FamilySpec()
        self.interface = interface  # of the host, whose addresses and routes the guest's are made from
        self.mtu = mtu  # of the guest's interface; 0: do not advertise one
        self.mac = mac  # ours, as the guest sees it
        self.no_tcp = self.no_udp = self.no_icmp = False
        self.no_dhcp = self.no_dhcpv6 = self.no_ndp = self.no_ra = False
        self.forwards: tuple[ForwardRule, ...] = ()  # ports of the host that lead to the guest
        self.freebind = False  # whether sockets may be bound to addresses that the host does not have (yet)
        self.hostname = hostname  # of the guest
        self.fqdn = fqdn  # of the guest too: the name with its domain
        self.search = search  # search domains of the guest; None: the host's
        # Whether resolvers and search domains are kept back, whatever the way to hand them out.
        self.no_dhcp_dns = self.no_dhcp_search = False
        self.runas: tuple[int, int] | None = None  # user and group to go on as; None: nobody, if that leaves root
        self.stats_seconds = 0  # how often to print counters; 0: never
        self.namespace: NamespaceSpec | None = None  # where the tap is; None with other links
        self.virtual: VirtualNetwork | None = None  # the made-up network, with `gvproxy`
        self.warnings: list[str] = []  # one sentence each, for the log as soon as there is one
        self.notes: list[str] = []  # the same, but no more than information
        self.details: list[str] = []  # the same, for who looks for a fault
        # What is wrong from now on is told behind these words, and ends the command with this status.
        self.failure_prefix = ""
        self.failure_status = 1

    @property
    def is_shared(self) -> bool:
        """Whether several containers are behind the link, which come and go."""
        return self.namespace is not None and self.namespace.is_shared

    def __repr__(self) -> str:
        return f"NetworkSpec({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
