# SPDX-License-Identifier: Apache-2.0
"""core/datapath/timer.c against a sorted list."""

from __future__ import annotations

from typing import Any

from core_pieces import EXAMPLES, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

TIMERS = 12
NEVER = 2**64 - 1

# Distances at which a wheel of 64 slots a level changes its mind, and any others.
boundaries = st.builds(lambda power, step: max(0, 64**power + step), st.integers(0, 5), st.integers(-2, 2))
distances = st.one_of(st.integers(0, 70), boundaries, st.integers(0, 2**32))
starts = st.one_of(
    st.integers(0, 200), st.builds(lambda power, step: 64**power + step, st.integers(1, 6), st.integers(-3, 3))
)


class Wheel(RuleBasedStateMachine):
    """Arms, cancels and advances at random, and looks after each step whether the wheel says what the list says."""

    def __init__(self) -> None:
        super().__init__()
        self.wheel = ffi.new("struct wheel *")
        self.timers: Any = ffi.new("struct timer[]", TIMERS)
        self.armed: dict[int, int] = {}
        self.now = 0
        self.cancelled_earliest = False

    @initialize(start=starts)
    def begin(self, start: int) -> None:
        self.now = start
        lib.wheel_init(self.wheel, start)

    @rule(timer=st.integers(0, TIMERS - 1), distance=distances)
    def arm(self, timer: int, distance: int) -> None:
        self._note_cancel(timer)
        lib.wheel_arm(self.wheel, self.timers + timer, self.now + distance)
        self.armed[timer] = max(self.now + distance, self.now + 1)

    @rule(timer=st.integers(0, TIMERS - 1), behind=st.integers(0, 1000))
    def arm_in_the_past(self, timer: int, behind: int) -> None:
        self._note_cancel(timer)
        lib.wheel_arm(self.wheel, self.timers + timer, max(0, self.now - behind))
        self.armed[timer] = self.now + 1

    @rule(timer=st.integers(0, TIMERS - 1))
    def cancel(self, timer: int) -> None:
        self._note_cancel(timer)
        lib.wheel_cancel(self.wheel, self.timers + timer)
        self.armed.pop(timer, None)

    @rule(distance=distances)
    def advance(self, distance: int) -> None:
        self._advance_to(self.now + distance)

    @precondition(lambda self: self.armed)
    @rule()
    def advance_to_what_the_wheel_asks_for(self) -> None:
        self._advance_to(lib.wheel_next(self.wheel))

    @precondition(lambda self: self.armed)
    @rule()
    def advance_to_just_before_the_earliest(self) -> None:
        self._advance_to(max(self.now, min(self.armed.values()) - 1))

    @rule(distance=distances, timer=st.integers(0, TIMERS - 1), again=st.integers(0, TIMERS - 1))
    def cancel_and_arm_among_the_expired(self, distance: int, timer: int, again: int) -> None:
        """Before any is handed out: what is done to one timer as another fires."""
        self.now += distance
        lib.wheel_advance(self.wheel, self.now)
        if any(expires <= self.now for expires in self.armed.values()):
            assert lib.wheel_next(self.wheel) == self.now
        self.cancel(timer)
        self.arm(again, 5)
        self._expect_due()

    def _note_cancel(self, timer: int) -> None:
        """From here to its time the wheel may wake once for a timer that is gone."""
        if self.armed.get(timer) == min(self.armed.values(), default=None):
            self.cancelled_earliest = True

    def _advance_to(self, now: int) -> None:
        self.now = now
        lib.wheel_advance(self.wheel, now)
        self._expect_due()

    def _expect_due(self) -> None:
        due = {timer for timer, expires in self.armed.items() if expires <= self.now}
        fired = set()
        while (popped := lib.wheel_pop(self.wheel)) != ffi.NULL:
            timer = popped - self.timers
            assert not lib.timer_armed(popped)
            assert timer not in fired, "a timer fires once"
            fired.add(timer)
        assert fired == due, "never early and never late"
        for timer in due:
            del self.armed[timer]

    @invariant()
    def the_wheel_knows_who_is_armed(self) -> None:
        assert {at for at in range(TIMERS) if lib.timer_armed(self.timers + at)} == set(self.armed)

    @invariant()
    def the_next_wakeup_is_never_late(self) -> None:
        said = lib.wheel_next(self.wheel)
        earliest = min(self.armed.values(), default=NEVER)
        assert said <= earliest
        assert said > self.now
        if not self.armed:
            assert said == NEVER, "without timers nothing wakes the loop"
            self.cancelled_earliest = False
        if not self.cancelled_earliest:
            assert said == earliest


WheelTest = Wheel.TestCase
WheelTest.settings = settings(max_examples=2 * EXAMPLES, stateful_step_count=40)


@settings(max_examples=EXAMPLES)
@given(starts, st.lists(st.integers(1, 2**41), min_size=1, max_size=TIMERS))
def test_sleeping_until_the_next_wakeup_fires_each_timer_in_its_millisecond(start: int, after: list[int]) -> None:
    """A loop that wakes only when the wheel asks misses nothing, and wakes never for nothing."""
    wheel, timers = ffi.new("struct wheel *"), ffi.new("struct timer[]", len(after))
    lib.wheel_init(wheel, start)
    for at, distance in enumerate(after):
        lib.wheel_arm(wheel, timers + at, start + distance)
    fired, wakeups = [], 0
    while (now := lib.wheel_next(wheel)) != NEVER:
        wakeups += 1
        lib.wheel_advance(wheel, now)
        while (popped := lib.wheel_pop(wheel)) != ffi.NULL:
            fired.append((now - start, popped - timers))
    assert sorted(fired) == sorted((distance, at) for at, distance in enumerate(after))
    assert wakeups == len(set(after)), "and never for nothing"


def test_a_timer_that_moves_before_it_fires_costs_one_wakeup_at_most() -> None:
    """The usual life of a retransmission timer: it is moved with each ACK and fires never."""
    wheel, timer = ffi.new("struct wheel *"), ffi.new("struct timer *")
    lib.wheel_init(wheel, 1000)
    for now in range(1000, 1200):
        lib.wheel_advance(wheel, now)
        lib.wheel_arm(wheel, timer, now + 200)
    assert lib.wheel_next(wheel) == 1199 + 200
    lib.wheel_cancel(wheel, timer)
    assert lib.wheel_next(wheel) == NEVER
