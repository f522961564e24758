# SPDX-License-Identifier: Apache-2.0
"""Multicast and broadcast on real cables: outwards, with the answers of whoever hears it, and inwards, to a port that
leads to the guest.

Adversary: nobody. Nobody joins a group for the guest: of what others ask a group it hears what the host hears anyway.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from cables import FIRST, FRAME, Cables, network
from monitor import GUEST_MAC, Monitor
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP

PORT, OWN_PORT = 1900, 40404
GROUP = {4: "239.1.2.3", 6: "ff05::1:3"}
ON_LINK = "ff02::1:3"  # means another group on each link
NEIGHBOUR = {4: "10.8.1.2", 6: "fd08:1::2"}

# Whoever has joined the groups on both cables, and tells each that asks its own address and port.
MEMBER = f"""
import socket, struct, sys
def joined(family):
    end = socket.socket(family, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    end.bind(("", int(sys.argv[2])))
    for name in sys.argv[3:]:
        index = socket.if_nametoindex(name)
        if family == socket.AF_INET:
            group = socket.inet_aton("{GROUP[4]}") + bytes(4) + struct.pack("i", index)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        else:
            for text in "{GROUP[6]}", "{ON_LINK}":
                group = socket.inet_pton(family, text) + struct.pack("i", index)
                end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    return end
end = joined(socket.AF_INET if sys.argv[1] == "4" else socket.AF_INET6)
print("ready", flush=True)
while True:
    _, source = end.recvfrom(100)
    end.sendto(" ".join(map(str, source[:2])).encode(), source)
"""

# Asks a group or broadcast address by the first cable, and prints what is answered and by whom.
ASKER = f"""
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
end = socket.socket(family, socket.SOCK_DGRAM)
end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"far1")
end.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
print("ready", flush=True)
end.sendto(b"who is there?", (sys.argv[1], {PORT}))
data, source = end.recvfrom(100)
print(data.decode(), source[0], source[1], flush=True)
"""


def asks_all(monitor: Monitor, version: int, to: str) -> tuple[str, str]:
    """Who answered, and what the guest's socket on the host was called there."""
    packet = network(version, to)
    monitor.send(bytes(FRAME / packet / UDP(sport=OWN_PORT, dport=PORT) / b"who is there?"))
    answer = monitor.receives(UDP)
    assert (answer[UDP].sport, answer[UDP].dport) == (PORT, OWN_PORT)
    assert answer.dst == GUEST_MAC and answer[type(packet)].dst == packet.src
    return answer[type(packet)].src, bytes(answer[UDP].payload.load).decode()


@pytest.mark.parametrize(
    ("version", "to"),
    [(4, GROUP[4]), (6, GROUP[6]), (6, ON_LINK), (4, "10.8.1.255"), (4, "255.255.255.255")],
    ids=["multicast", "multicast-ipv6", "link-local multicast", "broadcast of a network", "limited broadcast"],
)
def test_whoever_hears_the_guest_answers_it(
    cables: Cables, guest: Callable[..., Monitor], version: int, to: str
) -> None:
    """From an address of its own, to the guest's own port on the host."""
    with cables.program(cables.far_prefix, MEMBER, str(version), str(PORT), "far1", "far2"):
        monitor = guest("-i", "cable1")
        who, called = asks_all(monitor, version, to)
        address, port = called.split()
        assert port == str(OWN_PORT)
        assert who == NEIGHBOUR[version] if "::" not in address else who.startswith(("fd08:", "fe80:"))


def test_a_port_that_another_program_has_is_not_shared_with_it(cables: Cables, guest: Callable[..., Monitor]) -> None:
    """Even if that lets others in: it would lose what comes to it. The guest's question leaves by another port."""
    with (
        cables.program(cables.prefix, MEMBER, "4", str(OWN_PORT), "cable1"),
        cables.program(cables.far_prefix, MEMBER, "4", str(PORT), "far1"),
    ):
        _, called = asks_all(guest("-i", "cable1"), 4, GROUP[4])
        assert called.startswith(f"{FIRST} ") and called != f"{FIRST} {OWN_PORT}"


def answers(monitor: Monitor, layer: type[IP | IPv6]) -> str:
    """The guest answers the next datagram under its own address; whom that was for."""
    asked = monitor.receives(UDP)
    ip, udp = asked[layer], asked[UDP]
    version = 4 if layer is IP else 6
    monitor.send(bytes(FRAME / network(version, ip.src) / UDP(sport=udp.dport, dport=udp.sport) / b"I am"))
    return str(ip.dst)


def hears(asker: subprocess.Popen[str]) -> str:
    assert asker.stdout is not None
    return asker.stdout.readline().strip()


@pytest.mark.parametrize("port", [f"{PORT}", f"0.0.0.0/{PORT}"], ids=["both families", "IPv4"])
def test_a_broadcast_to_a_port_of_the_guest_is_answered_from_the_host(
    cables: Cables, guest: Callable[..., Monitor], port: str
) -> None:
    monitor = guest("-i", "cable1", "-u", port)
    monitor.receives(ARP)  # it is there now: what comes before is lost
    with cables.program(cables.far_prefix, ASKER, "10.8.1.255") as asker:
        assert answers(monitor, IP) == FIRST
        assert hears(asker) == f"I am {FIRST} {PORT}"


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_group_of_the_hosts_is_asked_the_guest_hears_as_such(
    cables: Cables, guest: Callable[..., Monitor], version: int
) -> None:
    with cables.program(cables.prefix, MEMBER, str(version), "9", "cable1"):
        monitor = guest("-i", "cable1", "-u", f"{PORT}")
        monitor.receives(ARP)
        with cables.program(cables.far_prefix, ASKER, GROUP[version]) as asker:
            assert answers(monitor, IP if version == 4 else IPv6) == GROUP[version]
            assert hears(asker).startswith("I am ")
