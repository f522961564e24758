# SPDX-License-Identifier: Apache-2.0
"""Real rootless Podman with our `pasta`: ports at one address, at one interface, in ranges and of both families, and
the resolver by both protocols.

Adversary: nobody.
"""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from podman_host import ADDRESSES, FAR, IMAGE, PodmanHost, exchange
from podman_traffic import ANY, DATAGRAM, RESOLVER, STREAM, asks, each_version, takes
from resolver import ANSWER, NAME, answer
from scapy.layers.dns import DNS, DNSQR

LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(name="host")
def shared_host(podman_host: PodmanHost) -> PodmanHost:
    return podman_host


def is_refused(host: PodmanHost, address: str, port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        host.sockets.connected(STREAM, address, port)


@each_version
def test_a_port_at_an_address_of_the_host_is_not_at_its_loopback(host: PodmanHost, version: int) -> None:
    address = f"[{ADDRESSES[6]}]" if version == 6 else ADDRESSES[4]
    with host.container("-p", f"{address}:8080:80") as container:
        takes(host, container, (ADDRESSES[version], 8080), 80)
        is_refused(host, LOOPBACK[version], 8080)
        is_refused(host, ADDRESSES[10 - version], 8080)


def test_a_port_at_an_interface_is_at_no_other(host: PodmanHost) -> None:
    with host.container("--network=pasta:-t,%up0/8080:80") as container, container.sockets() as inside:
        for version in (4, 6):
            listener, _ = inside.bound(STREAM, ANY[version], 80)
            with listener:
                end = host.far.connected(STREAM, ADDRESSES[version], 8080)
                exchange(end, listener.accept()[0])
            is_refused(host, LOOPBACK[version], 8080)


@each_version
def test_each_port_of_a_range_of_udp_leads_to_its_own(host: PodmanHost, version: int) -> None:
    with host.container("-p", "5353-5355:53-55/udp") as container, container.sockets() as inside:
        for index in range(3):
            server, _ = inside.bound(DATAGRAM, ANY[version], 53 + index)
            with server:
                asks(host.far.connected(DATAGRAM, ADDRESSES[version], 5353 + index), server)


def test_one_number_is_a_port_of_both_protocols(host: PodmanHost) -> None:
    with host.container("-p", "8080:80/tcp", "-p", "8080:80/udp") as container, container.sockets() as inside:
        takes(host, container, (ADDRESSES[4], 8080), 80)
        server, _ = inside.bound(DATAGRAM, ANY[4], 80)
        asks(host.sockets.connected(DATAGRAM, "127.0.0.1", 8080), server)


def test_containers_share_a_port_at_two_addresses(host: PodmanHost) -> None:
    with (
        host.container("-p", "127.0.0.1:8080:80") as one,
        host.container("-p", f"{ADDRESSES[4]}:8080:80") as other,
    ):
        takes(host, one, ("127.0.0.1", 8080), 80)
        takes(host, other, (ADDRESSES[4], 8080), 80)


@each_version
def test_a_datagram_from_afar_is_seen_with_its_source(host: PodmanHost, version: int) -> None:
    with host.container("-p", "5353:53/udp") as container, container.sockets() as inside:
        server, _ = inside.bound(DATAGRAM, ANY[version], 53)
        client = host.far.connected(DATAGRAM, ADDRESSES[version], 5353)
        client.send(b"question")
        _, source = server.recvfrom(100)
        assert source[:2] == client.getsockname()[:2]


def test_a_large_datagram_arrives_whole(host: PodmanHost) -> None:
    data = bytes(range(256)) * 200
    server, port = host.far.bound(DATAGRAM, FAR[4])
    with server, host.container() as container, container.sockets() as inside:
        client = inside.connected(DATAGRAM, FAR[4], port)
        client.send(data)
        came, source = server.recvfrom(1 << 16)
        server.sendto(came, source)
        assert came == client.recv(1 << 16) == data


def test_a_name_is_looked_up_over_tcp_too(host: PodmanHost) -> None:
    question = bytes(DNS(rd=1, qd=DNSQR(qname=NAME)))
    listener, _ = host.far.bound(STREAM, FAR[4], 53)
    with listener, host.container() as container, container.sockets() as inside:
        end = inside.connected(STREAM, RESOLVER, 53)
        accepted, _ = listener.accept()
        with end, accepted:
            end.sendall(struct.pack("!H", len(question)) + question)
            reply = answer(accepted.recv(512)[2:])
            accepted.sendall(struct.pack("!H", len(reply)) + reply)
            assert DNS(end.recv(512)[2:]).an[0].rdata == ANSWER


def test_a_build_fetches_from_afar(host: PodmanHost) -> None:
    listener, port = host.far.bound(STREAM, FAR[4])
    (host.home / "Fetching").write_text(f"FROM {IMAGE}\nRUN nc {FAR[4]} {port} </dev/null >/told\n")
    with listener, ThreadPoolExecutor(1) as pool:
        built = pool.submit(host.podman, "build", "-f", "Fetching", "-t", "localhost/fetched", ".")
        with listener.accept()[0] as end:
            end.sendall(b"from afar")
        built.result()
    assert host.podman("run", "--rm", "localhost/fetched", "cat", "/told") == "from afar"
