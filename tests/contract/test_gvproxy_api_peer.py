# SPDX-License-Identifier: Apache-2.0
"""gvproxy's own API beside ours: the same requests, one after the other, get the same replies; and where ours differ on
purpose, both are written down. The peer is that of LOCKGATE_PEER_ROOT. Neither has a guest.

Adversary: nobody. Each of the two has a network namespace of its own, and so the ports that it is asked for.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from running import PASST, PATIENCE

OURS = str(Path(PASST).with_name("gvproxy"))
HERE = "127.0.0.7"
GUEST = "192.168.127.2"
SSH = "127.0.0.1:2222"  # which both expose by themselves
EXPOSE, UNEXPOSE, LIST = (f"/services/forwarder/{word}" for word in ("expose", "unexpose", "all"))
ZONES, ADD_ZONE = "/services/dns/all", "/services/dns/add"
LO_UP = 'ip link set lo up && exec "$@"'
KEYS = {"ARP", "BytesReceived", "BytesSent", "DroppedPackets", "ICMP", "IGMP", "IP", "NICs", "TCP", "UDP"}

Body = Mapping[str, object] | bytes
Request = tuple[str, str, Body]
Reply = tuple[int, str, str, object]  # status, type, X-Content-Type-Options, body
NOTHING: Reply = (0, "", "", "")  # the connection ended


def post(path: str, **fields: object) -> Request:
    return "POST", path, fields


def local(port: int) -> str:
    return f"{HERE}:{port}"


def alike(folder: Path) -> list[Request]:
    """Each of these changes what the next ones see."""
    remote, file = f"{GUEST}:80", str(folder / "file")
    return [
        *(("GET", path, b"") for path in ("/", "/x", f"{LIST}/", LIST, ZONES, "/leases", "/services/dhcp/leases")),
        ("GET", "/cam", b""),
        *((method, path, b"") for path in (EXPOSE, UNEXPOSE, ADD_ZONE) for method in ("GET", "PUT", "DELETE")),
        ("HEAD", LIST, b""),
        ("POST", LIST, b""),
        post(EXPOSE, local=local(20100), remote=remote),
        post(EXPOSE, LOCAL=local(20101), Remote=remote, protocol=None, more=[1]),
        post(EXPOSE, local=local(20100), remote=f"{GUEST}:81", protocol="udp"),
        ("POST", EXPOSE, json.dumps({"local": local(20102), "remote": remote}).encode() + b" and more"),
        ("GET", LIST, b""),
        post(EXPOSE, local=f"[::ffff:{HERE}]:20100", remote=remote),
        post(EXPOSE, local="192.0.2.7:20100", remote=remote),
        post(EXPOSE, local="192.0.2.7:20100", remote=remote, protocol="udp"),
        *(
            post(EXPOSE, local=text, remote=remote, protocol=protocol)
            for text in ("127.0.0.1", "8080", "::1:80", "[::1]", "[::1:80", "[::1]80:80", "a[b:80", "a]b:80", ":99999")
            for protocol in ("tcp", "udp")
        ),
        *(post(EXPOSE, local=local(20103), remote=text) for text in ("", GUEST, "80", "[::1", "::1:80")),
        post(EXPOSE, local="x", remote="y", protocol="sctp"),
        post(EXPOSE, local="x", remote="y:1", protocol="sctp"),
        ("POST", EXPOSE, b"null"),
        ("POST", EXPOSE, b"{}"),
        ("POST", EXPOSE, b""),
        *(post(UNEXPOSE, local="x", protocol=protocol) for protocol in ("tcp", "udp", "unix", "sctp", "")),
        post(UNEXPOSE, local=local(20101)),
        post(UNEXPOSE, local=local(20100), protocol="udp"),
        post(UNEXPOSE, local=local(20101)),
        ("GET", LIST, b""),
        post(EXPOSE, local=file, remote=f"tcp://{GUEST}:80", protocol="unix"),
        post(EXPOSE, local=f"{file}.ssh", remote=f"ssh-tunnel://core@{GUEST}/x?key=/nothing", protocol="unix"),
        *(
            post(EXPOSE, local=f"{file}.no", remote=text, protocol="unix")
            for text in (
                "foo://bar/baz",
                f"{GUEST}:80",
                "tcp://%zz",
                f"ssh-tunnel://core@{GUEST}:x/x?key=/k",
                "x",
                "",
                f"ssh-tunnel://core@{GUEST}/run/x.sock",
                f"ssh-tunnel://core@{GUEST}",
                f"ssh-tunnel://core@{GUEST}?key=/k",
            )
        ),
        post(EXPOSE, local="/nonexistent/x", remote=f"tcp://{GUEST}:80", protocol="unix"),
        post(EXPOSE, local=file + "x" * 150, remote=f"tcp://{GUEST}:80", protocol="unix"),
        ("GET", LIST, b""),
        post(UNEXPOSE, local=file, protocol="unix"),
        post(UNEXPOSE, local=f"{file}.ssh", protocol="unix"),
        post(UNEXPOSE, local=SSH),
        post(ADD_ZONE, Name="a."),
        post(ADD_ZONE, name="a.", records=[{"Name": "x", "IP": "1.2.3.4"}], defaultIP="1.2.3.5"),
        post(ADD_ZONE, Name="a.", Records=[{"Name": "<&>", "IP": "1.2.3.4"}, {"Regexp": "b+", "IP": "1.2.3.6"}]),
        post(ADD_ZONE, Name="b.", DefaultIP="bogus"),
        post(ADD_ZONE, Name="b.", Records=[{"Name": "x", "IP": "bogus"}]),
        ("POST", ADD_ZONE, b""),
        ("GET", ZONES, b""),
        ("GET", LIST, b""),
        post("/tunnel"),
        post("/tunnel?port=22"),
    ]


def different(folder: Path) -> list[tuple[str, Request, int, int]]:
    """Why, what is asked, and the statuses of gvproxy and of ours (0: the connection just ends)."""
    remote, file = f"{GUEST}:80", folder / "precious"
    file.write_text("precious")
    return [
        ("it is not removed", post(EXPOSE, local=str(file), remote=f"tcp://{GUEST}:80", protocol="unix"), 200, 500),
        ("names crash it", post(EXPOSE, local=local(20110), remote="guest:80"), 0, 400),
        ("the same", post(EXPOSE, local=f"{folder}/n", remote="tcp://guest:80", protocol="unix"), 0, 400),
        ("no port is that", post(EXPOSE, local=local(20111), remote=f"{GUEST}:65536"), 200, 400),
        ("a wrong request", post(EXPOSE, local=local(20112), remote=f"{GUEST}:x"), 500, 400),
        ("the same", post(EXPOSE, local=f"{folder}/m", remote=f"tcp://{GUEST}", protocol="unix"), 500, 400),
        ("any port helps nobody", post(EXPOSE, local=local(0), remote=remote), 200, 500),
        ("the same", post(EXPOSE, local="", remote=remote), 200, 500),
        ("its table of services", post(EXPOSE, local=f"{HERE}:finger", remote=remote), 200, 500),
        # Without a body: 0.8.1 would leave it unread, and its reset could overtake its OK.
        ("no such guest can be", ("POST", "/tunnel?ip=bogus&port=22", b""), 200, 400),
    ]


# ---- both ----


@contextmanager
def running(command: Sequence[str], path: Path) -> Iterator[None]:
    """A gvproxy whose API is at that path, for as long as the block lasts."""
    words = ["unshare", "--net", "sh", "-c", LO_UP, "sh", *command, "-listen", f"unix://{path}"]
    pipe, same, folder = subprocess.PIPE, subprocess.STDOUT, path.parent
    with subprocess.Popen(words, stdout=pipe, stderr=same, text=True, cwd=folder) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "listening" not in said:
                line = process.stdout.readline()
                assert line, f"it has ended: {said}"
                said += line
            yield
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(name="both")
def both_apis(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Where ours listens, and the peer."""
    root, words = os.environ.get("LOCKGATE_PEER_ROOT"), shlex.split(os.environ.get("LOCKGATE_PEER_RUN", ""))
    if os.geteuid() or not root or not words or not (Path(root) / "usr/bin/gvproxy").exists():
        pytest.skip("no gvproxy: LOCKGATE_PEER_ROOT and _RUN do not name a root that has it, or we are not root")
    paths = folder / "ours", folder / "theirs"
    with running([OURS], paths[0]), running([*words, "/usr/bin/gvproxy"], paths[1]):
        yield paths


