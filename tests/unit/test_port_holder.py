# SPDX-License-Identifier: Apache-2.0
"""plugin/port_holder.py: whose a taken port is, from /proc as it is and as it could be."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from host_samples import ip

from lockgate.plugin import port_holder
from lockgate.plugin.forward_rule import TCP, UDP

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def printed(raw: bytes) -> str:
    """An address as the kernel prints it: each four bytes as one number of this machine."""
    return "".join(f"{int.from_bytes(raw[at : at + 4], sys.byteorder):08X}" for at in range(0, len(raw), 4))


LOOPBACK4 = printed(bytes((127, 0, 0, 1)))
ANY4 = printed(bytes(4))


def row(local: str, port: int, state: str = "0A", uid: int = 1000, inode: int = 77) -> str:
    """One line of /proc/net/tcp."""
    rest = f"00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0000000000000000 100"
    return f"   0: {local}:{port:04X} {rest}\n"


def stat(pid: int, name: str, state: str = "S", parent: int = 1) -> str:
    """Of a process, as the kernel has it."""
    return f"{pid} ({name}) {state} {parent}{' 0' * 48}\n"


PODMAN = "         0       1000          1\n         1     100000      65536"


def anything(_: bytes) -> bool:
    return True


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Two processes; the second one, a server, holds the sockets 77 and 78."""
    (tmp_path / "net").mkdir()
    (tmp_path / "self").mkdir()
    for pid, name, links in ((9, "other", ["pipe:[77]"]), (12, "server\x1b", ["socket:[77]", "socket:[78]"])):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
        (tmp_path / str(pid) / "stat").write_text(stat(pid, name))
        for number, link in enumerate(links):
            (tmp_path / str(pid) / "fd" / str(number)).symlink_to(link)
    return tmp_path


