# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/http/api.py: each path, for each of the three views, over real connections to a made-up network."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from host_samples import ip
from http_talk import GUEST, Client, Reply, Scene
from http_talk import play as play_http
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin import stats
from lockgate.plugin.address import UNSET
from lockgate.plugin.gateway.forward_words import ExposeError
from lockgate.plugin.gateway.http import api as api_module
from lockgate.plugin.gateway.http import gateway_stats
from lockgate.plugin.gateway.http.api import ALL, SERVICES, Api
from lockgate.plugin.gateway.http.api import GUEST as GUEST_VIEW
from lockgate.plugin.gateway.virtual_network import BESS, QEMU, PortForward, Record, VirtualNetwork, Zone

EXPOSE, UNEXPOSE, LIST = (f"/services/forwarder/{word}" for word in ("expose", "unexpose", "all"))
ADD_ZONE = "/services/dns/add"
READ = [LIST, "/services/dhcp/leases", "/leases", "/services/dns/all", "/stats", "/cam"]
HOST_ALONE = [path for path in READ if path != LIST] + [ADD_ZONE, "/tunnel", "/connect"]


class Network:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.entries: list[PortForward] = []
        self.asked: list[tuple[str, ...]] = []
        self.refusal: ExposeError | None = None
        records = Record("gateway", ip("192.168.127.1")), Record("", ip("1.2.3.4"), "a.*")
        self.known = [Zone("containers.internal.", records)]
        self.far: socket.socket | None = None
        self.dialled: list[tuple[bytes, int]] = []
        self.links: list[tuple[bytes, str]] = []

    def exposed(self) -> Iterable[PortForward]:
        return self.entries

    async def expose(self, protocol: str, local: str, remote: str) -> None:
        self._ask("expose", protocol, local, remote)

    async def unexpose(self, protocol: str, local: str) -> None:
        self._ask("unexpose", protocol, local)

    def _ask(self, *words: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(words)

    def leases(self) -> Mapping[bytes, bytes]:
        gateway, device = bytes.fromhex("5a94efe40cdd"), bytes.fromhex("5a94efe40cee")
        return {ip("192.168.127.2"): device, ip("192.168.127.1"): gateway, ip("192.168.127.10"): device}

    def zones(self) -> Sequence[Zone]:
        return self.known

    def add_zone(self, zone: Zone) -> None:
        if zone.name == "full.":
            raise ValueError("there are too many zones")
        self.known.append(zone)

    def counters(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(stats.NAMES)}

    def cam(self) -> Mapping[bytes, int]:
        return {bytes.fromhex("5a94efe40cee"): 2, bytes.fromhex("5a94efe40cdd"): 0}

    async def dial(self, address: bytes, port: int) -> socket.socket:
        self.dialled.append((address, port))
        if port == 1:
            raise ConnectionRefusedError(111, "Connection refused")
        self.far, other = socket.socketpair()
        self.far.setblocking(False)
        return other

    async def take_link(self, link: socket.socket, behind: bytes, lengths: str) -> None:
        with link:
            while data := await asyncio.get_running_loop().sock_recv(link, 4096):
                behind += data
        self.links.append((behind, lengths))


Part = Callable[[Client, Network], Awaitable[None]]


def play(part: Part, view: str = ALL, requester: str = "", spec: VirtualNetwork | None = None) -> Network:
    network = Network()

    async def with_client(scene: Scene) -> None:
        await part(scene.client(requester), network)
        if network.far is not None:
            network.far.close()

    play_http(with_client, Api(network, spec or VirtualNetwork(), view).respond)
    return network


def ask(
    method: str, target: str, body: bytes | object = b"", view: str = ALL, requester: str = ""
) -> tuple[Reply, Network]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    replies: list[Reply] = []

    async def part(client: Client, network: Network) -> None:
        replies.append(await client.ask(method, target, data))

    network = play(part, view, requester)
    return replies[0], network


# ---- who may ask for what ----


@pytest.mark.parametrize("remote", ["192.168.127.77:80", "192.168.127.254:80", "192.168.127.1:80", "8.8.8.8:53"])
def test_a_guest_exposes_no_ports_but_its_own(remote: str) -> None:
    reply, network = ask("POST", EXPOSE, {"local": ":9", "remote": remote}, GUEST_VIEW, GUEST)
    assert (reply.status, network.entries) == (400, [])
    assert reply.text == f"a guest may expose ports of its own, {GUEST}, and no others\n"


@pytest.mark.parametrize("remote, status", [(f"{GUEST}:22", 200), ("192.168.127.77:22", 500)])
def test_a_guest_takes_back_what_leads_to_it_and_nothing_else(remote: str, status: int) -> None:
    async def part(client: Client, network: Network) -> None:
        network.entries = [PortForward("tcp", ":9", remote)]
        reply = await client.ask("POST", UNEXPOSE, json.dumps({"local": ":9", "protocol": "tcp"}).encode())
        assert reply.status == status and (status == 200 or reply.text == "proxy not found\n")

    play(part, GUEST_VIEW, GUEST)


def test_every_view_has_its_paths_and_no_others() -> None:
    async def part(client: Client, network: Network) -> None:
        for path in [LIST, EXPOSE, UNEXPOSE]:
            assert (await client.ask("GET", path)).status != 404
        for path in HOST_ALONE:
            reply = await client.ask("POST", path)
            assert (reply.status, reply.text) == (404, "404 page not found\n")
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
            assert reply.headers["x-content-type-options"] == "nosniff"

    play(part, GUEST_VIEW, GUEST)

    async def host_part(client: Client, network: Network) -> None:
        for path in [*READ, EXPOSE, UNEXPOSE, ADD_ZONE, "/tunnel"]:
            assert (await client.ask("GET", path)).status != 404
        for path in ["/", f"{LIST}/", "/connect/", "/debug/pprof/", "/connect" if view == SERVICES else "/x"]:
            assert (await client.ask("GET", path)).status == 404

    for view in (ALL, SERVICES):
        play(host_part, view)


def test_a_guest_cannot_have_files_made_or_removed() -> None:
    """Nor does it hear of those that there are. Unless the host's user wants it as gvproxy has it."""
    spec = VirtualNetwork()
    for allowed in (False, True):
        spec.guest_may_expose_files = allowed

        async def part(client: Client, network: Network, allowed: bool = allowed) -> None:
            remote = f"tcp://{GUEST}:1"
            network.entries = [PortForward("unix", "/h", remote), PortForward("tcp", ":1", "1.2.3.4:1")]
            wish = json.dumps({"protocol": "unix", "local": "/home/u/.ssh/x", "remote": remote}).encode()
            for path in (EXPOSE, UNEXPOSE):
                reply = await client.ask("POST", path, wish)
                assert reply.status == (200 if allowed else 500)
                assert allowed or reply.text.startswith("a guest may expose ports (tcp, udp), and no files of the host")
            listed = json.loads((await client.ask("GET", LIST)).body)
            assert [one["protocol"] for one in listed] == (["unix", "tcp"] if allowed else ["tcp"])

        network = play(part, GUEST_VIEW, GUEST, spec)
        assert len(network.asked) == (2 if allowed else 0)


# ---- ports ----


def test_ports_are_listed_by_their_local_text() -> None:
    async def part(client: Client, network: Network) -> None:
        assert (await client.ask("GET", LIST)).body == b"[]\n"
        network.entries = [
            PortForward("udp", ":80", "192.168.127.2:81"),
            PortForward("unix", "/x", "tcp://1.2.3.4:5?a=<&>"),
            PortForward("tcp", ":80", "192.168.127.2:82"),
            PortForward("tcp", "127.0.0.1:2222", "192.168.127.2:22"),
        ]
        for method in ("GET", "POST", "DELETE"):
            reply = await client.ask(method, LIST)
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
            assert reply.body == (
                b'[{"local":"/x","remote":"tcp://1.2.3.4:5?a=\\u003c\\u0026\\u003e","protocol":"unix"},'
                b'{"local":"127.0.0.1:2222","remote":"192.168.127.2:22","protocol":"tcp"},'
                b'{"local":":80","remote":"192.168.127.2:82","protocol":"tcp"},'
                b'{"local":":80","remote":"192.168.127.2:81","protocol":"udp"}]\n'
            )

    play(part)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"local":":80","remote":"192.168.127.2:81"}', ("tcp", ":80", "192.168.127.2:81")),
        (b'{"Local":":80","REMOTE":"192.168.127.2:81","protocol":"udp","x":1}', ("udp", ":80", "192.168.127.2:81")),
        (b'{"local":":80","local":":8","remote":":81","protocol":null} and more', ("tcp", ":8", f"{GUEST}:81")),
        (b'\n {"local":"\\ud800","remote":":81"}', ("tcp", "\ufffd", f"{GUEST}:81")),
        (b'{"local":"\xff","remote":":81"}', ("tcp", "\ufffd", f"{GUEST}:81")),
        (b'{"protocol":"sctp","remote":":1"}', ("sctp", "", f"{GUEST}:1")),
        (b'{"protocol":"npipe","local":"x"}', ("npipe", "x", "")),
    ],
)
def test_a_port_is_asked_for_as_go_would_read_it(body: bytes, asked: tuple[str, ...]) -> None:
    reply, network = ask("POST", EXPOSE, body, GUEST_VIEW, GUEST)
    assert (reply.status, reply.body) == (200, b"")
    assert network.asked == [("expose", *asked)]


