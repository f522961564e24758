# SPDX-License-Identifier: Apache-2.0
"""plugin/netlink_change.py against pyroute2, and against the real kernel in a namespace."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from host_samples import ip, own, route
from hypothesis import given
from hypothesis import strategies as st
from namespaces import Namespace, in_child
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lockgate.plugin import netlink, netlink_change

SEQ, INDEX = 7, 5
REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800


def decoded(message: Any, request: bytes, kind: int, flags: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields and attributes, as pyroute2 reads them."""
    read = message(request)
    read.decode()
    header = read["header"]
    assert (header["length"], header["type"], header["sequence_number"]) == (len(request), kind, SEQ)
    assert header["flags"] == 0x5 | flags  # a request that is to be acknowledged
    fields = {name: read[name] for name, _ in message.fields if name != "header"}
    return fields, {name: plain(value) for name, value in read["attrs"]}


def plain(value: Any) -> Any:
    """Nested attributes as dictionaries."""
    if isinstance(value, list):
        return [{**{name: hop[name] for name in ("hops", "oif", "flags")}, **attributes(hop)} for hop in value]
    return attributes(value) if hasattr(value, "nla_map") and value["attrs"] else value


def attributes(value: Any) -> dict[str, Any]:
    return {name: plain(inner) for name, inner in value["attrs"]}


def test_a_link_request_changes_what_it_names() -> None:
    """Flags by a mask; MTU and MAC only if they are given."""
    request = netlink_change.link_request(SEQ, INDEX, up=True, mtu=65520, mac=bytes((2, 0, 0, 0, 0, 9)))
    fields, found = decoded(ifinfmsg, request, 16, 0)
    assert (fields["index"], fields["flags"], fields["change"]) == (INDEX, 0x1, 0x1)
    assert found == {"IFLA_MTU": 65520, "IFLA_ADDRESS": "02:00:00:00:00:09"}
    fields, found = decoded(ifinfmsg, netlink_change.link_request(SEQ, INDEX), 16, 0)
    assert (fields["flags"], fields["change"], found) == (0, 0, {})


def test_a_link_request_may_make_a_port_of_a_bridge_and_leave_a_note() -> None:
    _, found = decoded(ifinfmsg, netlink_change.link_request(SEQ, INDEX, alias="mine", master=7), 16, 0)
    assert found == {"IFLA_MASTER": 7, "IFLA_IFALIAS": "mine"}


def test_a_bridge_request_makes_one_with_an_address_of_its_own() -> None:
    request = netlink_change.bridge_request(SEQ, "lg0", mtu=65520, mac=bytes((2, 0, 0, 0, 0, 9)))
    fields, found = decoded(ifinfmsg, request, 16, CREATE | EXCLUSIVE)
    assert (fields["index"], fields["flags"]) == (0, 0)
    known = {"IFLA_IFNAME": "lg0", "IFLA_MTU": 65520, "IFLA_ADDRESS": "02:00:00:00:00:09"}
    assert found == {**known, "IFLA_LINKINFO": {"IFLA_INFO_KIND": "bridge"}}


def test_a_pair_of_links_has_one_end_in_another_namespace() -> None:
    """Which the descriptor stands for; the MAC address is that end's."""
    request = netlink_change.veth_request(SEQ, "lg1", "eth0", 11, mtu=1400, mac=bytes((2, 0, 0, 0, 0, 9)))
    _, found = decoded(ifinfmsg, request, 16, CREATE | EXCLUSIVE)
    info = found.pop("IFLA_LINKINFO")
    assert found == {"IFLA_IFNAME": "lg1", "IFLA_MTU": 1400} and info["IFLA_INFO_KIND"] == "veth"
    other = {"IFLA_IFNAME": "eth0", "IFLA_MTU": 1400, "IFLA_ADDRESS": "02:00:00:00:00:09", "IFLA_NET_NS_FD": 11}
    assert info["IFLA_INFO_DATA"] == {"VETH_INFO_PEER": other}


def test_a_barrier_is_a_rule_for_one_interface() -> None:
    for there, kind, flags in ((True, 32, CREATE | EXCLUSIVE), (False, 33, 0)):
        request = netlink_change.barrier_request(SEQ, socket.AF_INET6, "lg0", 1000, there)
        fields, found = decoded(fibmsg, request, kind, flags)
        assert (fields["family"], fields["action"]) == (10, 8)  # FR_ACT_PROHIBIT
        assert found == {"FRA_PRIORITY": 1000, "FRA_IIFNAME": "lg0"}


