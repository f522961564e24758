# SPDX-License-Identifier: Apache-2.0
"""The properties of test_wakeups.py for two joined sockets, over random sequences of everything that can happen to
them: wake-ups are bounded by progress, and every byte arrives exactly once and in order, in both directions.

Adversary: chance. The fake kernel's edges and its splice() are held to the real ones by test_kernel_facts.py.

Invariants that are looked at: the loop rests after each act; what is spliced into a socket are the bytes of one other,
in order (fake_splice.c); what was read is in the other's queue or in the pipe; each wake-up moved a byte or changed the
connection's state, or is one of those that epoll makes unavoidable:
  - the first edge of bytes that cannot move, which masks them, and what EPOLL_CTL_MOD reports by itself when they can:
    one for each change of the mask;
  - a reset of one side, once: it cannot be acted on before what was said before it has gone;
  - the edges of our own shutdown() and of its acknowledgement: one each."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from fake_core import lib
from hypothesis import given, settings
from hypothesis import strategies as st
from splice_world import ALL, FAR, NEAR, TCP4, TCP6, Joint, SpliceWorld
from world import CLOSES, WorldOptions, event_names

EXAMPLES = 400

Act = tuple[str, int, int]
Sequence = list[tuple[Act, int, bool]]
SIZES = st.sampled_from([1, 10, 1000, 4096, 4097, 30000, 65536, 300000])
SIDES = st.sampled_from([NEAR, FAR])
NOTHING = st.just(0)


def act(name: str, first: st.SearchStrategy[int] = NOTHING, second: st.SearchStrategy[int] = NOTHING) -> Any:
    return st.tuples(st.just(name), first, second)


TRAFFIC = [
    act("says", SIDES, SIZES),
    act("says", SIDES, SIZES),
    act("takes", SIDES, SIZES),
    act("queue", SIDES, st.sampled_from([100, 5000, 100_000, 4 << 20])),
    act("urgent", SIDES, SIZES),
    act("streams", SIDES, SIZES),
    act("pipes", st.sampled_from([0, 1, 1, 2, 1000])),
    act("interrupted"),
    act("time", st.sampled_from([1, 3, 1000, 61000])),
    act("gives", st.integers(1, 3)),
    act("gives_other", st.integers(1, 3)),
    act("accepts"),
]
ENDS = [act("closes", SIDES), act("closes", SIDES), act("resets", SIDES), act("far_refuses"), act("agent_refuses")]
# An act, of which connection, and whether the loop runs after it or only with the next.
SEQUENCES = st.lists(
    st.tuples(st.one_of(*TRAFFIC, *TRAFFIC, *ENDS), st.integers(0, 2), st.booleans()), min_size=1, max_size=60
)


class Flow:
    """One connection, and what was done to it that decides what must arrive."""

    def __init__(self, world: SpliceWorld, joint: Joint) -> None:
        self.world, self.joint = world, joint
        self.port = world.peer_port
        self.reset = [False, False]
        self.refused = False

    def fd(self, side: int) -> int:
        """-1: there is none yet."""
        if side == NEAR:
            return self.joint.near.fd
        return self.joint.far.fd if self.joint.lives and self.joint.now.fd[FAR] >= 0 else -1

    def says(self, side: int, size: int) -> None:
        lib.fake_peer_send(self.fd(side), size)

    def urgent(self, side: int, size: int) -> None:
        lib.fake_peer_send_urgent(self.fd(side), size)

    def streams(self, side: int, size: int) -> None:
        """So much at full speed that it is told in pieces from now on, and a rest."""
        self.queue(1 - side, 64 << 20)
        for length in [1 << 20] * 9 + [size]:
            self.says(side, length)
            self.takes(1 - side, ALL)
            self.world.settle()

    def takes(self, side: int, size: int) -> None:
        lib.fake_peer_take(self.fd(side), size)

    def queue(self, side: int, size: int) -> None:
        lib.fake_send_limit(self.fd(side), size)

    def closes(self, side: int, _: int) -> None:
        lib.fake_peer_fin(self.fd(side))

    def resets(self, side: int, _: int) -> None:
        if lib.fake_peer_reset(self.fd(side)) == 0:
            self.reset[side] = True

    def accepts(self, _: int, __: int) -> None:
        lib.fake_peer_accept(self.fd(FAR))

    def far_refuses(self, _: int, __: int) -> None:
        if lib.fake_peer_refuse(self.fd(FAR), errno.ECONNREFUSED) == 0:
            self.refused = True

    def push(self) -> None:
        """Both read all that there is."""
        self.accepts(0, 0)
        for side in (NEAR, FAR):
            self.queue(side, 64 << 20)
            self.takes(side, ALL)

    def check_bytes(self) -> None:
        """What was read is in the other's queue, or on its way there."""
        if not self.joint.lives:
            return
        now = self.joint.now
        ends = self.joint.near, (self.joint.far if now.fd[FAR] >= 0 else None)
        for one, other, held in ((ends[0], ends[1], now.held[NEAR]), (ends[1], ends[0], now.held[FAR])):
            lost_to_a_reset = other and self.reset[FAR if other is ends[1] else NEAR]
            if one and not lost_to_a_reset:
                assert one.said - one.unread == (other.got if other else 0) + held, "bytes were lost"

    def check_end(self, pipes_failed: bool, agent_refused: bool) -> None:
        """Nobody is reset without a cause, and what the one that reset had said before has arrived."""
        events = [lib.script_event(i) for i in range(lib.script_events())]
        kind = lib.LG_EVENT_FLOW_CLOSE
        (reason,) = [CLOSES[one.reason] for one in events if one.kind == kind and one.remote_port == self.port]
        near = self.joint.near
        assert near.socket.closed
        if reason == "no_descriptor":
            assert pipes_failed or agent_refused
        elif reason == "refused":
            assert self.refused and (near.sees == "RST" or self.reset[NEAR])
        elif reason == "done":
            far = self.joint.far
            assert (near.got, far.got, near.sees, far.sees) == (far.said, near.said, "FIN", "FIN")
        else:
            assert reason == "peer_reset" and any(self.reset)
            far = self.joint.far
            for one, other, other_side in ((near, far, FAR), (far, near, NEAR)):
                assert self.reset[other_side] or (other.got == one.said or not self.reset[1 - other_side])
                assert self.reset[other_side] or other.sees == "RST"


