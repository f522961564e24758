# SPDX-License-Identifier: Apache-2.0
"""Clients of a port for datagrams that the guest can only be shown as one: it is told them apart, and so are they."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from free_ports import free_ports
from gvproxy_guest import DEVICE, Gvproxy, WireGuest, stream
from running import PATIENCE
from scapy.layers.inet import ICMP, UDP, UDPerror
from scapy.packet import Packet, Raw

SERVICE = 7000  # the guest's
HERE = ("127.0.0.1", "127.0.0.5")


@pytest.fixture(name="ends")
def what_ends_with_the_test() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(name="guest")
def guest_of_a_helper(ends: ExitStack, folder: Path) -> WireGuest:
    helper = Gvproxy("-listen-qemu", f"unix://{folder}/link")
    ends.callback(helper.close)
    sock = ends.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(folder / "link"))
    guest = WireGuest(stream(sock))
    assert guest.gets_address() == DEVICE
    return guest


def exposed(guest: WireGuest) -> int:
    """A port of the host, for datagrams, that leads to the guest's service."""
    port = free_ports(socket.SOCK_DGRAM, 1)[0]
    rule = {"local": f":{port}", "remote": f"{DEVICE}:{SERVICE}", "protocol": "udp"}
    status, text = guest.asks_api("POST", "/services/forwarder/expose", json.dumps(rule).encode())
    assert status == 200, text
    return port


def clients(ends: ExitStack, ports: list[int]) -> list[socket.socket]:
    """One for each port, each at another address of the loopback, and all from the same port."""
    number = free_ports(socket.SOCK_DGRAM, 1)[0]
    found = []
    for address, port in zip(HERE, ports, strict=True):
        client = ends.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.settimeout(PATIENCE)
        client.bind((address, number))
        client.connect(("127.0.0.1", port))
        found.append(client)
    return found


def hears(guest: WireGuest, text: bytes) -> int:
    """The port that this came from, as the guest sees it."""


    def is_it(frame: Packet) -> bool:
        if UDP not in frame or frame[UDP].dport != SERVICE:
            return False
        return bytes(frame[UDP].payload)[: frame[UDP].len - 8] == text  # a short frame is padded

    return int(guest.receives(is_it)[UDP].sport)


def answers(guest: WireGuest, port: int, text: bytes) -> None:
    guest.send(guest.to_gateway() / UDP(sport=SERVICE, dport=port) / Raw(text))


def conversations(guest: WireGuest, ends: ExitStack, ports: list[int]) -> tuple[list[socket.socket], list[int]]:
    """Each client has asked and was answered; by which ports the guest knows them."""
    asking, shown = clients(ends, ports), []
    for number, client in enumerate(asking):
        client.send(b"from %d" % number)
        shown.append(hears(guest, b"from %d" % number))
    for number, port in enumerate(shown):
        answers(guest, port, b"to %d" % number)
    assert [client.recv(99) for client in asking] == [b"to 0", b"to 1"]
    return asking, shown


def test_two_clients_with_one_port_are_answered_each_for_itself(guest: WireGuest, ends: ExitStack) -> None:
    """Cause: whoever had asked last got the answers of both."""
    port = exposed(guest)
    _, shown = conversations(guest, ends, [port, port])
    assert len(set(shown)) == 2


def test_so_are_they_if_they_came_by_two_ports_of_the_host(guest: WireGuest, ends: ExitStack) -> None:
    _, shown = conversations(guest, ends, [exposed(guest), exposed(guest)])
    assert len(set(shown)) == 2


def test_that_a_client_has_gone_is_told_of_that_one(guest: WireGuest, ends: ExitStack) -> None:
    """Cause: the error was taken for the other's, who has the port of both."""
    port = exposed(guest)
    asking, shown = conversations(guest, ends, [port, port])
    asking[1].close()
    answers(guest, shown[1], b"is anybody there?")

    def is_error(frame: Packet) -> bool:
        return ICMP in frame and frame[ICMP].type == 3

    error = guest.receives(is_error)
    assert (error[UDPerror].sport, error[UDPerror].dport) == (SERVICE, shown[1])