def test_an_address_request_says_all_of_an_address_and_of_no_lifetime() -> None:
    """IPv4 with its broadcast address, which a point-to-point link and a network of two have not; IPv6 without DAD."""
    request = netlink_change.address_add_request(SEQ, INDEX, own(9, "192.0.2.7/24", flags=0x200))
    fields, found = decoded(ifaddrmsg, request, 20, CREATE | REPLACE)
    assert (fields["family"], fields["prefixlen"], fields["scope"], fields["index"]) == (2, 24, 0, INDEX)
    known = {"IFA_LOCAL": "192.0.2.7", "IFA_ADDRESS": "192.0.2.7"}
    assert found == {**known, "IFA_BROADCAST": "192.0.2.255", "IFA_FLAGS": 0x80}
    _, found = decoded(ifaddrmsg, netlink_change.address_add_request(SEQ, INDEX, own(9, "192.0.2.7/31")), 20, 0x500)
    assert found == {**known, "IFA_FLAGS": 0x80}

    pair = netlink.Address(2, 9, ip("10.0.0.1"), 32, 253, 0, ip("10.0.0.2"))
    fields, found = decoded(ifaddrmsg, netlink_change.address_delete_request(SEQ, INDEX, pair), 21, 0)
    assert (fields["prefixlen"], fields["scope"]) == (32, 253)
    assert found == {"IFA_LOCAL": "10.0.0.1", "IFA_ADDRESS": "10.0.0.2", "IFA_FLAGS": 0x80}

    six = netlink_change.address_add_request(SEQ, INDEX, own(9, "2001:db8::7/64"))
    fields, found = decoded(ifaddrmsg, six, 20, CREATE | REPLACE)
    assert (fields["family"], fields["prefixlen"], fields["flags"]) == (10, 64, 0x82)
    assert found == {"IFA_LOCAL": "2001:db8::7", "IFA_ADDRESS": "2001:db8::7", "IFA_FLAGS": 0x82}


def test_a_route_request_says_all_of_a_route_but_where_packets_come_from() -> None:
    """A default route with everything; a link's own network; a gateway of the other family; two next hops."""
    default = netlink.Route(
        2, 254, 1, bytes(16), 0, 100, (netlink.NextHop(9, ip("192.0.2.1"), 1, 4),), 16, 0, 8, 1400, 0
    )
    fields, found = decoded(rtmsg, netlink_change.route_add_request(SEQ, INDEX, default), 24, CREATE | APPEND)
    head = ("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type", "flags")
    assert tuple(fields[name] for name in head) == (2, 0, 0, 8, 254, 16, 0, 1, 4)
    said = {"RTA_PRIORITY": 100, "RTA_METRICS": {"RTAX_MTU": 1400}, "RTA_OIF": INDEX, "RTA_GATEWAY": "192.0.2.1"}
    assert found == said

    link = route("2001:db8::/64", (9, ""))
    link.scope, link.preference = 253, 3
    fields, found = decoded(rtmsg, netlink_change.route_delete_request(SEQ, INDEX, link), 25, 0)
    assert (fields["family"], fields["dst_len"], fields["scope"]) == (10, 64, 253)
    assert found == {"RTA_DST": "2001:db8::", "RTA_PREF": 3, "RTA_OIF": INDEX}

    other = netlink.Route(2, 254, 1, bytes(16), 0, 0, (netlink.NextHop(9, bytes(16), 1, 0, ip("fe80::1")),))
    _, found = decoded(rtmsg, netlink_change.route_add_request(SEQ, INDEX, other), 24, CREATE | APPEND)
    assert found == {"RTA_OIF": INDEX, "RTA_VIA": {"family": 10, "addr": "fe80::1"}}

    two = route("10.0.0.0/8", (9, "192.0.2.2", 3), (9, "", 9), flags=netlink.HOP_DEAD)
    _, found = decoded(rtmsg, netlink_change.route_add_request(SEQ, INDEX, two), 24, CREATE | APPEND)
    assert found["RTA_MULTIPATH"] == [
        {"hops": 2, "oif": INDEX, "flags": 0, "RTA_GATEWAY": "192.0.2.2"},
        {"hops": 8, "oif": INDEX, "flags": 0},
    ]

    nowhere = netlink.Route(2, 254, 6, ip("10.0.0.0"), 8, 100, ())
    fields, found = decoded(rtmsg, netlink_change.route_add_request(SEQ, INDEX, nowhere, alone=True), 24, 0x600)
    assert fields["type"] == 6 and found == {"RTA_DST": "10.0.0.0", "RTA_PRIORITY": 100}


