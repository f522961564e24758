# SPDX-License-Identifier: Apache-2.0
"""How `passt` starts: readiness, the socket, the PID file, what it inherits, what it says, and what it imports."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import PASST, PATIENCE, Foreground, FrontEnd, descriptors, ended, kill, name, run, tree

Start = Callable[..., Foreground]
Daemon = Callable[..., tuple[subprocess.CompletedProcess[str], int]]

# What may be imported between the start of the interpreter and READY, beyond what a bare one imports. The list is
# short on purpose: `import asyncio` alone would cost 33 ms, `typing` 7, `re` 4.
STANDARD_MODULES = {
    "__future__",
    "_cffi_backend",
    "_json",
    "_socket",
    "_struct",
    "errno",
    "fcntl",
    "gc",
    "itertools",
    "math",
    "resource",
    "select",
    "struct",
    "time",
}


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    """Runs the command as libvirt does; returns its result and the pid that it wrote. Killed after the test."""
    pids: list[int] = []

    def begin(*arguments: str, **options: object) -> tuple[subprocess.CompletedProcess[str], int]:
        pid_file = folder / "pid"
        result = run("--vhost-user", "-s", str(folder / "s"), "-P", str(pid_file), *arguments, **options)  # type: ignore[arg-type]
        pid = int(pid_file.read_text()) if result.returncode == 0 else 0
        if pid:
            pids.append(pid)
        return result, pid

    yield begin
    for pid in pids:
        pidfd = os.pidfd_open(pid)
        for member in tree(pid):
            kill(member)
        assert ended(pidfd)
        os.close(pidfd)


def test_the_daemon_is_ready_when_the_launched_process_exits(daemon: Daemon, folder: Path) -> None:
    """Exit status 0 means: the PID file is complete and private, and the socket is served by that process."""
    result, pid = daemon("-q")
    assert result.returncode == 0
    assert (folder / "pid").read_bytes() == f"{pid}\n".encode()
    assert (folder / "pid").stat().st_mode & 0o777 == 0o600
    assert name(pid) == "passt"
    assert os.getsid(pid) == pid != os.getsid(0)
    FrontEnd.connect(folder / "s").negotiate()


def test_a_daemon_holds_nothing_of_its_caller(daemon: Daemon) -> None:
    """Standard streams become /dev/null, the working folder "/"; run() itself waits until nobody holds our pipes."""
    _, pid = daemon("-q")
    names = {descriptors(pid)[stream] for stream in range(3)}
    assert names == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_inherited_descriptors_are_closed(daemon: Daemon) -> None:
    """Whatever the caller forgot to mark close-on-exec: no process of ours keeps it open."""
    reader, writer = os.pipe()
    daemon("-q", pass_fds=[writer])
    os.close(writer)
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_closed_standard_streams_are_replaced(daemon: Daemon) -> None:
    """With 0, 1 and 2 closed, none of them becomes one of our sockets."""

    def close_streams() -> None:
        for stream in range(3):
            os.close(stream)

    result, pid = daemon("-q", preexec_fn=close_streams)
    assert result.returncode == 0
    assert {descriptors(pid)[stream] for stream in range(3)} == {"/dev/null"}


def test_the_pid_file_of_a_foreground_helper_is_its_own_pid(start: Start) -> None:
    """Written when it is ready, with the pid as the caller sees it."""
    helper = start()
    assert helper.pid_text == f"{helper.process.pid}\n"


def test_processes_bear_the_name_of_the_command(start: Start) -> None:
    """The caller's process has exactly the command's name, its children that and what they are."""
    helper = start()
    assert name(helper.process.pid) == "passt"
    FrontEnd.connect(helper.socket).negotiate()
    assert set(helper.children()) == {"passt-worker", "passt-control"}


@pytest.mark.parametrize("kind", ["socket", "file"])
def test_what_a_dead_helper_left_is_replaced(folder: Path, start: Start, kind: str) -> None:
    """A socket nobody listens on, or any other file, gives way."""
    path = folder / "s"
    if kind == "socket":
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
    else:
        path.write_text("left over")
    helper = start()
    FrontEnd.connect(helper.socket).negotiate()


def test_a_socket_in_use_is_not_taken(start: Start) -> None:
    """The second helper says so in one line and exits with 1; the first one goes on."""
    helper = start("-q")
    result = run("--vhost-user", "-q", "-f", "-s", str(helper.socket))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and str(helper.socket) in result.stderr
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-P", "/nowhere/pid"], "/nowhere/pid"),
        (["-l", "/nowhere/log"], "/nowhere/log"),
        (["-i", "nosuchif0"], "nosuchif0"),
    ],
)
def test_what_cannot_be_opened_is_named_before_anything_is_made(folder: Path, arguments: list[str], named: str) -> None:
    """One line, exit status 1, and no socket is left behind, with and without -f."""
    for foreground in ([], ["-f"]):
        result = run("--vhost-user", "-q", "-s", str(folder / "s"), *arguments, *foreground)
        assert result.returncode == 1
        assert named in result.stderr and len(result.stderr.splitlines()) == 1
        assert not (folder / "s").exists()


@pytest.mark.parametrize("kind", ["closed", "a file", "a datagram socket"])
def test_a_descriptor_that_is_no_stream_socket_is_refused(kind: str) -> None:
    """One line that names the descriptor and says what is expected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open(os.devnull) as file:
        fd = {"closed": 500, "a file": file.fileno(), "a datagram socket": theirs.fileno()}[kind]
        result = run("--vhost-user", "-f", "-q", "--fd", str(fd), pass_fds=[] if kind == "closed" else [fd])
    assert result.returncode == 1
    assert result.stderr.startswith(f"--fd {fd}: ") and len(result.stderr.splitlines()) == 1
    ours.close()
    theirs.close()


