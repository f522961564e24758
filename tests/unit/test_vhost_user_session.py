# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session without sockets: what is checked, what the worker is told, what the front end is answered."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from vhost_user_front_end import (
    GUEST,
    GUEST_SIZE,
    NET_FEATURES,
    PROTOCOL,
    RING_SIZE,
    USER_ADDR,
    Events,
    FakeWorker,
    Script,
    Step,
    event_file,
    memory_file,
    open_descriptors,
    ring_addr,
    run,
)

from lockgate.plugin.vhost_user.dispatch import Answer, Message, Refused, answer
from lockgate.plugin.vhost_user.messages import (
    FLAG_NEED_REPLY,
    REQUESTS,
    U64,
    VERSION,
    Feature,
    Header,
    Log,
    MemRegion,
    MemTable,
    ProtocolFeature,
    Region,
    Request,
    VringState,
    mask,
    pack_message,
)
from lockgate.plugin.vhost_user.session import Session


class Bench:
    """A session with a worker that cannot die, and messages put straight into it."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.events = Events()
        self.session = Session(worker, self.events)
        self.script = Script()

    async def say(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, ack: bool = False) -> Answer:
        """What goes out for this message. The descriptors are copied, as the kernel would."""
        header = Header(request, VERSION | (FLAG_NEED_REPLY if ack else 0), len(payload))
        message = Message(header, payload, [os.dup(fd) for fd in fds])
        plan = self.session.receive(message)
        verdict = await self.session.carry_out(message, plan)
        self.verdict = verdict
        for fd in message.fds:
            os.close(fd)
        return answer(message, verdict, self.session.protocol_features)

    async def play(self, steps: list[Step]) -> None:
        for request, payload, fds in steps:
            out = await self.say(request, payload, fds)
            assert not out.close, (Request(request).name, self.verdict)

    def reason(self) -> str:
        assert isinstance(self.verdict, Refused), self.verdict
        return self.verdict.reason

    def close(self) -> None:
        self.session.close()
        self.script.close()


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def bench(worker: FakeWorker) -> Iterator[Bench]:
    before = open_descriptors()
    bench = Bench(worker)
    yield bench
    bench.close()
    assert open_descriptors() == before, "descriptors were left open"


def ack(request: int, value: int) -> Answer:
    return Answer(pack_message(request, U64(value).pack()), close=False)


CLOSED = Answer(None, close=True)
SILENT = Answer(None, close=False)


# ---- Negotiation ----


def test_a_correct_session_brings_the_rings_up(bench: Bench) -> None:
    """Features, memory and rings reach the worker in order, and link.attach names what was negotiated."""
    run(bench.play(bench.script.up()))
    assert bench.worker.calls == [
        f"link_features {NET_FEATURES:#x}",
        "mem_table 0x0+0x100000",
        "vring_start 0 size=256 base=0",
        "vring_enable 0 1",
        "vring_start 1 size=256 base=0",
        "vring_enable 1 1",
    ]
    [attach] = bench.events.of("link.attach")
    assert attach["features"] == [
        "NET_F_CSUM",
        "NET_F_HOST_TSO4",
        "NET_F_MRG_RXBUF",
        "RING_F_EVENT_IDX",
        "PROTOCOL_FEATURES",
        "VERSION_1",
    ]


def test_the_mtu_feature_is_offered_only_after_its_protocol_feature(bench: Bench) -> None:
    """NET_F_MTU is absent from a GET_FEATURES before NET_MTU was acknowledged, and present after."""

    async def conversation() -> list[bool]:
        seen = []
        for protocol in (0, mask(ProtocolFeature.NET_MTU)):
            await bench.say(Request.SET_PROTOCOL_FEATURES, U64(protocol).pack())
            out = await bench.say(Request.GET_FEATURES)
            assert out.reply is not None
            seen.append(bool(U64.unpack(out.reply[12:]).value & mask(Feature.NET_F_MTU)))
        return seen

    assert run(conversation()) == [False, True]


def test_a_feature_that_was_not_offered_is_refused_by_name(bench: Bench) -> None:
    """Also NET_F_MTU, while NET_MTU is not acknowledged; a bit without a name is told by its number."""
    run(bench.say(Request.SET_FEATURES, U64(NET_FEATURES | mask(Feature.NET_F_MTU, 22)).pack()))
    assert bench.reason() == "NET_F_MTU, bit 22 acknowledged, which was not offered"
    assert not bench.worker.calls


def test_a_protocol_feature_that_was_not_offered_is_refused_by_name(bench: Bench) -> None:
    """MQ is not ours to acknowledge."""
    assert run(bench.say(Request.SET_PROTOCOL_FEATURES, U64(mask(ProtocolFeature.MQ)).pack())) == CLOSED
    assert bench.reason() == "MQ acknowledged, which was not offered"


def test_a_guest_without_version_1_is_refused(bench: Bench) -> None:
    """The line says what the guest lacks; nothing reaches the worker."""
    assert run(bench.say(Request.SET_FEATURES, U64(mask(Feature.NET_F_CSUM)).pack())) == CLOSED
    assert bench.reason().startswith("VERSION_1 was not acknowledged")
    assert not bench.worker.calls


def test_rings_without_protocol_features_are_enabled_from_set_features_on(bench: Bench) -> None:
    """Section "Ring states": no SET_VRING_ENABLE will come."""
    features = NET_FEATURES & ~mask(Feature.PROTOCOL_FEATURES)
    steps = [*bench.script.negotiate(features, protocol=0), *bench.script.share()]
    steps += [step for index in (0, 1) for step in bench.script.ring(index) if step[0] != Request.SET_VRING_ENABLE]
    run(bench.play(steps))
    assert bench.worker.calls[2:] == [
        "vring_start 0 size=256 base=0 enabled",
        "vring_start 1 size=256 base=0 enabled",
    ]
    assert bench.events.names() == ["link.attach"]


def test_rings_that_run_disabled_are_enabled_by_set_features_without_protocol_features(bench: Bench) -> None:
    """The change of features stops them, and at the next kick they start enabled."""

    async def conversation() -> None:
        await bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:-1]])
        await bench.say(Request.SET_FEATURES, U64(NET_FEATURES & ~mask(Feature.PROTOCOL_FEATURES)).pack())
        await bench.play(bench.script.ring(0)[5:6])

    run(conversation())
    assert bench.worker.calls[-3:] == [
        "vring_stop 0",
        f"link_features {NET_FEATURES & ~mask(Feature.PROTOCOL_FEATURES):#x}",
        "vring_start 0 size=256 base=0 enabled",
    ]


def test_the_log_bit_comes_and_goes_while_rings_run(bench: Bench) -> None:
    """VHOST_F_LOG_ALL starts a migration: no ring is stopped for it, unlike for any other bit."""

    async def conversation() -> None:
        await bench.play(bench.script.up())
        bench.worker.calls.clear()
        await bench.say(Request.SET_FEATURES, U64(NET_FEATURES | mask(Feature.VHOST_F_LOG_ALL)).pack())
        assert bench.worker.calls == [f"link_features {NET_FEATURES | mask(Feature.VHOST_F_LOG_ALL):#x}"]
        await bench.say(Request.SET_FEATURES, U64(NET_FEATURES & ~mask(Feature.NET_F_CSUM)).pack())
        assert bench.worker.calls[1:3] == ["vring_stop 0", "vring_stop 1"]

    run(conversation())
    assert bench.events.names() == ["link.attach", "link.detach"]


def test_the_ack_of_the_request_that_brings_reply_ack_is_sent(bench: Bench) -> None:
    """User-mode Linux sets NEED_REPLY on SET_PROTOCOL_FEATURES itself and waits."""
    out = run(bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack(), ack=True))
    assert out == ack(Request.SET_PROTOCOL_FEATURES, 0)


def test_need_reply_means_nothing_without_reply_ack(bench: Bench) -> None:
    """A flag of an extension that was not negotiated gets no answer."""
    assert run(bench.say(Request.SET_OWNER, ack=True)) == SILENT


# ---- The table ----


def outside(request: int) -> list[int]:
    """A payload size that the row does not accept."""
    rule = REQUESTS[request]
    return [size for size in (0, 1, 7, 9, 39, 41, 100) if not rule.payload.fits(size)]


IMPLEMENTED = [rule.request for rule in REQUESTS.values() if rule.handler]
MISSING = [rule.request for rule in REQUESTS.values() if not rule.handler]


@pytest.mark.parametrize("request_", IMPLEMENTED, ids=lambda request: request.name)
def test_a_payload_of_another_size_is_refused(bench: Bench, request_: Request) -> None:
    """Every implemented request, and nothing reaches the worker."""

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        for size in outside(request_):
            await bench.say(request_, bytes(size), ack=True)
            assert bench.reason().startswith(f"a payload of {size} bytes, where ")

    run(conversation())
    assert not bench.worker.calls


@pytest.mark.parametrize("request_", IMPLEMENTED, ids=lambda request: request.name)
def test_another_number_of_descriptors_is_refused(bench: Bench, request_: Request) -> None:
    """One more than the row allows, and one less; the descriptors are closed (the fixture counts)."""
    rule = REQUESTS[request_]
    event = event_file()

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        for count in {rule.fds[0] - 1, rule.fds[1] + 1} - {-1}:
            await bench.say(request_, bytes(rule.payload.sizes[0]), (event,) * count)
            assert bench.reason().startswith(f"{count} descriptors came with it")

    run(conversation())
    os.close(event)
    assert not bench.worker.calls


@pytest.mark.parametrize(
    "request_", [rule.request for rule in REQUESTS.values() if rule.needs is not None], ids=lambda request: request.name
)
def test_a_request_of_a_protocol_feature_that_was_not_acknowledged_is_refused(bench: Bench, request_: Request) -> None:
    """And the line names the feature."""
    rule = REQUESTS[request_]
    assert rule.needs is not None
    fds = (bench.script.memory,) * rule.fds[0]
    assert run(bench.say(request_, bytes(rule.payload.sizes[0]), fds)) == CLOSED
    assert bench.reason() == f"the protocol feature {rule.needs.name}, which it belongs to, has not been acknowledged"


@pytest.mark.parametrize("request_", MISSING, ids=lambda request: request.name)
def test_what_is_not_implemented_is_answered_where_that_can_be(bench: Bench, request_: Request) -> None:
    """An error where an ack was asked for, the end where the front end waits for more, else nothing; never a hang."""

    async def conversation() -> tuple[Answer, Answer]:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        return await bench.say(request_, bytes(8)), await bench.say(request_, bytes(8), ack=True)

    silent, acknowledged = run(conversation())
    if REQUESTS[request_].reply:
        assert (silent, acknowledged) == (CLOSED, CLOSED)
    else:
        assert (silent, acknowledged) == (SILENT, ack(request_, 1))


def test_an_unheard_of_request_ends_the_connection_unless_it_can_be_told(bench: Bench) -> None:
    """Nobody knows what the front end waits for."""

    async def conversation() -> None:
        assert await bench.say(99, bytes(8)) == CLOSED
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        assert await bench.say(99, bytes(8), ack=True) == ack(99, 1)
        assert await bench.say(99, bytes(8)) == CLOSED

    run(conversation())


def test_a_kick_before_set_features_is_refused(bench: Bench) -> None:
    """No ring can be read without knowing its features."""
    steps = [*bench.script.share(), *bench.script.ring(0)[:5]]
    run(bench.play(steps))
    assert run(bench.say(Request.SET_VRING_KICK, U64(0).pack(), (bench.script.kick[0],))) == CLOSED
    assert bench.reason() == "it is allowed only after SET_FEATURES"


def test_protocol_features_stay_as_they_are_while_a_ring_is_started(bench: Bench) -> None:
    """What the requests mean does not change under running rings."""
    run(bench.play(bench.script.up()))
    run(bench.say(Request.SET_PROTOCOL_FEATURES, U64(0).pack(), ack=True))
    assert bench.reason() == "it is allowed only while no ring is started"


# ---- Memory ----


def region(**changed: int) -> Region:
    return GUEST._replace(**changed)


BAD_REGIONS = {
    "empty": (region(size=0), "is empty"),
    "guest addresses that wrap": (region(guest_addr=2**64 - 4096), "ends beyond 64 bits"),
    "user addresses that wrap": (region(user_addr=2**64 - 4096), "ends beyond 64 bits"),
    "an offset that wraps": (region(mmap_offset=2**63 - 4096), "ends beyond 64 bits"),
    "a file that is too short": (region(size=GUEST_SIZE + 1), "a file that has only 1048576 bytes"),
    "an offset into the end of the file": (region(mmap_offset=4096), "a file that has only 1048576 bytes"),
}


@pytest.mark.parametrize("which", BAD_REGIONS)
@pytest.mark.parametrize("request_", [Request.SET_MEM_TABLE, Request.ADD_MEM_REG], ids=lambda request: request.name)
def test_a_region_that_cannot_be_is_refused(bench: Bench, which: str, request_: Request) -> None:
    """Either way it comes; nothing reaches the worker."""
    at, reason = BAD_REGIONS[which]
    payload = MemTable(1, (at,)).pack() if request_ is Request.SET_MEM_TABLE else MemRegion(at).pack()
    run(bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack()))
    assert run(bench.say(request_, payload, (bench.script.memory,), ack=True)) == ack(request_, 1)
    assert reason in bench.reason()
    assert not bench.worker.calls


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (region(user_addr=USER_ADDR + GUEST_SIZE, guest_addr=GUEST_SIZE - 1), "overlaps the region of 1048576 bytes"),
        (region(user_addr=USER_ADDR - 4096, guest_addr=GUEST_SIZE), "in the front end's addresses"),
        (GUEST, "overlaps the region of 1048576 bytes"),
    ],
)
def test_regions_that_overlap_are_refused(bench: Bench, other: Region, reason: str) -> None:
    """In guest addresses or in the front end's, in one table or one after the other."""

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        fds = (bench.script.memory, bench.script.memory)
        await bench.say(Request.SET_MEM_TABLE, MemTable(2, (GUEST, other)).pack(), fds, ack=True)
        assert reason in bench.reason()
        await bench.say(Request.ADD_MEM_REG, MemRegion(GUEST).pack(), fds[:1], ack=True)
        await bench.say(Request.ADD_MEM_REG, MemRegion(other).pack(), fds[:1], ack=True)
        assert reason in bench.reason()

    run(conversation())
    assert bench.worker.regions == [GUEST]


