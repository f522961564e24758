# SPDX-License-Identifier: Apache-2.0
"""Ports of the host while the helper runs: how control asks the keeper for them, and the keeper's answer.

Called by keeper.py, which kept what a new port needs (the network namespace, perhaps the right to ports below 1024),
and by control, which knows what is wanted; imported before READY, hence the light imports.
Adversary: control, once a guest has broken it. It can ask for two things, that a few consecutive ports be opened, and
that ports which are open be closed; each field is checked here. What it can gain is a port that whoever may write to
--conf-path could have too, or without that option one of those that are to follow what listens in a namespace; and
nothing at all where there are none: then every request is meaningless.

Invariants: a request costs a bounded piece of work, so that the keeper comes back to its signals; there are never more
ports than `room`; whatever is held here is shut down first of all on quitting.

    request := kind, protocol, whether for both families, first port, how many, address, interface
    answer  := "P", and for each port 0, with its descriptor in order if it was to be opened, or an errno;
               for none, if the request is refused
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from lockgate.core._datapath import lib
from lockgate.plugin import address, forwards
from lockgate.plugin.address import LOOPBACK4, UNSET
from lockgate.plugin.forward_rule import PORT_MAX, ForwardRule, is_interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Key = tuple[int, bool, bytes, bool, str, int]

OPEN = b"O"
CLOSE = b"C"
ANSWER = b"P"
BATCH_MAX: int = lib.LG_LISTEN_MAX  # ports in a request: descriptors in its answer, and in control's word to the worker

_REQUEST = struct.Struct("=cB?xHH16s16s")


def key_of(rule: ForwardRule, port: int) -> Key:
    """What makes a socket another socket. (Where it leads to does not.)"""
    return rule.protocol, rule.outward, rule.listen, rule.dual_stack, rule.interface, port


def pack_request(kind: bytes, rule: ForwardRule, first: int, count: int) -> bytes:
    """OPEN or CLOSE, for `count` ports of a rule."""
    interface = os.fsencode(rule.interface)
    return _REQUEST.pack(kind, rule.protocol, rule.dual_stack, first, count, rule.listen, interface)


def parse_answer(record: bytes) -> list[int]:
    """An errno for each port; 0: it was opened, or closed."""
    numbers = record[len(ANSWER) :]
    return list(struct.unpack(f"={len(numbers) // 2}H", numbers))


def _pack_answer(results: Sequence[int]) -> bytes:
    return ANSWER + struct.pack(f"={len(results)}H", *results)


class Rights:
    """What may be opened, and so be asked for; frozen by convention."""

    __slots__ = ("auto", "freebind", "ipv4", "ipv6", "protocols", "room", "within")

    def __init__(
        self,
        *,
        ipv4: bool,
        ipv6: bool,
        protocols: Sequence[int],
        room: int,
        freebind: bool = False,
        auto: bool = False,
        within: Sequence[ForwardRule] | None = None,
    ) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.protocols = protocols
        self.room = room  # sockets at once
        self.freebind = freebind  # also at addresses that the host does not have
        self.auto = auto  # whether ports can follow what listens where they lead
        self.within = within  # what ports of these rules may be, and nothing else; None: whatever the rest allows

    def allow(self, rule: ForwardRule) -> bool:
        return self.within is None or any(
            key_of(rule, 0) == key_of(one, 0) and one.first <= rule.first and rule.last <= one.last
            for one in self.within
        )


class Ports:
    """All that the keeper holds. Without `rights`, what was bound at the start is all that there will be."""

    def __init__(self, listeners: Iterable[forwards.Listener], rights: Rights | None) -> None:
        self._rights = rights
        self._held = {key_of(one.rule, one.port): _socket.socket(fileno=one.fd) for one in listeners}

    def serve(self, record: bytes, send: Callable[[bytes, Sequence[int]], bool]) -> None:
        """Does what a record asks for and sends the answer: without a result, if that may not be asked for; none, if
        nothing may. What the answer cannot carry, because send() says so, is not kept."""
        if self._rights is None:
            return
        request = _parse_request(record, self._rights)
        if request is None:
            send(_pack_answer([]), [])
            return
        kind, rule = request
        if kind == CLOSE:
            send(_pack_answer([self._close(key_of(rule, port)) for port in range(rule.first, rule.last + 1)]), [])
            return
        results, opened = self._open(rule)
        if not send(_pack_answer(results), [self._held[key].fileno() for key in opened]):
            for key in opened:
                self._close(key)

    def leads_from_loopback(self, port: int) -> bool:
        """Whether what connects there by TCP comes to us, and hence to the guest."""
        return (_socket.IPPROTO_TCP, False, LOOPBACK4, False, "", port) in self._held

    def shut_down(self) -> None:
        """Frees all ports at once, whatever still holds a copy of their sockets."""
        for held in self._held.values():
            _shut_down(held)

    def _open(self, rule: ForwardRule) -> tuple[list[int], list[Key]]:
        results, opened = [], []
        recipe = forwards.Recipe(rule, self._rights is not None and self._rights.freebind)
        for port in range(rule.first, rule.last + 1):
            key = key_of(rule, port)
            error = self._open_one(recipe, key)
            results.append(error)
            if not error:
                opened.append(key)
        return results, opened

    def _open_one(self, recipe: forwards.Recipe, key: Key) -> int:
        if key in self._held:
            return errno.EEXIST
        if self._rights is None or len(self._held) >= self._rights.room:
            return errno.EMFILE
        try:
            self._held[key] = _socket.socket(fileno=recipe.open(key[-1]))
        except OSError as failure:
            return failure.errno or errno.EINVAL
        return 0

    def _close(self, key: Key) -> int:
        held = self._held.pop(key, None)
        if held is None:
            return errno.ENOENT
        _shut_down(held)
        held.close()
        return 0


def _parse_request(record: bytes, rights: Rights) -> tuple[bytes, ForwardRule] | None:
    """The ports as a rule that leads nowhere; None if it is not one that may be asked for."""
    if len(record) != _REQUEST.size:
        return None
    kind, protocol, dual_stack, first, count, listen, name = _REQUEST.unpack(record)
    interface = os.fsdecode(name.rstrip(b"\0"))
    family = dual_stack or (rights.ipv4 if address.is_ipv4(listen) else rights.ipv6)
    if (
        kind not in (OPEN, CLOSE)
        or protocol not in rights.protocols
        or not family
        or (dual_stack and (listen != UNSET or not (rights.ipv4 and rights.ipv6)))
        or not 0 < count <= BATCH_MAX
        or not 0 < first <= first + count - 1 <= PORT_MAX
        or (interface and not is_interface(interface))
    ):
        return None
    rule = ForwardRule(
        protocol=protocol,
        listen=listen,
        dual_stack=dual_stack,
        interface=interface,
        first=first,
        last=first + count - 1,
        to_first=first,
        target=UNSET,
        best_effort=False,
    )
    return (kind, rule) if rights.allow(rule) else None


def _shut_down(sock: _socket.socket) -> None:
    try:
        sock.shutdown(_socket.SHUT_RDWR)
    except OSError:
        pass  # not listening any more, or of datagrams
