# SPDX-License-Identifier: Apache-2.0
"""plugin/bridge/bridge_network.py in real namespaces: one that is shared, and containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from namespaces import Namespace, in_child

from lockgate.plugin.bridge import bridge_network
from lockgate.plugin.bridge.bridge_network import BridgeError
from lockgate.plugin.contracts import netavark
from lockgate.plugin.contracts.netavark import Attachment

MTU = 65520
BRIDGE = "lan0"
SUBNETS = [{"subnet": "10.1.2.0/24", "gateway": "10.1.2.1"}, {"subnet": "fd00:1::/64", "gateway": "fd00:1::1"}]
OTHER = {"id": 64 * "b", "network_interface": "lan1", "subnets": [{"subnet": "10.1.3.0/24", "gateway": "10.1.3.1"}]}


class Shared:
    """The namespace that containers share."""

    def __init__(self) -> None:
        self.inside = Namespace("--user", "--map-root-user", "--net")
        self.containers: list[Namespace] = []

    def container(self) -> Namespace:
        self.containers.append(Namespace("--net", prefix=self.inside.prefix))
        return self.containers[-1]

    def attach(self, made: Attachment, container: Namespace) -> str:
        """The MAC address that it got, or what is wrong."""

        def work() -> str:
            try:
                return bridge_network.attach(made, container.path(), MTU).hex(":")
            except BridgeError as fault:
                return str(fault)

        return str(in_child(self.inside, work))

    def detach(self, made: Attachment) -> None:
        in_child(self.inside, lambda: bridge_network.detach(made))

    def links(self) -> list[str]:
        return [one["ifname"] for one in self.inside.ip("link") if one["ifname"] != "lo"]

    def close(self) -> None:
        for one in (*self.containers, self.inside):
            one.close()


@pytest.fixture
def shared() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.close()


def attachment(place: int = 2, network: dict[str, Any] | None = None, **options: Any) -> Attachment:
    """Of the container with this number."""
    whole = {"name": "lan", "id": 64 * "a", "network_interface": BRIDGE, "subnets": SUBNETS, **(network or {})}
    static = [subnet["gateway"].removesuffix("1") + str(place) for subnet in whole["subnets"]]
    own = {"interface_name": "eth0", "static_ips": static, **options}
    return netavark.attachment({"container_id": f"{place:064x}", "network": whole, "network_options": own})


def defaults(container: Namespace, family: int) -> list[tuple[str, str, int]]:
    told = container.ip(f"-{family}", "route", "show", "default")
    return [(one["gateway"], one["dev"], one["metric"]) for one in told]


def sysctl(namespace: Namespace, name: str) -> str:
    return namespace.run("cat", f"/proc/sys/net/{name}").strip()


def test_a_container_has_its_addresses_and_a_way_out(shared: Shared) -> None:
    """Nobody is asked whether they are somebody else's."""
    container = shared.container()
    mac = shared.attach(attachment(static_mac="02:00:00:00:00:09"), container)
    (link,) = container.ip("link", "show", "dev", "eth0")
    assert (link["address"], link["mtu"]) == (mac, MTU) == ("02:00:00:00:00:09", MTU) and "UP" in link["flags"]
    assert container.addresses("eth0", 4) == ["10.1.2.2/24"]
    assert container.addresses("eth0", 6) == ["fd00:1::2/64", "fe80::ff:fe00:9/64"]
    (shown,) = container.ip("addr", "show", "dev", "eth0")
    assert not [one for one in shown["addr_info"] if one.get("tentative")]
    assert defaults(container, 4) == [("10.1.2.1", "eth0", 100)]
    assert defaults(container, 6) == [("fd00:1::1", "eth0", 100)]


def test_the_shared_namespace_is_the_router(shared: Shared) -> None:
    container = shared.container()
    shared.attach(attachment(), container)
    assert shared.inside.addresses(BRIDGE, 4) == ["10.1.2.1/24"]
    assert shared.inside.addresses(BRIDGE, 6)[0] == "fd00:1::1/64"
    (bridge,) = shared.inside.ip("link", "show", "dev", BRIDGE)
    before = bridge["address"]
    assert bridge["mtu"] == MTU
    assert sysctl(shared.inside, "ipv4/ip_forward") == sysctl(shared.inside, "ipv6/conf/all/forwarding") == "1"
    shared.attach(attachment(3), shared.container())
    (bridge,) = shared.inside.ip("link", "show", "dev", BRIDGE)
    assert bridge["address"] == before