def test_regions_that_touch_do_not_overlap(bench: Bench) -> None:
    """The end of one may be the start of the next; the last byte of 64 bits may be used."""
    low = region(size=4096)
    table = (low, region(guest_addr=4096, user_addr=USER_ADDR + 4096), region(guest_addr=2**64 - 4096, user_addr=0))
    table = (*table[:2], table[2]._replace(size=4096))
    run(bench.say(Request.SET_MEM_TABLE, MemTable(3, table).pack(), (bench.script.memory,) * 3))
    assert bench.worker.regions == list(table)


@pytest.mark.parametrize("kind", ["socket", "eventfd", "folder"])
def test_memory_that_cannot_be_mapped_is_refused(bench: Bench, kind: str) -> None:
    """A descriptor of anything but a file or a device is no memory."""
    near, far = socket.socketpair()
    fd = {"socket": near.fileno, "eventfd": event_file, "folder": lambda: os.open("/", os.O_RDONLY)}[kind]()
    run(bench.say(Request.SET_MEM_TABLE, MemTable(1, (GUEST,)).pack(), (fd,)))
    assert "cannot be mapped" in bench.reason()
    if kind != "socket":
        os.close(fd)
    near.close()
    far.close()


@pytest.mark.parametrize(("count", "fds"), [(1, 0), (1, 2), (2, 1), (0, 1)])
def test_a_table_and_its_descriptors_must_be_of_one_number(bench: Bench, count: int, fds: int) -> None:
    """One descriptor for each region."""
    table = MemTable(count, (GUEST, region(guest_addr=GUEST_SIZE, user_addr=0)))
    run(bench.say(Request.SET_MEM_TABLE, table.pack(), (bench.script.memory,) * fds))
    assert bench.reason() == f"{fds} descriptors for {count} regions: one for each is expected"


