# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_vhost.c: when the guest is interrupted for the buffers that it gets back, and when that waits; and
when it is asked to kick late, because its answers to several frames come one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from core_pieces import ffi, lib
from virtqueue import LEFT, RINGS, WRITE, Descriptor, Driver, Link, Memory

RECEIVEQ, TRANSMITQ = lib.RECEIVEQ, lib.TRANSMITQ
INDIRECT, EVENT_IDX, MRG = (
    1 << bit for bit in (lib.VIRTIO_RING_F_INDIRECT_DESC, lib.VIRTIO_RING_F_EVENT_IDX, lib.VIRTIO_NET_F_MRG_RXBUF)
)
NEVER = 2**64 - 1
SIZE, SMALL, LARGE = 64, 100, 2000
NO_INTERRUPT = 1
SECOND = RINGS.guest + 0x8000


class Guest:
    """Both rings, driven by hand; the guest wants a call for each buffer until it says otherwise."""

    def __init__(self, features: int) -> None:
        self.event_idx = bool(features & EVENT_IDX)
        self.link = Link(Memory(), features | MRG)
        self.receive, self.transmit = Driver(self.link.memory, SIZE), Driver(self.link.memory, SIZE, 0, SECOND)
        for queue, driver in ((RECEIVEQ, self.receive), (TRANSMITQ, self.transmit)):
            assert self.link.start(driver.setup(queue)) == 0
        self._settle_first_call()
        self.frames, self.more = ffi.new("struct guest_frame[]", lib.LINK_BATCH), ffi.new("bool *")
        self.now_ms = lib.VHOST_CALL_QUIET_MS  # it has just been heard, as far as the link knows

    def _settle_first_call(self) -> None:
        """After a start the first is always made: nobody knows what the guest was told before."""
        for queue in (RECEIVEQ, TRANSMITQ):
            lib.vring_called(self.link.ring(queue))

    def kicks(self, *lengths: int) -> list[bool]:
        """Frames of so many bytes, one buffer each; whether it has to kick at each."""
        kicks = []
        for length in lengths:
            since = self.transmit.offered
            self.transmit.describe(since % SIZE, Descriptor(LEFT.guest, 12 + length))
            self.transmit.offer(since % SIZE)
            kicks.append(self.transmit.must_kick(since, self.event_idx))
        return kicks

    def sends(self, *lengths: int) -> None:
        """Such frames, in one batch; the device has them and gives the buffers back."""
        self.kicks(*lengths)
        assert self.link.operations.from_guest(self.link.link, self.frames, self.more) == len(lengths)
        self.link.operations.release(self.link.link)

    def gets_frame(self) -> None:
        """One frame to the guest is committed."""
        self.receive.describe(0, Descriptor(LEFT.guest, 2048, WRITE))
        self.receive.offer(0)
        room = ffi.new("struct guest_room *")
        assert self.link.operations.reserve(self.link.link, 60, 0, ffi.NULL, room) == 0
        self.link.operations.commit(self.link.link, 60, ffi.new("struct offload *"))

    def looks(self) -> None:
        """It takes its buffers back, and asks for a call at the next."""
        self.transmit.take_back()
        self.transmit.want_calls(0, self.transmit.taken_back % 65536)

    def calls_after(self, milliseconds: int = 0) -> int:
        """Of both rings, by a flush so much later."""
        before = self.link.count("calls")
        self.now_ms += milliseconds
        self.link.flush(self.now_ms)
        return self.link.count("calls") - before

    @property
    def waits(self) -> bool:
        """Whether a flush without any event is asked for."""
        return bool(self.link.vhost.link.flush_ms != NEVER)


@pytest.fixture(name="guest", params=[INDIRECT | EVENT_IDX, INDIRECT], ids=["event index", "flags"])
def running_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    guest = Guest(request.param)
    yield guest
    guest.link.close()


