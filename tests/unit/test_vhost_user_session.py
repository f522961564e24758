# SPDX-License-Identifier: Apache-2.0
"""The vhost-user session without sockets: features, the table, the device: what is checked, told and answered."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from vhost_user_front_end import (
    CLOSED,
    NET_FEATURES,
    PROTOCOL,
    SILENT,
    Bench,
    ack,
    bench_of_one_test,
    event_file,
    run,
)

from lockgate.plugin.vhost_user.dispatch import Answer
from lockgate.plugin.vhost_user.messages import (
    REQUESTS,
    U64,
    Feature,
    ProtocolFeature,
    Request,
    VringState,
    mask,
    pack_message,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from bench_of_one_test()


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


def test_set_features_without_protocol_features_enables_rings_that_run_disabled(bench: Bench) -> None:
    """After RESET_OWNER there is no other way back for such a front end; nothing else changes, so that none stops."""
    features = NET_FEATURES & ~mask(Feature.PROTOCOL_FEATURES)
    negotiate = bench.script.negotiate(features, protocol=0)
    run(bench.play([*negotiate, *bench.script.share(), *bench.script.ring(0)[:-1], (Request.RESET_OWNER, b"", ())]))
    bench.worker.calls.clear()
    run(bench.play(negotiate[2:]))
    assert bench.worker.calls == [f"link_features {features:#x}", "vring_enable 0 1"]


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