def test_a_count_beyond_the_payload_is_refused(bench: Bench) -> None:
    """The count is a number from outside: it is compared with what came."""
    run(bench.say(Request.SET_MEM_TABLE, MemTable(2**32 - 1, (GUEST,)).pack(), (bench.script.memory,)))
    assert bench.reason() == "4294967295 regions are announced, and 1 are in the payload"


def test_room_for_more_regions_than_are_meant_is_accepted(bench: Bench) -> None:
    """User-mode Linux always sends room for two."""
    run(bench.play([(Request.SET_MEM_TABLE, MemTable(1, (GUEST, Region(0, 0, 0, 0))).pack(), (bench.script.memory,))]))
    assert bench.worker.regions == [GUEST]


def test_regions_are_added_up_to_the_slots_that_are_told(bench: Bench) -> None:
    """64 fit, the next is refused, and after one was removed it fits."""

    def at(i: int) -> bytes:
        return MemRegion(Region(i * 4096, 4096, USER_ADDR + i * 4096, i * 4096)).pack()

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        out = await bench.say(Request.GET_MAX_MEM_SLOTS)
        assert out.reply is not None and U64.unpack(out.reply[12:]).value == 64
        for i in range(64):
            assert await bench.say(Request.ADD_MEM_REG, at(i), (bench.script.memory,), ack=True) == ack(37, 0)
        assert await bench.say(Request.ADD_MEM_REG, at(64), (bench.script.memory,), ack=True) == ack(37, 1)
        assert "one too many: 64 regions are the most" in bench.reason()
        assert await bench.say(Request.REM_MEM_REG, at(7), ack=True) == ack(38, 0)
        assert await bench.say(Request.ADD_MEM_REG, at(64), (bench.script.memory,), ack=True) == ack(37, 0)

    run(conversation())
    assert len(bench.worker.regions) == 64


