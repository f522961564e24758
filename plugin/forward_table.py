# SPDX-License-Identifier: Apache-2.0
"""The table of forwards while the helper runs: which ports lead where, in control, in the keeper and in the worker.

Called by control.py, which tells it of new workers, by forward_server.py, which replaces the table as a whole, and by
forward_follow.py, for those ports that follow what listens where they lead. Ports of the host are opened by the keeper,
those of a namespace, which lead out of it, by the namespace's agent.
Adversary: the client that made the table, which contracts/pesto.py has checked; nothing else speaks to this.

Invariants: a port that stands in the old table and in the new one is neither closed nor opened, so that nobody who
connects meanwhile is refused; connections go on whatever becomes of their port. One change is under way at a time. A
worker that dies in the middle is followed by one that is told all: the table is right after each of its steps. Whatever
takes system calls is done in slices, so that neither this loop nor the worker's stands still for tens of thousands.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import groupby

from lockgate.core._datapath import lib
from lockgate.plugin import ports
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.forwards import BACKLOG, Failure, Listener, runs
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

_SLICE = 1024  # ports between two turns of the loop: a millisecond or so, here and in the worker that closes them

# ports.OPEN or CLOSE, for that many ports of a rule from a first one on: an errno for each or 0, and the descriptors.
Ask = Callable[[bytes, ForwardRule, int, int], Awaitable[tuple[list[int], list[int]]]]


class Worker(Protocol):
    """What is asked of the worker; each may raise WorkerError or WorkerGone. Descriptors stay the caller's."""

    async def listen(
        self,
        protocol: int,
        target: bytes,
        slots: Sequence[int],
        ports: Sequence[int],
        fds: Sequence[int],
        outward: bool = False,
    ) -> None: ...

    async def listen_target(self, protocol: int, target: bytes, slots: Sequence[int], ports: Sequence[int]) -> None: ...

    async def listen_close(self, first: int, count: int) -> None: ...


class _Nobody:
    """In the place of a worker that is not there yet, or has died: the next one will be told all at once."""

    async def listen(
        self,
        protocol: int,
        target: bytes,
        slots: Sequence[int],
        ports: Sequence[int],
        fds: Sequence[int],
        outward: bool = False,
    ) -> None:
        pass

    async def listen_target(self, protocol: int, target: bytes, slots: Sequence[int], ports: Sequence[int]) -> None:
        pass

    async def listen_close(self, first: int, count: int) -> None:
        pass


class Port:
    """One socket, and where it leads to."""

    __slots__ = ("fd", "port", "rule", "slot")

    def __init__(self, fd: int, rule: ForwardRule, port: int, slot: int) -> None:
        self.fd = fd
        self.rule = rule
        self.port = port
        self.slot = slot

    @property
    def guest_port(self) -> int:
        return self.rule.to_first + self.port - self.rule.first

    def set_listening(self, on: bool) -> None:
        """All copies of the socket follow. Datagrams know no such thing."""
        if self.rule.protocol != TCP:
            return
        sock = socket.socket(fileno=os.dup(self.fd))
        try:
            sock.listen(BACKLOG) if on else sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # somebody else has the port meanwhile; or it was not listening
        finally:
            sock.close()


class ConflictError(Exception):
    """Two rules want one port."""

    def __init__(self, rule: ForwardRule, other: ForwardRule) -> None:
        super().__init__(f"{rule} and {other} want one port")
        self.rule = rule
        self.other = other


class Change:
    """What became of a table that was asked for."""

    __slots__ = ("closed", "failures", "kept", "opened")

    def __init__(self) -> None:
        self.opened = self.closed = self.kept = 0
        self.failures: list[Failure] = []


