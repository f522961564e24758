# SPDX-License-Identifier: Apache-2.0
"""DHCPv4 (RFC 2131), with rapid commit (RFC 4039) and for BOOTP clients (RFC 1534): one address, for one guest.

Called by the control process for each frame to UDP port 67 that the worker punts; gateway/dhcp_server.py, which hands
out one address to each of many guests, takes messages apart and puts them together with it. Adversary: the guest.

`answer` is a pure function of a frame and of what is assigned, and keeps no leases: there is one address, it belongs to
whoever is at the other end of the link, and it does so for ever. A client that comes back after lockgate was restarted
is answered as if nothing had happened.

What guests need of the reply, beyond the RFC:
- It goes to the Ethernet source of the request. muvm leaves chaddr zero, so chaddr is copied and never used.
- There is no Pad option before the End option. muvm's parser takes one for an option with a length.
- 300 to 548 bytes: RFC 1542 §2.1 asks for the first, and 548 is what fits into the 576 bytes that every client must
  take (RFC 2131 §2). muvm and libkrun read into a buffer of exactly that size, whatever option 57 could allow.
- An ACK directly to a DISCOVER that asks for rapid commit, usable without another message.

Where this differs from passt, on purpose:
- A REQUEST for another address than ours is refused with a NAK (RFC 2131 §4.3.2), so that a guest that was suspended in
  another network starts afresh at once. passt sends an ACK with an address that was not asked for.
- A REQUEST that names another server gets no answer.
- INFORM gets an ACK without address and lease (RFC 2131 §4.3.5). passt is silent.
- A BOOTP reply has no DHCP options and fits into BOOTP's 300 bytes (RFC 1534 §2).
- Option 121 contains the default route too, since a client that understands it must ignore option 3 (RFC 3442). It is
  sent, as by passt, only if the gateway lies outside the guest's subnet and the default router alone would be useless.
- A relayed request (giaddr set) gets no answer: it is for a host behind the guest, and the one address is the guest's.
- The client identifier is returned (RFC 6842), and options in sname and file are read (RFC 2131 §4.1).
- ciaddr is copied only into an ACK (RFC 2131 table 3), to which it is also addressed.

As with passt, the guest's name comes unasked (options 12 and 81), and option 81 says nothing but that its name is in
wire format: nobody here updates any DNS.
"""

from __future__ import annotations

import enum
import struct