def answer(code: int, flags: int = 0, attributes: bytes = b"", seq: int = SEQ) -> bytes:
    body = struct.pack("=iIHHII", -code, 16, 24, 5, seq, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), 2, flags, seq, 0) + body


def test_an_answer_is_an_error_with_its_number_and_the_kernels_own_words() -> None:
    """Or none; the words only if the kernel says that there are some."""
    assert netlink_change.parse_answer(answer(0), SEQ) is None
    words = struct.pack("=HH", 9, 1) + b"Why.\0\0\0\0"
    told = netlink_change.parse_answer(answer(errno.EINVAL, 0x300, words), SEQ)
    assert told is not None and (told.errno, told.strerror) == (errno.EINVAL, "Invalid argument (Why)")
    bare = netlink_change.parse_answer(answer(errno.EPERM, 0x100, words), SEQ)
    assert bare is not None and bare.strerror == "Operation not permitted"


def test_the_answer_to_another_request_is_passed_over() -> None:
    """As when a request before was given up."""
    with pytest.raises(BlockingIOError):
        netlink_change.parse_answer(answer(0, seq=SEQ - 1), SEQ)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_raise_anything_but_a_netlink_error(noise: bytes, at: int) -> None:
    """Or say that they are no answer to this request."""
    valid = answer(errno.EINVAL, 0x300, struct.pack("=HH", 9, 1) + b"Why.\0\0\0\0")
    for datagram in (noise, valid[:at] + noise + valid[at + len(noise) :], valid[:at]):
        try:
            netlink_change.parse_answer(datagram, SEQ)
        except (netlink.NetlinkError, BlockingIOError):
            pass


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace("--user", "--map-root-user", "--net")
    made.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
    made.run("ip", "link", "set", "d1", "up", "mtu", "9000")
    yield made
    made.close()


def changed(namespace: Namespace, *work: Any) -> list[tuple[int, str]]:
    """Each piece of work done in a namespace, to its `d0`; the errors of those that were refused."""

    def child() -> list[tuple[int, str]]:
        netlink_socket = netlink.open_socket()
        links = netlink.dump(netlink_socket, netlink.link_request(1)).links
        (index,) = [link.index for link in links if link.name == "d0"]
        changes, errors = netlink_change.Changes(), []
        for one in work:
            try:
                for _, failure in one(changes, index) or ():
                    raise failure
            except OSError as failure:
                errors.append((failure.errno or 0, failure.strerror or ""))
        return errors

    return [(number, text) for number, text in in_child(namespace, child)]


UP = [lambda changes, index: changes.set_link(index, up=True, mtu=9000, mac=bytes((2, 0, 0, 0, 0, 9)))]


def add(text: str) -> Any:
    return lambda changes, index: changes.add_address(index, own(0, text))


def add_routes(*routes: netlink.Route) -> Any:
    return lambda changes, index: changes.add_routes(index, routes)


def test_the_real_kernel_does_to_a_link_what_is_asked(namespace: Namespace) -> None:
    """Up, MTU, MAC; then another MTU, and all else as it was."""
    assert changed(namespace, *UP) == []
    (link,) = namespace.ip("link", "show", "dev", "d0")
    assert (link["mtu"], link["address"]) == (9000, "02:00:00:00:00:09")
    assert "UP" in link["flags"]
    assert changed(namespace, lambda changes, index: changes.set_link(index, mtu=1400)) == []
    (link,) = namespace.ip("link", "show", "dev", "d0")
    assert "UP" in link["flags"] and link["mtu"] == 1400


@pytest.mark.parametrize("by_kernel", [True, False])
def test_the_real_kernel_makes_a_link_local_address_or_none(namespace: Namespace, by_kernel: bool) -> None:
    assert changed(namespace, lambda changes, index: changes.set_link_local(index, by_kernel), *UP) == []
    found = namespace.ip("-6", "address", "show", "dev", "d0")
    assert any(link.get("addr_info") for link in found) is by_kernel


