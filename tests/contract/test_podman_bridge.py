# SPDX-License-Identifier: Apache-2.0
"""Networks of the driver lockgate, and our rootlessport, in real rootless Podman: who sees whom by which address, and
that nothing is left behind.

Adversary: nobody, but for the processes of others that come to the meeting place. Sockets of a container are made in
its network by the test itself: its image is a busybox.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from namespace_sockets import NamespaceSockets
from podman_host import ADDRESSES, FAR, IMAGE, Container, PodmanHost, exchange
from podman_traffic import ANY, DATAGRAM, HOST, RESOLVER, STREAM, asks, each_version, looks_up
from rootless_host import AS_USER, USER
from running import PATIENCE, name

SHARED = f"/run/user/{USER}/containers/networks/rootless-netns"


@pytest.fixture(scope="module", name="host")
def host_with_networks(podman_host: PodmanHost) -> Iterator[PodmanHost]:
    for network, driver in (("lockgate", "lockgate"), ("plain", "bridge")):
        podman_host.podman("network", "create", "-d", driver, "--ipv6", network)
    podman_host.podman("network", "create", "-d", "lockgate", "other")
    yield podman_host
    podman_host.podman("network", "rm", "-f", "-t", "0", "lockgate", "plain", "other")


each_network = pytest.mark.parametrize("network", ["lockgate", "plain"])  # the second one is of netavark's own driver


def addresses(container: Container, network: str = "lockgate") -> dict[int, str]:
    (told,) = json.loads(container.host.podman("inspect", container.name))
    own = told["NetworkSettings"]["Networks"][network]
    return {4: own["IPAddress"], 6: own["GlobalIPv6Address"]}


def sees(
    inside: NamespaceSockets, kind: int, port: int, outside: NamespaceSockets, to: tuple[str, int], version: int
) -> str:
    """Who connects from outside, as the container sees it, once bytes have gone both ways."""
    server, _ = inside.bound(kind, ANY[version], port)
    with server:
        end = outside.connected(kind, *to)
        if kind == DATAGRAM:
            with end:
                return asks(end, server)
        accepted, peer = server.accept()
        exchange(end, accepted)
        return str(peer[0])


def test_podman_knows_the_driver(host: PodmanHost) -> None:
    assert "lockgate" in json.loads(host.podman("info", "-f", "json"))["plugins"]["network"]


def test_a_network_gets_subnets_of_its_own(host: PodmanHost) -> None:
    told = json.loads(host.podman("network", "inspect", "lockgate", "other"))
    assert [len(one["subnets"]) for one in told] == [2, 1]
    assert len({subnet["subnet"] for one in told for subnet in one["subnets"]}) == 3


def test_an_option_that_lockgate_does_not_know_is_refused(host: PodmanHost) -> None:
    with pytest.raises(AssertionError, match="knows no option colour; expected one of mtu"):
        host.podman("network", "create", "-d", "lockgate", "-o", "colour=red", "red")


def test_a_container_has_large_packets_and_the_hosts_resolver(host: PodmanHost) -> None:
    with host.container("--network=lockgate") as container:
        assert "mtu 65520" in container.does("ip link show eth0")
        assert container.does("cat /etc/resolv.conf").splitlines()[0] == f"nameserver {RESOLVER}"


@each_version
def test_a_host_far_away_and_a_container_exchange_bytes(host: PodmanHost, version: int) -> None:
    listener, port = host.far.bound(STREAM, FAR[version])
    with listener, host.container("--network=lockgate") as container, container.sockets() as inside:
        end = inside.connected(STREAM, FAR[version], port)
        accepted, peer = listener.accept()
        assert peer[0] == ADDRESSES[version]
        exchange(end, accepted)


@each_version
def test_datagrams_and_pings_of_a_container_are_answered(host: PodmanHost, version: int) -> None:
    server, port = host.far.bound(DATAGRAM, FAR[version])
    with server, host.container("--network=lockgate") as container, container.sockets() as inside:
        asks(inside.connected(DATAGRAM, FAR[version], port), server)
        assert "1 packets received" in container.does(f"ping -c 1 {FAR[version]}")


def test_a_container_reaches_the_host(host: PodmanHost) -> None:
    listener, port = host.sockets.bound(STREAM, ADDRESSES[4])
    with listener, host.container("--network=lockgate") as container, container.sockets() as inside:
        exchange(inside.connected(STREAM, HOST, port), listener.accept()[0])
        assert "1 packets received" in container.does("ping -c 1 host.containers.internal")


def test_a_name_is_looked_up_by_the_hosts_resolver(host: PodmanHost) -> None:
    with host.container("--network=lockgate") as container:
        looks_up(host, container)


@each_version
def test_containers_of_a_network_see_each_other_by_their_own_addresses(host: PodmanHost, version: int) -> None:
    with ExitStack() as stack:
        one, other = (stack.enter_context(host.container("--network=lockgate")) for _ in range(2))
        inside, outside = (stack.enter_context(container.sockets()) for container in (one, other))
        to = addresses(one)[version], 80
        assert sees(inside, STREAM, 80, outside, to, version) == addresses(other)[version]


def test_a_container_on_two_networks_reaches_both_and_the_host(host: PodmanHost) -> None:
    with ExitStack() as stack:
        both = stack.enter_context(host.container("--network=lockgate", "--network=other"))
        one = stack.enter_context(host.container("--network=lockgate"))
        other = stack.enter_context(host.container("--network=other"))
        outside = stack.enter_context(both.sockets())
        for container, network in ((one, "lockgate"), (other, "other")):
            inside = stack.enter_context(container.sockets())
            to = addresses(container, network)[4], 80
            assert sees(inside, STREAM, 80, outside, to, 4) == addresses(both, network)[4]
        assert "1 packets received" in both.does(f"ping -c 1 {HOST}")
        assert [name(pid) for pid in host.helpers()].count("pasta") == 1


def test_a_container_may_choose_its_address_its_mac_and_the_name_of_its_interface(host: PodmanHost) -> None:
    (told,) = json.loads(host.podman("network", "inspect", "other"))
    own = told["subnets"][0]["gateway"].removesuffix(".1") + ".77"
    with host.container(f"--network=other:ip={own},mac=02:00:00:00:00:77,interface_name=lan") as container:
        shown = container.does("ip address show lan")
        assert f"inet {own}/24" in shown and "02:00:00:00:00:77" in shown


def test_a_container_leaves_and_joins_networks_while_it_runs(host: PodmanHost) -> None:
    with host.container("--network=lockgate") as container:
        host.podman("network", "connect", "other", container.name)
        host.podman("network", "disconnect", "lockgate", container.name)
        assert f"inet {addresses(container, 'other')[4]}/24" in container.does("ip address show eth1")
        assert "eth0" not in container.does("ip link")
        assert "1 packets received" in container.does(f"ping -c 1 {HOST}")


@each_network
@each_version
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_a_container_sees_who_connects_to_its_port_from_afar(
    host: PodmanHost, network: str, version: int, kind: int
) -> None:
    port = "8080:80/udp" if kind == DATAGRAM else "8080:80"
    with host.container(f"--network={network}", "-p", port) as container, container.sockets() as inside:
        assert sees(inside, kind, 80, host.far, (ADDRESSES[version], 8080), version) == FAR[version]


@each_network
@each_version
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_a_port_is_reached_from_the_host_itself(host: PodmanHost, network: str, version: int, kind: int) -> None:
    port = "8080:80/udp" if kind == DATAGRAM else "8080:80"
    loopback = {4: "127.0.0.1", 6: "::1"}[version]
    with host.container(f"--network={network}", "-p", port) as container, container.sockets() as inside:
        for address in (loopback, ADDRESSES[version]):
            sees(inside, kind, 80, host.sockets, (address, 8080), version)


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_localhost_by_ipv6_reaches_a_container_of_ipv4(host: PodmanHost, kind: socket.SocketKind) -> None:
    """Podman's default network has no IPv6. The container sees the host, by a name that it can answer. Cause: datagrams
    were refused, as it was believed of Podman's own."""
    port = "8080:80/udp" if kind == DATAGRAM else "8080:80"
    with host.container("--network=podman", "-p", port) as container, container.sockets() as inside:
        assert sees(inside, kind, 80, host.sockets, ("::1", 8080), 4) == HOST
        sees(inside, kind, 80, host.sockets, ("127.0.0.1", 8080), 4)


