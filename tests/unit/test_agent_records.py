# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/agent_records.py: what is packed is parsed, and nothing else is."""

from __future__ import annotations

import socket

import pytest
from host_samples import ORDINARY, host, ip, own, route
from hypothesis import example, given
from hypothesis import strategies as st

from lockgate.plugin import netlink
from lockgate.plugin.namespace import agent_records, interface_plan
from lockgate.plugin.namespace.agent_records import BIND, DUAL_STACK, LISTEN, LOOPBACK, SocketsWanted
from lockgate.plugin.spec import NetworkSpec

TCP, UDP, FOUR, SIX = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.AF_INET, socket.AF_INET6


def plan_of(*records: netlink.Address | netlink.Route) -> interface_plan.Plan:
    return interface_plan.plan(NetworkSpec(contract="pasta"), host(*records))


def full_plan() -> interface_plan.Plan:
    two = route("10.0.0.0/8", (2, "192.0.2.1", 3), (2, "", 256))
    two.hops[1].via, two.hops[0].flags = ip("fe80::b"), netlink.HOP_ON_LINK
    two.protocol, two.scope, two.priority, two.tos, two.mtu, two.preference = 16, 200, 600, 8, 1400, 3
    pair = own(2, "10.8.0.2/32")
    pair.peer = ip("10.8.0.1")
    return plan_of(*ORDINARY, pair, two)


def test_a_plan_comes_out_as_it_went_in() -> None:
    """Each field of each address, route and next hop."""
    plan = full_plan()
    parsed = agent_records.parse_plan(agent_records.pack_plan(plan))
    assert parsed is not None and parsed.mtu == plan.mtu
    for name in netlink.Address.__slots__:
        assert [getattr(one, name) for one in parsed.addresses] == [getattr(one, name) for one in plan.addresses]
    for name in set(netlink.Route.__slots__) - {"hops"}:
        assert [getattr(one, name) for one in parsed.routes] == [getattr(one, name) for one in plan.routes], name
    for name in netlink.NextHop.__slots__:
        hops = [[getattr(hop, name) for hop in one.hops] for one in plan.routes]
        assert [[getattr(hop, name) for hop in one.hops] for one in parsed.routes] == hops, name


def test_a_plan_that_does_not_fit_a_record_loses_its_last_routes() -> None:
    """The default route is first."""
    hops = [(2, "192.0.2.1", weight) for weight in range(1, interface_plan.HOPS_MAX + 1)]
    many = [route(f"10.0.{n}.0/24", *hops) for n in range(200)]
    plan = plan_of(own(2, "192.0.2.7/24"), route("0.0.0.0/0", (2, "192.0.2.1")), *many)
    record = agent_records.pack_plan(plan)
    parsed = agent_records.parse_plan(record)
    assert len(record) <= agent_records.RECORD_MAX and parsed is not None
    assert 50 < len(parsed.routes) < 200 and parsed.routes[0].prefix == 0


@given(st.integers(0, 900), st.binary(min_size=1, max_size=8))
@example(0, b"C")
def test_no_change_to_a_plan_is_taken_for_what_a_plan_cannot_be(at: int, noise: bytes) -> None:
    """Whatever is parsed is within the kernel's terms; all else is None."""
    record = agent_records.pack_plan(full_plan())
    plan = agent_records.parse_plan(record[:at] + noise + record[at + len(noise) :])
    if plan is None:
        return
    both = [(one.family, one.prefix) for one in plan.addresses] + [(one.family, one.prefix) for one in plan.routes]
    assert all(family in (FOUR, SIX) and prefix <= (32 if family == FOUR else 128) for family, prefix in both)
    for one in plan.routes:
        assert 0 < len(one.hops) <= interface_plan.HOPS_MAX and all(0 < hop.weight <= 256 for hop in one.hops)


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_refused(noise: bytes) -> None:
    """As any kind of record."""
    for head in (b"", b"C", b"S", b"R", b"A"):
        agent_records.parse_plan(head + noise)
        agent_records.parse_sockets(head + noise)
        agent_records.parse_unbound(head + noise)
        agent_records.parse_answer(head + noise)
        agent_records.parse_results(head + noise, 0)
        try:
            agent_records.parse_ready(head + noise)
        except agent_records.AgentError:
            pass