def test_a_region_is_removed_by_its_addresses_and_size(bench: Bench) -> None:
    """The offset is ignored, and a descriptor that came along is closed; another size is another region."""

    async def conversation() -> None:
        await bench.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL).pack())
        await bench.play(bench.script.share())
        await bench.say(Request.REM_MEM_REG, MemRegion(region(size=4096)).pack(), ack=True)
        assert bench.reason() == "the region of 4096 bytes at guest address 0x0 was never added"
        out = await bench.say(
            Request.REM_MEM_REG, MemRegion(region(mmap_offset=5)).pack(), (bench.script.memory,), ack=True
        )
        assert out == ack(Request.REM_MEM_REG, 0)

    run(conversation())
    assert bench.worker.regions == []


def test_a_new_memory_table_under_running_rings_stops_them_for_its_time(bench: Bench) -> None:
    """They go on where they stood, and both sides are signalled: nothing that came in between is slept through."""
    bench.worker.used = (7, 9)
    run(bench.play(bench.script.up()))
    bench.worker.bases.update({0: 41, 1: 42})
    bench.worker.calls.clear()
    for fd in (*bench.script.kick, *bench.script.call):
        assert not os.get_blocking(fd)
    run(bench.play(bench.script.share()))
    assert bench.worker.calls == [
        "vring_stop 0",
        "vring_stop 1",
        "mem_table 0x0+0x100000",
        "vring_start 0 size=256 base=41 enabled",
        "vring_start 1 size=256 base=42 enabled",
    ]
    assert [os.eventfd_read(fd) for fd in (*bench.script.kick, *bench.script.call)] == [1, 1, 1, 1]
    assert bench.events.names() == ["link.attach"]


def test_a_ring_whose_memory_goes_away_waits_for_it(bench: Bench) -> None:
    """QEMU takes a region away and adds its parts back: the ring stops before, and runs again when all is there."""

    async def conversation() -> None:
        await bench.play(bench.script.up())
        bench.worker.bases[0] = 5
        bench.worker.calls.clear()
        await bench.play([(Request.REM_MEM_REG, MemRegion(GUEST).pack(), ())])
        assert bench.events.names()[-3:] == ["link.parked", "link.parked", "link.detach"]
        half = GUEST_SIZE // 2
        low, high = region(size=half), Region(half, half, USER_ADDR + half, half)
        await bench.play([(Request.ADD_MEM_REG, MemRegion(at).pack(), (bench.script.memory,)) for at in (high, low)])

    run(conversation())
    assert bench.worker.calls == [
        "vring_stop 0",
        "vring_stop 1",
        "mem_remove 0x0+0x100000",
        "mem_add 0x80000+0x80000",
        "mem_add 0x0+0x80000",
        "vring_start 0 size=256 base=5 enabled",
        "vring_start 1 size=256 base=0 enabled",
    ]
    assert bench.events.names()[-1] == "link.attach"


