# SPDX-License-Identifier: Apache-2.0
"""A start of `passt` that fails: one sentence that says what is wrong, and nothing of ours is left behind.

Adversary: nobody. Each failure comes after the socket or the PID file was made, unless its sentence is all that counts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitor import GATEWAY, Monitor
from running import PASST, PATIENCE, run

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who goes on as somebody else")


@pytest.fixture(name="taken")
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def refused(folder: Path, *arguments: str) -> str:
    """What is said by a start that must fail, in the background and in the foreground; nothing may be left in folder
    that was not there."""
    before = sorted(folder.iterdir())
    said = set()
    for foreground in ([], ["-f"]):
        result = run("--vhost-user", "-q", "-s", str(folder / "s"), "-P", str(folder / "pid"), *arguments, *foreground)
        assert result.returncode == 1 and sorted(folder.iterdir()) == before, result.stderr
        said.add(result.stderr)
    (text,) = said
    return text


def test_a_port_that_is_taken(folder: Path, taken: int) -> None:
    """Told as by passt; the PID file, which was made before, is gone."""
    text = refused(folder, "-t", f"127.0.0.1/{taken}")
    assert text.startswith(f"Listen failed for HOST TCP port 127.0.0.1/{taken}: Address already in use\n")


def test_a_folder_in_the_place_of_a_socket(folder: Path) -> None:
    """Each option whose value is a socket's path says so; the sockets that were made before it are gone."""
    place = folder / "place"
    place.mkdir()
    for option in ("-c", "--conf-path", "--repair-path", "-s"):
        name = {"-c": "--conf-path", "-s": "--socket"}.get(option, option)
        wanted = f"{name} {place}: that is a folder; expected the path of a socket that is to be made\n"
        assert refused(folder, option, str(place)) == wanted
    assert list(place.iterdir()) == []


def test_a_socket_in_a_folder_that_is_not_there(folder: Path) -> None:
    """The folder is what has to be made, hence what is named."""
    (folder / "file").touch()
    missing, file = folder / "missing", folder / "file"
    text = refused(folder, "-c", f"{missing}/c")
    assert text == f"--conf-path {missing}/c cannot be made: there is no folder {missing}\n"
    assert refused(folder, "-c", f"{file}/c") == f"--conf-path {file}/c cannot be used: {file} is not a folder\n"


def test_a_user_that_we_may_not_become(folder: Path) -> None:
    """Only the machine's root may; for it, a user that does not exist."""
    text = refused(folder, "--runas", "no-such-user" if os.geteuid() == 0 else "1:1")
    assert text.startswith("--runas ") and len(text.splitlines()) == 1


@pytest.mark.parametrize("number", ["", "4711\n"])
def test_what_was_there_before_the_start_stays(folder: Path, number: str) -> None:
    """The PID file that QEMU makes for us is its own; what a living helper has is its own as well. Of two starts for
    one guest, the second had emptied the file by which the first is stopped."""
    (folder / "pid").write_text(number)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()
        assert "already in use" in refused(folder)
    assert (folder / "pid").read_text() == number


def test_what_is_made_behind_a_link_is_taken_back_and_the_link_stays(folder: Path, taken: int) -> None:
    """The caller's link may lead to a file that is not there yet."""
    (folder / "pid").symlink_to("elsewhere")
    refused(folder, "-t", f"127.0.0.1/{taken}")


def test_the_log_stays(folder: Path) -> None:
    """It tells why."""
    log = folder / "log"
    log.touch()
    text = refused(folder, "-l", str(log), "-c", "/")
    assert text.strip() in log.read_text()


def test_relative_paths_are_taken_back(folder: Path) -> None:
    """They were resolved in the caller's folder."""
    place = folder / "place"
    place.mkdir()
    result = run("--vhost-user", "-q", "-s", "s", "-P", "pid", "-p", "capture", "-c", str(place), cwd=folder)
    assert result.returncode == 1 and os.listdir(folder) == ["place"]


@pytest.mark.parametrize("mode", [0o777, pytest.param(0o755, marks=as_root)])
@pytest.mark.parametrize("foreground", [[], ["-f"]])
def test_a_start_that_fails_at_its_last_step(folder: Path, mode: int, foreground: list[str]) -> None:
    """The processes run and have given the caller's rights up, when nobody can be told: the pid cannot be written. What
    was made in a folder where only the caller may write goes all the same."""
    folder.chmod(mode)
    paths = f"-s {folder}/s -c {folder}/c -p {folder}/p --repair-path {folder}/r".split()
    result = run("--vhost-user", "-q", *paths, "-P", "/dev/full", *foreground)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last == "Nobody can be told that the helper is ready: No space left on device"
    assert os.listdir(folder) == []


def test_an_interrupt_before_the_helper_is_ready(folder: Path) -> None:
    """^C ends it as the kernel would, without a word, and with nothing left. It waits for the reader of a FIFO."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    command = [PASST, "--vhost-user", "-q", "-f", "-s", str(folder / "s"), "-P", str(folder / "pid"), "-p", str(fifo)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as helper:
        while not (folder / "s").exists():
            assert helper.poll() is None
            time.sleep(0)
        helper.send_signal(signal.SIGINT)
        _, errors = helper.communicate(timeout=PATIENCE)
    assert helper.returncode == -signal.SIGINT
    assert errors in ("", "Started as root: going on as nobody\n")
    assert os.listdir(folder) == ["fifo"]


def fault(fd: int, **options: object) -> str:
    """What is said of a descriptor that a start must refuse."""
    result = run("-q", "-f", "--fd", str(fd), **options)  # type: ignore[arg-type]
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    return line.removeprefix(f"--fd {fd}: ")


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_standard_stream_that_is_no_socket(fd: int) -> None:
    """Also where that is the one by which it is told."""
    assert fault(fd, stdin=subprocess.DEVNULL) == "that is not a socket; expected an open, connected stream socket"


@pytest.mark.parametrize("fd", [0, 1])
def test_a_standard_stream_that_is_closed(fd: int) -> None:
    """/dev/null takes its place, and is not to be mistaken for it."""
    said = fault(fd, preexec_fn=lambda: os.close(fd))
    assert said == "no such descriptor is open here; it must be inherited without CLOEXEC"


def test_a_socket_without_another_end() -> None:
    with socket.socket(socket.AF_UNIX) as lonely:
        said = fault(lonely.fileno(), pass_fds=[lonely.fileno()])
    assert said == "that socket is not connected; expected an open, connected stream socket"


def test_frames_may_come_by_tcp() -> None:
    """As with passt: the framing is that of any stream. Vhost-user needs one that descriptors can pass."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        fd = theirs.fileno()
        said = run("--vhost-user", "-q", "-f", "--fd", str(fd), pass_fds=[fd]).stderr
        assert said == f"--fd {fd}: that is another kind of socket; expected an open, connected UNIX stream socket\n"
        with subprocess.Popen([PASST, "-q", "-f", "--fd", str(fd), "-g", GATEWAY], pass_fds=[fd]) as helper:
            theirs.close()
            assert Monitor(ours).resolves_gateway()
            ours.close()
            assert helper.wait(PATIENCE) == 0
