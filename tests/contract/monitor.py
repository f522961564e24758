# SPDX-License-Identifier: Apache-2.0
"""A VM monitor's end of the stream link, byte by byte, and what a guest behind it would send.

Called by the tests in this folder. Adversary: nobody.
"""

from __future__ import annotations

import socket
import struct

from running import PATIENCE
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

GUEST, GATEWAY = "10.77.0.15", "10.77.0.1"
GUEST_MAC = "52:54:00:12:34:56"
IS_AT = 2  # of an ARP reply


class Monitor:
    """A VM monitor's end of the stream."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        end.settimeout(PATIENCE)

    def send(self, frame: bytes) -> None:
        self.socket.sendall(struct.pack("!I", len(frame)) + frame)

    def receive(self) -> bytes:
        (length,) = struct.unpack("!I", self.socket.recv(4, socket.MSG_WAITALL))
        assert 60 <= length <= 65535
        return self.socket.recv(length, socket.MSG_WAITALL)

    def receives(self, layer: type[Packet]) -> Packet:
        """The next frame that has this layer; others, like advertisements, may come between."""
        while True:
            frame = Ether(self.receive())
            if layer in frame:
                return frame

    def hears_the_end(self) -> bool:
        """Of the connection; frames that were on their way are read over."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def resolves_gateway(self) -> str:
        """The MAC address that answers for the gateway: the shortest proof that somebody is there."""
        ask = ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)
        self.send(bytes(Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ask))
        while (answer := self.receives(ARP))[ARP].op != IS_AT:
            told = GUEST, answer[ARP].psrc  # what a new guest is asked by itself; neighbours of this machine
            assert answer[ARP].pdst in told
        assert answer[ARP].psrc == GATEWAY and len(answer) == 60
        return str(answer[ARP].hwsrc)

    def discovers(self, chaddr: bytes = bytes(6), source: str = "169.254.1.1") -> bytes:
        """One DHCPDISCOVER with rapid commit, as muvm's guest sends it; the DHCP message that comes back."""
        bootp = BOOTP(op=1, xid=0x01020304, flags=0x8000, chaddr=chaddr)
        options = DHCP(options=[("message-type", "discover"), (80, b""), "end"])
        message = (bytes(bootp / options)).ljust(300, b"\0")
        head = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src=source, dst="255.255.255.255")
        self.send(bytes(head / UDP(sport=68, dport=67) / message))
        answer = self.receives(UDP)
        assert answer[UDP].dport == 68
        return bytes(answer[UDP].payload)