def test_a_removed_region_without_rings_disturbs_none(bench: Bench) -> None:
    """Unplugged memory is nobody's ring."""
    other = region(guest_addr=GUEST_SIZE, user_addr=USER_ADDR + GUEST_SIZE)
    run(bench.play([*bench.script.up(), (Request.ADD_MEM_REG, MemRegion(other).pack(), (bench.script.memory,))]))
    bench.worker.calls.clear()
    run(bench.play([(Request.REM_MEM_REG, MemRegion(other).pack(), ())]))
    assert bench.worker.calls == ["mem_remove 0x100000+0x100000"]


def test_a_worker_that_refuses_memory_ends_the_connection(bench: Bench) -> None:
    """Told where that is possible; but what is shared is no longer sure, so that the front end must begin anew."""
    bench.worker.refuses = {"mem_table": errno.ENOMEM}
    run(bench.play(bench.script.negotiate()))
    out = run(bench.say(*bench.script.share()[0], ack=True))
    assert out == replace(ack(Request.SET_MEM_TABLE, 1), close=True)
    assert bench.reason() == "the worker refused: ENOMEM: Cannot allocate memory"


# ---- Rings ----


@pytest.mark.parametrize("size", [0, 3, 255, 65536, 32769, 2**32 - 1])
def test_a_ring_size_that_is_no_power_of_two_up_to_32768_is_refused(bench: Bench, size: int) -> None:
    """virtio 1.2, 2.7."""
    assert run(bench.say(Request.SET_VRING_NUM, VringState(0, size).pack())) == CLOSED
    assert bench.reason() == f"a ring of {size} descriptors: a power of two from 1 to 32768 is expected"


@pytest.mark.parametrize("size", [1, 2, 256, 32768])
def test_every_power_of_two_up_to_32768_is_a_ring_size(bench: Bench, size: int) -> None:
    """The limits themselves are allowed."""
    assert run(bench.say(Request.SET_VRING_NUM, VringState(1, size).pack())) == SILENT


RING_REQUESTS = [
    (Request.SET_VRING_NUM, VringState(2, 256).pack(), 0),
    (Request.SET_VRING_BASE, VringState(2, 0).pack(), 0),
    (Request.GET_VRING_BASE, VringState(2, 0).pack(), 0),
    (Request.SET_VRING_ENABLE, VringState(2, 1).pack(), 0),
    (Request.SET_VRING_ADDR, ring_addr(2).pack(), 0),
    (Request.SET_VRING_KICK, U64(2).pack(), 1),
    (Request.SET_VRING_CALL, U64(2).pack(), 1),
    (Request.SET_VRING_ERR, U64(255).pack(), 1),
]


@pytest.mark.parametrize(("request_", "payload", "fds"), RING_REQUESTS)
def test_a_ring_beyond_the_two_is_refused(bench: Bench, request_: Request, payload: bytes, fds: int) -> None:
    """Whatever is asked of it."""
    run(bench.play(bench.script.negotiate()))
    run(bench.say(request_, payload, (bench.script.kick[0],) * fds, ack=True))
    assert "does not exist: this device has 2" in bench.reason()


@pytest.mark.parametrize(
    ("part", "moved", "reason"),
    [
        ("desc", 8, "a multiple of 16 is expected"),
        ("avail", 1, "a multiple of 2 is expected"),
        ("used", 2, "a multiple of 4 is expected"),
        ("desc", -0x20000, "is outside the guest's memory"),
        ("desc", GUEST_SIZE - 0x10000 - 16 * RING_SIZE + 16, "the descriptor table of ring 0, 4096 bytes"),
        ("avail", GUEST_SIZE - 0x11000 - 6 - 2 * RING_SIZE + 2, "the avail ring of ring 0, 518 bytes"),
        ("used", GUEST_SIZE - 0x12000 - 4 - 8 * RING_SIZE, "the used ring of ring 0, 2054 bytes"),
        ("used", 2**63, "is outside the guest's memory"),
    ],
)
def test_a_ring_that_is_not_where_it_can_be_is_refused(bench: Bench, part: str, moved: int, reason: str) -> None:
    """Alignment and place of each of its three parts; one byte past the end of memory is outside."""
    addr = ring_addr(0)
    run(bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:2]]))
    moved_addr = replace(addr, **{part: getattr(addr, part) + moved})
    run(bench.say(Request.SET_VRING_ADDR, moved_addr.pack(), ack=True))
    assert reason in bench.reason()


