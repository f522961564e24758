# SPDX-License-Identifier: Apache-2.0
"""The life of the ssh of one forward: when it is to be started, ended and waited for. Pure: events in, actions out.

Called by ssh_forward.py, which does what is to be done and hears what has happened.
Adversary: the guest, whose sshd may refuse, hang up or come back at any time: all that it can cause is one start of ssh
in a pause, which grows to PAUSE_MAX seconds after the first few.

Invariants: there is at most one ssh; one that was told to end is not followed by another before it has ended; as long
as it is wanted, it is tried for ever.
"""

from __future__ import annotations

from enum import Enum

PAUSE_MIN, PAUSE_MAX = 0.1, 1.0  # seconds between an ssh's end and the next
SHORT_PAUSES = 6  # of PAUSE_MIN before they double: a guest with a new address will have its sshd at once
STEADY_SECONDS = 5.0  # an ssh that was up for so long has not failed: pauses start anew


class State(Enum):
    """Of one ssh."""

    IDLE = "idle"  # nobody wants one
    ASKED = "asked"  # the keeper is to start one
    RUNNING = "running"  # it tries to reach the guest
    UP = "up"  # it takes clients
    PAUSED = "paused"  # it has ended, the next is for later
    ENDING = "ending"  # it has been told to end


class Do(Enum):
    """What the caller is to do now."""

    START = "start"
    END = "end"
    PAUSE = "pause"  # for as long as `pause` says; then resume()
    SERVE = "serve"


_ALIVE = (State.ASKED, State.RUNNING, State.UP)


class SshLife:
    """Each method is an event; what it returns is to be done, None: nothing."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.pause = PAUSE_MIN
        self._wanted = False
        self._failures = 0
        self._up_since = 0.0

    def want(self) -> Do | None:
        self._wanted = True
        if self.state is not State.IDLE:
            return None
        self._failures = 0
        return self._start()

    def drop(self) -> Do | None:
        self._wanted = False
        if self.state in _ALIVE:
            self.state = State.ENDING
            return Do.END
        if self.state is State.PAUSED:
            self.state = State.IDLE
        return None

    def begun(self) -> None:
        if self.state is State.ASKED:
            self.state = State.RUNNING

    def listens(self, now: float) -> Do | None:
        """Its socket is there: the guest's sshd has let it in."""
        if self.state is not State.RUNNING:
            return None
        self.state, self._up_since = State.UP, now
        return Do.SERVE

    def ended(self, now: float) -> Do | None:
        """Or could not be started."""
        if self.state is State.ENDING:
            if self._wanted:
                return self._start()
            self.state = State.IDLE
            return None
        if self.state not in _ALIVE:
            return None
        if self.state is State.UP and now - self._up_since >= STEADY_SECONDS:
            self._failures = 0
        doubled = max(0, self._failures - SHORT_PAUSES)
        self.pause = PAUSE_MAX if doubled > 3 else PAUSE_MIN * 2**doubled
        self._failures += 1
        self.state = State.PAUSED
        return Do.PAUSE

    def resume(self) -> Do | None:
        return self._start() if self.state is State.PAUSED else None

    def _start(self) -> Do:
        self.state = State.ASKED
        return Do.START
