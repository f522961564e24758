# SPDX-License-Identifier: Apache-2.0
"""How gvproxy begins and ends, as Podman starts it and stops it, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import process_tree
import pytest
from free_ports import free_ports
from gvproxy_guest import DEVICE, DEVICE_MAC, GVPROXY, Gvproxy, WireGuest, stream
from running import PATIENCE
from scapy.layers.inet import TCP


@pytest.fixture(name="ends")
def what_ends_with_the_test() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def podmans(ends: ExitStack, folder: Path, *more: str) -> Gvproxy:
    """As podman machine starts it, but for SSH."""
    link = ("-listen-qemu", f"unix://{folder}/link")
    files = ("-pid-file", f"{folder}/pid")
    helper = Gvproxy("-mtu", "1500", *link, *files, *more)
    ends.callback(helper.close)
    return helper


def joined(ends: ExitStack, folder: Path) -> WireGuest:
    sock = ends.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(folder / "link"))
    guest = WireGuest(stream(sock))
    assert guest.gets_address() == DEVICE
    guest.sock = sock  # type: ignore[attr-defined]
    return guest


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One that ends by itself."""
    return subprocess.run([GVPROXY, *arguments], capture_output=True, text=True, timeout=PATIENCE)


def all_have_ended(pids: list[int]) -> bool:
    """Whether they do, within the patience."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([handle], [], [], PATIENCE)
        os.close(handle)
        if not ready:
            return False
    return True


# ---- files ----


def test_the_pid_file_is_the_number_and_nothing_else(ends: ExitStack, folder: Path) -> None:
    """Podman's Atoi takes no newline."""
    helper = podmans(ends, folder)
    assert (folder / "pid").read_text() == str(helper.pid)


def test_a_pid_file_that_a_dead_one_left_is_replaced(ends: ExitStack, folder: Path) -> None:
    (folder / "pid").write_text("1234567\nand more")
    helper = podmans(ends, folder)
    assert (folder / "pid").read_text() == str(helper.pid)


def test_the_process_has_the_name_that_people_look_for(ends: ExitStack, folder: Path) -> None:
    helper = podmans(ends, folder)
    assert Path(f"/proc/{helper.pid}/comm").read_text() == "gvproxy\n"


def test_all_goes_to_the_log_file_and_nothing_to_standard_error(folder: Path, ends: ExitStack) -> None:
    (folder / "log").write_text("of another run\n")
    done = run("-listen-qemu", f"unix://{folder}/nowhere/link", "-ssh-port", "-1", "-log-file", f"{folder}/log")
    text = (folder / "log").read_text()
    assert done.returncode == 0 and done.stderr == "" and "of another run" not in text
    assert 'level=info msg="gvproxy version' in text.splitlines()[0] and "level=error msg=\"gvproxy exiting: " in text


def test_a_file_in_the_place_of_the_links_socket_is_fatal_and_stays(folder: Path) -> None:
    (folder / "link").write_text("precious")
    done = run("-listen-qemu", f"unix://{folder}/link", "-ssh-port", "-1")
    assert done.returncode == 1 and "already exists" in done.stderr and "level=fatal" in done.stderr
    assert (folder / "link").read_text() == "precious"


@pytest.mark.parametrize("flag", ["-listen", "-services"])
def test_a_file_in_the_place_of_the_apis_socket_stays(folder: Path, flag: str) -> None:
    """Cause: what was there was taken for a socket that a dead helper had left, and removed."""
    (folder / "notes").write_text("precious")
    (folder / "api").symlink_to(folder / "notes")
    done = run("-ssh-port", "-1", flag, f"unix://{folder}/api")
    assert done.returncode == 0 and "gvproxy exiting: cannot listen" in done.stderr
    assert (folder / "api").read_text() == "precious" and left(folder) == ["api", "notes"]


def test_a_port_that_is_taken_ends_it_with_status_0_and_leaves_nothing(folder: Path, ends: ExitStack) -> None:
    """As with the reference, whose callers look at the log."""
    port = ends.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    done = run("-listen-qemu", f"unix://{folder}/link", "-ssh-port", str(port), "-pid-file", f"{folder}/pid")
    reason = f"cannot add network services: listen tcp 127.0.0.1:{port}: bind: address already in use"
    assert done.returncode == 0 and f"gvproxy exiting: {reason}" in done.stderr
    assert "Listen failed" not in done.stderr, "that is how passt says it"
    assert left(folder) == []


# ---- ends ----


