# SPDX-License-Identifier: Apache-2.0
"""Forwards by SSH, with a real ssh, a real sshd in the place of the guest's, and a real keeper."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_sshd import GuestSocket, GuestSshd
from running import PATIENCE, Child, ended, tree

PROGRAM = Path(__file__).with_name("ssh_forwarder.py")


class Forwarder(Child):
    """ssh_forwarder.py with one forward, `socket`; ready when the constructor returns."""

    lines_max = 40  # a forward that fails says two each second, for ever

    def __init__(self, folder: Path, sshd: GuestSshd, destination: str) -> None:
        self.socket = folder / "api.sock"
        self.place = folder / "run"
        self.place.mkdir(exist_ok=True)
        forward = [str(self.socket), destination, sshd.user, str(sshd.identity)]
        given = {"forwards": [forward], "port": sshd.port, "place": str(self.place)}
        environment = {"SSH_AUTH_SOCK": "/nowhere", "SSH_ASKPASS": "/nowhere"}
        super().__init__([sys.executable, str(PROGRAM), json.dumps(given)], environment, stdin=subprocess.PIPE)
        self.line_with("ready")

    def say(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\t".join(words).encode() + b"\n")
        self.line_with(f"heard {words[0]}")

    def guest_came(self) -> None:
        self.say("guest came")
        self.line_with("established")

    def ask(self, text: bytes, path: Path | None = None) -> bytes:
        with self.client(path) as client:
            say_all(client, text)
            return answer(client)

    def client(self, path: Path | None = None) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(path or self.socket))
        return client

    def private(self) -> list[str]:
        """What is in ssh's folder."""
        (folder,) = self.place.iterdir()
        return sorted(os.listdir(folder))


def say_all(client: socket.socket, text: bytes) -> None:
    """And that this is all."""
    client.sendall(text)
    client.shutdown(socket.SHUT_WR)


def answer(client: socket.socket) -> bytes:
    said = b""
    while piece := client.recv(65536):
        said += piece
    return said


@pytest.fixture(name="sshd")
def guest_sshd(folder: Path) -> Iterator[GuestSshd]:
    sshd = GuestSshd(folder)
    yield sshd
    sshd.close()


@pytest.fixture(name="service")
def guest_socket(folder: Path) -> Iterator[GuestSocket]:
    """Under a name in which ssh reads something, unless it is kept from that."""
    service = GuestSocket(folder / "s o:c%k\\et$HOME")
    yield service
    service.close()


@pytest.fixture(name="start")
def starting(folder: Path, sshd: GuestSshd, service: GuestSocket) -> Iterator[Callable[..., Forwarder]]:
    started: list[Forwarder] = []

    def begin(destination: Path | None = None) -> Forwarder:
        started.append(Forwarder(folder, sshd, str(destination or service.path)))
        return started[-1]

    yield begin
    for forwarder in started:
        forwarder.close()


@pytest.fixture(name="forwarder")
def established(start: Callable[..., Forwarder], sshd: GuestSshd) -> Forwarder:
    """Whose guest is there, and has let ssh in."""
    sshd.start()
    forwarder = start()
    forwarder.guest_came()
    return forwarder


def test_a_client_of_the_host_reaches_a_socket_in_the_guest(forwarder: Forwarder) -> None:
    """With many bytes, and with an end in each direction."""
    sent = os.urandom(3_000_000)
    assert forwarder.ask(sent) == sent[::-1]
    assert forwarder.ask(b"") == b""


def test_the_socket_is_its_owners_and_there_at_once_whatever_was_there(
    start: Callable[..., Forwarder], folder: Path, sshd: GuestSshd
) -> None:
    """Who comes early waits."""
    (folder / "api.sock").write_text("old")
    forwarder = start()
    assert stat.S_IMODE(forwarder.socket.stat().st_mode) == 0o600
    with forwarder.client() as client:
        say_all(client, b"early")
        sshd.start()
        forwarder.guest_came()
        assert answer(client) == b"ylrae"


def test_an_sshd_that_comes_late_is_waited_for(start: Callable[..., Forwarder], sshd: GuestSshd) -> None:
    forwarder = start()
    forwarder.say("guest came")
    said = []
    for pause in ("100ms", "100ms", "100ms"):
        said.append(forwarder.line_with("ended with exit status 255"))
        forwarder.line_with(f"Waiting for sshd ({pause})")
    assert any("255: " in line for line in said), "what ssh says of it is told"
    sshd.start()
    forwarder.line_with("Socket forward established: ")
    assert forwarder.ask(b"late") == b"etal"


