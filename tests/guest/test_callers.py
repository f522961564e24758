# SPDX-License-Identifier: Apache-2.0
"""The real callers that start our command by themselves, each with all that a guest wants from its network: QEMU's
`-netdev passt` and libvirt's `<backend type='passt'/>`, on a stream and by vhost-user.

Needs the newer root file system; Debian 12's QEMU 7.2 and libvirt 9.0 do not know a helper called passt.
Adversary: nobody.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import process_tree
import pytest
from callers import CALLERS, Forwards
from data_server import DataServer
from echo_server import EchoServer
from free_ports import free_ports
from guest import Guest
from image import MissingIngredient
from network import ADDRESS, PREFIX
from process_tree import await_gone
from resolver import ANSWER, ANSWER6, NAME, Resolver

WEB, ECHO = 8080, 7007  # of the guest
PATIENCE = 10
BACK_SECONDS = 60  # libvirt's QEMU connects again after five seconds, and TCG is slow
RESTARTING = ("qemu-netdev-passt", "libvirt-user", "libvirt-vhostuser")


class Called:
    """A guest, and what its caller started."""

    def __init__(self, name: str, folder: Path) -> None:
        (tcp,), (udp,) = free_ports(socket.SOCK_STREAM, 1), free_ports(socket.SOCK_DGRAM, 1)
        self.name, self.tcp, self.udp = name, tcp, udp
        self.guest = Guest.boot(name, CALLERS[name](folder, Forwards((tcp, WEB), (udp, ECHO))), Path())
        self.guest.network_up()
        self.gateway = self.guest.lease()["router"]

    def helper(self) -> dict[str, int]:
        """Its processes by name."""
        named = {process_tree.name(pid): pid for pid in process_tree.tree(self.guest.pid)}
        return {name: pid for name, pid in named.items() if name.startswith("passt")}


@pytest.fixture(scope="module", name="called", params=CALLERS)
def guest_of_a_caller(request: pytest.FixtureRequest, names: Resolver) -> Iterator[Called]:
    folder = Path(tempfile.mkdtemp(prefix="lockgate-"))
    folder.chmod(0o777)
    try:
        called = Called(request.param, folder)
    except MissingIngredient as missing:
        shutil.rmtree(folder)
        pytest.skip(str(missing))
    yield called
    called.guest.kill()
    shutil.rmtree(folder)


def fetch(called: Called, server: DataServer, size: int = 1_000_000) -> str:
    """The guest's command line for a download from this machine's loopback; its output is the digest."""
    return f"client -r 'GET {size}' {called.gateway} {server.port} </dev/null | sha256sum"


def test_the_guest_has_the_addresses_that_the_caller_was_told(called: Called) -> None:
    lease = called.guest.lease()
    assert (lease["ip"], lease["mask"]) == (ADDRESS[4], str(PREFIX[4]))
    assert ADDRESS[6].partition("::")[0] + "::" in called.guest.output("ip -6 addr show dev eth0 scope global")


def test_the_guest_looks_a_name_up_at_the_hosts_own_resolver(called: Called, names: Resolver) -> None:
    """It is on loopback, so the guest was given the address that leads there."""
    assert called.guest.lease()["dns"] == called.gateway
    answer = called.guest.output(f"nslookup {NAME}")
    assert ANSWER in answer and ANSWER6 in answer, answer


def test_bytes_go_both_ways_over_tcp(called: Called, server: DataServer) -> None:
    size = 1_000_000
    assert called.guest.output(fetch(called, server, size)).split()[0] == server.payload.sha256(size)
    put = f"head -c {size} /dev/urandom >/tmp/file; client -r 'PUT {size}' {called.gateway} {server.port} </tmp/file"
    assert called.guest.output(put) == called.guest.output("sha256sum </tmp/file").split()[0]


def test_datagrams_and_pings_are_answered(called: Called) -> None:
    echo = EchoServer(4)
    try:
        assert called.guest.output(f"echo_datagrams {called.gateway} {echo.port} 1 1400 9000") == "echoed 3"
    finally:
        echo.close()
    assert "2 packets received" in called.guest.output(f"ping -c 2 -i 0.1 -W 5 {called.gateway}")
    assert "2 packets received" in called.guest.output(f"ping -c 2 -i 0.1 -W 5 {called.guest.gateway(6)}")


def test_the_forwarded_ports_lead_to_the_guest(called: Called) -> None:
    called.guest.output(f"echo forwarded >/tmp/page; httpd -p {WEB} -h /tmp")
    with urllib.request.urlopen(f"http://127.0.0.1:{called.tcp}/page", timeout=PATIENCE) as answer:
        assert answer.read() == b"forwarded\n"
    listening = f"netstat -uln | grep -q ':{ECHO} '"
    called.guest.output(f"echo_datagrams -l {ECHO} >/dev/null 2>&1 & until {listening}; do :; done")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(("127.0.0.1", called.udp))
        peer.send(b"a datagram")
        assert peer.recv(100) == b"a datagram"


def test_a_killed_helper_is_started_again_by_its_caller_and_the_guest_is_back(
    called: Called, server: DataServer
) -> None:
    """The same command line: on libvirt's socket, a dead instance's file is in the way."""
    if called.name not in RESTARTING:
        pytest.skip(f"{called.name}: this caller only takes the guest's link down")
    before = called.helper()
    os.kill(before["passt"], signal.SIGKILL)
    assert await_gone(list(before.values())) == []
    size = 1_000_000
    again = f"until {fetch(called, server, size)} | grep {server.payload.sha256(size)}; do :; done"
    called.guest.output(again, BACK_SECONDS)
    assert not set(before.values()) & set(called.helper().values())


def test_no_process_of_the_helper_is_left_when_the_guest_is_off(called: Called) -> None:
    helper = list(called.helper().values())
    assert len(helper) == 3
    called.guest.start("poweroff -f")
    assert await_gone(helper) == []
