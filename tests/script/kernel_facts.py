# SPDX-License-Identifier: Apache-2.0
"""What the data path believes of the kernel's TCP and epoll: one table of facts, each a sentence and what shows it.

test_kernel_facts.py runs every fact against the real kernel and against the fake one, through the same few methods, so
that conversations which pass against the fake one say something about production.

Adversary: nobody. Invariant: a fact asserts only what both kernels can be asked; it never waits for a time to pass:
what must not happen is asked for when everything that could cause it has arrived.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable

IN, PRI, OUT, ERR, HUP, RDHUP, ET = 0x1, 0x2, 0x4, 0x8, 0x10, 0x2000, 1 << 31
DATA_OR_END = IN | RDHUP | ET
LOOKS = 1_000_000  # at something that is on its way over loopback, before it counts as lost


class Kernel(ABC):
    """A connected socket of ours whose peer is played, and epoll. Results are the kernel's, errors negative errnos."""

    has_peek_off: bool

    @abstractmethod
    def connect(self) -> None:
        """A new non-blocking socket; connect() has been called, and the peer has not accepted yet."""

    @abstractmethod
    def accepted(self) -> None: ...

    @abstractmethod
    def connect_refused(self) -> None:
        """The same to where nobody listens; the refusal has come."""

    @abstractmethod
    def connect_to_silence(self) -> None:
        """The same to where nobody answers at all."""

    # ours
    @abstractmethod
    def peek(self, length: int) -> int: ...
    @abstractmethod
    def read(self, length: int) -> int: ...
    @abstractmethod
    def discard(self, length: int) -> int: ...
    @abstractmethod
    def write(self, length: int) -> int: ...
    @abstractmethod
    def peek_off(self, offset: int) -> None: ...
    @abstractmethod
    def congestion(self, name: bytes) -> int: ...
    @abstractmethod
    def shutdown(self) -> None: ...
    @abstractmethod
    def close(self, hard: bool = False) -> None: ...
    @abstractmethod
    def so_error(self) -> int: ...
    @abstractmethod
    def send_memory(self) -> tuple[int, int]:
        """What is queued, and the limit: two words of SO_MEMINFO."""

    @abstractmethod
    def low_water(self, length: int) -> None:
        """SO_RCVLOWAT."""

    @abstractmethod
    def low_water_taken(self) -> int: ...

    @abstractmethod
    def receive_limit(self) -> int:
        """What the queue may hold: a word of SO_MEMINFO."""

    @abstractmethod
    def answer_at_leisure(self) -> None:
        """TCP_QUICKACK 0."""

    @abstractmethod
    def peer_waits_for_ack(self) -> bool:
        """Whether, of some bytes that the peer sends one by one, any is there but not acknowledged."""

    # a pipe of ours; splice() between it and our socket
    @abstractmethod
    def pipe(self, length: int) -> None: ...
    @abstractmethod
    def splice_in(self, length: int) -> int: ...
    @abstractmethod
    def splice_out(self, length: int) -> int: ...

    # the peer's; all of these return when what was done has arrived
    @abstractmethod
    def peer_sends(self, length: int, urgent: bool = False) -> None: ...
    @abstractmethod
    def peer_takes(self, length: int) -> None:
        """Up to so many bytes, of those that are there."""

    @abstractmethod
    def peer_closes(self) -> None:
        """Only its half: it still reads."""

    @abstractmethod
    def peer_resets(self) -> None: ...
    @abstractmethod
    def peer_sees(self) -> str:
        """'FIN' or 'RST', once ours is closed."""

    # epoll
    @abstractmethod
    def watch(self, events: int) -> None: ...
    @abstractmethod
    def rewatch(self, events: int) -> None: ...
    @abstractmethod
    def woken(self) -> int:
        """One epoll_wait() that does not wait: its events, 0 none."""

    @abstractmethod
    def eventfd_outlives_one_of_two_descriptors(self) -> bool:
        """Watched, one of two descriptors closed, signalled through the other: does the watch report it?"""

    def open(self) -> None:
        self.connect()
        self.accepted()


Fact = Callable[[Kernel], None]
FACTS: dict[str, Fact] = {}
NEEDS_PEEK_OFF: set[str] = set()


def fact(sentence: str, needs_peek_off: bool = False) -> Callable[[Fact], Fact]:
    def note(shows: Fact) -> Fact:
        FACTS[sentence] = shows
        if needs_peek_off:
            NEEDS_PEEK_OFF.add(sentence)
        return shows

    return note


# ---- connect() ----


@fact("a non-blocking connect() that succeeds is told OUT, once, and SO_ERROR is 0")
def _(kernel: Kernel) -> None:
    kernel.connect()
    kernel.accepted()
    kernel.watch(DATA_OR_END | PRI | OUT)
    assert kernel.woken() == OUT
    assert kernel.so_error() == 0
    assert kernel.woken() == 0


