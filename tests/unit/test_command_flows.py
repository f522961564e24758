# SPDX-License-Identifier: Apache-2.0
"""The commands for a guest that moves, in a worker of its own with real sockets: what is adopted can be frozen again,
its socket goes along each time, and none is kept or lost."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import ffi, lib
from worker_child import Worker, head_of

GUEST, REMOTE = bytes(10) + b"\xff\xff\x0a\0\0\x0f", bytes(10) + b"\xff\xff\xc0\0\2\1"
FLOW_LIMIT = 16  # of worker_child


@pytest.fixture(name="worker")
def worker_with_a_view() -> Iterator[Worker]:
    worker = Worker()
    view = ffi.new("struct lg_net_view *", {"flags": 0x1FF, "mtu": 1500})
    assert worker.result(lib.LG_CMD_NET_VIEW, view=view[0]) == 0
    yield worker
    worker.close()


@pytest.fixture(name="connected")
def connections() -> Iterator[Any]:
    """Makes connected sockets; what is written into the second can be read from the first."""
    made: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def connect() -> tuple[socket.socket, socket.socket]:
        made.append(socket.create_connection(server.getsockname()))
        made.append(server.accept()[0])
        return made[-2], made[-1]

    yield connect
    for sock in [*made, server]:
        sock.close()


def state(port: int, **changes: Any) -> Any:
    fields = {"guest_addr": GUEST, "remote_addr": REMOTE, "guest_port": port, "remote_port": 80, "mss": 1460}
    fields |= {"guest_scale": 7, "our_scale": 8, "snd_una": 1000, "snd_nxt": 1000, "snd_window": 65535}
    fields |= {"rcv_nxt": 5000, "rcv_acked": 5000, "rcv_edge": 5000 + 65536, "irs": 4000}
    return ffi.new("struct lg_tcp_flow *", {**fields, **changes})[0]


def frozen(worker: Worker) -> tuple[list[Any], list[socket.socket]]:
    page = worker.call(lib.LG_CMD_FLOWS_FREEZE, value=0)
    assert len(worker.came) == page.count
    flows = []
    for at in range(page.count):  # copies: what lies in the page goes with it
        flows.append(ffi.new("struct lg_tcp_flow *"))
        ffi.memmove(flows[-1], ffi.addressof(page.flow, at), ffi.sizeof("struct lg_tcp_flow"))
    return flows, [socket.socket(fileno=fd) for fd in worker.came]


def test_a_flow_can_be_taken_over_and_given_away_again(worker: Worker, connected: Any) -> None:
    """With the socket that it came with; thawed, this worker has it again."""
    ours, theirs = connected()
    before = worker.fds()
    assert worker.result(lib.LG_CMD_FLOW_ADOPT, [ours.fileno()], flow=state(40000)) == 0
    assert worker.fds() == before + 1
    [flow], [copy] = frozen(worker)
    assert (flow.guest_port, flow.rcv_nxt, flow.snd_una, flow.irs) == (40000, 5000, 1000, 4000)
    assert copy.getsockname() == ours.getsockname()
    theirs.sendall(b"x")
    assert copy.recv(1) == b"x"
    copy.close()
    assert frozen(worker) == ([], [])
    assert worker.result(lib.LG_CMD_FLOWS_THAW, value=flow.id) == 0
    assert worker.result(lib.LG_CMD_FLOWS_THAW, value=flow.id) == -errno.ENOENT
    [flow], [copy] = frozen(worker)
    copy.close()
    assert worker.result(lib.LG_CMD_FLOWS_FORGET, value=0) == 0
    assert worker.fds() == before


def test_what_is_refused_stays_the_callers(worker: Worker, connected: Any) -> None:
    """A name that is taken, one that is nobody's, and one more than the table holds."""
    ours, _ = connected()
    before = worker.fds()
    assert worker.result(lib.LG_CMD_FLOW_ADOPT, [ours.fileno()], flow=state(1, guest_addr=bytes(16))) == -errno.EINVAL
    assert worker.fds() == before
    for at in range(FLOW_LIMIT):
        assert worker.result(lib.LG_CMD_FLOW_ADOPT, [ours.fileno()], flow=state(1 + at)) == 0
    assert worker.result(lib.LG_CMD_FLOW_ADOPT, [ours.fileno()], flow=state(1)) == -errno.EEXIST
    assert worker.result(lib.LG_CMD_FLOW_ADOPT, [ours.fileno()], flow=state(99)) == -errno.ENFILE
    assert worker.fds() == before + FLOW_LIMIT
    flows, copies = frozen(worker)
    assert sorted(flow.guest_port for flow in flows) == list(range(1, 1 + FLOW_LIMIT))
    for copy in copies:
        copy.close()


def test_with_tcp_switched_off_none_is_taken_over(worker: Worker, connected: Any) -> None:
    """As none is opened."""
    view = ffi.new("struct lg_net_view *", {"flags": 0x1FF & ~lib.LG_VIEW_TCP, "mtu": 1500})
    assert worker.result(lib.LG_CMD_NET_VIEW, view=view[0]) == 0
    assert worker.result(lib.LG_CMD_FLOW_ADOPT, [connected()[0].fileno()], flow=state(1)) == -errno.EPERM


def test_what_another_worker_has_seen_of_the_guest_is_seen_here(worker: Worker) -> None:
    """And told to control, as if the guest had spoken."""
    seen = ffi.new("struct lg_seen *", {"mac": b"\2\0\0\0\0\1", "addr4": GUEST})
    assert worker.result(lib.LG_CMD_SEEN, seen=seen[0]) == 0
    record = worker.up.recv(4096)
    head = ffi.new("struct lg_up *")
    ffi.memmove(head, record, ffi.sizeof("struct lg_up"))
    assert head.type == lib.LG_UP_SEEN
    assert record[ffi.sizeof("struct lg_up") :] == bytes(ffi.buffer(seen))


def test_a_page_that_has_no_flow_brings_no_descriptor(worker: Worker) -> None:
    """Whatever the cursor."""
    for cursor in (0, 1, 2**32 - 1, 2**64 - 1):
        page = worker.call(lib.LG_CMD_FLOWS_FREEZE, value=cursor)
        assert (page.count, head_of(page).value, worker.came) == (0, 0, [])
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) == worker.baseline