def test_a_port_of_whoever_asks_is_one_of_a_guest_alone() -> None:
    reply, network = ask("POST", EXPOSE, {"local": ":80", "remote": ":80"})
    assert reply.status == 400 and reply.text.startswith("address :80: expected the address of a guest")
    assert not network.asked


@pytest.mark.parametrize("path", [EXPOSE, UNEXPOSE])
def test_only_a_post_changes_ports(path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        reply, network = ask(method, path, {"local": ":80", "remote": "192.168.127.2:80"})
        assert (reply.status, reply.text) == (400, "post only\n") and not network.asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b'"x"',
        b"7",
        b"{'local':1}",
        b'{"local":80,"name":80}',
        b'{"local":["a"],"name":["a"]}',
        b'{"protocol":{},"defaultip":{}}',
        b'{"local":NaN}',
        b'{"x":"\x01"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"local":' + b"1" * 10_000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_makes_no_sense_is_a_wrong_request(body: bytes) -> None:
    for path in (EXPOSE, UNEXPOSE, ADD_ZONE):
        reply, network = ask("POST", path, body)
        assert reply.status == 400 and reply.body and not network.asked and len(network.known) == 1


def test_a_body_that_says_nothing_asks_for_tcp_at_nothing() -> None:
    """Which is no address."""
    reply, network = ask("POST", EXPOSE, b"null")
    assert (reply.status, reply.text) == (400, "missing port in address\n")
    reply, network = ask("POST", UNEXPOSE, b"{}")
    assert network.asked == [("unexpose", "tcp", "")]


def test_what_the_network_refuses_is_told_in_its_words() -> None:
    async def part(client: Client, network: Network) -> None:
        wish = b'{"local":":80","remote":"192.168.127.2:80"}'
        network.refusal = ExposeError("listen tcp :80: bind: permission denied")
        for path in (EXPOSE, UNEXPOSE):
            reply = await client.ask("POST", path, wish)
            assert (reply.status, reply.text) == (500, "listen tcp :80: bind: permission denied\n")
        network.refusal = ExposeError("no", 400)
        assert (await client.ask("POST", EXPOSE, wish)).status == 400

    play(part)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["local", "Remote", "protocol", "name", "records", "ip"]), inner, max_size=4),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_does_more_than_to_be_refused(body: bytes) -> None:
    async def part(client: Client, network: Network) -> None:
        for path in (EXPOSE, UNEXPOSE, ADD_ZONE):
            assert (await client.ask("POST", path, body)).status in (200, 400)
        for path in (LIST, "/services/dns/all"):
            reply = await client.ask("GET", path)
            assert reply.status == 200 and isinstance(json.loads(reply.body), list)

    play(part)


