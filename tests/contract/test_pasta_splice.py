# SPDX-License-Identifier: Apache-2.0
"""What goes between the loopback interfaces of a host and of a container, both ways, and not through the tap device.

Adversary: nobody; namespaces as in test_pasta.py.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import running
from host_namespace import Namespace
from pasta_caller import ASK, BINDS, BYTES, CLIENT, ECHO, LISTENS, PASTA, SERVER, Pasta, digest, runs, serves
from running import PATIENCE

# One direction until its end, then the other: an end of one is not the end of the other.
ANSWERS_LATER = LISTENS + """
end, peer = listener.accept()
seen = hashlib.sha256()
while data := end.recv(1 << 20):
    seen.update(data)
end.sendall(seen.digest() + b"9876543210" * 1000000)
"""
ASKS_FIRST = """
import hashlib, socket, sys
end = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
end.sendall(b"0123456789" * 1000000)
end.shutdown(socket.SHUT_WR)
came = bytearray()
while data := end.recv(1 << 20):
    came += data
print(came[:32].hex(), hashlib.sha256(came[32:]).hexdigest())
"""
# Of a connection whose other side resets it: the kernel says so, and no end comes before.
HEARS_RESET = LISTENS + """
end, peer = listener.accept()
end.send(b"x")
try:
    while end.recv(100):
        pass
    print("end", flush=True)
except ConnectionResetError:
    print("reset", flush=True)
"""
RESETS = """
import socket, struct, sys
end = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
end.recv(1)
end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
end.close()
"""
RESETS_CLIENT = LISTENS + """
end, peer = listener.accept()
end.recv(1)
end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
end.close()
"""
IS_RESET = """
import socket, sys
try:
    end = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)  # the RST may be here already
    end.send(b"x")
    print("end" if end.recv(1) == b"" else "data")
except ConnectionError:
    print("reset")
"""
# What a datagram came with: as many bytes, from this port.
MEASURES = BINDS + """
while True:
    data, peer = end.recvfrom(65536)
    end.sendto(f"{len(data)} {peer[1]}".encode(), peer)
"""
SENDS_SIZES = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
end = socket.socket(family, socket.SOCK_DGRAM)
end.settimeout(20)
end.bind(("", int(sys.argv[3])))
end.connect((sys.argv[1], int(sys.argv[2])))
for size in (0, 1, 1472, 65000):
    end.send(bytes(size))
    print(end.recv(1000).decode(), end="; ")
"""

# More connections, one after the other, than anybody would have sockets for in advance.
ANSWERS_MANY = LISTENS + """
for _ in range(300):
    end, peer = listener.accept()
    end.sendall(end.recv(100))
    end.close()
"""
ASKS_MANY = """
import socket, sys
for number in range(300):
    end = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    end.sendall(b"%d" % number)
    assert end.recv(100) == b"%d" % number
    end.close()
print("answered")
"""
# More at once than are taken in one turn.
ANSWERS_ALL = LISTENS + """
listener.listen(4096)
while True:
    listener.accept()[0].sendall(b"hello")
"""
ASKS_ALL = """
import socket, sys
ends = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(600)]
print(len(ends), flush=True)
print({end.recv(100) for end in ends})
"""

