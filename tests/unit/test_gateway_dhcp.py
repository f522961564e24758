# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/dhcp_server.py and address_pool.py, with scapy as the clients; messages are compared to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from lockgate.plugin import address
from lockgate.plugin.gateway import address_pool
from lockgate.plugin.gateway.address_pool import AddressPool
from lockgate.plugin.gateway.dhcp_server import DhcpServer
from lockgate.plugin.gateway.virtual_network import DEVICE_MAC, GATEWAY_MAC, VirtualNetwork
from lockgate.plugin.services.frame import Answer, Ignored

GATEWAY, DEVICE, HOST = "192.168.127.1", "192.168.127.2", "192.168.127.254"
OTHER_MAC = "02:00:00:00:00:01"


def network(prefix_length: int = 24) -> VirtualNetwork:
    """With the one fixed lease of a command line without options."""
    made = VirtualNetwork()
    made.prefix_length = prefix_length
    made.device_leases = {made.device: DEVICE_MAC}
    made.virtual_addresses = (made.host,)
    return made


def server(search: tuple[str, ...] = (), made: VirtualNetwork | None = None, mtu: int = 1500) -> DhcpServer:
    made = made or network()
    return DhcpServer(made, AddressPool(made), mtu, search)


def request(kind: str | int, *options: Any, mac: str = DEVICE_MAC.hex(":"), **fields: Any) -> bytes:
    """A frame as a client sends it."""
    ip = {"src": "0.0.0.0", "dst": "255.255.255.255"} | {k: fields.pop(k) for k in ("src", "dst") if k in fields}
    ports = {"sport": 68, "dport": 67} | {k: fields.pop(k) for k in ("sport", "dport") if k in fields}
    bootp = {"op": 1, "htype": 1, "hlen": 6, "xid": 0x01020304, "chaddr": bytes.fromhex(mac.replace(":", "")), **fields}
    layers = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / IP(**ip) / UDP(**ports) / BOOTP(**bootp)
    return bytes(layers / DHCP(options=[("message-type", kind), *options, "end"]))


def answered(by: DhcpServer, frame: bytes) -> tuple[Answer, Any]:
    """The answer, and its frame as scapy reads it; all lengths and checksums are right."""
    answer = by.answer(frame)
    assert isinstance(answer, Answer), answer
    reply = Ether(answer.frame)
    again = reply.copy()
    del again[IP].chksum, again[IP].len, again[UDP].chksum, again[UDP].len
    assert bytes(again) == answer.frame
    return answer, reply


def given_to(by: DhcpServer, mac: str) -> str:
    return str(answered(by, request("discover", mac=mac))[1][BOOTP].yiaddr)


def expected(kind: int, yours: str, search: bytes = b"", **fields: bytes) -> bytes:
    """The message of the contract, in which options have ascending codes, and zeros fill it up to 300 bytes."""

    def raw(text: str) -> bytes:
        return bytes(int(part) for part in text.split("."))

    gateway = raw(GATEWAY)
    message = b"\2\1\6\0" + bytes((1, 2, 3, 4)) + b"\0\0" + fields.get("flags", b"\0\0") + bytes(4) + raw(yours)
    message += bytes(4) + fields.get("relay", bytes(4)) + DEVICE_MAC + bytes(10) + bytes(64 + 128)
    message += b"\x63\x82\x53\x63" + b"\1\4\xff\xff\xff\0" + b"\3\4" + gateway + b"\6\4" + gateway + b"\x1a\2\5\xdc"
    message += b"\x33\4\0\0\x0e\x10" + bytes((53, 1, kind)) + b"\x36\4" + gateway
    message += bytes((119, len(search))) + search + b"\xff"
    return message.ljust(300, b"\0")


@pytest.mark.parametrize(
    ("kind", "reply", "event"), [("discover", 2, "dhcp.offer"), ("request", 5, "dhcp.ack")]
)
def test_a_guest_gets_the_message_of_the_contract(kind: str, reply: int, event: str) -> None:
    """To the byte, and to everybody, since it has no address yet."""
    answer, frame = answered(server(), request(kind))
    assert bytes(frame[UDP].payload) == expected(reply, DEVICE)
    assert (frame.src, frame.dst) == (GATEWAY_MAC.hex(":"), "ff:ff:ff:ff:ff:ff")
    assert (frame[IP].src, frame[IP].dst, frame[UDP].sport, frame[UDP].dport) == (GATEWAY, "255.255.255.255", 67, 68)
    assert (answer.event, answer.fields) == (event, {"mac": DEVICE_MAC.hex(":"), "address": DEVICE})


