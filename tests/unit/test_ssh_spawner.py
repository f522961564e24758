# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/ssh/ssh_spawner.py: what control may ask of the keeper, and what one that a guest has broken gets.

The ssh here is a script, which says how it was started and waits. The real one is in tests/contract.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_key_file import openssh

from lockgate.plugin.gateway.ssh import ssh_child
from lockgate.plugin.gateway.ssh.ssh_child import END, START, Target
from lockgate.plugin.gateway.ssh.ssh_spawner import SshSpawner

PATIENCE = 20  # seconds, for what takes milliseconds
PORT = 40022

SCRIPT = """#!/bin/sh
echo "$@" > words
env > environment
cat *.key > shown
echo $$ >&2
exec cat hold
"""


class Asking:
    """Control's end: what it is answered, with descriptors."""

    def __init__(self, spawner: SshSpawner, folder: Path, takes: bool = True) -> None:
        self.spawner = spawner
        self.folder = folder
        self.takes = takes
        self.records: list[bytes] = []
        self.fds: list[int] = []

    def send(self, record: bytes, fds: Sequence[int]) -> bool:
        if self.takes:
            self.records.append(record)
            self.fds += map(os.dup, fds)
        return self.takes

    def ask(self, record: bytes) -> bool:
        return self.spawner.serve(record, self.send)

    def refusal(self, record: bytes) -> int:
        """The errno that a request is answered with."""
        self.records.clear()
        assert self.ask(record)
        (answer,) = self.records
        ended = ssh_child.parse_ended(answer)
        assert ended is not None
        return ended[1]

    def started(self, record: bytes) -> int:
        """The process id, once the script has said all."""
        assert self.ask(record)
        number = ssh_child.parse_begun(self.records[-1])
        request = ssh_child.parse_request(record)
        assert request is not None and number == request.number
        return int(self.line())

    def line(self) -> bytes:
        waiting = select.poll()
        waiting.register(self.fds[-1], select.POLLIN)
        assert waiting.poll(PATIENCE * 1000)
        return os.read(self.fds[-1], 4096)

    def reap(self, pid: int) -> tuple[int, int, int] | None:
        """As the keeper does; what control hears of it."""
        status = os.waitpid(pid, 0)[1]
        assert self.spawner.ended(pid, status, self.send)
        return ssh_child.parse_ended(self.records[-1])

    def close(self) -> None:
        self.spawner.shut_down()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture(name="program")
def program_path(tmp_path: Path) -> Path:
    program = tmp_path / "ssh"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    return program


@pytest.fixture(name="asking")
def asking_control(tmp_path: Path, program: Path) -> Iterator[Asking]:
    """Two forwards are known."""
    folder = tmp_path / "private"
    folder.mkdir()
    os.mkfifo(folder / "hold")
    known = [Target(user, "/run/s", PORT, openssh()) for user in ("core", "root")]
    asking = Asking(SshSpawner(str(program), str(folder), known, lambda port: port == PORT), folder)
    yield asking
    asking.close()


