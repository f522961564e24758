# SPDX-License-Identifier: Apache-2.0
"""Real rootless Podman with our `pasta` as its helper, through what contrib/podman/ holds: containers, pods, published
ports, builds and bridge networks.

Adversary: nobody. Sockets of a container are made in its network by the test itself: its image is a busybox.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from podman_host import ADDRESSES, FAR, IMAGE, PodmanHost, exchange
from podman_traffic import ANY, DATAGRAM, HOST, RESOLVER, STREAM, asks, each_version, looks_up, takes
from running import name


@pytest.fixture(name="host")
def shared_host(podman_host: PodmanHost) -> PodmanHost:
    return podman_host


def test_podman_knows_that_it_is_lockgate(host: PodmanHost) -> None:
    told = json.loads(host.podman("info", "-f", "json"))["host"]["pasta"]
    assert told["executable"] == "/opt/lockgate/libexec/podman/pasta"
    assert "lockgate" in told["version"]


def test_a_container_has_the_addresses_of_the_host(host: PodmanHost) -> None:
    told = host.podman("run", "--rm", IMAGE, "sh", "-c", "ip address show up0; ip route; ip -6 route")
    assert f"inet {ADDRESSES[4]}/24" in told and f"inet6 {ADDRESSES[6]}/64" in told and "mtu 65520" in told
    assert f"default via {FAR[4]} dev up0" in told and f"default via {FAR[6]} dev up0" in told


def test_a_container_is_told_of_the_hosts_resolver_and_of_the_host(host: PodmanHost) -> None:
    told = host.podman("run", "--rm", "--name=me", IMAGE, "cat", "/etc/resolv.conf", "/etc/hosts").splitlines()
    assert told[0] == f"nameserver {RESOLVER}"
    names = {line.split()[0]: line.split()[1:] for line in told if "." in line and not line.startswith("nameserver")}
    assert "host.containers.internal" in names[HOST]
    assert "me" in names[ADDRESSES[4]]


def test_a_container_pings_the_host_by_its_name(host: PodmanHost) -> None:
    with host.container() as container:
        assert "1 packets received" in container.does("ping -c 1 host.containers.internal")


def test_a_name_is_looked_up_by_the_hosts_resolver(host: PodmanHost) -> None:
    with host.container() as container:
        looks_up(host, container)


@each_version
def test_bytes_go_both_ways_at_once_to_a_host_far_away(host: PodmanHost, version: int) -> None:
    listener, port = host.far.bound(STREAM, FAR[version])
    with listener, host.container() as container, container.sockets() as inside:
        end = inside.connected(STREAM, FAR[version], port)
        accepted, peer = listener.accept()
        assert peer[0] == ADDRESSES[version]
        exchange(end, accepted)


def test_bytes_go_both_ways_at_once_to_the_host(host: PodmanHost) -> None:
    listener, port = host.sockets.bound(STREAM, ADDRESSES[4])
    with listener, host.container() as container, container.sockets() as inside:
        exchange(inside.connected(STREAM, HOST, port), listener.accept()[0])


@each_version
def test_datagrams_are_answered_by_a_host_far_away(host: PodmanHost, version: int) -> None:
    server, port = host.far.bound(DATAGRAM, FAR[version])
    with server, host.container() as container, container.sockets() as inside:
        asks(inside.connected(DATAGRAM, FAR[version], port), server)


def test_datagrams_are_answered_by_the_host(host: PodmanHost) -> None:
    server, port = host.sockets.bound(DATAGRAM, ADDRESSES[4])
    with server, host.container() as container, container.sockets() as inside:
        asks(inside.connected(DATAGRAM, HOST, port), server)


def test_a_published_port_is_reached_at_each_address_of_the_host(host: PodmanHost) -> None:
    with host.container("-p", "8080:80") as container:
        for address in ("127.0.0.1", "::1", *ADDRESSES.values()):
            takes(host, container, (address, 8080), 80)


@each_version
def test_a_container_sees_the_address_of_who_connects_from_afar(host: PodmanHost, version: int) -> None:
    with host.container("-p", "8080:80") as container, container.sockets() as inside:
        listener, _ = inside.bound(STREAM, ANY[version], 80)
        with listener:
            end = host.far.connected(STREAM, ADDRESSES[version], 8080)
            accepted, peer = listener.accept()
            assert peer[0] == FAR[version]
            exchange(end, accepted)


@pytest.mark.parametrize("network", ["pasta", "pasta:--host-lo-to-ns-lo"])
def test_whoever_comes_from_localhost_is_seen_by_the_containers_own_address(host: PodmanHost, network: str) -> None:
    """Or, if that is asked for, by the same loopback address."""
    with host.container("--network", network, "-p", "8080:80") as container:
        for version, address in ((4, "127.0.0.1"), (6, "::1")):
            seen = ADDRESSES[version] if network == "pasta" else address
            assert takes(host, container, (address, 8080), 80) == seen


@each_version
def test_a_port_of_the_hosts_localhost_may_be_one_of_the_containers(host: PodmanHost, version: int) -> None:
    address = {4: "127.0.0.1", 6: "::1"}[version]
    with host.container("--network", "pasta:-T,5432,-U,5353") as container, container.sockets() as inside:
        listener, _ = host.sockets.bound(STREAM, address, 5432)
        with listener:
            end = inside.connected(STREAM, address, 5432)
            accepted, peer = listener.accept()
            assert peer[0] == address
            exchange(end, accepted)
        server, _ = host.sockets.bound(DATAGRAM, address, 5353)
        with server:
            asks(inside.connected(DATAGRAM, address, 5353), server)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_port_published_at_one_address_is_at_no_other(host: PodmanHost, address: str) -> None:
    with host.container("-p", f"{address}:8080:80") as container:
        takes(host, container, (address.strip("[]"), 8080), 80)
        for other in ADDRESSES.values():
            with pytest.raises(ConnectionRefusedError):
                host.sockets.connected(STREAM, other, 8080)


def test_each_port_of_a_published_range_leads_to_its_own(host: PodmanHost) -> None:
    with host.container("-p", "8080-8082:80-82") as container:
        for index in range(3):
            takes(host, container, ("127.0.0.1", 8080 + index), 80 + index)


@each_version
def test_datagrams_to_a_published_port_are_answered(host: PodmanHost, version: int) -> None:
    with host.container("-p", "5353:53/udp") as container, container.sockets() as inside:
        server, _ = inside.bound(DATAGRAM, ANY[version], 53)
        for sockets, address in ((host.far, ADDRESSES), (host.sockets, {4: "127.0.0.1", 6: "::1"})):
            asks(sockets.connected(DATAGRAM, address[version], 5353), server)


def test_a_port_that_is_taken_is_told(host: PodmanHost) -> None:
    listener, port = host.sockets.bound(STREAM, "0.0.0.0")
    with (
        listener,
        pytest.raises(AssertionError, match=rf"{port}.*ddress already in use(?s:.*)\(-p {port}:80 of podman"),
    ):
        host.podman("run", "--rm", "-p", f"{port}:80", IMAGE, "true")


def test_a_container_that_is_gone_leaves_no_process(host: PodmanHost) -> None:
    host.podman("run", "--rm", "-p", "8080:80", IMAGE, "true")
    host.awaits_no_helper()


def test_containers_of_a_pod_share_one_network(host: PodmanHost) -> None:
    host.podman("pod", "create", "--name=pod", "-p", "8080:80", "--infra-command=sleep 1000", f"--infra-image={IMAGE}")
    try:
        with host.container("--pod=pod") as one, host.container("--pod=pod") as other:
            takes(host, one, ("127.0.0.1", 8080), 80)
            assert one.does("readlink /proc/self/ns/net") == other.does("readlink /proc/self/ns/net")
            assert [name(pid) for pid in host.helpers()].count("pasta") == 1
    finally:
        host.podman("pod", "rm", "-f", "-t", "0", "pod")


def test_a_build_reaches_the_host(host: PodmanHost) -> None:
    (host.home / "Containerfile").write_text(f"FROM {IMAGE}\nRUN ping -c 1 {HOST} >/told\nRUN cat /etc/resolv.conf\n")
    told = host.podman("build", "--cap-add=net_raw", "-t", "localhost/built", ".")
    assert f"nameserver {RESOLVER}" in told
    assert "1 packets received" in host.podman("run", "--rm", "localhost/built", "cat", "/told")
    host.awaits_no_helper()


@pytest.fixture(name="lan")
def made_lan(host: PodmanHost) -> Iterator[str]:
    host.podman("network", "create", "--ipv6", "lan")
    yield "--network=lan"
    host.podman("network", "rm", "-f", "lan")


def test_a_container_on_a_bridge_reaches_the_host_and_whoever_is_far_away(host: PodmanHost, lan: str) -> None:
    listener, port = host.far.bound(STREAM, FAR[4])
    with listener, host.container(lan) as container, container.sockets() as inside:
        assert "1 packets received" in container.does("ping -c 1 host.containers.internal")
        end = inside.connected(STREAM, FAR[4], port)
        exchange(end, listener.accept()[0])


def test_containers_on_bridges_have_one_helper_which_ends_with_the_last(host: PodmanHost, lan: str) -> None:
    with host.container(lan) as one, host.container(lan, "--name=other", "-p", "8080:80") as other:
        assert "1 packets received" in one.does("ping -c 1 other")
        takes(host, other, ("127.0.0.1", 8080), 80)
        assert [name(pid) for pid in host.helpers()].count("pasta") == 1
    host.awaits_no_helper()


def test_a_container_is_restarted_with_its_port(host: PodmanHost) -> None:
    with host.container("-p", "8080:80", "-p", "5353:53/udp") as container:
        for _ in range(3):
            host.podman("restart", "-t", "0", container.name)
            takes(host, container, ("127.0.0.1", 8080), 80)
