# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/first_words.py: what the first worker of a namespace is told, by a worker that the test plays."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lockgate.core import channel, worker
from lockgate.core._datapath import ffi, lib
from lockgate.plugin.address import UNSET
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.forwards import Listener
from lockgate.plugin.namespace import agent_records, first_words
from lockgate.plugin.namespace.inside import Device, Inside

VIEW = bytes(range(256)) * 8  # more than a view has


class Played:
    """The worker's end: answers each command, and keeps what came."""

    def __init__(self) -> None:
        ours, self.end = worker.channel()
        self.cmd = ours
        self.end.setblocking(True)
        self.records: list[bytes] = []
        self.descriptors: list[int] = []
        self.result = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with socket.socket(fileno=self.end.detach()) as end:
            while True:
                record, fds, _, _ = socket.recv_fds(end, 1 << 16, lib.LG_LISTEN_MAX)
                if not record or self.result == -errno.EPIPE:
                    return
                self.records.append(record)
                self.descriptors.append(len(fds))
                for fd in fds:
                    os.close(fd)
                kind = ffi.cast("struct lg_cmd_header *", ffi.from_buffer(record)).type
                reply = ffi.new("struct lg_reply *", {"type": kind, "result": self.result})
                end.send(bytes(ffi.buffer(reply)))

    def parsed(self, structure: str, kind: int) -> list[Any]:
        size = ffi.sizeof(f"struct {structure}")
        found = [channel.copied(structure, one) for one in self.records if len(one) == size]
        return [one for one in found if one.header.type == kind]

    def close(self) -> None:
        self.cmd.close()
        self._thread.join()


@pytest.fixture(name="played")
def made_worker() -> Iterator[Played]:
    played = Played()
    yield played
    played.close()


@pytest.fixture(name="null")
def opened_null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def rule(protocol: int, first: int, last: int, to_first: int) -> ForwardRule:
    return ForwardRule(
        protocol=protocol,
        listen=UNSET,
        dual_stack=True,
        interface="",
        first=first,
        last=last,
        to_first=to_first,
        target=UNSET,
        best_effort=False,
    )


class Agent(agent_records.Agent):
    """Gives one channel, of which it keeps the other end."""

    def __init__(self) -> None:
        self.theirs, self.ours = socket.socketpair()

    def open_worker_channel(self) -> socket.socket:
        return self.theirs


def inside(fd: int, agent: Agent | None = None) -> Inside:
    """With a tap device, or without one and with an agent that is asked."""
    device = None if agent else Device(fd, True, channel.pack_seen(b"\2\0\0\0\0\1", UNSET, UNSET, UNSET), ours=True)
    return Inside(agent or Agent.__new__(Agent), device, agent is not None, None)


def view() -> bytes:
    return VIEW[: ffi.sizeof("struct lg_net_view")]


def test_the_worker_hears_of_the_network_first_and_of_the_device_last(played: Played, null: int) -> None:
    """Frames wait in the device until all else is known."""
    first_words.tell(played.cmd, view(), [Listener(null, rule(TCP, 80, 80, 8080), 80)], inside(null))
    kinds = [ffi.cast("struct lg_cmd_header *", ffi.from_buffer(one)).type for one in played.records]
    assert kinds == [lib.LG_CMD_NET_VIEW, lib.LG_CMD_LISTEN, lib.LG_CMD_SEEN, lib.LG_CMD_TAP_ATTACH]
    assert played.descriptors == [0, 1, 0, 1]
    assert played.records[0].endswith(view())


def test_the_worker_can_ask_the_agent_before_it_has_ports(played: Played, null: int) -> None:
    """Whose direction it is told. There may be no device."""
    agent, out = Agent(), rule(TCP, 80, 80, 8080)
    out.outward = True
    first_words.tell(played.cmd, view(), [Listener(null, out, 80)], inside(null, agent))
    kinds = [ffi.cast("struct lg_cmd_header *", ffi.from_buffer(one)).type for one in played.records]
    assert kinds == [lib.LG_CMD_NET_VIEW, lib.LG_CMD_SPLICE_AGENT, lib.LG_CMD_LISTEN]
    assert played.descriptors == [0, 1, 1]
    assert [one.outward for one in played.parsed("lg_cmd_listen", lib.LG_CMD_LISTEN)] == [1]
    assert agent.ours.recv(1) == b"", "nobody else has the channel"
    agent.ours.close()


def test_each_port_has_the_slot_that_the_table_of_forwards_counts_for_it(played: Played, null: int) -> None:
    many, other = rule(TCP, 1000, 1000 + lib.LG_LISTEN_MAX, 2000), rule(UDP, 53, 53, 5353)
    listeners = [Listener(null, many, port) for port in range(many.first, many.last + 1)] + [Listener(null, other, 53)]
    first_words.tell(played.cmd, view(), listeners, inside(null))
    told = played.parsed("lg_cmd_listen", lib.LG_CMD_LISTEN)
    assert [(one.protocol, one.count, one.slot[0], one.guest_port[0]) for one in told] == [
        (TCP, lib.LG_LISTEN_MAX, 0, 2000),
        (TCP, 1, lib.LG_LISTEN_MAX, 2000 + lib.LG_LISTEN_MAX),
        (UDP, 1, lib.LG_LISTEN_MAX + 1, 5353),
    ]


def test_what_the_worker_refuses_is_told_by_its_errno(played: Played, null: int) -> None:
    played.result = -errno.EBUSY
    with pytest.raises(OSError) as refusal:
        first_words.tell(played.cmd, view(), [], inside(null))
    assert refusal.value.errno == errno.EBUSY
    assert len(played.records) == 1


def test_a_worker_that_dies_is_no_refusal(played: Played, null: int) -> None:
    """Of its end, the keeper tells."""
    played.result = -errno.EPIPE
    with pytest.raises(ConnectionError):
        first_words.tell(played.cmd, view(), [], inside(null))
