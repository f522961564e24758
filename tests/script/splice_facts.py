# SPDX-License-Identifier: Apache-2.0
"""What the short way between two loopbacks believes of splice(2), and of epoll where both IN and OUT are watched:
further rows of the table of kernel_facts.py.

Read by test_kernel_facts.py. Adversary: nobody. Invariant: as in kernel_facts.py.
"""

from __future__ import annotations

import errno

from kernel_facts import DATA_OR_END, ERR, ET, HUP, IN, LOOKS, OUT, PRI, Kernel, fact

BOTH = IN | OUT | ET
ONE_SLOT = 4096  # bytes of a pipe with room for one piece of memory, whatever its size
LARGE = 1 << 20


# ---- out of a socket ----


@fact("splice() from a socket takes what is there, as far as it was asked to; then EAGAIN")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    assert kernel.splice_in(100) == -errno.EAGAIN
    kernel.peer_sends(100)
    assert [kernel.splice_in(60) for _ in range(3)] == [60, 40, -errno.EAGAIN]


@fact("splice() from a socket returns 0 at a FIN, behind the last byte and for ever")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.peer_sends(100)
    kernel.peer_closes()
    assert [kernel.splice_in(60) for _ in range(4)] == [60, 40, 0, 0]


@fact("after a RST the receive queue can still be spliced out, then comes the error once, then the end")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.peer_sends(100)
    kernel.peer_resets()
    assert [kernel.splice_in(60) for _ in range(4)] == [60, 40, -errno.ECONNRESET, 0]


@fact("where a write has met the error of a RST, the receive queue can still be spliced out, and then comes the end")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.peer_sends(100)
    kernel.peer_resets()
    assert kernel.write(10) == -errno.ECONNRESET
    assert [kernel.splice_in(60) for _ in range(3)] == [60, 40, 0]


@fact("a RST behind a FIN is only the end to splice(), and ERR to epoll")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.watch(BOTH)
    kernel.peer_closes()
    assert not kernel.woken() & ERR
    assert kernel.splice_in(60) == 0
    kernel.peer_resets()
    assert kernel.woken() & (ERR | HUP) == ERR | HUP
    assert kernel.splice_in(60) == 0
    assert kernel.so_error() == errno.EPIPE


@fact("a full pipe is EAGAIN, whatever the socket has: bytes or a FIN")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(ONE_SLOT)
    kernel.peer_sends(2)
    assert [kernel.splice_in(1) for _ in range(2)] == [1, -errno.EAGAIN]
    assert kernel.read(10) == 1
    kernel.peer_closes()
    assert kernel.splice_in(1) == -errno.EAGAIN
    assert kernel.splice_out(1) == 1
    assert kernel.splice_in(1) == 0


@fact("splice() stops before an urgent byte, as if nothing was behind it: EAGAIN, and 0 at a FIN; a read goes over it")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.watch(BOTH | PRI)
    kernel.peer_sends(100)
    kernel.peer_sends(10, urgent=True)
    kernel.peer_sends(50)
    assert kernel.woken() == IN | OUT | PRI
    assert [kernel.splice_in(1000) for _ in range(2)] == [109, -errno.EAGAIN]
    kernel.peer_closes()
    assert kernel.splice_in(1000) == 0
    assert kernel.read(1) == 1
    assert [kernel.splice_in(1000) for _ in range(2)] == [50, 0]


# ---- into a socket ----


@fact("an empty pipe is EAGAIN")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    assert kernel.splice_out(10) == -errno.EAGAIN


@fact("splice() to a socket that was reset is ECONNRESET once, then EPIPE, and the bytes stay in the pipe")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.peer_sends(100)
    assert kernel.splice_in(100) == 100
    kernel.peer_resets()
    assert [kernel.splice_out(100) for _ in range(3)] == [-errno.ECONNRESET, -errno.EPIPE, -errno.EPIPE]
    assert kernel.splice_in(100) == 0


@fact("splice() to a socket after our own shutdown() is EPIPE; from it, it goes on")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.peer_sends(100)
    assert kernel.splice_in(60) == 60
    kernel.shutdown()
    assert kernel.splice_out(60) == -errno.EPIPE
    assert kernel.splice_in(60) == 40
    kernel.peer_sends(10)
    assert kernel.splice_in(60) == 10


def fill_queue(kernel: Kernel) -> None:
    """What the peer has sent goes back to it, until our send queue takes no more."""
    for _ in range(LOOKS):
        kernel.peer_sends(30000)
        n = kernel.splice_in(LARGE)
        while n > 0:
            taken = kernel.splice_out(n)
            if taken == -errno.EAGAIN:
                return
            n -= taken
    raise AssertionError("the queue has no end")