def test_options_are_the_same_whatever_was_asked_for() -> None:
    """Neither a parameter list, nor a name, nor rapid commit counts."""
    frame = request("discover", ("param_req_list", [6, 1, 42]), ("hostname", b"name"), (80, b""))
    assert bytes(answered(server(), frame)[1][UDP].payload) == expected(2, DEVICE)


def test_what_a_client_and_a_relay_say_of_themselves_comes_back() -> None:
    """Option 61 in its place (RFC 6842), option 82 behind all others (RFC 3046 §2.2)."""
    frame = request("request", (82, b"\1\3abc"), ("client_id", b"\1abc"))
    message = bytes(answered(server(), frame)[1][UDP].payload)
    plain = expected(5, DEVICE).rstrip(b"\0")
    assert plain.endswith(b"\x77\0\xff")
    assert message.rstrip(b"\0") == plain[:-3] + b"\x3d\4\1abc\x77\0\x52\5\1\3abc\xff"


def test_flags_and_a_relays_address_come_back() -> None:
    """And nothing else of the request."""
    frame = request("request", flags=0x8000, giaddr="192.168.127.9", secs=7, hops=1, ciaddr=DEVICE, sname=b"x")
    message = bytes(answered(server(), frame)[1][UDP].payload)
    assert message == expected(5, DEVICE, flags=b"\x80\0", relay=bytes((192, 168, 127, 9)))


def test_search_domains_are_not_compressed() -> None:
    """Option 119, with as many whole names as fit into it."""
    message = bytes(answered(server(("a.example", "b.example.")), request("discover"))[1][UDP].payload)
    assert message == expected(2, DEVICE, b"\1a\7example\0\1b\7example\0")
    long = tuple(f"{letter * 60}.example" for letter in "abcdef")
    message = bytes(answered(server(long), request("discover"))[1][UDP].payload)
    names = b"".join(b"\x3c" + letter * 60 + b"\7example\0" for letter in (b"a", b"b", b"c"))
    assert message == expected(2, DEVICE, names) and 300 < len(message) <= 548


def test_a_renewal_is_answered_to_the_guest_alone() -> None:
    """To the address and port that it comes from."""
    _, frame = answered(server(), request("request", src=DEVICE, dst=GATEWAY, ciaddr=DEVICE, sport=1068))
    assert (frame.dst, frame[IP].dst, frame[UDP].dport) == (DEVICE_MAC.hex(":"), DEVICE, 1068)


@pytest.mark.parametrize("options", [(("requested_addr", "10.0.0.9"),), (("server_id", "192.168.127.9"),), ()])
def test_a_request_is_confirmed_with_our_choice(options: tuple[Any, ...]) -> None:
    """Never refused, whatever it asks for and of whom."""
    answer, frame = answered(server(), request("request", *options))
    assert (answer.event, frame[BOOTP].yiaddr) == ("dhcp.ack", DEVICE)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (request("release"), Ignored.RELEASED),
        (request("decline"), Ignored.DECLINED),
        (request("inform"), Ignored.INFORM),
        (request("offer"), Ignored.NOT_A_REQUEST),
        (request(0), Ignored.NOT_A_REQUEST),
        (request("discover", op=2), Ignored.NOT_A_REQUEST),
        (request("discover", dst=HOST), Ignored.NOT_OURS),
        (request("discover", dport=68), Ignored.NOT_OURS),
        (request("discover", src="224.0.0.1"), Ignored.NO_SOURCE),
        (request("discover", src="255.255.255.255"), Ignored.NO_SOURCE),
        (request("discover", sport=0), Ignored.NO_SOURCE),
        (request("discover")[:100], Ignored.TRUNCATED),
        (bytes(Ether() / IP() / UDP(sport=68, dport=67) / BOOTP(op=1)), Ignored.NOT_OURS),
        (bytes(Ether() / IP(dst=GATEWAY) / UDP(sport=68, dport=67) / BOOTP(op=1)), Ignored.NOT_A_REQUEST),
        (b"", Ignored.TRUNCATED),
    ],
)
def test_a_frame_without_an_answer_has_a_named_reason(frame: bytes, reason: Ignored) -> None:
    """And takes no address from the pool."""
    made = network()
    pool = AddressPool(made)
    before = pool.leases()
    assert DhcpServer(made, pool, 1500, ()).answer(frame) is reason
    assert pool.leases() == before


