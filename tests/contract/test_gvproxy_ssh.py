# SPDX-License-Identifier: Apache-2.0
"""Forwards by SSH of `gvproxy`: what becomes of them at its start, as a guest comes, and at its end.

How an ssh is kept is in test_ssh_forwards.py; here the guest has no sshd, and the end of each ssh comes at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gvproxy_guest import WireGuest, stream
from monitor import Monitor
from running import Child, ended, status
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

GVPROXY = str(Path(sys.executable).with_name("gvproxy"))
GATEWAY, GUEST = "192.168.127.1", "192.168.127.2"
LESS_THAN_THE_SILENCE = 8.0  # seconds, of ten, after which a guest that has said nothing is asked
GATEWAY_MAC, GUEST_MAC = "5a:94:ef:e4:0c:dd", "5a:94:ef:e4:0c:ee"


class Gvproxy(Child):
    """As podman machine starts it, but for a port of its own and its folder; ready when the constructor returns."""

    lines_max = 40  # without sshd, there are two each second

    def __init__(self, folder: Path, *words: str) -> None:
        self.link = folder / "qemu.sock"
        fixed = [GVPROXY, "-debug", "-ssh-port", "-1", "-listen-qemu", f"unix://{self.link}"]
        super().__init__([*fixed, *words], {"XDG_RUNTIME_DIR": str(folder / "run")}, folder)

    def guest(self) -> Monitor:
        """Who has been seen, with an address."""
        self.line_with("waiting for clients")
        monitor = Monitor(socket.socket(socket.AF_UNIX))
        monitor.socket.connect(str(self.link))
        ask = ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)
        monitor.send(bytes(Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ask))
        monitor.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=GATEWAY) / ICMP()))
        return monitor


@pytest.fixture(name="identity")
def key_file(folder: Path) -> Path:
    """Named by a path that starts in the caller's folder."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return Path("key")


@pytest.fixture(name="start")
def starting(folder: Path) -> Iterator[Callable[..., Gvproxy]]:
    started: list[Gvproxy] = []
    (folder / "run").mkdir()

    def begin(identity: Path, destination: str = "/run/user/1000/podman/podman.sock") -> Gvproxy:
        words = ["-forward-sock", "api.sock", "-forward-dest", destination, "-forward-user", "core"]
        started.append(Gvproxy(folder, *words, "-forward-identity", str(identity)))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def refuse(guest: Monitor) -> None:
    """The guest has no sshd."""
    while (frame := guest.receives(TCP))[TCP].dport != 22 or frame[TCP].flags != "S":
        pass
    assert (frame[IP].src, frame[IP].dst) == (GATEWAY, GUEST)
    back = IP(src=GUEST, dst=GATEWAY) / TCP(sport=22, dport=frame[TCP].sport, flags="RA", ack=frame[TCP].seq + 1)
    guest.send(bytes(Ether(src=GUEST_MAC, dst=frame[Ether].src) / back))


def test_ssh_comes_to_the_guest_from_the_gateway_again_and_again(start: Callable[..., Gvproxy], identity: Path) -> None:
    """The caller's user, with none of the rights that root would have."""
    gvproxy = start(identity)
    guest = gvproxy.guest()
    for pause in ("100ms", "100ms", "100ms"):
        refuse(guest)
        gvproxy.line_with(f"Waiting for sshd ({pause})")
    while guest.receives(TCP)[TCP].flags != "S":
        pass
    (pid,) = gvproxy.named("ssh")
    told = status(pid)
    assert told["Uid"].split()[0] == str(os.geteuid()) and told["CapEff"] == told["CapPrm"] == "0" * 16
    guest.socket.close()


def to_sshd(frame: Packet) -> bool:
    return TCP in frame and frame[TCP].dport == 22 and frame[TCP].flags == "S"


def leased(gvproxy: Gvproxy, end: socket.socket) -> WireGuest:
    """A guest with an address, of which it says nothing."""
    gvproxy.line_with("waiting for clients")
    end.connect(str(gvproxy.link))
    guest = WireGuest(stream(end))
    end.settimeout(LESS_THAN_THE_SILENCE)
    guest.gets_address()
    return guest


def test_a_guest_that_was_given_an_address_is_reached_though_it_says_no_more(
    start: Callable[..., Gvproxy], identity: Path
) -> None:
    """Cause: ssh waited for ten seconds of silence, and with it `podman machine start` of Podman 4."""
    with socket.socket(socket.AF_UNIX) as end:
        leased(start(identity), end).receives(to_sshd)


