# SPDX-License-Identifier: Apache-2.0
"""The callers of the stream link, each with its own command line, descriptor and expectations: muvm, crun with krun,
QEMU's own `-netdev passt`, libvirt. What stands at the other end is a monitor that speaks the framing byte by byte.

Adversary: nobody. The addresses are on the command line, so that nothing depends on this machine's network; the words
of the callers come first, as they write them.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitor import GATEWAY, GUEST, Monitor
from running import PASST, PATIENCE, ended, tree

ADDRESSES = ("-a", GUEST, "-n", "24", "-g", GATEWAY, "-4")
KRUN_REPLY_MAX = 576  # what the guest's own client reads at most


def dhcp_options(message: bytes) -> dict[int, bytes]:
    """As muvm's guest walks them: it knows no padding, so that there must be none before the end."""
    at, found = 240, {}
    while message[at] != 255:
        assert message[at] != 0, "an option of padding, which that walker takes for one with a length"
        found[message[at]] = message[at + 2 : at + 2 + message[at + 1]]
        at += 2 + message[at + 1]
    return found


def leased(message: bytes) -> dict[int, bytes]:
    assert len(message) <= KRUN_REPLY_MAX - 28 and message[4:8] == bytes((1, 2, 3, 4))
    assert socket.inet_ntoa(message[16:20]) == GUEST
    options = dhcp_options(message)
    assert options[53] == b"\x05" and 80 in options, "an ACK straight away (RFC 4039)"
    assert socket.inet_ntoa(options[3]) == GATEWAY and options[1] == bytes((255, 255, 255, 0))
    return options


@pytest.fixture(name="pair")
def connected_pair() -> Iterator[tuple[Monitor, socket.socket]]:
    """The monitor's end, and the helper's, which stays open until the test says otherwise."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    yield Monitor(ours), theirs
    ours.close()
    theirs.close()


def test_muvm(pair: tuple[Monitor, socket.socket]) -> None:
    """`passt -q -f --fd N`: nobody waits for it, and the guest's request may be in the socket before it has started."""
    monitor, theirs = pair
    command = [PASST, "-q", "-f", "--fd", str(theirs.fileno()), *ADDRESSES]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, pass_fds=[theirs.fileno()]) as helper, monitor.socket:
        theirs.close()
        assert leased(monitor.discovers())[26] == struct.pack("!H", 65520)
        monitor.resolves_gateway()
        monitor.socket.close()
        assert helper.wait(PATIENCE) == 0


def daemon_of(pid_file: Path) -> tuple[int, int]:
    """The number in the file, which is complete, and a descriptor of the process."""
    text = pid_file.read_text()
    assert text.endswith("\n")
    return int(text), os.pidfd_open(int(text))


def test_crun_with_krun(pair: tuple[Monitor, socket.socket], tmp_path: Path) -> None:
    """No -f: whoever launched it waits for its exit with 0; nobody ends it but the end of the socket."""
    monitor, theirs = pair
    words = ["--no-dhcp-dns", "--no-map-gw", "--fd", str(theirs.fileno()), "-P", str(tmp_path / "pid"), *ADDRESSES]
    quiet = subprocess.DEVNULL
    launched = subprocess.run([PASST, *words], stdout=quiet, stderr=quiet, pass_fds=[theirs.fileno()], timeout=PATIENCE)
    assert launched.returncode == 0
    theirs.close()
    _, pidfd = daemon_of(tmp_path / "pid")
    assert 6 not in leased(monitor.discovers(bytes.fromhex("5a94efe40cee"), "0.0.0.0"))
    monitor.socket.close()
    assert ended(pidfd)
    os.close(pidfd)


def test_qemus_own_netdev(tmp_path: Path) -> None:
    """Descriptor 3 and no other, a PID file that is there already and is complete when the launched process exits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    (tmp_path / "pid").touch()
    words = ["--quiet", *ADDRESSES, "--pid", str(tmp_path / "pid"), "--fd", "3"]
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs.fileno()}', "bash", PASST, *words]
    launched = subprocess.run(shell, pass_fds=[theirs.fileno()], timeout=PATIENCE)
    assert launched.returncode == 0
    theirs.close()
    pid, pidfd = daemon_of(tmp_path / "pid")
    monitor = Monitor(ours)
    monitor.resolves_gateway()
    os.kill(pid, 15)
    assert ended(pidfd)
    assert monitor.hears_the_end(), "no process of it holds the socket any more"
    os.close(pidfd)
    ours.close()


def test_libvirt(tmp_path: Path) -> None:
    """The launched process has exited when QEMU connects; the helper goes with its one client."""
    path = tmp_path / "net.socket"
    words = ["--one-off", "--socket", str(path), "--pid", str(tmp_path / "pid"), "--mtu", "9000", *ADDRESSES]
    assert subprocess.run([PASST, *words], capture_output=True, timeout=PATIENCE).returncode == 0
    pid, pidfd = daemon_of(tmp_path / "pid")
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(path))
        monitor = Monitor(end)
        assert leased(monitor.discovers())[26] == struct.pack("!H", 9000)
        assert len(tree(pid)) == 3
    assert ended(pidfd)
    os.close(pidfd)


@pytest.fixture(name="listening")
def listening_helper(tmp_path: Path) -> Iterator[Path]:
    """In the foreground without --one-off; the socket's path."""
    path, fifo = tmp_path / "s", tmp_path / "ready"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = [PASST, "-q", "-f", "-s", str(path), "-P", str(fifo), *ADDRESSES]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as helper:
        assert select.select([reader], [], [], PATIENCE)[0]
        os.close(reader)
        yield path
        helper.terminate()
        assert helper.wait(PATIENCE) == 0


def connected(path: Path) -> Monitor:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(path))
    return Monitor(end)


def test_a_client_that_left_in_the_middle_of_a_frame_leaves_nothing_to_the_next(listening: Path) -> None:
    """Nor does the next wait for anything: it may connect before the first one's end was seen."""
    for part in (1, 3, 4, 20):
        monitor = connected(listening)
        monitor.socket.sendall((struct.pack("!I", 100) + bytes(100))[:part])
        monitor.socket.close()
        monitor = connected(listening)
        monitor.resolves_gateway()
        monitor.socket.close()


def test_a_second_client_is_sent_away_and_the_first_goes_on(listening: Path) -> None:
    first = connected(listening)
    mac = first.resolves_gateway()
    second = connected(listening)
    assert second.socket.recv(1) == b""
    assert first.resolves_gateway() == mac
    first.socket.close()
    second.socket.close()


@pytest.mark.parametrize("length", [13, 65536, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_connection_and_not_the_helper(listening: Path, length: int) -> None:
    monitor = connected(listening)
    monitor.socket.sendall(struct.pack("!I", length) + bytes(100))
    try:
        assert monitor.hears_the_end()
    except ConnectionResetError:
        pass  # it had not read all
    monitor.socket.close()
    monitor = connected(listening)
    monitor.resolves_gateway()
    monitor.socket.close()