@pytest.mark.parametrize(
    "wanted",
    [
        SocketsWanted(FOUR, TCP),
        SocketsWanted(SIX, UDP, 64, flags=LOOPBACK),
        SocketsWanted(FOUR, UDP, flags=BIND, address=ip("192.0.2.7"), first=0),
        SocketsWanted(SIX, TCP, 2, flags=BIND | LISTEN | DUAL_STACK | LOOPBACK, first=65534),
    ],
    ids=["unbound", "many", "any port", "the last ports"],
)
def test_sockets_of_each_kind_may_be_asked_for(wanted: SocketsWanted) -> None:
    """And the request is read as it was meant."""
    parsed = agent_records.parse_sockets(wanted.pack())
    assert parsed is not None
    for name in SocketsWanted.__slots__:
        assert getattr(parsed, name) == getattr(wanted, name)
    assert (agent_records.parse_unbound(wanted.pack()) is None) == bool(wanted.flags)


@pytest.mark.parametrize(
    "wanted",
    [
        SocketsWanted(socket.AF_PACKET, TCP),
        SocketsWanted(FOUR, socket.IPPROTO_ICMP),
        SocketsWanted(FOUR, TCP, 0),
        SocketsWanted(FOUR, TCP, 65),
        SocketsWanted(FOUR, TCP, flags=16),
        SocketsWanted(FOUR, TCP, first=80),
        SocketsWanted(FOUR, TCP, flags=LISTEN),
        SocketsWanted(FOUR, UDP, flags=BIND | LISTEN),
        SocketsWanted(FOUR, TCP, flags=BIND | DUAL_STACK),
        SocketsWanted(SIX, TCP, flags=BIND | DUAL_STACK, address=ip("::1")),
        SocketsWanted(SIX, TCP, flags=BIND, address=ip("127.0.0.1")),
        SocketsWanted(FOUR, TCP, flags=BIND, address=ip("::1")),
        SocketsWanted(FOUR, TCP, 2, flags=BIND, first=65535),
        SocketsWanted(FOUR, TCP, 2, flags=BIND),
    ],
    ids=[
        "family",
        "protocol",
        "none",
        "too many",
        "unknown flag",
        "a port without binding",
        "listening without binding",
        "listening for datagrams",
        "two families on IPv4",
        "two families at an address",
        "IPv4 on IPv6",
        "IPv6 on IPv4",
        "past the last port",
        "several at any port",
    ],
)
def test_other_sockets_are_not_to_be_had(wanted: SocketsWanted) -> None:
    """The request is refused as a whole."""
    assert agent_records.parse_sockets(wanted.pack()) is None


def test_results_that_do_not_fit_the_descriptors_are_none() -> None:
    """So that no socket is taken for another."""
    record = agent_records.pack_results([0, 98, 0])
    assert agent_records.parse_results(record, 2) == [0, 98, 0]
    assert agent_records.parse_results(record, 3) is agent_records.parse_results(record[:-1], 2) is None


def test_a_report_comes_out_as_it_went_in_and_a_failure_in_its_own_words() -> None:
    """An end of the channel is a failure too."""
    fields = {"files": 4, "index": 7, "mtu": 65520, "offloads": 0x67, "mac": bytes(6), "link_local": ip("fe80::1")}
    ready = agent_records.Ready(name="eth0", note="route x: No", **fields)  # type: ignore[arg-type]
    parsed = agent_records.parse_ready(ready.pack())
    assert all(getattr(parsed, name) == getattr(ready, name) for name in agent_records.Ready.__slots__)
    with pytest.raises(agent_records.AgentError, match="^It cannot be$"):
        agent_records.parse_ready(agent_records.FAILED + b"It cannot be")
    with pytest.raises(agent_records.AgentError, match="before it was ready"):
        agent_records.parse_ready(b"")
