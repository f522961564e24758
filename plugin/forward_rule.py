# SPDX-License-Identifier: Apache-2.0
"""A rule of what is forwarded: consecutive ports of the host, and where they lead.

Made by the contracts, which know how people write them, and read by whoever binds and serves the ports; before READY,
hence the light imports. Adversary: nobody, contracts have checked all that is here. Invariant: pure.
"""

from __future__ import annotations

import _socket

from lockgate.plugin import address, native_text
from lockgate.plugin.address import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

TCP = _socket.IPPROTO_TCP
UDP = _socket.IPPROTO_UDP
PROTOCOL_NAMES = {TCP: "TCP", UDP: "UDP"}

PORT_MAX = 65535
INTERFACE_MAX = 15  # bytes of a name: IFNAMSIZ of <linux/if.h> counts the closing NUL


class ForwardRule:
    """Consecutive ports of the host that lead to consecutive ports of the guest; frozen by convention.

    str() is the line by which passt announces a rule.
    """

    __slots__ = (
        "protocol",  # TCP or UDP
        "listen",  # address; UNSET is any: of both families if dual_stack, else of IPv6. ANY4: any of IPv4
        "dual_stack",
        "interface",  # of the host, by name; empty: all
        "first",
        "last",
        "to_first",  # the guest's port for `first`, and so on
        "target",  # of the family of `listen`, or of IPv4 (rootlessport); UNSET: the guest, whatever its address
        "best_effort",  # a port that cannot be bound is no fault, as long as one of them can
        "auto",  # of these ports, only those are to be bound to which something listens where they lead, at any time
        "outward",  # the other way round: ports of the namespace's loopback that lead to the host's
    )

    def __init__(
        self,
        *,
        protocol: int,
        listen: bytes,
        dual_stack: bool,
        interface: str,
        first: int,
        last: int,
        to_first: int,
        target: bytes,
        best_effort: bool,
        auto: bool = False,
        outward: bool = False,
    ) -> None:
        self.protocol = protocol
        self.listen = listen
        self.dual_stack = dual_stack
        self.interface = interface
        self.first = first
        self.last = last
        self.to_first = to_first
        self.target = target
        self.best_effort = best_effort
        self.auto = auto
        self.outward = outward

    @classmethod
    def of_port(cls, protocol: int, listen: bytes, port: int, target: bytes, to_port: int) -> ForwardRule:
        """A single port at one address, and where it leads."""
        return cls(
            protocol=protocol,
            listen=listen,
            dual_stack=False,
            interface="",
            first=port,
            last=port,
            to_first=to_port,
            target=target,
            best_effort=False,
        )

    @property
    def count(self) -> int:
        """How many ports, and so sockets."""
        return self.last - self.first + 1

    @property
    def listen_text(self) -> str:
        """As the listening part of a spec."""
        where = "*" if self.dual_stack else bracketed(self.listen)
        return f"{where}%{self.interface}" if self.interface else where

    def ports_led_to(self, listening: AbstractSet[int]) -> Sequence[int]:
        """Those of its ports that are to be bound, in ascending order, while something listens on these ports where it
        leads."""
        if not self.auto:
            return range(self.first, self.last + 1)
        shift = self.to_first - self.first
        return sorted(port - shift for port in listening if self.first <= port - shift <= self.last)

    def shares_address(self, listen: bytes, dual_stack: bool) -> bool:
        """Whether a socket there could stand in the way of one of ours, if the port is the same.

        Interfaces do not count: passt refuses two rules that differ in nothing else.
        """
        if self.dual_stack or dual_stack:
            return True
        if address.is_ipv4(self.listen) != address.is_ipv4(listen):
            return False
        return self.listen == listen or address.is_unspecified(self.listen) or address.is_unspecified(listen)

    def conflicts(self, other: ForwardRule) -> bool:
        """Whether both could want one socket."""
        return (
            self.protocol == other.protocol
            and self.first <= other.last
            and other.first <= self.last
            and self.shares_address(other.listen, other.dual_stack)
        )

    def __str__(self) -> str:
        target = "" if self.target == UNSET else f"{bracketed(self.target)}:"
        to_ports = range_text(self.to_first, self.to_first + self.last - self.first)
        effort = "  (best effort)" if self.best_effort else ""
        scan = "  (auto-scan)" if self.auto else ""
        name = PROTOCOL_NAMES[self.protocol]
        return f"{name} {self.listen_text}:{range_text(self.first, self.last)}  =>  {target}{to_ports}{effort}{scan}"

    def __repr__(self) -> str:
        return f"ForwardRule({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForwardRule) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


def range_text(first: int, last: int) -> str:
    return f"{first}-{last}" if first != last else f"{first}"


def bracketed(ip: bytes) -> str:
    """An address to which a port can be appended."""
    text = address.to_text(ip)
    return text if address.is_ipv4(ip) else f"[{text}]"


def is_interface(name: str) -> bool:
    """Whether an interface could be called so, and a line of a log may repeat it."""
    plain = name.isprintable() and "/" not in name and not any(letter.isspace() for letter in name)
    return plain and 0 < len(native_text.encode(name)) <= INTERFACE_MAX
