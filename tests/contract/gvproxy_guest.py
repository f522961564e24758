# SPDX-License-Identifier: Apache-2.0
"""A guest of `gvproxy`, frame by frame, over each kind of link that it has; and a gvproxy as a caller runs it.

Called by the tests in this folder. Adversary: nobody. Invariants: everything is waited for by an event; what a test
leaves running is ended by process id.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from running import PATIENCE
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

GVPROXY = str(Path(sys.executable).with_name("gvproxy"))
GATEWAY, HOST, DEVICE = "192.168.127.1", "192.168.127.254", "192.168.127.2"
GATEWAY_MAC, DEVICE_MAC = "5a:94:ef:e4:0c:dd", "5a:94:ef:e4:0c:ee"
BROADCAST = "ff:ff:ff:ff:ff:ff"
READY = "waiting for clients"


class Gvproxy:
    """Ready when the constructor returns: all that it listens at is there."""

    def __init__(
        self,
        *arguments: str,
        ssh_port: int = -1,
        stdin: int = subprocess.DEVNULL,
        command: Sequence[str] = (GVPROXY,),
        **options: int,
    ) -> None:
        words = [*command, "-ssh-port", str(ssh_port), *arguments]
        self.process = subprocess.Popen(words, stdin=stdin, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
        self.said: list[str] = []
        self.wait_for(READY)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def wait_for(self, text: str) -> None:
        """Until it has said that."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"gvproxy ended with {self.process.wait()}: {''.join(self.said)}")

    def ends(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self.process.stderr is not None
        self.said += self.process.stderr.readlines()
        return int(self.process.wait(PATIENCE))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


class Wire:
    """One end of a link: whole frames, as each kind has them."""

    def __init__(self, send: Callable[[bytes], object], receive: Callable[[], bytes]) -> None:
        self.send = send
        self.receive = receive


def _all(receive: Callable[[int], bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = receive(count - len(data))
        assert part, "the helper has ended the link"
        data += part
    return data


def stream(sock: socket.socket, form: str = "!I") -> Wire:
    """Frames behind their lengths: !I as QEMU's, <H as vpnkit's."""
    sock.settimeout(PATIENCE)
    size = struct.calcsize(form)

    def receive() -> bytes:
        (length,) = struct.unpack(form, _all(sock.recv, size))
        return _all(sock.recv, length)

    return Wire(lambda frame: sock.sendall(struct.pack(form, len(frame)) + frame), receive)


def messages(sock: socket.socket) -> Wire:
    """A frame a message."""
    sock.settimeout(PATIENCE)
    return Wire(sock.send, lambda: sock.recv(1 << 17))


def pipes(source: int, sink: int) -> Wire:
    """Standard output and input of the helper."""

    def receive() -> bytes:
        (length,) = struct.unpack("<H", _all(lambda count: os.read(source, count), 2))
        return _all(lambda count: os.read(source, count), length)

    return Wire(lambda frame: os.write(sink, struct.pack("<H", len(frame)) + frame), receive)


class WireGuest:
    """What a guest's kernel would do, as far as a test needs it."""

    def __init__(self, wire: Wire, mac: str = DEVICE_MAC) -> None:
        self.wire = wire
        self.mac = mac
        self.address = "0.0.0.0"
        self._port = 40000

    def send(self, packet: Packet) -> None:
        self.wire.send(bytes(packet))

    def receives(self, wanted: Callable[[Packet], bool]) -> Packet:
        """The next frame that a test waits for. Whoever looks for this guest is answered meanwhile."""
        while True:
            frame = Ether(self.wire.receive())
            if ARP in frame and frame[ARP].op == 1 and frame[ARP].pdst == self.address and not wanted(frame):
                reply = ARP(op=2, hwsrc=self.mac, psrc=self.address, hwdst=frame[ARP].hwsrc, pdst=frame[ARP].psrc)
                self.send(Ether(src=self.mac, dst=frame.src) / reply)
            elif wanted(frame):
                return frame

    def to_gateway(self, destination: str = GATEWAY) -> Packet:
        return Ether(src=self.mac, dst=GATEWAY_MAC) / IP(src=self.address, dst=destination)

    def asks(self, kind: str, *options: object) -> bytes:
        """By DHCP. Returns the hardware address that the answer is for."""
        chaddr = bytes.fromhex(self.mac.replace(":", ""))
        head = Ether(src=self.mac, dst=BROADCAST) / IP(src="0.0.0.0", dst="255.255.255.255")
        head /= UDP(sport=68, dport=67)
        self.send(head / BOOTP(chaddr=chaddr, xid=7) / DHCP(options=[("message-type", kind), *options, "end"]))
        return chaddr

    def gets_address(self) -> str:
        """By DHCP."""

        def ask(kind: str, *options: object) -> Packet:
            chaddr = self.asks(kind, *options)
            return self.receives(lambda one: DHCP in one and one[BOOTP].op == 2 and one[BOOTP].chaddr[:6] == chaddr)

        offered = ask("discover")[BOOTP].yiaddr
        given: str = ask("request", ("requested_addr", offered), ("server_id", GATEWAY))[BOOTP].yiaddr
        assert given == offered
        self.address = given
        return given

    def finds(self, address: str) -> str:
        """The MAC address that answers for it."""
        self.send(Ether(src=self.mac, dst=BROADCAST) / ARP(op=1, hwsrc=self.mac, psrc=self.address, pdst=address))
        answer = self.receives(lambda frame: ARP in frame and frame[ARP].op == 2 and frame[ARP].psrc == address)
        return str(answer[ARP].hwsrc)

    def resolves(self, name: str) -> str:
        """The IPv4 address that the gateway's name server knows."""
        self._port += 1
        query = DNS(id=self._port & 0xFFFF, rd=1, qd=DNSQR(qname=name))
        self.send(self.to_gateway() / UDP(sport=self._port, dport=53) / query)
        answer = self.receives(lambda frame: UDP in frame and frame[UDP].dport == self._port)
        return str(answer[DNS].an[0].rdata)

    def fetches(self, request: bytes, port: int = 80, destination: str = GATEWAY) -> bytes:
        """What comes back on a TCP connection, until the other side ends it."""
        self._port += 1
        ours, theirs, got = 1000, 0, b""

        def segment(flags: str, data: bytes = b"") -> None:
            head = TCP(sport=self._port, dport=port, seq=ours, ack=theirs, flags=flags, window=60000)
            self.send(self.to_gateway(destination) / head / Raw(data))

        def of_mine(frame: Packet) -> bool:
            return TCP in frame and frame[TCP].dport == self._port

        segment("S")
        answer = self.receives(of_mine)
        assert answer[TCP].flags == "SA", f"{destination}:{port} answers {answer[TCP].flags}"
        ours, theirs = ours + 1, answer[TCP].seq + 1
        segment("A")
        segment("PA", request)
        ours += len(request)
        while True:
            frame = self.receives(of_mine)
            length = frame[IP].len - 4 * frame[IP].ihl - 4 * frame[TCP].dataofs
            if length and frame[TCP].seq == theirs:
                got += bytes(frame[TCP].payload)[:length]
                theirs += length
            if "F" in frame[TCP].flags and frame[TCP].seq + length == theirs:
                theirs += 1
                segment("FA")
                return got
            segment("A")

    def asks_api(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of what the gateway's port 80 says."""
        head = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        reply = self.fetches(head.encode() + body)
        head_text, _, text = reply.partition(b"\r\n\r\n")
        return int(head_text.split()[1]), text