@fact("a refused connect() is told ERR and HUP, and SO_ERROR says why, once")
def _(kernel: Kernel) -> None:
    kernel.connect_refused()
    kernel.watch(DATA_OR_END | OUT)
    assert kernel.woken() & (ERR | HUP) == ERR | HUP
    assert kernel.so_error() == errno.ECONNREFUSED
    assert kernel.so_error() == 0


# ---- edges of data ----


@fact("under IN|ET each segment that arrives wakes once, read or not")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    assert kernel.woken() == 0
    for _ in range(3):
        kernel.peer_sends(100)
        assert kernel.woken() == IN
        assert kernel.woken() == 0


@fact("segments that arrive before anybody looks are one event")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    kernel.peer_sends(100)
    assert kernel.woken() == IN
    assert kernel.woken() == 0


@fact("an edge whose bytes were read before anybody looked is not reported")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    assert kernel.read(200) == 100
    assert kernel.woken() == 0


@fact("an edge whose bytes were only peeked at is reported all the same")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    assert kernel.peek(200) == 100
    assert kernel.woken() == IN


@fact("level-triggered IN fires for ever when all is peeked at already")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    assert kernel.peek(200) == 100
    kernel.watch(IN)
    assert [kernel.woken() for _ in range(5)] == [IN] * 5


@fact("data never wakes RDHUP|ET")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(RDHUP | ET)
    for _ in range(3):
        kernel.peer_sends(100)
        assert kernel.woken() == 0


@fact("EPOLL_CTL_MOD to IN|ET reports what is there already, once")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(RDHUP | ET)
    kernel.peer_sends(100)
    kernel.peek(200)
    assert kernel.woken() == 0
    kernel.rewatch(DATA_OR_END)
    assert kernel.woken() == IN
    assert kernel.woken() == 0


@fact("EPOLL_CTL_MOD away from IN takes back an edge that nobody has looked at")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    kernel.rewatch(RDHUP | ET)
    assert kernel.woken() == 0


# ---- reading ----