def test_the_real_kernel_has_addresses_in_the_order_in_which_they_came(namespace: Namespace) -> None:
    """Twice the same is no error; IPv6 has the last first. What is not there can be removed too."""
    texts = ["192.0.2.7/24", "192.0.2.8/24", "198.51.100.9/32", "2001:db8::7/64", "2001:db8::8/128"]
    assert changed(namespace, *UP, *map(add, texts), *map(add, texts)) == []
    assert namespace.addresses("d0", 4) == ["192.0.2.7/24", "198.51.100.9/32", "192.0.2.8/24"]
    assert [one for one in namespace.addresses("d0", 6) if one[0] == "2"] == ["2001:db8::8/128", "2001:db8::7/64"]
    (link,) = namespace.ip("addr", "show", "dev", "d0")
    ours = [one for one in link["addr_info"] if not one["local"].startswith("fe80:")]
    assert {one["valid_life_time"] for one in ours} == {0xFFFFFFFF}
    assert not [one for one in ours if one.get("tentative")]

    def remove(changes: Any, index: int) -> None:
        changes.delete_address(index, own(0, "2001:db8::7/64"))

    assert changed(namespace, remove, remove) == []
    assert [one for one in namespace.addresses("d0", 6) if one[0] == "2"] == ["2001:db8::8/128"]


def test_the_real_kernel_has_routes_whatever_their_order(namespace: Namespace) -> None:
    """Those through a gateway wait for those that lead to it. Those of one prefix and metric stay in order."""
    routes = [
        route("0.0.0.0/0", (0, "198.51.100.1")),
        route("203.0.113.0/24", (0, "192.0.2.1", 1), (0, "198.51.100.1", 2)),
        route("198.51.100.0/24", (0, "192.0.2.2")),
        route("198.51.100.1/32", (0, "")),
        route("10.0.0.0/8", (0, "192.0.2.3")),
        route("10.0.0.0/8", (0, "192.0.2.2")),
        route("::/0", (0, "fe80::1")),
        route("2001:db8:1::/48", (0, "2001:db8::1"), (0, "2001:db8::2")),
    ]
    routes[3].scope = netlink.SCOPE_LINK
    assert changed(namespace, *UP, add("192.0.2.7/24"), add("2001:db8::7/64"), add_routes(*routes)) == []
    there = namespace.routes(4)
    assert "default via 198.51.100.1 dev d0 proto unspec" in there
    assert [one.split()[2] for one in there if one.startswith("10.")] == ["192.0.2.3", "192.0.2.2"]
    six = namespace.ip("-6", "route", "show", "2001:db8:1::/48")
    assert [hop["gateway"] for hop in six[0]["nexthops"]] == ["2001:db8::1", "2001:db8::2"]
    (four,) = namespace.ip("-4", "route", "show", "203.0.113.0/24")
    assert [(hop["gateway"], hop["weight"]) for hop in four["nexthops"]] == [("192.0.2.1", 1), ("198.51.100.1", 2)]

    def remove(changes: Any, index: int) -> None:
        for one in reversed(routes):
            changes.delete_route(index, one)
            changes.delete_route(index, one)

    assert changed(namespace, add_routes(*routes), remove) == []
    assert [one.split()[0] for one in namespace.routes(4)] == ["192.0.2.0/24"]
    assert [one["dst"] for one in namespace.ip("-6", "route", "show", "dev", "d0")] == ["2001:db8::/64", "fe80::/64"]


def test_what_the_real_kernel_refuses_is_an_error_that_says_why(namespace: Namespace) -> None:
    """A gateway that nothing leads to, a link that is gone, an address with a prefix that there is not."""
    far = changed(namespace, *UP, add_routes(route("10.0.0.0/8", (0, "192.0.2.3"))))
    assert far == [(errno.ENETUNREACH, "Network is unreachable (Nexthop has invalid gateway)")]
    gone = changed(namespace, lambda changes, index: changes.add_address(index + 9, own(0, "192.0.2.7/24")))
    assert [number for number, _ in gone] == [errno.ENODEV]
    wrong = changed(namespace, add("192.0.2.7/33"))
    assert [number for number, _ in wrong] == [errno.EINVAL]