def test_the_last_bytes_of_memory_may_hold_a_ring(bench: Bench) -> None:
    """Each part fits to the byte: 16, 2 and 8 bytes an entry, and 6 for what stands around the rings."""
    end = USER_ADDR + GUEST_SIZE
    run(bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:2]]))
    for fitting in (
        replace(ring_addr(0), desc=end - 16 * RING_SIZE),
        replace(ring_addr(0), avail=end - 6 - 2 * RING_SIZE),
        replace(ring_addr(0), used=end - 8 - 8 * RING_SIZE),  # aligned to 4: two bytes before the end
    ):
        assert run(bench.say(Request.SET_VRING_ADDR, fitting.pack())) == SILENT


def test_addresses_may_come_before_memory_and_size_and_are_checked_at_the_kick(bench: Bench) -> None:
    """The order is the front end's; what counts is what is known when the ring starts."""
    addr = replace(ring_addr(0), desc=USER_ADDR + GUEST_SIZE - 16 * RING_SIZE)
    steps: list[Step] = [(Request.SET_VRING_ADDR, addr.pack(), ()), *bench.script.share()]
    run(bench.play([*bench.script.negotiate(), *steps]))
    for size, answered in ((2 * RING_SIZE, 1), (RING_SIZE, 0)):
        run(bench.play([(Request.SET_VRING_NUM, VringState(0, size).pack(), ())]))
        out = run(bench.say(Request.SET_VRING_KICK, U64(0).pack(), (bench.script.kick[0],), ack=True))
        assert out == ack(Request.SET_VRING_KICK, answered)
    assert bench.worker.calls[-1] == "vring_start 0 size=256 base=0"


@pytest.mark.parametrize("missing", [Request.SET_VRING_NUM, Request.SET_VRING_ADDR, Request.SET_MEM_TABLE])
def test_a_kick_before_the_ring_is_described_is_refused(bench: Bench, missing: Request) -> None:
    """Size, addresses and memory are all needed."""
    steps = [*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:5]]
    run(bench.play([step for step in steps if step[0] != missing]))
    run(bench.say(Request.SET_VRING_KICK, U64(0).pack(), (bench.script.kick[0],), ack=True))
    assert {
        Request.SET_VRING_NUM: "SET_VRING_NUM must come before",
        Request.SET_VRING_ADDR: "SET_VRING_ADDR must come before",
        Request.SET_MEM_TABLE: "is outside the guest's memory",
    }[missing] in bench.reason()


def test_a_ring_that_is_to_be_polled_is_refused(bench: Bench) -> None:
    """The no-descriptor flag of SET_VRING_KICK asks for a spinning back end."""
    run(bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:5]]))
    run(bench.say(Request.SET_VRING_KICK, U64(0x100).pack(), ack=True))
    assert bench.reason() == "ring 0 is to be polled: only kicks by eventfd are implemented"


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
@pytest.mark.parametrize(
    ("value", "fds", "reason"),
    [
        (0x000, 0, "0 descriptors for ring 0 where its flags announce 1"),
        (0x101, 1, "1 descriptors for ring 1 where its flags announce 0"),
        (0x200, 1, "0x200: only a ring index and 0x100, no descriptor, are expected"),
    ],
)
def test_a_ring_descriptor_must_be_as_its_flags_say(
    bench: Bench, request_: Request, value: int, fds: int, reason: str
) -> None:
    """Of SET_VRING_KICK, CALL and ERR alike."""
    run(bench.play(bench.script.negotiate()))
    run(bench.say(request_, U64(value).pack(), (bench.script.kick[0],) * fds, ack=True))
    assert bench.reason() == reason


def test_a_base_of_more_than_16_bits_is_refused(bench: Bench) -> None:
    """The avail ring's index has no more."""
    run(bench.say(Request.SET_VRING_BASE, VringState(1, 65536).pack()))
    assert bench.reason() == "a base of 65536 for ring 1: at most 65535 is expected"


def test_enable_is_zero_or_one(bench: Bench) -> None:
    """Anything else is a message that was garbled."""
    run(bench.say(Request.SET_VRING_ENABLE, VringState(0, 2).pack()))
    assert bench.reason() == "2 for ring 0: 1 enables, 0 disables"


def test_call_and_err_change_while_the_ring_runs(bench: Bench) -> None:
    """The worker is told, none included; a new call descriptor is signalled once."""
    run(bench.play(bench.script.up()))
    bench.worker.calls.clear()
    event = event_file()
    run(bench.play([(Request.SET_VRING_CALL, U64(1).pack(), (event,)), (Request.SET_VRING_CALL, U64(0x101).pack(), ())]))
    run(bench.play([(Request.SET_VRING_ERR, U64(1).pack(), (event,)), (Request.SET_VRING_ERR, U64(0x101).pack(), ())]))
    assert bench.worker.calls == ["vring_call 1 set", "vring_call 1 none", "vring_err 1 set", "vring_err 1 none"]
    assert os.eventfd_read(event) == 1
    os.close(event)


