# SPDX-License-Identifier: Apache-2.0
"""What an ordinary guest learns by itself when it comes up: DHCP, autoconfiguration, the features of its device.

Adversary: nobody.
"""

from __future__ import annotations

import pytest
from network import ADDRESS, GATEWAY, PREFIX, Network

WANTED_FEATURES = {
    "CSUM",
    "GUEST_CSUM",
    "GUEST_TSO4",
    "GUEST_TSO6",
    "HOST_TSO4",
    "HOST_TSO6",
    "MRG_RXBUF",
    "INDIRECT_DESC",
    "EVENT_IDX",
    "VERSION_1",
}


def test_dhcp_gives_the_address_that_was_asked_for_with_route_and_mtu(network: Network) -> None:
    """The lease has -a, -n and -g of the command line, and the default MTU of 65520."""
    assert network.addressed
    lease = network.guest.lease()
    assert (lease["ip"], lease["mask"], lease["router"]) == (ADDRESS[4], str(PREFIX[4]), GATEWAY[4])
    assert lease["mtu"] == network.guest.output("cat /sys/class/net/eth0/mtu") == "65520"
    assert network.guest.gateway() == GATEWAY[4]


def test_autoconfiguration_gives_an_address_in_the_prefix_and_a_link_local_router(network: Network) -> None:
    """The prefix of the router advertisement is that of -a, and its source is the default route."""
    assert network.addressed
    shown = network.guest.output("ip -6 addr show dev eth0 scope global").split()
    assert shown[shown.index("inet6") + 1].startswith("fd77::")
    assert network.guest.gateway(6).startswith("fe80::")


def test_a_guest_gets_every_offload_that_its_front_end_can_do(network: Network) -> None:
    """All that the data path offers was acknowledged by this front end and this kernel."""
    if network.variant.kind.endswith("-stream"):
        pytest.skip("on a stream link the network card is QEMU's own: there are no features to negotiate with a helper")
    features = set(network.guest.features())
    assert WANTED_FEATURES <= features
    if network.variant.kind == "uml-peer":
        assert features >= {"HOST_USO", "GUEST_USO4", "GUEST_USO6"}, "Linux has it since 6.2, and this is 7.2"


def test_the_gateway_answers_echo_requests_of_both_families(network: Network) -> None:
    """ping of the IPv4 gateway, and of the link-local router."""
    assert network.addressed
    for family in (4, 6):
        result = network.run(f"ping -c 2 -i 0.1 -W 2 {network.guest.gateway(family)}")
        assert result.status == 0, result.output
