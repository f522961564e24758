# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/netavark.py: networks and attachments as Podman writes them."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from typing import Any

import pytest
from host_samples import ip
from hypothesis import assume, given
from hypothesis import strategies as st

from lockgate.plugin.contracts import netavark
from lockgate.plugin.contracts.netavark import Attachment, ContractError, Subnet

ID = "3e8b" + 60 * "0"
CONTAINER = 64 * "c"
NETWORK: dict[str, Any] = {
    "name": "lan",
    "id": ID,
    "driver": "lockgate",
    "created": "0001-01-01T00:00:00Z",
    "ipv6_enabled": False,
    "internal": False,
    "dns_enabled": True,
    "ipam_options": {},
    "something_new": [1],
}
WHOLE = {
    **NETWORK,
    "network_interface": "lan0",
    "subnets": [
        {"subnet": "10.1.2.0/24", "gateway": "10.1.2.1"},
        {"subnet": "fd00:1::/64", "gateway": "fd00:1::1", "lease_range": None},
    ],
    "routes": None,
    "network_dns_servers": None,
    "options": None,
}


def subnet(text: str) -> Subnet:
    (made,) = netavark.subnets_of({"subnets": [{"subnet": text}]})
    return made


def created(*used: str, **changes: Any) -> dict[str, Any]:
    return netavark.complete({**NETWORK, **changes}, map(subnet, used))


@pytest.mark.parametrize("used", ["10.1.2.0/24", "10.1.2.128/25", "10.0.0.0/8"])
def test_a_subnet_that_another_network_has_is_refused(used: str) -> None:
    """Its containers would get what is for those of the other."""
    with pytest.raises(ContractError, match=f"10.1.2.0/24 overlaps {used}"):
        created(used, subnets=[{"subnet": "10.1.2.0/24"}])


def subnets(network: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["subnet"], one["gateway"]) for one in network["subnets"]]


def attached(network: dict[str, Any] | None = None, **options: Any) -> Attachment:
    own = {"interface_name": "eth0", "aliases": None, "static_ips": ["10.1.2.9"], "static_mac": None, **options}
    request = {
        "container_id": CONTAINER,
        "container_name": "me",
        "port_mappings": None,
        "network": {**WHOLE, **(network or {})},
        "network_options": own,
    }
    return netavark.attachment(json.loads(json.dumps(request)))


def test_a_network_gets_a_bridge_a_subnet_and_addresses_from_podman() -> None:
    """All that is not known stays, and so do the three that may not change."""
    made = created()
    assert {name: made[name] for name in NETWORK if name != "ipam_options"} == {
        name: NETWORK[name] for name in NETWORK if name != "ipam_options"
    }
    assert made["network_interface"] == f"lg{ID[:12]}" and made["ipam_options"] == {"driver": "host-local"}
    ((network, gateway),) = subnets(made)
    assert IPv4Network(network).subnet_of(IPv4Network("10.128.0.0/9")) and gateway == str(IPv4Network(network)[1])


def test_a_network_of_both_families_gets_a_subnet_of_each() -> None:
    four, six = subnets(created(ipv6_enabled=True))
    assert IPv4Network(four[0]) and IPv6Network(six[0]).subnet_of(IPv6Network("fd00::/8"))
    assert IPv6Network(six[0]).prefixlen == 64 and six[1] == str(IPv6Network(six[0])[1])


def test_subnets_and_gateways_that_the_user_chose_stay() -> None:
    chosen = [{"subnet": "10.1.2.0/24", "gateway": "10.1.2.254", "lease_range": {"start_ip": "10.1.2.8"}}]
    assert created(subnets=chosen)["subnets"] == chosen


def test_a_user_who_chose_ipv6_gets_ipv4_too() -> None:
    made = created(subnets=[{"subnet": "fd00:5::/64"}])
    assert made["ipv6_enabled"] and [ip_network(one).version for one, _ in subnets(made)] == [6, 4]


@given(st.integers(0, (1 << 256) - 1), st.lists(st.integers(0, 255), max_size=8))
def test_subnets_that_are_used_are_avoided(identity: int, places: list[int]) -> None:
    """Whatever contains them, or is contained."""
    used = [f"10.{128 + place % 128}.0.0/{16 - place % 3}" for place in places]
    made = netavark.complete({**NETWORK, "id": f"{identity:064x}"}, map(subnet, used))
    ((network, _),) = subnets(made)
    assert not any(ip_network(network).overlaps(ip_network(other, strict=False)) for other in used)


def test_networks_of_different_ids_have_different_subnets() -> None:
    made = {subnets(created(id=f"{number:08x}" + 56 * "0"))[0][0] for number in range(500)}
    assert len(made) == 500


def test_when_nothing_is_left_the_user_is_told_what_to_do() -> None:
    with pytest.raises(ContractError, match="--subnet"):
        created("10.128.0.0/9")


