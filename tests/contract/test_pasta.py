# SPDX-License-Identifier: Apache-2.0
"""`pasta` as rootless Podman starts it: a host and a container in namespaces that the test makes, and traffic between
the two through every way in and out.

The host is root of a user namespace, with a network of its own; the container has one below it. Adversary: nobody.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from host_namespace import Namespace
from pasta_caller import ASK, BYTES, CLIENT, ECHO, LISTENS, SERVER, Pasta, digest, runs, serves
from running import PATIENCE, kill, name, tree

# Tells each client where it has come. Who is to come to an address, from another, tries until it does: the host has a
# new one a moment before the container has, which has it a moment before it is looked for there.
ANSWERS_SHORTLY = LISTENS + """
while True:
    end, peer = listener.accept()
    end.sendall(end.getsockname()[0].encode())
    end.close()
"""
# Sends one datagram from the address for each that comes to its port on loopback; of IPv6 also when it is gone.
TALKS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
asked, talks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
asked.bind(("127.0.0.1", 0))
talks.bind((sys.argv[1], 0))
print(asked.getsockname()[1], flush=True)
while True:
    _, peer = asked.recvfrom(100)
    try:
        talks.sendto(b"still here", ("fd0a::1" if ":" in sys.argv[1] else "10.10.10.10", 9))
    except OSError:
        pass
    asked.sendto(b"sent", peer)
"""
TRIES_SHORTLY = """
import socket, sys, time
came, end_of_patience = "", time.monotonic() + 10
while came != sys.argv[1] and time.monotonic() < end_of_patience:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5, (sys.argv[3], 0)) as end:
            came = end.recv(100).decode()
    except OSError:
        pass
print(came)
"""


@pytest.fixture(name="start")
def starter(host: Namespace, tmp_path: Path) -> Iterator[list[Pasta]]:
    started: list[Pasta] = []
    yield started
    for pasta in started:
        pasta.close()


