# SPDX-License-Identifier: Apache-2.0
"""The rings in a vhost-user session: what is refused, and what starts, changes and stops them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from vhost_user_front_end import (
    CLOSED,
    GUEST_SIZE,
    NET_FEATURES,
    RING_SIZE,
    SILENT,
    USER_ADDR,
    Bench,
    Step,
    ack,
    bench_of_one_test,
    event_file,
    ring_addr,
    run,
)

from lockgate.plugin.vhost_user.messages import (
    U64,
    Request,
    VringState,
    pack_message,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from bench_of_one_test()


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
    run(
        bench.play([(Request.SET_VRING_CALL, U64(1).pack(), (event,)), (Request.SET_VRING_CALL, U64(0x101).pack(), ())])
    )
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
    assert bench.worker.calls[-2:] == ["vring_start 0 size=256 base=0", "vring_enable 0 1"]
