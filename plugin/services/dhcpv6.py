# SPDX-License-Identifier: Apache-2.0
"""DHCPv6 (RFC 8415), with rapid commit: one address, for one guest, and what it must know of resolvers and its name.

Called by the control process for each frame to UDP port 547 that the worker punts. Adversary: the guest.

`answer` is a pure function of a frame and of what is assigned, and keeps no leases: there is one address, it belongs to
whoever is at the other end of the link, and it does so for ever. A client that comes back after lockgate was restarted
is answered as if nothing had happened; hence also the server identifier, which is made of our MAC address alone.

A reply is at most 1232 bytes long, which passes any IPv6 link whole: what makes it what it is comes first, the search
list gets the room that is left.

Where this differs from passt, on purpose:
- A SOLICIT that asks for rapid commit gets its REPLY at once.
- An ADVERTISE has the highest preference. With less, the client waits a second for other servers (§18.2.1), and on
  this link there are none.
- There is an IA only where the client asked for one, and never in the answer to an INFORMATION-REQUEST or a CONFIRM.
  Of several IA_NA the first gets the address; for the others, and for IA_TA and IA_PD, there is none (§18.3.2).
- NotOnLink for another address than ours stands where the client looks for it: in the IA, and for a CONFIRM in the
  message itself. A RENEW hears too that the address is not valid any more, as §18.3.4 has it; a REBIND hears that, and
  gets ours beside it.
- A CONFIRM of no address gets no answer (§18.3.3). RELEASE and DECLINE get one; what is released is assigned still.
- An INFORMATION-REQUEST needs no client identifier (§18.3.6): clients that guard their privacy leave it out.

As with passt, the guest's name comes unasked, for clients that know what to do with it.
"""

from __future__ import annotations

import enum
import struct

