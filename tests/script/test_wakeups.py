# SPDX-License-Identifier: Apache-2.0
"""The two properties that this project exists for, over random sequences of everything that can happen to a flow:
wake-ups are bounded by progress, and every byte arrives exactly once and in order, in both directions.

Adversary: chance. The fake kernel's edges are held to the real one's by test_kernel_facts.py.

Invariants that are looked at: the loop rests after each act; the guest's model (model_guest.py) has found nothing
wrong; each wake-up of the socket moved a byte or changed the flow's state, or is one of those that epoll makes
unavoidable:
  - the first edge during a stall of the window or the link, which sets the mask, and is the only one of that stall;
  - what EPOLL_CTL_MOD reports by itself because unacknowledged bytes are still in the kernel's queue: one for each;
  - a reset behind a FIN, once: neither can be acted on before the bytes have gone;
  - the edges of our own shutdown() and of its acknowledgement: one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_core import lib
from hypothesis import given, settings
from hypothesis import strategies as st
from model_guest import SCALE, ModelGuest
from world import CLOSES, EVENT_BITS, STALLS, World, WorldOptions, event_names

EXAMPLES = 400
STALLED = {STALLS.index("window"), STALLS.index("link")}

Act = tuple[str, int, int]
Sequence = list[tuple[Act, int, bool]]
SIZES = st.sampled_from([1, 10, 999, 1000, 1001, 5000, 30000, 65536, 300000])
WINDOWS = st.sampled_from([0, 0, 128, 1000, 5000, 40000, 64000, 4 << 20])
COUNTS = st.sampled_from([1, 1, 2, 3, 10, 100])
NOTHING = st.just(0)


def act(name: str, first: st.SearchStrategy[int] = NOTHING, second: st.SearchStrategy[int] = NOTHING) -> Any:
    return st.tuples(st.just(name), first, second)


# Ordinary traffic is more frequent than the end of it: a sequence that ends early shows little.
TRAFFIC = [
    act("peer_sends", SIZES, COUNTS),
    act("peer_takes", SIZES),
    act("guest_sends", SIZES),
    act("guest_acks"),
    act("guest_window", WINDOWS),
    act("time", st.sampled_from([1, 10, 250, 1000, 61000])),
    act("room_is", st.sampled_from([0, 0, 1, 5, 1 << 20])),
    act("room_comes", COUNTS),
    act("queue", st.sampled_from([1000, 20000, 100000, 4 << 20])),
    act("guest_repeats", SIZES),
    act("guest_loses", COUNTS),
    act("gap", SIZES, SIZES),
    act("duplicate_acks", st.integers(1, 5)),
    act("urgent", SIZES),
    act("detach"),
    act("attach"),
]
ENDS = [act("peer_closes"), act("peer_resets"), act("guest_closes"), act("guest_resets")]
# An act, of which flow, and whether the loop runs after it or only with the next.
SEQUENCES = st.lists(
    st.tuples(st.one_of(*TRAFFIC, *TRAFFIC, *ENDS), st.integers(0, 2), st.booleans()), min_size=1, max_size=60
)


class Flow:
    """One connection: the model of its guest, and what was done to it that decides what must arrive."""

    def __init__(self, world: World, port: int, family: int, sack: bool) -> None:
        self.world = world
        self.guest = ModelGuest(world, port, family, sack)
        self.guest.open()
        self.peer_reset = self.guest_reset = False
        self.cut_short = False  # the guest reset the connection, or lost frames: a RST does not wait for those
        self.wakeups_seen = lib.script_wakeups()

    @property
    def fd(self) -> int:
        return self.guest.fd

    @property
    def lives(self) -> bool:
        return self.world.flow_of(self.guest.ends) is not None

    def peer_sends(self, size: int, count: int) -> None:
        for _ in range(count):
            if lib.fake_peer_send(self.fd, size) <= 0:
                return

    def urgent(self, size: int, _: int) -> None:
        lib.fake_peer_send_urgent(self.fd, size)

    def peer_takes(self, size: int, _: int) -> None:
        lib.fake_peer_take(self.fd, size)

    def peer_closes(self, _: int, __: int) -> None:
        lib.fake_peer_fin(self.fd)

    def peer_resets(self, _: int, __: int) -> None:
        if lib.fake_peer_reset(self.fd) == 0:
            self.peer_reset = True

    def queue(self, size: int, _: int) -> None:
        lib.fake_send_limit(self.fd, size)

    def guest_sends(self, size: int, _: int) -> None:
        self.guest.send(size)

    def guest_repeats(self, size: int, _: int) -> None:
        self.guest.repeat(size)

    def gap(self, skip: int, length: int) -> None:
        self.guest.send_behind_gap(skip, length)

    def guest_acks(self, _: int, __: int) -> None:
        self.guest.acknowledge()

    def duplicate_acks(self, count: int, _: int) -> None:
        for _ in range(count):
            self.guest.acknowledge()

    def guest_window(self, window: int, _: int) -> None:
        self.guest.window = window
        self.guest.acknowledge()

    def guest_loses(self, count: int, _: int) -> None:
        self.guest.losing = count
        self.cut_short = True

    def guest_closes(self, _: int, __: int) -> None:
        self.guest.finish()

    def guest_resets(self, _: int, __: int) -> None:
        self.cut_short = self.guest_reset = True
        self.guest.abort()

    def close_reason(self) -> str:
        events = [lib.script_event(i) for i in range(lib.script_events())]
        port, kind = self.guest.ends.guest_port, lib.LG_EVENT_FLOW_CLOSE
        (reason,) = [str(CLOSES[event.reason]) for event in events if event.kind == kind and event.guest_port == port]
        return reason

    def ended_as_it_should(self) -> bool:
        """Nobody is reset without a cause."""
        reason = self.close_reason()
        if reason == "done":
            return not self.guest.socket.aborted
        if reason == "timed_out":  # twelve intervals that double: the guest was silent for minutes
            return self.world.now_ms - self.world.options.start_ms > 240_000
        return {"guest_reset": self.guest_reset, "peer_reset": self.peer_reset}.get(reason, False)

    def push(self) -> None:
        """Everything is opened, and everybody reads."""
        self.guest.losing = 0
        self.guest.window = 65535 << SCALE
        lib.fake_send_limit(self.fd, 16 << 20)
        lib.fake_peer_take(self.fd, 1 << 40)
        self.guest.acknowledge()
        self.guest.repeat(60000)

    @property
    def delivered(self) -> bool:
        return bool(self.guest.got == self.guest.socket.arrived and self.guest.acked == self.guest.sent)

    def check_bytes(self) -> None:
        guest, socket = self.guest, self.guest.socket
        if not guest.reset:
            # Not guest.acked: the last ACK of a connection that is over may have been the one that was lost.
            assert (guest.got, socket.sent) == (socket.arrived, guest.sent), "bytes were lost"
        elif self.peer_reset and not self.cut_short:
            assert guest.got == socket.arrived, f"{guest.got} bytes before the reset, the peer sent {socket.arrived}"

    def check_wakeups(self) -> None:
        """Each is worth its cost, or is one of those that cannot be helped."""
        woken = self.world.wakeups(self.fd, self.wakeups_seen)
        shutdown_edges, reset_told = 2, False
        masked_stalls: set[int] = set()
        changes = None
        for number, wakeup in enumerate(woken):
            changed = changes is not None and wakeup.changes != changes
            changes = wakeup.changes
            if not wakeup.idle or changed:
                continue
            if wakeup.stall in STALLED and wakeup.stalls not in masked_stalls:
                masked_stalls.add(wakeup.stalls)
            elif wakeup.events & EVENT_BITS["ERR"] and not reset_told:
                reset_told = True
            elif wakeup.shutdowns and shutdown_edges:
                shutdown_edges -= 1
            else:
                told = ", ".join(event_names(w.events) + (" idle" if w.idle else "") for w in woken[: number + 1])
                raise AssertionError(f"wake-up {number + 1} moved nothing and had no reason: {told}")


class Run:
    """One sequence, in a world of its own."""

    def __init__(self, options: WorldOptions, flows: int, family: int, sack: bool, buffer_bytes: int) -> None:
        self.world = World(options)
        self.world.set_link(buffer_bytes=buffer_bytes)
        self.flows = [Flow(self.world, 40000 + n, family, sack) for n in range(flows)]
        self.acts: dict[str, Callable[[int, int], None]] = {
            "room_is": lambda room, _: lib.script_set_room(room),
            "room_comes": lambda buffers, _: lib.script_give_room(buffers),
            "detach": lambda _, __: self.world.set_link(connected=False),
            "attach": self.attach,
            "time": self.time,
        }

    def run(self, sequence: Sequence) -> None:
        for (name, first, second), which, settle in sequence:
            flow = self.flows[which % len(self.flows)]
            if name in self.acts:
                self.acts[name](first, second)
            elif flow.lives:
                if name == "guest_resets":
                    self.settle()
                getattr(flow, name)(first, second)
            if settle:
                self.settle()
        self.settle()

    def settle(self) -> None:
        self.world.settle()
        for flow in self.flows:
            flow.guest.take_frames()

    def attach(self, _: int, __: int) -> None:
        self.world.set_link(connected=True)
        lib.script_attach()

    def time(self, milliseconds: int, _: int) -> None:
        self.settle()
        self.world.advance(milliseconds / 1000)

    def drain(self) -> None:
        """What was sent must arrive."""
        self.attach(0, 0)
        lib.script_give_room(1 << 20)
        for _ in range(200):
            living = [flow for flow in self.flows if flow.lives]
            for flow in living:
                flow.push()
            self.settle()
            if all(flow.delivered and not flow.peer_reset for flow in living):
                break
            self.time(500, 0)
        for flow in self.flows:
            flow.check_bytes()

    def end(self) -> None:
        """Both sides of each flow close, and nothing is left."""
        for _ in range(100):
            living = [flow for flow in self.flows if flow.lives]
            if not living:
                break
            for flow in living:
                lib.fake_peer_fin(flow.fd)
                flow.guest.finish()
                flow.push()
            self.time(500, 0)
        for flow in self.flows:
            assert not flow.lives, "the flow does not end"
            assert flow.guest.socket.closed
            assert flow.ended_as_it_should(), f"closed for {flow.close_reason()}"

    def check_wakeups(self) -> None:
        if len(self.flows) == 1:
            self.flows[0].check_wakeups()
            return
        # The counters are those of all flows: here only the sum is bounded.
        idle = sum(lib.script_wakeup(i).idle for i in range(lib.script_wakeups()))
        stalls = self.world.counter("stall_window") + self.world.counter("stall_link")
        assert idle <= stalls + self.world.counter("interest_changes") + 2 * self.world.calls("shutdown")


def play(sequence: Sequence, options: WorldOptions, flows: int, family: int, sack: bool, buffer_bytes: int) -> None:
    run = Run(options, flows, family, sack, buffer_bytes)
    failed = True
    try:
        run.run(sequence)
        run.check_wakeups()
        run.drain()
        run.check_wakeups()
        run.end()
        run.check_wakeups()
        failed = False
    finally:
        run.world.close(failed)


@pytest.mark.parametrize("flows", [1, 3])
@pytest.mark.parametrize("peek_off", [True, False], ids=["peek_off", "reread"])
@settings(max_examples=EXAMPLES)
@given(
    SEQUENCES,
    st.sampled_from([4, 6]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1600, 4096, 65550]),
    st.sampled_from([0, 12]),
    st.sampled_from([0, 2]),
)
def test_wake_ups_are_bounded_by_progress_and_no_byte_is_lost(
    peek_off: bool,
    flows: int,
    sequence: Sequence,
    family: int,
    sack: bool,
    reorder: bool,
    buffer_bytes: int,
    overhead: int,
    ack_delay_ms: int,
) -> None:
    """Whatever happens to one flow, or to three on one link, in whatever order."""
    options = WorldOptions(
        peek_off=peek_off, reorder=reorder, send_limit=100_000, send_overhead=overhead, ack_delay_ms=ack_delay_ms
    )
    play(sequence, options, flows, family, sack, buffer_bytes)