def test_it_ends_with_its_guest_and_takes_its_files_along(ends: ExitStack, folder: Path) -> None:
    helper = podmans(ends, folder, "-services", f"unix://{folder}/api")
    assert left(folder) == ["api", "link", "pid"]
    guest = joined(ends, folder)
    processes = list(process_tree.tree(helper.pid))
    guest.sock.close()  # type: ignore[attr-defined]
    assert helper.ends() == 0 and left(folder) == [] and all_have_ended(processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("with_guest", [False, True])
def test_a_signal_ends_it_at_once_also_with_a_silent_guest(
    ends: ExitStack, folder: Path, number: int, with_guest: bool
) -> None:
    """The reference lingers until the guest's next frame."""
    helper = podmans(ends, folder)
    if with_guest:
        joined(ends, folder)
    processes = list(process_tree.tree(helper.pid))
    os.kill(helper.pid, number)
    assert helper.ends() == 0 and left(folder) == [] and all_have_ended(processes)


def test_podmans_sigkill_ends_all_processes(ends: ExitStack, folder: Path) -> None:
    helper = podmans(ends, folder)
    joined(ends, folder)
    processes = list(process_tree.tree(helper.pid))
    assert len(processes) >= 3
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    assert helper.ends() == -signal.SIGKILL and all_have_ended(processes)


def test_a_socket_that_is_another_by_now_is_not_removed(ends: ExitStack, folder: Path) -> None:
    """podman 4 deletes gvproxy's, and QEMU makes its own in the same place."""
    helper = podmans(ends, folder)
    guest = joined(ends, folder)
    (folder / "link").unlink()
    ends.enter_context(socket.socket(socket.AF_UNIX)).bind(str(folder / "link"))
    guest.sock.close()  # type: ignore[attr-defined]
    assert helper.ends() == 0 and left(folder) == ["link"]


def test_a_second_monitor_does_not_disturb_the_first(ends: ExitStack, folder: Path) -> None:
    helper = podmans(ends, folder)
    guest = joined(ends, folder)
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(folder / "link"))
        assert guest.resolves("host.containers.internal")
    assert guest.resolves("host.docker.internal") and helper.process.poll() is None


def with_ssh_port(ends: ExitStack, folder: Path) -> tuple[Gvproxy, Callable[[], socket.socket]]:
    """And what connects to that port."""
    port = free_ports(socket.SOCK_STREAM, 1)[0]
    helper = Gvproxy("-listen-qemu", f"unix://{folder}/link", ssh_port=port)
    ends.callback(helper.close)
    return helper, lambda: ends.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))


def held(listening: int) -> int:
    """Sockets that a process still has of connections to that port whose clients have gone (CLOSE-WAIT)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{listening:04X}") and row[3] == "08" for row in rows)


def dial_failed(client: socket.socket, reason: str) -> str:
    """The line about it, as in the log."""
    host, port = client.getsockname()
    guest = f"{DEVICE}:22"
    return rf'tcpproxy: for incoming conn {host}:{port}, error dialing \"{guest}\": connect tcp {guest}: {reason}'


def test_the_ssh_port_takes_a_client_before_there_is_a_guest_and_lets_it_go_when_none_comes(
    ends: ExitStack, folder: Path
) -> None:
    """Podman gives it ten milliseconds to be taken. Cause: the guest was asked when it came, were it in a year, and of
    those who had gone meanwhile each had kept a descriptor."""
    helper, connect = with_ssh_port(ends, folder)
    gone = [connect() for _ in range(20)]
    port, line = gone[0].getpeername()[1], dial_failed(gone[0], "no route to host")
    for client in gone:
        client.close()
    assert held(port) == 20
    with pytest.raises(ConnectionResetError):
        connect().recv(1)
    helper.wait_for(line)
    assert held(port) == 0


def test_who_was_refused_by_the_guest_is_said(ends: ExitStack, folder: Path) -> None:
    helper, connect = with_ssh_port(ends, folder)
    guest = joined(ends, folder)
    client = connect()
    syn = guest.receives(lambda frame: TCP in frame and frame[TCP].flags == "S")[TCP]
    guest.send(guest.to_gateway() / TCP(sport=22, dport=syn.sport, seq=0, ack=syn.seq + 1, flags="RA"))
    helper.wait_for(dial_failed(client, "connection was refused"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_podmans_descriptors_are_let_go_of(ends: ExitStack, folder: Path) -> None:
    """Nothing of the caller's stays open in any process."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    helper = Gvproxy("-listen-qemu", f"unix://{folder}/link", close_fds=False)
    ends.callback(helper.close)
    os.close(write_end)
    assert select.select([read_end], [], [], PATIENCE)[0] and os.read(read_end, 1) == b""
    os.close(read_end)


def test_a_tunnel_for_which_there_is_no_port_is_told_of(ends: ExitStack, folder: Path) -> None:
    """Its clients would wait, and nobody would know for what."""
    few = "sh", "-c", 'ulimit -n 700 && exec "$0" "$@"', GVPROXY
    helper = Gvproxy("-listen", f"unix://{folder}/api", command=few)
    ends.callback(helper.close)
    remote = "ssh-tunnel://core@192.168.127.9/run/x.sock?key=/no/key"
    body = json.dumps({"local": f"{folder}/tunnel", "remote": remote, "protocol": "unix"})
    api = ends.enter_context(socket.socket(socket.AF_UNIX))
    api.connect(str(folder / "api"))
    head = f"POST /services/forwarder/expose HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    api.sendall(head.encode() + body.encode())
    assert api.recv(4096).startswith(b"HTTP/1.1 ")
    helper.wait_for("found nobody at /run/x.sock: no port of the loopback can be had")


def test_of_a_guest_that_changes_its_address_both_are_told_of(ends: ExitStack, folder: Path) -> None:
    """Whoever counts who is there would wait for the first one's end for ever."""
    listener = ends.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(folder / "told"))
    listener.listen()
    listener.settimeout(PATIENCE)
    podmans(ends, folder, "-notification", f"unix://{folder}/told")
    guest = joined(ends, folder)
    guest.mac = "52:54:00:00:00:07"
    assert guest.gets_address()
    told = []
    for _ in range(4):
        with listener.accept()[0] as message:
            said = json.loads(message.makefile().read())
        told.append((said["notification_type"], said.get("mac_address", "")))
    known, gone = "connection_established", "connection_closed"
    assert told == [("ready", ""), (known, DEVICE_MAC), (gone, DEVICE_MAC), (known, guest.mac)]
