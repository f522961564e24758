# SPDX-License-Identifier: Apache-2.0
"""A worker of its own for one test, without its isolation: lg_worker_run() in a child, and the channels' other ends.

Used by test_command and test_up. Adversary: nobody. Invariant: a worker that hangs or ends fails the test that waits
for it, with what it said last.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from core_pieces import COUNTERS, ffi, lib

SLOTS = lib.LG_MEM_SLOTS
PATIENCE = 30  # seconds; a worker that hangs fails its test instead of stopping the run

# Each command's record, and how many descriptors may come with it: datapath.h in the words of a table.
SHAPES: dict[int, tuple[str, range]] = {
    lib.LG_CMD_NET_VIEW: ("struct lg_cmd_net_view", range(1)),
    lib.LG_CMD_MEM_TABLE: ("struct lg_cmd_mem", range(SLOTS + 1)),
    lib.LG_CMD_MEM_ADD: ("struct lg_cmd_mem", range(1, 2)),
    lib.LG_CMD_MEM_REMOVE: ("struct lg_cmd_mem", range(1)),
    lib.LG_CMD_LINK_FEATURES: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_LINK_RESET: ("struct lg_cmd_header", range(1)),
    lib.LG_CMD_VRING_START: ("struct lg_cmd_vring", range(4)),
    lib.LG_CMD_VRING_STOP: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_VRING_ENABLE: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_VRING_CALL: ("struct lg_cmd_value", range(2)),
    lib.LG_CMD_VRING_ERR: ("struct lg_cmd_value", range(2)),
    lib.LG_CMD_DIRTY_LOG: ("struct lg_cmd_log", range(3)),
    lib.LG_CMD_EVENTS: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_PCAP: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_FLOWS: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_STREAM_ATTACH: ("struct lg_cmd_value", range(1, 2)),
    lib.LG_CMD_DGRAM_ATTACH: ("struct lg_cmd_header", range(1, 2)),
    lib.LG_CMD_TAP_ATTACH: ("struct lg_cmd_value", range(1, 2)),
    lib.LG_CMD_SPLICE_AGENT: ("struct lg_cmd_header", range(1, 2)),
    lib.LG_CMD_LISTEN: ("struct lg_cmd_listen", range(1, lib.LG_LISTEN_MAX + 1)),
    lib.LG_CMD_LISTEN_CLOSE: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_LISTEN_TARGET: ("struct lg_cmd_listen", range(1)),
    lib.LG_CMD_NEIGHBOURS: ("struct lg_cmd_neighbours", range(1)),
    lib.LG_CMD_SEEN: ("struct lg_cmd_seen", range(1)),
    lib.LG_CMD_FLOWS_FREEZE: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_FLOWS_THAW: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_FLOWS_FORGET: ("struct lg_cmd_value", range(1)),
    lib.LG_CMD_FLOW_ADOPT: ("struct lg_cmd_flow", range(1, 2)),
    lib.LG_CMD_GATEWAY_SERVE: ("struct lg_cmd_serve", range(1, 2)),
    lib.LG_CMD_GATEWAY_DIAL: ("struct lg_cmd_dial", range(1, 2)),
}


REPLIES = {ffi.sizeof(f"struct {name}"): name for name in ("lg_reply", "lg_flow_page", "lg_frozen_page")}


def head_of(reply: Any) -> Any:
    """What every reply begins with."""
    return reply if ffi.typeof(reply) is ffi.typeof("struct lg_reply *") else reply.reply


class Worker:
    """lg_worker_run() in a child, and the ends of its channels that control and keeper hold."""

    def __init__(self, pcap: bool = True) -> None:
        self.cmd, cmd = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.up, up = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.said = os.memfd_create("stderr", os.MFD_CLOEXEC)
        counters, ring = os.memfd_create("counters", os.MFD_CLOEXEC), os.memfd_create("pcap", os.MFD_CLOEXEC)
        os.ftruncate(counters, lib.LG_COUNTER_BYTES)
        os.ftruncate(ring, lib.LG_PCAP_HEAD_BYTES + lib.LG_PCAP_RING_BYTES)
        self.pid = os.fork()
        if not self.pid:
            os.dup2(self.said, 2)
            config = {"cmd_fd": cmd.fileno(), "up_fd": up.fileno(), "keeper_fd": keeper.fileno()}
            config |= {"counters_fd": counters, "pcap_fd": ring if pcap else -1, "pcap_event_fd": -1, "flow_limit": 16}
            kept = [end.fileno() for end in (cmd, up, keeper)] + [counters, ring]
            lib.lg_close_all_but(kept, len(kept))
            os._exit(lib.lg_worker_run(ffi.new("struct lg_worker_config *", config)) & 0xFF)
        for end in (cmd, up, keeper):
            end.close()
        self._counters = mmap.mmap(counters, lib.LG_COUNTER_BYTES)
        os.close(counters)
        os.close(ring)
        for end in (self.cmd, self.up, self.keeper):
            end.settimeout(PATIENCE)
        assert self.keeper.recv(8) == b"R"
        self.seq = 0
        self.came: list[int] = []  # descriptors of the last reply: whoever asked for them closes them
        self.baseline = self.fds()

    def fds(self) -> int:
        """How many it has open, after all that it was asked before: it answers first, and then closes what it does
        not keep."""
        assert self.result(lib.LG_CMD_EVENTS, value=0) == 0
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def send(self, record: bytes, fds: Sequence[int] = ()) -> Any:
        """Sends as it stands; the reply, or an exception with what the worker said last."""
        try:
            socket.send_fds(self.cmd, [record], list(fds))
            answer, self.came, _, _ = socket.recv_fds(self.cmd, max(REPLIES) + 1, SLOTS)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise
        except ConnectionError:
            answer = b""
        if not answer:
            raise AssertionError(f"the worker ended with {self.end()}: {self.last_words()}")
        reply = ffi.new(f"struct {REPLIES[len(answer)]} *")
        ffi.memmove(reply, answer, len(answer))
        return reply

    def call(self, kind: int, fds: Sequence[int] = (), **fields: Any) -> Any:
        """A whole record of this type; its reply."""
        self.seq += 1
        record = ffi.new(SHAPES[kind][0] + " *")
        header = record if SHAPES[kind][0] == "struct lg_cmd_header" else record.header
        header.type, header.seq = kind, self.seq
        for name, value in fields.items():
            setattr(record, name, value)
        reply = self.send(bytes(ffi.buffer(record)), fds)
        assert (head_of(reply).type, head_of(reply).seq) == (kind, self.seq)
        return reply

    def result(self, kind: int, fds: Sequence[int] = (), **fields: Any) -> int:
        return int(head_of(self.call(kind, fds, **fields)).result)

    def count(self, name: str) -> int:
        """A counter, after all that the worker was asked before."""
        assert self.result(lib.LG_CMD_EVENTS, value=0) == 0
        return int.from_bytes(self._counters[8 * COUNTERS.index(name) :][:8], "little")

    def last_words(self) -> str:
        return os.pread(self.said, 20000, 0).decode(errors="replace")

    def end(self) -> int:
        """Closes the channels; the exit code."""
        for end in (self.cmd, self.up, self.keeper):
            end.close()
        if self.pid:
            pid, self.pid = self.pid, 0
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return 0

    def close(self) -> None:
        assert self.end() == 0, self.last_words()
        os.close(self.said)
