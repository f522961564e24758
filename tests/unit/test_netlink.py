# SPDX-License-Identifier: Apache-2.0
"""plugin/netlink.py against pyroute2, against the real kernel in a namespace, and against bytes from nowhere."""

from __future__ import annotations

import _socket
import errno
import json
import struct
import subprocess
import sys
from typing import Any, cast

import pytest
from host_samples import ip
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lockgate.plugin import address, netlink

SEQ = 7
DONE = struct.pack("=IHHIIi", 20, 3, 2, SEQ, 0, 0)


def encoded(message: Any, kind: int, fields: dict[str, Any], attributes: list[Any], flags: int = 2) -> bytes:
    """A message as pyroute2 writes it."""
    message["header"] = {"type": kind, "flags": flags, "sequence_number": SEQ}
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def link(name: str, flags: int = 2) -> bytes:
    attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", 1400), ("IFLA_ADDRESS", "02:00:00:00:00:01")]
    return encoded(ifinfmsg(), 16, {"index": 5, "flags": 0x1043}, attributes, flags)


def route(fields: dict[str, Any], *attributes: Any) -> bytes:
    return encoded(rtmsg(), 24, {"table": 254, "type": 1, **fields}, list(attributes))


def fed(*datagrams: bytes) -> netlink.Dump:
    dump = netlink.Dump(SEQ)
    for datagram in datagrams:
        dump.feed(datagram)
    return dump


@pytest.mark.parametrize(
    ("request_bytes", "message", "kind", "family"),
    [
        (netlink.link_request(SEQ), ifinfmsg, 18, 0),
        (netlink.address_request(SEQ), ifaddrmsg, 22, 0),
        (netlink.route_request(SEQ, _socket.AF_INET), rtmsg, 26, 2),
        (netlink.route_request(SEQ, _socket.AF_INET6), rtmsg, 26, 10),
    ],
)
def test_a_request_is_read_by_pyroute2_as_meant(request_bytes: bytes, message: Any, kind: int, family: int) -> None:
    """Type, flags (request, dump), sequence number, length and family."""
    decoded = message(request_bytes)
    decoded.decode()
    header = decoded["header"]
    assert (header["type"], header["flags"], header["sequence_number"]) == (kind, 0x301, SEQ)
    assert header["length"] == len(request_bytes)
    assert decoded["family"] == family
    if kind == 26:
        assert decoded["table"] == 254


def test_a_link_is_read() -> None:
    """Name, index, MTU, flags, MAC address; further attributes are passed over."""
    (found,) = fed(link("enp3s0") + DONE).links
    assert (found.name, found.index, found.mtu, found.flags) == ("enp3s0", 5, 1400, 0x1043)
    assert found.mac == bytes((2, 0, 0, 0, 0, 1))


def test_addresses_of_both_families_are_read() -> None:
    """Our end of a point-to-point link and the peer's; the flags that did not fit into the header's eight bits."""
    four = encoded(
        ifaddrmsg(),
        20,
        {"family": 2, "prefixlen": 32, "index": 5, "scope": 253},
        [("IFA_ADDRESS", "10.0.0.2"), ("IFA_LOCAL", "10.0.0.1")],
    )
    six = encoded(
        ifaddrmsg(),
        20,
        {"family": 10, "prefixlen": 64, "index": 6, "flags": 0x80},
        [("IFA_ADDRESS", "2001:db8::7"), ("IFA_FLAGS", 0x2A0)],
    )
    mine, other = fed(four + six + DONE).addresses
    assert (mine.family, mine.index, mine.address, mine.prefix, mine.scope) == (2, 5, ip("10.0.0.1"), 32, 253)
    assert (mine.peer, other.peer) == (ip("10.0.0.2"), address.UNSET)
    assert (other.family, other.index, other.address, other.prefix, other.flags) == (
        10,
        6,
        ip("2001:db8::7"),
        64,
        0x2A0,
    )