class Connection(HTTPConnection):
    """To a path."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def ask(path: Path, request: Request) -> Reply:
    """On a connection of its own."""
    method, target, body = request
    connection = Connection(path)
    try:
        connection.request(method, target, body if isinstance(body, bytes) else json.dumps(body).encode())
        response = connection.getresponse()
        data = response.read().decode()
        said = response.headers
        return response.status, said.get("Content-Type", ""), said.get("X-Content-Type-Options", ""), _plain(data)
    except HTTPException as failure:
        return (200, "", "", "OK") if "OK" in str(failure) else NOTHING
    except ConnectionError:
        return NOTHING
    finally:
        connection.close()


def _plain(data: str) -> object:
    """0.8.1 writes the pattern that a record does not have as null; later ones leave it out, and so do we."""
    return data.replace(',"Regexp":null', "")


def test_the_same_requests_get_the_same_replies(both: tuple[Path, Path], folder: Path) -> None:
    """Also where both make a socket in one place, one after the other: nobody connects to it."""
    for request in alike(folder):
        ours, theirs = (ask(at, request) for at in both)
        assert ours == theirs, request


def test_counters_have_a_place_in_the_same_tree(both: tuple[Path, Path]) -> None:
    ours, theirs = (json.loads(str(ask(at, ("GET", "/stats", b""))[3])) for at in both)
    assert KEYS == set(theirs) == set(ours) - {"Counters"}
    assert {path for path in _paths(ours) if not path.startswith("Counters.")} <= {*_paths(theirs)}


def test_where_replies_differ_there_is_a_reason(both: tuple[Path, Path], folder: Path) -> None:
    for why, request, theirs, ours in different(folder):
        assert tuple(ask(at, request)[0] for at in both) == (ours, theirs), (why, request)


def test_a_path_begins_where_the_command_was_started(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("no network namespace: we are not root")
    with running([OURS], folder / "ours"):
        asked = {"local": "file", "remote": f"tcp://{GUEST}:80", "protocol": "unix"}
        assert ask(folder / "ours", post(EXPOSE, **asked))[0] == 200
        assert (folder / "file").is_socket()
    assert not (folder / "file").exists()


def _paths(tree: Mapping[str, object], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{name}.")
        else:
            yield above + name