def test_a_passed_socket_is_served(start: Start) -> None:
    """--fd: what was sent before the helper had parsed its options is not lost; it exits with 0 at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    helper = start("-q", link=["--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    front_end = FrontEnd(ours)
    front_end.negotiate()
    front_end.reach_worker()
    front_end.close()
    assert helper.wait() == 0


def test_a_socket_as_standard_input_is_served() -> None:
    """--fd 0, as inetd-like callers do: the descriptor is moved away, and 0 becomes /dev/null."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    helper = subprocess.Popen([PASST, "--vhost-user", "-f", "-q", "--fd", "0"], stdin=theirs.fileno())
    theirs.close()
    front_end = FrontEnd(ours)
    front_end.negotiate()
    assert descriptors(helper.pid)[0] == "/dev/null"
    front_end.close()
    assert helper.wait(timeout=PATIENCE) == 0


def test_the_environment_of_python_means_nothing(start: Start, folder: Path) -> None:
    """PYTHONHOME and PYTHONPATH with a planted module change nothing."""
    (folder / "struct.py").write_text("raise SystemExit('planted')")
    planted = {"PYTHONPATH": str(folder), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": str(folder / "struct.py")}
    helper = start(environment=planted)
    FrontEnd.connect(helper.socket).negotiate()


def test_only_light_modules_are_imported_before_ready(folder: Path) -> None:
    """The import set of the wrapper up to READY. In a daemon, what control imports afterwards goes to /dev/null."""

    def imported(*words: str) -> set[str]:
        command = [sys.executable, "-I", "-X", "importtime", "-c", *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return set(re.findall(r"^import time:.*\|\s*(\S+)$", result.stderr, re.MULTILINE))

    bare = imported("pass")
    pid_file = folder / "pid"
    options = ["passt", "--vhost-user", "-q", "-s", str(folder / "s"), "-P", str(pid_file)]
    modules = imported("from lockgate.plugin.launch import main; main()", *options)
    pid = int(pid_file.read_text())
    for member in tree(pid):
        kill(member)
    assert "lockgate.plugin.keeper" in modules
    ours = {module for module in modules if module.partition(".")[0] == "lockgate"}
    assert modules - bare - ours <= STANDARD_MODULES
    assert not {module for module in ours if "vhost_user" in module or "services" in module or "control" in module}


def test_ps_shows_the_command_as_it_was_typed(start: Start, folder: Path) -> None:
    """Of all three processes, also with a word like one of the interpreter's own; and not how that was started."""
    helper = start("-q", "-p", str(folder / "a b"), "-c", str(folder / "conf"))
    FrontEnd.connect(helper.socket).negotiate()
    typed = [str(word) for word in helper.process.args]  # type: ignore[union-attr]
    for member in tree(helper.process.pid):
        words = Path(f"/proc/{member}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert [os.fsdecode(word) for word in words] == typed, name(member)
        shown = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(member)], capture_output=True, text=True)
        assert shown.stdout == " ".join(typed) + "\n"


def test_start_up_is_told_and_quiet_is_quiet(start: Start, folder: Path) -> None:
    """By default the addresses and the socket's path are on standard error; -q leaves only warnings."""
    helper = start()
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    told = helper.errors()
    assert str(helper.socket) in told and "Guest: " in told and "MTU: 65520" in told
    quiet = start("-q")
    quiet.send(signal.SIGTERM)
    assert quiet.wait() == 0
    warnings = [line for line in quiet.errors().splitlines() if "root" not in line and "resolver" not in line]
    assert warnings == []


def test_names_and_resolvers_are_told(start: Start) -> None:
    """What the guest is given, what is redirected and to where, and what is kept back."""
    options = "-H vm --fqdn vm.example.org -D 192.0.2.53 --dns-forward 192.0.2.54 --dns-host 127.0.0.53".split()
    helper = start(*options, "-S", "a.example b.example", "--no-dhcp-search")
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    told = helper.errors()
    assert "Name of the guest: vm, vm.example.org" in told
    assert "Resolvers: 192.0.2.53" in told
    assert "resolver 192.0.2.54 goes to 127.0.0.53" in told
    assert "Search domains: a.example, b.example, not handed out" in told


def test_the_log_file_has_the_form_of_the_contract(start: Start, folder: Path) -> None:
    """A header with version, program and pid, private to its owner; then seconds, level and text."""
    path = folder / "log"
    helper = start("-l", str(path))
    header, *lines = path.read_text().splitlines()
    assert re.fullmatch(rf"passt \S+: /\S+ \({helper.process.pid}\)", header)
    assert path.stat().st_mode & 0o777 == 0o600
    assert lines and all(re.fullmatch(r"\d+\.\d{4}: (info:    |WARNING: |ERROR:   |         )\S.*", x) for x in lines)


def test_events_are_one_json_object_a_line(start: Start) -> None:
    """-d with LOCKGATE_LOG_FORMAT=json: all of standard error, the start-up lines too."""
    helper = start("-d", environment={"LOCKGATE_LOG_FORMAT": "json"})
    front_end = FrontEnd.connect(helper.socket)
    front_end.sock.sendall(b"\xff" * 12)  # not a version of the protocol
    assert front_end.sock.recv(1) == b""
    while (record := json.loads(helper.line()))["event"] != "link.refused":
        assert set(record) >= {"event", "level", "timestamp"}
    assert record["reason"] and record["level"] == "debug"


def test_faults_of_a_front_end_are_told_at_a_limited_rate(start: Start) -> None:
    """Without -d a refusal is one plain warning line; a flood of them is not a flood of lines."""
    helper = start("-q")
    for _ in range(50):
        front_end = FrontEnd.connect(helper.socket)
        front_end.sock.sendall(b"\xff" * 12)
        assert front_end.sock.recv(1) == b""
        front_end.close()
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    refusals = [line for line in helper.errors().splitlines() if line.startswith("Monitor: ")]
    assert 1 <= len(refusals) < 50


def test_lockgate_has_its_version_and_its_usage() -> None:
    lockgate = str(Path(PASST).with_name("lockgate"))
    version = subprocess.run([lockgate, "--version"], capture_output=True, text=True, timeout=PATIENCE)
    assert version.returncode == 0 and re.fullmatch(r"lockgate \S+\n", version.stdout)
    usage = subprocess.run([lockgate], capture_output=True, text=True, timeout=PATIENCE)
    assert usage.returncode == 0 and usage.stdout.startswith("usage: lockgate")


def test_an_mtu_below_what_ip_has_is_only_warned_about(start: Callable[..., Foreground]) -> None:
    """As with passt. Cause: the worker refused it, with a sentence about a configuration that nobody had written."""
    helper = start("-q", "-m", "1")
    assert helper.line_with("made for 68") == "--mtu 1: packets to the guest are made for 68 all the same"
    FrontEnd.connect(helper.socket).negotiate()