def test_a_network_without_addresses_has_no_subnets() -> None:
    assert "subnets" not in created(ipam_options={"driver": "none"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"colour": "red"}}, "colour; expected one of mtu, metric, no_default_route"),
        ({"options": {"mtu": "9"}}, "mtu=9: expected a number from 68"),
        ({"options": {"mtu": "1279"}, "ipv6_enabled": True}, "from 1280"),
        ({"options": {"mtu": "١٥٠٠"}}, "expected a number"),
        ({"options": {"metric": "0"}}, "metric=0: expected a number from 1"),
        ({"options": {"no_default_route": "maybe"}}, "expected true or false"),
        ({"options": ["mtu"]}, "options: expected an object"),
        ({"ipam_options": {"driver": "dhcp"}}, "by dhcp; expected host-local or none"),
        ({"ipam_options": {"driver": "none"}, "subnets": [{"subnet": "10.1.2.0/24"}]}, "leave out the subnets"),
        ({"network_interface": "a name"}, "expected the name of an interface"),
        ({"network_interface": "sixteen_bytes_ab"}, "1 to 15 bytes"),
        ({"subnets": [{"subnet": "10.1.2.0"}]}, "expected a subnet like"),
        ({"subnets": [{"subnet": "127.0.0.0/8"}]}, "addresses that are not a container's to have"),
        ({"subnets": [{"subnet": "169.254.0.0/16"}]}, "addresses that are not a container's to have"),
        ({"subnets": [{"subnet": "224.0.0.0/24"}]}, "addresses that are not a container's to have"),
        ({"subnets": [{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]}, "10.1.2.0/24 overlaps 10.1.0.0/16"),
        ({"subnets": [{"subnet": "10.1.2.0/33"}]}, "expected a subnet like"),
        ({"subnets": [{"subnet": "10.1.2.0/24", "gateway": "10.1.3.1"}]}, "not in its subnet"),
        ({"id": ""}, "id: expected a text"),
    ],
)
def test_what_is_wrong_with_a_network_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError) as caught:
        created(**changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("network", ["10.1.2.0/24", "10.1.2.0/31", "fd00::/64", "fd00::6/127"])
def test_the_gateway_is_the_first_address_of_a_subnet(network: str) -> None:
    whole = ip_network(network)
    ((_, gateway), *_) = subnets(created(subnets=[{"subnet": network}]))
    assert gateway == str(whole[0] if whole.num_addresses == 2 else whole[1])


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses(), st.integers(0, 128))
def test_subnets_hold_and_overlap_as_pythons_own(one: Any, length: int, other: Any, width: int) -> None:
    assume(all(each.version == 4 or not each.ipv4_mapped for each in (one, other)))
    first = ip_interface(f"{one}/{min(length, one.max_prefixlen)}").network
    second = ip_interface(f"{other}/{min(width, other.max_prefixlen)}").network
    mine, its = subnet(str(first)), subnet(str(second))
    assert mine.overlaps(its) == its.overlaps(mine) == (first.version == second.version and first.overlaps(second))
    if first.version == other.version:
        assert mine.holds(ip(str(other))) == (other in first)


def test_an_attachment_has_what_podman_says() -> None:
    made = attached(static_ips=["fd00:1::9", "10.1.2.9"], static_mac="02:00:00:00:00:09")
    assert (made.container, made.network, made.bridge, made.interface) == (CONTAINER, ID, "lan0", "eth0")
    assert [(one, own.prefix, own.gateway) for one, own in made.addresses] == [
        (ip("fd00:1::9"), 64, ip("fd00:1::1")),
        (ip("10.1.2.9"), 24, ip("10.1.2.1")),
    ]
    assert made.families == {socket.AF_INET, socket.AF_INET6} and made.mac == bytes((2, 0, 0, 0, 0, 9))
    assert (made.mtu, made.metric, made.default_route, made.internal, made.dns) == (0, 100, True, False, [])


def test_an_attachment_knows_where_ports_of_the_host_lead() -> None:
    """To the container's first address of the port's family; those that cannot lead anywhere are left out."""
    port = {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 2}
    other = {**port, "host_ip": "::1", "host_port": 9090, "protocol": "tcp,udp", "range": 1}

    def ports(*static: str) -> list[str]:
        options = {"interface_name": "eth0", "static_ips": list(static)}
        request = {"container_id": CONTAINER, "network": WHOLE, "network_options": options}
        made = netavark.attachment({**request, "port_mappings": [port, other, {**port, "protocol": "sctp"}]})
        return [" ".join(str(rule).split()) for rule in made.ports]

    four = "TCP 0.0.0.0:8080-8081 => 10.1.2.9:80-81"
    six = "TCP [::]:8080-8081 => [fd00:1::9]:80-81"
    one = [f"{protocol} [::1]:9090 => [fd00:1::9]:80" for protocol in ("TCP", "UDP")]
    assert ports("10.1.2.9") == [four]
    assert ports("fd00:1::9") == [six, *one]
    assert ports("10.1.2.9", "fd00:1::9") == [four, f"{six} (best effort)", *one]


