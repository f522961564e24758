# SPDX-License-Identifier: Apache-2.0
"""A keeper and a worker for the table of forwards: the keeper's own code on real sockets, the worker a list of slots.
Used by test_forward_table and test_forward_server. Adversary: nobody."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from lockgate.plugin import forwards, ports
from lockgate.plugin.contracts import forward_spec
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.forward_table import ForwardTable
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

RIGHTS = ports.Rights(ipv4=True, ipv6=True, protocols=[TCP, UDP], room=1000)

# Below the kernel's own choice, on addresses that no other test uses.
FIRST = 20000
HERE = f"127.71.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF}"


def rules(*specs: str, protocol: int = TCP) -> tuple[ForwardRule, ...]:
    """Of specs without an address: all of them listen on one address of loopback."""
    scope = forward_spec.Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (1, FIRST - 1))
    made: tuple[ForwardRule, ...] = ()
    for spec in specs:
        made = forward_spec.add(made, "--tcp-ports", protocol, f"{HERE}/{spec}", scope)
    return made


def listening() -> set[int]:
    """Which ports are bound there, by TCP; by the kernel's own table."""
    local = socket.inet_aton(HERE)[::-1].hex().upper()
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table]
    return {int(row[1].split(":")[1], 16) for row in rows if row[1].startswith(local) and row[3] == "0A"}


class Keeper:
    """Answers at once, as the keeper does."""

    def __init__(self, listeners: Sequence[forwards.Listener] = ()) -> None:
        copies = [forwards.Listener(os.dup(one.fd), one.rule, one.port) for one in listeners]
        self.ports = ports.Ports(copies, RIGHTS)
        self.asked: list[tuple[bytes, int, int]] = []  # kind, first port, how many

    async def ask(self, kind: bytes, rule: ForwardRule, first: int, count: int) -> tuple[list[int], list[int]]:
        await asyncio.sleep(0)  # as of another process: others have their turn before it answers
        self.asked.append((kind, first, count))
        request = ports.pack_request(kind, rule, first, count)
        answers = []

        def send(record: bytes, fds: Sequence[int]) -> bool:
            answers.append((ports.parse_answer(record), [os.dup(fd) for fd in fds]))
            return True

        self.ports.serve(request, send)
        return answers[0]


class Worker:
    """Keeps, by slot, the host's port, the guest's and the target; refuses, or dies, when it is told to."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int, bytes]] = {}
        self.sockets: dict[int, int] = {}  # inode by port
        self.refuses: set[int] = set()  # ports of the host
        self.calls_left: int | None = None  # before it dies

    async def _live(self) -> None:
        await asyncio.sleep(0)  # likewise
        if self.calls_left == 0:
            raise WorkerGone
        if self.calls_left:
            self.calls_left -= 1

    async def listen(
        self,
        protocol: int,
        target: bytes,
        slots: Sequence[int],
        ports: Sequence[int],
        fds: Sequence[int],
        outward: bool = False,
    ) -> None:
        assert 0 < len(slots) == len(ports) == len(fds) <= 64
        await self._live()
        for slot, guest_port, fd in zip(slots, ports, fds, strict=True):
            with socket.socket(fileno=os.dup(fd)) as copy:
                port = copy.getsockname()[1]
            if port in self.refuses:
                raise WorkerError(24)
            assert slot not in self.slots
            self.slots[slot] = port, guest_port, target
            self.sockets[port] = os.fstat(fd).st_ino

    async def listen_target(self, protocol: int, target: bytes, slots: Sequence[int], ports: Sequence[int]) -> None:
        await self._live()
        for slot, guest_port in zip(slots, ports, strict=True):
            self.slots[slot] = self.slots[slot][0], guest_port, target

    async def listen_close(self, first: int, count: int) -> None:
        await self._live()
        for slot in range(first, first + count):
            self.slots.pop(slot, None)

    def leads(self) -> dict[int, int]:
        """From which port of the host to which of the guest."""
        assert len({port for port, _, _ in self.slots.values()}) == len(self.slots)
        return {port: guest_port for port, guest_port, _ in self.slots.values()}


class Scene:
    """A table, as it stands after the start."""

    def __init__(self, *specs: str) -> None:
        bound = rules(*specs)
        listeners = forwards.bind(bound, RIGHTS.room, print)
        self.keeper = Keeper(listeners)
        self.worker = Worker()
        self.table = ForwardTable(bound, listeners, self.keeper.ask)

    def end(self) -> None:
        for port in self.table._ports.values():
            os.close(port.fd)
        for held in self.keeper.ports._held.values():
            held.close()
