# SPDX-License-Identifier: Apache-2.0
"""A real `podman machine` with our `gvproxy`: machines that are started and stopped, and what is left of them.

Adversary: nobody; a QEMU that is killed stands for all that can happen to one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from podman_machine import KINDS, NAME, PodmanMachine, podman_machine
from running import ended

LIVES = 5
SSH_FOLDER = "lockgate-ssh-"
LOGS = {"podman", "podman/gvproxy.log"}  # Podman's folder and its log, which stay until the machine is removed


@pytest.fixture(scope="module", params=KINDS)
def machine(request: pytest.FixtureRequest) -> Iterator[PodmanMachine]:
    with podman_machine(request.param) as made:
        yield made


def publishes(machine: PodmanMachine) -> None:
    body = '{"local": ":8080", "remote": ":7", "protocol": "tcp"}'
    machine.guest(f"curl -s -f -d '{body}' http://gateway.containers.internal/services/forwarder/expose")
    assert ("tcp6", 8080) in machine.ports()


def leaves_nothing(machine: PodmanMachine, before: set[str]) -> None:
    """Podman 4 kills the helper: the folder that it had for its ssh stays until the next start, which removes it."""
    machine.awaits_no("")
    left = machine.files() - before - LOGS
    orphans = {path for path in left if path.startswith(SSH_FOLDER)}
    assert (left - orphans, machine.ports()) == (set(), set())
    assert len([path for path in machine.files() if path.startswith(SSH_FOLDER) and "/" not in path]) <= machine.kills


def test_a_machine_that_is_started_and_stopped_five_times_leaves_nothing_behind(machine: PodmanMachine) -> None:
    before = machine.files()
    for _ in range(LIVES):
        machine.start()
        publishes(machine)
        machine.stop()
        leaves_nothing(machine, before)
        assert machine.inspect()["State"] != "running"


def test_the_helper_ends_with_a_qemu_that_is_killed(machine: PodmanMachine) -> None:
    """And the machine can be started again."""
    machine.start()
    publishes(machine)
    (qemu,) = machine.named("qemu-system")
    pidfd = os.pidfd_open(qemu)
    os.kill(qemu, signal.SIGKILL)
    assert ended(pidfd)
    os.close(pidfd)
    machine.awaits_no("gvproxy")
    assert machine.ports() == set()
    machine.start()
    assert machine.guest("id -un").strip() == "core"
    machine.stop()


def test_a_machine_that_is_removed_leaves_no_file(machine: PodmanMachine) -> None:
    """Even if it ran."""
    before = machine.files()
    machine.start()
    api_socket = machine.path(machine.api_socket)
    assert api_socket.is_socket()
    machine.podman("machine", "rm", "-f", NAME)
    leaves_nothing(machine, before)
    assert not api_socket.exists()
