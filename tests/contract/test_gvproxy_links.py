# SPDX-License-Identifier: Apache-2.0
"""Every kind of link that a guest of gvproxy may come by: each gets an address, names, and the gateway's services."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gvproxy_guest import (
    DEVICE,
    DEVICE_MAC,
    GATEWAY,
    GATEWAY_MAC,
    HOST,
    Gvproxy,
    WireGuest,
    messages,
    pipes,
    stream,
)
from running import PATIENCE
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

UUID = b"c3d68012-0208-11ea-9fd7-f2189899ab08"
OTHER_MAC = "52:54:00:00:00:07"
MTU = 1500


@pytest.fixture(name="ends")
def what_ends_with_the_test() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin(ends: ExitStack, *arguments: str, **options: Any) -> Gvproxy:
    helper = Gvproxy(*arguments, **options)
    ends.callback(helper.close)
    return helper


def connect(ends: ExitStack, path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = ends.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def qemu(ends: ExitStack, folder: Path) -> WireGuest:
    begin(ends, "-listen-qemu", f"unix://{folder}/link")
    return WireGuest(stream(connect(ends, folder / "link")))


def bess(ends: ExitStack, folder: Path) -> WireGuest:
    begin(ends, "-listen-bess", f"unixpacket://{folder}/link")
    return WireGuest(messages(connect(ends, folder / "link", socket.SOCK_SEQPACKET)))


def vfkit(ends: ExitStack, folder: Path, greeting: bytes = b"") -> WireGuest:
    begin(ends, "-listen-vfkit", f"unixgram://{folder}/link")
    sock = ends.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(str(folder / "guest"))
    sock.connect(str(folder / "link"))
    if greeting:
        sock.send(greeting)
    return WireGuest(messages(sock))


def krunkit(ends: ExitStack, folder: Path) -> WireGuest:
    return vfkit(ends, folder, b"VFKT")


def vpnkit(ends: ExitStack, folder: Path) -> WireGuest:
    begin(ends, "-listen-vpnkit", f"unix://{folder}/link")
    sock = connect(ends, folder / "link")
    greeting = b"VMN3T" + bytes(44)
    sock.sendall(greeting)
    assert sock.recv(49, socket.MSG_WAITALL) == greeting
    sock.sendall(b"\1" + UUID + bytes(4))
    told = sock.recv(258, socket.MSG_WAITALL)
    assert told[:5] == b"\1" + struct.pack("<HH", MTU, MTU + 14) and told[5:11].hex(":") == DEVICE_MAC
    return WireGuest(stream(sock, "<H"))


def stdio(ends: ExitStack, folder: Path) -> WireGuest:
    helper = begin(ends, "-listen-stdio", "accept", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert helper.process.stdin is not None and helper.process.stdout is not None
    return WireGuest(pipes(helper.process.stdout.fileno(), helper.process.stdin.fileno()))


def hijacked(ends: ExitStack, path: Path, behind: bytes = b"") -> socket.socket:
    """By /connect of the API; nothing comes back."""
    sock = connect(ends, path)
    sock.sendall(b"POST /connect HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
    return sock


def gvforwarder(ends: ExitStack, folder: Path) -> WireGuest:
    begin(ends, "-listen", f"unix://{folder}/api")
    return WireGuest(stream(hijacked(ends, folder / "api"), "<H"))


LINKS = {made.__name__: made for made in (qemu, bess, vfkit, krunkit, vpnkit, stdio, gvforwarder)}


@pytest.fixture(name="guest", params=LINKS)
def guest_of_each_link(request: pytest.FixtureRequest, ends: ExitStack, folder: Path) -> WireGuest:
    guest = LINKS[request.param](ends, folder)
    guest.gets_address()
    return guest


def test_the_guest_gets_the_address_that_is_kept_for_it(guest: WireGuest) -> None:
    assert guest.address == DEVICE


def test_it_finds_the_gateway_and_the_host(guest: WireGuest) -> None:
    assert (guest.finds(GATEWAY), guest.finds(HOST)) == (GATEWAY_MAC, GATEWAY_MAC)


def test_it_resolves_the_names_of_the_network(guest: WireGuest) -> None:
    assert guest.resolves("host.containers.internal") == HOST
    assert guest.resolves("gateway.docker.internal") == GATEWAY


def test_it_resolves_them_by_tcp_too(guest: WireGuest) -> None:
    """Two queries at once; what is too long for one behind them ends the connection."""
    queries = [bytes(DNS(id=number, rd=1, qd=DNSQR(qname="host.docker.internal"))) for number in (1, 2)]
    reply = guest.fetches(b"".join(len(one).to_bytes(2) + one for one in queries) + b"\xff\xff", port=53)
    for number in (1, 2):
        length = int.from_bytes(reply[:2])
        answer, reply = DNS(reply[2 : 2 + length]), reply[2 + length :]
        assert (answer.id, answer.an[0].rdata) == (number, HOST)
    assert reply == b""


def test_it_speaks_with_the_api_of_the_gateway(guest: WireGuest) -> None:
    assert guest.asks_api("GET", "/services/forwarder/all") == (200, b"[]\n")
    assert guest.asks_api("GET", "/leases")[0] == 404


def test_it_reaches_the_hosts_loopback(guest: WireGuest, ends: ExitStack) -> None:
    listener = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
    pid = os.fork()
    if not pid:
        client, _ = listener.accept()
        client.sendall(client.recv(64).upper())
        os._exit(0)
    assert guest.fetches(b"hello", listener.getsockname()[1], HOST) == b"HELLO"
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("noise", [b"", b"x", b"\xff" * 13, bytes(14), b"\xff" * 60])
def test_what_is_no_frame_hurts_nothing(guest: WireGuest, noise: bytes) -> None:
    """gvproxy's own receive loop is wedged by an empty one."""
    for _ in range(3):
        if noise or guest.wire.send.__name__ == "<lambda>":
            guest.wire.send(noise)
    assert guest.resolves("host.containers.internal") == HOST


