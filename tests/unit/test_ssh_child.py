# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/ssh/ssh_child.py: the words that ssh is started with, and the records that ask for it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import keeper, ports
from lockgate.plugin.gateway.ssh import ssh_child
from lockgate.plugin.gateway.ssh.ssh_child import Target

USER, DESTINATION, KEY = "core", "/run/user/1000/podman/podman.sock", "/home/me/key"


def words(**content: object) -> list[str]:
    chosen: dict[str, object] = {"user": USER, "destination": DESTINATION, "port": 2222, "key": b""}
    target = Target(**{**chosen, **content})  # type: ignore[arg-type]
    return [word.decode() for word in ssh_child.arguments(3, target)]


def after(option: str, command: list[str]) -> list[str]:
    return [command[at + 1] for at, word in enumerate(command) if word == option]


# ---- the command line ----


def test_ssh_leads_from_a_socket_of_ours_to_one_in_the_guest() -> None:
    command = words()
    assert after("-L", command) == [f"./3.sock:{DESTINATION}"]
    assert after("-i", command) == ["./3.key"]
    assert after("-l", command) == [USER]
    assert after("-p", command) == ["2222"]
    assert command[-1] == "127.0.0.1"


def test_ssh_reads_no_configuration_and_asks_nobody() -> None:
    """Neither the user's keys nor an agent's, no known hosts, no passphrase, no terminal, no command."""
    command = words()
    options = after("-o", command)
    assert after("-F", command) == ["none"]
    assert {"BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "StrictHostKeyChecking=no"} <= set(options)
    assert {"UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null"} <= set(options)
    assert {"-N", "-T"} <= set(command)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/a:b", "/a\\:b"),
        ("/100%", "/100%%"),
        ("/a\\b", "/a\\\\b"),
        ("/a b", "/a b"),
        ("/$HOME", "/$HOME"),
        ("/~", "/~"),
    ],
)
def test_what_ssh_would_read_something_into_is_escaped(path: str, word: str) -> None:
    """It takes a colon for an end, and a percent sign for something to be filled in."""
    assert after("-L", words(destination=path)) == [f"./3.sock:{word}"]


@pytest.mark.parametrize("user", ["core", "root", "a.b_c-d", "user@domain", "x+1", "ünal"])
def test_a_user_has_a_name(user: str) -> None:
    assert ssh_child.fault_of(user, DESTINATION) == ""


@pytest.mark.parametrize(
    "user", ["", "-oProxyCommand=x", "a b", "a;b", "$(x)", "a\nb", "a\0", "%h", "x" * 256, "ü" * 128, "\udcff"]
)
def test_what_is_no_name_of_a_user_is_refused(user: str) -> None:
    """Above all what ssh would take for an option, or a shell behind it for more than a name."""
    assert "user" in ssh_child.fault_of(user, DESTINATION)


@pytest.mark.parametrize(
    "path", ["", "x", "localhost:22", "-x", "/a\nb", "/a\0b", "/\x7f", "/${HOME}", "/" + "x" * 107]
)
def test_what_is_no_path_in_the_guest_is_refused(path: str) -> None:
    """A word without a slash would be a host for ssh; and in a name, ${ stands for a variable of ours."""
    assert "path" in ssh_child.fault_of(USER, path)
    with pytest.raises(ssh_child.TargetError):
        Target(USER, path, 22, b"")


def test_a_path_may_be_as_long_as_the_kernel_allows_and_need_not_be_text() -> None:
    assert ssh_child.fault_of(USER, "/" + "x" * 106) == ssh_child.fault_of(USER, "/\udcff") == ""


def test_the_program_is_looked_for_in_folders_with_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a system keeps it elsewhere, the caller's PATH says so; a folder that is relative is anybody's."""
    monkeypatch.setattr(ssh_child, "_SAFE_PATH", ())
    program = tmp_path / "ssh"
    assert ssh_child.find_program(str(tmp_path)) == ""
    program.touch(0o644)
    assert ssh_child.find_program(str(tmp_path)) == ""
    program.chmod(0o755)
    assert ssh_child.find_program(f"/nowhere:{tmp_path}") == str(program)
    monkeypatch.chdir(tmp_path)
    assert ssh_child.find_program(".::") == ""


# ---- records ----


def test_a_request_is_read_as_it_was_packed() -> None:
    for kind in (ssh_child.START, ssh_child.END):
        request = ssh_child.parse_request(ssh_child.pack_request(kind, 300))
        assert request is not None and (request.kind, request.number) == (kind, 300)
    request = ssh_child.parse_request(ssh_child.pack_tunnel(65, 40000, USER, "/\udcff", KEY))
    assert request is not None
    told = (request.kind, request.number, request.port, request.user, request.destination, request.key_path)
    assert told == (ssh_child.TUNNEL, 65, 40000, USER, "/\udcff", KEY)


def tunnel(
    port: int = 22, user: bytes = b"core", destination: bytes = b"/s", key: bytes = b"/k", more: bytes = b""
) -> bytes:
    lengths = map(len, (user, destination, key))
    return struct.pack("=cHHHHH", ssh_child.TUNNEL, 1, port, *lengths) + user + destination + key + more


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"H",
        b"H\0\0\0",
        b"K\0",
        b"U",
        b"X\0\0",
        tunnel()[:-1],
        tunnel(more=b"x"),
        tunnel(port=0),
        tunnel(user=b"-x"),
        tunnel(user=b""),
        tunnel(destination=b"s"),
        tunnel(destination=b"/\n"),
        tunnel(key=b"k"),
        tunnel(key=b""),
        tunnel(key=b"/\0"),
        tunnel(key=b"/" + bytes(1023)),
    ],
    ids=range(17),
)
def test_a_request_that_may_not_be_made_is_none(wrong: bytes) -> None:
    """Whoever makes it: control checks the same before."""
    assert ssh_child.parse_request(wrong) is None


@given(st.one_of(st.binary(max_size=80), st.builds(tunnel, user=st.binary(), destination=st.binary(), key=st.binary())))
def test_whatever_is_asked_a_request_names_a_user_and_two_paths(record: bytes) -> None:
    request = ssh_child.parse_request(record)
    if request is not None and request.kind == ssh_child.TUNNEL:
        assert request.user[:1] != "-" and request.destination[:1] == request.key_path[:1] == "/"


def test_an_answer_is_read_as_it_was_packed() -> None:
    assert ssh_child.parse_begun(ssh_child.pack_begun(7)) == 7
    assert ssh_child.parse_ended(ssh_child.pack_ended(7, 13)) == (7, 13, 0)
    assert ssh_child.parse_ended(ssh_child.pack_ended(7, 0, 255 << 8)) == (7, 0, 255 << 8)
    assert ssh_child.parse_begun(b"B") is None and ssh_child.parse_ended(b"E\0\0") is None


def test_records_fit_the_channel_and_are_nobody_elses() -> None:
    """Keeper and ports have theirs on the same one."""
    assert ssh_child.RECORD_MAX <= keeper.RECORD_MAX
    ours = {ssh_child.START, ssh_child.TUNNEL, ssh_child.END, ssh_child.BEGUN, ssh_child.ENDED}
    theirs = {keeper.CONTROL_DONE, keeper.CONTROL_FAILED, keeper.CONTROL_START, keeper.NEW_WORKER}
    theirs |= {keeper.NEW_WORKER_MEMORY_LOST, b"T", ports.OPEN, ports.CLOSE, ports.ANSWER}
    assert len(ours) == 5 and not ours & theirs
