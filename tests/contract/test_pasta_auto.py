# SPDX-License-Identifier: Apache-2.0
"""Ports that follow what listens (`auto`, which is what `pasta` does about ports of which nothing is said).

Adversary: nobody; namespaces as in test_pasta.py. What has been opened is told on standard error.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_namespace import Namespace
from pasta_caller import ASK, BYTES, CLIENT, ECHO, PASTA, SERVER, Pasta, digest, runs, serves
from running import PATIENCE

OPENED = "Ports of the {} follow what listens: {} opened, 0 closed"
CLOSED = "Ports of the {} follow what listens: 0 opened, {} closed"


class Foreground:
    """One that says what it does."""

    def __init__(self, host: Namespace, container: Namespace, options: str) -> None:
        words = f"-f --config-net {options} --no-map-gw --netns /proc/{container.pid}/ns/net"
        command = [*host.prefix, PASTA, *words.split()]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.heard: list[str] = []  # about ports

    def hears(self, words: str) -> None:
        """Until it says so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "follow what listens" in line:
                self.heard.append(line.strip())
            if words in line:
                return
        raise AssertionError(f"it ended, and has not said: {words}")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(name="begin")
def starter(host: Namespace, container: Namespace) -> Iterator[Callable[[str], Foreground]]:
    started = []

    def begin(options: str) -> Foreground:
        started.append(Foreground(host, container, options))
        started[-1].hears("The guest's network is up")
        return started[-1]

    yield begin
    for pasta in started:
        pasta.close()


def is_free(namespace: Namespace, port: int) -> bool:
    """For everybody, by TCP."""
    server, got = serves(namespace, SERVER, "::", port)
    server.kill()
    server.communicate()
    return got == port


def test_what_listens_at_the_start_is_forwarded_when_it_is_ready(
    host: Namespace, container: Namespace, tmp_path: Path
) -> None:
    """In both directions, and of both protocols."""
    server, _ = serves(container, SERVER, "0.0.0.0", 8080)
    echo, _ = serves(host, ECHO, "127.0.0.1", 9091)
    pasta = Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", "", "--no-map-gw --quiet")
    assert (pasta.status, pasta.told) == (0, "")
    assert runs(host, CLIENT, "127.0.0.1", 8080, BYTES) == f"10.5.0.2 {digest()}"
    assert runs(container, ASK, "127.0.0.1", 9091) == "127.0.0.1 question"
    assert server.wait(PATIENCE) == echo.wait(PATIENCE) == 0
    pasta.close()


def test_ports_of_the_host_come_and_go_with_those_of_the_container(
    begin: Callable[[str], Foreground], host: Namespace, container: Namespace
) -> None:
    """For datagrams, too, wherever something listens by TCP."""
    pasta = begin("-T none -U none")
    server, _ = serves(container, SERVER, "0.0.0.0", 8080)
    pasta.hears(OPENED.format("host", 2))
    assert host.does("ss -Hlun sport = :8080 | wc -l") == "1"
    assert runs(host, CLIENT, "127.0.0.1", 8080, BYTES) == f"10.5.0.2 {digest()}"
    assert server.wait(PATIENCE) == 0
    pasta.hears(CLOSED.format("host", 2))
    assert is_free(host, 8080)


def test_ports_of_the_container_come_and_go_with_those_of_the_host(
    begin: Callable[[str], Foreground], host: Namespace, container: Namespace
) -> None:
    """On its loopback interface."""
    pasta = begin("-t none -u none")
    echo, _ = serves(host, ECHO, "127.0.0.1", 9090)
    pasta.hears(OPENED.format("namespace", 1))
    assert container.does("ss -Hlun").count("%lo:9090 ") == 1
    assert runs(container, ASK, "127.0.0.1", 9090) == "127.0.0.1 question"
    assert echo.wait(PATIENCE) == 0
    pasta.hears(CLOSED.format("namespace", 1))
    assert container.does("ss -Hlun") == ""


def test_what_is_forwarded_is_not_forwarded_back(
    begin: Callable[[str], Foreground], host: Namespace, container: Namespace
) -> None:
    """With all four kinds: of two looks that follow each other, the second finds nothing of ours."""
    pasta = begin("")
    inside, _ = serves(container, SERVER, "0.0.0.0", 8080)
    pasta.hears(OPENED.format("host", 2))
    outside, _ = serves(host, SERVER, "127.0.0.1", 9090)
    pasta.hears(OPENED.format("namespace", 2))
    assert pasta.heard == [OPENED.format("host", 2), OPENED.format("namespace", 2)]
    inside.kill()
    outside.kill()
    inside.communicate()
    outside.communicate()


def test_ports_that_are_left_out_do_not_follow(
    begin: Callable[[str], Foreground], host: Namespace, container: Namespace
) -> None:
    """Those of ~; the next one that is heard of is another."""
    pasta = begin("-t auto,~8080 -u none -T none -U none")
    first, _ = serves(container, SERVER, "0.0.0.0", 8080)
    second, _ = serves(container, SERVER, "0.0.0.0", 8081)
    pasta.hears(OPENED.format("host", 1))
    assert host.does("ss -Htln").count("*:8081 ") == 1 and is_free(host, 8080)
    for server in (first, second):
        server.kill()
        server.communicate()


def test_rootlesskit_gets_ports_that_follow(host: Namespace, container: Namespace, tmp_path: Path) -> None:
    """As it starts its helper: an address of its own choice, both kinds of ports, and a process to follow."""
    words = f"""--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 --gateway=10.0.2.2
        --dns-forward=10.0.2.3 --no-map-gw --ipv4-only --tcp-ports=auto --udp-ports=auto --pid={tmp_path}/pid
        --userns=/proc/{container.pid}/ns/user --netns=/proc/{container.pid}/ns/net"""
    server, _ = serves(container, SERVER, "0.0.0.0", 8080)
    done = subprocess.run([*host.prefix, PASTA, *words.split()], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert runs(host, CLIENT, "127.0.0.1", 8080, BYTES) == f"10.0.2.100 {digest()}"
    assert server.wait(PATIENCE) == 0
    host.does(f"kill $(cat {tmp_path}/pid)")
