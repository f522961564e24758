# SPDX-License-Identifier: Apache-2.0
"""DHCPv4 in a virtual network: an address for each guest, and the gateway as its router and resolver.

Called by control.py for each frame to UDP port 67 that the worker punts. Adversary: the guest. Invariants: an answer is
a pure function of the frame and of who has which address (address_pool.py); it has 300 to 548 bytes, which every client
takes (RFC 2131 §2); nothing raises.

What gvisor-tap-vsock answers, to the byte: options in ascending order, always the same, whatever was asked for; with
the client identifier and, at the end, a relay's information if the request has them; a lease of an hour. A REQUEST is
always confirmed, with the address that we chose, whichever was asked for and whichever server; RELEASE, DECLINE and
INFORM are passed over, as is BOOTP. Option 119 is there without domains, too, and not compressed. Answers go to where
the request came from, and to everybody if that is nowhere yet. Only a client whose message names no MAC is known by its
frame's here, where it gets an address of its own there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.plugin import address, resolvconf
from lockgate.plugin.services import dhcp, domain_name
from lockgate.plugin.services.frame import Answer, Ends, Ignored, mac_text, udp_build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.gateway.address_pool import AddressPool
    from lockgate.plugin.gateway.virtual_network import VirtualNetwork
    from lockgate.plugin.services.frame import Packet

LEASE_SECONDS = 3600
_SEARCH_MAX = 255  # of one option; a name that does not fit is left out, with all behind it
_ETHERNET_BROADCAST = b"\xff" * 6

_RETURNED = (dhcp.CLIENT_ID, dhcp.RELAY_AGENT)  # what a client or a relay wants to hear again
LEASED = "dhcp.ack"  # the event of an answer by which a guest has an address
_REPLIES: dict[int, tuple[int, str]] = {
    dhcp.Type.DISCOVER: (dhcp.Type.OFFER, "dhcp.offer"),
    dhcp.Type.REQUEST: (dhcp.Type.ACK, LEASED),
}
_SILENCE: dict[int, Ignored] = {
    dhcp.Type.RELEASE: Ignored.RELEASED,
    dhcp.Type.DECLINE: Ignored.DECLINED,
    dhcp.Type.INFORM: Ignored.INFORM,
}


class DhcpServer:
    """`search` are the domains of the network, or those of the host at the start where it has none of its own."""

    def __init__(self, network: VirtualNetwork, pool: AddressPool, mtu: int, search: Sequence[str]) -> None:
        self._pool = pool
        self._mac = network.gateway_mac
        self._gateway = network.gateway
        gateway = network.gateway[12:]
        domains = resolvconf.limit_search(list(search))
        self._options = {
            dhcp.SUBNET_MASK: (0xFFFFFFFF << (32 - network.prefix_length) & 0xFFFFFFFF).to_bytes(4),
            dhcp.ROUTER: gateway,
            dhcp.DNS: gateway,
            dhcp.INTERFACE_MTU: min(mtu, 0xFFFF).to_bytes(2),
            dhcp.LEASE_TIME: LEASE_SECONDS.to_bytes(4),
            dhcp.MESSAGE_TYPE: b"",
            dhcp.SERVER_ID: gateway,
            dhcp.SEARCH_LIST: domain_name.encode_list(domains, _SEARCH_MAX),
        }

    def answer(self, frame: bytes) -> Answer | Ignored:
        """The reply to a frame for port 67, or why there is none."""
        parsed = dhcp.request_parse(frame)
        if isinstance(parsed, Ignored):
            return parsed
        packet, datagram, request = parsed
        if packet.destination not in (address.BROADCAST4, self._gateway):
            return Ignored.NOT_OURS
        kind = int.from_bytes(request.options.get(dhcp.MESSAGE_TYPE, b"\0"))
        if kind not in _REPLIES:
            return _SILENCE.get(kind, Ignored.NOT_A_REQUEST)
        known = address.is_unicast(packet.source)
        if not datagram.source_port or not (known or address.is_unspecified(packet.source)):
            return Ignored.NO_SOURCE
        mac = _client(request, packet)
        assigned = self._pool.assign(mac)
        if assigned is None:
            return Ignored.EXHAUSTED
        reply, event = _REPLIES[kind]
        options = self._options | {dhcp.MESSAGE_TYPE: bytes((reply,))}
        options |= {code: request.options[code] for code in _RETURNED if code in request.options}
        in_order = dict(sorted(options.items(), key=lambda option: (option[0] == dhcp.RELAY_AGENT, option[0])))
        encoded = dhcp.options_encode(in_order)
        message = dhcp.reply_build(request, encoded, yours=assigned[12:], relay=request.relay)
        ends = Ends(
            eth_source=self._mac,
            eth_destination=packet.eth_source if known else _ETHERNET_BROADCAST,
            source=self._gateway,
            destination=packet.source if known else address.BROADCAST4,
        )
        told = {"mac": mac_text(mac), "address": address.to_text(assigned)}
        return Answer(udp_build(ends, dhcp.SERVER_PORT, datagram.source_port, message), event, told)


def _client(request: dhcp.Message, packet: Packet) -> bytes:
    """Whose the lease is: whom the message names, or else who sent it."""
    hardware = request.chaddr[: request.hardware[1]]
    return hardware if any(hardware) else packet.eth_source