def test_what_is_left_behind_is_nothing(shared: Shared) -> None:
    """The bridge goes with its last container; asking twice does no harm."""
    containers = [shared.container(), shared.container()]
    for place, container in enumerate(containers, 2):
        shared.attach(attachment(place), container)
    shared.detach(attachment(2))
    assert BRIDGE in shared.links() and len(shared.links()) == 2
    assert [one["ifname"] for one in containers[0].ip("link")] == ["lo"]
    for _ in range(2):
        shared.detach(attachment(3))
        assert shared.links() == []


def test_a_container_may_have_taken_its_end_away_before(shared: Shared) -> None:
    container = shared.container()
    shared.attach(attachment(), container)
    container.run("ip", "link", "del", "eth0")
    shared.detach(attachment())
    assert shared.links() == []


def test_a_container_that_was_killed_gets_its_network_again(shared: Shared) -> None:
    """Though nobody has taken away what it had."""
    first, second = shared.container(), shared.container()
    shared.attach(attachment(), first)
    shared.attach(attachment(), second)
    assert second.addresses("eth0", 4) == ["10.1.2.2/24"]
    assert [one["ifname"] for one in first.ip("link")] == ["lo"] and len(shared.links()) == 2


def test_the_default_route_of_another_network_comes_behind(shared: Shared) -> None:
    container = shared.container()
    shared.attach(attachment(), container)
    shared.attach(attachment(2, OTHER, interface_name="eth1"), container)
    assert defaults(container, 4) == [("10.1.2.1", "eth0", 100), ("10.1.3.1", "eth1", 101)]
    shared.detach(attachment())
    assert defaults(container, 4) == [("10.1.3.1", "eth1", 101)]
    assert [name for name in shared.links() if name.startswith("lan")] == ["lan1"]


def test_options_and_routes_of_a_network_are_kept(shared: Shared) -> None:
    routes = [{"destination": "10.9.0.0/16", "gateway": "10.1.2.7"}]
    routes += [{"destination": "10.8.0.0/16", "route_type": "blackhole", "gateway": ""}]
    network = {"options": {"mtu": "1400", "no_default_route": "1"}, "routes": routes}
    container = shared.container()
    shared.attach(attachment(2, network), container)
    (link,) = container.ip("link", "show", "dev", "eth0")
    assert link["mtu"] == 1400 and not defaults(container, 4) and not defaults(container, 6)
    assert {(one.get("type"), one["dst"], one.get("gateway")) for one in container.ip("-4", "route")} >= {
        (None, "10.9.0.0/16", "10.1.2.7"),
        ("6", "10.8.0.0/16", None),
    }


def test_nothing_is_sent_on_from_an_internal_network(shared: Shared) -> None:
    """By a rule, which goes with the bridge."""
    container = shared.container()
    made = attachment(2, {"internal": True})
    shared.attach(made, container)
    assert not defaults(container, 4) and not defaults(container, 6)
    for family in (4, 6):
        rules = [one for one in shared.inside.ip(f"-{family}", "rule") if one.get("iif") == BRIDGE]
        assert [one["priority"] for one in rules] == [1000]
    shared.attach(made, container)
    shared.detach(made)
    for family in (4, 6):
        assert not [one for one in shared.inside.ip(f"-{family}", "rule") if "iif" in one]


def taken_inside(shared: Shared, container: Namespace) -> None:
    container.run("ip", "link", "add", "eth0", "type", "bridge")


def gone(shared: Shared, container: Namespace) -> None:
    container.end()


@pytest.mark.parametrize(("spoil", "words"), [(taken_inside, "File exists"), (gone, "No such file")])
def test_an_attempt_that_fails_leaves_nothing_behind(
    shared: Shared, spoil: Callable[[Shared, Namespace], None], words: str
) -> None:
    container = shared.container()
    spoil(shared, container)
    told = shared.attach(attachment(), container)
    assert told.startswith("interface eth0 cannot be made: ") and words in told
    assert shared.links() == []


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_what_belongs_to_somebody_else_is_left_alone(shared: Shared, kind: str) -> None:
    shared.inside.run("ip", "link", "add", BRIDGE, "type", kind)
    told = shared.attach(attachment(), shared.container())
    assert told == f"interface {BRIDGE} belongs to something else; choose another with --interface-name"
    shared.detach(attachment())
    assert BRIDGE in shared.links()


def test_a_network_of_ipv4_alone_does_not_make_a_router_for_ipv6(shared: Shared) -> None:
    shared.attach(attachment(2, OTHER), shared.container())
    assert sysctl(shared.inside, "ipv4/ip_forward") == "1"
    assert sysctl(shared.inside, "ipv6/conf/all/forwarding") == "0"
