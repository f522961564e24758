# SPDX-License-Identifier: Apache-2.0
"""plugin/taken_ports.py: which ports are tried again, and what is said of the others."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest
from host_samples import ip

from lockgate.plugin import port_holder, taken_ports
from lockgate.plugin.address import UNSET
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.forwards import Failure, ForwardError, Listener, bind, close


def rule(port: int, *, last: int = 0, to: int = 80, listen: bytes = UNSET, protocol: int = TCP) -> ForwardRule:
    return ForwardRule(
        protocol=protocol,
        listen=listen,
        dual_stack=listen == UNSET,
        interface="",
        first=port,
        last=last or port,
        to_first=to,
        target=UNSET,
        best_effort=False,
    )


def forget(_: str) -> None:
    pass


class Attempts:
    """Fails until it has been asked this often."""

    def __init__(self, failures: int, error: int = errno.EADDRINUSE) -> None:
        self.left, self.count, self.error = failures, 0, error

    def __call__(self, warn: Callable[[str], None]) -> list[Listener]:
        self.count += 1
        warn(f"attempt {self.count}")
        if self.left:
            self.left -= 1
            raise ForwardError("taken", [Failure(rule(8080), 8080, self.error)])
        return []


@pytest.fixture(name="leaving")
def who_leaves(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """What is said of each holder, the last one for ever."""
    answers: list[bool | None] = [True]

    def is_leaving(*_: object) -> bool | None:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(port_holder, "is_leaving", is_leaving)
    return answers


def test_a_port_whose_holder_leaves_is_tried_again(leaving: list[bool | None]) -> None:
    """What the attempts that failed had to say is forgotten."""
    attempts, lines = Attempts(3), list[str]()
    taken_ports.bind(attempts, lines.append)
    assert attempts.count == 4 and lines == ["attempt 4"]


def test_a_port_whose_holder_stays_is_not(leaving: list[bool | None]) -> None:
    leaving[:] = [True, False]
    attempts, lines = Attempts(9), list[str]()
    with pytest.raises(ForwardError, match="^taken$"):
        taken_ports.bind(attempts, lines.append)
    assert attempts.count == 2 and lines == ["attempt 2"]


@pytest.mark.parametrize(("failures", "answers"), [(1, [None]), (3, [None, True, None])])
def test_a_port_that_nobody_is_seen_to_hold_is_tried_again(
    leaving: list[bool | None], failures: int, answers: list[bool | None]
) -> None:
    """It became free between the attempt and the look."""
    leaving[:] = answers
    taken_ports.bind(Attempts(failures), forget, patience=1000)


def test_a_port_that_nobody_is_seen_to_hold_twice_is_held(leaving: list[bool | None]) -> None:
    leaving[:] = [None]
    attempts = Attempts(9)
    with pytest.raises(ForwardError):
        taken_ports.bind(attempts, forget, patience=1000)
    assert attempts.count == 2


def test_patience_has_an_end(leaving: list[bool | None]) -> None:
    with pytest.raises(ForwardError):
        taken_ports.bind(Attempts(1), forget, patience=0)


def test_what_is_wrong_with_a_port_otherwise_is_told_at_once(leaving: list[bool | None]) -> None:
    attempts = Attempts(1, errno.EACCES)
    with pytest.raises(ForwardError):
        taken_ports.bind(attempts, forget)
    assert attempts.count == 1


def test_a_port_that_another_program_has_is_told_at_once() -> None:
    """With real sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        wanted = [rule(server.getsockname()[1], listen=ip("127.0.0.1"))]
        with pytest.raises(ForwardError, match="is held by"):
            close(taken_ports.bind(lambda warn: bind(wanted, 10, warn), forget, patience=1000))


def test_podmans_users_are_told_in_their_own_words(leaving: list[bool | None]) -> None:
    leaving[:] = [False]
    with pytest.raises(ForwardError, match=r"^taken \(-p 8080:80 of podman\)$"):
        taken_ports.bind(Attempts(1), forget, called_by=lambda: "podman")


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (rule(8080), "8080:80"),
        (rule(8080, last=8082), "8080-8082:80-82"),
        (rule(53, to=5353, protocol=UDP), "53:5353/udp"),
        (rule(8080, listen=ip("127.0.0.1")), "127.0.0.1:8080:80"),
        (rule(8080, listen=ip("fd00::1")), "[fd00::1]:8080:80"),
    ],
)
def test_a_rule_is_what_was_published(wanted: ForwardRule, text: str) -> None:
    assert taken_ports.published(wanted) == text