@pytest.mark.parametrize(
    ("protocol", "family", "kind", "where"),
    [
        (TCP, socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        (TCP, socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        (UDP, socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (UDP, socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
    ],
)
def test_a_socket_of_our_own_is_found(protocol: int, family: int, kind: int, where: str) -> None:
    """In the kernel's own tables, with the address that it was bound to."""
    seen = []
    with socket.socket(family, kind) as holder:
        holder.bind((where, 0))
        if protocol == TCP:
            holder.listen()
        port = holder.getsockname()[1]

        def matters(address: bytes) -> bool:
            seen.append(address)
            return address == ip(where)

        found = port_holder.find(protocol, port, matters)
    assert found == f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
    assert ip(where) in seen
    assert port_holder.find(protocol, port, lambda address: False) == ""


# ---- tables made up ----


def test_the_listener_is_named_not_its_connections(proc: Path) -> None:
    """Characters of a name that no terminal should see are replaced."""
    (proc / "net" / "tcp").write_text(
        HEAD + row(LOOPBACK4, 80, "01", inode=1) + row(ANY4, 81, inode=2) + row(ANY4, 80, inode=77)
    )
    assert port_holder.find(TCP, 80, anything, str(proc)) == "server? (process 12)"


def test_only_addresses_that_matter_count(proc: Path) -> None:
    """IPv4 as mapped into IPv6, from either table."""
    mapped = printed(ip("127.0.0.1"))
    (proc / "net" / "udp").write_text(HEAD + row(ANY4, 53, "07", inode=3))
    (proc / "net" / "udp6").write_text(HEAD + row(mapped, 53, "07", inode=78))
    found = port_holder.find(UDP, 53, lambda address: address == ip("127.0.0.1"), str(proc))
    assert found == "server? (process 12)"


def test_a_process_that_is_hidden_is_told_by_its_user(proc: Path) -> None:
    (proc / "net" / "tcp").write_text(HEAD + row(ANY4, 80, uid=33, inode=5))
    assert port_holder.find(TCP, 80, anything, str(proc)) == "a process of user 33, into which we may not look"


@pytest.mark.parametrize(
    ("uid", "mapped", "told"),
    [
        (0, PODMAN, "user 1000"),
        (1, PODMAN, "user 100000"),
        (65535, PODMAN, "user 165534"),
        (65534, PODMAN, "another user"),
        (65534, "0 1000 1", "another user"),
        (65534, "0 0 4294967295", "user 65534"),
        (33, "0 0 4294967295", "user 33"),
    ],
)
def test_in_a_user_namespace_its_user_is_told_as_the_host_knows_it(
    proc: Path, uid: int, mapped: str, told: str
) -> None:
    """Cause: in Podman's, what the user's own desktop held was said to be a process of user 0, and what the system held
    one of user 165533, whom the number that the kernel shows for others would belong to."""
    (proc / "self" / "uid_map").write_text(f"{mapped}\n")
    (proc / "sys" / "kernel").mkdir(parents=True)
    (proc / "sys" / "kernel" / "overflowuid").write_text("65534\n")
    (proc / "net" / "tcp").write_text(HEAD + row(ANY4, 80, uid=uid, inode=5))
    found = port_holder.find(TCP, 80, anything, str(proc))
    assert found == f"a process of {told}, into which we may not look"


def test_a_process_that_has_ended_is_still_told(proc: Path) -> None:
    (proc / "12" / "comm").unlink()
    (proc / "net" / "tcp").write_text(HEAD + row(ANY4, 80))
    assert port_holder.find(TCP, 80, anything, str(proc)) == "a process that has ended (process 12)"


@pytest.mark.parametrize(
    "table",
    ["", HEAD, HEAD + "   0: nonsense\n", HEAD + row(ANY4, 80, "06", inode=0)],
    ids=["empty", "none", "nonsense", "lingering"],
)
def test_nobody_is_no_error(proc: Path, table: str) -> None:
    """Nor is a connection that has outlived its process."""
    (proc / "net" / "tcp").write_text(table)
    assert port_holder.find(TCP, 80, anything, str(proc)) == ""


def test_without_proc_nobody_is_found(tmp_path: Path) -> None:
    assert port_holder.find(TCP, 80, anything, str(tmp_path / "nowhere")) == ""


# ---- who will leave ----


def named(proc: Path, name: str, *words: str) -> None:
    """The server of `proc` is this one."""
    (proc / "12" / "comm").write_text(f"{name}\n")
    (proc / "12" / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (proc / "net" / "tcp").write_text(HEAD + row(ANY4, 80))


@pytest.mark.parametrize("name", ["pasta", "pasta.avx2", "passt-worker"])
def test_a_helper_whose_namespace_is_gone_is_leaving(proc: Path, name: str) -> None:
    named(proc, name, "pasta", "-t", "80-80:80-80", "--netns", str(proc / "gone"), "--quiet")
    assert port_holder.is_leaving(TCP, 80, anything, str(proc))


def test_a_helper_whose_namespace_is_there_stays(proc: Path) -> None:
    named(proc, "pasta", "pasta", "--netns", str(proc / "12"))
    assert not port_holder.is_leaving(TCP, 80, anything, str(proc))


def test_a_process_that_is_ending_is_leaving(proc: Path) -> None:
    """Whatever it is called: its descriptors are next."""
    named(proc, "server", "server")
    (proc / "12" / "stat").write_text(stat(12, "server", "Z"))
    assert port_holder.is_leaving(TCP, 80, anything, str(proc))


@pytest.mark.parametrize("words", [("pasta",), ("pasta", "--netns"), ("pasta", "sleep", "10")])
def test_a_helper_that_names_no_namespace_stays(proc: Path, words: tuple[str, ...]) -> None:
    named(proc, "pasta", *words)
    assert not port_holder.is_leaving(TCP, 80, anything, str(proc))


def test_another_program_stays(proc: Path) -> None:
    named(proc, "nginx", "nginx", "--netns", "/gone")
    assert not port_holder.is_leaving(TCP, 80, anything, str(proc))


@pytest.mark.parametrize(("name", "state"), [("passt-worker", "Z"), ("passt-worker", "S"), ("server", "Z")])
def test_a_process_that_ends_has_no_name_for_its_sockets_any_more(proc: Path, name: str, state: str) -> None:
    """But its user; those of others we would not see anyway. Where no helper is ending, it has ended since, or is one
    into which we may not look. Cause: a start was refused a port that its holder let go of in the midst of the look."""
    (proc / "9" / "stat").write_text(stat(9, name, state))
    for uid in (os.geteuid(), os.geteuid() + 1):
        (proc / "net" / "tcp").write_text(HEAD + row(ANY4, 80, uid=uid, inode=5))
        expected = uid == os.geteuid() and ((name, state) == ("passt-worker", "Z") or None)
        assert port_holder.is_leaving(TCP, 80, anything, str(proc)) is expected


def test_a_port_that_nobody_is_seen_to_hold_is_told_from_the_others(proc: Path) -> None:
    """It is free meanwhile, or there is no /proc."""
    for place in (proc, proc / "missing"):
        assert port_holder.is_leaving(TCP, 80, anything, str(place)) is None
