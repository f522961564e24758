# SPDX-License-Identifier: Apache-2.0
"""A real `podman machine` with our `gvproxy`, through what contrib/podman/ holds: its network, its API socket, and
ports that are published from inside by the HTTP calls that Podman in a machine makes.

Adversary: nobody. Port 7 of the guest echoes. All tests of a Podman share one machine, which takes seconds to start.
With Go's gvproxy 0.8.1 (GVPROXY=/usr/bin/gvproxy) all pass but the two with an answer after the end of what was sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from podman_machine import KINDS, RESOLVER, PodmanMachine, podman_machine
from podman_traffic import DATAGRAM, STREAM
from resolver import ANSWER, NAME, answer
from running import name, status

GUEST, GATEWAY, HOST = "192.168.127.2", "192.168.127.1", "192.168.127.254"
LOCALHOST = "127.0.0.1"
ECHO = 7
SIZE = 1_000_000
PRINTED = b"0123456789\n" * 90_000
PRINT = "yes 0123456789 | head -n 90000"  # in the guest
SIZES = (1, 1472, 4000)  # of datagrams; the last one in fragments


@pytest.fixture(scope="module", params=KINDS)
def machine(request: pytest.FixtureRequest) -> Iterator[PodmanMachine]:
    with podman_machine(request.param) as made:
        made.start()
        yield made


def asked(machine: PodmanMachine, what: str, **body: str) -> tuple[int, str]:
    """Status and text of what the gateway answers to a request from the guest."""
    url = f"http://gateway.containers.internal/services/forwarder/{what}"
    told = machine.guest(f"curl -s -w '\\n%{{http_code}}' -d '{json.dumps(body)}' {url}")
    text, _, code = told.strip().rpartition("\n")
    return int(code), text.strip()


@pytest.fixture
def published(machine: PodmanMachine) -> Iterator[int]:
    """A port of the host that leads to the guest's echo, over TCP and UDP."""
    for protocol in ("tcp", "udp"):
        assert asked(machine, "expose", local=":8080", remote=f":{ECHO}", protocol=protocol) == (200, "")
    yield 8080
    for protocol in ("tcp", "udp"):
        assert asked(machine, "unexpose", local=":8080", protocol=protocol) == (200, "")


