# SPDX-License-Identifier: Apache-2.0
"""DNS messages (RFC 1035 §4) as bytes: queries are taken apart, short answers put together, long ones cut.

Called by name_server.py, upstream.py and dns_cache.py. Adversary: the guest, which writes the queries, and whoever can
send datagrams in the name of one of the host's resolvers.

Names and records are read by dnspython, but for the one kind of query that comes by the thousand: one question, and at
most an OPT record without options. Those few bytes are walked here, and the answer of one address is put together
here: 4 µs in all, where dnspython's messages take 70. Whatever else a query has is left to dnspython's parser.

Invariants: sans-io, and nothing here raises. A query is at most QUERY_MAX bytes, with one question and at most
_RECORDS_MAX records behind it. What is forwarded is not changed by a byte but for its id: any type of record passes,
those of tomorrow as well.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dns.exception import DNSException
from dns.flags import CD, QR, RA, RD, TC
from dns.name import from_wire_parser
from dns.rcode import FORMERR, NOERROR, NOTIMP, NXDOMAIN
from dns.rdataclass import IN
from dns.rdatatype import AAAA, OPT, SOA, A
from dns.wire import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dns.name import Name

HEADER = struct.Struct("!HHHHHH")  # id, flags, and how many questions, answers, authorities and additional records
_RECORD = struct.Struct("!HHIH")  # behind the name: type, class, TTL, length

QUERY_MAX = 4096
_RECORDS_MAX = 8  # EDNS needs one, a signature another
_NAME_MAX = 255  # RFC 1035 §2.3.4
_LABEL_MAX = 63
_KEPT_MAX = 4096, 64  # bytes and records of an answer that is kept: it is read to its end, and there are few larger

_QR, _RD, _RA, _TC, _CD = map(int, (QR, RD, RA, TC, CD))  # to combine members of an enum takes long
_OPCODE, _RCODE = 0x7800, 0x000F

PLAIN_SIZE = 512  # of a UDP answer to who said nothing else (RFC 1035 §4.2.1)
_OUR_SIZE = 1232  # of queries that we take; fits into every packet of IPv6

_EDNS_DO = 0x8000
_PLAIN_OPT = b"\0" + OPT.to_bytes(2)  # the root's name, and the type
_PLAIN_OPT_SIZE = 1 + _RECORD.size
_POINTER_TO_QUESTION = b"\xc0\x0c"


class Query:
    """What a client asks."""

    __slots__ = ("edns_size", "edns_ttl", "kind", "labels", "question_class", "question_end", "wire")

    def __init__(self, wire: bytes, labels: Sequence[bytes], end: int, kind: int, question_class: int) -> None:
        self.wire = wire
        self.labels = labels  # as they are written, without the empty one at the end
        self.question_end = end  # where the question ends in `wire`
        self.kind = kind
        self.question_class = question_class
        self.edns_size = 0  # of answers by UDP; 0: there is no OPT record (RFC 6891)
        self.edns_ttl = 0  # of that record: extended rcode, version, flags

    @property
    def edns_version(self) -> int:
        return self.edns_ttl >> 16 & 0xFF

    @property
    def key(self) -> bytes:
        """Equal for queries to which the same answer is due: all that is said, but for the id and the name's case."""
        return self.wire[2:12] + self.wire[12 : self.question_end].lower() + self.wire[self.question_end :]

    def udp_room(self, largest: int) -> int:
        """For an answer by UDP, where a packet takes `largest`."""
        return min(max(self.edns_size, PLAIN_SIZE), largest)


def query_parse(wire: bytes) -> Query | bytes | None:
    """A query; or the answer to one that is malformed or of another kind; or None where no answer is due."""
    if len(wire) < HEADER.size:
        return None
    ident, flags, questions, answers, authorities, additional = HEADER.unpack_from(wire)
    if flags & _QR:
        return None  # else two servers could answer each other for ever
    if flags & _OPCODE:
        return _bare(ident, flags, NOTIMP)
    records = answers + authorities + additional
    if questions != 1 or records > _RECORDS_MAX or len(wire) > QUERY_MAX:
        return _bare(ident, flags, FORMERR)
    query = _plain_parse(wire, additional) if records == additional else None
    return query or _full_parse(wire, records) or _bare(ident, flags, FORMERR)


def _plain_parse(wire: bytes, additional: int) -> Query | None:
    """A query with at most an OPT record without options; None: this is none, or malformed."""
    labels: list[bytes] = []
    at, last = HEADER.size, len(wire) - 5  # the name's end, and two numbers
    while at <= last and wire[at]:
        length = wire[at]
        if length > _LABEL_MAX:
            return None
        labels.append(wire[at + 1 : at + 1 + length])
        at += 1 + length
    if at > last or at - HEADER.size >= _NAME_MAX:
        return None
    end = at + 5
    query = Query(wire, labels, end, wire[at + 1] << 8 | wire[at + 2], wire[at + 3] << 8 | wire[at + 4])
    if len(wire) == end:
        return None if additional else query
    if additional != 1 or len(wire) != end + _PLAIN_OPT_SIZE or wire[end : end + 3] != _PLAIN_OPT:
        return None
    _, size, ttl, length = _RECORD.unpack_from(wire, end + 1)
    query.edns_size, query.edns_ttl = max(size, PLAIN_SIZE), ttl
    return None if length else query


