# SPDX-License-Identifier: Apache-2.0
"""packaging/awaited.c: what the launcher opens for `podman machine` before Python starts, and for whom it does not.

Adversary: nobody; whoever wrote the command line. A shell script stands in for the interpreter where what counts is
what it gets, and what is there by then.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from c_parts import ROOT
from free_ports import free_ports
from gvproxy_guest import GVPROXY, Gvproxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import PATIENCE

from lockgate.plugin.contracts import gvproxy
from lockgate.plugin.gateway.virtual_network import SSH_PORT_DEFAULT
from lockgate.plugin.launch import EARLY_OPTION

PYTHON = ROOT / ".venv" / "bin" / "python3"
TAKE_OVER = """#!/bin/sh
option=$(tr '\\0' '\\n' </proc/$$/cmdline | sed -n 's/^lockgate-awaited=//p')
test -z "$option" || eval "printf K >&$(echo "$option" | cut -d, -f4)"
"""
SHOW = f"""{TAKE_OVER}
for fd in 3 4 6; do test -e /proc/$$/fd/$fd && echo $fd; done >"$0.open"
tr '\\0' '\\n' </proc/$$/cmdline
"""
EXAMPLES = 500


@pytest.fixture
def launcher(compiled_launcher: Path, tmp_path: Path) -> Path:
    """In a folder of its own."""
    return Path(shutil.copy(compiled_launcher, tmp_path / "gvproxy"))


@pytest.fixture
def port() -> int:
    return free_ports(socket.SOCK_STREAM, 1)[0]


@dataclass(frozen=True)
class Told:
    """What the interpreter was started with."""

    descriptors: list[int]  # by the value of -X: log, port, link; none if nothing is open
    pid_file: str
    words: Sequence[str]  # of the caller


def beside(launcher: Path, python: str) -> Path:
    """The launcher with that script as its interpreter."""
    script = launcher.parent / "python3"
    script.write_text(python)
    script.chmod(0o755)
    return launcher


@pytest.fixture
def tells(launcher: Path) -> Callable[..., Told]:
    command = beside(launcher, SHOW)

    def run(*words: str, name: str = "gvproxy", **more: object) -> Told:
        done = subprocess.run(
            [name, *words], executable=command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True, **more
        )  # type: ignore[call-overload]
        shown = done.stdout[:-1].split("\n")[2:]  # behind the shell and its script
        code = shown.index("-c")
        words = shown[shown.index("main()", code) + 3 :]
        if "-X" not in shown[:code]:
            return Told([], "", words)
        *numbers, pid_file = shown[code - 1].removeprefix(f"{EARLY_OPTION}=").split(",", 8)
        return Told([int(one) for one in numbers[:3]], pid_file, words)

    return run


def podmans(folder: Path, port: int, *more: str) -> list[str]:
    """The words of Podman 5."""
    (folder / "key").touch()
    ssh = ["-forward-sock", f"{folder}/api", "-forward-dest", "/run/podman.sock", "-forward-user", "core"]
    return [*without_ssh(folder, port), *ssh, "-forward-identity", f"{folder}/key", *more]


def without_ssh(folder: Path, port: int) -> list[str]:
    link = ["-mtu", "1500", "-ssh-port", str(port), "-listen-qemu", f"unix://{folder}/link"]
    return [*link, "-pid-file", f"{folder}/pid", "-log-file", f"{folder}/log"]


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def test_log_port_pid_file_and_link_are_there_when_python_starts(
    folder: Path, port: int, tells: Callable[..., Told], launcher: Path
) -> None:
    """And all three descriptors are handed on, and the caller's words as they were."""
    words = podmans(folder, port)
    told = tells(*words)
    assert told == Told([3, 4, 6], f"{folder}/pid", words)
    assert (launcher.parent / "python3.open").read_text().split() == ["3", "4", "6"]
    assert names(folder) == {"key", "link", "log", "pid"}
    assert stat.S_ISSOCK((folder / "link").stat().st_mode) and (folder / "pid").read_text().isdigit()


def test_who_names_neither_log_nor_pid_file_finds_the_link_as_early(
    folder: Path, port: int, tells: Callable[..., Told]
) -> None:
    words = ["-listen-qemu", f"unix://{folder}/link", "-ssh-port", str(port)]
    assert tells(*words) == Told([-1, 3, 4], "", words) and names(folder) == {"link"}
    (folder / "link").unlink()
    with ExitStack() as ends:
        helper = Gvproxy(*words[:2], ssh_port=port)
        ends.callback(helper.close)
        assert any("gvproxy version" in line for line in helper.said)


