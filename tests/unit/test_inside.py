# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/inside.py: what the agent is asked for, and what is made of its answers."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from lockgate.plugin import forwards, ports
from lockgate.plugin.address import UNSET
from lockgate.plugin.contracts import forward_spec
from lockgate.plugin.forward_rule import TCP, UDP, ForwardRule
from lockgate.plugin.namespace import agent_records, inside
from lockgate.plugin.namespace.agent_records import BIND, DUAL_STACK, LISTEN, LOOPBACK, SocketsWanted


class Played(agent_records.Agent):
    """Gives what it is told to, below zero an errno, and remembers what it was asked for."""

    def __init__(self, *given: int) -> None:
        ours, self.other = socket.socketpair()
        super().__init__(0, ours)
        self.given = list(given)
        self.asked: list[SocketsWanted] = []

    def open_sockets(self, wanted: SocketsWanted) -> list[int]:
        self.asked.append(wanted)
        return self.given

    def close(self) -> None:
        self.channel.close()
        self.other.close()


def rule(text: str, protocol: int, ipv4: bool = True, ipv6: bool = True) -> ForwardRule:
    scope = forward_spec.Scope(ipv4=ipv4, ipv6=ipv6, tcp=True, udp=True, ephemeral=lambda: (1, 2), outbound=True)
    (made,) = forward_spec.add((), "-T", protocol, text, scope)
    return made


@pytest.mark.parametrize(
    ("families", "family", "more"),
    [
        ((True, True), socket.AF_INET6, DUAL_STACK),
        ((True, False), socket.AF_INET, 0),
        ((False, True), socket.AF_INET6, 0),
    ],
    ids=["both families", "IPv4", "IPv6"],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_ports_that_lead_out_listen_on_loopback_for_each_family_that_is_there(
    families: tuple[bool, bool], family: int, more: int, protocol: int
) -> None:
    """And the agent would grant it."""
    agent = Played(7, -errno.EADDRINUSE)
    assert inside.open_ports(agent, rule("80-81:90-91", protocol, *families), 80, 2) == [7, -errno.EADDRINUSE]
    (wanted,) = agent.asked
    assert (wanted.family, wanted.protocol, wanted.first, wanted.count) == (family, protocol, 80, 2)
    assert wanted.flags == BIND | LOOPBACK | more | (LISTEN if protocol == TCP else 0)
    assert wanted.address == UNSET and agent_records.parse_sockets(wanted.pack()) is not None
    agent.close()


def test_the_table_of_forwards_is_answered_as_by_the_keeper() -> None:
    """An errno for each port, and descriptors in order; nobody has to be asked for a port to be closed."""
    agent = Played(7, -errno.EADDRINUSE, 0)
    held = inside.Inside(agent, None, False, None)
    assert held.ask_ports(ports.OPEN, rule("80-82", TCP), 80, 3) == ([0, errno.EADDRINUSE, 0], [7, 0])
    assert held.ask_ports(ports.CLOSE, rule("80-82", TCP), 80, 3) == ([0, 0, 0], []) and len(agent.asked) == 1
    agent.close()


def test_without_splicing_no_worker_asks_the_agent() -> None:
    agent = Played()
    assert inside.Inside(agent, None, False, None).open_worker_channel() is None
    agent.close()


def test_an_agent_that_is_gone_gives_nothing() -> None:
    """Neither sockets nor channels; and nothing stays open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    theirs.close()
    agent = agent_records.Agent(0, ours)
    assert agent.open_sockets(SocketsWanted(socket.AF_INET, TCP, 2)) == [-errno.EPIPE] * 2
    with pytest.raises(agent_records.AgentError, match="^The namespace agent is gone$"):
        agent.open_worker_channel()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    ours.close()


@pytest.mark.parametrize(
    ("record", "descriptors"),
    [(b"", 0), (agent_records.pack_results([0]), 1), (agent_records.pack_results([0, 0]), 1), (b"A\0", 2), (b"A", 1)],
    ids=["nothing", "too few", "a descriptor that did not come", "half a number", "a refusal"],
)
def test_an_agent_that_answers_something_else_gives_nothing(record: bytes, descriptors: int) -> None:
    """Whatever a container has made of it: its descriptors are not kept."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = agent_records.Agent(0, ours)
    before = len(os.listdir("/proc/self/fd"))
    null = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
    socket.send_fds(theirs, [record or b"?"], null)
    for fd in null:
        os.close(fd)
    assert agent.open_sockets(SocketsWanted(socket.AF_INET, TCP, 2)) == [-errno.EPIPE] * 2
    socket.send_fds(theirs, [agent_records.pack_answer(errno.EINVAL)], [ours.fileno()])
    with pytest.raises(agent_records.AgentError):
        agent.open_worker_channel()
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_an_agent_opens_as_many_ports_at_a_time_as_it_is_asked_for() -> None:
    assert max(forwards.BATCH_MAX, ports.BATCH_MAX) <= agent_records.SOCKETS_MAX
