# SPDX-License-Identifier: Apache-2.0
"""A world in which ports of the host lead to a namespace by the short way: loopback joined to loopback.

Used by test_splice_conversations.py, test_splice_wakeups.py and test_splice_datagrams.py. The test plays both peers,
and the namespace's agent, whom the engine asks for sockets. Adversary: nobody.
"""

from __future__ import annotations

import errno
from typing import Any

from fake_core import ffi, lib
from world import NEVER_MS, World, WorldOptions, enum_names, mapped16

TCP, UDP = 6, 17
TCP4, TCP6, UDP4, UDP6 = range(4)
STATES = enum_names("splice_state.h", "SPLICE_STATES")
NEAR, FAR = 0, 1
PORT, GUEST_PORT, FIRST_PEER_PORT = 8080, 80, 50000
LOOPBACK = {4: bytes((127, 0, 0, 1)), 6: bytes(15) + b"\1"}
OTHER_LOOPBACK = bytes((127, 0, 0, 9))
ANY = bytes(16)
ALL = 1 << 40


class End:
    """A peer: the program at the other end of one of the core's sockets."""

    def __init__(self, world: World, fd: int) -> None:
        self.world, self.fd = world, fd

    @property
    def socket(self) -> Any:
        return lib.fake_socket_at(self.fd)

    @property
    def got(self) -> int:
        """Bytes that the core's kernel took for it."""
        return int(self.socket.sent)

    @property
    def said(self) -> int:
        return int(self.socket.arrived)

    @property
    def unread(self) -> int:
        """Of what it said, what the core has left in the queue."""
        return int(self.socket.arrived - self.socket.taken)

    @property
    def sees(self) -> str:
        socket = self.socket
        if socket.closed:
            return "RST" if socket.aborted else "FIN"
        return "FIN" if socket.write_shut else "nothing"

    def says(self, length: int) -> None:
        assert lib.fake_peer_send(self.fd, length) == length
        self.world.settle()

    def takes(self, length: int = ALL) -> None:
        assert lib.fake_peer_take(self.fd, length) >= 0
        self.world.settle()

    def closes(self) -> None:
        assert lib.fake_peer_fin(self.fd) == 0
        self.world.settle()

    def resets(self) -> None:
        assert lib.fake_peer_reset(self.fd) == 0
        self.world.settle()

    def queue(self, length: int) -> None:
        """The core's send queue takes no more than that."""
        lib.fake_send_limit(self.fd, length)


class Joint:
    """A connection from the near side's loopback, and what became of it."""

    def __init__(self, world: SpliceWorld, fd: int) -> None:
        self.world, self.near = world, End(world, fd)
        self._far: End | None = None

    @property
    def now(self) -> Any:
        """The core's record of it."""
        found = [one for one in self.world.splices() if one.fd[NEAR] == self.near.fd]
        assert found, "it has ended"
        return found[0]

    @property
    def lives(self) -> bool:
        return any(one.fd[NEAR] == self.near.fd for one in self.world.splices())

    @property
    def state(self) -> str:
        return str(STATES[self.now.state])

    @property
    def far(self) -> End:
        """The newest; it is remembered when the connection has ended."""
        if self.lives and self.now.fd[FAR] >= 0 and (self._far is None or self._far.fd != self.now.fd[FAR]):
            self._far = End(self.world, self.now.fd[FAR])
        assert self._far, "no socket has come yet"
        return self._far

    def ends(self, first: int = NEAR) -> tuple[End, End]:
        return (self.near, self.far) if first == NEAR else (self.far, self.near)

    def far_accepts(self) -> None:
        assert lib.fake_peer_accept(self.far.fd) == 0
        self.world.settle()

    def far_refuses(self, error: int = errno.ECONNREFUSED) -> None:
        assert lib.fake_peer_refuse(self.far.fd, error) == 0
        self.world.settle()


class SpliceWorld(World):
    """See the module."""

    def __init__(self, options: WorldOptions | None = None) -> None:
        super().__init__(options)
        self.view.flags |= lib.LG_VIEW_SPLICE
        self.slots = 0
        self.peer_port = FIRST_PEER_PORT

    def port(self, family: int = 4, outward: bool = False, target: bytes = ANY, at: bytes | None = None) -> int:
        """A listening socket of TCP."""
        fd = int(lib.fake_listen_at(mapped16(at or LOOPBACK[family]), PORT))
        if outward:
            assert lib.script_listen_outward(self.slots, fd, TCP, GUEST_PORT) == 0
        else:
            assert lib.script_listen(self.slots, fd, TCP, GUEST_PORT, mapped16(target)) == 0
        self.slots += 1
        return fd

    def connect(self, port: int, source: bytes | None = None, settle: bool = True) -> Joint:
        """A program of the near side connects."""
        source = source or bytes(lib.fake_socket_at(port).local)
        self.peer_port += 1
        fd = int(lib.fake_peer_connect(port, mapped16(source), self.peer_port))
        assert fd >= 0
        if settle:
            self.settle()
        return Joint(self, fd)

    def joined(self, port: int | None = None) -> Joint:
        """A connection whose far end has accepted."""
        joint = self.connect(self.port() if port is None else port)
        for kind in (TCP4, TCP6):
            if lib.script_asked(kind):
                self.agent_gives(kind)
        joint.far_accepts()
        assert joint.state == "JOINED"
        return joint

    def splices(self) -> list[Any]:
        cursor = ffi.new("uint32_t *")
        found: list[Any] = []
        while lib.script_splice(cursor, splice := ffi.new("struct script_splice *")):
            found.append(splice)
        return found

    # ---- the agent ----

    def agent_gives(self, kind: int = TCP4, count: int = 1) -> int:
        """The first descriptor. The engine takes the last of what it has."""
        fd = int(lib.script_agent_gives(kind, count))
        self.settle()
        return fd

    def agent_refuses(self, kind: int = TCP4, error: int = errno.EMFILE) -> None:
        lib.script_agent_refuses(kind, error)
        self.settle()

    # ---- pipes ----

    def pipes_at_most(self, count: int, slots: int = 0) -> None:
        """0 slots: as many as before."""
        lib.fake_pipe_limits(slots or self.options.pipe_slots, count)

    # ---- the end ----

    def hang_up(self) -> None:
        """The agent has nothing for those who wait, and every peer resets its connection."""
        self.pipes_at_most(1000)
        for _ in range(3):  # each family may be tried
            for kind in (TCP4, TCP6, UDP4, UDP6):
                if lib.script_asked(kind):
                    self.agent_refuses(kind)
            for fd in (fd for splice in self.splices() for fd in splice.fd if fd >= 0):
                if lib.fake_peer_reset(fd):
                    lib.fake_peer_refuse(fd, errno.ETIMEDOUT)
                lib.fake_peer_take(fd, ALL)
            self.settle()
        assert not self.splices(), "a connection whose peers have gone does not end"
        super().hang_up()
        assert self.next_ms == NEVER_MS


def stuck(world: SpliceWorld, port: int) -> Joint:
    """Its far end does not read: it has a pipe for itself."""
    joint = world.joined(port)
    joint.far.queue(100)
    joint.near.says(1000)
    return joint