def test_the_call_for_a_small_frame_comes_with_its_time(guest: Guest) -> None:
    """Nobody waits for that buffer; a guest that does all the same is called a moment later, once."""
    guest.sends(SMALL)
    assert guest.calls_after() == 0 and guest.waits
    assert guest.link.vhost.link.flush_ms == guest.now_ms + lib.VHOST_CALL_DELAY_MS
    assert guest.calls_after(lib.VHOST_CALL_DELAY_MS - 1) == 0 and guest.waits
    assert guest.calls_after(1) == 1 and not guest.waits
    assert guest.calls_after(100) == 0 and not guest.waits


def test_a_guest_that_looked_meanwhile_is_not_called() -> None:
    """With an event index it says so."""
    guest = Guest(INDIRECT | EVENT_IDX)
    guest.sends(SMALL)
    assert guest.calls_after() == 0 and guest.waits
    guest.looks()
    assert guest.calls_after() == 0 and not guest.waits
    assert guest.calls_after(100) == 0
    guest.link.close()


def test_a_guest_that_wants_no_calls_is_not_waited_for() -> None:
    """Without an event index: it polls."""
    guest = Guest(INDIRECT)
    guest.transmit.want_calls(NO_INTERRUPT, 0)
    guest.sends(SMALL, LARGE)
    assert guest.calls_after() == 0 and not guest.waits
    guest.link.close()


def test_the_call_for_a_large_frame_is_made_at_once(guest: Guest) -> None:
    """Its sender may wait for the room that it takes in the socket's send buffer."""
    guest.sends(LARGE, LARGE, LARGE)
    assert guest.calls_after() == 1 and not guest.waits


def test_small_frames_add_up(guest: Guest) -> None:
    """Their buffers are no small change any more."""
    guest.sends(*[SMALL] * 30)
    assert guest.calls_after() == 0 and guest.waits
    guest.sends(*[SMALL] * 10)
    assert guest.calls_after() == 1 and not guest.waits


def test_the_call_for_large_frames_waits_when_the_guest_has_something_to_read(guest: Guest) -> None:
    """It is called for that, and looks at its transmitq, too; and if not, it is called after all."""
    guest.sends(LARGE, LARGE, LARGE)
    guest.gets_frame()
    assert guest.calls_after() == 1 and guest.waits  # for the receiveq
    assert guest.calls_after() == 0, "a second flush of the same step changes nothing"
    assert guest.calls_after(lib.VHOST_CALL_DELAY_MS) == 1 and not guest.waits


def test_a_call_that_waits_is_made_with_the_next_large_frame(guest: Guest) -> None:
    guest.sends(SMALL)
    assert guest.calls_after() == 0
    guest.sends(LARGE, LARGE, LARGE)
    assert guest.calls_after() == 1 and not guest.waits