# ---- what there is ----


def test_leases_are_listed_with_the_gateways() -> None:
    for path in ("/leases", "/services/dhcp/leases"):
        reply, _ = ask("GET", path)
        assert reply.body == (
            b'{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.10":"5a:94:ef:e4:0c:ee",'
            b'"192.168.127.2":"5a:94:ef:e4:0c:ee"}\n'
        )


def test_the_switch_tells_behind_which_connection_an_address_is() -> None:
    assert ask("GET", "/cam")[0].body == b'{"5a:94:ef:e4:0c:dd":0,"5a:94:ef:e4:0c:ee":2}\n'


def test_counters_stand_under_the_names_of_gvproxys_stack() -> None:
    """With the directions as the gateway sees them, and all of ours below."""
    told: dict[str, Any] = json.loads(ask("GET", "/stats")[0].body)
    here = {name: number for number, name in enumerate(stats.NAMES)}
    assert list(told) == sorted(told)
    assert {"ARP", "ICMP", "IGMP", "IP", "NICs", "TCP", "UDP", "DroppedPackets"} < set(told)
    assert (told["BytesSent"], told["BytesReceived"]) == (here["bytes_to_guest"], here["bytes_from_guest"])
    assert told["TCP"]["PassiveConnectionOpenings"] == here["tcp_opened"]
    assert told["DroppedPackets"] == sum(here[name] for name in here if name.startswith("drop_"))
    assert told["Counters"] == here


