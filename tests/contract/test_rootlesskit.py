# SPDX-License-Identifier: Apache-2.0
"""Our `pasta` as RootlessKit starts it, for rootless Docker and nerdctl: by a user without any right, beside a child
that has a user namespace of its own; and RootlessKit itself.

Adversary: nobody. On the host of the tests with Podman, whose user this is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from namespace_sockets import NamespaceSockets
from podman_host import ADDRESSES, FAR, PodmanHost, exchange
from podman_traffic import DATAGRAM, STREAM, asks
from resolver import ANSWER, NAME, answer
from rootless_host import AS_USER, USER

TRIES = 1000  # of a few milliseconds each
PASTA = "/opt/lockgate/bin/pasta"
CHILD, RESOLVER = "10.0.2.100", "10.0.2.3"
NETWORK = (
    *("--stderr", "--ns-ifname=tap0", "--mtu=65520", "--config-net", f"--address={CHILD}", "--netmask=24"),
    *("--gateway=10.0.2.2", f"--dns-forward={RESOLVER}", "--no-map-gw", "--ipv4-only"),
    *("--tcp-ports=none", "--udp-ports=none"),
)


@pytest.fixture(name="host")
def shared_host(podman_host: PodmanHost) -> PodmanHost:
    return podman_host


@pytest.fixture(name="child")
def made_child(host: PodmanHost) -> Iterator[int]:
    """The process, by its number on the host."""
    keep = ("unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", "echo $$; exec cat")
    command = [*host.prefix, *AS_USER, *keep]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()
    host.awaits_no_helper()


def as_user(host: PodmanHost, *words: str) -> list[str]:
    environment = (f"HOME={host.home}", f"XDG_RUNTIME_DIR=/run/user/{USER}")
    return [*AS_USER, "env", f"--chdir={host.home}", *environment, *words]


def runs(host: PodmanHost, *words: str) -> str:
    return host.does(*as_user(host, *words), may_warn=True)


def rootlesskit(host: PodmanHost, port_driver: str, script: str) -> list[str]:
    """It makes the device itself, and does not wait for pasta (2.0): the first packets may be lost."""
    if subprocess.run([*host.prefix, "sh", "-c", "command -v rootlesskit"], capture_output=True).returncode:
        pytest.skip("the root has no rootlesskit")
    words = ("--net=pasta", f"--pasta-binary={PASTA}", "--copy-up=/etc", f"--port-driver={port_driver}")
    return as_user(host, "rootlesskit", *words, "sh", "-c", script)


def test_what_it_asks_first_is_answered(host: PodmanHost) -> None:
    """Whether pasta is there, and whether it knows an option."""
    for words in (["--version"], ["--host-lo-to-ns-lo", "--version"]):
        assert "lockgate" in runs(host, PASTA, *words)


@pytest.mark.parametrize("named", ["{0}", "--userns=/proc/{0}/ns/user --netns=/proc/{0}/ns/net"], ids=["pid", "paths"])
def test_a_child_has_its_network_when_pasta_has_exited(host: PodmanHost, child: int, named: str) -> None:
    runs(host, PASTA, *NETWORK, *named.format(child).split())
    enter = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(child))
    assert f"inet {CHILD}/24" in host.does(*enter, "ip", "address", "show", "tap0")
    assert "default via 10.0.2.2 dev tap0" in host.does(*enter, "ip", "route")
    listener, port = host.far.bound(STREAM, FAR[4])
    server, server_port = host.sockets.bound(DATAGRAM, ADDRESSES[4])
    inside = NamespaceSockets(host.sockets_of(f"/proc/{child}/ns/net"))
    with listener, server:
        exchange(inside.connected(STREAM, FAR[4], port), listener.accept()[0])
        asks(inside.connected(DATAGRAM, ADDRESSES[4], server_port), server)
    inside.close()


def test_rootlesskit_itself_has_a_network_by_it(host: PodmanHost) -> None:
    listener, port = host.far.bound(STREAM, FAR[4])
    server, _ = host.far.bound(DATAGRAM, FAR[4], 53)
    script = f"busybox nc {FAR[4]} {port} </dev/null; busybox nslookup -type=a {NAME}. {RESOLVER}"
    command = rootlesskit(host, "none", script)
    with listener, server, ThreadPoolExecutor(1) as pool:
        told = pool.submit(host.does, *command, may_warn=True)
        with listener.accept()[0] as end:
            end.sendall(b"from afar\n")
        question, source = server.recvfrom(512)
        server.sendto(answer(question), source)
        assert "from afar" in told.result() and ANSWER in told.result()
    host.awaits_no_helper()


def greeting(host: PodmanHost, address: str) -> bytes:
    """Of the port's server, once it is there: ports that follow what listens come when they are looked for."""
    for _ in range(TRIES):
        try:
            with host.sockets.connected(STREAM, address, 8080) as end:
                return end.recv(100)
        except ConnectionRefusedError:
            host.does("true")
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("address", ["127.0.0.1", ADDRESSES[4]])
def test_what_listens_in_rootlesskits_network_is_a_port_of_the_host(host: PodmanHost, address: str) -> None:
    command = rootlesskit(host, "implicit", "exec busybox nc -l -p 8080 -e echo hello")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(host.does, *command, may_warn=True)
        assert greeting(host, address) == b"hello\n"
        ended.result()
    host.awaits_no_helper()
