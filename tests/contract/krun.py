# SPDX-License-Identifier: Apache-2.0
"""A guest behind libkrun's network device, as muvm and libkrun's own init configure it: the kernel is this machine's,
in a namespace, and what is on the socket is what libkrun makes of its frames (krun_device.py).

Called by test_callers_krun.py. Adversary: nobody. The two clients ask for their lease once, wait for it a tenth of a
second in the kernel, read at most 576 bytes and walk its options as the originals do, faults included.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from namespace_sockets import NamespaceSockets, family
from running import PATIENCE

MAC = "5a:94:ef:e4:0c:ee"
WINDOW = struct.pack("ll", 0, 100_000)  # struct timeval: a tenth of a second
REPLY_MAX = 576
DEFAULT_MTU, LEAST_MTU = 65520, 1280
MUVM_XID = bytes((1, 2, 3, 4))
ACK = 5
PING4, PING6 = (socket.IPPROTO_ICMP, 8, 0), (socket.IPPROTO_ICMPV6, 128, 129)  # types of requests and replies
HUNG_UP = "networking is disabled: the backend has hung up\n"  # of the device
DEVICE = Path(__file__).with_name("krun_device.py")


def device_command(descriptor: int | str) -> list[str]:
    """The VM, in a network namespace of its own; says "ready" once it has an eth0."""
    return ["unshare", "--net", sys.executable, "-I", "-S", str(DEVICE), str(descriptor), MAC]


@dataclass
class Lease:
    """What a client makes of the reply."""

    message: bytes
    address: str = ""
    kind: int = 0
    prefix: int = 0
    router: str = "0.0.0.0"
    mtu: int = DEFAULT_MTU
    resolvers: list[str] = field(default_factory=list)


def read_lease(message: bytes, skips_padding: bool) -> Lease:
    """muvm's walker knows no padding: an option 0 would be one of a length, and what follows it nonsense."""
    lease = Lease(message, socket.inet_ntoa(message[16:20]))
    at = 240
    while at < len(message) and message[at] != 255:
        if message[at] == 0 and skips_padding:
            at += 1
            continue
        option, length = message[at], message[at + 1]
        value = message[at + 2 : at + 2 + length]
        assert len(value) == length, "an option beyond the end of the message"
        at += 2 + length
        if option == 1:
            lease.prefix = int.from_bytes(value, "big").bit_count()
        elif option == 3:
            lease.router = socket.inet_ntoa(value[:4])
        elif option == 6:
            lease.resolvers += [socket.inet_ntoa(value[n : n + 4]) for n in range(0, len(value), 4)]
        elif option == 53:
            lease.kind = value[0]
        elif option == 26:
            lease.mtu = min(max(int.from_bytes(value[:2], "big"), LEAST_MTU), DEFAULT_MTU)
    return lease


class Guest:
    """`process` is the device's or its parent's, and its unbuffered output the device's; `pid` is the device."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self.process, self.pid = process, pid
        self._said: str | None = None
        assert self.line() == "ready\n"
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(pid))
        self.sockets = NamespaceSockets(self.prefix)
        # A kernel's first step in its life: muvm lets everybody ping.
        self.runs("ip link set lo up; echo 0 0 >/proc/sys/net/ipv4/ping_group_range")

    def runs(self, script: str, *words: str) -> str:
        command = [*self.prefix, "sh", "-euc", script, "sh", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout

    def _asks(self, xid: bytes, chaddr: bytes, device: bytes) -> bytes:
        """DISCOVER with rapid commit, once; what came within the window, or nothing."""
        message = struct.pack("!BBBB4sHH16x6s202xI", 1, 1, 6, 0, xid, 0, 0x8000, chaddr, 0x63825363)
        message += bytes((53, 1, 1, 80, 0, 255)).ljust(60, b"\0")
        with self.sockets.make(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(None)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, WINDOW)
            client.bind(("0.0.0.0", 68))
            client.sendto(message, ("255.255.255.255", 67))
            try:
                return client.recv(REPLY_MAX)
            except BlockingIOError:
                return b""

    def _asks_until_heard(self, xid: bytes, chaddr: bytes = bytes(6), device: bytes = b"") -> bytes:
        """A machine that is busy with other things may miss the window by no fault of the helper's; not every time."""
        for _ in range(20):
            if message := self._asks(xid, chaddr, device):
                assert message[4:8] == xid
                return message
        raise AssertionError("no lease within the window, in twenty tries")

    def configured_by_muvm(self) -> Lease:
        """No ARP and no duplicate address detection until all is done; IPv4 under a temporary address."""
        self.runs("ip link set eth0 arp off; ip link set eth0 up")
        self.runs("ip route add default dev eth0; ip address add 169.254.1.1/16 dev eth0")
        lease = read_lease(self._asks_until_heard(MUVM_XID), skips_padding=False)
        self.runs("ip route del default dev eth0; ip address del 169.254.1.1/16 dev eth0")
        self._takes(lease)
        self.awaits_ipv6()
        self.runs("ip link set eth0 arp on")
        return lease

    def configured_by_init(self) -> Lease:
        """libkrun's own: it asks from 0.0.0.0, and under its own MAC."""
        self.runs("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up")  # 0: a second less to wait
        xid = struct.pack("!I", os.getpid())
        message = self._asks_until_heard(xid, bytes.fromhex(MAC.replace(":", "")), b"eth0")
        lease = read_lease(message, skips_padding=True)
        self._takes(lease)
        return lease

    def _takes(self, lease: Lease) -> None:
        words = [f"{lease.address}/{lease.prefix}", lease.router, str(lease.mtu)]
        self.runs("ip address add $1 dev eth0; ip route add default via $2; ip link set eth0 mtu $3", *words)

    def awaits_ipv6(self) -> None:
        """As muvm does, in a busy loop, for the address that the router advertises the prefix of."""
        self.runs("until ip -6 address show dev eth0 scope global | grep -q inet6; do :; done")

    def pings(self, address: str) -> bool:
        """The kernel of the guest's makes the identifier and the checksum."""
        protocol, asks, answers = PING6 if ":" in address else PING4
        data = os.urandom(56)
        with self.sockets.make(family(address), socket.SOCK_DGRAM, protocol) as end:
            end.connect((address, 0))
            end.send(struct.pack("!BBHHH", asks, 0, 0, 0, 1) + data)
            answer = end.recv(1 << 16)
        return answer[0] == answers and answer[6:] == b"\0\1" + data

    def line(self) -> str:
        """The next that its device says."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "the device says nothing"
        return self.process.stdout.readline().decode()

    def end(self) -> str:
        """Kills it if it lives; what its device had to say."""
        if self._said is None:
            self.process.kill()
            self._said = self.process.communicate()[0].decode()
        return self._said

    def close(self) -> None:
        self.sockets.close()
        self.end()


def started(prefix: Sequence[str], end: socket.socket) -> Guest:
    """A VM of its own process, to which its monitor gives this end."""
    with end:
        process = subprocess.Popen(
            [*prefix, *device_command(end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[end.fileno()],
        )
    return Guest(process, process.pid)