def test_a_guest_that_asks_for_its_address_again_and_again_is_reached(
    start: Callable[..., Gvproxy], identity: Path
) -> None:
    """Cause: each answer put off what the last one had brought nearer."""
    with socket.socket(socket.AF_UNIX) as end:
        guest = leased(start(identity), end)
        patience = time.monotonic() + LESS_THAN_THE_SILENCE
        while not select.select([end], [], [], 0.05)[0] or not to_sshd(Ether(guest.wire.receive())):
            assert time.monotonic() < patience
            guest.asks("request", ("requested_addr", GUEST), ("server_id", GATEWAY))


def test_an_ssh_that_a_guest_could_not_hear_yet_is_followed_by_another_when_it_speaks(
    start: Callable[..., Gvproxy], identity: Path
) -> None:
    """Cause: a SYN that is lost goes again after one, two and four seconds. One that was answered late is no reason."""
    with socket.socket(socket.AF_UNIX) as end:
        guest = leased(start(identity), end)
        first = guest.receives(to_sshd)[TCP].sport
        for _ in ("after a second", "after two more"):
            assert guest.receives(to_sshd)[TCP].sport == first
        guest.send(guest.to_gateway() / ICMP())
        assert guest.receives(to_sshd)[TCP].sport != first


def test_an_ssh_is_not_ended_by_what_else_a_guest_says_that_has_spoken_before(
    start: Callable[..., Gvproxy], identity: Path
) -> None:
    """Cause: the guess that its lease had begun went on, and the next address counted as its first word."""
    gvproxy = start(identity)
    with socket.socket(socket.AF_UNIX) as end:
        guest = leased(gvproxy, end)
        guest.send(guest.to_gateway() / ICMP())
        for _ in ("at once", "after a second", "after two more"):
            guest.receives(to_sshd)
        guest.asks("request", ("requested_addr", GUEST), ("server_id", GATEWAY))
        other = Ether(src="5a:94:ef:00:00:01", dst=GATEWAY_MAC) / IP(src="192.168.127.9", dst=GATEWAY) / ICMP()
        guest.send(other)
        assert "killed" not in gvproxy.line_with("ssh for ")


def test_ssh_is_not_started_before_there_is_a_guest_and_ends_with_it(
    start: Callable[..., Gvproxy], identity: Path, folder: Path
) -> None:
    """With the guest's monitor, all of it; and of its files nothing is left."""
    gvproxy = start(identity)
    guest = gvproxy.guest()
    assert (folder / "api.sock").is_socket()
    guest.receives(TCP)
    watched = [os.pidfd_open(pid) for pid in gvproxy.named("ssh")]
    assert len(watched) == 1
    guest.socket.close()
    assert gvproxy.wait() == 0
    for pidfd in watched:
        assert ended(pidfd)
        os.close(pidfd)
    assert not (folder / "api.sock").exists()
    assert list((folder / "run").iterdir()) == []


def test_no_ssh_is_left_where_gvproxy_is_killed(start: Callable[..., Gvproxy], identity: Path) -> None:
    """As podman does, by the number in its file."""
    gvproxy = start(identity)
    guest = gvproxy.guest()
    guest.receives(TCP)
    watched = [os.pidfd_open(pid) for pid in gvproxy.named("ssh")]
    gvproxy.process.send_signal(signal.SIGKILL)
    assert len(watched) == 1 and ended(watched[0])
    os.close(watched[0])
    guest.socket.close()


def test_a_key_that_cannot_be_used_is_said_at_the_start(start: Callable[..., Gvproxy], folder: Path) -> None:
    """Before anybody waits for it."""
    (folder / "none").write_text("ssh-ed25519 AAAA\n")
    gvproxy = start(Path("none"))
    assert "can't be loaded: it has no private key in it" in gvproxy.line_with("identity file")
    assert ended(gvproxy.pidfd)
    assert not (folder / "api.sock").exists()


def test_a_destination_that_is_no_path_is_said_at_the_start(start: Callable[..., Gvproxy], identity: Path) -> None:
    """ssh would take it for a host and a port."""
    gvproxy = start(identity, "localhost:22")
    assert "'localhost:22'" in gvproxy.line_with("is no path of a socket in the guest")
    assert ended(gvproxy.pidfd)
