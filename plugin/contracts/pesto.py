# SPDX-License-Identifier: Apache-2.0
"""The control protocol of passt, version 2, by which the command `pesto` reads and replaces the table of forwards.

Called by forward_server.py, which has the socket; sans-io: bytes in, bytes and rules out. passt calls it experimental:
whatever changes with its version changes here and nowhere else.
Adversary: whoever may connect to the socket. It is believed in nothing: each number is checked before it is used for
anything, and no more than one table's worth of rules is ever taken.

Invariants: what a Message has as its rules could have come from a command line: the same limits hold, and no two rules
want one socket. A Message asks for exactly the bytes that come next, so that nothing behind its end is ever read.

    greeting := "basil:s" NUL, version, length of a table's name, length of an interface's name; tables; 0
    table    := u8 id, its name, u32 capabilities, u32 count, rules            (what the server has: HOST, and SPLICE
                                                                                of a namespace)
    message  := tables; 0
    table    := u8 id, u32 count, rules                                        (what the client wants, in place of all)
    rule     := listening address, target address, interface, u16 first, u16 last, u16 first of the guest, u8 protocol,
                u8 flags

All numbers are big-endian; addresses are IPv6, with IPv4 mapped.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.contracts.forward_spec import LOOPBACK, RULES_MAX, SOCKETS_MAX
from lockgate.plugin.forward_rule import (
    PORT_MAX,
    PROTOCOL_NAMES,
    TCP,
    UDP,
    ForwardRule,
    bracketed,
    is_interface,
    range_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockgate.plugin.ports import Rights

MAGIC = b"basil:s\0"
VERSION = 2
TABLE_NAME_BYTES = 128
INTERFACE_BYTES = 16  # IFNAMSIZ of <linux/if.h>

HOST = 1  # ports of the host that lead to the guest
SPLICE = 3  # of pasta: ports of the namespace's loopback that lead to the host's
TABLE_NAMES = {HOST: b"HOST", SPLICE: b"SPLICE"}
END = b"\0"  # in the place of one more table

CAP_IPV4, CAP_IPV6, CAP_TCP, CAP_UDP, CAP_AUTO, CAP_INTERFACE = 1, 2, 4, 8, 16, 32

FLAG_DUAL_STACK = 1
FLAG_BEST_EFFORT = 2
FLAG_AUTO = 4  # of a namespace's ports only

_HELLO = struct.Struct("!8sIII")
_TABLE = struct.Struct(f"!B{TABLE_NAME_BYTES}sII")
_WANTED = struct.Struct("!I")
_RULE = struct.Struct(f"!16s16s{INTERFACE_BYTES}sHHHBB")
RULE_BYTES = _RULE.size


class ProtocolError(ValueError):
    """What is wrong with a message: the end of a sentence."""


def capabilities(rights: Rights) -> int:
    offered = (
        (rights.ipv4, CAP_IPV4),
        (rights.ipv6, CAP_IPV6),
        (TCP in rights.protocols, CAP_TCP),
        (UDP in rights.protocols, CAP_UDP),
        (rights.auto, CAP_AUTO),
        (True, CAP_INTERFACE),
    )
    return sum(bit for there, bit in offered if there)


def greeting(
    rights: Rights,
    rules: Sequence[ForwardRule],
    outward: Rights | None = None,
    outward_rules: Sequence[ForwardRule] = (),
) -> bytes:
    """All that the server ever says. `outward` is for ports that lead out of a namespace; None: there is none."""
    hello = _HELLO.pack(MAGIC, VERSION, TABLE_NAME_BYTES, INTERFACE_BYTES)
    tables = _pack_table(HOST, rights, rules)
    if outward is not None:
        tables += _pack_table(SPLICE, outward, outward_rules)
    return hello + tables + END


def _pack_table(table: int, rights: Rights, rules: Sequence[ForwardRule]) -> bytes:
    head = _TABLE.pack(table, TABLE_NAMES[table], capabilities(rights), len(rules))
    return b"".join((head, *map(pack_rule, rules)))


def pack_rule(rule: ForwardRule) -> bytes:
    named = (rule.dual_stack, FLAG_DUAL_STACK), (rule.best_effort, FLAG_BEST_EFFORT), (rule.auto, FLAG_AUTO)
    flags = sum(flag for on, flag in named if on)
    interface = os.fsencode(rule.interface)
    ports = rule.first, rule.last, rule.to_first
    return _RULE.pack(rule.listen, rule.target, interface, *ports, rule.protocol, flags)


class FamilyOffError(ProtocolError):
    """A rule is of a family that is switched off."""


class Message:
    """What a client wants, as far as it has come. `wanted` bytes come next; 0: the message is whole."""

    __slots__ = ("_count", "_sockets", "_table", "_take", "_tables", "outward", "rules", "wanted")

    def __init__(self, rights: Rights, outward: Rights | None = None) -> None:
        """`outward`: of the second table; None: there is none."""
        self.rules: list[ForwardRule] = []
        self.outward: list[ForwardRule] = []  # those that lead out of a namespace
        self._tables = {HOST: (rights, self.rules)}
        if outward is not None:
            self._tables[SPLICE] = outward, self.outward
        self._table = 0  # that is under way
        self._sockets = 0
        self._count = 0  # of rules that the table has still to bring
        self._await_table()

    def feed(self, data: bytes) -> None:
        """Takes exactly the bytes that were wanted. Raises ProtocolError; the message is good for nothing then."""
        self._take(data)

    def _await_table(self) -> None:
        self.wanted, self._take = 1, self._take_id

    def _take_id(self, data: bytes) -> None:
        if data == END:
            self.wanted = 0
        elif data[0] in self._tables:
            self._table = data[0]
            self.wanted, self._take = _WANTED.size, self._take_count
        else:
            there = " or ".join(f"{one}, {TABLE_NAMES[one].decode()}" for one in self._tables)
            raise ProtocolError(f"there is no table {data[0]} here; expected {there}")

    def _take_count(self, data: bytes) -> None:
        (self._count,) = _WANTED.unpack(data)
        total = self._count + len(self._tables[self._table][1])
        if total > RULES_MAX:
            raise ProtocolError(f"expected at most {RULES_MAX} rules in all, not {total}")
        self._await_rule()

    def _await_rule(self) -> None:
        if self._count:
            self.wanted, self._take = RULE_BYTES, self._take_rule
        else:
            self._await_table()

    def _take_rule(self, data: bytes) -> None:
        rights, rules = self._tables[self._table]
        rule = unpack_rule(data, rights, outward=self._table == SPLICE)
        self._sockets += rule.count
        if self._sockets > SOCKETS_MAX:
            raise ProtocolError(f"expected at most {SOCKETS_MAX} sockets in all; forward fewer ports")
        for other in rules:
            if rule.conflicts(other):
                raise ProtocolError(f"two rules want the same port, [{other}] and [{rule}]; leave out one of the two")
        rules.append(rule)
        self._count -= 1
        self._await_rule()


def unpack_rule(data: bytes, rights: Rights, outward: bool = False, mixed: bool = False) -> ForwardRule:
    """`outward`: it leads out of a namespace. `mixed`: what comes by IPv6 may be led to an address of IPv4.
    Raises ProtocolError."""
    listen, target, name, first, last, to_first, protocol, flags = _RULE.unpack(data)
    if protocol not in PROTOCOL_NAMES:
        raise ProtocolError(f"expected the number of TCP or UDP as a rule's protocol, not {protocol}")
    if protocol not in rights.protocols:
        raise ProtocolError(f"{PROTOCOL_NAMES[protocol]} is switched off")
    known = FLAG_DUAL_STACK | FLAG_BEST_EFFORT | (FLAG_AUTO if rights.auto else 0)
    if flags & ~known:
        raise ProtocolError(f"expected flags {known} at most, not {flags}")
    _check_ports(first, last, to_first)
    listen, dual_stack = _where(listen, bool(flags & FLAG_DUAL_STACK), rights)
    _check_target(target, listen, dual_stack, mixed)
    interface = _interface(name)
    if outward and (interface, target, address.is_unspecified(listen)) != (LOOPBACK, UNSET, True):
        raise ProtocolError(f"expected {LOOPBACK} as the interface of a port that leads out, and no addresses")
    return ForwardRule(
        protocol=protocol,
        listen=listen,
        dual_stack=dual_stack,
        interface=interface,
        first=first,
        last=last,
        to_first=to_first,
        target=target,
        best_effort=bool(flags & FLAG_BEST_EFFORT),
        auto=bool(flags & FLAG_AUTO),
        outward=outward,
    )


def _check_ports(first: int, last: int, to_first: int) -> None:
    if not 0 < first <= last:
        raise ProtocolError(f"expected ports from 1 up, the lower first, not {range_text(first, last)}")
    if not to_first or to_first + last - first > PORT_MAX:
        to_ports = range_text(to_first, to_first + last - first)
        raise ProtocolError(f"expected ports of the guest from 1 to {PORT_MAX}, not {to_ports}")


def _where(listen: bytes, any_family: bool, rights: Rights) -> tuple[bytes, bool]:
    """As forward_spec has it: of both families at once only where there are both."""
    if any_family:
        if listen != UNSET:
            raise ProtocolError(f"expected no address for a port of both families, not {address.to_text(listen)}")
        if rights.ipv4 and rights.ipv6:
            return UNSET, True
        return (ANY4 if rights.ipv4 else UNSET), False
    if not (rights.ipv4 if address.is_ipv4(listen) else rights.ipv6):
        raise FamilyOffError(f"{bracketed(listen)} is of a family that is switched off")
    return listen, False


def _check_target(target: bytes, listen: bytes, dual_stack: bool, mixed: bool) -> None:
    if target == UNSET:
        return
    if address.is_unspecified(target):
        raise ProtocolError(f"expected a target that a guest can be, not {address.to_text(target)}")
    fits = address.is_ipv4(listen) == address.is_ipv4(target) or (mixed and address.is_ipv4(target))
    if dual_stack or not fits:
        raise ProtocolError(f"expected to listen on an address of the family of its target {address.to_text(target)}")


def _interface(field: bytes) -> str:
    name, _, padding = field.partition(b"\0")
    text = os.fsdecode(name)
    if len(name) == INTERFACE_BYTES or padding.strip(b"\0") or (text and not is_interface(text)):
        raise ProtocolError(f"expected the name of an interface, filled with zeros, not {ascii(field)}")
    return text