def test_every_counter_that_is_shown_is_one() -> None:
    assert {name for names in gateway_stats._NAMES.values() for name in names} <= set(stats.NAMES)


def test_zones_are_listed_in_their_order_and_their_records_too() -> None:
    async def part(client: Client, network: Network) -> None:
        network.known.append(Zone("a.", (), ip("10.0.0.1")))
        assert (await client.ask("GET", "/services/dns/all")).body == (
            b'[{"Name":"containers.internal.","Records":[{"Name":"gateway","IP":"192.168.127.1"},'
            b'{"Name":"","IP":"1.2.3.4","Regexp":"a.*"}],"DefaultIP":""},'
            b'{"Name":"a.","Records":null,"DefaultIP":"10.0.0.1"}]\n'
        )

    play(part)


def test_a_zone_is_added_as_go_would_read_it() -> None:
    body = b'{"name":"z.","RECORDS":[{"name":"a","IP":"1.2.3.4"},{"regexp":"b+","ip":"fd00::5"}],"defaultIP":"1.2.3.6"}'
    reply, network = ask("POST", ADD_ZONE, body)
    assert (reply.status, reply.body) == (200, b"")
    zone = network.known[1]
    assert (zone.name, zone.default_address) == ("z.", ip("1.2.3.6"))
    assert [(one.name, one.address, one.pattern) for one in zone.records] == [
        ("a", ip("1.2.3.4"), ""),
        ("", ip("fd00::5"), "b+"),
    ]
    _, network = ask("POST", ADD_ZONE, {"Name": "y.", "Records": None})
    assert (network.known[1].records, network.known[1].default_address) == ((), UNSET)