def test_an_sshd_that_goes_away_and_comes_back_is_found_again(forwarder: Forwarder, sshd: GuestSshd) -> None:
    """Its clients wait meanwhile."""
    sshd.end()
    forwarder.line_with("Waiting for sshd (100ms)")
    with forwarder.client() as client:
        say_all(client, b"patient")
        sshd.start()
        forwarder.line_with("established")
        assert answer(client) == b"tneitap"


def test_a_guest_that_is_reset_costs_no_request(forwarder: Forwarder, sshd: GuestSshd) -> None:
    """ssh has taken the client, but hears from the guest only that it does not know it any more."""
    sshd.stop()
    with forwarder.client() as client:
        say_all(client, b"request")
        sshd.end()
        sshd.start()
        assert answer(client) == b"tseuqer"


def test_a_client_of_what_is_not_there_is_sent_away(start: Callable[..., Forwarder], sshd: GuestSshd) -> None:
    """sshd says so: what it wrote has been read by nobody. The next client is tried all the same."""
    sshd.start()
    forwarder = start(Path("/nowhere/s"))
    forwarder.guest_came()
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            forwarder.ask(b"anybody?")
        forwarder.line_with("sent away")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_ssh_outlives_the_keeper(forwarder: Forwarder, number: signal.Signals) -> None:
    """Podman ends it by SIGKILL, and by the process id that it finds in a file."""
    watched = [os.pidfd_open(pid) for pid in tree(forwarder.process.pid)[1:]]
    assert len(watched) == 3 and len(forwarder.named("ssh")) == 1
    forwarder.process.send_signal(number)
    for pidfd in [forwarder.pidfd, *watched]:
        assert ended(pidfd)
    for pidfd in watched:
        os.close(pidfd)


def test_on_quitting_nothing_is_left(forwarder: Forwarder) -> None:
    """Neither the socket, nor ssh's folder."""
    forwarder.process.terminate()
    assert forwarder.wait() == 0
    assert not forwarder.socket.exists() and list(forwarder.place.iterdir()) == []


def test_a_key_is_there_only_as_long_as_ssh_needs_it(start: Callable[..., Forwarder], sshd: GuestSshd) -> None:
    """The caller's own file may be readable by others, of which ssh would not take it."""
    sshd.identity.chmod(0o644)
    sshd.start()
    forwarder = start()
    forwarder.guest_came()
    assert forwarder.private() == ["0.sock"]


def test_ssh_ends_with_its_guest(forwarder: Forwarder) -> None:
    forwarder.say("guest left")
    forwarder.line_with("was killed by SIGKILL")
    assert forwarder.named("ssh") == [] and forwarder.private() == []
    forwarder.guest_came()
    assert forwarder.ask(b"again") == b"niaga"


def test_a_key_that_the_guest_does_not_know_is_told(
    start: Callable[..., Forwarder], sshd: GuestSshd, folder: Path
) -> None:
    """And tried again: the guest may be about to learn of it."""
    authorized = (folder / "authorized_keys").read_text()
    (folder / "authorized_keys").write_text("")
    sshd.start()
    forwarder = start()
    forwarder.say("guest came")
    assert "Permission denied (publickey" in forwarder.line_with("ended with exit status 255")
    (folder / "authorized_keys").write_text(authorized)
    forwarder.line_with("established")


def test_a_tunnel_is_made_as_it_is_asked_for(
    forwarder: Forwarder, sshd: GuestSshd, service: GuestSocket, folder: Path
) -> None:
    """With the first client."""
    forwarder.say("tunnel", str(folder / "t"), sshd.user, str(service.path), str(sshd.identity))
    assert len(forwarder.named("ssh")) == 1
    assert forwarder.ask(b"tunnel", folder / "t") == b"lennut"
    assert len(forwarder.named("ssh")) == 2 and forwarder.private() == ["0.sock", "1.sock"]


def test_a_tunnel_without_a_key_is_told(
    forwarder: Forwarder, sshd: GuestSshd, service: GuestSocket, folder: Path
) -> None:
    forwarder.say("tunnel", str(folder / "t"), sshd.user, str(service.path), "/etc/passwd")
    with forwarder.client(folder / "t"):
        assert f"ssh for {folder}/t could not be started" in forwarder.line_with("could not be started")
