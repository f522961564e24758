# SPDX-License-Identifier: Apache-2.0
"""One engine, its fake kernel and its link, with a clock that stands still unless it is moved.

Used by conversation.py and by tests that need no conversation. Adversary: nobody.
Invariants: after every act the loop runs until it has nothing left to do, and must come to rest; whatever a sanitizer,
an assertion, the fake kernel or the link found wrong ends the test at once; close() holds that nothing is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fake_core import DATAPATH, ffi, lib
from segments import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    OUR_MAC,
    PROTOCOL_ICMPV6,
    Ends,
    Offload,
    Packet,
    address,
    parse_packet,
)

START_MS = 1_000_000
NEVER_MS = 2**64 - 1
NEIGHBOUR_SOLICITATION = 135  # RFC 4861, 4.3
STEPS_MAX = 20_000  # the largest act, 64 MiB through a small budget, takes a few hundred

GUEST = {4: address("192.0.2.15"), 6: address("2001:db8::15")}
PEER = {4: address("198.51.100.7"), 6: address("2001:db8:1::7")}
GATEWAY = {4: address("192.0.2.1"), 6: address("2001:db8::1")}
OUR_LINK_LOCAL = address("fe80::1")
MAPPED = {4: address("192.0.2.1"), 6: address("2001:db8::2")}


def mapped16(raw: bytes) -> bytes:
    """As the core has addresses."""
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


def is_question(frame: bytes) -> bool:
    """An ARP request, or a neighbour solicitation."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == ETHERTYPE_ARP:
        return frame[20:22] == b"\0\1"
    return kind == ETHERTYPE_IPV6 and frame[20] == PROTOCOL_ICMPV6 and frame[54] == NEIGHBOUR_SOLICITATION


def enum_names(file: str, macro: str) -> list[str]:
    """The names of an X-macro list, in order: tests name things as the sources do."""
    text = (DATAPATH / file).read_text()
    body = re.search(rf"#define {macro}\(apply\)((?:.*\\\n)+.*)", text)
    assert body, f"{file} has no list {macro}"
    return re.findall(r"apply\((\w+)\)", body.group(1))


COUNTERS = enum_names("counters.h", "COUNTERS")
HALVES = enum_names("tcp_state.h", "HALF_STATES")
STALLS = enum_names("tcp_state.h", "STALLS")
CLOSES = enum_names("tcp_state.h", "CLOSE_REASONS")
EVENT_BITS = {"IN": 0x1, "PRI": 0x2, "OUT": 0x4, "ERR": 0x8, "HUP": 0x10, "RDHUP": 0x2000, "ET": 1 << 31}


def event_names(events: int) -> str:
    return "|".join(name for name, bit in EVENT_BITS.items() if events & bit) or "0"


@dataclass(frozen=True)
class WorldOptions:
    peek_off: bool = True
    paces: bool = False
    reorder: bool = True
    ack_delay_ms: int = 0  # most conversations are easier to read when each ACK goes at once
    flow_limit: int = 64
    mtu: int = 1500
    start_ms: int = START_MS
    send_limit: int = 1 << 20  # of a new socket's send queue
    receive_limit: int = 6 << 20  # of its receive queue: the third number of tcp_rmem
    send_overhead: int = 0  # of the send queue's memory, in per cent
    pipe_slots: int = 256  # that a pipe may be made to have
    pipes: int = 1000  # that there may be


DATAGRAM_FLOW_SECONDS = 121


