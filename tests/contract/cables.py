# SPDX-License-Identifier: Apache-2.0
"""Two cables between a host and one peer, in network namespaces of their own: real interfaces, addresses and routes.

Called by conftest.py and the tests in this folder. Adversary: nobody. The host's default route takes the first cable.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from monitor import GUEST_MAC, Monitor
from running import PATIENCE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

OWN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
PEER, FIRST, SECOND, SPARE = "10.99.0.1", "10.8.1.1", "10.8.2.1", "10.8.2.9"
PEER6, FIRST6, SECOND6 = "fd99::1", "fd08:1::1", "fd08:2::1"
PORT = 7777
FRAME = Ether(src=GUEST_MAC, dst="9a:55:9a:55:9a:55")  # where it goes is in the packet
QUICK = """
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad  # else their link-local addresses are not there for a while
ip link set lo up
"""
HOST = f"""
{QUICK}
for n in 1 2; do
  ip link add cable$n type veth peer name far$n netns $1
  ip address add 10.8.$n.1/24 dev cable$n; ip address add fd08:$n::1/64 dev cable$n nodad; ip link set cable$n up
  ip route add default via 10.8.$n.2 metric $n; ip route add default via fd08:$n::2 metric $n
done
ip address add {SPARE}/24 dev cable2
"""
FAR = f"""
{QUICK}
ip address add {PEER}/32 dev lo; ip address add {PEER6}/128 dev lo
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
        for prefix, name in ((self.prefix, "cable"), (self.far_prefix, "far")):  # which takes the kernel a while
            up = "for n in 1 2; do until ip -o link show $1$n | grep -q 'state UP'; do :; done; done"
            self._configure(prefix, up, name)
        self.witness = piped(*self.far_prefix, sys.executable, "-c", WITNESS)
        self.hears("ready")

    def _configure(self, prefix: tuple[str, ...], script: str, *words: str) -> None:
        subprocess.run([*prefix, "sh", "-euc", script, "sh", *words], check=True, timeout=PATIENCE)

    def hears(self, expected: str) -> None:
        assert self.witness.stdout is not None
        assert self.witness.stdout.readline().strip() == expected

    @contextmanager
    def program(self, prefix: tuple[str, ...], code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Python at one of the two ends, from its first line on, which says that it is ready."""
        process = piped(*prefix, sys.executable, "-c", code, *words)
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()
            process.communicate()

    def command(self, prefix: tuple[str, ...], *words: str) -> None:
        subprocess.run([*prefix, *words], check=True, timeout=PATIENCE)

    def close(self) -> None:
        for process in (self.witness, self.far, self.host):
            process.kill()
            process.communicate()


def make_cables() -> Cables:
    possible = subprocess.run([*OWN_NAMESPACE, "ip", "link", "add", "type", "veth"], capture_output=True)
    if shutil.which("nsenter") is None or possible.returncode:
        pytest.skip(f"no namespaces with cables here: {possible.stderr.decode().strip()}")
    return Cables()


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
