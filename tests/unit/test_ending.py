# SPDX-License-Identifier: Apache-2.0
"""plugin/ending.py: which processes are ending, from /proc as it is and as it could be; and plugin/socket_holder.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.plugin import ending, socket_holder

EXITING, SIGNALED = 0x4, 0x400
KILLED = 1 << 8
KEEPER = 20

Process = Callable[..., None]


@pytest.fixture(name="process")
def made_up(tmp_path: Path) -> Process:
    """Makes one."""

    def make(pid: int, name: str, parent: int = 1, state: str = "S", flags: int = 0, pending: int = 0) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir(exist_ok=True)
        columns = f"{state} {parent} {pid} {pid} 0 -1 {flags}{' 0' * 21} {pending}{' 0' * 20}"
        (folder / "stat").write_text(f"{pid} ({name}) {columns}\n")

    make(1, "init")
    make(KEEPER, "passt", 1)
    make(21, "passt-control", KEEPER)
    make(22, "passt-worker", KEEPER)
    return make


def of_all(proc: Path) -> list[bool]:
    return [ending.is_ending(pid, str(proc)) for pid in (KEEPER, 21, 22)]


def test_a_helper_that_runs_is_not_ending(process: Process, tmp_path: Path) -> None:
    assert of_all(tmp_path) == [False] * 3 and not ending.helper_is_ending(str(tmp_path))


@pytest.mark.parametrize(
    "how", [{"state": "Z"}, {"state": "X"}, {"flags": EXITING}, {"flags": SIGNALED}, {"pending": KILLED | 1}]
)
def test_a_keeper_takes_its_children_along(process: Process, tmp_path: Path, how: dict[str, int]) -> None:
    """From the kill on."""
    process(KEEPER, "passt", **how)
    assert of_all(tmp_path) == [True] * 3 and ending.helper_is_ending(str(tmp_path))


def test_a_child_that_was_killed_ends_its_keeper(process: Process, tmp_path: Path) -> None:
    """Or is replaced in a moment."""
    process(22, "passt-worker", KEEPER, pending=KILLED)
    assert of_all(tmp_path) == [True, False, True]


def test_a_child_whose_keeper_was_killed_is_ending(process: Process, tmp_path: Path) -> None:
    """Control that imports has not asked for a signal yet, or is another user than its keeper, whose signal the kernel
    drops then. Cause: one in ten starts behind a kill was told that passt-control holds its port."""
    process(21, "passt-control", 1)
    assert of_all(tmp_path) == [False, True, False]


def test_a_child_that_another_program_has_lost_says_nothing_of_that(process: Process, tmp_path: Path) -> None:
    process(30, "nginx")
    process(31, "nginx", 30, state="Z")
    assert not ending.is_ending(30, str(tmp_path)) and not ending.helper_is_ending(str(tmp_path))


def test_who_is_not_there_has_ended(process: Process, tmp_path: Path) -> None:
    (tmp_path / "40").mkdir()
    (tmp_path / "41").mkdir()
    (tmp_path / "41" / "stat").write_text("41 (nonsense")
    for pid in (39, 40, 41):
        assert ending.is_ending(pid, str(tmp_path))


def test_without_proc_no_helper_is_seen_to_end(tmp_path: Path) -> None:
    assert not ending.helper_is_ending(str(tmp_path / "missing"))


def test_a_real_process_that_was_killed_is_ending() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not ending.is_ending(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        assert ending.is_ending(child.pid)
    assert ending.is_ending(child.pid)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_of_a_living_process_is_listed_and_stays(kind: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lockgate-") as folder, socket.socket(socket.AF_UNIX, kind) as holder:
        path = f"{folder}/with a blank"
        holder.bind(path)
        if kind != socket.SOCK_DGRAM:
            assert not socket_holder.is_listed(path)
            holder.listen()
        assert socket_holder.is_listed(path) and not socket_holder.is_leaving(path)
    assert not socket_holder.is_listed(path)


def test_a_socket_whose_holder_is_ending_will_be_closed(process: Process, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    row = "0: 2 0 00010000 0001 01 77"
    (tmp_path / "net" / "unix").write_text(f"Num RefCount Protocol Flags Type St Inode Path\n{row} /run/s\n{row}\n")
    (tmp_path / "21" / "fd").mkdir()
    (tmp_path / "21" / "fd" / "3").symlink_to("socket:[77]")
    assert not socket_holder.is_leaving("/run/s", str(tmp_path))
    process(KEEPER, "passt", pending=KILLED)
    assert socket_holder.is_leaving("/run/s", str(tmp_path))