class ForwardTable:
    """Each port that is bound, by what its socket is."""

    def __init__(
        self, rules: Sequence[ForwardRule], listeners: Sequence[Listener], ask: Ask, room: int = lib.LG_LISTEN_SLOTS
    ) -> None:
        """`room`: sockets at once, of both directions."""
        self.rules = tuple(rule for rule in rules if not rule.outward)  # those of the host's ports
        self.outward_rules = tuple(rule for rule in rules if rule.outward)
        self._ask = ask
        self._room = room
        self._listening: dict[tuple[bool, int], Set[int]] = {}  # by direction and protocol, where rules lead
        self._worker: Worker = _Nobody()
        self._away = False  # the guest has moved to another host
        self._turn = asyncio.Lock()
        self._free: list[int] = []  # slots below _next
        self._next = len(listeners)
        self._ports = {
            ports.key_of(one.rule, one.port): Port(one.fd, one.rule, one.port, slot)
            for slot, one in enumerate(listeners)
        }

    async def restore(self, worker: Worker) -> None:
        """Tells a new worker all. Raises WorkerError or WorkerGone."""
        async with self._turn:
            if not self._away:
                await self._tell_all(worker)

    def take_over(self, worker: Worker) -> None:
        """One that has been told all."""
        self._worker = worker

    async def leave(self) -> None:
        """The guest is elsewhere: its ports are kept, and nobody reaches them."""
        async with self._turn:
            self._away = True
            for port in self._ports.values():
                port.set_listening(False)
            for first in range(0, self._next, _SLICE):
                await self._tell(self._worker.listen_close(first, _SLICE))
            self._worker = _Nobody()

    async def come_back(self, worker: Worker) -> None:
        """It is here after all. Raises WorkerError or WorkerGone."""
        async with self._turn:
            self._away = False
            for port in self._ports.values():
                port.set_listening(True)
            await self._tell_all(worker)

    async def replace(self, rules: Sequence[ForwardRule]) -> Change:
        """From now on these lead to the guest and no others. What cannot be bound is left out, and told."""
        async with self._turn:
            return await self._replace(rules)

    async def replace_outward(self, rules: Sequence[ForwardRule]) -> Change:
        """The same for what leads out of the namespace."""
        async with self._turn:
            return await self._replace(rules, outward=True)

    async def exchange(self, old: Sequence[ForwardRule], new: Sequence[ForwardRule]) -> list[Failure]:
        """From now on `new` are in the place of `old`, which are those of one client; a port that both name is neither
        closed nor opened. All of them or none, but for those of best effort: if one cannot be bound, all is as before,
        and told.

        Raises ConflictError if somebody else's rule is in the way."""
        async with self._turn:
            before = self.rules
            others = [rule for rule in before if rule not in old]
            wanted = []
            for rule in new:
                rival = next(filter(rule.conflicts, others), None)
                if rival is None:
                    wanted.append(rule)
                elif not rule.best_effort:
                    raise ConflictError(rule, rival)
            change = await self._replace([*others, *wanted])
            failures = [one for one in change.failures if not (one.rule.best_effort or _names(before, one))]
            if failures:
                await self._replace(before)
            return failures

    async def _replace(self, rules: Sequence[ForwardRule], outward: bool = False) -> Change:
        change = Change()
        wanted = {ports.key_of(rule, port): rule async for rule, port in self._sliced(rules)}
        mine = {key: port for key, port in self._ports.items() if port.rule.outward == outward}
        # What goes comes first: it may stand in the way of what is new.
        await self._close([port for key, port in mine.items() if key not in wanted], change)
        await self._lead(wanted)
        change.kept = len(mine) - change.closed
        for rule in rules:
            await self._open(rule, change)
        # Also those of which nothing could be had: whoever asked for them will want to take them back (pesto --delete).
        if outward:
            self.outward_rules = tuple(rules)
        else:
            self.rules = tuple(rules)
        return change

    async def follow(self, outward: bool, listening: Mapping[int, Set[int]]) -> Change:
        """Where the rules of one direction lead, something listens on these ports, by protocol. Of what follows that,
        what cannot be bound is told, and tried again the next time."""
        async with self._turn:
            change = Change()
            self._listening |= {(outward, protocol): wanted for protocol, wanted in listening.items()}
            mine = [port for port in self._ports.values() if port.rule.auto and port.rule.outward == outward]
            await self._close([one for one in mine if one.guest_port not in listening[one.rule.protocol]], change)
            for rule in self.outward_rules if outward else self.rules:
                if rule.auto:
                    await self._open(rule, change)
            return change

    async def settled(self) -> None:
        """Until no change is under way, when what is bound is also what the kernel has."""
        async with self._turn:
            pass

    def bound(self, outward: bool) -> dict[int, Set[int]]:
        """The ports that are open in one direction, by protocol."""
        mine = [port for port in self._ports.values() if port.rule.outward == outward]
        return {wanted: {one.port for one in mine if one.rule.protocol == wanted} for wanted in (TCP, UDP)}

    async def _sliced(self, rules: Iterable[ForwardRule]) -> AsyncIterator[tuple[ForwardRule, int]]:
        """Every port of every rule."""
        for rule in rules:
            for port in self._numbers(rule):
                yield rule, port
                if not port % _SLICE:
                    await asyncio.sleep(0)  # others have their turn

    def _numbers(self, rule: ForwardRule) -> Sequence[int]:
        """The ports of a rule that are to be open now."""
        return rule.ports_led_to(self._listening.get((rule.outward, rule.protocol), frozenset()))

    async def _tell_all(self, worker: Worker) -> None:
        self._worker = worker
        for batch in _batches(self._ports.values()):
            await _listen(worker, batch)

    # ---- the three steps ----

    async def _close(self, gone: list[Port], change: Change) -> None:
        """In the worker, in the keeper, and here; the port is free when all three have closed it."""
        for first, count in runs(sorted(port.slot for port in gone), _SLICE):
            await self._tell(self._worker.listen_close(first, count))
        for batch in _batches(sorted(gone, key=lambda port: ports.key_of(port.rule, port.port)), consecutive=True):
            await self._ask(ports.CLOSE, batch[0].rule, batch[0].port, len(batch))
            for port in batch:
                del self._ports[ports.key_of(port.rule, port.port)]
                os.close(port.fd)
                heapq.heappush(self._free, port.slot)
        change.closed = len(gone)

    async def _lead(self, wanted: dict[ports.Key, ForwardRule]) -> None:
        """Ports that stay may lead elsewhere from now on."""
        moved = []
        for key, port in self._ports.items():
            if key not in wanted:
                continue  # of the other direction
            before = port.rule.target, port.guest_port
            port.rule = wanted[key]
            if (port.rule.target, port.guest_port) != before:
                moved.append(port)
        for batch in _batches(moved):
            rule, slots, guest_ports = _of(batch)
            await self._tell(self._worker.listen_target(rule.protocol, rule.target, slots, guest_ports))

    async def _open(self, rule: ForwardRule, change: Change) -> None:
        missing = [port for port in self._numbers(rule) if ports.key_of(rule, port) not in self._ports]
        for first, count in runs(missing, ports.BATCH_MAX):
            allowed = min(count, max(0, self._room - len(self._ports)))
            results, fds = await self._ask(ports.OPEN, rule, first, allowed) if allowed else ([], [])
            opened, given = [], iter(fds)
            for number, error in enumerate((results or [errno.EINVAL] * allowed) + [errno.EMFILE] * (count - allowed)):
                if error:
                    change.failures.append(Failure(rule, first + number, error))
                else:
                    opened.append(Port(next(given), rule, first + number, self._slot()))
            for port in opened:
                self._ports[ports.key_of(rule, port.port)] = port
                if self._away:
                    port.set_listening(False)
            refusal = await self._tell(_listen(self._worker, opened)) if opened else 0
            if refusal:
                change.failures += [Failure(rule, port.port, refusal) for port in opened]
                await self._close(opened, Change())
            else:
                change.opened += len(opened)

    async def _tell(self, word: Awaitable[None]) -> int:
        """0, or why the worker refuses."""
        try:
            await word
        except WorkerGone:
            self._worker = _Nobody()
        except WorkerError as refusal:
            return refusal.error
        return 0

    def _slot(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1


def _names(rules: Iterable[ForwardRule], one: Failure) -> bool:
    """Whether the port was asked for before: then that it cannot be had is no news."""
    key = ports.key_of(one.rule, one.port)
    return any(rule.first <= one.port <= rule.last and ports.key_of(rule, one.port) == key for rule in rules)


def _of(batch: Sequence[Port]) -> tuple[ForwardRule, list[int], list[int]]:
    """What a record says of ports of one rule: their slots, and the guest's ports."""
    return batch[0].rule, [port.slot for port in batch], [port.guest_port for port in batch]


async def _listen(worker: Worker, batch: Sequence[Port]) -> None:
    rule, slots, guest_ports = _of(batch)
    fds = [port.fd for port in batch]
    await worker.listen(rule.protocol, rule.target, slots, guest_ports, fds, rule.outward)


def _batches(all_ports: Iterable[Port], consecutive: bool = False) -> Iterator[list[Port]]:
    """Neighbours of one rule, as many as one record carries; if asked for, without a gap between their ports."""
    for _, group in groupby(all_ports, key=lambda port: port.rule):
        batch: list[Port] = []
        for port in group:
            gap = consecutive and batch and port.port != batch[-1].port + 1
            if batch and (gap or len(batch) == lib.LG_LISTEN_MAX):
                yield batch
                batch = []
            batch.append(port)
        yield batch