def test_a_full_call_pipe_does_not_hold_us_up(bench: Bench) -> None:
    """A front end may leave its call descriptor unread: signalling it again never blocks, nor does a closed one."""
    run(bench.play(bench.script.up()))
    read, write = os.pipe()
    os.set_blocking(write, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    assert run(bench.say(Request.SET_VRING_CALL, U64(0).pack(), (write,))) == SILENT
    os.close(read)
    assert run(bench.say(Request.SET_VRING_CALL, U64(0).pack(), (write,))) == SILENT
    os.close(write)


def test_get_vring_base_stops_the_ring_and_tells_where_it_stood(bench: Bench) -> None:
    """The answer is the worker's, and the next start needs a new kick."""
    run(bench.play(bench.script.up()))
    bench.worker.bases[1] = 321
    out = run(bench.say(*bench.script.stop()[1]))
    assert out.reply == pack_message(Request.GET_VRING_BASE, VringState(1, 321).pack())
    assert bench.worker.calls[-1] == "vring_stop 1"
    assert bench.events.names() == ["link.attach", "link.detach"]
    run(bench.say(Request.SET_VRING_ENABLE, VringState(1, 1).pack()))
    assert bench.worker.calls[-1] == "vring_stop 1", "enabling does not start a stopped ring"


def test_get_vring_base_of_a_ring_that_never_ran_tells_what_was_set(bench: Bench) -> None:
    """A migration may stop before the guest's driver started."""
    run(bench.play([(Request.SET_VRING_BASE, VringState(0, 12).pack(), ())]))
    out = run(bench.say(*bench.script.stop()[0]))
    assert out.reply == pack_message(Request.GET_VRING_BASE, VringState(0, 12).pack())
    assert not bench.worker.calls


def test_a_ring_goes_on_from_the_base_that_is_set(bench: Bench) -> None:
    """The other end of a migration."""
    run(bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0, base=500)]))
    assert "vring_start 0 size=256 base=500" in bench.worker.calls


def test_a_driver_that_is_loaded_again_without_get_vring_base_is_served(bench: Bench) -> None:
    """User-mode Linux disables its rings, frees them, and sets them up anew somewhere else."""
    run(bench.play(bench.script.up()))
    for index in (1, 0):
        run(bench.play([(Request.SET_VRING_ENABLE, VringState(index, 0).pack(), ())]))
    bench.worker.calls.clear()
    run(bench.play([bench.script.negotiate()[2], *bench.script.share()]))
    assert bench.worker.calls == [
        f"link_features {NET_FEATURES:#x}",
        "vring_stop 0",
        "vring_stop 1",
        "mem_table 0x0+0x100000",
    ], "a disabled ring is not started again unasked: its memory may be anything by now"
    bench.worker.calls.clear()
    run(bench.play([*bench.script.ring(0), *bench.script.ring(1)]))
    assert bench.worker.calls == [
        "vring_start 0 size=256 base=0",
        "vring_enable 0 1",
        "vring_start 1 size=256 base=0",
        "vring_enable 1 1",
    ]


@pytest.mark.parametrize("step", [0, 1])
def test_a_new_size_or_base_stops_a_running_ring_until_its_next_kick(bench: Bench, step: int) -> None:
    """A ring cannot change its size under the worker's hands."""
    run(bench.play(bench.script.up()))
    bench.worker.calls.clear()
    run(bench.play(bench.script.ring(0)[step : step + 1]))
    assert bench.worker.calls == ["vring_stop 0"]
    run(bench.play(bench.script.ring(0)[5:6]))
    assert bench.worker.calls[1:] == ["vring_start 0 size=256 base=0 enabled"]


def test_the_same_addresses_with_the_log_flag_restart_the_ring_in_place(bench: Bench) -> None:
    """A migration begins: the ring goes on where it stood, its used ring logged."""
    run(bench.play(bench.script.up()))
    bench.worker.bases[0] = 77
    bench.worker.calls.clear()
    run(bench.play([(Request.SET_VRING_ADDR, ring_addr(0, flags=1).pack(), ())]))
    assert bench.worker.calls == ["vring_stop 0", "vring_start 0 size=256 base=77 enabled logged"]
    assert os.eventfd_read(bench.script.kick[0]) == 1


def test_a_ring_that_the_worker_refuses_is_not_started(bench: Bench) -> None:
    """The front end is told, and may go on; the ring waits for another kick."""
    run(bench.play([*bench.script.negotiate(), *bench.script.share(), *bench.script.ring(0)[:5]]))
    bench.worker.refuses = {"vring_start": errno.EINVAL}
    assert run(bench.say(*bench.script.ring(0)[5], ack=True)) == ack(Request.SET_VRING_KICK, 1)
    bench.worker.refuses = {}
    run(bench.play(bench.script.ring(0)[5:]))
    assert list(bench.worker.rings) == [0]


# ---- The device ----


def test_reset_owner_disables_the_rings_and_keeps_the_rest(bench: Bench) -> None:
    """The specification asks for no more of this deprecated request."""
    run(bench.play(bench.script.up()))
    bench.worker.calls.clear()
    run(bench.play([(Request.RESET_OWNER, b"", ())]))
    assert bench.worker.calls == ["vring_enable 0 0", "vring_enable 1 0"]
    run(bench.play([(Request.SET_VRING_ENABLE, VringState(0, 1).pack(), ())]))
    assert bench.worker.calls[2:] == ["vring_enable 0 1"]


