# SPDX-License-Identifier: Apache-2.0
"""A resolver on this machine's loopback, over UDP and TCP, and the helper's `resolv.conf` that names it.

Called by the tests. Adversary: nobody.
Invariants: it knows one name; a question about any other is answered with NXDOMAIN. Its address is one of 127/8 that no
distribution's own resolver uses, and port 53 needs root, or the sysctl that gives it to everybody.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from pathlib import Path

from scapy.layers.dns import DNS, DNSRR

ADDRESS, PORT = "127.0.0.77", 53
NAME, ANSWER, ANSWER6 = "lockgate.test", "192.0.2.53", "2001:db8::53"
NXDOMAIN = 3
RECORDS = {1: ("A", ANSWER), 28: ("AAAA", ANSWER6)}

# Before a command: the file $1 in the place of the resolv.conf that the helper reads, in a mount namespace of its own.
WITH_RESOLV_CONF = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']


def resolv_conf(folder: Path) -> Path:
    """A file that names this resolver and no other."""
    path = folder / "resolv.conf"
    path.write_text(f"nameserver {ADDRESS}\n")
    path.chmod(0o644)
    return path


def answer(question: bytes) -> bytes:
    """The reply to one message."""
    asked = DNS(question)
    name = asked.qd[0].qname
    reply = DNS(id=asked.id, qr=1, aa=1, rd=asked.rd, ra=1, qd=asked.qd, an=[])
    if name.decode().rstrip(".") != NAME:
        reply.rcode = NXDOMAIN
    elif asked.qd[0].qtype in RECORDS:
        kind, data = RECORDS[asked.qd[0].qtype]
        reply.an = [DNSRR(rrname=name, type=kind, ttl=60, rdata=data)]
    return bytes(reply)


class Resolver:
    """The server; `asked` counts by protocol what it answered."""

    def __init__(self) -> None:
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listener = socket.socket(socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._datagrams.bind((ADDRESS, PORT))
            self._listener.bind((ADDRESS, PORT))
        except OSError:
            self._datagrams.close()
            self._listener.close()
            raise
        self._listener.listen()
        self._stop, self._stopped = socket.socketpair()
        self.asked = {"udp": 0, "tcp": 0}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        ends = [self._datagrams, self._listener, self._stopped]
        while self._stopped not in (ready := select.select(ends, [], [])[0]):
            if self._datagrams in ready:
                question, source = self._datagrams.recvfrom(4096)
                self.asked["udp"] += 1
                self._datagrams.sendto(answer(question), source)
            if self._listener in ready:
                self._over_tcp()

    def _over_tcp(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            (length,) = struct.unpack("!H", stream.read(2))
            reply = answer(stream.read(length))
            self.asked["tcp"] += 1
            connection.sendall(struct.pack("!H", len(reply)) + reply)

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        for end in (self._stopped, self._datagrams, self._listener):
            end.close()
