# SPDX-License-Identifier: Apache-2.0
"""Real rootless Podman with our `pasta`: containers that end and come again, units of systemd, and what looks inside.

Adversary: nobody.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from podman_host import FAR, IMAGE, Container, PodmanHost
from podman_traffic import STREAM, takes
from running import descriptors

TRIES = 200  # of a command that takes a tenth of a second
HELLO = "exec nc -l -p 80 -e echo hello"  # serves one connection and ends
UNIT = f"""
[Container]
Image={IMAGE}
Network=pasta
PublishPort=8080:80
PublishPort=127.0.0.1:5353:53/udp
PodmanArgs=--stop-signal=KILL
Exec=sleep 1000
"""
QUADLET = "/usr/libexec/podman/quadlet"


@pytest.fixture(name="host")
def shared_host(podman_host: PodmanHost) -> PodmanHost:
    return podman_host


def is_greeted(host: PodmanHost) -> None:
    """By a container that may just be starting: until it listens, what is accepted is closed without a word."""
    for _ in range(TRIES):
        try:
            with host.sockets.connected(STREAM, "127.0.0.1", 8080) as end:
                if end.recv(100) == b"hello\n":
                    return
        except (ConnectionRefusedError, ConnectionResetError):
            host.podman("ps")
    raise AssertionError("nobody greets")


def state(host: PodmanHost, name: str) -> tuple[str, int]:
    (told,) = json.loads(host.podman("inspect", name))
    return told["State"]["Status"], told["RestartCount"]


def test_a_container_that_fails_is_restarted_as_often_as_it_may(host: PodmanHost) -> None:
    listener, port = host.far.bound(STREAM, FAR[4])
    with listener, host.container("--restart=on-failure:2", command=f"nc {FAR[4]} {port}; exit 1") as container:
        for _ in range(3):
            listener.accept()[0].close()
        for _ in range(TRIES):
            if (seen := state(host, container.name)) == ("exited", 2):
                break
        assert seen == ("exited", 2)
        host.awaits_no_helper()


def test_a_container_that_is_always_restarted_has_its_port_each_time_until_it_is_stopped(host: PodmanHost) -> None:
    with host.container("--restart=always", "-p", "8080:80", command=HELLO) as container:
        for _ in range(3):
            is_greeted(host)
        host.podman("stop", "-t", "0", container.name)
        assert state(host, container.name)[0] == "exited"
        host.awaits_no_helper()
        with pytest.raises(ConnectionRefusedError):
            host.sockets.connected(STREAM, "127.0.0.1", 8080)


def test_a_container_that_was_stopped_starts_with_its_port(host: PodmanHost) -> None:
    with host.container("-p", "8080:80") as container:
        host.podman("stop", "-t", "0", container.name)
        host.podman("start", container.name)
        takes(host, container, ("127.0.0.1", 8080), 80)


def test_a_container_with_the_users_own_ids_has_a_network(host: PodmanHost) -> None:
    with host.container("--userns=keep-id", "-p", "8080:80") as container:
        takes(host, container, ("127.0.0.1", 8080), 80)


def test_no_helper_holds_a_pipe_of_podmans(host: PodmanHost) -> None:
    """With ids of its own, a container is waited for through pipes that its helper inherits."""
    with host.container("--userns=keep-id") as container:
        (told,) = json.loads(host.podman("inspect", container.name))
        of_podman = {held for pid in (told["State"]["ConmonPid"],) for held in descriptors(host.pid_here(pid)).values()}
        of_helper = {held for pid in host.helpers() for held in descriptors(pid).values()}
        assert host.helpers()
        assert not {held for held in of_podman & of_helper if held.startswith("pipe:")}


def test_a_container_is_looked_into_as_ever(host: PodmanHost) -> None:
    with host.container("-p", "8080:80", command="echo begun; exec sleep 1000") as container:
        assert host.podman("logs", container.name) == "begun\n"
        assert container.does("echo told") == "told\n"
        assert host.podman("port", container.name) == "80/tcp -> 0.0.0.0:8080\n"
        (told,) = json.loads(host.podman("inspect", container.name))
        assert told["HostConfig"]["NetworkMode"] == "pasta"


def test_a_unit_that_quadlet_makes_runs(host: PodmanHost) -> None:
    """As systemd would do it: what it is to start and to stop with."""
    folder = Path(host.home, "units")
    folder.mkdir()
    (folder / "web.container").write_text(UNIT)
    unit = host.does("env", f"QUADLET_UNIT_DIRS={folder}", QUADLET, "-dryrun", "-user")
    lines = dict(line.split("=", 1) for line in unit.splitlines() if line.startswith("Exec"))
    begin, end = (
        [word.replace("%N", "web").replace("split", "disabled") for word in shlex.split(lines[key])[1:]]
        for key in ("ExecStart", "ExecStop")
    )
    assert "pasta" in begin
    name = host.podman(*begin).strip()
    try:
        takes(host, Container(host, name), ("127.0.0.1", 8080), 80)
    finally:
        host.podman(*end)
    host.awaits_no_helper()
