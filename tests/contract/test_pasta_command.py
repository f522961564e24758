# SPDX-License-Identifier: Apache-2.0
"""`pasta COMMAND`: a program, or a shell, in namespaces of its own, on a host that the test makes.

Adversary: nobody. The host is root of a user namespace, with a network of its own.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import host_namespace
import pytest
from host_namespace import Namespace
from pasta_caller import PASTA
from running import PATIENCE, ended, kill_all, name, status, tree

OPTIONS = ("--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none")
# Each says that it is there, and waits. (A shell would handle signals of its own accord.)
WAITS = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("there", flush=True)
signal.pause()
"""
TRAPS = "trap 'exit 9' TERM; echo there; while :; do sleep 1000 & wait; done"
SERVER = """
import socket
listener = socket.create_server(("10.5.0.2", 0))
print(listener.getsockname()[1], flush=True)
listener.accept()[0].send(b"hello")
"""
CLIENT = """
import socket, sys
print(socket.create_connection(("169.254.1.2", int(sys.argv[1])), 20).recv(100).decode())
"""
INTERRUPT, SUSPEND = "\x03", "\x1a"  # ^C and ^Z
CATCHES = """
import signal
try:
    print("there", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("caught", flush=True)
"""


def words(host: Namespace, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    return [*host.prefix, PASTA, *OPTIONS, *options, *command]


def run(host: Namespace, script: str, *options: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = words(host, ["sh", "-c", script], options)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **more)  # type: ignore[call-overload,no-any-return]


def says(host: Namespace, script: str, *options: str) -> list[str]:
    """The lines of a script that succeeds, and of which pasta says nothing."""
    done = run(host, script, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class Running:
    """A command that stays, which has said that it is there."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "there\n"
        # What enters or makes the host becomes pasta; the command is the one that does not have its name.
        self.pid = next(pid for pid in tree(self.process.pid)[1:] if not name(pid).startswith("pasta"))
        self.pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        kill_all(tree(self.process.pid))
        self.process.communicate()
        os.close(self.pidfd)


@pytest.fixture(name="running")
def started(host: Namespace, request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(*words(host, request.param))
    yield running
    running.close()


def runs(*command: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [command], indirect=True, ids=[""])


def test_the_command_is_root_and_the_first_process_of_namespaces_of_its_own(host: Namespace) -> None:
    told = says(host, "id -u; id -g; echo $$; cat /proc/self/uid_map /proc/self/setgroups; ls /proc | grep -c '^[0-9]'")
    assert told[:3] == ["0", "0", "1"]
    assert told[3].split() == ["0", "0", "1"] and told[4] == "deny", "whom the host knows as its own root"
    assert int(told[5]) < 6, "/proc shows its own processes, and no others"
    kinds = "ipc mnt net pid user uts"
    links = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds.split())
    assert not set(says(host, links)) & set(host.does(links).split())


def test_the_network_is_ready_when_the_command_starts(host: Namespace) -> None:
    """It is configured, and led to the host's server at once."""
    with subprocess.Popen([*host.prefix, sys.executable, "-Ic", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        script = f"ip -br -4 address show scope global; exec {sys.executable} -Ic '{CLIENT}' {server.stdout.readline()}"
        told = says(host, script, "--map-guest-addr", "169.254.1.2")
    assert told[0].split() == ["cable", "UNKNOWN", "10.5.0.2/24"] and told[1] == "hello"


def test_the_command_may_ping_and_has_a_name_for_its_host(host: Namespace) -> None:
    shown = "cat /proc/sys/net/ipv4/ping_group_range; hostname"
    assert says(host, shown) == ["0\t0", f"pasta-{os.uname().nodename}"[:64]]
    assert says(host, shown, "--hostname", "inside")[1] == "inside"


def test_without_a_pid_namespace_the_command_is_a_process_like_others(host: Namespace) -> None:
    (own,) = says(host, "readlink /proc/self/ns/pid", "--no-pidns")
    assert own == host.does("readlink /proc/self/ns/pid")


def test_without_a_user_namespace_the_command_stays_who_it_is(host: Namespace) -> None:
    own, network = says(host, "readlink /proc/self/ns/user /proc/self/ns/net", "--netns-only")
    assert own == host.does("readlink /proc/self/ns/user") and network != host.does("readlink /proc/self/ns/net")


def test_who_may_make_no_namespaces_is_told(host: Namespace) -> None:
    command = [*host.prefix, "setpriv", "--bounding-set=-all", PASTA, *OPTIONS, "--netns-only", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    told = "--netns-only: a new network namespace is for root only here: Operation not permitted\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_what_the_command_inherits_is_what_pasta_was_given(host: Namespace, tmp_path: Path) -> None:
    """Folder, environment, signals, and the limit on open files, which is raised for our own sockets only."""
    shown = "pwd; ulimit -Sn; env | sort | grep -v ^_=; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"
    script = "ulimit -Sn 333; trap '' USR1; exec \"$@\""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/nowhere", "OWN": "a b"}
    told = []
    for inner in (["sh", "-c", shown], [PASTA, *OPTIONS, "sh", "-c", shown]):
        command = [*host.prefix, f"--wd={tmp_path}", "sh", "-c", script, "sh", *inner]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        told.append(done.stdout.splitlines())
    assert told[0] == told[1] and "333" in told[0]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137)], ids=["its status", "or its signal and 128"]
)
def test_pasta_ends_as_its_command_does(host: Namespace, script: str, code: int) -> None:
    assert run(host, script, "--no-pidns").returncode == code


def test_a_command_that_is_not_there_is_told(host: Namespace) -> None:
    done = subprocess.run(words(host, ["/no/such"]), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (1, "Couldn't run /no/such: No such file or directory\n")


def test_options_behind_the_command_are_the_commands_own(host: Namespace) -> None:
    done = subprocess.run(words(host, ["echo", "--help", "-t"]), capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "--help -t\n"


def test_without_a_command_there_is_a_login_shell(host: Namespace) -> None:
    done = subprocess.run(
        words(host, []),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "SHELL": "/bin/sh", "HOME": "/"},
        input="echo $0; exit 5\n",
    )
    assert (done.returncode, done.stdout) == (5, "-sh\n")


@runs(sys.executable, "-Ic", WAITS)
def test_sigterm_ends_a_command_that_has_not_asked_for_it(running: Running) -> None:
    """Which the kernel does not: it is the first process of its namespace."""
    running.process.terminate()
    assert running.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert ended(running.pidfd)


@runs("sh", "-c", TRAPS)
def test_sigterm_is_handed_on_to_a_command_that_has(running: Running) -> None:
    running.process.terminate()
    assert running.process.wait(PATIENCE) == 9


@runs("sh", "-c", TRAPS)
def test_no_command_outlives_pasta(running: Running) -> None:
    running.process.kill()
    running.process.wait(PATIENCE)
    assert ended(running.pidfd)


@runs(sys.executable, "-Ic", CATCHES)
def test_an_interrupt_that_is_sent_to_pasta_reaches_the_command(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    told, _ = running.process.communicate(timeout=PATIENCE)
    assert (running.process.returncode, told) == (0, "caught\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is root of the machine")
def test_the_command_of_the_machines_root_stays_roots_and_ends_with_a_helper_that_is_nobody() -> None:
    """Who may end it all the same."""
    host = ("unshare", "--net", "--mount", "sh", "-euc", f'{host_namespace.NETWORK}\nexec "$@"', "sh")
    running = Running(*host, PASTA, *OPTIONS, sys.executable, "-Ic", WAITS)
    try:
        assert status(running.process.pid)["Uid"].split() == ["65534"] * 4
        assert status(running.pid)["Uid"].split() == ["0"] * 4
        running.process.terminate()
        assert running.process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert ended(running.pidfd)
    finally:
        running.close()


class Terminal:
    """A terminal of its own, with a program as the leader of its session."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.environ |= {"PS1": "prompt ", "TERM": "dumb"}
            os.execvp(command[0], command)
        self._unread = b""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, text: str) -> None:
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self._unread:
            assert waiting.poll(max(0, deadline - time.monotonic()) * 1000), f"no {text!r} in {self._unread!r}"
            self._unread += os.read(self._end, 65536)
        self._unread = self._unread.partition(text.encode())[2]

    def wait(self) -> int:
        pidfd = os.pidfd_open(self.pid)
        assert ended(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            kill_all(tree(self.pid))
            os.waitpid(self.pid, 0)
        os.close(self._end)


@pytest.fixture(name="terminals")
def made_terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_a_shell_has_its_terminal_to_itself(host: Namespace, terminals: list[Terminal], tmp_path: Path) -> None:
    """^C and ^Z are for what it runs, and whoever called pasta can read from the terminal afterwards."""
    program = tmp_path / "program"
    program.write_text(WAITS)
    shell = " ".join(words(host, ["bash", "--norc", "-i"]))
    terminal = Terminal(["sh", "-c", f'{shell}; echo status $?; read line; echo "read $line"'])
    terminals.append(terminal)
    for key in (INTERRUPT, SUSPEND):
        terminal.wait_for("prompt ")
        terminal.type(f"{sys.executable} {program}\n")
        terminal.wait_for("there")
        terminal.type(key)
        terminal.wait_for("prompt ")
        terminal.type("echo was $?\n")
        terminal.wait_for(f"was {128 + (signal.SIGINT if key == INTERRUPT else signal.SIGTSTP)}")
    terminal.type("exit 3\nexit 3\n")  # the first one tells of what is stopped
    terminal.wait_for("status 3")
    terminal.type("a line\n")
    terminal.wait_for("read a line")
    assert terminal.wait() == 0


def test_an_interrupt_ends_a_command_that_has_not_asked_for_it(host: Namespace, terminals: list[Terminal]) -> None:
    terminal = Terminal(words(host, [sys.executable, "-Ic", WAITS]))
    terminals.append(terminal)
    terminal.wait_for("there")
    terminal.type(INTERRUPT)
    assert terminal.wait() == 128 + signal.SIGINT


def test_an_interrupt_is_left_to_a_command_that_has(host: Namespace, terminals: list[Terminal]) -> None:
    terminal = Terminal(words(host, [sys.executable, "-Ic", CATCHES]))
    terminals.append(terminal)
    terminal.wait_for("there")
    terminal.type(INTERRUPT)
    terminal.wait_for("caught")
    assert terminal.wait() == 0