def received(end: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer if their end comes before."""
    got = bytearray()
    while len(got) < size and (data := end.recv(size - len(got))):
        got += data
    return bytes(got)


def is_echoed(end: socket.socket) -> None:
    """What is sent comes back while our direction is open; then its end."""
    sent = os.urandom(SIZE)
    with end, ThreadPoolExecutor(1) as pool:
        pool.submit(end.sendall, sent)
        assert received(end, SIZE) == sent


def ping(end: socket.socket) -> str:
    with end:
        end.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        return received(end, 4096).decode()


def test_a_machine_runs(machine: PodmanMachine) -> None:
    assert machine.inspect()["State"] == "running"


def test_a_command_runs_in_a_machine(machine: PodmanMachine) -> None:
    assert machine.guest("id -un").strip() == "core"


def test_the_guest_has_the_address_and_the_frame_size_that_podman_expects(machine: PodmanMachine) -> None:
    told = machine.guest("ip -4 address show eth0")
    assert f"inet {GUEST}/24" in told and "mtu 1500 " in told


def test_the_guests_default_route_is_the_gateway(machine: PodmanMachine) -> None:
    assert machine.guest("ip route show default").split()[:5] == ["default", "via", GATEWAY, "dev", "eth0"]


def test_the_guests_resolver_is_the_gateway(machine: PodmanMachine) -> None:
    assert machine.guest("cat /etc/resolv.conf").split() == ["nameserver", GATEWAY]


@pytest.mark.parametrize("zone", ["containers.internal", "docker.internal"])
def test_the_host_and_the_gateway_have_names(machine: PodmanMachine, zone: str) -> None:
    for label, address in (("host", HOST), ("gateway", GATEWAY)):
        assert f"Address: {address}" in machine.guest(f"nslookup -type=a {label}.{zone}")


def test_a_name_is_looked_up_by_the_hosts_resolver(machine: PodmanMachine) -> None:
    server, _ = machine.sockets.bound(DATAGRAM, RESOLVER, 53)
    with server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(machine.guest, f"nslookup -type=a {NAME}.")
        question, source = server.recvfrom(512)
        server.sendto(answer(question), source)
        assert ANSWER in told.result()


def test_the_gateway_answers_a_ping(machine: PodmanMachine) -> None:
    assert "1 packets received" in machine.guest(f"ping -c 1 {GATEWAY}", user="root")


def test_podmans_api_is_reached_through_its_socket(machine: PodmanMachine) -> None:
    told = ping(machine.api())
    assert told.startswith("HTTP/1.1 200 OK\r\n") and told.endswith("\r\n\r\nOK")


def test_podmans_api_has_several_clients_at_once(machine: PodmanMachine) -> None:
    clients = [machine.api() for _ in range(4)]
    assert all(ping(client).endswith("OK") for client in reversed(clients))


def test_podmans_api_socket_is_its_owners_alone(machine: PodmanMachine) -> None:
    assert stat.S_IMODE(machine.path(machine.api_socket).stat().st_mode) == 0o600


def test_the_ssh_port_is_one_of_localhost_alone(machine: PodmanMachine) -> None:
    with machine.sockets.connected(STREAM, LOCALHOST, machine.ssh_port) as end:
        assert end.recv(100).startswith(b"SSH-2.0-OpenSSH")
    with pytest.raises(ConnectionRefusedError):
        machine.sockets.connected(STREAM, "127.0.0.2", machine.ssh_port)


def test_a_published_port_leads_into_the_guest(machine: PodmanMachine, published: int) -> None:
    is_echoed(machine.sockets.connected(STREAM, LOCALHOST, published))


def test_the_guest_may_answer_after_the_end_of_what_it_was_sent(machine: PodmanMachine, published: int) -> None:
    end = machine.sockets.connected(STREAM, LOCALHOST, published)
    sent = os.urandom(SIZE)
    with end, ThreadPoolExecutor(1) as pool:

        def sends() -> None:
            end.sendall(sent)
            end.shutdown(socket.SHUT_WR)

        pool.submit(sends)
        assert received(end, SIZE + 1) == sent


def test_a_published_port_is_reached_by_ipv6(machine: PodmanMachine, published: int) -> None:
    is_echoed(machine.sockets.connected(STREAM, "::1", published))


def test_datagrams_to_a_published_port_are_answered(machine: PodmanMachine, published: int) -> None:
    with machine.sockets.connected(DATAGRAM, LOCALHOST, published) as end:
        for size in SIZES:
            end.send(bytes(size))
            assert end.recv(1 << 16) == bytes(size)


def test_a_port_published_at_one_address_is_at_no_other(machine: PodmanMachine) -> None:
    local = "127.0.0.2:8081"
    assert asked(machine, "expose", local=local, remote=f"{GUEST}:{ECHO}", protocol="tcp") == (200, "")
    is_echoed(machine.sockets.connected(STREAM, "127.0.0.2", 8081))
    with pytest.raises(ConnectionRefusedError):
        machine.sockets.connected(STREAM, LOCALHOST, 8081)
    assert asked(machine, "unexpose", local=local, protocol="tcp") == (200, "")


def test_a_port_that_is_no_longer_published_refuses_connections(machine: PodmanMachine) -> None:
    assert asked(machine, "expose", local=":8082", remote=f":{ECHO}", protocol="tcp") == (200, "")
    assert asked(machine, "unexpose", local=":8082", protocol="tcp") == (200, "")
    with pytest.raises(ConnectionRefusedError):
        machine.sockets.connected(STREAM, LOCALHOST, 8082)


def test_a_port_is_published_once(machine: PodmanMachine, published: int) -> None:
    code, text = asked(machine, "expose", local=f":{published}", remote=f":{ECHO}", protocol="tcp")
    assert code == 500 and f":{published}" in text


def test_a_port_that_is_taken_is_told(machine: PodmanMachine) -> None:
    listener, port = machine.sockets.bound(STREAM, "0.0.0.0")
    with listener:
        code, text = asked(machine, "expose", local=f":{port}", remote=f":{ECHO}", protocol="tcp")
    assert code == 500 and text.endswith("address already in use")


def test_a_port_that_is_not_published_cannot_be_taken_back(machine: PodmanMachine) -> None:
    assert asked(machine, "unexpose", local=":8083", protocol="tcp") == (500, "proxy not found")


def test_the_guest_sends_to_a_service_of_the_hosts_localhost(machine: PodmanMachine) -> None:
    listener, port = machine.sockets.bound(STREAM, LOCALHOST)
    with listener, ThreadPoolExecutor(1) as pool:
        told = pool.submit(machine.guest, f"{PRINT} | client {HOST} {port}")
        with listener.accept()[0] as end:
            assert received(end, len(PRINTED) + 1) == PRINTED
        assert told.result() == ""


def test_the_guest_receives_from_a_service_of_the_hosts_localhost(machine: PodmanMachine) -> None:
    listener, port = machine.sockets.bound(STREAM, LOCALHOST)
    with listener, ThreadPoolExecutor(1) as pool:
        told = pool.submit(machine.guest, f"client -e -r question {HOST} {port} </dev/null | sha256sum")
        with listener.accept()[0] as end:
            assert received(end, 9) == b"question\n"
            end.sendall(PRINTED)
        assert told.result().split()[0] == hashlib.sha256(PRINTED).hexdigest()


def test_the_host_may_answer_after_the_end_of_what_the_guest_sent(machine: PodmanMachine) -> None:
    listener, port = machine.sockets.bound(STREAM, LOCALHOST)
    with listener, ThreadPoolExecutor(1) as pool:
        told = pool.submit(machine.guest, f"{PRINT} | client {HOST} {port} | sha256sum")
        with listener.accept()[0] as end:
            assert received(end, len(PRINTED) + 1) == PRINTED
            end.sendall(PRINTED)
        assert told.result().split()[0] == hashlib.sha256(PRINTED).hexdigest()


def test_datagrams_of_the_guest_are_answered_by_the_hosts_localhost(machine: PodmanMachine) -> None:
    server, port = machine.sockets.bound(DATAGRAM, LOCALHOST)

    def echoes() -> None:
        for _ in SIZES:
            server.sendto(*server.recvfrom(1 << 16))

    with server, ThreadPoolExecutor(1) as pool:
        pool.submit(echoes)
        assert machine.guest(f"echo_datagrams {HOST} {port} {' '.join(map(str, SIZES))}").startswith("echoed")


def test_a_port_of_the_host_where_nobody_listens_is_refused(machine: PodmanMachine) -> None:
    listener, port = machine.sockets.bound(STREAM, LOCALHOST)
    listener.close()
    assert "connect: 111 " in machine.guest(f"client {HOST} {port} 2>&1 </dev/null || true")


def test_the_process_is_called_gvproxy_and_its_pid_file_is_a_number_and_nothing_else(machine: PodmanMachine) -> None:
    pids = machine.named("gvproxy")
    words = Path(f"/proc/{pids[0]}/cmdline").read_text().split("\0")
    told = machine.path(words[words.index("-pid-file") + 1]).read_text()
    assert told in {status(pid)["NSpid"].split()[-1] for pid in pids} and told.isdigit()
    assert name(machine.pid_here(int(told))) == "gvproxy"
