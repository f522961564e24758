# SPDX-License-Identifier: Apache-2.0
"""plugin/ports.py: what control may ask of the keeper, and what a control that a guest has broken gets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest
from host_samples import ip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.plugin import forwards, ports
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.contracts import forward_spec
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.ports import CLOSE, OPEN, Ports, Rights

ROOM = 100
LOOPBACK = ip("127.0.0.1")


def rights(room: int = ROOM, ipv6: bool = True, protocols: Sequence[int] = (TCP, UDP)) -> Rights:
    return Rights(ipv4=True, ipv6=ipv6, protocols=protocols, room=room)


def rule(text: str, protocol: int = TCP) -> ForwardRule:
    scope = forward_spec.Scope(ipv4=True, ipv6=True, tcp=True, udp=True, ephemeral=lambda: (1, 2))
    (made,) = forward_spec.add((), "-t", protocol, text, scope)
    return made


class Control:
    """What control would get: results and descriptors; None where nothing is answered."""

    def __init__(self, keeper: Ports, takes: bool = True) -> None:
        self.keeper = keeper
        self.takes = takes
        self.fds: list[int] = []

    def say(self, record: bytes) -> list[int] | None:
        answers: list[list[int]] = []

        def send(answer: bytes, fds: Sequence[int]) -> bool:
            answers.append(ports.parse_answer(answer))
            if self.takes:
                self.fds += map(os.dup, fds)
            return self.takes

        self.keeper.serve(record, send)
        return answers[0] if answers else None

    def ask(self, kind: bytes, wanted: ForwardRule) -> list[int] | None:
        return self.say(ports.pack_request(kind, wanted, wanted.first, wanted.count))


@pytest.fixture(name="control")
def asking() -> Iterator[Callable[..., Control]]:
    made: list[Control] = []

    def make(given: Rights | None = None, held: Sequence[forwards.Listener] = (), takes: bool = True) -> Control:
        made.append(Control(Ports(held, given or rights()), takes))
        return made[-1]

    yield make
    for control in made:
        for fd in control.fds:
            os.close(fd)


@pytest.fixture(name="port")
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
        return number


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_a_port_is_opened_and_closed_again(control: Callable[..., Control], port: int) -> None:
    """Free at once, although control still has its copy."""
    asks, wanted = control(), rule(f"127.0.0.1/{port}")
    assert asks.ask(OPEN, wanted) == [0]
    with socket.create_connection(("127.0.0.1", port)):
        assert taken(port)
    assert asks.ask(CLOSE, wanted) == [0]
    assert not taken(port)
    assert asks.ask(CLOSE, wanted) == [errno.ENOENT]


def test_each_port_has_a_result_and_the_descriptors_come_in_order(control: Callable[..., Control], port: int) -> None:
    """Without one for a port that could not be had, or is there already."""
    asks = control()
    addresses = [f"127.0.0.{n}" for n in (1, 2)]
    with socket.create_server((addresses[0], port)):
        assert asks.ask(OPEN, rule(f"{addresses[0]}/{port}")) == [errno.EADDRINUSE]
        assert asks.ask(OPEN, rule(f"{addresses[1]}/{port}")) == [0]
        assert asks.ask(OPEN, rule(f"{addresses[1]}/{port}")) == [errno.EEXIST]
    with socket.socket(fileno=os.dup(asks.fds[0])) as ours:
        assert ours.getsockname() == (addresses[1], port)
    assert len(asks.fds) == 1


def test_what_was_bound_at_the_start_can_be_closed(control: Callable[..., Control], port: int) -> None:
    wanted = rule(f"127.0.0.1/{port}")
    asks = control(held=forwards.bind([wanted], ROOM, pytest.fail))
    assert asks.ask(OPEN, wanted) == [errno.EEXIST]
    assert asks.ask(CLOSE, wanted) == [0]
    assert not taken(port)


def test_on_quitting_all_ports_are_free_at_once(control: Callable[..., Control], port: int) -> None:
    asks = control()
    assert asks.ask(OPEN, rule(f"127.0.0.1/{port}")) == [0]
    asks.keeper.shut_down()
    assert not taken(port) and len(asks.fds) == 1


def test_without_the_option_nothing_can_be_asked_for(port: int) -> None:
    """--conf-path is what gives the right."""
    wanted = rule(f"127.0.0.1/{port}")
    asks = Control(Ports(forwards.bind([wanted], ROOM, pytest.fail), None))
    assert asks.ask(OPEN, rule(f"127.0.0.2/{port}")) is None
    assert asks.ask(CLOSE, wanted) is None
    assert taken(port)


def test_no_more_ports_are_opened_than_there_is_room_for(control: Callable[..., Control]) -> None:
    asks = control(rights(room=3))
    assert asks.ask(OPEN, rule("127.0.0.77/20001-20005")) == [0, 0, 0, errno.EMFILE, errno.EMFILE]
    assert asks.ask(CLOSE, rule("127.0.0.77/20001")) == [0]
    assert asks.ask(OPEN, rule("127.0.0.77/20005")) == [0]


def test_what_control_does_not_take_is_not_kept(control: Callable[..., Control], port: int) -> None:
    """A control that asks and never reads would have ports opened that nobody serves."""
    asks = control(takes=False)
    assert asks.ask(OPEN, rule(f"127.0.0.1/{port}")) == [0]
    assert not taken(port)


def record(
    kind: bytes = OPEN,
    protocol: int = TCP,
    dual_stack: int = 0,
    first: int = 20000,
    count: int = 1,
    listen: bytes = LOOPBACK,
    interface: bytes = b"",
) -> bytes:
    return struct.pack("=cBBxHH16s16s", kind, protocol, dual_stack, first, count, listen, interface)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        record()[:-1],
        record() + b"\0",
        record(b"X"),
        record(protocol=1),
        record(protocol=UDP),
        record(dual_stack=1),
        record(dual_stack=1, listen=UNSET),
        record(listen=ip("::1")),
        record(listen=UNSET),
        record(first=0),
        record(count=0),
        record(count=ports.BATCH_MAX + 1),
        record(first=65535, count=2),
        record(interface=b"a/b"),
        record(interface=b"a b"),
        record(interface=b"x" * 16),
        record(interface=b"eth0\0x"),
    ],
    ids=range(18),
)
def test_a_request_that_does_not_fit_is_refused(control: Callable[..., Control], wrong: bytes) -> None:
    """Here with IPv4 and TCP alone: of the others, nothing is ever opened."""
    before = os.listdir("/proc/self/fd")
    assert control(rights(ipv6=False, protocols=[TCP])).say(wrong) == []
    assert os.listdir("/proc/self/fd") == before


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                record,
                kind=st.sampled_from([OPEN, CLOSE]),
                protocol=st.sampled_from([TCP, UDP, 0]),
                dual_stack=st.integers(0, 1),
                first=st.integers(20000, 20004),
                count=st.integers(0, 3),
                listen=st.sampled_from([LOOPBACK, ANY4, UNSET, ip("::1"), ip("ff02::1"), ip("192.0.2.99")]),
                interface=st.sampled_from([b"", b"lo", b"nowhere"]),
            ),
        ),
        max_size=8,
    )
)
def test_whatever_is_asked_the_keeper_lives_and_keeps_its_room(records: list[bytes]) -> None:
    """Each request has one answer, with as many descriptors as ports that were opened."""
    before = len(os.listdir("/proc/self/fd"))
    asks = Control(Ports([], rights(room=4)))
    for each in records:
        answer = asks.say(each)
        assert answer is not None and len(answer) <= ports.BATCH_MAX
        if each[:1] == OPEN:
            assert len(asks.fds) == answer.count(0)
        assert len(os.listdir("/proc/self/fd")) - before - len(asks.fds) <= 4
        for fd in asks.fds:
            os.close(fd)
        asks.fds.clear()


def test_without_a_table_to_be_changed_only_ports_that_follow_may_be_asked_for(
    control: Callable[..., Control], port: int
) -> None:
    """Of one of their rules, as it listens, and within its ports."""
    wanted = rule(f"127.0.0.1/{port}-{port + 9}")
    within = Rights(ipv4=True, ipv6=True, protocols=[TCP, UDP], room=ROOM, within=[wanted])
    asks = control(within)
    for refused in (
        rule(f"127.0.0.1/{port - 1}-{port}"),
        rule(f"127.0.0.1/{port + 9}-{port + 10}"),
        rule(f"127.0.0.1/{port}", UDP),
        rule(f"127.0.0.1%lo/{port}"),
        rule(f"127.0.0.2/{port}"),
        rule(f"{port}"),
    ):
        assert asks.ask(OPEN, refused) == asks.ask(CLOSE, refused) == []
    assert asks.ask(OPEN, rule(f"127.0.0.1/{port}")) == asks.ask(CLOSE, rule(f"127.0.0.1/{port}")) == [0]
    assert control(Rights(ipv4=True, ipv6=True, protocols=[TCP], room=ROOM, within=[])).ask(OPEN, wanted) == []
