# SPDX-License-Identifier: Apache-2.0
"""plugin/bridge/meeting_server.py: those who come to the helper that containers share, on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from forwarding import FIRST, HERE, RIGHTS, Scene, listening, rules
from host_samples import ip
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.address import UNSET
from lockgate.plugin.bridge import meeting, meeting_server
from lockgate.plugin.bridge.claims import ClaimedTable
from lockgate.plugin.bridge.meeting import Facts, MeetingError
from lockgate.plugin.bridge.meeting_server import MeetingServer, parse_ports
from lockgate.plugin.contracts.pesto import ProtocolError, pack_rule
from lockgate.plugin.ports import Rights

A, B = FIRST, FIRST + 1
PATIENCE = 20.0  # seconds, for what takes no time
FACTS = Facts(ipv4=True, ipv6=False, mtu=65520)


class Place:
    """The helper, and what it told about those who came."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind("")  # an abstract address of the kernel's choice
        self.listener.listen()
        self.claims = ClaimedTable(scene.table)
        server = MeetingServer(RIGHTS, scene.table, self.claims, lambda: FACTS, self._emit)
        self.serving = asyncio.create_task(server.serve(self.listener))

    def _emit(self, event: str, /, **fields: object) -> None:
        self.told.append((event, fields))

    async def client(self) -> meeting.Client:
        return await asyncio.to_thread(meeting.Client, self.listener.getsockname())


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ports that do not become free."""
    monkeypatch.setattr(meeting_server, "WAIT_SECONDS", 0.0)


def play(part: Callable[[Place], Awaitable[None]], *specs: str) -> list[tuple[str, dict[str, Any]]]:
    """What the helper told."""

    async def run() -> Place:
        scene = Scene(*specs)
        await scene.table.restore(scene.worker)
        place = Place(scene)
        try:
            async with asyncio.timeout(PATIENCE):
                await part(place)
        finally:
            place.serving.cancel()
            await asyncio.wait([place.serving])
            place.listener.close()
            scene.end()
        return place

    before = len(os.listdir("/proc/self/fd"))
    place = asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before and not listening()
    return place.told


async def asked(client: meeting.Client, record: bytes) -> bytes:
    return await asyncio.to_thread(client.ask, record)


async def freed(port: int) -> None:
    """Returns when nobody listens there any more."""
    while port in listening():
        await asyncio.sleep(0)


def test_who_comes_is_told_of_the_helper() -> None:
    async def part(place: Place) -> None:
        client = await place.client()
        told = meeting.parse_facts(await asked(client, meeting.HELLO))
        assert (told.ipv4, told.ipv6, told.mtu) == (True, False, 65520)
        client.close()

    assert play(part) == []


def test_ports_live_as_long_as_the_connection_that_asked_for_them() -> None:
    """Whatever others do meanwhile."""

    async def part(place: Place) -> None:
        client, other = await place.client(), await place.client()
        await asked(client, meeting.pack_ports(rules(f"{A}:10.0.0.5/80")))
        await asked(other, meeting.pack_ports(rules(f"{B}")))
        assert listening() == {A, B}
        assert place.scene.worker.slots == {0: (A, 80, ip("10.0.0.5")), 1: (B, B, bytes(16))}
        client.close()
        await freed(A)
        assert listening() == {B}
        other.close()
        await freed(B)

    events = play(part)
    assert [event for event, _ in events] == ["meeting.ports"] * 2
    assert events[0][1] == {"client": os.getpid(), "table": f"TCP {HERE}:{A} => 10.0.0.5:80"}


def test_a_client_may_lead_its_ports_elsewhere() -> None:
    async def part(place: Place) -> None:
        client = await place.client()
        await asked(client, meeting.pack_ports(rules(f"{A}:10.0.0.5/80")))
        await asked(client, meeting.pack_ports(rules(f"{A}:10.0.0.6/80")))
        assert place.scene.worker.slots == {0: (A, 80, ip("10.0.0.6"))}
        client.close()
        await freed(A)

    play(part)


def test_a_claim_outlives_the_connection_and_ends_with_another() -> None:
    """Whatever opened the port leads there meanwhile."""

    async def part(place: Place) -> None:
        await place.claims.replace(rules(f"{A}-{B}"))
        first = await place.client()
        await asked(first, meeting.pack_claim("container network", rules(f"{B}:10.0.0.5/80")))
        first.close()
        second = await place.client()
        await asked(second, meeting.HELLO)
        assert place.scene.worker.slots == {0: (A, A, bytes(16)), 1: (B, 80, ip("10.0.0.5"))}
        assert place.claims.rules == rules(f"{A}-{B}")
        await asked(second, meeting.pack_claim("container network", ()))
        assert place.scene.worker.leads() == {A: A, B: B}
        second.close()
        await place.claims.replace(())

    assert [event for event, _ in play(part)] == ["meeting.claim"] * 2


def test_a_port_that_is_taken_is_told_with_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once; and what the client had before stays."""
    monkeypatch.setattr(meeting_server, "WAIT_SECONDS", 3600.0)

    async def part(place: Place) -> None:
        client = await place.client()
        await asked(client, meeting.pack_ports(rules(f"{B}")))
        with socket.create_server((HERE, A)):
            words = f"TCP port {A} at {HERE} .*: Address already in use.*{os.getpid()}.*--publish"
            with pytest.raises(MeetingError, match=words):
                await asked(client, meeting.pack_ports(rules(f"{A}")))
        assert listening() == {B}
        client.close()
        await freed(B)

    assert play(part)[-1][0] == "meeting.refused"


