# SPDX-License-Identifier: Apache-2.0
"""--runas and --stats: as whom the processes go on, and what they count."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Foreground, FrontEnd, run, status, tree

Start = Callable[..., Foreground]
UID, GID = 4711, 4712
OUTSIDE = ("unshare", "--user", "--map-root-user")


def needs_root() -> None:
    if os.geteuid():
        pytest.skip("only root may become somebody else")


def identities(helper: Foreground) -> set[tuple[str, str, str]]:
    """Users, groups and further groups of all processes, as seen from here."""
    lines = [status(pid) for pid in tree(helper.process.pid)]
    assert len(lines) == 3
    return {(line["Uid"], line["Gid"], line["Groups"]) for line in lines}


def test_all_processes_go_on_as_the_user_that_was_named(start: Start) -> None:
    """For good, in all four of the kernel's numbers, and in no other group."""
    needs_root()
    helper = start("-q", "--runas", f"{UID}:{GID}")
    FrontEnd.connect(helper.socket).negotiate()
    assert identities(helper) == {("\t".join([str(UID)] * 4), "\t".join([str(GID)] * 4), "")}
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    assert "nobody" not in helper.errors()


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_user_without_a_group_has_its_own(start: Start, by: str) -> None:
    """Also if it was named by a number that the machine knows."""
    needs_root()
    daemon = next((entry for entry in pwd.getpwall() if entry.pw_uid and entry.pw_gid != entry.pw_uid), None)
    if daemon is None:
        pytest.skip("this machine has no user whose group has another number")
    helper = start("-q", "--runas", daemon.pw_name if by == "name" else str(daemon.pw_uid))
    FrontEnd.connect(helper.socket).negotiate()
    users = {(uid.split()[0], gid.split()[0]) for uid, gid, _ in identities(helper)}
    assert users == {(str(daemon.pw_uid), str(daemon.pw_gid))}


def test_what_is_captured_belongs_to_that_user(start: Start, folder: Path) -> None:
    """And is opened with its rights, while everything before it is with the caller's."""
    needs_root()
    helper = start("-q", "--runas", f"{UID}:{GID}", "-p", str(folder / "capture"), "-l", str(folder / "log"))
    FrontEnd.connect(helper.socket).negotiate()
    capture, log = (folder / "capture").stat(), (folder / "log").stat()
    assert (capture.st_uid, capture.st_gid, log.st_uid) == (UID, GID, 0)


def test_who_may_not_become_somebody_else_is_told_so(folder: Path) -> None:
    """Root of a container whose users are no more than itself; nothing is left behind."""
    if shutil.which("unshare") is None or run("--version", prefix=OUTSIDE).returncode:
        pytest.skip("this machine does not let us make a user namespace")
    result = run("-q", "-f", "-s", str(folder / "s"), "--runas", f"{UID}:{GID}", prefix=OUTSIDE)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"--runas {UID}:{GID}: this process may not become that user (")
    assert result.stderr.endswith("); start as root, or leave --runas out\n")
    assert not (folder / "s").exists()


@pytest.mark.parametrize("who", ["0", "0:0"])
def test_who_is_that_user_already_goes_on_as_it_is(start: Start, who: str) -> None:
    """Root of a container. Cause: it let go of its further groups first, which the kernel refuses there (setgroups)."""
    if shutil.which("unshare") is None or run("--version", prefix=OUTSIDE).returncode:
        pytest.skip("this machine does not let us make a user namespace")
    helper = start("-q", "--runas", who, prefix=OUTSIDE)
    FrontEnd.connect(helper.socket).negotiate()
    helper.send(signal.SIGTERM)
    assert (helper.wait(), helper.errors()) == (0, "")


def test_counters_are_printed_while_something_happens(start: Start) -> None:
    helper = start("-q", "--stats", "1")
    FrontEnd.connect(helper.socket).negotiate()
    helper.line_with("since then  counter")
    assert helper.line().split()[-1] == "wakeups"


def test_counters_are_one_object_among_others(start: Start) -> None:
    helper = start("-q", "--stats", "1", environment={"LOCKGATE_LOG_FORMAT": "json"})
    FrontEnd.connect(helper.socket).negotiate()
    record = json.loads(helper.line_with('"stats"'))
    assert record["counters"]["wakeups"] > 0
