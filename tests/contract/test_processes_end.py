# SPDX-License-Identifier: Apache-2.0
"""How `passt` ends and survives: signals, the one client, and each of its processes killed in turn."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Foreground, FrontEnd, ended, kill

Start = Callable[..., Foreground]


def pidfds(helper: Foreground) -> dict[str, int]:
    """Of the children, by name: they become readable when the process has ended."""
    return {name: os.pidfd_open(pid) for name, pid in helper.children().items()}


def all_ended(watched: dict[str, int]) -> bool:
    outcome = [ended(pidfd) for pidfd in watched.values()]
    for pidfd in watched.values():
        os.close(pidfd)
    return all(outcome)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGTERM, 0),
        (signal.SIGQUIT, 0),
        (signal.SIGINT, -signal.SIGINT),
        (signal.SIGHUP, -signal.SIGHUP),
    ],
)
def test_a_signal_ends_the_whole_helper(start: Start, number: signal.Signals, expected: int) -> None:
    """SIGTERM and SIGQUIT are success, SIGINT and SIGHUP have their default; no process is left, the socket is free."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()  # before control has begun, a signal that kills the keeper takes the socket's file back
    front_end.close()
    children = pidfds(helper)
    helper.send(number)
    assert helper.wait() == expected
    assert all_ended(children)
    with pytest.raises(ConnectionRefusedError):
        FrontEnd.connect(helper.socket)


def test_a_signal_during_a_connection_ends_it(start: Start) -> None:
    """The front end sees the end of the connection, and the helper's success."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()
    helper.send(signal.SIGTERM)
    assert front_end.sock.recv(1) == b""
    assert helper.wait() == 0


def test_signals_to_the_children_are_left_to_the_keeper(start: Start) -> None:
    """What ends a whole group of processes is acted on once: a child that gets SIGTERM or SIGINT goes on."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    for pid in helper.children().values():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(pid, number)
    front_end.reach_worker()
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0


def test_one_off_ends_with_its_client(start: Start) -> None:
    """-1: exit status 0 once the first client has gone; a second one is not served."""
    helper = start("-q", "-1")
    first = FrontEnd.connect(helper.socket)
    first.negotiate()
    second = FrontEnd.connect(helper.socket)
    assert second.sock.recv(1) == b""
    children = pidfds(helper)
    first.close()
    assert helper.wait() == 0
    assert all_ended(children)


def test_one_off_has_let_go_of_its_socket_when_its_client_sees_the_end(start: Start) -> None:
    """libvirt starts another at the same path then. It would have met one that seems to live, since it ends in its own
    time."""
    helper = start("-q", "-1", stream=True)
    client = FrontEnd.connect(helper.socket)
    kill(helper.children()["passt-worker"])
    assert client.closed()
    with pytest.raises(ConnectionRefusedError):
        FrontEnd.connect(helper.socket)


def test_without_one_off_the_next_client_is_served(start: Start) -> None:
    """Each gets a fresh session."""
    helper = start("-q")
    for _ in range(3):
        front_end = FrontEnd.connect(helper.socket)
        front_end.negotiate()
        front_end.reach_worker()
        front_end.sock.shutdown(socket.SHUT_WR)
        assert front_end.sock.recv(1) == b""
        front_end.close()


def test_nothing_outlives_the_keeper(start: Start) -> None:
    """kill -9 of the process that the caller knows: worker and control end by themselves."""
    helper = start("-q")
    FrontEnd.connect(helper.socket).negotiate()
    children = pidfds(helper)
    assert set(children) == {"passt-worker", "passt-control"}
    kill(helper.process.pid)
    assert helper.wait() == -signal.SIGKILL
    assert all_ended(children)


def test_a_keeper_killed_at_once_leaves_nothing(start: Start) -> None:
    """Also while control still imports, before it has asked for a signal on its parent's death."""
    helper = start("-q")
    children = pidfds(helper)
    kill(helper.process.pid)
    assert helper.wait() == -signal.SIGKILL
    assert all_ended(children)


def test_the_helper_ends_without_control(start: Start) -> None:
    """kill -9 of control: one line says so, exit status 1, the worker is gone too."""
    helper = start("-q")
    FrontEnd.connect(helper.socket).negotiate()
    children = pidfds(helper)
    kill(helper.children()["passt-control"])
    assert helper.wait() == 1
    assert all_ended(children)
    (line,) = [line for line in helper.errors().splitlines() if "nobody" not in line]
    assert "killed by SIGKILL" in line


def test_a_killed_worker_is_replaced_under_the_connection(start: Start) -> None:
    """kill -9 of the worker: one line, another worker, and the same front end goes on where it was."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()
    first = helper.children()["passt-worker"]
    kill(first)
    front_end.reach_worker()
    assert helper.children()["passt-worker"] != first
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    (line,) = [line for line in helper.errors().splitlines() if "worker" in line]
    assert "killed by SIGKILL" in line and "another takes over" in line


def test_a_worker_killed_while_nobody_is_connected_is_replaced(start: Start) -> None:
    """The next front end finds one."""
    helper = start("-q")
    kill(helper.children()["passt-worker"])
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()


def test_workers_are_not_replaced_for_ever(start: Start) -> None:
    """Five within a minute; with the sixth loss the helper ends with exit status 1 and says why."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    for _ in range(5):
        kill(helper.children()["passt-worker"])
        front_end.reach_worker()
    children = pidfds(helper)
    kill(helper.children()["passt-worker"])
    assert helper.wait() == 1
    assert all_ended(children)
    assert "giving up" in helper.errors().splitlines()[-1]


def test_memory_that_vanishes_has_its_own_line(start: Start) -> None:
    """The VM monitor truncates the memory that it shares: the line says that, not just "SIGBUS"."""
    helper = start("-q")
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()
    memory, kick = front_end.share_memory_and_rings()
    os.ftruncate(memory, 0)
    os.eventfd_write(kick, 1)
    assert "lost the guest's memory" in helper.line_with("worker")
    assert "that it shares" in helper.line_with("resume refused")
    assert front_end.closed()
    os.close(memory)
    os.close(kick)


def test_front_ends_that_take_their_memory_back_do_not_end_the_helper(start: Start) -> None:
    """Each is disconnected, as often as they like: it is their session that ends, and no fault of ours is counted."""
    helper = start("-q")
    for _ in range(8):
        front_end = FrontEnd.connect(helper.socket)
        front_end.negotiate()
        front_end.reach_worker()
        memory, kick = front_end.share_memory_and_rings()
        os.ftruncate(memory, 0)
        os.eventfd_write(kick, 1)
        assert front_end.closed()
        os.close(memory)
        os.close(kick)
    FrontEnd.connect(helper.socket).negotiate()


def test_a_capture_is_complete_when_the_helper_has_ended(start: Start, folder: Path) -> None:
    """-p: a readable capture file, even of a guest that sent nothing."""
    path = folder / "capture.pcap"
    helper = start("-q", "-p", str(path))
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    assert path.read_bytes()[:8] == bytes.fromhex("d4c3b2a102000400")


def test_a_guest_on_a_host_with_a_full_disk_has_its_network(start: Start) -> None:
    """-p FILE that takes not a byte is one warning. Cause: control ended over it, after READY."""
    helper = start("-q", "-p", "/dev/full")
    assert "Capture stopped, the file cannot be written: No space left" in helper.line_with("Capture")
    FrontEnd.connect(helper.socket).negotiate()
    helper.send(signal.SIGTERM)
    assert (helper.wait(), helper.errors()) == (0, "")