@fact("a peek behind the last byte is EAGAIN", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert kernel.peek(200) == 100
    assert kernel.peek(200) == -errno.EAGAIN


@fact("SO_PEEK_OFF moves on with each peek", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert [kernel.peek(40) for _ in range(3)] == [40, 40, 20]


@fact("SO_PEEK_OFF can be set back, to read the same bytes again", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert kernel.peek(200) == 100
    kernel.peek_off(30)
    assert kernel.peek(200) == 70


@fact("SO_PEEK_OFF moves back by what a plain read takes", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert kernel.peek(60) == 60
    assert kernel.read(50) == 50  # the offset is now 10, of 50 that are left
    assert kernel.peek(200) == 40


@fact("MSG_TRUNC without a buffer discards, and moves SO_PEEK_OFF back", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert kernel.peek(60) == 60
    assert kernel.discard(60) == 60
    assert kernel.peek(200) == 40
    assert kernel.discard(200) == 40
    assert kernel.discard(200) == -errno.EAGAIN


@fact("a discard of more than SO_PEEK_OFF leaves it at the head of the queue", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    assert kernel.peek(20) == 20
    assert kernel.discard(50) == 50
    assert kernel.peek(200) == 50


@fact("whoever has a socket may choose Reno for it")
def _(kernel: Kernel) -> None:
    kernel.open()
    assert kernel.congestion(b"reno") == 0


@fact("without SO_PEEK_OFF every peek begins at the head of the queue")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    assert [kernel.peek(40) for _ in range(3)] == [40, 40, 40]


@fact("to ask for SO_RCVLOWAT makes room for as much in the queue, which stays when it is taken back")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.low_water(1 << 20)
    kernel.low_water(1)
    assert kernel.receive_limit() >= 1 << 20
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(1)
    assert kernel.woken() == IN


@fact("after TCP_QUICKACK 0 what comes is not answered at once")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.answer_at_leisure()
    assert kernel.peer_waits_for_ack()


# ---- FIN ----


@fact("a peek at a FIN returns 0, not EAGAIN", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    kernel.peer_closes()
    assert kernel.peek(200) == 100
    assert [kernel.peek(200) for _ in range(2)] == [0, 0]


@fact("a FIN wakes IN|RDHUP|ET once, with IN and RDHUP")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_closes()
    assert kernel.woken() == IN | RDHUP
    assert kernel.woken() == 0


@fact("a FIN wakes RDHUP|ET, and a further EPOLL_CTL_MOD reports it again")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(RDHUP | ET)
    kernel.peer_sends(100)
    kernel.peer_closes()
    assert kernel.woken() == RDHUP
    assert kernel.woken() == 0
    kernel.rewatch(RDHUP | ET)
    assert kernel.woken() == RDHUP


@fact("level-triggered RDHUP fires for ever after a FIN")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(RDHUP)
    kernel.peer_closes()
    assert [kernel.woken() for _ in range(5)] == [RDHUP] * 5


@fact("HUP fires for ever once both sides are shut, even with an empty interest")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_closes()
    kernel.shutdown()
    kernel.watch(0)
    assert [kernel.woken() & HUP for _ in range(5)] == [HUP] * 5


@fact("our own shutdown() is an edge while there are bytes that nobody has taken")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    assert kernel.woken() == IN
    kernel.shutdown()
    assert kernel.woken() == IN


# ---- RST ----


@fact("after a RST the receive queue can still be read, then comes the error once, then the end")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.peer_resets()
    assert kernel.read(60) == 60
    assert kernel.read(60) == 40
    assert kernel.read(60) == -errno.ECONNRESET
    assert kernel.read(60) == 0


@fact("after a RST the receive queue can still be peeked at and discarded", needs_peek_off=True)
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peek_off(0)
    kernel.peer_sends(100)
    kernel.peer_resets()
    assert kernel.peek(60) == 60
    assert kernel.discard(60) == 60
    assert kernel.peek(60) == 40
    assert kernel.peek(60) == -errno.ECONNRESET
    assert kernel.discard(60) == 40


@fact("ERR and HUP fire for ever after a RST, level-triggered and with an empty interest")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(0)
    kernel.peer_resets()
    assert [kernel.woken() for _ in range(5)] == [ERR | HUP] * 5


@fact("a RST wakes RDHUP|ET once, with ERR, HUP and RDHUP")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(RDHUP | ET)
    kernel.peer_resets()
    assert kernel.woken() == ERR | HUP | RDHUP
    assert kernel.woken() == 0


@fact("whoever meets the error of a RST first takes it with him: a send, and the next is EPIPE")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_resets()
    assert kernel.write(10) == -errno.ECONNRESET
    assert kernel.write(10) == -errno.EPIPE
    assert kernel.read(10) == 0


@fact("SO_ERROR takes the error of a RST, and a read then ends as after a FIN")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.peer_resets()
    assert kernel.so_error() == errno.ECONNRESET
    assert kernel.so_error() == 0
    assert kernel.read(200) == 100
    assert kernel.read(200) == 0


@fact("a RST behind a FIN is EPIPE to SO_ERROR, and to a read it is only the end")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.peer_closes()
    kernel.peer_resets()
    assert kernel.read(200) == 100
    assert kernel.read(200) == 0
    assert kernel.so_error() == errno.EPIPE


# ---- sending ----


@fact("SO_MEMINFO has what is queued, at least its bytes, and the limit; a send is short when the limit is met")
def _(kernel: Kernel) -> None:
    kernel.open()
    queued, limit = kernel.send_memory()
    assert queued == 0 and limit > 0
    total = sent = 0
    while sent >= 0:
        sent = kernel.write(1 << 16)
        total += max(sent, 0)
        assert kernel.send_memory()[0] <= 2 * kernel.send_memory()[1]
    assert sent == -errno.EAGAIN
    queued, limit = kernel.send_memory()
    assert queued > limit // 2 and queued >= limit - (1 << 16)


@fact("after a short send OUT fires once, when a third of the queue is free, and not before")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(OUT | ET)
    assert kernel.woken() == OUT
    while kernel.write(1 << 16) > 0:
        pass
    assert kernel.woken() == 0
    events = 0
    for _ in range(LOOKS):
        if events := kernel.woken():
            break
        kernel.peer_takes(4096)
    queued, limit = kernel.send_memory()
    assert events == OUT and limit - queued >= queued // 2


@fact("OUT is never told to a socket whose sends were not short")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    assert kernel.write(1000) == 1000
    kernel.rewatch(OUT | ET)
    assert kernel.woken() == OUT  # the MOD's
    kernel.peer_takes(1000)
    assert kernel.woken() == 0


@fact("a send after our own shutdown() is EPIPE")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.shutdown()
    assert kernel.write(10) == -errno.EPIPE


# ---- urgent data ----


@fact("with SO_OOBINLINE a read stops before the urgent byte, and the next one goes on with it")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END | PRI)
    kernel.peer_sends(100)
    kernel.peer_sends(10, urgent=True)
    kernel.peer_sends(50)
    assert kernel.woken() == IN | PRI
    assert kernel.peek(1000) == 109
    assert kernel.read(1000) == 109
    assert kernel.read(1000) == 51


# ---- close() ----


@fact("close() sends FIN when all was read")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.read(100)
    kernel.close()
    assert kernel.peer_sees() == "FIN"


@fact("close() sends RST when bytes were left unread")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.close()
    assert kernel.peer_sees() == "RST"


@fact("close() sends RST with SO_LINGER 0")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.close(hard=True)
    assert kernel.peer_sees() == "RST"


@fact("a closed socket is not watched any more")
def _(kernel: Kernel) -> None:
    kernel.open()
    kernel.watch(DATA_OR_END)
    kernel.peer_sends(100)
    kernel.close()
    assert kernel.woken() == 0


@fact("closing one of two descriptors of an eventfd leaves it in epoll")
def _(kernel: Kernel) -> None:
    assert kernel.eventfd_outlives_one_of_two_descriptors()