def test_reset_device_forgets_rings_and_features_and_keeps_memory(bench: Bench) -> None:
    """A front end with CONFIGURE_MEM_SLOTS sends no region twice."""
    run(bench.play(bench.script.up()))
    bench.worker.calls.clear()
    run(bench.play([(Request.RESET_DEVICE, b"", ())]))
    assert bench.worker.calls == ["link_reset", "mem_table 0x0+0x100000"]
    steps = [bench.script.negotiate()[2], *bench.script.ring(0), *bench.script.ring(1)]
    run(bench.play(steps))
    assert bench.events.names() == ["link.attach", "link.detach", "link.attach"]


def test_the_status_is_remembered_and_nothing_else(bench: Bench) -> None:
    """QEMU 7.2 says 0 before it stops the rings: they must still know where they stand."""
    run(bench.play(bench.script.up()))
    bench.worker.calls.clear()
    for status in (15, 0):
        run(bench.play([(Request.SET_STATUS, U64(status).pack(), ())]))
        out = run(bench.say(Request.GET_STATUS))
        assert out.reply == pack_message(Request.GET_STATUS, U64(status).pack())
    assert not bench.worker.calls
    run(bench.say(Request.SET_STATUS, U64(256).pack()))
    assert bench.reason() == "a device status of 0x100: one byte is expected"


def test_a_driver_that_gives_up_is_told_once(bench: Bench) -> None:
    """The FAILED bit of the device status, when it is set."""
    run(bench.play(bench.script.negotiate()))
    for _ in range(2):
        run(bench.play([(Request.SET_STATUS, U64(0x83).pack(), ())]))
    assert bench.events.names() == ["link.failed"]


@pytest.mark.parametrize("mtu", [67, 65536, 2**64 - 1])
def test_an_mtu_out_of_range_is_refused(bench: Bench, mtu: int) -> None:
    """virtio 1.2, 5.1.4.1: 68 to 65535."""
    run(bench.play(bench.script.negotiate()))
    assert run(bench.say(Request.NET_SET_MTU, U64(mtu).pack(), ack=True)) == ack(Request.NET_SET_MTU, 1)
    assert bench.reason() == f"an MTU of {mtu}: 68 to 65535 is expected"


def test_mtu_and_rarp_become_events(bench: Bench) -> None:
    """They are for others to use: the assignments, and whoever reads the log."""
    run(bench.play(bench.script.negotiate()))
    rarp = bytes.fromhex("525400123456") + bytes(2)
    run(bench.play([(Request.NET_SET_MTU, U64(65520).pack(), ()), (Request.SEND_RARP, rarp, ())]))
    assert bench.events.all == [("link.mtu", {"mtu": 65520}), ("link.rarp", {"mac": "52:54:00:12:34:56"})]


def test_one_queue_pair_is_told(bench: Bench) -> None:
    """GET_QUEUE_NUM, though MQ is not offered."""
    out = run(bench.say(Request.GET_QUEUE_NUM))
    assert out.reply == pack_message(Request.GET_QUEUE_NUM, U64(1).pack())


def test_the_back_end_request_descriptor_is_kept_open_and_replaced(bench: Bench) -> None:
    """User-mode Linux takes its end for an interrupt, which must not be raised by our closing ours."""
    near, far = socket.socketpair()
    far.setblocking(False)
    run(bench.play(bench.script.negotiate()))
    for _ in range(2):
        run(bench.play([(Request.SET_BACKEND_REQ_FD, b"", (near.fileno(),))]))
    near.close()
    with pytest.raises(BlockingIOError):
        far.recv(1)
    bench.session.close()
    assert far.recv(1) == b""
    far.close()


# ---- The dirty log ----


def test_the_dirty_log_and_its_eventfd_reach_the_worker(bench: Bench) -> None:
    """SET_LOG_BASE is answered, SET_LOG_FD repeats what is known; each replaces the one before."""
    log, event = memory_file(8192), event_file()

    async def conversation() -> None:
        await bench.play(bench.script.negotiate())
        bench.worker.calls.clear()
        await bench.play([(Request.SET_LOG_FD, b"", (event,))])
        out = await bench.say(Request.SET_LOG_BASE, Log(4096, 4096).pack(), (log,))
        assert out.reply == pack_message(Request.SET_LOG_BASE, U64(0).pack())
        await bench.play([(Request.SET_LOG_FD, b"", (event,))])
        await bench.say(Request.SET_LOG_BASE, Log(8192, 0).pack(), (log,))

    run(conversation())
    assert bench.worker.calls == ["dirty_log 4096@4096 event"] * 2 + ["dirty_log 8192@0 event"]
    os.close(log)
    os.close(event)


@pytest.mark.parametrize(
    ("size", "offset", "reason"),
    [
        (0, 0, "the dirty log is empty"),
        (8193, 0, "a file that has only 8192 bytes"),
        (4096, 4097, "a file that has only 8192 bytes"),
        (2**63, 4096, "ends beyond 63 bits"),
    ],
)
def test_a_log_that_is_not_in_its_file_is_refused(bench: Bench, size: int, offset: int, reason: str) -> None:
    """The front end waits for an answer of its own here: the connection ends."""
    log = memory_file(8192)
    run(bench.play(bench.script.negotiate()))
    assert run(bench.say(Request.SET_LOG_BASE, Log(size, offset).pack(), (log,), ack=True)) == CLOSED
    assert reason in bench.reason()
    os.close(log)