def test_a_port_of_another_container_is_told() -> None:
    async def part(place: Place) -> None:
        client = await place.client()
        with pytest.raises(MeetingError, match=f"TCP port {A} .*: Address already in use.*another container"):
            await asked(client, meeting.pack_ports(rules(f"{A}:10.0.0.5/80")))
        client.close()

    play(part, f"{A}")


def test_the_port_of_another_container_that_goes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container that is restarted."""
    monkeypatch.setattr(meeting_server, "WAIT_SECONDS", PATIENCE)

    async def part(place: Place) -> None:
        client, before = await place.client(), await place.client()
        await asked(before, meeting.pack_ports(rules(f"{A}")))
        waiting = asyncio.create_task(asked(client, meeting.pack_ports(rules(f"{A}"))))
        await asked(before, meeting.HELLO)
        assert not waiting.done()
        before.close()
        await waiting
        client.close()
        await freed(A)

    play(part)


@pytest.mark.parametrize(
    "record",
    [
        b"?",
        b"HH",
        b"P" + bytes(56),
        b"P" + bytes(55),
        meeting.pack_ports(rules(f"{A}") * 2),
        meeting.pack_ports(rules(f"{A}"))[:-1],
        b"P" + pack_rule(rules(f"{A}")[0]) * 256,
        b"C",
        b"C\0",
        b"C\xff" + bytes(20),
        meeting.pack_claim("", rules(f"{A}:10.0.0.5/80")),
        meeting.pack_claim("a container", rules(f"{A}")),
        meeting.pack_claim("a container", rules(f"{A}:10.0.0.5/80"))[:-1],
        b"P" * meeting.RECORD_MAX,
        b"P" * (meeting.RECORD_MAX + 100),
    ],
    ids=lambda record: f"{record[:2]!r}…{len(record)}",
)
def test_a_client_that_makes_no_sense_is_refused_and_may_try_again(record: bytes) -> None:
    async def part(place: Place) -> None:
        client = await place.client()
        with pytest.raises(MeetingError):
            await asked(client, record)
        await asked(client, meeting.pack_ports(rules(f"{A}")))
        client.close()
        await freed(A)

    assert play(part)[0][0] == "meeting.refused"


def test_silence_holds_nobody_up() -> None:
    async def part(place: Place) -> None:
        silent = [await place.client() for _ in range(20)]
        client = await place.client()
        await asked(client, meeting.HELLO)
        for one in (*silent, client):
            one.close()

    assert play(part) == []


def test_there_is_an_end_to_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above the number are sent away at once; when one leaves, there is room again."""
    monkeypatch.setattr(meeting_server, "CLIENTS_MAX", 1)

    async def part(place: Place) -> None:
        client, other = await place.client(), await place.client()
        await asked(client, meeting.HELLO)
        with pytest.raises(MeetingError, match="left"):
            await asked(other, meeting.HELLO)
        client.close()
        while True:
            third = await place.client()
            try:
                await asked(third, meeting.HELLO)
                break
            except MeetingError:  # the first one has not been missed yet
                third.close()
        third.close()

    assert "meeting.refused" in dict(play(part))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_heard() -> None:
    """Neither as a client, nor as the helper."""

    async def part(place: Place) -> None:
        name = place.listener.getsockname()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setuid(65534)
                meeting.Client(name)
            except MeetingError as refusal:
                status = 0 if "belongs to another user" in str(refusal) else 2
            finally:
                os._exit(status)
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
        while not place.told:
            await asyncio.sleep(0)
        assert place.told == [("meeting.refused", {"client": pid, "reason": "it belongs to another user"})]

    play(part)


@pytest.mark.parametrize("best_effort", [True, False])
def test_a_port_of_a_family_that_is_off_is_left_out_if_it_is_no_matter(best_effort: bool) -> None:
    """Of IPv6, to a container of IPv4."""
    four, six = rules(f"{A}")[0], rules(f"{B}")[0]
    six.listen, six.target, six.best_effort = UNSET, ip("10.89.0.2"), best_effort
    record = meeting.pack_ports([four, six])
    assert parse_ports(record, RIGHTS) == [four, six]
    only4 = Rights(ipv4=True, ipv6=False, protocols=RIGHTS.protocols, room=10)
    if best_effort:
        assert parse_ports(record, only4) == [four]
    else:
        with pytest.raises(ProtocolError, match="switched off"):
            parse_ports(record, only4)


@given(st.binary(max_size=200))
def test_no_record_raises_anything_but_a_protocol_error(noise: bytes) -> None:
    good = meeting.pack_ports(rules(f"{A}"))
    for record in (b"P" + noise, good[: len(noise)] + noise, good[: -len(noise)] + noise):
        try:
            parse_ports(record, RIGHTS)
        except ProtocolError:
            pass


@given(st.binary(max_size=60))
def test_what_is_no_answer_is_a_meeting_error(noise: bytes) -> None:
    try:
        meeting.parse_facts(noise)
    except MeetingError:
        pass
