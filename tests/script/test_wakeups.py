# SPDX-License-Identifier: Apache-2.0
"""The two properties that this project exists for, over random sequences of everything that can happen to a flow:
wake-ups are bounded by progress, and every byte arrives exactly once and in order, in both directions.

Adversary: chance. The fake kernel's edges are held to the real one's by test_kernel_facts.py.

Invariants that are looked at after each act: the loop rests; the guest's model (model_guest.py) has found nothing wrong;
each wake-up of the socket moved a byte or changed the flow's state, or is one of those that epoll makes unavoidable:
  - the first edge during a stall of the window or the link, which sets the mask, and is the only one of that stall;
  - what EPOLL_CTL_MOD reports by itself because unacknowledged bytes are still in the kernel's queue: one for each;
  - the edges of our own shutdown() and of its acknowledgement: one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_core import lib
from hypothesis import given, settings
from hypothesis import strategies as st
from model_guest import SCALE, ModelGuest
from world import STALLS, World, WorldOptions, event_names

EXAMPLES = 300
STALLED = {STALLS.index("window"), STALLS.index("link")}

Act = tuple[str, int, int]
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
# An act, and whether the loop runs after it or only with the next.
SEQUENCE = st.lists(st.tuples(st.one_of(*TRAFFIC, *TRAFFIC, *ENDS), st.booleans()), min_size=1, max_size=60)


class Run:
    """One sequence, in a world of its own."""

    def __init__(self, options: WorldOptions, family: int, sack: bool, buffer_bytes: int) -> None:
        self.world = World(options)
        self.world.set_link(buffer_bytes=buffer_bytes)
        self.guest = ModelGuest(self.world, family=family, sack=sack)
        self.guest.open()
        self.peer_reset = False
        self.sent_at_reset = False  # the guest had bytes for a peer that was gone
        self.lost = False  # frames for the guest: a RST does not wait until they were sent again
        self.wakeups_seen = lib.script_wakeups()
        self.acts: dict[str, Callable[[int, int], None]] = {
            name.removeprefix("_act_"): getattr(self, name) for name in dir(self) if name.startswith("_act_")
        }

    @property
    def fd(self) -> int:
        return self.guest.fd

    def run(self, sequence: list[tuple[Act, bool]]) -> None:
        for (name, first, second), settle in sequence:
            if self.world.flow_of(self.guest.ends) is None:
                return
            self.acts[name](first, second)
            if settle:
                self.settle()
        self.settle()

    def settle(self) -> None:
        self.world.settle()
        self.guest.take_frames()

    # ---- the peer ----

    def _act_peer_sends(self, size: int, count: int) -> None:
        for _ in range(count):
            if lib.fake_peer_send(self.fd, size) <= 0:
                return

    def _act_urgent(self, size: int, _: int) -> None:
        lib.fake_peer_send_urgent(self.fd, size)

    def _act_peer_takes(self, size: int, _: int) -> None:
        lib.fake_peer_take(self.fd, size)

    def _act_peer_closes(self, _: int, __: int) -> None:
        lib.fake_peer_fin(self.fd)

    def _act_peer_resets(self, _: int, __: int) -> None:
        if lib.fake_peer_reset(self.fd) == 0:
            self.peer_reset = True
            self.sent_at_reset |= self.guest.socket.sent < self.guest.sent

    # ---- the guest ----

    def _act_guest_sends(self, size: int, _: int) -> None:
        self.sent_at_reset |= self.peer_reset
        self.guest.send(size)

    def _act_guest_repeats(self, size: int, _: int) -> None:
        self.sent_at_reset |= self.peer_reset
        self.guest.repeat(size)

    def _act_gap(self, skip: int, length: int) -> None:
        self.sent_at_reset |= self.peer_reset
        self.guest.send_behind_gap(skip, length)

    def _act_guest_acks(self, _: int, __: int) -> None:
        self.guest.acknowledge()

    def _act_duplicate_acks(self, count: int, _: int) -> None:
        for _ in range(count):
            self.guest.acknowledge()

    def _act_guest_window(self, window: int, _: int) -> None:
        self.guest.window = window
        self.guest.acknowledge()

    def _act_guest_loses(self, count: int, _: int) -> None:
        self.guest.losing = count
        self.lost = True

    def _act_guest_closes(self, _: int, __: int) -> None:
        self.sent_at_reset |= self.peer_reset
        self.guest.finish()

    def _act_guest_resets(self, _: int, __: int) -> None:
        self.settle()
        self.guest.abort()

    # ---- link, kernel, clock ----

    def _act_room_is(self, room: int, _: int) -> None:
        lib.script_set_room(room)

    def _act_room_comes(self, buffers: int, _: int) -> None:
        lib.script_give_room(buffers)

    def _act_detach(self, _: int, __: int) -> None:
        self.world.set_link(connected=False)

    def _act_attach(self, _: int, __: int) -> None:
        self.world.set_link(connected=True)
        lib.script_attach()

    def _act_queue(self, size: int, _: int) -> None:
        lib.fake_send_limit(self.fd, size)

    def _act_time(self, milliseconds: int, _: int) -> None:
        self.settle()
        self.world.advance(milliseconds / 1000)

    # ---- what must hold ----

    def check_wakeups(self) -> None:
        """Each is worth its cost, or is one of those that cannot be helped."""
        woken = self.world.wakeups(self.fd, self.wakeups_seen)
        shutdown_edges = 2
        masked_stalls: set[int] = set()
        changes = None
        for number, wakeup in enumerate(woken):
            changed = changes is not None and wakeup.changes != changes
            changes = wakeup.changes
            if not wakeup.idle or changed:
                continue
            if wakeup.stall in STALLED and wakeup.stalls not in masked_stalls:
                masked_stalls.add(wakeup.stalls)
            elif wakeup.shutdowns and shutdown_edges:
                shutdown_edges -= 1
            else:
                told = ", ".join(event_names(w.events) + (" idle" if w.idle else "") for w in woken[: number + 1])
                raise AssertionError(f"wake-up {number + 1} moved nothing and had no reason: {told}")

    def drain(self) -> None:
        """Everything is opened, and everybody reads: what was sent must arrive."""
        guest = self.guest
        guest.losing = 0
        guest.window = 65535 << SCALE
        self._act_attach(0, 0)
        lib.script_give_room(1 << 20)
        for _ in range(200):
            if self.world.flow_of(guest.ends) is None:
                break
            lib.fake_send_limit(self.fd, 16 << 20)
            lib.fake_peer_take(self.fd, 1 << 40)
            guest.acknowledge()
            guest.repeat(60000)
            self.settle()
            socket = guest.socket
            if guest.got == socket.arrived and guest.acked == guest.sent and not self.peer_reset:
                break
            self.world.advance(0.5)
        socket = guest.socket
        if not guest.reset:
            assert (guest.got, guest.acked) == (socket.arrived, guest.sent), "bytes were lost"
        elif self.peer_reset and not self.sent_at_reset and not self.lost:
            assert guest.got == socket.arrived, f"{guest.got} bytes before the reset, the peer sent {socket.arrived}"

    def end(self) -> None:
        """Both close, and nothing is left."""
        guest = self.guest
        for _ in range(100):
            if self.world.flow_of(guest.ends) is None:
                break
            lib.fake_peer_fin(self.fd)
            guest.finish()
            guest.repeat(60000)
            lib.fake_peer_take(self.fd, 1 << 40)
            self.settle()
            guest.acknowledge()
            self.settle()
            self.world.advance(0.5)
            guest.take_frames()
        assert self.world.flow_of(guest.ends) is None, "the flow does not end"
        socket = guest.socket
        assert socket.closed
        if not guest.reset and not self.peer_reset:
            assert not socket.aborted, "a connection that ended in order was reset"


def play(sequence: list[tuple[Act, bool]], options: WorldOptions, family: int, sack: bool, buffer_bytes: int) -> None:
    run = Run(options, family, sack, buffer_bytes)
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


@pytest.mark.parametrize("peek_off", [True, False], ids=["peek_off", "reread"])
@settings(max_examples=EXAMPLES)
@given(
    SEQUENCE,
    st.sampled_from([4, 6]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1600, 4096, 65550]),
    st.sampled_from([0, 12]),
)
def test_wake_ups_are_bounded_by_progress_and_no_byte_is_lost(
    peek_off: bool,
    sequence: list[tuple[Act, bool]],
    family: int,
    sack: bool,
    reorder: bool,
    buffer_bytes: int,
    overhead: int,
) -> None:
    """Whatever happens to a flow, in whatever order."""
    options = WorldOptions(peek_off=peek_off, reorder=reorder, send_limit=100_000, send_overhead=overhead)
    play(sequence, options, family, sack, buffer_bytes)