def test_routes_of_each_shape_are_read() -> None:
    """Default, on-link, multipath, blackhole, in a table above 255, and through a router of the other family."""
    data = b"".join(
        (
            route({"family": 2}, ("RTA_GATEWAY", "192.0.2.1"), ("RTA_OIF", 5), ("RTA_PRIORITY", 100)),
            route({"family": 10, "dst_len": 64}, ("RTA_DST", "2001:db8::"), ("RTA_OIF", 5)),
            route(
                {"family": 2, "dst_len": 8},
                ("RTA_DST", "10.0.0.0"),
                (
                    "RTA_MULTIPATH",
                    [
                        {"hops": 2, "oif": 5, "attrs": [("RTA_GATEWAY", "192.0.2.2")]},
                        {"hops": 8, "oif": 6, "flags": 1, "attrs": [("RTA_GATEWAY", "198.51.100.2")]},
                        {"hops": 0, "oif": 7, "attrs": []},
                    ],
                ),
            ),
            route({"family": 2, "dst_len": 24, "type": 6}, ("RTA_DST", "203.0.113.0")),
            route({"family": 2, "table": 252}, ("RTA_TABLE", 1000), ("RTA_OIF", 5)),
            route({"family": 2}, ("RTA_VIA", {"family": 10, "addr": "fe80::1"}), ("RTA_OIF", 5)),
            DONE,
        )
    )
    default, on_link, multipath, blackhole, far, via = fed(data).routes
    assert (default.prefix, default.destination, default.priority, default.table) == (0, address.UNSET, 100, 254)
    assert [(hop.index, hop.gateway, hop.weight) for hop in default.hops] == [(5, ip("192.0.2.1"), 1)]
    assert (on_link.family, on_link.destination, on_link.prefix) == (10, ip("2001:db8::"), 64)
    assert [(hop.index, hop.gateway) for hop in on_link.hops] == [(5, address.UNSET)]
    assert [(hop.index, hop.gateway, hop.weight, hop.flags) for hop in multipath.hops] == [
        (5, ip("192.0.2.2"), 3, 0),
        (6, ip("198.51.100.2"), 9, netlink.HOP_DEAD),
        (7, address.UNSET, 1, 0),
    ]
    assert (blackhole.kind, blackhole.hops) == (6, ())
    assert far.table == 1000
    assert (via.hops[0].gateway, via.hops[0].via) == (address.UNSET, ip("fe80::1"))
    assert {hop.via for one in (default, on_link, multipath) for hop in one.hops} == {address.UNSET}


def test_what_else_a_route_says_is_read() -> None:
    """Its origin, scope, type of service, MTU and preference; none of them is ordinary."""
    metrics = {"attrs": [("RTAX_LOCK", 4), ("RTAX_MTU", 1400), ("RTAX_CC_ALGO", "reno")]}
    head = {"family": 10, "proto": 9, "scope": 253, "tos": 16}
    said = route(head, ("RTA_OIF", 5), ("RTA_METRICS", metrics), ("RTA_PREF", 3))
    one, plain = fed(said + route({"family": 2, "proto": 4}, ("RTA_OIF", 5)) + DONE).routes
    assert (one.protocol, one.scope, one.tos, one.mtu, one.preference) == (9, 253, 16, 1400, 3)
    assert (plain.protocol, plain.scope, plain.tos, plain.mtu, plain.preference) == (4, 0, 0, 0, 0)


def test_other_messages_are_passed_over() -> None:
    """Answers to other requests, other families, cached IPv6 routes, and what comes after the end."""
    stranger = bytearray(link("other"))
    stranger[8:12] = struct.pack("=I", SEQ + 1)
    bridge = encoded(ifaddrmsg(), 20, {"family": 7, "prefixlen": 0, "index": 5}, [])
    cached = route({"family": 10, "flags": 0x200}, ("RTA_OIF", 5))
    dump = fed(bytes(stranger) + bridge + cached + DONE + link("late"))
    assert (dump.finished, dump.links, dump.addresses, dump.routes) == (True, [], [], [])


