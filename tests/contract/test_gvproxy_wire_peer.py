# SPDX-License-Identifier: Apache-2.0
"""gvproxy's own DHCP, DNS, ARP and framing beside ours: the same frames get the same answers, to the byte where that is
possible; and where ours differ on purpose, both are written down. The peer is that of LOCKGATE_PEER_ROOT.

Adversary: nobody. Neither reaches anybody: both are in a network namespace without a way out.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gvproxy_guest import BROADCAST, DEVICE, DEVICE_MAC, GATEWAY, GVPROXY, HOST, Gvproxy, WireGuest, stream
from running import PATIENCE
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
OTHER_MAC = "52:54:00:00:00:09"
NXDOMAIN, NOERROR, SERVFAIL = 3, 0, 2

Both = tuple[WireGuest, WireGuest]


def joined(ends: ExitStack, path: Path, command: tuple[str, ...]) -> WireGuest:
    helper = Gvproxy("-listen-qemu", f"unix://{path}", command=(*ALONE, *command))
    ends.callback(helper.close)
    sock, deadline = ends.enter_context(socket.socket(socket.AF_UNIX)), time.monotonic() + PATIENCE
    while sock.connect_ex(str(path)):  # the reference says that it waits before it does
        assert time.monotonic() < deadline and helper.process.poll() is None
        os.sched_yield()
    return WireGuest(stream(sock))


@pytest.fixture(scope="module", name="both")
def ours_and_theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    root, words = os.environ.get("LOCKGATE_PEER_ROOT"), shlex.split(os.environ.get("LOCKGATE_PEER_RUN", ""))
    if os.geteuid() or not root or not words or not (Path(root) / "usr/bin/gvproxy").exists():
        pytest.skip("no gvproxy: LOCKGATE_PEER_ROOT and _RUN do not name a root that has it, or we are not root")
    folder = tmp_path_factory.mktemp("gv")
    with ExitStack() as ends:
        ours = joined(ends, folder / "ours", (GVPROXY,))
        theirs = joined(ends, folder / "theirs", (*words, "/usr/bin/gvproxy"))
        yield ours, theirs


# ---- DHCP ----


def message(kind: str, mac: str, *options: object, source: str = "0.0.0.0", to: str = BROADCAST) -> Packet:
    head = Ether(src=mac, dst=to) / IP(src=source, dst="255.255.255.255") / UDP(sport=68, dport=67)
    bootp = BOOTP(chaddr=bytes.fromhex(mac.replace(":", "")), xid=0x12345678, flags=0x8000)
    return head / bootp / DHCP(options=[("message-type", kind), *options, "end"])


def answered(guest: WireGuest, question: Packet) -> bytes:
    """The DHCP message that comes back, as bytes."""
    guest.send(question)
    return bytes(guest.receives(lambda one: DHCP in one and one[BOOTP].op == 2)[UDP].payload)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("discover", ()),
        ("discover", (("param_req_list", [1, 3, 6, 15, 26]), ("requested_addr", "192.168.127.99"))),
        ("request", (("requested_addr", DEVICE), ("server_id", GATEWAY))),
        ("request", (("requested_addr", "192.168.127.99"),)),
    ],
    ids=["discover", "discover with wishes", "request", "request for another"],
)
@pytest.mark.parametrize("mac", [DEVICE_MAC, OTHER_MAC])
def test_messages_of_dhcp_are_the_same_to_the_byte(both: Both, mac: str, kind: str, options: tuple[str, ...]) -> None:
    ours, theirs = (answered(guest, message(kind, mac, *options)) for guest in both)
    assert ours == theirs


# ---- names ----


def resolved(guest: WireGuest, name: str, kind: str) -> tuple[int, list[tuple[str, int, object]]]:
    """Code and records of the answer."""
    guest.address = DEVICE
    query = DNS(id=77, rd=1, qd=DNSQR(qname=name, qtype=kind))
    guest.send(guest.to_gateway() / UDP(sport=41000, dport=53) / query)
    answer = guest.receives(lambda one: UDP in one and one[UDP].dport == 41000)[DNS]
    assert answer.id == 77 and answer.qr == 1 and answer.ra == 1 and answer.rd == 1
    records = [(one.rrname.decode(), one.ttl, one.rdata) for one in answer.an]
    return answer.rcode, records


@pytest.mark.parametrize("zone", ["containers.internal", "docker.internal"])
@pytest.mark.parametrize("name", ["host", "gateway", "nobody", "a.host", "ho*st"])
def test_names_of_the_zones_are_answered_alike(both: Both, name: str, zone: str) -> None:
    ours, theirs = (resolved(guest, f"{name}.{zone}", "A") for guest in both)
    assert ours == theirs


@pytest.mark.parametrize(
    ("why", "name", "kind", "theirs", "ours"),
    [
        ("case does not matter (RFC 4343)", "HOST.Containers.Internal", "A", NXDOMAIN, NOERROR),
        ("what cannot be asked is no answer", "example.org", "A", NXDOMAIN, SERVFAIL),
        ("nor of another type", "example.org", "HTTPS", NXDOMAIN, SERVFAIL),
    ],
)
def test_names_that_are_answered_in_another_way_on_purpose(
    both: Both, why: str, name: str, kind: str, theirs: int, ours: int
) -> None:
    assert (resolved(both[1], name, kind)[0], resolved(both[0], name, kind)[0]) == (theirs, ours), why


# ---- neighbours and echo ----


@pytest.mark.parametrize("target", [GATEWAY, HOST])
def test_the_gateways_addresses_have_its_mac(both: Both, target: str) -> None:
    assert len({guest.finds(target) for guest in both}) == 1


def test_nobody_answers_for_others(both: Both) -> None:
    """Asked before for another, each answers for the gateway alone."""
    for guest in both:
        guest.address = DEVICE
        for target in ("192.168.127.77", GATEWAY):
            ask = ARP(op=1, hwsrc=guest.mac, psrc=guest.address, pdst=target)
            guest.send(Ether(src=guest.mac, dst=BROADCAST) / ask)
        answer = guest.receives(lambda one: ARP in one and one[ARP].op == 2)
        assert answer[ARP].psrc == GATEWAY


def test_the_gateway_answers_echo_requests(both: Both) -> None:
    for guest in both:
        guest.address = DEVICE
        guest.send(guest.to_gateway() / ICMP(type=8, id=9, seq=3) / b"hello")
        answer = guest.receives(lambda one: ICMP in one and one[ICMP].type == 0)
        assert (answer[IP].src, answer[ICMP].id, answer[ICMP].seq) == (GATEWAY, 9, 3)
        assert bytes(answer[ICMP].payload)[:5] == b"hello"
