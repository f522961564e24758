# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_vhost.c as the front end sees it: rings that start, stop, break, and start again; descriptors that
are replaced; memory that may not go."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from core_pieces import ffi, lib
from virtqueue import HIGH, KICK_SOURCE, LEFT, RIGHT, RINGS, USER_SHIFT, WRITE, Descriptor, Driver, Link, Memory

RECEIVEQ, TRANSMITQ = lib.RECEIVEQ, lib.TRANSMITQ
LOG_ALL, MRG = 1 << lib.VHOST_F_LOG_ALL, 1 << lib.VIRTIO_NET_F_MRG_RXBUF
ALL_FDS = lib.LG_VRING_HAS_KICK | lib.LG_VRING_HAS_CALL | lib.LG_VRING_HAS_ERR
SECOND = RINGS.guest + 0x8000


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def signals(fd: int) -> int:
    """How often an eventfd was signalled since the last time."""
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


@pytest.fixture(name="link")
def fresh_link() -> Iterator[Link]:
    """Nothing of it may be left open: the front end comes and goes for as long as the worker lives."""
    before = open_fds()
    link = Link(Memory(), MRG)
    yield link
    link.close()
    assert len(open_fds() - before) == 0


def setup(link: Link, queue: int = TRANSMITQ, size: int = 4, base: int = RINGS.guest, **fields: int) -> Any:
    made = Driver(link.memory, size, 0, base).setup(queue)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


# ---- starting ----


@pytest.mark.parametrize("size", [0, 3, 65536, 2**31, 2**32 - 1, 32769, 24])
def test_a_size_that_no_ring_has_is_refused(link: Link, size: int) -> None:
    """A power of two up to 32768 (virtio 1.2, 2.7)."""
    refused = setup(link)
    refused.size = size
    assert link.start(refused) == -errno.EINVAL
    assert not link.ring(TRANSMITQ).desc


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize(
    "addr",
    [0, 2**64 - 16, RIGHT.end + USER_SHIFT, RIGHT.end - 8 + USER_SHIFT, LEFT.end - 8 + USER_SHIFT, LEFT.guest],
    ids=["zero", "end of space", "hole", "into a hole", "over two regions", "a guest address"],
)
def test_a_ring_part_outside_the_memory_is_refused(link: Link, part: str, addr: int) -> None:
    """In the front end's own addresses, and as a whole in one mapping: we keep plain pointers to it."""
    assert link.start(setup(link, **{part: addr})) == -errno.EFAULT
    assert not link.ring(TRANSMITQ).desc


@pytest.mark.parametrize(("part", "by"), [("desc", 8), ("desc", 1), ("avail", 1), ("used", 2), ("used", 1)])
def test_a_ring_part_that_is_not_aligned_is_refused(link: Link, part: str, by: int) -> None:
    """16, 2 and 4 bytes (virtio 1.2, 2.7)."""
    wanted = setup(link)
    setattr(wanted, part, getattr(wanted, part) + by)
    assert link.start(wanted) == -errno.EINVAL
    assert not link.ring(TRANSMITQ).desc


@pytest.mark.parametrize("size", [1, 2, 32768])
def test_a_ring_may_end_with_the_last_byte_of_its_region(size: int) -> None:
    """Sixteen bytes a descriptor, two or eight an element, and six for the words before and behind."""
    link = Link(Memory((RINGS,)))
    parts = (("desc", 16 * size, 16), ("avail", 6 + 2 * size, 2), ("used", 6 + 8 * size, 4))
    for part, length, alignment in parts:
        wanted = setup(link, size=size)
        last = (RINGS.end - length) // alignment * alignment
        setattr(wanted, part, last + USER_SHIFT)
        assert link.start(wanted) == 0
        link.stop(TRANSMITQ)
        setattr(wanted, part, last + alignment + USER_SHIFT)
        assert link.start(wanted) == -errno.EFAULT
    link.close()


def test_what_was_refused_can_be_asked_again_and_the_other_ring_lives(link: Link) -> None:
    """The descriptors of a refused start stay the caller's, and nothing of it stays behind."""
    assert link.start(setup(link, RECEIVEQ)) == 0
    kick = eventfd()
    before = open_fds()
    assert link.start(setup(link, base=SECOND, used=1), kick) == -errno.EFAULT
    assert open_fds() == before and link.ring(TRANSMITQ).kick_fd == -1
    assert link.start(setup(link, base=SECOND), kick) == 0
    assert lib.vring_usable(link.ring(RECEIVEQ)) and lib.vring_usable(link.ring(TRANSMITQ))