from lockgate.plugin import address
from lockgate.plugin.services import domain_name
from lockgate.plugin.services.frame import (
    Answer,
    Cursor,
    Datagram,
    Ends,
    Ignored,
    Packet,
    Truncated,
    ip_parse,
    mac_text,
    udp_build,
    udp_parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockgate.plugin.netview import Assignments

SERVER_PORT = 67
CLIENT_PORT = 68

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")  # RFC 2131 figure 1
_COOKIE = b"\x63\x82\x53\x63"
_BOOTREQUEST = 1
_BOOTREPLY = 2
_FLAG_BROADCAST = 0x8000

_MESSAGE_MIN = 300
_OPTIONS_MAX = 308  # with End: 236 + 4 + 308 = 548
_BOOTP_OPTIONS_MAX = 60  # with End: 236 + 4 + 60 = 300

_UNSET = bytes(4)
_BROADCAST = b"\xff\xff\xff\xff"
_LEASE_INFINITE = b"\xff\xff\xff\xff"

_PAD = 0
SUBNET_MASK = 1
ROUTER = 3
DNS = 6
_HOSTNAME = 12
INTERFACE_MTU = 26
_REQUESTED_ADDRESS = 50
LEASE_TIME = 51
_OVERLOAD = 52
MESSAGE_TYPE = 53
SERVER_ID = 54
_PARAMETER_LIST = 55
CLIENT_ID = 61
_RAPID_COMMIT = 80
_FQDN = 81
RELAY_AGENT = 82
SEARCH_LIST = 119
_STATIC_ROUTES = 121
_END = 255

_FQDN_HEADER = b"\x04\xff\xff"  # flag E (wire format), and the two result codes of a server (RFC 4702 §2.2)


class Type(enum.IntEnum):
    """Option 53, RFC 2132 §9.6."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class _Verdict(enum.Enum):
    """What a request deserves: the type of the reply (None: BOOTP has none), and its event."""

    OFFER = (Type.OFFER, "dhcp.offer")
    ACK = (Type.ACK, "dhcp.ack")
    RAPID_ACK = (Type.ACK, "dhcp.rapid_ack")
    INFORM_ACK = (Type.ACK, "dhcp.inform_ack")
    NAK = (Type.NAK, "dhcp.nak")
    BOOTP = (None, "dhcp.bootp")


class Message:
    """What a client has sent, parsed."""

    __slots__ = ("hardware", "xid", "flags", "client", "relay", "chaddr", "options")

    def __init__(
        self,
        hardware: tuple[int, int],
        xid: int,
        flags: int,
        client: bytes,
        relay: bytes,
        chaddr: bytes,
        options: dict[int, bytes],
    ) -> None:
        self.hardware = hardware  # htype, hlen
        self.xid = xid
        self.flags = flags
        self.client = client  # ciaddr
        self.relay = relay  # giaddr
        self.chaddr = chaddr
        self.options = options


def answer(frame: bytes, view: Assignments) -> Answer | Ignored:
    """The reply to a frame for port 67, or why there is none."""
    parsed = request_parse(frame)
    if isinstance(parsed, Ignored):
        return parsed
    if not view.dhcp:
        return Ignored.DISABLED
    packet, _, request = parsed
    verdict = _judge(request, view.guest4[12:], view.gateway4[12:])
    if isinstance(verdict, Ignored):
        return verdict
    ends = Ends(
        eth_source=view.our_mac,
        eth_destination=packet.eth_source,
        source=view.gateway4,
        destination=address.IPV4_MAPPED + _destination(request, verdict, view.guest4[12:]),
    )
    reply = udp_build(ends, SERVER_PORT, CLIENT_PORT, _message_build(request, verdict, view))
    return Answer(reply, verdict.value[1], _describe(request, packet.eth_source, verdict, view))


def request_parse(frame: bytes) -> tuple[Packet, Datagram, Message] | Ignored:
    """What a client sent to a server's port, and in what."""
    packet = ip_parse(frame)
    if isinstance(packet, Ignored):
        return packet
    datagram = udp_parse(packet)
    if isinstance(datagram, Ignored):
        return datagram
    if datagram.destination_port != SERVER_PORT or not address.is_ipv4(packet.source):
        return Ignored.NOT_OURS
    message = _message_parse(datagram.payload)
    return message if isinstance(message, Ignored) else (packet, datagram, message)


def _message_parse(payload: bytes) -> Message | Ignored:
    cursor = Cursor(payload)
    options: dict[int, bytearray] = {}
    try:
        op, htype, hlen, _, xid, _, flags, client, _, _, relay, chaddr, sname, file = cursor.unpack(_FIXED)
        if op != _BOOTREQUEST:
            return Ignored.NOT_A_REQUEST
        if hlen > len(chaddr):
            return Ignored.BAD_LENGTH
        # BOOTP clients may leave the vendor area free, and a cookie that is not DHCP's announces no options of ours.
        if len(cursor) >= len(_COOKIE) and cursor.take(len(_COOKIE)) == _COOKIE:
            _options_parse(cursor, options)
            overload = options.get(_OVERLOAD, b"\0")[:1]
            if overload in (b"\1", b"\3"):
                _options_parse(Cursor(file), options)
            if overload in (b"\2", b"\3"):
                _options_parse(Cursor(sname), options)
    except Truncated:
        return Ignored.TRUNCATED
    lengths = ((MESSAGE_TYPE, 1), (_REQUESTED_ADDRESS, 4), (SERVER_ID, 4))
    if any(code in options and len(options[code]) != length for code, length in lengths):
        return Ignored.BAD_LENGTH
    whole = {code: bytes(value) for code, value in options.items()}
    return Message((htype, hlen), xid, flags, client, relay, chaddr, whole)


def _options_parse(cursor: Cursor, options: dict[int, bytearray]) -> None:
    """Adds to `options`. Parts of one option are joined in their order (RFC 3396); a missing End is forgiven."""
    while len(cursor):
        code = cursor.take(1)[0]
        if code == _END:
            return
        if code != _PAD:
            options.setdefault(code, bytearray()).extend(cursor.take(cursor.take(1)[0]))


def _judge(request: Message, assigned: bytes, server: bytes) -> _Verdict | Ignored:
    if request.relay != _UNSET:
        return Ignored.RELAYED
    if MESSAGE_TYPE not in request.options:
        return _Verdict.BOOTP
    kind = request.options[MESSAGE_TYPE][0]
    if kind == Type.DISCOVER:
        return _Verdict.RAPID_ACK if _RAPID_COMMIT in request.options else _Verdict.OFFER
    if kind == Type.REQUEST:
        return _judge_request(request, assigned, server)
    if kind == Type.INFORM:
        return _Verdict.INFORM_ACK
    if kind == Type.RELEASE:
        return Ignored.RELEASED
    if kind == Type.DECLINE:
        return Ignored.DECLINED
    return Ignored.NOT_A_REQUEST


def _judge_request(request: Message, assigned: bytes, server: bytes) -> _Verdict | Ignored:
    """RFC 2131 §4.3.2, for a server that knows of one address and of no other server on the link.

    SELECTING names server and address, INIT-REBOOT only the address, RENEWING and REBINDING put it into ciaddr. One
    that names no address at all is against the RFC, and harmless: there is only one to confirm.
    """
    if request.options.get(SERVER_ID, server) != server:
        return Ignored.OTHER_SERVER
    wanted = request.options.get(_REQUESTED_ADDRESS, request.client)
    return _Verdict.ACK if wanted in (assigned, _UNSET) else _Verdict.NAK


def _destination(request: Message, verdict: _Verdict, assigned: bytes) -> bytes:
    """RFC 2131 §4.1, last paragraphs. Without ciaddr, an INFORM leaves nobody to address but everybody."""
    if verdict is _Verdict.NAK:
        return _BROADCAST
    if request.client != _UNSET and verdict not in (_Verdict.OFFER, _Verdict.RAPID_ACK):
        return request.client
    if request.flags & _FLAG_BROADCAST or verdict is _Verdict.INFORM_ACK:
        return _BROADCAST
    return assigned


def _message_build(request: Message, verdict: _Verdict, view: Assignments) -> bytes:
    keeps_client = verdict in (_Verdict.ACK, _Verdict.INFORM_ACK, _Verdict.BOOTP)
    gets_address = verdict not in (_Verdict.NAK, _Verdict.INFORM_ACK)
    return reply_build(
        request,
        _options_build(request, verdict, view),
        client=request.client if keeps_client else _UNSET,
        yours=view.guest4[12:] if gets_address else _UNSET,
    )


def reply_build(
    request: Message, options: bytes, *, client: bytes = _UNSET, yours: bytes = _UNSET, relay: bytes = _UNSET
) -> bytes:
    """A server's message with these options, which end with an End."""
    message = _FIXED.pack(
        _BOOTREPLY,
        *request.hardware,
        0,  # hops
        request.xid,
        0,  # secs
        request.flags,
        client,
        yours,
        _UNSET,  # siaddr: there is nothing to boot from
        relay,
        request.chaddr,
        b"",
        b"",
    )
    return (message + _COOKIE + options).ljust(_MESSAGE_MIN, b"\0")


def _options_build(request: Message, verdict: _Verdict, view: Assignments) -> bytes:
    """The options that make the reply what it is, then those of the parameter list in its order, then the others.

    The guest's names get what room is left, and then the search list does. Otherwise an option that does not fit is
    skipped; only a very long client identifier brings that about, and only its own client suffers.
    """
    room = (_BOOTP_OPTIONS_MAX if verdict is _Verdict.BOOTP else _OPTIONS_MAX) - 1  # End
    options = _defining_options(request, verdict, view)
    if verdict is not _Verdict.NAK:
        have = _configuring_options(view)
        left = room - sum(2 + len(value) for value in (*options.values(), *have.values()))
        for code, value in _naming_options(view).items():
            if len(value) < 256 and 2 + len(value) <= left:
                have[code] = value
                left -= 2 + len(value)
        search = domain_name.encode_compressed(view.search if view.dhcp_search else (), min(left - 2, 255))
        if search:
            have[SEARCH_LIST] = search
        wanted = [code for code in dict.fromkeys(request.options.get(_PARAMETER_LIST, b"")) if code in have]
        options |= {code: have[code] for code in (*wanted, *sorted(have))}
    return options_encode(options, room)


def options_encode(options: Mapping[int, bytes], room: int = _OPTIONS_MAX - 1) -> bytes:
    """As many as fit before the End, in their order."""
    encoded = b""
    for code, value in options.items():
        if len(value) < 256 and len(encoded) + 2 + len(value) <= room:
            encoded += bytes((code, len(value))) + value
    return encoded + bytes((_END,))


def _defining_options(request: Message, verdict: _Verdict, view: Assignments) -> dict[int, bytes]:
    kind = verdict.value[0]
    if kind is None:
        return {}
    options = {MESSAGE_TYPE: bytes((kind,)), SERVER_ID: view.gateway4[12:]}
    if verdict in (_Verdict.OFFER, _Verdict.ACK, _Verdict.RAPID_ACK):
        options[LEASE_TIME] = _LEASE_INFINITE
    if verdict is _Verdict.RAPID_ACK:
        options[_RAPID_COMMIT] = b""
    if CLIENT_ID in request.options:
        options[CLIENT_ID] = request.options[CLIENT_ID]
    return options


def _configuring_options(view: Assignments) -> dict[int, bytes]:
    guest, gateway = view.guest4[12:], view.gateway4[12:]
    mask = (0xFFFFFFFF << (32 - view.prefix4) & 0xFFFFFFFF).to_bytes(4)
    have = {SUBNET_MASK: mask, ROUTER: gateway}
    if view.dns4 and view.dhcp_dns:
        have[DNS] = b"".join(server[12:] for server in view.dns4)
    if view.advertised_mtu:
        have[INTERFACE_MTU] = view.advertised_mtu.to_bytes(2)
    if _masked(gateway, mask) != _masked(guest, mask):
        # RFC 3442: width, significant octets of the destination, router. The gateway first, so that it is reachable
        # when the default route is set; that one takes the place of the router, which such a client must ignore.
        have[_STATIC_ROUTES] = bytes((32,)) + gateway + _UNSET + bytes((0,)) + gateway
    return have


def _naming_options(view: Assignments) -> dict[int, bytes]:
    have: dict[int, bytes] = {}
    if view.hostname:
        have[_HOSTNAME] = view.hostname.encode("ascii")
    if view.fqdn:
        have[_FQDN] = _FQDN_HEADER + domain_name.encode(view.fqdn)
    return have


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))


def _describe(request: Message, mac: bytes, verdict: _Verdict, view: Assignments) -> dict[str, str]:
    if verdict is _Verdict.NAK:
        wanted = request.options.get(_REQUESTED_ADDRESS, request.client)
        return {"mac": mac_text(mac), "refused": address.to_text(address.IPV4_MAPPED + wanted)}
    if verdict is _Verdict.INFORM_ACK:
        return {"mac": mac_text(mac)}
    return {"mac": mac_text(mac), "address": address.to_text(view.guest4)}
