# SPDX-License-Identifier: Apache-2.0
"""Who goes and who stays: guests that leave and come, signals, and each of the helper's processes killed in turn.

Adversary: whoever kills processes (the kernel's out-of-memory killer, or a fault of ours). Every wait is for an event.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest
from data_server import DataServer
from guest import Guest
from helper import Helper
from network import GATEWAY, OPTIONS, VARIANTS, Variant, sanitizer_report, usable
from process_tree import await_gone


@pytest.fixture(params=[v for v in VARIANTS if v.name in ("uml", "uml-sanitized", "uml-peer")], ids=lambda v: v.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    """User-mode Linux comes and goes in a second, so these tests boot as often as they like."""
    return usable(request.param)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of the logs that this test leaves."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in str(request.node.name)).removeprefix("test_")


@pytest.fixture
def staying(variant: Variant, name: str) -> Iterator[Helper]:
    """A helper without -1."""
    started = variant.helper(name, OPTIONS)
    yield started
    started.close()
    assert sanitizer_report(started.errors()) is None


def fetched(guest: Guest, server: DataServer, size: int = 100_000) -> bool:
    """Whether the guest gets bytes from this machine, and the right ones."""
    out = guest.output(f"client -r 'GET {size}' {GATEWAY[4]} {server.port} </dev/null | sha256sum")
    return out.split()[0] == server.payload.sha256(size)


def pid_of(helper: Helper, role: str) -> int:
    """The helper's one process whose name ends in -ROLE."""
    found = [pid for pid, process in helper.processes().items() if process.endswith("-" + role)]
    assert len(found) == 1, helper.processes()
    return found[0]


@pytest.mark.parametrize("end", ["power_off", "kill"])
def test_with_one_off_the_helper_ends_with_0_when_its_guest_goes_away(variant: Variant, name: str, end: str) -> None:
    """In order or by a crash; and no process of the helper is left."""
    helper = variant.helper(name, f"-1 {OPTIONS}")
    try:
        guest = Guest.boot(name, variant.kind, helper.socket)
        pids = list(helper.processes())
        getattr(guest, end)()
        assert helper.wait_exit() == 0
        assert await_gone(pids) == []
    finally:
        helper.close()


def test_without_one_off_the_next_guest_is_served(
    variant: Variant, name: str, staying: Helper, server: DataServer
) -> None:
    """Three guests after each other, one of them killed, on one socket; then SIGTERM ends the helper with 0."""
    for end in ("power_off", "kill", "power_off"):
        guest = Guest.boot(name, variant.kind, staying.socket)
        try:
            guest.network_up("inet")
            assert fetched(guest, server)
            getattr(guest, end)()
        finally:
            guest.kill()
    assert staying.terminate() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_signal_to_end_is_obeyed_with_0_while_a_guest_is_on(
    variant: Variant, name: str, staying: Helper, number: signal.Signals
) -> None:
    """SIGTERM and SIGQUIT, as the contract says; and no process is left."""
    guest = Guest.boot(name, variant.kind, staying.socket)
    try:
        pids = list(staying.processes())
        os.kill(staying.pid, number)
        assert staying.wait_exit() == 0
        assert await_gone(pids) == []
    finally:
        guest.kill()


def test_a_killed_worker_is_replaced_and_the_same_guest_is_back_on_the_network(
    variant: Variant, name: str, staying: Helper, server: DataServer
) -> None:
    """The open connection is reset, the guest is not restarted, and the next connection works."""
    guest = Guest.boot(name, variant.kind, staying.socket)
    try:
        guest.network_up("inet")
        assert fetched(guest, server)
        guest.output("mkfifo /tmp/silent")
        # The request gets its answer before the worker dies, and the connection is still open then.
        held = f"client -r HOLD {GATEWAY[4]} {server.port} <>/tmp/silent >/tmp/held 2>/tmp/broken & echo $! >/tmp/pid"
        guest.output(held)
        guest.output("until grep -q held /tmp/held; do :; done")
        first = pid_of(staying, "worker")
        os.kill(first, signal.SIGKILL)
        assert await_gone([first]) == []
        # A segment of the lost connection: the new worker knows no such flow.
        guest.output("echo anything >/tmp/silent; while kill -0 $(cat /tmp/pid) 2>/dev/null; do :; done")
        assert f": {errno.ECONNRESET} " in guest.output("cat /tmp/broken")
        assert fetched(guest, server)
        assert pid_of(staying, "worker") != first
    finally:
        guest.kill()


@pytest.mark.parametrize("victim", ["keeper", "control"])
def test_no_process_of_the_helper_outlives_the_keeper_or_control(
    variant: Variant, name: str, staying: Helper, victim: str
) -> None:
    """SIGKILL of either, with a guest on: all the others are gone too, and a keeper that lives ends with 1."""
    guest = Guest.boot(name, variant.kind, staying.socket)
    try:
        pids = list(staying.processes())
        os.kill(staying.pid if victim == "keeper" else pid_of(staying, victim), signal.SIGKILL)
        assert staying.wait_exit() == (-signal.SIGKILL if victim == "keeper" else 1)
        assert await_gone(pids) == []
    finally:
        guest.kill()