def test_who_leaves_is_known_whatever_else_is_wrong() -> None:
    """Podman may have lost the container's addresses; its users may have the options of another version."""
    network = {**WHOLE, "network_interface": "", "options": {"colour": "red"}}
    made = netavark.departure({"container_id": CONTAINER, "network": network, "network_options": {"static_ips": [7]}})
    assert (made.container, made.network) == (CONTAINER, ID)


def test_no_port_leads_to_an_internal_network_and_none_to_two_places() -> None:
    port = {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}
    own = {"interface_name": "eth0", "static_ips": ["10.1.2.9", "fd00:1::9"]}
    ports = [port, {**port, "host_ip": "::", "container_port": 81}]
    request = {"container_id": CONTAINER, "network": WHOLE, "network_options": own, "port_mappings": ports}
    ways = [" ".join(str(rule).split()) for rule in netavark.attachment(request).ports]
    assert ways == ["TCP 0.0.0.0:8080 => 10.1.2.9:80", "TCP [::]:8080 => [fd00:1::9]:81"]
    assert not netavark.attachment({**request, "network": {**WHOLE, "internal": True}}).ports


def test_an_attachment_takes_the_options_of_its_network() -> None:
    made = attached(
        {
            "options": {"mtu": "1400", "metric": "7", "no_default_route": "true"},
            "internal": True,
            "network_dns_servers": ["9.9.9.9", "2620:fe::fe"],
        }
    )
    assert (made.mtu, made.metric, made.default_route, made.internal) == (1400, 7, False, True)
    assert made.dns == ["9.9.9.9", "2620:fe::fe"]


def test_routes_of_a_network_are_of_four_kinds() -> None:
    routes = [
        {"destination": "10.9.0.0/16", "gateway": "10.1.2.7", "metric": 5, "route_type": None},
        {"destination": "fd00:9::/64", "gateway": "fd00:1::7", "metric": None},
        {"destination": "10.8.0.0/16", "route_type": "blackhole"},
        {"destination": "10.7.0.0/16", "route_type": "prohibit", "gateway": None},
    ]
    made = attached({"routes": routes})
    assert [(one.kind, one.metric, one.subnet.prefix) for one in made.routes] == [
        (1, 5, 16),
        (1, 100, 64),
        (6, 100, 16),
        (8, 100, 16),
    ]
    assert [one.gateway for one in made.routes] == [ip("10.1.2.7"), ip("fd00:1::7"), bytes(16), bytes(16)]


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ({}, {"static_ips": ["10.1.3.9"]}, "10.1.3.9 is in no subnet of the network lan"),
        ({}, {"static_ips": ["nine"]}, "nine: expected an address"),
        ({}, {"static_mac": "01:00:00:00:00:09"}, "expected the MAC address of one interface"),
        ({}, {"static_mac": "02:00"}, "expected the MAC address of one interface"),
        ({}, {"interface_name": "eth/0"}, "expected the name of an interface"),
        ({}, {"interface_name": ""}, "interface_name: expected a text"),
        ({"network_dns_servers": ["dns"]}, {}, "expected a resolver"),
        ({"routes": [{"destination": "10.9.0.0/16"}]}, {}, "expected a gateway"),
        ({"routes": [{"destination": "10.9.0.0/16", "gateway": "fd00:1::7"}]}, {}, "not of the family"),
        ({"routes": [{"destination": "10.9.0.0/16", "route_type": "scenic"}]}, {}, "expected one of unicast"),
        ({"network_interface": None}, {}, "network_interface: expected a text"),
        ({}, {"options": {"colour": "red"}}, "knows no option colour of a container"),
    ],
)
def test_what_is_wrong_with_an_attachment_is_one_sentence(
    network: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ContractError) as caught:
        attached(network, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_status_says_what_the_container_has() -> None:
    made = attached(static_ips=["10.1.2.9", "fd00:1::9"])
    assert netavark.status(made, bytes((2, 0, 0, 0, 0, 9)), ["169.254.1.1"]) == {
        "dns_search_domains": [],
        "dns_server_ips": ["169.254.1.1"],
        "interfaces": {
            "eth0": {
                "mac_address": "02:00:00:00:00:09",
                "subnets": [
                    {"ipnet": "10.1.2.9/24", "gateway": "10.1.2.1"},
                    {"ipnet": "fd00:1::9/64", "gateway": "fd00:1::1"},
                ],
            }
        },
    }


def test_an_internal_network_has_no_gateway() -> None:
    status = netavark.status(attached({"internal": True}), bytes(6), [])
    assert status["interfaces"]["eth0"]["subnets"] == [{"ipnet": "10.1.2.9/24", "gateway": None}]


def test_what_cannot_be_understood_of_other_networks_is_left_out() -> None:
    found = netavark.subnets_of({"subnets": [{"subnet": "nonsense"}, None, {"subnet": "10.1.2.0/24"}]})
    assert [one.text(one.number) for one in found] == ["10.1.2.0/24"]
    assert netavark.subnets_of({"subnets": None}) == []
