# SPDX-License-Identifier: Apache-2.0
"""What a guest is asked and told of addresses and their MACs.

The first questions to a new guest: who has the addresses that are assigned to it? The answers tell the worker the MAC
address that a connection from outside must be sent to, before the guest has said anything by itself. And announcements
of the host's neighbours, so that a guest that knew another MAC address learns of the new one.

Called by control when a link is attached, and when neighbours.py has seen something new. Adversary: nobody, nothing of
the guest's is read here. Pure.
"""

from __future__ import annotations

import struct

from lockgate.plugin import address
from lockgate.plugin.netview import VIEW_IPV4, VIEW_NDP
from lockgate.plugin.services.frame import Ends, icmp6_build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockgate.plugin.netview import Assignments

_BROADCAST_MAC = b"\xff" * 6
_ETHERTYPE_ARP = b"\x08\x06"
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826
_ARP_REQUEST = (1, 0x0800, 6, 4, 1)  # Ethernet, IPv4, their lengths, who has?
_SOLICITATION = 135  # RFC 4861 §4.3
_OPTION_SOURCE_MAC = b"\1\1"
_ADVERTISEMENT = 136  # RFC 4861 §4.4
_OVERRIDE = 0x20
_OPTION_TARGET_MAC = b"\2\1"
_ALL_NODES = b"\xff\x02" + bytes(13) + b"\1"
_ALL_NODES_MAC = b"\x33\x33\0\0\0\1"
_FRAME_MIN = 60


def questions(view: Assignments, entries: Mapping[bytes, bytes]) -> list[bytes]:
    """A frame for each address that is assigned: an ARP request, a neighbour solicitation. A guest learns the router's
    MAC address from the first: the one that is mirrored, if it is."""
    frames = []
    if view.flags & VIEW_IPV4 and view.guest4 != address.UNSET:
        mac, router, guest = entries.get(view.gateway4, view.our_mac), view.gateway4[12:], view.guest4[12:]
        request = _ARP.pack(*_ARP_REQUEST, mac, router, bytes(6), guest)
        frames.append((_BROADCAST_MAC + mac + _ETHERTYPE_ARP + request).ljust(_FRAME_MIN, b"\0"))
    if view.flags & VIEW_NDP and view.guest6 != address.UNSET:
        group = b"\xff\x02" + bytes(9) + b"\1\xff" + view.guest6[13:]  # RFC 4291 §2.7.1
        message = bytes((_SOLICITATION, 0)) + bytes(6) + view.guest6 + _OPTION_SOURCE_MAC + view.our_mac
        frames.append(icmp6_build(Ends(view.our_mac, b"\x33\x33" + group[12:], view.our_link_local, group), message))
    return frames


def announcements(view: Assignments, entries: Mapping[bytes, bytes]) -> list[bytes]:
    """A frame for each neighbour, as if from it: a gratuitous ARP request (RFC 5227 §3), an unsolicited advertisement
    (RFC 4861 §7.2.6). A guest that does not know the neighbour passes it over."""
    frames = []
    for one, mac in entries.items():
        if address.is_ipv4(one) and view.flags & VIEW_IPV4:
            request = _ARP.pack(*_ARP_REQUEST, mac, one[12:], bytes(6), one[12:])
            frames.append((_BROADCAST_MAC + mac + _ETHERTYPE_ARP + request).ljust(_FRAME_MIN, b"\0"))
        elif not address.is_ipv4(one) and view.flags & VIEW_NDP:
            message = bytes((_ADVERTISEMENT, 0, 0, 0, _OVERRIDE, 0, 0, 0)) + one + _OPTION_TARGET_MAC + mac
            frames.append(icmp6_build(Ends(mac, _ALL_NODES_MAC, one, _ALL_NODES), message))
    return frames