def test_a_kick_that_cannot_be_watched_is_refused_and_the_old_one_stays(link: Link) -> None:
    """A front end may send any file."""
    regular = os.memfd_create("file", os.MFD_CLOEXEC)
    assert link.start(setup(link), regular) == -errno.EPERM
    assert not link.ring(TRANSMITQ).desc
    kick = eventfd()
    assert link.start(setup(link), os.dup(kick)) == 0
    assert link.start(setup(link), regular) == -errno.EPERM
    assert lib.vring_usable(link.ring(TRANSMITQ))
    os.eventfd_write(kick, 1)
    assert link.epoll.poll(0) == [(KICK_SOURCE + TRANSMITQ, select.EPOLLIN)]
    os.close(regular)
    os.close(kick)


def test_a_stopped_ring_starts_at_new_addresses(link: Link) -> None:
    """The guest's driver was reset, and has put its rings elsewhere."""
    first, second = Driver(link.memory, 4, 7), Driver(link.memory, 8, 100, SECOND)
    assert link.start(first.setup(TRANSMITQ)) == 0
    first.offer(0, 1, 2)
    assert lib.vring_waiting(link.ring(TRANSMITQ)) == 3
    assert link.stop(TRANSMITQ) == 7
    assert link.start(second.setup(TRANSMITQ)) == 0
    second.offer(5)
    assert lib.vring_waiting(link.ring(TRANSMITQ)) == 1
    assert link.ring(TRANSMITQ).next_avail == 100 and link.ring(TRANSMITQ).size == 8


def test_a_running_ring_takes_descriptors_and_goes_on_where_it_is(link: Link) -> None:
    """Start comes again whenever the front end changes one of them; addresses and base are not for then."""
    driver = Driver(link.memory, 4, 7)
    kick, call, err = eventfd(), eventfd(), eventfd()
    assert link.start(driver.setup(TRANSMITQ)) == 0
    driver.offer(0)
    take(link, TRANSMITQ)
    again = setup(link, size=8, base=SECOND)
    assert link.start(again, os.dup(kick), os.dup(call), os.dup(err)) == 0
    ring = link.ring(TRANSMITQ)
    assert (ring.next_avail, ring.size) == (8, 4)
    assert min(ring.kick_fd, ring.call_fd, ring.err_fd) >= 0
    again.flags = 0
    assert link.start(again) == 0
    assert not lib.vring_usable(ring) and ring.desc
    for fd in (kick, call, err):
        os.close(fd)


def take(link: Link, queue: int) -> int:
    """Takes one chain; its head, or the error."""
    pieces = ffi.new("struct vring_pieces *", {"iov": ffi.new("struct iovec[]", 8), "max": 8})
    iov = ffi.new("struct iovec[]", 8)
    pieces.iov = iov
    head = ffi.new("uint16_t *")
    assert lib.vring_waiting(link.ring(queue)) > 0
    return int(lib.vring_take(link.ring(queue), pieces, head) or head[0])


# ---- stopping, and a worker that takes over ----


def test_stopping_tells_the_next_chain_that_was_not_taken(link: Link) -> None:
    """What GET_VRING_BASE answers: chains that were offered but not taken are still to come."""
    driver = Driver(link.memory, 4, 65534)
    assert link.start(driver.setup(TRANSMITQ)) == 0
    driver.offer(0, 1, 2)
    take(link, TRANSMITQ)
    take(link, TRANSMITQ)
    assert link.stop(TRANSMITQ) == 0  # 65534 + 2
    assert link.start(driver.setup(TRANSMITQ, base=0)) == 0
    assert take(link, TRANSMITQ) == 2


@pytest.mark.parametrize("queue", [RECEIVEQ, TRANSMITQ])
def test_a_ring_that_does_not_run_cannot_be_stopped(link: Link, queue: int) -> None:
    """And says so: the front end asks for the base of a ring that it never started."""
    assert lib.link_vhost_stop(link.vhost, queue, ffi.new("uint16_t *")) == -errno.EINVAL