@pytest.fixture(name="pasta")
def started_pasta(host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path) -> Pasta:
    start.append(Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", "-t 5555:80 -u 5556:81"))
    assert (start[0].status, start[0].told) == (0, ""), "nothing is said under --quiet"
    return start[0]


def test_the_container_gets_what_the_host_has(pasta: Pasta, container: Namespace) -> None:
    shown = container.does("ip -br -4 address show scope global; ip -br -6 address show scope global")
    assert shown == "cable UNKNOWN 10.5.0.2/24 cable UNKNOWN fd05::2/64"
    assert "default via 10.5.0.1 dev cable" in container.does("ip -4 route")
    assert "default via fd05::1 dev cable" in container.does("ip -6 route")
    assert not container.does("ip -6 address show tentative"), "no address is of no use at first"
    link = container.does("ip -o link show cable; ip -o link show lo")
    assert "mtu 65520" in link and "lo: <LOOPBACK,UP" in link


def test_what_a_host_lacks_is_no_news_to_podman(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    """It names a resolver, and needs no DHCP, whatever there is. Nor is a route whose router is gone any."""
    host.does("ip address add 10.7.0.2/24 dev cable; ip route add 10.9.0.0/16 via 10.7.0.1")
    host.does("ip address del 10.7.0.2/24 dev cable")
    host.does("ip route del default; ip -6 route del default; : > /etc/resolv.conf")
    start.append(Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", "-t none -u none"))
    assert (start[0].status, start[0].told) == (0, "")


def test_the_container_reaches_the_host(pasta: Pasta, host: Namespace, container: Namespace) -> None:
    """By the address that stands for it, since its own is the container's too."""
    server, port = serves(host, SERVER, "10.5.0.2")
    assert runs(container, CLIENT, "169.254.1.2", port, BYTES) == f"10.5.0.2 {digest()}"
    assert server.wait(PATIENCE) == 0
    echo, port = serves(host, ECHO, "10.5.0.2")
    assert runs(container, ASK, "169.254.1.2", port) == "10.5.0.2 question"
    assert echo.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("to", "seen"),
    [("10.5.0.2", "169.254.1.2"), ("127.0.0.1", "10.5.0.2"), ("fd05::2", "fe80::"), ("::1", "fd05::2")],
    ids=["address", "loopback", "address6", "loopback6"],
)
def test_published_ports_lead_into_the_container(
    pasta: Pasta, host: Namespace, container: Namespace, to: str, seen: str
) -> None:
    """Whoever comes from the host is seen by an address that answers lead back to."""
    wildcard = "::" if ":" in to else "0.0.0.0"
    server, _ = serves(container, SERVER, wildcard, 80)
    peer, came = runs(host, CLIENT, to, 5555, BYTES).split()
    assert peer.startswith(seen) and came == digest()
    assert server.wait(PATIENCE) == 0
    echo, _ = serves(container, ECHO, wildcard, 81)
    peer, question = runs(host, ASK, to, 5556).split()
    assert peer.startswith(seen) and question == "question"
    assert echo.wait(PATIENCE) == 0


@pytest.mark.parametrize(("address", "seen"), [("10.7.0.3", "169.254.1.2"), ("fd07::3", "fe80::")])
def test_a_published_port_is_reached_at_each_address_of_the_host(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path, address: str, seen: str
) -> None:
    """The container has all of them, and would take what comes from there for its own."""
    host.does("ip address add 10.7.0.3/16 dev cable; ip address add fd07::3/64 dev cable nodad")
    host.does("ip address add 10.7.0.4/24 dev cable; ip address add fd07::4/64 dev cable nodad")
    start.append(Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", "-t 5555:80 -u none"))
    server, _ = serves(container, SERVER, "::" if ":" in address else "0.0.0.0", 80)
    peer, came = runs(host, CLIENT, address, 5555, BYTES).split()
    assert peer.startswith(seen) and came == digest()
    assert server.wait(PATIENCE) == 0


def test_the_network_does_not_wait_for_control(pasta: Pasta, host: Namespace, container: Namespace) -> None:
    """It is complete when the caller goes on, and stays so whatever control does, or does not do yet."""
    (control,) = (pid for pid in tree(pasta.pid) if name(pid) == "pasta-control")
    os.kill(control, signal.SIGSTOP)
    server, _ = serves(container, SERVER, "0.0.0.0", 80)
    try:
        peer, came = runs(host, CLIENT, "10.5.0.2", 5555, BYTES).split()
    finally:
        os.kill(control, signal.SIGCONT)
    assert (peer, came) == ("169.254.1.2", digest())
    assert server.wait(PATIENCE) == 0


def test_it_ends_with_the_process_of_the_namespace(pasta: Pasta, container: Namespace) -> None:
    """`podman build` names /proc/PID/ns/net."""
    container.close()
    pasta.wait_end()


def test_a_path_may_begin_in_the_callers_folder(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    start.append(Pasta(host, tmp_path, "ns/net", "-t none -u none", here=f"/proc/{container.pid}"))
    assert (start[0].status, start[0].told) == (0, "")
    container.close()
    start[0].wait_end()


def test_it_ends_when_its_path_is_removed(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    """As `podman run` removes it: first it is unmounted, which means nothing yet."""
    path = tmp_path / "netns"
    host.does(f"touch {path}; mount --bind /proc/{container.pid}/ns/net {path}")
    pasta = Pasta(host, tmp_path, str(path), "-t none -u none")
    start.append(pasta)
    assert (pasta.status, pasta.told) == (0, "")
    host.does(f"umount -l {path}; kill -0 {pasta.pid}; rm {path}")
    pasta.wait_end()


def test_sigterm_ends_it_and_frees_its_ports(pasta: Pasta, host: Namespace) -> None:
    os.kill(pasta.pid, signal.SIGTERM)
    pasta.wait_end()
    server, port = serves(host, SERVER, "10.5.0.2", 5555)
    assert port == 5555
    server.kill()
    server.wait()


def test_a_container_that_has_gone_already_is_told(host: Namespace, start: list[Pasta], tmp_path: Path) -> None:
    pasta = Pasta(host, tmp_path, f"{tmp_path}/none", "-t none -u none")
    assert pasta.status == 1
    assert pasta.told == f"Couldn't open network namespace {tmp_path}/none: No such file or directory\n"
    assert not pasta.pid_file.exists()


def test_a_port_that_is_taken_is_told_with_its_holder(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    server, port = serves(host, SERVER, "0.0.0.0")
    pasta = Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", f"-t {port}:80 -u none")
    assert pasta.status == 1 and f"{port}" in pasta.told and "ddress already in use" in pasta.told
    assert f"process {server.pid}" in pasta.told
    server.kill()
    server.wait()


def test_a_port_of_a_container_that_is_gone_is_waited_for(
    host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    """As when podman restarts one: the new helper is there before the old one has ended."""
    paths = [tmp_path / "old", tmp_path / "new"]
    for path in paths:
        host.does(f"touch {path}; mount --bind /proc/{container.pid}/ns/net {path}")
    start.append(Pasta(host, tmp_path, str(paths[0]), "-I old -t 5555:80 -u 5556:81"))
    os.kill(start[0].pid, signal.SIGSTOP)
    host.does(f"umount -l {paths[0]}; rm {paths[0]}")
    folder = tmp_path / "second"
    folder.mkdir()
    with ThreadPoolExecutor() as pool:
        second = pool.submit(Pasta, host, folder, str(paths[1]), "-I new -t 5555:80 -u 5556:81")
        while not (folder / "pid").exists() and not second.done():  # made before any port is bound
            os.sched_yield()
        os.kill(start[0].pid, signal.SIGCONT)
        start.append(second.result())
    assert (start[1].status, start[1].told) == (0, "")


def test_a_port_of_a_container_that_is_there_is_told_at_once(
    pasta: Pasta, host: Namespace, container: Namespace, start: list[Pasta], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Pasta(host, tmp_path / "other", f"/proc/{container.pid}/ns/net", "-I other -t 5555:80")
    assert other.status == 1 and "is held by pasta" in other.told and "ddress already in use" in other.told


def test_the_hosts_changes_reach_the_container(pasta: Pasta, host: Namespace, container: Namespace) -> None:
    """What Podman's users miss most: a host that moves takes its containers along."""
    with subprocess.Popen(
        [*container.prefix, "ip", "monitor", "address"], stdout=subprocess.PIPE, text=True
    ) as monitor:
        assert monitor.stdout is not None
        host.does("ip address add 10.6.0.7/24 dev cable; ip address del 10.5.0.2/24 dev cable")
        host.does("ip route replace default via 10.6.0.1")
        for line in monitor.stdout:
            if "10.6.0.7/24" in line:
                break
        monitor.kill()
    server, port = serves(host, SERVER, "10.6.0.7")
    assert (
        runs(container, CLIENT, "169.254.1.2", port, 100)
        == f"10.6.0.7 {hashlib.sha256(b'0123456789' * 10).hexdigest()}"
    )
    assert server.wait(PATIENCE) == 0


@pytest.mark.parametrize("killed", [False, True], ids=["", "other-worker"])
@pytest.mark.parametrize(
    ("old", "new", "router", "peer"),
    [("10.5.0.2/24", "10.6.0.7/24", "10.6.0.1", "10.9.9.9"), ("fd05::2/64", "fd06::7/64", "fd06::1", "fd09::9")],
    ids=["ipv4", "ipv6"],
)
def test_a_container_that_only_serves_is_reached_at_the_address_that_the_host_gives_it(
    pasta: Pasta, host: Namespace, container: Namespace, old: str, new: str, router: str, peer: str, killed: bool
) -> None:
    """It has sent nothing from there yet, and may have sockets that go on sending from where it was before."""
    before, after = old.partition("/")[0], new.partition("/")[0]
    host.does(f"ip address add {peer} dev lo")
    server, _ = serves(container, ANSWERS_SHORTLY, "::" if ":" in old else "0.0.0.0", 80)
    talker, asked = serves(container, TALKS, before)
    assert runs(host, TRIES_SHORTLY, before, 5555, peer) == before
    host.does(f"ip address add {new} dev cable nodad; ip address del {old} dev cable")
    host.does(f"ip route replace default via {router}")
    assert runs(host, TRIES_SHORTLY, after, 5555, peer) == after
    if killed:
        (worker,) = [member for member in tree(pasta.pid) if name(member) == "pasta-worker"]
        kill(worker)
        assert runs(host, TRIES_SHORTLY, after, 5555, peer) == after
    assert runs(container, ASK, "127.0.0.1", asked) == "sent"
    assert runs(host, TRIES_SHORTLY, after, 5555, peer) == after
    for one in (server, talker):
        one.kill()
        one.communicate()
