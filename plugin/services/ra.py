# SPDX-License-Identifier: Apache-2.0
"""Router advertisements (RFC 4861 §6.2, RFC 8106): how the guest finds its IPv6 prefix, router, MTU and resolvers.

Called by the control process: `answer` for each router solicitation that the worker punts, `advertise` at random
intervals between UNSOLICITED_MIN and UNSOLICITED_MAX seconds. Adversary: the guest.

The router is for ever, and so is what it advertises: lifetimes are infinite, or as long as their field allows; only a
prefix that the host has lost gets the end of its preference, and two hours for what is open (RFC 4862 §5.5.3). With
the last one we are no router any more (lifetime zero, RFC 4861 §6.3.4): what the guest tries by IPv6 fails at once.

Where this differs from passt, on purpose: the prefix option holds the prefix, not the address of the guest (RFC 4861
§4.6.2: bits beyond the prefix must be zero); search domains are advertised without a resolver too; an MTU below 1280
is left out, since a host must ignore it (RFC 4861 §6.3.4).
"""

from __future__ import annotations

import struct

from lockgate.plugin import address
from lockgate.plugin.netview import PREFIX6_BYTES
from lockgate.plugin.services import domain_name
from lockgate.plugin.services.frame import (
    HOP_LIMIT,
    PROTOCOL_ICMP6,
    Answer,
    Cursor,
    Ends,
    Ignored,
    Truncated,
    icmp6_build,
    ip_parse,
    mac_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.netview import Assignments

UNSOLICITED_MIN = 200  # seconds; RFC 4861 §6.2.1 allows up to 1800, and a guest that missed one should not wait long
UNSOLICITED_MAX = 600

_SOLICITATION = bytes((133,))
_ADVERTISEMENT = 134

_ALL_NODES = b"\xff\x02" + bytes(13) + b"\1"
_ALL_NODES_MAC = b"\x33\x33\0\0\0\1"

_HEADER = struct.Struct("!BBHBBHII")
_MANAGED = 0x80
_LIFETIME_LONGEST = 65535
_INFINITE = 0xFFFFFFFF

_OPTION_SOURCE_MAC = 1
_OPTION_PREFIX = 3
_OPTION_MTU = 5
_OPTION_RDNSS = 25
_OPTION_DNSSL = 31

_PREFIX = struct.Struct("!BBIII")
_ON_LINK_AUTONOMOUS = 0xC0
_PREFIX_LENGTH = 8 * PREFIX6_BYTES
_WITHDRAWN_VALID = 7200  # seconds; less is not believed (RFC 4862 §5.5.3 e), and what is open may go on for so long
_IPV6_MTU_MIN = 1280


def answer(frame: bytes, view: Assignments) -> Answer | Ignored:
    """The advertisement that a solicitation asks for, sent to its source alone, or why there is none."""
    packet = ip_parse(frame)
    if isinstance(packet, Ignored):
        return packet
    if packet.protocol != PROTOCOL_ICMP6 or address.is_ipv4(packet.source) or packet.payload[:1] != _SOLICITATION:
        return Ignored.NOT_OURS
    if not view.ra:
        return Ignored.DISABLED
    flaw = _solicitation_parse(packet.payload, packet.hop_limit)
    if flaw is not None:
        return flaw
    if packet.source == address.UNSET:  # a host that has no address yet; nobody could receive a reply sent to it
        return Answer(advertise(view), "ra.answer", {"mac": mac_text(packet.eth_source)})
    ends = Ends(view.our_mac, packet.eth_source, view.our_link_local, packet.source)
    return Answer(icmp6_build(ends, _message_build(view)), "ra.answer", {"mac": mac_text(packet.eth_source)})


def advertise(view: Assignments) -> bytes:
    """The unsolicited advertisement, to all nodes."""
    return icmp6_build(Ends(view.our_mac, _ALL_NODES_MAC, view.our_link_local, _ALL_NODES), _message_build(view))


def farewell(before: Assignments, now: Assignments) -> bytes | None:
    """What is said to all nodes in the name of the router as it was, ahead of what it is now: that it is none any more,
    if it has another address (RFC 4861 §6.2.5), and that resolvers and search domains are not to be used any more, by
    a lifetime of zero (RFC 8106 §5.1): else they would be for ever. None: nothing of that kind ended."""
    ended = before.our_link_local != now.our_link_local
    kept_servers, kept_names = ((), ()) if ended else (_servers(now), _names(now))
    servers = [one for one in _servers(before) if one not in kept_servers]
    names = [one for one in _names(before) if one not in kept_names]
    if not before.ra or not (ended or servers or names):
        return None
    flags = _MANAGED if now.dhcpv6 else 0
    message = _HEADER.pack(_ADVERTISEMENT, 0, 0, HOP_LIMIT, flags, 0 if ended else _LIFETIME_LONGEST, 0, 0)
    message += _option(_OPTION_SOURCE_MAC, before.our_mac) + _naming_options(servers, names, 0)
    return icmp6_build(Ends(before.our_mac, _ALL_NODES_MAC, before.our_link_local, _ALL_NODES), message)


def _solicitation_parse(message: bytes, hop_limit: int) -> Ignored | None:
    """RFC 4861 §6.1.1, but for the checksum (see frame.py). Nothing in a valid solicitation changes the answer."""
    if hop_limit != HOP_LIMIT:
        return Ignored.FROM_AFAR
    cursor = Cursor(message)
    try:
        if cursor.take(8)[1] != 0:
            return Ignored.NOT_OURS
        while len(cursor):
            length = cursor.take(2)[1] * 8
            if length == 0:
                return Ignored.BAD_LENGTH
            cursor.take(length - 2)
    except Truncated:
        return Ignored.TRUNCATED
    return None


def _message_build(view: Assignments) -> bytes:
    flags = _MANAGED if view.dhcpv6 else 0
    nowhere = view.withdrawn6 and view.guest6 == address.UNSET  # the host has left IPv6 behind
    lifetime = 0 if nowhere else _LIFETIME_LONGEST
    message = _HEADER.pack(_ADVERTISEMENT, 0, 0, HOP_LIMIT, flags, lifetime, 0, 0)
    if view.guest6 != address.UNSET:
        prefix = view.guest6[:PREFIX6_BYTES].ljust(16, b"\0")
        message += _option(
            _OPTION_PREFIX,
            _PREFIX.pack(_PREFIX_LENGTH, _ON_LINK_AUTONOMOUS, _INFINITE, _INFINITE, 0) + prefix,
        )
    for withdrawn in view.withdrawn6:
        lifetimes = _PREFIX.pack(_PREFIX_LENGTH, _ON_LINK_AUTONOMOUS, _WITHDRAWN_VALID, 0, 0)
        message += _option(_OPTION_PREFIX, lifetimes + withdrawn.ljust(16, b"\0"))
    message += _option(_OPTION_SOURCE_MAC, view.our_mac)
    if view.advertised_mtu >= _IPV6_MTU_MIN:
        message += _option(_OPTION_MTU, struct.pack("!HI", 0, view.advertised_mtu))
    return message + _naming_options(_servers(view), _names(view), _INFINITE)


def _servers(view: Assignments) -> Sequence[bytes]:
    return view.dns6 if view.dhcp_dns else ()


def _names(view: Assignments) -> Sequence[str]:
    return view.search if view.dhcp_search else ()


def _naming_options(servers: Sequence[bytes], names: Sequence[str], lifetime: int) -> bytes:
    options = b""
    if servers:
        options += _option(_OPTION_RDNSS, struct.pack("!HI", 0, lifetime) + b"".join(servers))
    if names:
        options += _option(_OPTION_DNSSL, struct.pack("!HI", 0, lifetime) + b"".join(map(domain_name.encode, names)))
    return options


def _option(kind: int, body: bytes) -> bytes:
    """RFC 4861 §4.6: the length counts units of 8 bytes, type and length included; zeros fill the last one."""
    units = (2 + len(body) + 7) // 8
    return bytes((kind, units)) + body.ljust(units * 8 - 2, b"\0")