def test_a_new_worker_goes_on_where_the_used_ring_stands(link: Link) -> None:
    """Nobody told it the base: chains that the dead worker had taken and not finished are taken again, none is lost."""
    driver = Driver(link.memory, 4, 65535)
    assert link.start(driver.setup(TRANSMITQ)) == 0
    driver.offer(0, 1, 2)
    take(link, TRANSMITQ)
    take(link, TRANSMITQ)
    lib.vring_finish(link.ring(TRANSMITQ), 0, 0)
    lib.vring_publish(link.ring(TRANSMITQ))
    successor = Link(link.memory, MRG)
    assert successor.start(driver.setup(TRANSMITQ, lib.LG_VRING_BASE_FROM_USED, base=12345)) == 0
    assert [take(successor, TRANSMITQ), take(successor, TRANSMITQ)] == [1, 2]
    lib.vring_finish(successor.ring(TRANSMITQ), 1, 0)
    assert lib.vring_publish(successor.ring(TRANSMITQ)) and lib.vring_wants_call(successor.ring(TRANSMITQ))
    assert driver.take_back() == [(0, 0), (1, 0)]
    lib.link_vhost_reset(successor.vhost)
    successor.epoll.close()


# ---- the descriptors ----


def test_a_replaced_kick_is_not_watched_any_more_though_the_front_end_holds_it(link: Link) -> None:
    """epoll(7): closing our descriptor alone would leave the eventfd in the set for as long as anybody has it open."""
    old, new = eventfd(), eventfd()
    assert link.start(setup(link), os.dup(old)) == 0
    os.eventfd_write(old, 1)
    assert link.epoll.poll(0) == [(KICK_SOURCE + TRANSMITQ, select.EPOLLIN)]
    assert link.start(setup(link), os.dup(new)) == 0
    os.eventfd_write(old, 1)
    assert link.epoll.poll(0) == []
    os.eventfd_write(new, 1)
    assert link.epoll.poll(0) == [(KICK_SOURCE + TRANSMITQ, select.EPOLLIN)]
    assert link.epoll.poll(0) == [], "edge-triggered: nobody has to read it"
    os.close(old)
    os.close(new)


@pytest.mark.parametrize("way", ["stop", "reset"])
def test_the_kick_of_a_ring_that_ended_wakes_nobody(link: Link, way: str) -> None:
    """Nor does it once the ring runs again with another."""
    kick = eventfd()
    assert link.start(setup(link, RECEIVEQ), os.dup(kick)) == 0
    if way == "stop":
        link.stop(RECEIVEQ)
    else:
        lib.link_vhost_reset(link.vhost)
    os.eventfd_write(kick, 1)
    assert link.epoll.poll(0) == []
    os.close(kick)


def test_a_kick_that_came_before_the_start_is_not_lost(link: Link) -> None:
    """The guest may have kicked while nobody watched."""
    kick = eventfd()
    os.eventfd_write(kick, 1)
    assert link.start(setup(link, RECEIVEQ), os.dup(kick)) == 0
    assert link.epoll.poll(0) == [(KICK_SOURCE + RECEIVEQ, select.EPOLLIN)]
    os.close(kick)


@pytest.mark.parametrize("kind", ["eventfd", "socket"])
def test_the_guest_is_called_once_a_flush_on_the_newest_call_descriptor(link: Link, kind: str) -> None:
    """User-mode Linux gives a socket in place of an eventfd."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if kind == "socket" else (None, None)
    call = eventfd() if theirs is None else theirs.fileno()
    driver, old = Driver(link.memory, 4), eventfd()
    assert link.start(driver.setup(TRANSMITQ), -1, os.dup(old)) == 0
    assert link.start(driver.setup(TRANSMITQ), -1, os.dup(call if ours is None else ours.fileno())) == 0
    for head in (0, 1):
        driver.offer(head)
        lib.vring_finish(link.ring(TRANSMITQ), take(link, TRANSMITQ), 0)
    link.flush()
    link.flush()
    assert link.count("calls") == 1 and signals(old) == 0
    if theirs is None or ours is None:
        assert signals(call) == 1
        os.close(call)
    else:
        assert theirs.recv(100, socket.MSG_DONTWAIT) == (1).to_bytes(8, "little")
        theirs.close()
        ours.close()
    os.close(old)


def test_a_call_socket_that_is_full_or_gone_stops_nothing(link: Link) -> None:
    """It has been signalled often enough, or nobody is there to hear it; neither blocks the worker nor ends it."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    driver = Driver(link.memory, 4)
    assert link.start(driver.setup(TRANSMITQ), -1, os.dup(ours.fileno())) == 0
    for turn in range(3000):
        if turn == 2900:
            theirs.close()
        driver.offer(0)
        lib.vring_finish(link.ring(TRANSMITQ), take(link, TRANSMITQ), 0)
        link.flush()
    assert link.count("calls") == 3000
    ours.close()


# ---- faults ----


