# SPDX-License-Identifier: Apache-2.0
"""What the worker is told of a virtual network, beside what it is told of every network: the end of struct lg_net_view.

Called by netview.py before READY, hence the light imports. Adversary: nobody. Invariants: what has no room in the
record was refused by the contract (NAT_MAX and the others are what it checks against).
"""

from __future__ import annotations

import struct

from lockgate.plugin import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork

# datapath.h
VIEW_VIRTUAL = 32768
VIEW_LINK_LOCAL4 = 65536
VIEW_HOST_PORTS = 131072
OTHERS_MAX = 8  # LG_GATEWAY_OTHER_MAX
NAT_MAX = 16
HOST_PORTS_MAX = 32
_SERVICES_MAX = 4

DNS_PORT, HTTP_PORT = 53, 80
_TCP_SERVICES = (DNS_PORT, HTTP_PORT)
_UDP_SERVICES = (DNS_PORT,)

# subnet4, subnet6, their bits, service_tcp, service_udp, gateway_other, nat, host_port
_REST = struct.Struct(
    f"=16s16sBB2x{_SERVICES_MAX}H{_SERVICES_MAX}H{16 * OTHERS_MAX}s{32 * NAT_MAX}s{4 * HOST_PORTS_MAX}s"
)
BYTES = _REST.size


def flags(network: VirtualNetwork) -> int:
    link_local = VIEW_LINK_LOCAL4 if network.allow_link_local else 0
    return VIEW_VIRTUAL | link_local | (0 if network.host_ports is None else VIEW_HOST_PORTS)


def pack(network: VirtualNetwork) -> bytes:
    host_ports = b"".join(struct.pack("=HH", *ports) for ports in network.host_ports or ())
    return _REST.pack(
        network.subnet,
        network.subnet6,
        network.prefix_length,
        network.prefix_length6,
        *_padded(_TCP_SERVICES),
        *_padded(_UDP_SERVICES),
        b"".join(one for one in network.virtual_addresses if one not in (network.gateway, address.UNSET)),
        b"".join(name + real for name, real in network.nat.items()),
        host_ports,
    )


def _padded(ports: tuple[int, ...]) -> list[int]:
    return [*ports, *([0] * (_SERVICES_MAX - len(ports)))]