def test_a_super_segment_with_an_unfinished_checksum_arrives(guest: WireGuest, ends: ExitStack) -> None:
    """libkrun sends such and cuts off the header that would say so."""
    sink = ends.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sink.bind(("127.0.0.1", 0))
    sink.settimeout(PATIENCE)
    datagram = guest.to_gateway(HOST) / UDP(sport=5000, dport=sink.getsockname()[1], chksum=1) / Raw(b"z" * 9000)
    guest.send(datagram)
    assert sink.recv(1 << 16) == b"z" * 9000


# ---- several guests ----


def two(ends: ExitStack, folder: Path) -> tuple[WireGuest, WireGuest]:
    begin(ends, "-listen-qemu", f"unix://{folder}/link", "-listen", f"unix://{folder}/api")
    first = WireGuest(stream(connect(ends, folder / "link")))
    second = WireGuest(stream(hijacked(ends, folder / "api")), OTHER_MAC)
    return first, second


def test_what_gets_no_answer_is_told_under_debug(ends: ExitStack, folder: Path) -> None:
    """With the reason; here, DHCPINFORM, and an answer in place of a query."""
    helper = begin(ends, "-debug", "-listen-qemu", f"unix://{folder}/link")
    link = connect(ends, folder / "link")
    guest = WireGuest(stream(link))
    guest.gets_address()
    inform = UDP(sport=68, dport=67) / BOOTP(chaddr=bytes.fromhex("5a94efe40cee"))
    guest.send(guest.to_gateway() / inform / DHCP(options=[("message-type", "inform"), "end"]))
    guest.send(guest.to_gateway() / UDP(sport=53, dport=53) / DNS(qr=1))
    assert guest.resolves("host.containers.internal") == HOST
    link.close()
    helper.ends()
    reasons = [line.rpartition("event=frame.ignored reason=")[2] for line in helper.said if "frame.ignored" in line]
    assert reasons == ['inform"\n', 'not_a_request"\n']


def test_two_guests_get_addresses_of_their_own_and_reach_each_other(ends: ExitStack, folder: Path) -> None:
    first, second = two(ends, folder)
    assert first.gets_address() == DEVICE and second.gets_address() == "192.168.127.3"
    question = Ether(src=first.mac, dst=second.mac) / IP(src=DEVICE, dst=second.address) / UDP(sport=1, dport=9) / b"hi"
    first.send(question)
    assert bytes(second.receives(lambda frame: UDP in frame and frame[UDP].dport == 9)[UDP].payload)[:2] == b"hi"
    assert second.resolves("host.containers.internal") == HOST


def test_the_api_knows_who_is_behind_which_connection(ends: ExitStack, folder: Path) -> None:
    first, second = two(ends, folder)
    first.gets_address()
    second.gets_address()
    api = connect(ends, folder / "api")
    api.sendall(b"GET /cam HTTP/1.0\r\n\r\n")
    reply = b""
    while part := api.recv(1 << 16):
        reply += part
    cam = json.loads(reply.partition(b"\r\n\r\n")[2])
    assert set(cam) == {DEVICE_MAC, OTHER_MAC} and len(set(cam.values())) == 2


def test_a_guest_that_joined_may_leave_and_nothing_else_ends(ends: ExitStack, folder: Path) -> None:
    first, _ = two(ends, folder)
    assert first.gets_address() == DEVICE
    joined = hijacked(ends, folder / "api")
    second = WireGuest(stream(joined), "52:54:00:00:00:08")
    assert second.gets_address()
    joined.close()
    assert first.resolves("host.containers.internal") == HOST


def test_frames_that_come_with_the_request_are_not_lost(ends: ExitStack, folder: Path) -> None:
    """Upstream's buffered reader may keep them."""
    begin(ends, "-listen", f"unix://{folder}/api")
    sent: list[bytes] = []
    probe = WireGuest(stream(ends.enter_context(socket.socketpair()[0]), "<H"))
    probe.wire.send = sent.append
    probe.send(Ether(src=DEVICE_MAC, dst="ff:ff:ff:ff:ff:ff") / arp_for(GATEWAY))
    behind = struct.pack("<H", len(sent[0])) + sent[0]
    guest = WireGuest(stream(hijacked(ends, folder / "api", behind), "<H"))
    answer = guest.receives(lambda frame: frame.type == 0x0806)
    assert answer.src == GATEWAY_MAC
    assert guest.gets_address() == DEVICE


def test_a_first_sender_that_has_gone_is_passed_over(ends: ExitStack, folder: Path) -> None:
    """One that nothing can be sent to is no guest; the next one may be."""
    helper = begin(ends, "-listen-vfkit", f"unixgram://{folder}/link")
    for name in ("gone", "gone as well"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(folder / name))
            sock.sendto(b"VFKT", str(folder / "link"))
    (folder / "gone").unlink()
    sock = ends.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    sock.bind(str(folder / "guest"))
    sock.connect(str(folder / "link"))
    assert WireGuest(messages(sock)).gets_address() == DEVICE
    assert helper.process.poll() is None


def arp_for(target: str) -> Raw:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes.fromhex(DEVICE_MAC.replace(":", ""))
    return Raw(body + socket.inet_aton(DEVICE) + bytes(6) + socket.inet_aton(target))