@pytest.mark.parametrize("before", ["", "old, and longer than any number\n"])
def test_a_pid_file_is_replaced_whole(
    folder: Path, port: int, tells: Callable[..., Told], before: str
) -> None:
    (folder / "pid").write_text(before)
    assert tells(*podmans(folder, port)).descriptors
    assert (folder / "pid").read_text().isdigit()


OTHERS = {
    "an option that needs more than a look": ["-listen", "unix:///tmp/api"],
    "a configuration": ["-config", "/tmp/config"],
    "help": ["-h"],
    "no flag that there is": ["-mtus", "1500"],
    "a word that is no flag": ["word"],
    "the end of flags": ["--"],
    "a flag without its value": ["-mtu"],
    "a switch with a value": ["-debug=false"],
    "an MTU that nothing can have": ["-mtu", "65522"],
    "an MTU in another base": ["-mtu", "0x5dc"],
    "no port": ["-ssh-port", "-1"],
    "a port below all": ["-ssh-port", "1023"],
    "a port above all": ["-ssh-port", "65536"],
    "a link that is to be decoded": ["-listen-qemu", "unix:///tmp/a%20b"],
    "a link with a question": ["-listen-qemu", "unix:///tmp/a?b"],
    "a link on a port": ["-listen-qemu", "tcp://127.0.0.1:7000"],
    "a link whose path is too long": ["-listen-qemu", f"unix:///tmp/{'a' * 103}"],
    "a relative link": ["-listen-qemu", "unix://link"],
    "a forward without its other parts": ["-forward-sock", "/tmp/api"],
    "a log without a name": ["-log-file", ""],
    "a log in a folder that is not there": ["-log-file", "/nonexistent/log"],
    "a PID file in a folder that is not there": ["-pid-file", "/nonexistent/pid"],
    "a PID file without a name": ["-pid-file="],
}


@pytest.mark.parametrize("more", OTHERS.values(), ids=OTHERS.keys())
def test_whatever_else_is_asked_for_is_left_to_python(
    folder: Path, port: int, tells: Callable[..., Told], more: list[str]
) -> None:
    words = podmans(folder, port, *more)
    told = tells(*words)
    assert told == Told([], "", words) and names(folder) <= {"key", "log"}


def test_podman_4_which_removes_the_links_file_once_it_has_started_us_is_not_hurried(
    folder: Path, port: int, tells: Callable[..., Told]
) -> None:
    """It names a PID file and no log file."""
    words = ["-listen-qemu", f"unix://{folder}/link", "-pid-file", f"{folder}/pid", "-ssh-port", str(port)]
    assert tells(*words) == Told([], "", words) and names(folder) == set()


def test_another_command_with_the_same_words_gets_them_as_they_are(
    folder: Path, port: int, tells: Callable[..., Told]
) -> None:
    assert tells(*podmans(folder, port), name="passt").descriptors == []


def _take_port(folder: Path, port: int) -> ExitStack:
    taken = ExitStack()
    taken.enter_context(socket.create_server(("127.0.0.1", port)))
    return taken


def _place(name: str) -> Callable[[Path, int], ExitStack]:
    def place(folder: Path, port: int) -> ExitStack:
        (folder / name).mkdir()
        return ExitStack()

    return place


HINDRANCES = {
    "the port is taken": _take_port,
    "something is at the link's path": _place("link"),
    "a folder is at the log's path": _place("log"),
    "a folder is at the PID file's path": _place("pid"),
}


@pytest.mark.parametrize("hinder", HINDRANCES.values(), ids=HINDRANCES.keys())
def test_where_something_is_in_the_way_nothing_is_left_behind(
    folder: Path, port: int, tells: Callable[..., Told], launcher: Path, hinder: Callable[[Path, int], ExitStack]
) -> None:
    """Python says what it is, and replaces what a dead helper has left."""
    with hinder(folder, port):
        before = names(folder)
        assert tells(*podmans(folder, port)).descriptors == []
        assert names(folder) - before == {"key"}
        assert (launcher.parent / "python3.open").read_text() == ""
    with socket.create_server(("127.0.0.1", port)):
        pass  # nobody has it


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_caller_that_has_closed_a_standard_stream_does_not_find_our_sockets_there(
    folder: Path, port: int, launcher: Path, closed: int
) -> None:
    command = beside(launcher, "#!/bin/sh\ntrue\n")
    subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {closed}<&-', command, *podmans(folder, port)], timeout=PATIENCE, check=True
    )
    assert names(folder) == {"key"}


NO_PYTHON = {
    "there is none": None,
    "it ends": "#!/bin/sh\nexit 1\n",
    "it is killed": "#!/bin/sh\nkill -KILL $$\n",
    "the terminal goes away": "#!/bin/sh\nkill -HUP $$\n",
    "it cannot be executed": "\x7fELF",
}