def test_ports_of_a_range_lead_to_their_own_and_a_port_at_an_address_to_no_other(host: PodmanHost) -> None:
    ports = ("-p", "8080-8082:80-82", "-p", "127.0.0.1:9090:90")
    with host.container("--network=lockgate", *ports) as container, container.sockets() as inside:
        for place in range(3):
            assert sees(inside, STREAM, 80 + place, host.far, (ADDRESSES[4], 8080 + place), 4) == FAR[4]
        sees(inside, STREAM, 90, host.sockets, ("127.0.0.1", 9090), 4)
        with pytest.raises(ConnectionRefusedError):
            host.far.connected(STREAM, ADDRESSES[4], 9090)


def test_a_container_reaches_the_port_of_another_by_way_of_the_host(host: PodmanHost) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(host.container("--network=lockgate", "-p", "8080:80"))
        other = stack.enter_context(host.container("--network=lockgate"))
        inside, outside = (stack.enter_context(container.sockets()) for container in (one, other))
        assert sees(inside, STREAM, 80, outside, (HOST, 8080), 4) == HOST


def test_a_port_that_is_taken_is_told(host: PodmanHost) -> None:
    listener, port = host.sockets.bound(STREAM, "0.0.0.0")
    with listener, pytest.raises(AssertionError, match=f"{port}.*ddress already in use"):
        host.podman("run", "--rm", "--network=lockgate", "-p", f"{port}:80", IMAGE, "true")