def test_a_refusal_is_an_error_with_its_number() -> None:
    """In an ERROR message, and in the DONE that ends a dump."""
    for kind in (2, 3):
        with pytest.raises(netlink.NetlinkError, match="refused") as caught:
            fed(struct.pack("=IHHIIi", 20, kind, 0, SEQ, 0, -errno.EPERM))
        assert caught.value.errno == errno.EPERM


def test_a_table_that_does_not_exist_has_no_routes() -> None:
    """The kernel says ENOENT for the main table of a namespace that never had a route."""
    dump = fed(struct.pack("=IHHIIi", 20, 2, 0, SEQ, 0, -errno.ENOENT))
    assert (dump.finished, dump.routes) == (True, [])


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400))
@example(b"", 0)
def test_no_bytes_raise_anything_but_a_netlink_error(noise: bytes, at: int) -> None:
    """Random bytes, and valid messages with random bytes in them."""
    valid = link("eth0") + route({"family": 2}, ("RTA_OIF", 5), ("RTA_MULTIPATH", [{"oif": 5, "attrs": []}])) + DONE
    for datagram in (noise, valid[:at] + noise + valid[at + len(noise) :], valid[:at]):
        try:
            fed(datagram)
        except netlink.NetlinkError as error:
            assert error.errno is not None


class ScriptedKernel:
    """Answers each request with the next list of datagrams; each datagram comes from a sender."""

    def __init__(self, *answers: list[tuple[bytes, int]]) -> None:
        self.answers = list(answers)
        self.current: list[tuple[bytes, int]] = []
        self.requests: list[bytes] = []

    def sendto(self, request: bytes, _: tuple[int, int]) -> None:
        self.requests.append(request)
        self.current = list(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

    def recvfrom(self, _: int) -> tuple[bytes, tuple[int, int]]:
        datagram, sender = self.current.pop(0)
        return datagram, (sender, 0)


def dumped(kernel: ScriptedKernel) -> netlink.Dump:
    return netlink.dump(cast(_socket.socket, kernel), netlink.link_request(SEQ))


def test_an_interrupted_dump_is_asked_for_again() -> None:
    """Once is enough if the second comes whole; what the first collected is gone."""
    kernel = ScriptedKernel([(link("old", 0x12), 0), (DONE, 0)], [(link("new"), 0), (DONE, 0)])
    assert [found.name for found in dumped(kernel).links] == ["new"]
    assert len(kernel.requests) == 2


def test_a_dump_that_is_always_interrupted_is_used_all_the_same() -> None:
    """After five attempts: a busy host must not keep a guest from starting."""
    kernel = ScriptedKernel([(link("busy", 0x12) + DONE, 0)])
    assert [found.name for found in dumped(kernel).links] == ["busy"]
    assert len(kernel.requests) == 5


def test_only_the_kernel_is_believed() -> None:
    """A datagram from another process is not part of the answer."""
    kernel = ScriptedKernel([(link("forged") + DONE, 4711), (link("true") + DONE, 0)])
    assert [found.name for found in dumped(kernel).links] == ["true"]


def test_an_endless_dump_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a fixed number of records, and without another attempt."""
    monkeypatch.setattr(netlink, "RECORDS_MAX", 3)
    kernel = ScriptedKernel([(link("many", 0x12) * 5, 0)])
    dump = dumped(kernel)
    assert (len(dump.links), dump.cut, len(kernel.requests)) == (3, True, 1)


NAMESPACE = """
set -e
ip link set lo up
ip link add veth0 type veth peer name veth1
ip link set veth0 mtu 1400 up
ip link set veth1 up
ip addr add 192.0.2.7/24 dev veth0
ip addr add 10.0.0.1 peer 10.0.0.2/32 dev veth1
ip addr add 2001:db8::7/64 dev veth0 nodad
ip addr add 2001:db8::8/128 dev veth0 nodad preferred_lft 0
ip route add default via 192.0.2.1 metric 200
ip route add default via 192.0.2.9 metric 100
ip route add 203.0.113.0/24 nexthop via 192.0.2.2 weight 3 nexthop dev veth1 weight 9
ip route add blackhole 198.51.100.0/24
ip route add 198.18.0.0/15 dev veth0 table 100
ip -6 route add default via fe80::1 dev veth0
"""
READ = """
import json, subprocess, sys
sys.path[:0] = sys.argv[1:]
from lockgate.plugin import address, hostnet
def plain(record):
    fields = {}
    for name in record.__slots__:
        value = getattr(record, name)
        if isinstance(value, bytes):
            value = "" if value == address.UNSET else address.to_text(value) if len(value) == 16 else value.hex(":")
        fields[name] = [plain(hop) for hop in value] if name == "hops" else value
    return fields
host = hostnet.read_host()
seen = [[plain(record) for record in records] for records in (host.links, host.addresses, host.routes)]
def ip(*words):
    return json.loads(subprocess.run(["ip", "-j", "-N", *words], check=True, capture_output=True).stdout)
print(json.dumps([*seen, ip("link"), ip("addr"), ip("-4", "route"), ip("-6", "route")]))
"""


def in_namespace(script: str) -> list[list[dict[str, Any]]]:
    """What our code and what iproute2 see in a new network namespace, after `script`."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us make a user and a network namespace")
    paths = [path for path in sys.path if path]
    shell = script + '\nexec "$@"'
    command = [*unshare, "sh", "-c", shell, "sh", sys.executable, "-c", READ, *paths]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    answer: list[list[dict[str, Any]]] = json.loads(outcome.stdout)
    return answer