DIGESTS = " ".join(hashlib.sha256(unit * (BYTES // 10)).hexdigest() for unit in (b"0123456789", b"9876543210"))
BOTH_FAMILIES = pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])

Start = Callable[..., Pasta]


@pytest.fixture(name="begin")
def starter(host: Namespace, container: Namespace, tmp_path: Path) -> Iterator[Start]:
    """Starts it as Podman does, with these options."""
    started: list[Pasta] = []

    def begin(options: str) -> Pasta:
        started.append(Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", options))
        return started[-1]

    yield begin
    for pasta in started:
        pasta.close()


@pytest.fixture(name="ready")
def started(begin: Start) -> Start:
    """The same, where nothing is wrong."""

    def begin_well(options: str) -> Pasta:
        pasta = begin(options)
        assert (pasta.status, pasta.told) == (0, "")
        return pasta

    return begin_well


def finishes(server: subprocess.Popen[str]) -> None:
    assert server.wait(PATIENCE) == 0


def ends(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


# ---- from the host's loopback into the container ----


@pytest.mark.parametrize(("to", "seen"), [("127.0.0.1", "10.5.0.2"), ("127.0.0.5", "10.5.0.2"), ("::1", "fd05::2")])
def test_loopback_of_the_host_arrives_at_the_containers_address(
    ready: Start, host: Namespace, container: Namespace, to: str, seen: str
) -> None:
    """And comes from there."""
    ready("-t 5555:80 -u 5556:81")
    server, _ = serves(container, SERVER, seen, 80)
    assert runs(host, CLIENT, to, 5555, BYTES) == f"{seen} {digest()}"
    finishes(server)
    echo, _ = serves(container, ECHO, seen, 81)
    assert runs(host, ASK, to, 5556) == f"{seen} question"
    finishes(echo)


@BOTH_FAMILIES
def test_what_listens_on_the_containers_loopback_alone_stays_private(
    ready: Start, host: Namespace, container: Namespace, loopback: str
) -> None:
    """Whoever connects is accepted, and reset or at the end at once."""
    ready("-t 5555:80 -u none")
    server, _ = serves(container, SERVER, loopback, 80)
    told = runs(host, IS_RESET, loopback, 5555)
    assert told in ("reset", "end")
    ends(server)


@BOTH_FAMILIES
def test_loopback_may_arrive_at_loopback(ready: Start, host: Namespace, container: Namespace, loopback: str) -> None:
    """--host-lo-to-ns-lo: the same address on both sides."""
    ready("--host-lo-to-ns-lo -t 5555:80 -u 5556:81")
    server, _ = serves(container, SERVER, loopback, 80)
    assert runs(host, CLIENT, loopback, 5555, BYTES) == f"{loopback} {digest()}"
    finishes(server)
    echo, _ = serves(container, ECHO, loopback, 81)
    assert runs(host, ASK, loopback, 5556) == f"{loopback} question"
    finishes(echo)


@pytest.mark.parametrize(("to", "seen", "wildcard"), [("127.0.0.1", "10.5.0.1", "0.0.0.0"), ("::1", "fe80::", "::")])
def test_without_splicing_loopback_comes_through_the_tap(
    ready: Start, host: Namespace, container: Namespace, to: str, seen: str, wildcard: str
) -> None:
    """--no-splice: from the gateway."""
    ready("--no-splice -t 5555:80 -u 5556:81")
    server, _ = serves(container, SERVER, wildcard, 80)
    peer, came = runs(host, CLIENT, to, 5555, BYTES).split()
    assert peer.startswith(seen) and came == digest()
    finishes(server)
    echo, _ = serves(container, ECHO, wildcard, 81)
    peer, question = runs(host, ASK, to, 5556).split()
    assert peer.startswith(seen) and question == "question"
    finishes(echo)


def test_other_addresses_of_the_host_come_through_the_tap(ready: Start, host: Namespace, container: Namespace) -> None:
    """As ever."""
    ready("-t 5555:80 -u none")
    server, _ = serves(container, SERVER, "0.0.0.0", 80)
    assert runs(host, CLIENT, "10.5.0.2", 5555, BYTES) == f"169.254.1.2 {digest()}"
    finishes(server)


def test_localhost_reaches_a_container_without_ipv6(ready: Start, host: Namespace, container: Namespace) -> None:
    """Whose host has none either; ::1 is what programs try first."""
    host.does("ip -6 address flush dev cable; ip -6 route flush dev cable")
    ready("-t 5555:80 -u 5556:81")
    server, _ = serves(container, SERVER, "0.0.0.0", 80)
    assert runs(host, CLIENT, "::1", 5555, BYTES) == f"10.5.0.2 {digest()}"
    finishes(server)
    echo, _ = serves(container, ECHO, "0.0.0.0", 81)
    assert runs(host, ASK, "::1", 5556) == "10.5.0.2 question"
    finishes(echo)


@BOTH_FAMILIES
def test_datagrams_keep_their_borders_and_their_port(
    ready: Start, host: Namespace, container: Namespace, loopback: str
) -> None:
    """Empty ones, too, in both directions."""
    ready("-t none -u 5556:81 -U 5557:82")
    expected = "0 {0}; 1 {0}; 1472 {0}; 65000 {0};"
    server, _ = serves(container, MEASURES, "::" if ":" in loopback else "0.0.0.0", 81)
    assert runs(host, SENDS_SIZES, loopback, 5556, 7777) == expected.format(7777)
    ends(server)
    server, _ = serves(host, MEASURES, loopback, 82)
    assert runs(container, SENDS_SIZES, loopback, 5557, 7778) == expected.format(7778)
    ends(server)


# ---- from the container's loopback to the host's ----


@BOTH_FAMILIES
def test_ports_of_the_container_lead_to_the_hosts_loopback(
    ready: Start, host: Namespace, container: Namespace, loopback: str
) -> None:
    """The same address, also of whoever asks."""
    ready("-t none -u none -T 8081:8080 -U 8082:8083")
    server, _ = serves(host, SERVER, loopback, 8080)
    assert runs(container, CLIENT, loopback, 8081, BYTES) == f"{loopback} {digest()}"
    finishes(server)
    echo, _ = serves(host, ECHO, loopback, 8083)
    assert runs(container, ASK, loopback, 8082) == f"{loopback} question"
    finishes(echo)


def test_a_command_in_a_namespace_of_its_own_reaches_the_hosts_loopback(host: Namespace) -> None:
    """It starts when its ports are there."""
    server, _ = serves(host, SERVER, "127.0.0.1", 8080)
    words = "--config-net -t none -u none -T 8081:8080 -U none"
    client = [sys.executable, "-Ic", CLIENT, "127.0.0.1", "8081", str(BYTES)]
    done = subprocess.run([*host.prefix, PASTA, *words.split(), *client], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"127.0.0.1 {digest()}\n", 0), done.stderr
    finishes(server)


def test_ports_that_lead_out_listen_on_loopback_alone(ready: Start, host: Namespace, container: Namespace) -> None:
    """What comes to the container's own address finds nobody there."""
    ready("-t none -u none -T 8081-8300")
    listening = container.does("ss -Htln")
    assert listening.count("%lo:") == 220 and "*%lo:8081 " in listening and "*%lo:8300 " in listening
    assert container.does("ss -Htln | grep -v %lo || true") == ""


def test_a_port_of_the_container_that_is_taken_is_told(begin: Start, host: Namespace, container: Namespace) -> None:
    """One sentence, and no helper."""
    server, _ = serves(container, SERVER, "0.0.0.0", 8081)
    pasta = begin("-t none -u none -T 8080-8081")
    assert pasta.status == 1
    assert pasta.told == (
        "Listen failed for SPLICE TCP port *%lo/8081: Address already in use\n"
        "Couldn't listen on requested ports: TCP port 8081 is taken in the namespace already; stop what has it there, "
        "or choose another port for --tcp-ns\n"
    )
    ends(server)


def test_a_run_of_ports_that_is_welcome_may_miss_some(begin: Start, host: Namespace, container: Namespace) -> None:
    """`all` is best effort; one line says what is missing."""
    server, port = serves(container, SERVER, "0.0.0.0", 8081)
    pasta = begin("-t none -u none -T all,~10000-65535")
    assert pasta.told == "1 of 9999 ports are not forwarded: TCP 8081 (Address already in use)\n"
    assert pasta.status == 0 and container.does("ss -Htln | grep -c %lo") == "9998"
    ends(server)


# ---- what is alike in both directions ----


@pytest.fixture(name="both", params=["in", "out"])
def both_directions(
    request: pytest.FixtureRequest, ready: Start, host: Namespace, container: Namespace
) -> tuple[Namespace, Namespace, int, int]:
    """Client and server, with the port that each knows."""
    ready("--host-lo-to-ns-lo -t 5555:80 -u none -T 8081:8080")
    return (host, container, 5555, 80) if request.param == "in" else (container, host, 8081, 8080)


@BOTH_FAMILIES
def test_the_end_of_one_direction_leaves_the_other(both: tuple[Namespace, Namespace, int, int], loopback: str) -> None:
    """10 MB go there, then the end, then 10 MB back."""
    here, there, port, target = both
    server, _ = serves(there, ANSWERS_LATER, loopback, target)
    assert runs(here, ASKS_FIRST, loopback, port) == DIGESTS
    finishes(server)


def test_a_reset_of_the_client_reaches_the_server(both: tuple[Namespace, Namespace, int, int]) -> None:
    here, there, port, target = both
    server, _ = serves(there, HEARS_RESET, "127.0.0.1", target)
    runs(here, RESETS, "127.0.0.1", port)
    assert server.communicate(timeout=PATIENCE)[0] == "reset\n"


def test_a_reset_of_the_server_reaches_the_client(both: tuple[Namespace, Namespace, int, int]) -> None:
    here, there, port, target = both
    server, _ = serves(there, RESETS_CLIENT, "127.0.0.1", target)
    assert runs(here, IS_RESET, "127.0.0.1", port) == "reset"
    finishes(server)


def test_a_server_that_is_not_there_is_the_end_of_a_connection(both: tuple[Namespace, Namespace, int, int]) -> None:
    """It was accepted before anybody could know."""
    here, _, port, _ = both
    assert runs(here, IS_RESET, "127.0.0.1", port) in ("reset", "end")


def test_a_control_that_hangs_costs_no_connection(ready: Start, host: Namespace, container: Namespace) -> None:
    """Once the worker has been told all. It asks for sockets by itself."""
    pasta = ready("--host-lo-to-ns-lo -t 5555:80 -u none -T 8081:8080")
    both = (host, container, 5555, 80), (container, host, 8081, 8080)
    for here, there, port, target in both:
        server, _ = serves(there, SERVER, "127.0.0.1", target)
        assert runs(here, CLIENT, "127.0.0.1", port, BYTES) == f"127.0.0.1 {digest()}"
        finishes(server)
    (control,) = [member for member in running.tree(pasta.pid) if running.name(member) == "pasta-control"]
    os.kill(control, signal.SIGSTOP)
    for here, there, port, target in both:
        server, _ = serves(there, ANSWERS_MANY, "127.0.0.1", target)
        assert runs(here, ASKS_MANY, "127.0.0.1", port) == "answered"
        finishes(server)


@pytest.mark.parametrize("to", ["127.0.0.1", "10.5.0.2"], ids=["loopback", "tap"])
def test_all_of_many_peers_that_came_while_nobody_looked_are_served(
    ready: Start, host: Namespace, container: Namespace, to: str
) -> None:
    """What tells of the first is all that tells of the last: a turn took 256, and others waited for one more peer."""
    pasta = ready("-t 5555:80 -u none")
    server, _ = serves(container, ANSWERS_ALL, "0.0.0.0", 80)
    (worker,) = [member for member in running.tree(pasta.pid) if running.name(member) == "pasta-worker"]
    os.kill(worker, signal.SIGSTOP)
    client, connected = serves(host, ASKS_ALL, to, 5555)
    os.kill(worker, signal.SIGCONT)
    assert (connected, client.communicate(timeout=PATIENCE)[0].strip()) == (600, "{b'hello'}")
    ends(server)


def test_another_worker_goes_on(ready: Start, host: Namespace, container: Namespace) -> None:
    """It has a channel to the agent, too, and all ports."""
    pasta = ready("-t 5555:80 -u none -T 8081:8080")
    (worker,) = [member for member in running.tree(pasta.pid) if running.name(member) == "pasta-worker"]
    running.kill(worker)
    server, _ = serves(container, SERVER, "10.5.0.2", 80)
    assert runs(host, CLIENT, "127.0.0.1", 5555, BYTES) == f"10.5.0.2 {digest()}"
    finishes(server)
    server, _ = serves(host, SERVER, "127.0.0.1", 8080)
    assert runs(container, CLIENT, "127.0.0.1", 8081, BYTES) == f"127.0.0.1 {digest()}"
    finishes(server)


# ---- nothing but loopback ----


def test_there_may_be_loopback_and_nothing_else(ready: Start, host: Namespace, container: Namespace) -> None:
    """--splice-only: no interface, and both directions."""
    ready("--splice-only -t 5555:80 -u 5556:81 -T 8081:8080")
    assert container.does("ip -br link").split()[:2] == ["lo", "UNKNOWN"]
    assert container.does("ip -o link | wc -l") == "1"
    assert runs(host, IS_RESET, "10.5.0.2", 5555) == "reset", "whoever comes from elsewhere"
    server, _ = serves(container, SERVER, "127.0.0.1", 80)
    assert runs(host, CLIENT, "127.0.0.1", 5555, BYTES) == f"127.0.0.1 {digest()}"
    finishes(server)
    echo, _ = serves(container, ECHO, "::1", 81)
    assert runs(host, ASK, "::1", 5556) == "::1 question"
    finishes(echo)
    server, _ = serves(host, SERVER, "127.0.0.1", 8080)
    assert runs(container, CLIENT, "127.0.0.1", 8081, BYTES) == f"127.0.0.1 {digest()}"
    finishes(server)