def _full_parse(wire: bytes, records: int) -> Query | None:
    """Any query; None: it is malformed."""
    parser = Parser(wire, HEADER.size)
    try:
        name = from_wire_parser(parser)
        kind, question_class = parser.get_struct("!HH")
        query = Query(wire, name.labels[:-1], parser.current, kind, question_class)
        if wire[HEADER.size : query.question_end - 4] != name.to_wire():
            return None  # with a pointer into what is not a name
        for _ in range(records):
            owner, kind, size, ttl, length = _record(parser)
            parser.get_bytes(length)
            if kind == OPT:
                if query.edns_size or len(owner.labels) > 1:
                    return None  # RFC 6891 §6.1.1: one, with the root's name
                query.edns_size, query.edns_ttl = max(size, PLAIN_SIZE), ttl
        return None if parser.remaining() else query
    except DNSException:
        return None


def _record(parser: Parser) -> tuple[Name, int, int, int, int]:
    """The head of one: name, type, class, TTL, and the length of what follows. Raises DNSException."""
    owner = from_wire_parser(parser)
    kind, record_class, ttl, length = parser.get_struct("!HHIH")
    return owner, kind, record_class, ttl, length


def _bare(ident: int, flags: int, rcode: int) -> bytes:
    """An answer of a header alone: what was asked is not known."""
    return HEADER.pack(ident, _QR | flags & (_OPCODE | _RD) | rcode, 0, 0, 0, 0)


def build(query: Query, rcode: int, addresses: tuple[bytes, ...] = (), *, truncated: bool = False) -> bytes:
    """An answer of ours: addresses of the name that was asked for, of 4 or 16 bytes, not to be kept (TTL 0)."""
    wire = query.wire
    kept = (wire[2] << 8 | wire[3]) & (_RD | _CD)
    flags = _QR | _RA | kept | rcode & _RCODE | (_TC if truncated else 0)
    header = HEADER.pack(wire[0] << 8 | wire[1], flags, 1, len(addresses), 0, 1 if query.edns_size else 0)
    answer = header + wire[HEADER.size : query.question_end]
    for address in addresses:
        kind = AAAA if len(address) == 16 else A
        answer += _POINTER_TO_QUESTION + _RECORD.pack(kind, IN, 0, len(address)) + address
    if query.edns_size:
        answer += b"\0" + _RECORD.pack(OPT, _OUR_SIZE, (rcode >> 4) << 24 | query.edns_ttl & _EDNS_DO, 0)
    return answer


def fit(answer: bytes, query: Query, room: int) -> bytes:
    """`answer` if it is no longer than `room`; else one without records, at which a client comes back by TCP."""
    return answer if len(answer) <= room else build(query, rcode_of(answer), truncated=True)


# ---- what resolvers answer ----


def is_answer(answer: bytes, question: bytes) -> bool:
    """Whether it belongs to a query, which begins with the header and the question in `question`. The case of names
    may differ. A server that could not read a query may leave the question out."""
    if len(answer) < HEADER.size or answer[:2] != question[:2]:
        return False
    if not answer[2] & 0x80 or answer[2] & 0x78:
        return False
    if answer[4:6] == b"\0\0":
        return rcode_of(answer) != NOERROR
    return answer[4:6] == b"\0\1" and answer[12 : len(question)].lower() == question[12:].lower()


def rcode_of(answer: bytes) -> int:
    """The part of it that is in the header."""
    return answer[3] & _RCODE


def is_truncated(answer: bytes) -> bool:
    return bool(answer[2] & 0x02)


def with_rcode(answer: bytes, rcode: int) -> bytes:
    return answer[:3] + bytes((answer[3] & ~_RCODE | rcode,)) + answer[4:]


def addressed(answer: bytes, query: Query) -> bytes:
    """An answer to an equal query, with the id and the name of this one."""
    if answer[4:6] != b"\0\1":
        return build(query, rcode_of(answer))  # the server has left the question out
    return query.wire[:2] + answer[2:12] + query.wire[12 : query.question_end] + answer[query.question_end :]


class Lifetime:
    """How long an answer may be kept, and where in it the seconds are written that are left then."""

    __slots__ = ("places", "seconds")

    def __init__(self, seconds: int, places: tuple[int, ...]) -> None:
        self.seconds = seconds
        self.places = places


def lifetime(answer: bytes, query: Query) -> Lifetime | None:
    """None: it is not to be kept. Of an answer that something does not exist, the SOA record says so (RFC 2308 §5)."""
    if rcode_of(answer) not in (NOERROR, NXDOMAIN) or is_truncated(answer) or answer[4:6] != b"\0\1":
        return None
    _, _, _, answers, authorities, additional = HEADER.unpack_from(answer)
    records = answers + authorities + additional
    if len(answer) > _KEPT_MAX[0] or records > _KEPT_MAX[1]:
        return None
    parser = Parser(answer, query.question_end)
    vouched = answers > 0 and rcode_of(answer) == NOERROR
    seconds, places = 1 << 31, []
    try:
        for index in range(records):
            _, kind, _, ttl, length = _record(parser)
            place = parser.current - 6  # behind the TTL there is the length
            with parser.restrict_to(length):
                if kind == SOA and answers <= index < answers + authorities:
                    seconds, vouched = min(seconds, _minimum(parser)), True
                parser.get_remaining()
            if kind != OPT:
                places.append(place)
                seconds = min(seconds, ttl if ttl < 1 << 31 else 0)  # RFC 2181 §8
    except DNSException:
        return None
    return Lifetime(seconds, tuple(places)) if vouched and seconds and places else None


def _minimum(parser: Parser) -> int:
    """Of a SOA record: how long a name that does not exist does not. Raises DNSException."""
    from_wire_parser(parser)
    from_wire_parser(parser)
    return int(parser.get_struct("!IIIII")[4])