class Run:
    """One sequence, in a world of its own."""

    def __init__(self, options: WorldOptions, flows: int, outward: bool, joined: bool) -> None:
        self.world = SpliceWorld(options)
        self.pipes_failed = self.agent_refused = False
        port = self.world.port(outward=outward)
        self.flows = [Flow(self.world, self.world.connect(port)) for _ in range(flows)]
        self.acts: dict[str, Callable[[int, int], None]] = {
            "pipes": self.pipes,
            "time": self.time,
            "interrupted": lambda _, __: self.world.fail_next("splice", errno.EINTR),
            "gives": lambda count, _: self.gives(TCP4, count),
            "gives_other": lambda count, _: self.gives(TCP6, count),
            "agent_refuses": self.agent_refuses,
        }
        if joined and not outward:
            self.gives(TCP4, flows)
        for flow in self.flows if joined else []:
            flow.joint.far_accepts()

    def pipes(self, count: int, _: int) -> None:
        self.pipes_failed |= count == 0
        self.world.pipes_at_most(count)

    def time(self, milliseconds: int, _: int) -> None:
        self.settle()
        self.world.advance(milliseconds / 1000)

    def gives(self, kind: int, count: int) -> None:
        if lib.script_asked(kind):
            self.world.agent_gives(kind, count)

    def agent_refuses(self, _: int, __: int) -> None:
        for kind in (TCP4, TCP6):
            if lib.script_asked(kind):
                self.agent_refused = True
                self.world.agent_refuses(kind)

    def run(self, sequence: Sequence) -> None:
        for (name, first, second), which, settle in sequence:
            flow = self.flows[which % len(self.flows)]
            if name in self.acts:
                self.acts[name](first, second)
            elif flow.joint.lives:
                getattr(flow, name)(first, second)
            if settle:
                self.settle()
        self.settle()

    def settle(self) -> None:
        self.world.settle()
        for flow in self.flows:
            flow.check_bytes()
        self.check_wakeups()

    def end(self) -> None:
        """Everything that was said arrives, and then each connection ends as it should."""
        self.world.pipes_at_most(1000)
        for turn in range(200):
            living = [flow for flow in self.flows if flow.joint.lives]
            if not living:
                break
            self.gives(TCP4, 3)
            self.gives(TCP6, 3)
            for flow in living:
                flow.push()
                if turn > 3:
                    flow.closes(NEAR, 0)
                    flow.closes(FAR, 0)
            self.settle()
        for flow in self.flows:
            assert not flow.joint.lives, "the connection does not end"
            flow.check_end(self.pipes_failed, self.agent_refused)

    def check_wakeups(self) -> None:
        woken = [one for one in map(lib.script_wakeup, range(lib.script_wakeups())) if one.fd >= 0]
        idle = [one for one in woken if one.idle]
        resets = sum(sum(flow.reset) for flow in self.flows)
        allowed = self.world.counter("interest_changes") + 2 * self.world.calls("shutdown") + resets
        told = ", ".join(f"{one.fd} {event_names(one.events)}" + (" idle" if one.idle else "") for one in woken)
        assert len(idle) <= allowed, f"{len(idle)} wake-ups moved nothing, and {allowed} had a reason: {told}"
        assert self.world.counter("wakeups_idle") <= allowed


def play(sequence: Sequence, options: WorldOptions, flows: int, outward: bool, joined: bool) -> None:
    run = Run(options, flows, outward, joined)
    failed = True
    try:
        run.run(sequence)
        run.end()
        failed = False
    finally:
        run.world.close(failed)


@pytest.mark.parametrize("flows", [1, 3])
@settings(max_examples=EXAMPLES)
@given(
    SEQUENCES,
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 16, 256]),
    st.sampled_from([1000, 100_000]),
    st.sampled_from([0, 12]),
)
def test_joined_sockets_wake_with_progress_and_no_byte_is_lost(
    flows: int, sequence: Sequence, outward: bool, joined: bool, slots: int, send_limit: int, overhead: int
) -> None:
    """Whatever happens to one connection, or to three that share the pipes, in whatever order."""
    options = WorldOptions(pipe_slots=slots, send_limit=send_limit, send_overhead=overhead)
    play(sequence, options, flows, outward, joined)