def test_a_port_of_another_container_is_told(host: PodmanHost) -> None:
    with host.container("--network=lockgate", "-p", "8080:80"):
        with pytest.raises(AssertionError, match="8080.*ddress already in use"):
            host.podman("run", "--rm", "--network=other", "-p", "8080:80", IMAGE, "true")


@each_network
def test_a_port_follows_its_container_to_another_network(host: PodmanHost, network: str) -> None:
    with host.container(f"--network={network}", "-p", "8080:80") as container, container.sockets() as inside:
        assert sees(inside, STREAM, 80, host.far, (ADDRESSES[4], 8080), 4) == FAR[4]
        host.podman("network", "connect", "other", container.name)
        host.podman("network", "disconnect", network, container.name)
        assert sees(inside, STREAM, 80, host.far, (ADDRESSES[4], 8080), 4) == FAR[4]


def test_a_container_is_restarted_with_its_port(host: PodmanHost) -> None:
    with host.container("--network=lockgate", "-p", "8080:80") as container:
        for _ in range(3):
            host.podman("restart", "-t", "0", container.name)
            with container.sockets() as inside:
                assert sees(inside, STREAM, 80, host.far, (ADDRESSES[4], 8080), 4) == FAR[4]


def test_a_port_that_we_cannot_lead_to_is_left_to_podmans_own_rootlessport(host: PodmanHost) -> None:
    """From IPv6 to a container that has none, bytes must be copied."""
    with host.container("--network=other", "-p", "[::1]:8080:80") as container, container.sockets() as inside:
        sees_it = sees_across(inside, host.sockets)
        assert sees_it == addresses(container, "other")[4]


def sees_across(inside: NamespaceSockets, outside: NamespaceSockets) -> str:
    server, _ = inside.bound(STREAM, ANY[4], 80)
    with server:
        end = outside.connected(STREAM, "::1", 8080)
        accepted, peer = server.accept()
        exchange(end, accepted)
        return str(peer[0])


@pytest.mark.parametrize(
    ("options", "version"),
    [(["--internal"], 4), (["-d", "lockgate", "--internal"], 4), (["-o", "no_default_route=1"], 4)]
    + [(["--subnet", "fd00:66::/64"], 6)],
    ids=str,
)
def test_callers_whom_a_container_cannot_answer_reach_it_by_podmans_own(
    host: PodmanHost, options: list[str], version: int
) -> None:
    """For want of a route, or of an address of their family."""
    host.podman("network", "create", *options, "shut")
    try:
        with host.container("--network=shut", "-p", "8080:80") as container, container.sockets() as inside:
            seen = sees(inside, STREAM, 80, host.sockets, ("127.0.0.1", 8080), version)
            assert seen == addresses(container, "shut")[version]
    finally:
        host.podman("network", "rm", "-f", "-t", "0", "shut")


def test_nobody_leaves_an_internal_network(host: PodmanHost) -> None:
    host.podman("network", "create", "-d", "lockgate", "--internal", "--ipv6", "inner")
    try:
        with host.container("--network=inner", "--cap-add=net_admin") as one, host.container("--network=inner") as two:
            own, other = addresses(one, "inner"), addresses(two, "inner")
            for version in (4, 6):
                assert "1 packets received" in one.does(f"ping -c 1 {other[version]}")
                gateway = own[version].rpartition(":" if version == 6 else ".")[0] + {4: ".1", 6: ":1"}[version]
                one.does(f"ip -{version} route add default via {gateway}")
                assert "0 packets received" in one.does(f"ping -c 1 -W 1 {FAR[version]} || true")
    finally:
        host.podman("network", "rm", "-f", "-t", "0", "inner")


def test_a_network_without_a_default_route_and_with_an_mtu(host: PodmanHost) -> None:
    host.podman("network", "create", "-d", "lockgate", "-o", "no_default_route=1", "-o", "mtu=1400", "small")
    try:
        with host.container("--network=small") as container:
            assert "default" not in container.does("ip route")
            assert "mtu 1400" in container.does("ip link show eth0")
    finally:
        host.podman("network", "rm", "-f", "-t", "0", "small")