def test_each_guest_keeps_its_address() -> None:
    """The lowest that is free; that of the first guest is kept for it, whoever comes before."""
    by = server()
    assert [given_to(by, f"02:00:00:00:00:{number:02x}") for number in (1, 2, 1, 3)] == [
        f"192.168.127.{last}" for last in (3, 4, 3, 5)
    ]
    assert given_to(by, DEVICE_MAC.hex(":")) == DEVICE


def test_a_guest_is_known_by_the_address_in_its_message() -> None:
    """Not by who forwarded it; one that names none, by the frame's."""
    by = server()
    assert answered(by, request("discover", mac=OTHER_MAC, chaddr=DEVICE_MAC))[1][BOOTP].yiaddr == DEVICE
    assert answered(by, request("discover", mac=OTHER_MAC, chaddr=bytes(6)))[1][BOOTP].yiaddr == "192.168.127.3"
    assert answered(by, request("discover", mac=OTHER_MAC, hlen=0))[1][BOOTP].yiaddr == "192.168.127.3"


def test_the_pool_has_all_addresses_but_those_that_are_somebodys() -> None:
    """Not the gateway's, the host's, the broadcast address or the subnet's own; then there is none, and no answer."""
    made = network()
    pool = AddressPool(made)
    by = DhcpServer(made, pool, 1500, ())
    found = [given_to(by, f"02:00:00:00:00:{number:02x}") for number in range(251)]
    assert found == [f"192.168.127.{last}" for last in range(3, 254)]
    assert by.answer(request("discover", mac="02:00:00:00:01:00")) is Ignored.EXHAUSTED
    assert by.answer(request("request", mac="02:00:00:00:01:00")) is Ignored.EXHAUSTED
    assert given_to(by, "02:00:00:00:00:00") == "192.168.127.3"
    assert len(pool.leases()) == 253


def test_a_guest_that_invents_macs_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large subnet has no more leases than one can have guests."""
    monkeypatch.setattr(address_pool, "LEASES_MAX", 5)
    pool = AddressPool(network(16))
    assert [pool.assign(bytes((2, 0, 0, 0, 0, number))) is not None for number in range(6)] == [True] * 5 + [False]


def test_leases_are_listed_with_those_that_are_fixed() -> None:
    """The gateway's own among them."""
    made = network()
    made.device_leases[address.IPV4_MAPPED + bytes((192, 168, 127, 20))] = bytes.fromhex("020000000014")
    pool = AddressPool(made)
    pool.assign(bytes.fromhex("020000000001"))
    listed = {address.to_text(one): mac.hex(":") for one, mac in pool.leases().items()}
    assert listed == {
        "192.168.127.1": "5a:94:ef:e4:0c:dd",
        "192.168.127.2": "5a:94:ef:e4:0c:ee",
        "192.168.127.20": "02:00:00:00:00:14",
        "192.168.127.3": "02:00:00:00:00:01",
    }


def test_the_mtu_and_mask_are_those_of_the_network() -> None:
    """Options 26 and 1."""
    reply = answered(server(made=network(16), mtu=4000), request("discover"))[1]
    decoded: dict[str, Any] = dict(option[:2] for option in reply[DHCP].options if isinstance(option, tuple))
    assert (decoded["subnet_mask"], decoded["interface-mtu"], decoded["lease_time"]) == ("255.255.0.0", 4000, 3600)


@given(st.binary(max_size=400), st.binary(max_size=100))
def test_no_bytes_are_worse_than_a_frame_that_is_passed_over(data: bytes, options: bytes) -> None:
    """Anything, anything for the server's port, and anything for options."""
    by = server()
    ports = Ether() / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    body = bytes(Ether(request("discover"))[UDP].payload)[:240]
    for frame in (data, bytes(ports / data), bytes(ports / (body + options))):
        answer = by.answer(frame)
        assert isinstance(answer, Ignored) or 300 <= len(answer.frame) - 42 <= 548