@fact("splice() to a full queue is EAGAIN, and OUT comes once, when a third of it is free")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.pipe(LARGE)
    kernel.watch(OUT | ET)
    assert kernel.woken() == OUT
    fill_queue(kernel)
    assert kernel.woken() == 0
    events = 0
    for _ in range(LOOKS):
        if events := kernel.woken():
            break
        kernel.peer_takes(4096)
    queued, limit = kernel.send_memory()
    assert events == OUT and limit - queued >= queued // 2
    assert kernel.splice_out(1) == 1


# ---- both directions watched ----


@fact("under IN|OUT|ET OUT comes at first, and then only beside an IN: nothing was refused")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(BOTH)
    assert [kernel.woken() for _ in range(2)] == [OUT, 0]
    for _ in range(3):
        kernel.peer_sends(100)
        assert [kernel.woken() for _ in range(2)] == [IN | OUT, 0]
    assert kernel.write(1000) == 1000
    kernel.peer_takes(1000)
    assert kernel.woken() == 0


@fact("EPOLL_CTL_MOD to OUT|ET reports OUT, once, and to ET alone nothing; data wakes neither")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(BOTH)
    kernel.peer_sends(100)
    assert kernel.woken() == IN | OUT
    for events, told in ((OUT | ET, OUT), (ET, 0)):
        kernel.rewatch(events)
        assert [kernel.woken() for _ in range(2)] == [told, 0]
        kernel.peer_sends(100)
        assert kernel.woken() == 0


@fact("EPOLL_CTL_MOD back to IN|OUT|ET reports once, IN if there is something to read")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(ET)
    kernel.rewatch(BOTH)
    assert [kernel.woken() for _ in range(2)] == [OUT, 0]
    kernel.rewatch(ET)
    kernel.peer_sends(100)
    kernel.rewatch(BOTH)
    assert [kernel.woken() for _ in range(2)] == [IN | OUT, 0]


@fact("a FIN wakes IN|OUT|ET once; a RST does, with ERR and HUP, and under ET alone")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(BOTH)
    assert kernel.woken() == OUT
    kernel.peer_closes()
    assert [kernel.woken() for _ in range(2)] == [IN | OUT, 0]
    kernel.rewatch(ET)
    assert kernel.woken() == 0
    kernel.peer_resets()
    assert [kernel.woken() for _ in range(2)] == [ERR | HUP, 0]


# ---- a low-water mark ----


@fact("less than SO_RCVLOWAT is not told, as much and more is")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.low_water(1000)
    told = []
    for length in (999, 1, 1):
        kernel.peer_sends(length)
        told.append([kernel.woken() for _ in range(2)])
    assert told == [[0, 0], [IN, 0], [IN, 0]]


@fact("to take SO_RCVLOWAT back tells of what waited, once; if nothing did, it tells nothing")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.low_water(1000)
    kernel.low_water(1)
    assert kernel.woken() == 0
    kernel.low_water(1000)
    kernel.peer_sends(10)
    kernel.low_water(1)
    assert [kernel.woken() for _ in range(2)] == [IN, 0]


@fact("of what SO_RCVLOWAT asks for as much is taken as the queue may hold, and the option tells how much")
def _(kernel: Kernel) -> None:
    kernel.open()
    taken = []
    for length in (1000, 1 << 30):
        kernel.low_water(length)
        taken.append(kernel.low_water_taken())
    assert taken[0] == 1000 and 1000 < taken[1] < 1 << 30
    assert kernel.receive_limit() >= taken[1]


@fact("under SO_RCVLOWAT a FIN is told, whatever waits before it, and so is an urgent byte")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END | PRI)
    kernel.low_water(1000)
    kernel.peer_sends(10)
    assert kernel.woken() == 0
    kernel.peer_sends(10, urgent=True)
    assert kernel.woken() == PRI
    kernel.peer_closes()
    assert kernel.woken() & IN


# ---- connect() ----


@fact("a socket whose connect() is under way reports nothing, and has no error")
def _(kernel: Kernel) -> None:
    kernel.connect_to_silence()
    kernel.watch(BOTH)
    assert kernel.woken() == 0
    assert kernel.so_error() == 0


@fact("a connect() that succeeds is told OUT under IN|OUT|ET, once")
def _(kernel: Kernel) -> None:
    kernel.connect()
    kernel.accepted()
    kernel.watch(BOTH)
    assert [kernel.woken() for _ in range(2)] == [OUT, 0]


@fact("a connect() that is refused is told once under IN|OUT|ET: ERR, HUP, IN and OUT")
def _(kernel: Kernel) -> None:
    kernel.connect_refused()
    kernel.watch(BOTH)
    assert [kernel.woken() for _ in range(2)] == [ERR | HUP | IN | OUT, 0]
