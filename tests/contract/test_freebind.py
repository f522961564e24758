# SPDX-License-Identifier: Apache-2.0
"""--freebind: addresses that the host does not have, or not yet, at ports that lead to the guest and as the way out.

Adversary: nobody. Without the option, test_ways_out.py and tests/unit/test_forwards.py show what is said.
"""

from __future__ import annotations

from collections.abc import Callable

from cables import FIRST, FRAME, PEER, PEER6, Cables, network
from monitor import Monitor
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP

LATER, NEVER, NEVER6 = "10.8.1.77", "192.0.2.55", "fd77::77"
PORT = 4444

CALLER = f"""
import socket
print("ready", flush=True)
socket.create_connection(("{LATER}", {PORT}))
"""

HEARER = f"""
import socket
end = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
end.bind(("{PEER6}", {PORT}))
print("ready", flush=True)
print(*end.recvfrom(100)[1][:2], flush=True)
"""


def test_a_port_waits_for_an_address_that_comes_later(cables: Cables, guest: Callable[..., Monitor]) -> None:
    monitor = guest("--freebind", "-i", "cable1", "-t", f"{LATER}/{PORT}")
    monitor.receives(ARP)
    cables.command(cables.prefix, "ip", "address", "add", f"{LATER}/24", "dev", "cable1")
    with cables.program(cables.far_prefix, CALLER):
        assert monitor.receives(TCP)[IP].dst == FIRST
    cables.command(cables.prefix, "ip", "address", "delete", f"{LATER}/24", "dev", "cable1")


def test_datagrams_leave_from_an_address_that_the_host_has_not(cables: Cables, guest: Callable[..., Monitor]) -> None:
    """The kernel allows that to IPv6."""
    monitor = guest("--freebind", "-i", "cable1", "-o", NEVER6)
    with cables.program(cables.far_prefix, HEARER) as hearer:
        monitor.send(bytes(FRAME / network(6, PEER6) / UDP(sport=5353, dport=PORT) / b"x"))
        assert hearer.stdout is not None and hearer.stdout.readline() == f"{NEVER6} 5353\n"


def test_where_no_route_starts_from_it_the_guest_is_told(guest: Callable[..., Monitor]) -> None:
    """IPv4's routes want one of the host's own."""
    monitor = guest("--freebind", "-i", "cable1", "-o", NEVER)
    monitor.send(bytes(FRAME / network(4, PEER) / UDP(sport=5353, dport=PORT) / b"x"))
    error = monitor.receives(IP)[IP].payload
    assert (error.name, error.type, error.code) == ("ICMP", 3, 0)
