# SPDX-License-Identifier: Apache-2.0
"""Which guest has which address of IPv4 in a virtual network, by its MAC.

Called by dhcp_server.py, and by the API for the list of leases. Adversary: the guest, which can invent MACs: it uses up
the addresses, at most LEASES_MAX of them, and after that new ones get none. Invariants: an address is never given to
two MACs, nor a MAC two addresses; leases do not end, and are forgotten with the process.

Where this differs from gvisor-tap-vsock, on purpose: the address that stands for the host, further addresses of the
gateway and the subnet's broadcast address are not given away; there, the 253rd guest gets the host's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.plugin.address import IPV4_MAPPED

if TYPE_CHECKING:
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork

LEASES_MAX = 1024  # beside those that are fixed; in a /24 there is room for fewer


class AddressPool:
    """The addresses of a network: those kept for certain MACs, and the others, the lowest free one first."""

    def __init__(self, network: VirtualNetwork) -> None:
        self._leases = {network.gateway: network.gateway_mac, **network.device_leases}
        self._by_mac: dict[bytes, bytes] = {}
        for fixed, mac in network.device_leases.items():
            self._by_mac.setdefault(mac, fixed)
        self._base = int.from_bytes(network.subnet[12:]) >> (32 - network.prefix_length) << (32 - network.prefix_length)
        self._next = 1  # number of a host in the subnet; all below it are taken
        self._end = (1 << (32 - network.prefix_length)) - 1  # the broadcast address
        self._kept = {network.host, *network.virtual_addresses}
        self._room = LEASES_MAX

    def assign(self, mac: bytes) -> bytes | None:
        """The address of a guest, the same each time; None: there is none left."""
        known = self._by_mac.get(mac)
        if known is not None:
            return known
        while self._room and self._next < self._end:
            free = IPV4_MAPPED + (self._base + self._next).to_bytes(4)
            self._next += 1
            if free not in self._leases and free not in self._kept:
                self._leases[free] = mac
                self._by_mac[mac] = free
                self._room -= 1
                return free
        return None

    def address_of(self, mac: bytes) -> bytes | None:
        """Of a guest that has one."""
        return self._by_mac.get(mac)

    def leases(self) -> dict[bytes, bytes]:
        """The MACs by their addresses: the gateway's own and fixed ones as well."""
        return dict(self._leases)