def test_a_fault_is_signalled_once_and_the_other_ring_lives(link: Link) -> None:
    """The guest broke its transmitq: the front end hears of it, and frames to the guest still flow."""
    errs = [eventfd(), eventfd()]
    receive, transmit = Driver(link.memory, 4), Driver(link.memory, 4, 0, SECOND)
    assert link.start(receive.setup(RECEIVEQ), -1, -1, os.dup(errs[RECEIVEQ])) == 0
    assert link.start(transmit.setup(TRANSMITQ), -1, -1, os.dup(errs[TRANSMITQ])) == 0
    transmit.offer(9)
    frames, more = ffi.new("struct guest_frame[]", lib.LINK_BATCH), ffi.new("bool *")
    for _ in range(3):
        assert link.operations.from_guest(link.link, frames, more) == 0 and not more[0]
        link.operations.release(link.link)
        link.flush()
    assert link.fault(TRANSMITQ) == "head_range"
    assert signals(errs[TRANSMITQ]) == 1 and signals(errs[RECEIVEQ]) == 0 and link.count("ring_faults") == 1
    receive.describe(0, Descriptor(LEFT.guest, 2048, WRITE))
    receive.offer(0)
    room = ffi.new("struct guest_room *")
    assert link.operations.reserve(link.link, 60, 0, ffi.NULL, room) == 0
    link.operations.rollback(link.link)
    for fd in errs:
        os.close(fd)


def test_a_fault_behind_a_buffer_that_suffices_is_signalled_too(link: Link) -> None:
    """A frame fits the first buffer in part; the second, which is to be merged with it, is no buffer at all. The frame
    goes out shorter, and the fault is told: nobody would look at this ring again."""
    err, driver = eventfd(), Driver(link.memory, 4)
    assert link.start(driver.setup(RECEIVEQ), -1, -1, os.dup(err)) == 0
    driver.describe(0, Descriptor(LEFT.guest, 200, WRITE))
    driver.describe(1, Descriptor(0, 200, WRITE))
    driver.offer(0, 1)
    pieces, room = ffi.new("struct payload_pieces *"), ffi.new("struct guest_room *")
    assert link.operations.reserve(link.link, 54, 1000, pieces, room) == 0
    assert room.payload == 200 - 12 - 54
    link.operations.commit(link.link, 54 + room.payload, ffi.new("struct offload *"))
    link.operations.rollback(link.link)
    link.flush()
    assert driver.take_back() == [(0, 200)]
    assert link.operations.reserve(link.link, 54, 0, pieces, room) == -errno.ENOTCONN
    assert link.fault(RECEIVEQ) == "address"
    assert signals(err) == 1 and link.count("ring_faults") == 1
    os.close(err)


def test_a_ring_that_jumped_while_we_waited_for_room_is_signalled(link: Link) -> None:
    """The wait for the room event is the third place where the guest's index is read."""
    err, driver = eventfd(), Driver(link.memory, 4)
    assert link.start(driver.setup(RECEIVEQ), -1, -1, os.dup(err)) == 0
    driver.jump(5)
    assert link.operations.wait_room(link.link), "the room event is the ring's next start"
    assert link.fault(RECEIVEQ) == "avail_index" and signals(err) == 1
    os.close(err)


def test_a_broken_ring_comes_back_when_the_front_end_sets_it_up_anew(link: Link) -> None:
    """Stopped and started it is a new ring, and its next fault is told again; started only, it stays down."""
    err = eventfd()
    for turn in range(2):
        driver = Driver(link.memory, 4, turn)
        assert link.start(driver.setup(TRANSMITQ), -1, -1, os.dup(err)) == 0
        driver.offer(4)
        assert lib.vring_usable(link.ring(TRANSMITQ))
        frames, more = ffi.new("struct guest_frame[]", lib.LINK_BATCH), ffi.new("bool *")
        link.operations.from_guest(link.link, frames, more)
        assert link.start(driver.setup(TRANSMITQ)) == 0
        assert not lib.vring_usable(link.ring(TRANSMITQ))
        assert signals(err) == 1
        assert link.stop(TRANSMITQ) == turn
    assert link.count("ring_faults") == 2
    os.close(err)


# ---- memory, features, log ----