@pytest.mark.parametrize("python", NO_PYTHON.values(), ids=NO_PYTHON.keys())
def test_where_python_does_not_come_as_far_all_is_taken_back(
    folder: Path, port: int, launcher: Path, python: str | None
) -> None:
    """By a process of the launcher's, which has ended before whoever waits for the end of its output goes on."""
    if python is not None:
        beside(launcher, python)
    done = subprocess.run([launcher, *podmans(folder, port)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0 and done.stdout == ""
    assert names(folder) == {"key"}


def test_where_no_file_may_have_a_byte_nothing_is_left(folder: Path, port: int, launcher: Path) -> None:
    """Cause: SIGXFSZ, which Python does not mind and the launcher did."""
    limited = "sh", "-c", 'ulimit -f 0; exec "$0" "$@"', beside(launcher, "#!/bin/sh\ntrue\n")
    subprocess.run([*limited, *podmans(folder, port)], timeout=PATIENCE, check=True)
    assert names(folder) == {"key"}


# ---- what Python makes of it ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_python_starts_ends_the_helper_in_order(
    folder: Path, port: int, launcher: Path, number: signal.Signals
) -> None:
    """It is held back until all that has been made can go along."""
    command = beside(launcher, f'#!/bin/sh\nkill -{int(number)} $$\nexec {PYTHON} "$@"\n')
    hears = ("env", "--default-signal=INT,TERM")
    done = subprocess.run(
        [*hears, command, *podmans(folder, port)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names(folder) == {"key", "log"}


def test_what_python_refuses_takes_all_back(folder: Path, port: int) -> None:
    """A key that is none is looked at behind the link's socket, as with the reference."""
    words = podmans(folder, port)
    (folder / "key").write_text("ssh-ed25519 AAAA\n")
    done = subprocess.run([GVPROXY, *words], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gvproxy exiting: " in (folder / "log").read_text().splitlines()[-1]
    assert names(folder) == {"key", "log"}


OTHERS_DO = {
    "removed": "rm {folder}/link {folder}/pid",
    "replaced": "rm {folder}/link; touch {folder}/link {folder}/new; mv {folder}/new {folder}/pid",
}


@pytest.mark.parametrize("happens", OTHERS_DO)
def test_what_somebody_has_put_in_the_place_of_a_file_meanwhile_is_theirs(
    folder: Path, port: int, launcher: Path, happens: str
) -> None:
    """Cause: whatever lay there when Python came was taken for what the launcher had made."""
    does = OTHERS_DO[happens].format(folder=folder)
    command = beside(launcher, f'#!/bin/sh\n{does}\nexec {PYTHON} "$@"\n')
    helper = subprocess.Popen([command, *without_ssh(folder, port)])
    wait_for_text(folder / "log", "waiting for clients")
    theirs = names(folder)
    helper.terminate()
    assert helper.wait(PATIENCE) == 0
    assert names(folder) == theirs == ({"log", "link", "pid"} if happens == "replaced" else {"log"})


def wait_for_text(path: Path, text: str) -> None:
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        if path.exists() and text in path.read_text():
            return
        os.sched_yield()
    raise AssertionError(f"{path} does not say {text!r} after {PATIENCE} s")


def test_a_log_that_is_there_is_emptied(folder: Path, port: int) -> None:
    (folder / "log").write_text("of the last time\n")
    helper = subprocess.Popen([GVPROXY, *without_ssh(folder, port)])
    wait_for_text(folder / "log", "waiting for clients")
    helper.terminate()
    assert helper.wait(PATIENCE) == 0 and "of the last time" not in (folder / "log").read_text()


def test_a_reader_of_a_fifo_in_the_place_of_a_log_learns_what_is_wrong(folder: Path, port: int) -> None:
    """Cause: the launcher opened it and closed it again; the reader went, and Python waited for another for ever."""
    os.mkfifo(folder / "log")
    with socket.create_server(("127.0.0.1", port)):
        helper = subprocess.Popen([GVPROXY, *podmans(folder, port)])
        assert "address already in use" in (folder / "log").read_text()
        assert helper.wait(PATIENCE) == 0


def test_a_path_that_is_no_utf8(folder: Path, port: int) -> None:
    """Of the PID file, which Python reads out of an option of its own."""
    pid_file = os.fsencode(folder) + b"/\xff,=\xc3"
    words = [os.fsencode(word) for word in without_ssh(folder, port)[:6]]
    words += [b"-pid-file", pid_file, b"-log-file", os.fsencode(folder) + b"/log"]
    process = subprocess.Popen([os.fsencode(GVPROXY), *words])
    try:
        with socket.socket(socket.AF_UNIX) as guest:
            _connect(guest, folder / "link")
            assert Path(os.fsdecode(pid_file)).read_text() == str(process.pid)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert names(folder) == {"log"}


def _connect(guest: socket.socket, link: Path) -> None:
    """As soon as there is something."""
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        try:
            guest.connect(str(link))
            return
        except (FileNotFoundError, ConnectionRefusedError):
            os.sched_yield()
    raise AssertionError(f"{link} is not there after {PATIENCE} s")


# ---- the two readings of a command line ----

VALUES: dict[str, list[str]] = {
    "listen-qemu": ["unix://{folder}/link", "unix://{folder}//./link", "unix://link", "UNIX:///a", ""],
    "log-file": ["{folder}/log", "log", ""],
    "pid-file": ["{folder}/pid", "{folder}/./pid", "", "pid,1"],
    "mtu": ["1500", "68", "67", "65521", "65522", "01500", "+1500", "1_500", "", "0", "99999999999999999999"],
    "ssh-port": ["{port}", "1023", "-1", "65536", "0x1000", " 7000"],
    "forward-sock": ["{folder}/api", "unix://{folder}/api", "api", "/" + "a" * 107],
    "forward-dest": ["/run/a", ""],
    "forward-user": ["core", ""],
    "forward-identity": ["{folder}/key", "{folder}/no", ""],
    "debug": [],
    "services": ["unix://{folder}/services"],
    "listen-vfkit": ["unixgram://{folder}/vfkit"],
}
FORMS = ("-{}", "--{}", "---{}", "-{}=", "--{}=", "{}")


@st.composite
def flags(draw: st.DrawFn) -> list[str]:
    """One flag with its value, mostly as it should be."""
    name = draw(st.sampled_from(sorted(VALUES)))
    form = draw(st.sampled_from([*FORMS[:2] * 8, *FORMS]))
    word = form.format(name)
    value = draw(st.sampled_from([*VALUES[name][:1] * 6, *VALUES[name], "odd"])) if VALUES[name] else None
    if value is None or draw(st.integers(0, 40)) == 0:
        return [word]
    return [word + value] if word.endswith("=") else [word, value]


FOUR = ["forward-sock", "forward-dest", "forward-user", "forward-identity"]
SSH = [word for name in FOUR for word in (f"-{name}", VALUES[name][0])]
BASE = ["-listen-qemu", VALUES["listen-qemu"][0], "-log-file", VALUES["log-file"][0], "-ssh-port", "{port}"]
command_lines = st.tuples(
    st.sampled_from([BASE, BASE[:2], [*BASE, *SSH], []]), st.lists(flags(), max_size=4), st.sampled_from([BASE, []])
).map(lambda parts: [*parts[0], *itertools.chain(*parts[1]), *parts[2]])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=command_lines)
def test_python_reads_what_the_launcher_has_opened_in_the_same_words(
    folder: Path, port: int, tells: Callable[..., Told], words: Sequence[str]
) -> None:
    """What it takes for right is right, and means the same; what it leaves to Python may be either."""
    for left in names(folder):
        (folder / left).unlink()
    (folder / "key").touch()
    real = [word.replace("{folder}", str(folder)).replace("{port}", str(port)) for word in words]
    told = tells(*real, cwd=folder)
    if not told.descriptors:
        return
    link = next(str(folder / one) for one in names(folder) if stat.S_ISSOCK((folder / one).stat().st_mode))
    spec = gvproxy.parse(real, "gvproxy", _bound(real))
    assert os.path.realpath(str(spec.socket_path)) == link
    assert spec.log_file is None or (folder / spec.log_file).exists()
    assert told.pid_file == (spec.pid_file or "")
    assert not told.pid_file or (folder / told.pid_file).read_text().isdigit()


def _bound(words: Sequence[str]) -> str:
    """The last that is said of the link."""
    found = [word.partition("unix://")[2] for word in words if word.partition("unix://")[2].startswith("/")]
    return next(path for path in reversed(found) if path.endswith("link"))


def test_the_three_ranges_and_the_port_that_nobody_names_are_the_contracts() -> None:
    source = (ROOT / "packaging" / "awaited.c").read_text()
    numbers = {
        "SSH_PORT_DEFAULT": SSH_PORT_DEFAULT,
        "SSH_PORT_LEAST": gvproxy.SSH_PORTS[0],
        "PORT_MAX": gvproxy.SSH_PORTS[-1],
        "MTU_LEAST": gvproxy.MTU_RANGE[0],
    }
    for name, number in numbers.items():
        assert f"{name} = {number}," in source
    assert gvproxy.MTU_RANGE[-1] == 65535 - 14

