# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a virtual network: what a command line or a configuration file of `gvproxy` asks for.

Made by contracts/gvproxy.py, read by awaited.py, netview.py and all of this folder. Like spec.py it is imported before
READY, hence no dataclasses. Adversary: nobody, the contract has checked all that is here. Invariants: never changed
once parse() has returned. Addresses are 16 bytes as in address.py, IPv4 as ::ffff:a.b.c.d, UNSET where there is none.
"""

from __future__ import annotations

from lockgate.plugin.address import IPV4_MAPPED, UNSET, to_text

GATEWAY_MAC = bytes.fromhex("5a94efe40cdd")
DEVICE_MAC = bytes.fromhex("5a94efe40cee")
MTU_DEFAULT = 1500
# Always the same, as the subnet of IPv4 is: nobody outside ever sees it, and zone files may name it.
SUBNET6 = bytes.fromhex("fd6c6f636b670127") + bytes(8)
RECORDS_MAX = 16384  # of all zones
SSH_PORT_DEFAULT = 2222  # of the host's loopback; leads to the guest's port 22

UNIX, TCP, VSOCK, UNIXPACKET, UNIXGRAM, STDIO = "unix", "tcp", "vsock", "unixpacket", "unixgram", "stdio"  # schemes
QEMU, BESS, VFKIT, VPNKIT = "qemu", "bess", "vfkit", "vpnkit"  # kinds of link; and STDIO


class Place:
    """Where something listens, or is to be connected to: a URL, taken apart."""

    __slots__ = ("host", "path", "port", "scheme", "text")

    def __init__(self, scheme: str, text: str, *, path: str = "", host: str = "", port: int = 0) -> None:
        self.scheme = scheme
        self.text = text  # as it was given, for messages
        self.path = path  # of the schemes with a file; percent-decoded
        self.host = host  # of tcp, empty: any; of vsock the CID in decimal, empty: any
        self.port = port

    def __repr__(self) -> str:
        return f"Place({self.text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self.scheme, self.text) == (other.scheme, other.text)


class Record:
    """A name in a zone, or names that match a regular expression, and the IPv4 address that they have."""

    __slots__ = ("address", "name", "pattern")

    def __init__(self, name: str, address: bytes, pattern: str = "") -> None:
        self.name = name  # the left part, without the zone's; empty if there is a pattern
        self.address = address
        self.pattern = pattern  # as Go's package regexp takes it; empty: none

    def __repr__(self) -> str:
        return f"Record({self.name or self.pattern}={to_text(self.address)})"


class Zone:
    """Names that are answered here, and never asked of anybody else."""

    __slots__ = ("default_address", "name", "records")

    def __init__(self, name: str, records: tuple[Record, ...] = (), default_address: bytes = UNSET) -> None:
        self.name = name  # with the dot at its end
        self.records = records  # the first that matches counts
        self.default_address = default_address  # of what no record matches; UNSET: there is no such name

    def __repr__(self) -> str:
        return f"Zone({self.name}, {list(self.records)}, default={to_text(self.default_address)})"


class SshForward:
    """A socket on the host whose clients reach one in the guest, by SSH."""

    __slots__ = ("destination", "identity", "path", "user")

    def __init__(self, path: str, destination: str, user: str, identity: str) -> None:
        self.path = path  # on the host
        self.destination = destination  # in the guest
        self.user = user
        self.identity = identity  # file with the private key


class PortForward:
    """A port of the host that leads to one of the guest's, by the texts that the API lists and removes it by."""

    __slots__ = ("local", "protocol", "remote")

    def __init__(self, protocol: str, local: str, remote: str) -> None:
        self.protocol = protocol  # "tcp" or "udp"
        self.local = local  # HOST:PORT, :PORT for all of the host's addresses
        self.remote = remote  # IP:PORT

    def __repr__(self) -> str:
        return f"PortForward({self.protocol} {self.local} -> {self.remote})"


class VirtualNetwork:
    """One network. The defaults are those of a command line without options."""

    __slots__ = (
        "allow_link_local",
        "device",
        "device_leases",
        "forwards",
        "gateway",
        "gateway_mac",
        "guest_may_expose_files",
        "host",
        "host_ports",
        "ipv6",
        "link",
        "listen",
        "nat",
        "notification",
        "prefix_length",
        "prefix_length6",
        "search",
        "services",
        "ssh_forwards",
        "subnet",
        "subnet6",
        "transport",
        "virtual_addresses",
        "vpnkit_macs",
        "zones",
    )

    def __init__(self) -> None:
        self.subnet = IPV4_MAPPED + bytes((192, 168, 127, 0))
        self.prefix_length = 24
        self.gateway = IPV4_MAPPED + bytes((192, 168, 127, 1))
        self.device = IPV4_MAPPED + bytes((192, 168, 127, 2))  # of the first guest
        self.host = IPV4_MAPPED + bytes((192, 168, 127, 254))  # what a guest calls the host's loopback
        self.gateway_mac = GATEWAY_MAC
        self.nat: dict[bytes, bytes] = {}  # what a guest connects to: where that really is
        self.virtual_addresses: tuple[bytes, ...] = ()  # that the gateway has beside its own
        self.device_leases: dict[bytes, bytes] = {}  # address: the MAC that it is kept for
        self.zones: tuple[Zone, ...] = ()
        self.search: tuple[str, ...] | None = ()  # domains; None: the host's
        self.forwards: tuple[PortForward, ...] = ()  # bound before READY, that of -ssh-port among them
        self.ssh_forwards: tuple[SshForward, ...] = ()
        self.listen: tuple[Place, ...] = ()  # the whole API
        self.services: Place | None = None  # all but /connect
        self.notification = ""  # path of a socket that wants to hear of guests; empty: nobody does
        self.transport = ""  # kind of the link, one of QEMU ... STDIO; empty: guests come by `listen` alone
        self.link: Place | None = None  # where it is
        self.vpnkit_macs: dict[str, bytes] = {}  # by UUID
        self.allow_link_local = False  # whether guests reach 169.254.0.0/16, where clouds keep their credentials
        # Additions of ours, by the configuration file alone.
        self.ipv6 = True  # whether guests get addresses of IPv6, too; then of this unique local prefix (RFC 4193)
        self.subnet6 = SUBNET6
        self.prefix_length6 = 64
        self.host_ports: tuple[tuple[int, int], ...] | None = None  # ranges of the host's loopback; None: all ports
        self.guest_may_expose_files = False  # whether a guest's own requests may make sockets in the host's folders

    @property
    def gateway6(self) -> bytes:
        return self._number6(1)

    @property
    def device6(self) -> bytes:
        return self._number6(2)

    @property
    def host6(self) -> bytes:
        """What a guest calls the host's loopback."""
        return self._number6(254)

    def _number6(self, number: int) -> bytes:
        return self.subnet6[:15] + bytes((number,))