def test_memory_in_which_a_ring_lies_stays(link: Link) -> None:
    """Pointers into it would dangle. Once the ring is stopped, it goes."""
    driver = Driver(link.memory, 4)
    wanted = driver.setup(TRANSMITQ)
    wanted.used = HIGH.guest + USER_SHIFT
    assert link.start(wanted) == 0
    rings, high = link.memory.region(0), link.memory.region(3)
    assert lib.link_vhost_memory_remove(link.vhost, rings) == -errno.EBUSY
    assert lib.link_vhost_memory_remove(link.vhost, high) == -errno.EBUSY
    assert lib.link_vhost_memory_remove(link.vhost, link.memory.region(1)) == 0
    link.stop(TRANSMITQ)
    assert lib.link_vhost_memory_remove(link.vhost, high) == 0
    assert lib.link_vhost_memory_remove(link.vhost, high) == -errno.ENOENT
    assert link.start(wanted) == -errno.EFAULT


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ([], (False, False, False)),
        (["GUEST_CSUM"], (True, False, False)),
        (["GUEST_CSUM", "GUEST_TSO4"], (True, True, False)),
        (["GUEST_CSUM", "GUEST_TSO6"], (True, False, True)),
        (["GUEST_TSO4", "GUEST_TSO6"], (False, False, False)),
    ],
)
def test_what_the_guest_takes_follows_from_the_features(
    link: Link, bits: list[str], expected: tuple[bool, bool, bool]
) -> None:
    """Super-segments only with partial checksums (virtio 1.2, 5.1.3.1)."""
    lib.link_vhost_features(link.vhost, sum(1 << getattr(lib, f"VIRTIO_NET_F_{bit}") for bit in bits))
    assert (link.vhost.link.csum, link.vhost.link.tso4, link.vhost.link.tso6) == expected


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (["GUEST_CSUM"], (False, False, False)),
        (["GUEST_CSUM", "GUEST_USO4"], (True, True, False)),
        (["GUEST_CSUM", "GUEST_USO6"], (True, False, True)),
        (["GUEST_USO4", "GUEST_USO6"], (True, False, False)),
    ],
)
def test_several_datagrams_in_a_frame_follow_from_the_features_too(
    link: Link, bits: list[str], expected: tuple[bool, bool, bool]
) -> None:
    """Each buffer that does not merge holds 64 KiB then (virtio 1.3, 5.1.6.3.1)."""
    lib.link_vhost_features(link.vhost, sum(1 << getattr(lib, f"VIRTIO_NET_F_{bit}") for bit in bits))
    assert (link.vhost.link.large, link.vhost.link.uso4, link.vhost.link.uso6) == expected


@pytest.mark.parametrize(("features", "flags", "logs"), [(LOG_ALL, 1, True), (LOG_ALL, 0, False), (0, 1, False)])
def test_a_used_ring_is_logged_if_flagged_and_acknowledged(link: Link, features: int, flags: int, logs: bool) -> None:
    """Two words of the front end must agree: the ring's flag, and LOG_ALL."""
    table = ffi.new("uint8_t[]", RINGS.end // 4096 // 8)
    link.vhost.log.table, link.vhost.log.size = table, len(table)
    driver = Driver(link.memory, 4)
    lib.link_vhost_features(link.vhost, features)
    assert link.start(driver.setup(TRANSMITQ, flags * lib.LG_VRING_LOG)) == 0
    driver.offer(0)
    lib.vring_finish(link.ring(TRANSMITQ), take(link, TRANSMITQ), 0)
    assert link.vhost.log.dirtied == logs
    lib.link_vhost_features(link.vhost, features ^ LOG_ALL)
    link.vhost.log.dirtied = False
    lib.vring_publish(link.ring(TRANSMITQ))
    assert link.vhost.log.dirtied == (bool(flags) and not features), "it may change while the ring runs: migration"
    link.vhost.log.table = ffi.NULL


def test_reset_leaves_nothing(link: Link) -> None:
    """No ring, no memory, no feature, no descriptor: the next front end starts from zero."""
    before = open_fds()
    kick = eventfd()
    for queue, base in ((RECEIVEQ, RINGS.guest), (TRANSMITQ, SECOND)):
        driver = Driver(link.memory, 4, 0, base)
        assert link.start(driver.setup(queue, lib.LG_VRING_LOG), os.dup(kick), eventfd(), eventfd()) == 0
    lib.link_vhost_log(link.vhost, ffi.NULL, 0, eventfd())
    os.close(kick)
    lib.link_vhost_reset(link.vhost)
    assert open_fds() == before
    assert link.vhost.memory.count == 0 and not link.vhost.link.csum
    assert [link.ring(queue).desc for queue in (RECEIVEQ, TRANSMITQ)] == [ffi.NULL] * 2
    assert link.operations.reserve(link.link, 60, 0, ffi.NULL, ffi.new("struct guest_room *")) == -errno.ENOTCONN
