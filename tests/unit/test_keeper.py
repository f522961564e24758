# SPDX-License-Identifier: Apache-2.0
"""plugin/keeper.py: the sentence about how a process ended. How it keeps processes is in tests/contract."""

from __future__ import annotations

import errno
import signal

import pytest

from lockgate.core._datapath import ffi, lib
from lockgate.core.isolation import Isolation, parse_report
from lockgate.plugin import keeper


class Said:
    """In the place of a log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str) -> None:
        self.lines.append(text)


def exited(code: int) -> int:
    return code << 8


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (signal.SIGKILL, "was killed by SIGKILL"),
        (signal.SIGSYS, "was killed by SIGSYS"),
        (60, "was killed by signal 60"),
        (exited(1), "ended with exit status 1"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(status: int, sentence: str) -> None:
    """The signal by its name, the exit status by its number."""
    assert keeper.describe_end(status) == sentence


def test_signal_names_are_those_of_this_machine() -> None:
    """The table exists because the signal module costs too much before READY; here it is compared."""
    for number in (4, 6, 7, 8, 9, 11, 15, 31):
        assert keeper.describe_end(number).endswith(signal.Signals(number).name)


def test_the_exit_status_of_a_worker_is_an_errno() -> None:
    """It says why it failed."""
    assert keeper.describe_worker_end(exited(errno.ENOMEM)) == "failed: Cannot allocate memory"


def test_lost_memory_has_one_line_however_it_shows() -> None:
    """EFAULT from a system call, or SIGBUS in the worker's own reads."""
    by_call = keeper.describe_worker_end(exited(errno.EFAULT))
    assert by_call == keeper.describe_worker_end(signal.SIGBUS)
    assert "guest's memory" in by_call


@pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 1)])
def test_the_end_of_the_namespace_is_ours_and_a_fault_before_we_are_ready(ready: bool, code: int) -> None:
    """Whoever waits for that is told why it will not come."""
    one, said = object.__new__(keeper.Keeper), Said()
    one._ready, one._log = ready, said  # type: ignore[assignment]
    one._on_namespace_end()
    assert (one._exit_code, len(said.lines)) == (code, code)


def test_refused_layers_are_named_with_their_reason() -> None:
    """One sentence; nothing at all where all layers are on."""
    errors = [0] * lib.LG_LAYER_COUNT
    assert Isolation(errors).warning() == ""
    errors[lib.LG_LAYER_ROOT] = errno.EPERM
    assert "empty root: Operation not permitted" in Isolation(errors).warning()


def test_a_report_is_known_by_its_length_and_kind() -> None:
    """READY and anything else on the same channel is no report."""
    report = bytes(ffi.buffer(ffi.new("struct lg_isolation *", {"kind": lib.LG_KEEPER_ISOLATION})))
    assert parse_report(report) is not None
    assert parse_report(b"R") is None
    assert parse_report(report + b"x") is None
    assert parse_report(b"\0" + report[1:]) is None
