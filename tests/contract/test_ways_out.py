# SPDX-License-Identifier: Apache-2.0
"""--outbound, --outbound-if4, --outbound-if6, --map-guest-addr: where what the guest sends leaves the host, on real
interfaces: two cables to one peer, in namespaces that the test makes.

Adversary: nobody. The default route takes the first cable, so that only the option can choose the second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cables import FIRST, FIRST6, FRAME, PEER, PEER6, PORT, SECOND, SECOND6, SPARE, Cables, asks, network
from monitor import Monitor
from running import PATIENCE
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether


def connects(monitor: Monitor, version: int, to: str) -> None:
    monitor.send(bytes(FRAME / network(version, to) / TCP(sport=4000, dport=PORT, seq=1, flags="S")))
    assert str(monitor.receives(TCP)[TCP].flags) == "SA"


CASES = [
    pytest.param((), FIRST, FIRST6, id="as routed"),
    pytest.param(("-o", SPARE), SPARE, FIRST6, id="an address"),
    pytest.param(("-o", SPARE, "-o", SECOND6), SPARE, SECOND6, id="an address each"),
    pytest.param(("-i", "cable1", "--outbound-if4", "cable2"), SECOND, FIRST6, id="an interface"),
    pytest.param(("-i", "cable1", "--outbound-if6", "cable2"), FIRST, SECOND6, id="an interface for IPv6"),
]


@pytest.mark.parametrize(("options", "from4", "from6"), CASES)
def test_datagrams_and_connections_leave_as_asked(
    cables: Cables, guest: Callable[..., Monitor], options: tuple[str, ...], from4: str, from6: str
) -> None:
    """The guest's own port is kept all the same."""
    monitor = guest(*options)
    for version, to, source in ((4, PEER, from4), (6, PEER6, from6)):
        assert asks(monitor, version, to) == f"{source} 5353"
        connects(monitor, version, to)
        cables.hears(source)


ON_THE_HOST = f"""
import socket, sys
end = socket.socket(type=socket.SOCK_DGRAM)
end.bind((sys.argv[1], {PORT}))
print(flush=True)
_, source = end.recvfrom(100)
end.sendto(" ".join(map(str, source)).encode(), source)
"""


@pytest.mark.parametrize(
    ("called", "is_at", "source"),
    [("10.8.1.2", "127.0.0.1", "127.0.0.1"), ("10.200.0.1", FIRST, SPARE)],
    ids=["the gateway", "--map-guest-addr"],
)
def test_the_host_itself_is_reached_whatever_the_way_out(
    cables: Cables, guest: Callable[..., Monitor], called: str, is_at: str, source: str
) -> None:
    """By the gateway its loopback address, by --map-guest-addr the one that the guest has, too."""
    command = [*cables.prefix, sys.executable, "-c", ON_THE_HOST, is_at]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline()
        monitor = guest("-i", "cable1", "-o", SPARE, "--outbound-if4", "cable2", "--map-guest-addr", "10.200.0.1")
        assert asks(monitor, 4, called) == f"{source} 5353"
        assert server.wait(PATIENCE) == 0


def test_an_address_that_the_host_has_not_is_no_other(guest: Callable[..., Monitor]) -> None:
    """Whoever asks for one way out does not want another: the guest hears that there is none."""
    monitor = guest("-4", "-o", "192.0.2.55")
    monitor.send(bytes(FRAME / network(4, PEER) / UDP(sport=5353, dport=PORT) / b"who am I?"))
    error = Ether(monitor.receive())[IP]
    assert error.payload.name == "ICMP" and (error.payload.type, error.payload.code) == (3, 0)


@pytest.mark.parametrize("option", ["--outbound-if4", "--outbound-if6"])
def test_an_interface_that_is_not_there_ends_the_start(option: str) -> None:
    passt = str(Path(sys.executable).with_name("passt"))
    ended = subprocess.run([passt, option, "cable9"], capture_output=True, text=True, timeout=PATIENCE, env=os.environ)
    assert ended.returncode == 1
    assert ended.stderr == f"{option} cable9: there is no such interface; `ip link` lists what there is\n"