@pytest.mark.parametrize(
    ("zone", "why"),
    [
        ({"Records": [{"Name": "a", "IP": "bogus"}]}, "invalid IP address: bogus\n"),
        ({"DefaultIP": "1.2.3"}, "invalid IP address: 1.2.3\n"),
        ({"Name": "full."}, "there are too many zones\n"),
        ({"Records": {}}, "expected Records as a list of at most 4096 objects\n"),
        ({"Records": ["a"]}, "expected a record as a JSON object\n"),
        ({"Records": [{}] * 5000}, "expected Records as a list of at most 4096 objects\n"),
    ],
)
def test_a_zone_that_makes_no_sense_is_a_wrong_request(zone: object, why: str) -> None:
    reply, network = ask("POST", ADD_ZONE, zone)
    assert (reply.status, reply.text) == (400, why) and len(network.known) == 1


def test_only_a_post_adds_a_zone() -> None:
    reply, network = ask("GET", ADD_ZONE, {"Name": "y."})
    assert (reply.status, reply.text) == (400, "post only\n") and len(network.known) == 1


# ---- connections that become something else ----


def test_a_tunnel_says_ok_and_is_a_pipe_from_then_on() -> None:
    """With no status line, and with what came right behind the request."""

    async def part(client: Client, network: Network) -> None:
        await client.send(b"POST /tunnel?ip=192.168.127.2&port=22 HTTP/1.1\r\nHost: a\r\n\r\nSSH-2.0-x\r\n")
        assert await client.take(2) == b"OK"
        while network.far is None:
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(network.far, 99) == b"SSH-2.0-x\r\n"
        await loop.sock_sendall(network.far, b"SSH-2.0-y\r\n")
        assert await client.take(11) == b"SSH-2.0-y\r\n"
        client.end()
        assert await loop.sock_recv(network.far, 99) == b""
        network.far.close()
        assert await client.rest() == b""

    for view in (ALL, SERVICES):
        assert play(part, view).dialled == [(ip("192.168.127.2"), 22)]


def test_a_tunnel_that_leads_nowhere_ends_behind_its_ok() -> None:
    async def part(client: Client, network: Network) -> None:
        await client.send(b"GET /tunnel?ip=192.168.127.2&port=1 HTTP/1.0\r\n\r\n")
        assert await client.rest() == b"OK"

    play(part)


@pytest.mark.parametrize(
    ("query", "status", "why"),
    [
        ("", 500, "ip is mandatory\n"),
        ("?port=22", 500, "ip is mandatory\n"),
        ("?ip=bogus&port=22", 400, "invalid IP address: bogus\n"),
        ("?ip=1.2.3.4", 500, "port '': expected a number from 1 to 65535\n"),
        ("?ip=1.2.3.4&port=x", 500, "port 'x': expected a number from 1 to 65535\n"),
        ("?ip=1.2.3.4&port=65536", 500, "port '65536': expected a number from 1 to 65535\n"),
        ("?ip=1.2.3.4&port=0", 500, "port '0': expected a number from 1 to 65535\n"),
        ("?ip=1.2.3.4&port=-1", 500, "port '-1': expected a number from 1 to 65535\n"),
    ],
)
def test_a_tunnel_without_a_place_to_lead_to_is_refused(query: str, status: int, why: str) -> None:
    reply, network = ask("POST", f"/tunnel{query}")
    assert (reply.status, reply.text) == (status, why) and not network.dialled


def test_a_guest_that_connects_loses_no_byte_and_is_told_none() -> None:
    """Its frames are as long as they are on the network's own link."""
    frames = b"\x03\x00abc" * 1000

    async def part(client: Client, network: Network) -> None:
        await client.send(b"POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n" + frames[:7])
        await client.send(frames[7:])
        client.end()
        assert await client.rest() == b""

    for transport, lengths in (
        ("", api_module.TWO_BYTES_LITTLE_ENDIAN),
        (BESS, api_module.TWO_BYTES_LITTLE_ENDIAN),
        (QEMU, api_module.FOUR_BYTES_BIG_ENDIAN),
    ):
        spec = VirtualNetwork()
        spec.transport = transport
        assert play(part, spec=spec).links == [(frames, lengths)]