from lockgate.plugin import address
from lockgate.plugin.services import domain_name
from lockgate.plugin.services.frame import (
    Answer,
    Cursor,
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
    from lockgate.plugin.netview import Assignments

SERVER_PORT = 547
CLIENT_PORT = 546

_MESSAGE_MAX = 1232  # the least MTU of IPv6 (RFC 8200 §5) less its header and that of UDP

_HEADER = struct.Struct("!B3s")  # type, transaction
_OPTION = struct.Struct("!HH")  # code, length
_IA = struct.Struct("!4sII")  # IAID, T1, T2; IA_PD has the same three
_IA_ADDRESS = struct.Struct("!16sII")  # preferred and valid lifetime

_INFINITE = 0xFFFFFFFF
_PREFERENCE_HIGHEST = b"\xff"
_DUID_LL = b"\0\3\0\1"  # type, and Ethernet as the kind of hardware (RFC 8415 §11.4)
_DUID_LENGTHS = range(3, 131)  # RFC 8415 §11.1: two bytes of type, and 1 to 128 more

_CLIENT_ID = 1
_SERVER_ID = 2
_IA_NA = 3
_IA_TA = 4
_IAADDR = 5
_PREFERENCE = 7
_STATUS = 13
_RAPID_COMMIT = 14
_DNS = 23
_SEARCH_LIST = 24
_IA_PD = 25
_FQDN = 39


class _Type(enum.IntEnum):
    """RFC 8415 §7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION_REQUEST = 11
    RELAY_FORW = 12


_FOR_ANY_SERVER = (_Type.SOLICIT, _Type.CONFIRM, _Type.REBIND)
_FOR_ONE_SERVER = (_Type.REQUEST, _Type.RENEW, _Type.RELEASE, _Type.DECLINE)
_ASKING = (*_FOR_ANY_SERVER, *_FOR_ONE_SERVER, _Type.INFORMATION_REQUEST)
_GIVING_BACK = (_Type.RELEASE, _Type.DECLINE)


class _Status(enum.Enum):
    """Code and text of option 13, RFC 8415 §21.13; clients show the text to people."""

    SUCCESS = (0, "")
    NO_ADDRS_AVAIL = (2, "there is one address, for the first IA_NA")
    NO_BINDING = (3, "never assigned")
    NOT_ON_LINK = (4, "another address is assigned")
    NO_PREFIX_AVAIL = (6, "no prefixes are delegated")


# The event of each answer but that to a SOLICIT. A refusal has its own.
_EVENTS = {
    _Type.REQUEST: "dhcpv6.reply",
    _Type.RENEW: "dhcpv6.reply",
    _Type.REBIND: "dhcpv6.reply",
    _Type.CONFIRM: "dhcpv6.confirm",
    _Type.RELEASE: "dhcpv6.release",
    _Type.DECLINE: "dhcpv6.decline",
    _Type.INFORMATION_REQUEST: "dhcpv6.information",
}


class _Association:
    """An IA of any kind, and the addresses that an IA_NA names."""

    __slots__ = ("kind", "iaid", "addresses")

    def __init__(self, kind: int, iaid: bytes, addresses: tuple[bytes, ...]) -> None:
        self.kind = kind  # _IA_NA, _IA_TA or _IA_PD
        self.iaid = iaid
        self.addresses = addresses


class _Message:
    """What a client has sent, parsed."""

    __slots__ = ("kind", "transaction", "options", "associations")

    def __init__(
        self,
        kind: _Type,
        transaction: bytes,
        options: dict[int, bytes],
        associations: tuple[_Association, ...],
    ) -> None:
        self.kind = kind
        self.transaction = transaction
        self.options = options  # of each the first; without IAs
        self.associations = associations

    @property
    def asks_for_address(self) -> bool:
        return any(one.kind == _IA_NA for one in self.associations)

    @property
    def commits_rapidly(self) -> bool:
        return self.kind == _Type.SOLICIT and _RAPID_COMMIT in self.options and self.asks_for_address

    @property
    def addresses(self) -> list[bytes]:
        """Those at issue: of a CONFIRM all, else those of the IA_NA that gets an address."""
        named = [one.addresses for one in self.associations if one.kind == _IA_NA]
        at_issue = named if self.kind == _Type.CONFIRM else named[:1]
        return list(dict.fromkeys(one for addresses in at_issue for one in addresses))


def answer(frame: bytes, view: Assignments) -> Answer | Ignored:
    """The reply to a frame for port 547, or why there is none."""
    packet = ip_parse(frame)
    if isinstance(packet, Ignored):
        return packet
    datagram = udp_parse(packet)
    if isinstance(datagram, Ignored):
        return datagram
    if datagram.destination_port != SERVER_PORT or address.is_ipv4(packet.source):
        return Ignored.NOT_OURS
    if not view.dhcpv6:
        return Ignored.DISABLED
    request = _message_parse(datagram.payload)
    if isinstance(request, Ignored):
        return request
    flaw = _flaw_of_ends(packet) or _flaw(request, _server_id(view))
    if flaw is not None:
        return flaw
    ends = Ends(view.our_mac, packet.eth_source, view.our_link_local, packet.source)
    reply = udp_build(ends, SERVER_PORT, CLIENT_PORT, _message_build(request, view))
    event, fields = _describe(request, view)
    return Answer(reply, event, {"mac": mac_text(packet.eth_source), **fields})


# ---- what the client says ----


def _message_parse(payload: bytes) -> _Message | Ignored:
    options: dict[int, bytes] = {}
    associations: list[_Association] = []
    try:
        cursor = Cursor(payload)
        number, transaction = cursor.unpack(_HEADER)
        if number == _Type.RELAY_FORW:
            return Ignored.RELAYED
        if number not in _ASKING:
            return Ignored.NOT_A_REQUEST
        for code, value in _options_parse(cursor):
            if code in (_IA_NA, _IA_TA, _IA_PD):
                associations.append(_association_parse(code, value))
            else:
                options.setdefault(code, value)
    except Truncated:
        return Ignored.TRUNCATED
    if _CLIENT_ID in options and len(options[_CLIENT_ID]) not in _DUID_LENGTHS:
        return Ignored.BAD_LENGTH
    return _Message(_Type(number), transaction, options, tuple(associations))


def _options_parse(cursor: Cursor) -> list[tuple[int, bytes]]:
    """Raises Truncated."""
    options = []
    while len(cursor):
        code, length = cursor.unpack(_OPTION)
        options.append((code, cursor.take(length)))
    return options


def _association_parse(kind: int, value: bytes) -> _Association:
    """Raises Truncated. Of an IA_TA or IA_PD only the number matters: it is refused."""
    cursor = Cursor(value)
    if kind != _IA_NA:
        return _Association(kind, cursor.take(4), ())
    iaid, _, _ = cursor.unpack(_IA)
    named = [Cursor(inner).unpack(_IA_ADDRESS)[0] for code, inner in _options_parse(cursor) if code == _IAADDR]
    return _Association(kind, iaid, tuple(named))


def _flaw_of_ends(packet: Packet) -> Ignored | None:
    """RFC 8415 §16: clients ask all servers at once, and must be there to be answered."""
    if not address.is_multicast(packet.destination):
        return Ignored.UNICAST
    if packet.source == address.UNSET or address.is_multicast(packet.source):
        return Ignored.NO_SOURCE
    return None


def _flaw(request: _Message, our_id: bytes) -> Ignored | None:
    """RFC 8415 §16.2 to §16.12, and §18.3.3 for a CONFIRM."""
    server_id = request.options.get(_SERVER_ID)
    if request.kind in _FOR_ANY_SERVER and server_id is not None:
        return Ignored.MISPLACED_OPTION
    if request.kind in _FOR_ONE_SERVER and server_id is None:
        return Ignored.MISSING_OPTION
    if server_id not in (None, our_id):
        return Ignored.OTHER_SERVER
    if request.kind == _Type.INFORMATION_REQUEST:
        return Ignored.MISPLACED_OPTION if request.associations else None
    if _CLIENT_ID not in request.options:
        return Ignored.MISSING_OPTION
    if request.kind == _Type.CONFIRM and not request.addresses:
        return Ignored.MISSING_OPTION
    return None


def _refused(request: _Message, view: Assignments) -> list[bytes]:
    """What is answered with NotOnLink: addresses that are not the guest's. A SOLICIT only hints at them."""
    if request.kind not in (_Type.REQUEST, _Type.RENEW, _Type.CONFIRM):
        return []
    return [one for one in request.addresses if one != view.guest6]


# ---- what it is told ----


def _message_build(request: _Message, view: Assignments) -> bytes:
    """Options that do not fit are left out; only a client with very many IAs brings that about, and suffers for it."""
    advertising = request.kind == _Type.SOLICIT and not request.commits_rapidly
    message = _HEADER.pack(_Type.ADVERTISE if advertising else _Type.REPLY, request.transaction)
    for code, value in (*_defining_options(request, view, advertising), *_configuring_options(request, view)):
        if len(message) + _OPTION.size + len(value) <= _MESSAGE_MAX:
            message += _option(code, value)
    if request.kind not in _GIVING_BACK and view.dhcp_search:
        search = domain_name.encode_list(view.search, _MESSAGE_MAX - len(message) - _OPTION.size)
        message += _option(_SEARCH_LIST, search) if search else b""
    return message


def _defining_options(request: _Message, view: Assignments, advertising: bool) -> list[tuple[int, bytes]]:
    options = [(_SERVER_ID, _server_id(view))]
    if _CLIENT_ID in request.options:
        options.append((_CLIENT_ID, request.options[_CLIENT_ID]))
    if request.kind == _Type.CONFIRM:
        options.append((_STATUS, _status(_Status.NOT_ON_LINK if _refused(request, view) else _Status.SUCCESS)))
    elif request.kind in _GIVING_BACK:
        options.append((_STATUS, _status(_Status.SUCCESS)))
    elif advertising:
        options.append((_PREFERENCE, _PREFERENCE_HIGHEST))
    elif request.commits_rapidly:
        options.append((_RAPID_COMMIT, b""))
    return options


def _configuring_options(request: _Message, view: Assignments) -> list[tuple[int, bytes]]:
    if request.kind in _GIVING_BACK:
        unknown = [one for one in request.associations if one.kind != _IA_NA]
        return [_association(one, _option(_STATUS, _status(_Status.NO_BINDING))) for one in unknown]
    options = [] if request.kind == _Type.CONFIRM else _associations(request, view)
    if view.dns6 and view.dhcp_dns:
        options.append((_DNS, b"".join(view.dns6)))
    if view.fqdn:
        options.append((_FQDN, b"\0" + domain_name.encode(view.fqdn)))
    return options


def _associations(request: _Message, view: Assignments) -> list[tuple[int, bytes]]:
    """An answer to each; the first IA_NA gets what there is."""
    answers = []
    served = False
    for one in request.associations:
        if one.kind == _IA_NA and not served:
            inner, served = _lease(request, view), True
        else:
            missing = _Status.NO_PREFIX_AVAIL if one.kind == _IA_PD else _Status.NO_ADDRS_AVAIL
            inner = _option(_STATUS, _status(missing))
        answers.append(_association(one, inner))
    return answers


def _lease(request: _Message, view: Assignments) -> bytes:
    """What is inside of the IA_NA: our address, or that another one is not on this link, or is not valid any more."""
    inner = _option(_IAADDR, _IA_ADDRESS.pack(view.guest6, _INFINITE, _INFINITE))
    if _refused(request, view):
        inner = _option(_STATUS, _status(_Status.NOT_ON_LINK))
    if request.kind in (_Type.RENEW, _Type.REBIND):
        for one in request.addresses:
            if one != view.guest6:
                inner += _option(_IAADDR, _IA_ADDRESS.pack(one, 0, 0))
    return inner


def _association(association: _Association, inner: bytes) -> tuple[int, bytes]:
    """The IA with its number; an IA_TA has no times."""
    head = association.iaid if association.kind == _IA_TA else _IA.pack(association.iaid, _INFINITE, _INFINITE)
    return association.kind, head + inner


def _status(status: _Status) -> bytes:
    code, text = status.value
    return code.to_bytes(2) + text.encode("ascii")


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value


def _server_id(view: Assignments) -> bytes:
    return _DUID_LL + view.our_mac


def _describe(request: _Message, view: Assignments) -> tuple[str, dict[str, str]]:
    """The event, and what there is to tell beside the client's MAC address."""
    refused = _refused(request, view)
    if refused:
        return "dhcpv6.not_on_link", {"refused": address.to_text(refused[0])}
    event = _EVENTS.get(request.kind, "dhcpv6.rapid_reply" if request.commits_rapidly else "dhcpv6.advertise")
    if request.kind in _GIVING_BACK or not request.asks_for_address:
        return event, {}
    return event, {"address": address.to_text(view.guest6)}
