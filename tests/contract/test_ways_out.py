# SPDX-License-Identifier: Apache-2.0
"""--outbound, --outbound-if4, --outbound-if6, --map-guest-addr: where what the guest sends leaves the host, on real
interfaces: two cables to one peer, in namespaces that the test makes.

Adversary: nobody. The default route takes the first cable, so that only the option can choose the second.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monitor import GUEST_MAC, Monitor
from running import PATIENCE, Foreground
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

OWN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
PEER, FIRST, SECOND, SPARE = "10.99.0.1", "10.8.1.1", "10.8.2.1", "10.8.2.9"
PEER6, FIRST6, SECOND6 = "fd99::1", "fd08:1::1", "fd08:2::1"
PORT = 7777
FRAME = Ether(src=GUEST_MAC, dst="9a:55:9a:55:9a:55")  # where it goes is in the packet
HOST = f"""
ip link set lo up
for n in 1 2; do
  ip link add cable$n type veth peer name far$n netns $1
  ip address add 10.8.$n.1/24 dev cable$n; ip address add fd08:$n::1/64 dev cable$n nodad; ip link set cable$n up
  ip route add default via 10.8.$n.2 metric $n; ip route add default via fd08:$n::2 metric $n
done
ip address add {SPARE}/24 dev cable2
"""
FAR = f"""
ip link set lo up; ip address add {PEER}/32 dev lo; ip address add {PEER6}/128 dev lo
for n in 1 2; do
  ip address add 10.8.$n.2/24 dev far$n; ip address add fd08:$n::2/64 dev far$n nodad; ip link set far$n up
done
"""
# Tells each datagram's sender its own address and port, and each connection's on standard output.
WITNESS = f"""
import select, socket
def told(kind, family, host):
    end = socket.socket(family, kind)
    end.bind((host, {PORT}))
    if kind == socket.SOCK_STREAM:
        end.listen()
    return end
kinds = socket.SOCK_DGRAM, socket.SOCK_STREAM
places = (socket.AF_INET, "{PEER}"), (socket.AF_INET6, "{PEER6}")
ends = [told(kind, *place) for kind in kinds for place in places]
print("ready", flush=True)
while True:
    for end in select.select(ends, [], [])[0]:
        if end.type == socket.SOCK_STREAM:
            print(end.accept()[1][0], flush=True)
        else:
            _, source = end.recvfrom(100)
            end.sendto(" ".join(map(str, source[:2])).encode(), source)
"""


def piped(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Cables:
    """The host's namespace, and the peer's behind it."""

    def __init__(self) -> None:
        keep = ["sh", "-c", "echo; exec cat"]  # lives until its standard input ends
        self.host = piped(*OWN_NAMESPACE, *keep)
        assert self.host.stdout is not None and self.host.stdout.readline()
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(self.host.pid))
        self.far = piped(*self.prefix, "unshare", "--net", *keep)
        assert self.far.stdout is not None and self.far.stdout.readline()
        self.far_prefix = (*self.prefix[:-1], str(self.far.pid))
        self._configure(self.prefix, HOST, str(self.far.pid))
        self._configure(self.far_prefix, FAR)
        self.witness = piped(*self.far_prefix, sys.executable, "-c", WITNESS)
        self.hears("ready")

    def _configure(self, prefix: tuple[str, ...], script: str, *words: str) -> None:
        subprocess.run([*prefix, "sh", "-euc", script, "sh", *words], check=True, timeout=PATIENCE)

    def hears(self, expected: str) -> None:
        assert self.witness.stdout is not None
        assert self.witness.stdout.readline().strip() == expected

    def close(self) -> None:
        for process in (self.witness, self.far, self.host):
            process.kill()
            process.communicate()


@pytest.fixture(name="cables", scope="module")
def connected_cables() -> Iterator[Cables]:
    possible = subprocess.run([*OWN_NAMESPACE, "ip", "link", "add", "type", "veth"], capture_output=True)
    if shutil.which("nsenter") is None or possible.returncode:
        pytest.skip(f"no namespaces with cables here: {possible.stderr.decode().strip()}")
    cables = Cables()
    yield cables
    cables.close()


@pytest.fixture(name="guest")
def started_guest(cables: Cables, start: Callable[..., Foreground], folder: Path) -> Iterator[Callable[..., Monitor]]:
    """Starts a helper on the host of the cables, and returns its guest."""
    monitors = []

    def begin(*options: str) -> Monitor:
        helper = start(*options, prefix=cables.prefix, stream=True)
        end = socket.socket(socket.AF_UNIX)
        end.connect(str(helper.socket))
        monitors.append(Monitor(end))
        return monitors[-1]

    yield begin
    for monitor in monitors:
        monitor.socket.close()


def network(version: int, to: str) -> IP | IPv6:
    """Of a packet from the guest, which has the host's own address."""
    return IP(src=FIRST, dst=to) if version == 4 else IPv6(src=FIRST6, dst=to)


def asks(monitor: Monitor, version: int, to: str, port: int = 5353) -> str:
    """A datagram of the guest's; what its socket on the host was called by whoever got it."""
    monitor.send(bytes(FRAME / network(version, to) / UDP(sport=port, dport=PORT) / b"who am I?"))
    answer = monitor.receives(UDP)
    assert answer[UDP].dport == port
    datagram = bytes(answer[UDP].original)  # scapy would read more into it, by its port
    return datagram[8 : answer[UDP].len].decode()


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