@pytest.fixture(name="key")
def key_path(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(openssh())
    return str(tmp_path / "key")


def ask(kind: bytes, number: int) -> bytes:
    return ssh_child.pack_request(kind, number)


def test_a_known_forward_is_started_by_its_number(asking: Asking) -> None:
    """In the folder, with its key there, and with no word of control's."""
    pid = asking.started(ask(START, 1))
    assert "-l root" in (asking.folder / "words").read_text()
    assert (asking.folder / "shown").read_bytes() == openssh()
    assert os.readlink(f"/proc/{pid}/cwd") == str(asking.folder)


def test_ssh_is_given_nothing_of_ours(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent, no program that asks for passwords, no descriptor, no capability, no signal that is blocked."""
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    monkeypatch.setenv("SSH_ASKPASS", "/nowhere")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    try:
        pid = asking.started(ask(START, 0))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGCHLD])
    names = {line.partition("=")[0] for line in (asking.folder / "environment").read_text().splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH"}, "the others are the shell's"
    asking.fds.append(os.open(asking.folder / "hold", os.O_WRONLY))  # the script has become what waits there
    streams = {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert streams[0] == streams[1] == "/dev/null" and streams[2].startswith("pipe:")
    assert all(name == str(asking.folder / "hold") for fd, name in streams.items() if fd > 2)
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    assert status["CapEff"] == status["CapPrm"] == status["CapInh"] == "0" * 16
    assert status["NoNewPrivs"] == "1" and int(status["SigBlk"], 16) == 0
    assert os.getsid(pid) == pid


def test_how_ssh_ended_is_told_and_its_files_are_gone(asking: Asking) -> None:
    """A socket stands for an ssh that lives."""
    pid = asking.started(ask(START, 0))
    (asking.folder / "0.sock").touch()
    assert asking.ask(ask(END, 0))
    assert asking.reap(pid) == (0, 0, signal.SIGKILL)
    assert not list(asking.folder.glob("0.*"))
    assert not asking.spawner.ended(pid, 0, asking.send), "it is nobody's any more"


def test_there_is_one_ssh_for_a_forward(asking: Asking) -> None:
    pid = asking.started(ask(START, 0))
    assert asking.refusal(ask(START, 0)) == errno.EBUSY
    asking.ask(ask(END, 0))
    asking.reap(pid)
    asking.started(ask(START, 0))


def test_an_end_of_none_means_nothing(asking: Asking) -> None:
    assert asking.ask(ask(END, 0)) and asking.ask(ask(END, 60000))
    assert asking.records == []


def test_a_tunnel_is_started_with_a_key_of_the_hosts(asking: Asking, key: str) -> None:
    asking.started(ssh_child.pack_tunnel(2, PORT, "me", "/run/other", key))
    words = (asking.folder / "words").read_text()
    assert "-l me" in words and "./2.sock:/run/other" in words
    assert (asking.folder / "shown").read_bytes() == openssh()


def test_a_tunnel_leads_to_a_port_of_ours_with_a_key_and_has_no_number_of_a_forward(asking: Asking, key: str) -> None:
    """Else control could show the user's keys to any sshd that listens on the host."""
    pack = ssh_child.pack_tunnel
    assert asking.refusal(pack(2, 22, "me", "/s", key)) == errno.EPERM
    assert asking.refusal(pack(1, PORT, "me", "/s", key)) == errno.EPERM
    assert asking.refusal(pack(2 + ssh_child.TUNNELS_MAX, PORT, "me", "/s", key)) == errno.EPERM
    assert asking.refusal(pack(2, PORT, "me", "/s", "/etc/passwd")) == errno.ENOKEY
    assert asking.refusal(ask(START, 2)) == errno.EPERM
    assert asking.fds == []


def test_what_is_not_about_ssh_is_left_to_others(asking: Asking) -> None:
    assert not asking.ask(b"") and not asking.ask(b"D") and not asking.ask(b"O" + bytes(40))


def test_a_request_that_makes_no_sense_is_not_answered(asking: Asking) -> None:
    assert asking.ask(b"H") and asking.ask(b"U") and asking.records == []


def test_a_program_that_cannot_be_run_says_so(asking: Asking, program: Path) -> None:
    """As what ssh would say; the exit status is a shell's."""
    program.chmod(0o644)
    before = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    known = set(before.read_text().split())
    assert asking.ask(ask(START, 0))
    assert asking.line() == f"{program}: Permission denied\n".encode()
    (pid,) = set(before.read_text().split()) - known
    assert asking.reap(int(pid)) == (0, 0, 127 << 8)


def test_a_folder_that_is_gone_is_told(asking: Asking) -> None:
    for one in asking.folder.iterdir():
        one.unlink()
    asking.folder.rmdir()
    assert asking.refusal(ask(START, 0)) == errno.ENOENT


@pytest.mark.parametrize("call", ["pipe", "write"])
def test_no_key_is_left_where_ssh_cannot_be_started(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Without descriptors or room on the disk, say."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, call, fail)
    assert asking.refusal(ssh_child.pack_request(ssh_child.START, 0)) == errno.ENOSPC
    assert sorted(os.listdir(asking.folder)) == ["hold"]


def test_what_control_does_not_take_is_ended(asking: Asking) -> None:
    """A control that asks and never reads."""
    asking.takes = False
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    known = set(children.read_text().split())
    assert asking.ask(ask(START, 0))
    (pid,) = set(children.read_text().split()) - known
    status = os.waitpid(int(pid), 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL and asking.spawner.ended(int(pid), status, asking.send)


def test_on_quitting_no_ssh_is_left(asking: Asking) -> None:
    pids = [asking.started(ask(START, number)) for number in (0, 1)]
    asking.spawner.shut_down()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(ask, st.just(END), st.integers(0, 65535)),
            st.builds(ask, st.just(START), st.integers(2, 65535)),
            st.builds(
                ssh_child.pack_tunnel,
                st.integers(0, 200),
                st.sampled_from([1, 22]),
                st.sampled_from(["me", "-x"]),
                st.sampled_from(["/s", "s"]),
                st.sampled_from(["/dev/null", "/etc/passwd", "x"]),
            ),
        ),
        max_size=8,
    )
)
def test_whatever_is_asked_nothing_is_started_that_may_not_be(asking: Asking, records: list[bytes]) -> None:
    """And each request has one answer at most."""
    for record in records:
        answers = len(asking.records)
        asking.ask(record)
        assert len(asking.records) <= answers + 1
    assert asking.fds == []