def test_no_call_waits_once_half_of_the_ring_hangs_on_it(guest: Guest) -> None:
    guest.sends(*[20] * (SIZE // 2))
    assert guest.calls_after() == 1 and not guest.waits


def test_no_call_waits_on_a_small_ring_whose_descriptors_are_not_indirect() -> None:
    """A frame takes several of them there, and the guest may have none left."""
    guest = Guest(EVENT_IDX)
    guest.sends(SMALL)
    assert guest.calls_after() == 1 and not guest.waits
    guest.link.close()


def test_the_call_after_a_silence_does_not_wait(guest: Guest) -> None:
    """It would be a wake-up more for us; and the guest is not so busy that it would be one interrupt less for it."""
    guest.sends(SMALL)
    assert guest.calls_after() == 0 and guest.calls_after(lib.VHOST_CALL_QUIET_MS) == 1
    guest.looks()
    guest.sends(SMALL)
    assert guest.calls_after(1) == 1 and not guest.waits
    guest.looks()
    guest.sends(SMALL)
    assert guest.calls_after(1) == 0 and guest.waits, "but the one after it does"


def looks_at_its_ring(guest: Guest) -> None:
    """The device, and goes to sleep if nothing is there."""
    guest.link.operations.from_guest(guest.link.link, guest.frames, guest.more)
    guest.link.operations.release(guest.link.link)


def test_answers_that_come_one_by_one_bring_one_kick() -> None:
    """Each of them would wake us otherwise: sixteen windows that stay closed cost seventeen wake-ups a round."""
    guest = Guest(INDIRECT | EVENT_IDX)
    looks_at_its_ring(guest)
    guest.link.vhost.link.answers = 3
    guest.calls_after()
    assert guest.link.vhost.link.look_ms == guest.now_ms + lib.VHOST_ANSWERS_MS and not guest.link.vhost.link.answers
    assert guest.kicks(SMALL, SMALL) == [False, False] and guest.kicks(SMALL) == [True]
    looks_at_its_ring(guest)
    assert guest.link.vhost.link.look_ms == NEVER
    assert guest.kicks(SMALL) == [True], "from then on it kicks at once"
    guest.link.close()


def test_fewer_answers_than_asked_for_are_found_by_looking() -> None:
    guest = Guest(INDIRECT | EVENT_IDX)
    looks_at_its_ring(guest)
    guest.link.vhost.link.answers = 3
    guest.calls_after()
    assert guest.kicks(SMALL) == [False]
    assert guest.link.operations.from_guest(guest.link.link, guest.frames, guest.more) == 1, "at look_ms"
    guest.link.operations.release(guest.link.link)
    assert guest.link.vhost.link.look_ms == NEVER and guest.kicks(SMALL) == [True]
    guest.link.close()


@pytest.mark.parametrize("answers", [0, 1, SIZE // 2 + 1])
def test_the_kick_is_not_put_off_where_that_would_gain_nothing_or_fill_the_ring(answers: int) -> None:
    guest = Guest(INDIRECT | EVENT_IDX)
    looks_at_its_ring(guest)
    guest.link.vhost.link.answers = answers
    guest.calls_after()
    assert guest.link.vhost.link.look_ms == NEVER and guest.kicks(SMALL) == [True]
    guest.link.close()


def test_a_guest_without_an_event_index_kicks_at_once() -> None:
    """It has no way to count."""
    guest = Guest(INDIRECT)
    looks_at_its_ring(guest)
    guest.link.vhost.link.answers = 3
    guest.calls_after()
    assert guest.link.vhost.link.look_ms == NEVER and guest.kicks(SMALL) == [True]
    guest.link.close()


def test_of_a_stream_one_kick_comes_for_many_frames() -> None:
    """Sixteen kicks of sixteen datagrams are a good part of what these cost the guest."""
    guest = Guest(INDIRECT | EVENT_IDX)
    looks_at_its_ring(guest)
    guest.link.vhost.link.expected = 3
    guest.calls_after()
    assert guest.link.vhost.link.look_ms == guest.now_ms + lib.VHOST_EXPECTED_MS
    assert guest.kicks(SMALL, SMALL) == [False, False] and guest.kicks(SMALL) == [True]
    guest.link.close()


def test_a_look_that_is_due_is_not_put_off_by_what_happens_meanwhile() -> None:
    """Otherwise a few frames could wait for as long as something else goes on."""
    guest = Guest(INDIRECT | EVENT_IDX)
    looks_at_its_ring(guest)
    guest.link.vhost.link.expected = 3
    guest.calls_after()
    due = guest.link.vhost.link.look_ms
    guest.now_ms += 1
    guest.link.vhost.link.answers = 3
    guest.calls_after()
    assert guest.link.vhost.link.look_ms == due
    looks_at_its_ring(guest)
    assert guest.link.vhost.link.look_ms == NEVER
    guest.link.close()


def test_a_ring_that_stops_waits_for_nothing(guest: Guest) -> None:
    guest.sends(SMALL)
    assert guest.calls_after() == 0 and guest.waits
    guest.link.stop(TRANSMITQ)
    assert guest.calls_after(lib.VHOST_CALL_DELAY_MS) == 0 and not guest.waits
    assert guest.link.start(guest.transmit.setup(TRANSMITQ)) == 0
    guest.sends(LARGE, LARGE, LARGE)
    assert guest.calls_after() == 1, "the first of a new start is always made"