def test_the_real_kernel_is_seen_as_iproute2_sees_it() -> None:
    """Links, addresses, and routes in their order, of a namespace with a bit of everything."""
    links, addresses, routes, ip_link, ip_addr, ip_routes, ip_routes6 = in_namespace(NAMESPACE)
    assert [(one["index"], one["name"], one["mtu"], one["mac"]) for one in links] == [
        (one["ifindex"], one["ifname"], one["mtu"], one["address"]) for one in ip_link
    ]
    assert [(one["protocol"], one["priority"]) for one in routes if one["hops"]] == [
        (int(one.get("protocol", 3)), one.get("metric", 0))
        for one in ip_routes + ip_routes6
        if "dev" in one or "nexthops" in one
    ]
    assert sorted((one["index"], one["address"], one["prefix"]) for one in addresses) == sorted(
        (one["ifindex"], own["local"], own["prefixlen"]) for one in ip_addr for own in one["addr_info"]
    )
    deprecated = [one["address"] for one in addresses if one["flags"] & netlink.ADDRESS_DEPRECATED]
    assert deprecated == ["2001:db8::8"]
    assert [_target(one) for one in routes] == [one["dst"] for one in ip_routes + ip_routes6]
    defaults = [one["hops"][0]["gateway"] for one in routes if one["prefix"] == 0]
    assert defaults == ["192.0.2.9", "192.0.2.1", "fe80::1"]
    multipath = next(one for one in routes if one["destination"] == "203.0.113.0")
    index = {one["name"]: one["index"] for one in links}
    assert [(hop["index"], hop["gateway"], hop["weight"]) for hop in multipath["hops"]] == [
        (index["veth0"], "192.0.2.2", 3),
        (index["veth1"], "", 9),
    ]
    assert {one["table"] for one in routes} == {netlink.TABLE_MAIN}


def test_a_namespace_without_network_is_read_too() -> None:
    """Only a loopback interface that is down: no addresses, no routes, no error."""
    links, addresses, routes, *_ = in_namespace("true")
    assert ([one["name"] for one in links], addresses, routes) == (["lo"], [], [])


def _target(route: dict[str, Any]) -> str:
    if route["prefix"] == 0:
        return "default"
    full = 32 if route["family"] == _socket.AF_INET else 128
    suffix = "" if route["prefix"] == full else f"/{route['prefix']}"
    return f"{route['destination']}{suffix}"