class World:
    """See the module. One at a time: the C side is one."""

    def __init__(self, options: WorldOptions | None = None) -> None:
        self.options = options or WorldOptions()
        chosen = self.options
        lib.fake_kernel_reset()
        lib.fake_defaults(chosen.send_limit, chosen.receive_limit, chosen.send_overhead, chosen.peek_off)
        lib.fake_pipe_limits(chosen.pipe_slots, chosen.pipes)
        switches = chosen.peek_off, chosen.paces, chosen.reorder, chosen.ack_delay_ms
        assert lib.script_open(chosen.start_ms, chosen.flow_limit, *switches) == 0
        self.calls_known = [ffi.string(lib.fake_call_name(i)).decode() for i in range(lib.fake_call_kinds())]
        self._fill_view(chosen.mtu)
        self.inbox: list[Packet] = []
        self.arp_replies: list[bytes] = []
        self.questions: list[bytes] = []  # frames that ask who has an address of the guest's: ARP, solicitations
        self.peer_mac = OUR_MAC  # from which packets have to come
        self.closed = False

    def _fill_view(self, mtu: int) -> None:
        view = self.view
        view.flags = 0x1FF
        view.mtu = mtu
        ffi.memmove(view.our_mac, OUR_MAC, 6)
        for name, raw in (
            ("guest4", GUEST[4]),
            ("guest6", GUEST[6]),
            ("gateway4", GATEWAY[4]),
            ("gateway6", GATEWAY[6]),
            ("our_link_local", OUR_LINK_LOCAL),
            ("map_host4", MAPPED[4]),
            ("map_host6", MAPPED[6]),
        ):
            ffi.memmove(getattr(view, name), mapped16(raw), 16)

    @property
    def view(self) -> Any:
        return lib.script_view()

    # ---- the loop and the clock ----

    @property
    def now_ms(self) -> int:
        return int(lib.script_now_ms())

    @property
    def next_ms(self) -> int:
        return int(lib.script_next_ms())

    def fault(self) -> str:
        """What an assertion or a sanitizer has said; empty: nothing."""
        return str(ffi.string(lib.script_fault()).decode(errors="replace"))

    def check(self) -> None:
        fault = self.fault()
        assert not fault, fault
        violation = ffi.string(lib.fake_violation()).decode()
        assert not violation, violation

    def settle(self) -> None:
        """Runs the loop until it rests."""
        steps = lib.script_settle(STEPS_MAX)
        self.check()
        assert steps >= 0, f"the loop spins: {STEPS_MAX} steps and no rest"
        self._collect()

    def advance(self, seconds: float, stop_at_frame: bool = False) -> None:
        """Moves the clock, from timer to timer; with stop_at_frame not beyond the first frame for the guest."""
        end = self.now_ms + round(seconds * 1000)
        while (due := self.next_ms) <= end:
            lib.script_set_time(max(due, self.now_ms))
            self.settle()
            if stop_at_frame and self.inbox:
                return
        lib.script_set_time(end)

    # ---- the guest's link ----

    def set_link(self, **changes: Any) -> None:
        settings = ffi.new("struct script_link *")
        lib.script_get_link(settings)
        for name, value in changes.items():
            setattr(settings, name, value)
        lib.script_set_link(settings)

    def send(self, frame: bytes, stream: int = 0, position: int = 0, payload: int = 0) -> None:
        """Queues a frame of the guest's; the loop does not run yet."""
        lib.script_from_guest(frame, len(frame), stream, position & 0xFFFFFFFFFFFFFFFF, payload)

    def _collect(self) -> None:
        raw = ffi.new("struct script_frame *")
        while lib.script_to_guest(raw):
            frame = bytes(ffi.buffer(raw.bytes, raw.length))
            offload = Offload(
                raw.needs_csum, raw.gso_type, raw.gso_size, raw.header_length, raw.csum_start, raw.csum_offset
            )
            if is_question(frame):
                self.questions.append(frame)
            elif frame[12:14] == ETHERTYPE_ARP.to_bytes(2, "big"):
                self.arp_replies.append(frame)
            else:
                self.inbox.append(parse_packet(frame, offload, raw.time_ms, bytes(self.seen.mac), self.peer_mac))

    @property
    def seen(self) -> Any:
        return lib.script_seen()

    # ---- what became of it ----

    def counter(self, name: str) -> int:
        return int(lib.script_counter(COUNTERS.index(name)))

    def calls(self, name: str) -> int:
        return int(lib.fake_call_count(self.calls_known.index(name)))

    def fail_next(self, call: str, error: int) -> None:
        lib.fake_fail(self.calls_known.index(call), error)

    def flows(self) -> list[Any]:
        cursor = ffi.new("uint32_t *")
        found: list[Any] = []
        while True:
            flow = ffi.new("struct script_flow *")
            if not lib.script_flow(cursor, flow):
                return found
            found.append(flow)

    def flow_of(self, ends: Ends) -> Any | None:
        for flow in self.flows():
            here = (bytes(flow.guest_addr), flow.guest_port, bytes(flow.remote_addr), flow.remote_port)
            if here == (mapped16(ends.guest), ends.guest_port, mapped16(ends.remote), ends.remote_port):
                return flow
        return None

    def wakeups(self, fd: int, start: int = 0) -> list[Any]:
        found = [lib.script_wakeup(i) for i in range(start, lib.script_wakeups())]
        return [wakeup for wakeup in found if wakeup.fd == fd]

    def close_reasons(self) -> list[str]:
        events = [lib.script_event(i) for i in range(lib.script_events())]
        return [CLOSES[event.reason] for event in events if event.kind == lib.LG_EVENT_FLOW_CLOSE]

    # ---- the end ----

    def hang_up(self) -> None:
        """The guest resets every flow that a test has left, whatever state it is in, and takes what it is sent."""
        lib.script_give_room(1 << 20)
        self.set_link(connected=True)
        lib.script_attach()
        self.settle()
        for flow in self.flows():
            guest, remote = bytes(flow.guest_addr), bytes(flow.remote_addr)
            if guest.startswith(mapped16(bytes(4))[:12]):
                guest, remote = guest[12:], remote[12:]
            ends = Ends(guest, flow.guest_port, remote, flow.remote_port)
            self.send(ends.tcp_head(4 | 16, flow.rcv_nxt, flow.snd_nxt, 0))  # one that is in SYN checks the ACK
        self.settle()
        if self.flows() or self.next_ms != NEVER_MS:  # of datagrams, or the first pieces of one: silence ends them
            self.advance(DATAGRAM_FLOW_SECONDS)

    def close(self, failed: bool = False) -> None:
        """The shared check of every test: no flow, timer, hold, reservation or socket is left."""
        if self.closed:
            return
        self.closed = True
        try:
            if not failed:
                self.hang_up()
                left = ffi.string(lib.script_left()).decode()
                assert not left, f"left behind: {left}"
        finally:
            lib.script_close()
