# SPDX-License-Identifier: Apache-2.0
"""The first questions to a new guest: who has the addresses that are assigned to it? The answers tell the worker the
MAC address that a connection from outside must be sent to, before the guest has said anything by itself.

Called by control when a link is attached. Adversary: nobody, nothing of the guest's is read here. Pure.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from lockgate.plugin import address
from lockgate.plugin.netview import VIEW_IPV4, VIEW_NDP
from lockgate.plugin.services.frame import Ends, icmp6_build

if TYPE_CHECKING:
    from lockgate.plugin.netview import Assignments

_BROADCAST_MAC = b"\xff" * 6
_ETHERTYPE_ARP = b"\x08\x06"
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826
_ARP_REQUEST = (1, 0x0800, 6, 4, 1)  # Ethernet, IPv4, their lengths, who has?
_SOLICITATION = 135  # RFC 4861 §4.3
_OPTION_SOURCE_MAC = b"\1\1"
_FRAME_MIN = 60


def questions(view: Assignments) -> list[bytes]:
    """A frame for each address that is assigned: an ARP request, a neighbour solicitation."""
    frames = []
    if view.flags & VIEW_IPV4 and view.guest4 != address.UNSET:
        ours, guest = view.gateway4[12:], view.guest4[12:]
        request = _ARP.pack(*_ARP_REQUEST, view.our_mac, ours, bytes(6), guest)
        frames.append((_BROADCAST_MAC + view.our_mac + _ETHERTYPE_ARP + request).ljust(_FRAME_MIN, b"\0"))
    if view.flags & VIEW_NDP and view.guest6 != address.UNSET:
        group = b"\xff\x02" + bytes(9) + b"\1\xff" + view.guest6[13:]  # RFC 4291 §2.7.1
        message = bytes((_SOLICITATION, 0)) + bytes(6) + view.guest6 + _OPTION_SOURCE_MAC + view.our_mac
        frames.append(icmp6_build(Ends(view.our_mac, b"\x33\x33" + group[12:], view.our_link_local, group), message))
    return frames