def links(host: PodmanHost) -> list[str]:
    """Of the shared namespace; those that are always there left out."""
    told = json.loads(host.podman("unshare", "--rootless-netns", "ip", "-j", "link"))
    return [one["ifname"] for one in told if one["ifname"] not in ("lo", "up0")]


def test_a_container_that_is_gone_leaves_nothing(host: PodmanHost) -> None:
    with host.container("--network=other"):
        before = links(host)
        with host.container("--network=lockgate", "-p", "8080:80"):
            assert len(links(host)) == len(before) + 2
        assert links(host) == before
        refused_at_last(host.sockets, ("127.0.0.1", 8080))
    host.awaits_no_helper()
    assert not host.does("sh", "-c", f"ls {SHARED} 2>/dev/null || true")


def refused_at_last(outside: NamespaceSockets, to: tuple[str, int]) -> None:
    """Podman does not wait for its rootlessport to end."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            outside.connected(STREAM, *to).close()
        except ConnectionRefusedError:
            return
    raise AssertionError("somebody listens still")


def test_a_container_that_is_killed_hard_leaves_nothing(host: PodmanHost) -> None:
    with host.container("--network=other"):
        before = links(host)
        with host.container("--network=lockgate", "-p", "8080:80") as container:
            host.podman("kill", "--signal=KILL", container.name)
            host.podman("wait", "--condition=exited", container.name)
            host.podman("start", container.name)
            with container.sockets() as inside:
                assert sees(inside, STREAM, 80, host.far, (ADDRESSES[4], 8080), 4) == FAR[4]
        assert links(host) == before


def test_a_helper_that_is_killed_is_followed_by_another_with_the_same_ports(host: PodmanHost) -> None:
    """Podman looks for it when the next container comes; those that are there have their network and ports again."""
    with host.container("--network=lockgate", "-p", "8080:80") as container, container.sockets() as inside:
        os.kill(next(pid for pid in host.helpers() if name(pid) == "pasta"), signal.SIGKILL)
        host.awaits_no_helper()
        other = ("--network=lockgate", "-d", IMAGE, "sleep", "1000")
        second = host.podman("--log-level=fatal", "run", *other).strip()  # it warns, rightly
        try:
            assert "1 packets received" in container.does(f"ping -c 1 {FAR[4]}")
            server, _ = inside.bound(STREAM, ANY[4], 80)
            with server:
                end = connected_at_last(host.far, (ADDRESSES[4], 8080))
                accepted, peer = server.accept()
                assert peer[0] == FAR[4]
                exchange(end, accepted)
        finally:
            host.podman("rm", "-f", "-t", "0", second)


def connected_at_last(outside: NamespaceSockets, to: tuple[str, int]) -> socket.socket:
    """Once somebody listens there; rootlessport looks for a helper each second."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return outside.connected(STREAM, *to)
        except ConnectionRefusedError:
            assert time.monotonic() < until, "nobody listens any more"


# A helper folder in which pasta changes its ports as newer Podman has it done, and rootlessport does nothing.
NEWER = {
    "pasta": f'#!/bin/sh\nexec /opt/lockgate/bin/pasta -c {SHARED}/pasta.sock "$@"\n',
    "rootlessport": "#!/bin/sh\ncat >/dev/null; printf 1 >&4; exec 4>&- 1>/dev/null 2>&1; exec cat <&3\n",
}


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_ports_that_pesto_opens_lead_to_who_published_them(host: PodmanHost, kind: int) -> None:
    """As Podman 6.1 calls it with rootless_port_forwarder = "pasta": after the network is set up, before it is taken
    down, and with the host's port on both sides."""
    folder = host.home / "newer"
    folder.mkdir(exist_ok=True)
    for helper, script in NEWER.items():
        (folder / helper).write_text(script)
        (folder / helper).chmod(0o755)
    host.awaits_no_helper()
    option, port = ("-u", "8080:80/udp") if kind == DATAGRAM else ("-t", "8080:80")
    ways = [option, "0.0.0.0/8080", option, "[::]/8080", f"{SHARED}/pasta.sock"]
    words = ("run", "-d", "--network=lockgate", "-p", port, IMAGE, "sleep", "1000")
    container = Container(host, host.podman(*words, environment=(f"CONTAINERS_HELPER_BINARY_DIR={folder}",)).strip())
    try:
        host.does(*AS_USER, "pesto", "--add", *ways)
        with container.sockets() as inside:
            for version in (4, 6):
                assert sees(inside, kind, 80, host.far, (ADDRESSES[version], 8080), version) == FAR[version]
        host.does(*AS_USER, "pesto", "--delete", *ways)
    finally:
        host.podman("rm", "-f", "-t", "0", container.name)
