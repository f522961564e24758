# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one host to another, and its connections go on: between two of ours, on two hosts that share an
address, of which the peer sees one at a time."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import PASST, PATIENCE, Foreground
from two_hosts import ADDRESS, ADDRESS6, GUEST, OPTIONS, Namespace, RepairCommand, RepairHelper, TwoHosts
from vm import CHECK_DEVICE_STATE, LOAD, NO_DESCRIPTOR, SAVE, Connection, Vm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and TCP_REPAIR")


@pytest.fixture(name="hosts")
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    yield hosts
    hosts.close()


def peer_command() -> list[str]:
    """passt itself, of a newer distribution: as in tests/guest, LOCKGATE_PEER_RUN runs its arguments in that root."""
    run = os.environ.get("LOCKGATE_PEER_RUN")
    if not run:
        pytest.skip("no newer passt: LOCKGATE_PEER_RUN does not name one")
    return shlex.split(run)


@pytest.fixture(name="helper")
def helpers(folder: Path) -> Iterator[Callable[..., Foreground]]:
    """Starts a helper on a host, in a folder of its own: ours, or passt."""
    started: list[Foreground] = []

    def begin(host: Namespace, *arguments: str, command: str = PASST) -> Foreground:
        place = folder / str(len(started))
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
        prefix = host.prefix if command == PASST else [*host.prefix, *peer_command()]
        started.append(Foreground(place, *OPTIONS, *arguments, prefix=prefix, command=command))
        return started[-1]

    yield begin
    for one in started:
        one.send(signal.SIGTERM)
        one.wait()
        print(one.errors())  # shown if the test failed
        one.close()


@pytest.fixture(name="repair")
def repair_helpers() -> Iterator[Callable[..., RepairHelper]]:
    made: list[RepairHelper] = []

    def connect(helper: Foreground, refuses: int | None = None) -> RepairHelper:
        made.append(RepairHelper(Path(f"{helper.socket}.repair"), refuses))
        return made[-1]

    yield connect
    for one in made:
        one.close()


@pytest.fixture(name="vm")
def machine() -> Vm:
    return Vm()


HEAD, FLOW, SOCKET = 16 + 42 + 4, 112, 52  # bytes of the stream


def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes, which are under way."""
    sock.settimeout(PATIENCE)
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def pattern(size: int, seed: int) -> bytes:
    return bytes((seed + 7 * at + at // 251) % 256 for at in range(size))


Talk = Callable[..., tuple[Connection, socket.socket]]  # from a server, perhaps with SACK


@pytest.fixture(name="talk")
def connections(vm: Vm) -> Talk:
    """Opens a connection from the guest to a server: both ends of it."""
    ports = iter(range(40000, 50000))

    def connect(server: socket.socket, sack: bool = False) -> tuple[Connection, socket.socket]:
        address, port, *_ = server.getsockname()
        connection = Connection(vm, ADDRESS6 if ":" in address else GUEST, next(ports), address, port)
        connection.open(sack)
        return connection, server.accept()[0]

    return connect


def move(hosts: TwoHosts, vm: Vm, target: Foreground) -> bytes:
    """As a monitor does it; the state that went over."""
    vm.stop()
    state = vm.save()
    vm.detach()
    vm.attach(target.socket)
    assert vm.load(state) == 0
    hosts.move()
    vm.start()
    return state


@pytest.mark.parametrize(
    ("source", "target"), [(PASST, PASST), ("passt", PASST), (PASST, "passt")], ids=["ours", "from passt", "to passt"]
)
def test_connections_go_on_at_another_host(
    hosts: TwoHosts,
    helper: Callable[..., Foreground],
    repair: Callable[..., RepairHelper],
    vm: Vm,
    talk: Talk,
    source: str,
    target: str,
) -> None:
    """Bytes that wait in either queue, or are under way to the guest, arrive once and in order; whichever of the two
    ends is passt itself."""
    here, there = helper(hosts.source, command=source), helper(hosts.target, command=target)
    helpers = repair(here), repair(there)
    vm.attach(here.socket)
    vm.start()
    connection, peer = talk(hosts.server())

    down, up = pattern(300_000, 3), pattern(5000, 5)
    peer.sendall(down[:100_000])
    assert connection.read(100_000) == down[:100_000]
    connection.send(up[:2000])
    connection.until_acked(2000)
    peer.sendall(down[100_000:200_000])  # more than the ring holds: some of it under way, the rest waits in the host
    vm.rings[0].wait()

    state = move(hosts, vm, there)
    assert 0 < len(state) - (HEAD + FLOW + SOCKET) <= 100_000  # the peer may still have some of it
    peer.sendall(down[200_000:])
    assert connection.read(200_000) == down[100_000:]
    connection.send(up[2000:])
    connection.until_acked(5000)
    assert received(peer, 5000) == up
    assert not connection.reset
    assert [one.modes[0] for one in helpers] == [(1, 1), (1, 1)]


class Pair:
    """Two of ours, each with a repair helper, and the guest at the first."""

    def __init__(self, here: Foreground, there: Foreground, hosts: TwoHosts, vm: Vm) -> None:
        self.here, self.there, self.hosts, self.vm = here, there, hosts, vm
        vm.attach(here.socket)
        vm.start()

    def move(self) -> bytes:
        return move(self.hosts, self.vm, self.there)


@pytest.fixture(name="pair")
def two_of_ours(
    hosts: TwoHosts, helper: Callable[..., Foreground], repair: Callable[..., RepairHelper], vm: Vm
) -> Pair:
    here, there = helper(hosts.source, "-t", "8080:80"), helper(hosts.target)
    repair(here)
    repair(there)
    return Pair(here, there, hosts, vm)


def test_what_a_peer_sends_while_nobody_has_the_connection_is_not_lost(pair: Pair, vm: Vm, talk: Talk) -> None:
    """The old host, which it still reaches, neither takes nor answers it; so the peer sends it again."""
    connection, peer = talk(pair.hosts.server())
    vm.stop()
    state = vm.save()
    peer.sendall(b"into the void")
    vm.detach()
    vm.attach(pair.there.socket)
    assert vm.load(state) == 0
    pair.hosts.move()
    vm.start()
    assert connection.read(13) == b"into the void"


def test_what_had_still_to_be_sent_to_a_slow_peer_is_sent_from_there(pair: Pair, vm: Vm, talk: Talk) -> None:
    """Its window is closed, its queue is here: it opens the window for the other host."""
    connection, peer = talk(pair.hosts.server(receive_buffer=4096))
    up = pattern(50_000, 9)
    connection.send(up)
    connection.until_acked(len(up))
    assert len(pair.move()) > HEAD + FLOW + SOCKET + 20_000
    connection.send(b"!")
    assert received(peer, len(up) + 1) == up + b"!"


@pytest.mark.parametrize("most", [33_554_432, 131_072], ids=["roomy", "narrow"])
def test_a_long_queue_moves_too(pair: Pair, vm: Vm, talk: Talk, most: int) -> None:
    """Longer than a new socket's at the other host, perhaps even than the kernel makes one there by itself. Here a
    socket takes all of it from the start: how far the kernel widens one depends on its guesses, and on the load."""
    pair.hosts.source.receive_buffers(6_000_000, 6_000_000)
    pair.hosts.target.receive_buffers(131_072, most)
    connection, peer = talk(pair.hosts.server())
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)  # hence what has been sent has arrived, but for this
    down = pattern(500_000, 1)
    peer.settimeout(PATIENCE)
    peer.sendall(down)
    assert len(pair.move()) > HEAD + FLOW + SOCKET + 400_000
    assert connection.read(len(down)) == down


def test_many_connections_move_and_so_does_a_half_of_one(pair: Pair, vm: Vm, talk: Talk) -> None:
    """More than fit one page of the worker's. Whose peer has said its last, goes on to send."""
    server = pair.hosts.server()
    talks = [talk(server) for _ in range(70)]
    halved, closing = talks.pop()
    closing.shutdown(socket.SHUT_WR)
    while not halved.peer_ended:
        halved.take()
    state = pair.move()
    assert len(state) == HEAD + 70 * (FLOW + SOCKET)
    for at, (connection, peer) in enumerate(talks):
        peer.sendall(b"%3d" % at)
        assert connection.read(3) == b"%3d" % at
        connection.send(b"%4d" % at)
        assert received(peer, 4) == b"%4d" % at
    halved.send(b"are you there?")
    assert received(closing, 14) == b"are you there?"


def test_a_connection_that_a_peer_opened_moves_too(pair: Pair, vm: Vm) -> None:
    """And the old host takes no new ones for a guest that it has not."""
    here = socket.inet_aton(ADDRESS)
    peer = pair.hosts.peer.inside(socket.socket)
    peer.setblocking(False)
    peer.connect_ex((ADDRESS, 8080))
    connection = Connection.accepted(vm, GUEST, 80)
    connection.send(b"welcome")
    assert received(peer, 7) == b"welcome"
    vm.stop()
    state = vm.save()
    other = pair.hosts.source.inside(socket.socket)
    assert other.connect_ex((ADDRESS, 8080)) == errno.ECONNREFUSED
    vm.detach()
    vm.attach(pair.there.socket)
    assert vm.load(state) == 0 and here in state
    pair.hosts.move()
    vm.start()
    peer.sendall(b"thanks")
    assert connection.read(6) == b"thanks"


def test_a_guest_that_is_started_again_where_it_was_has_its_connections(pair: Pair, vm: Vm, talk: Talk) -> None:
    """The monitor has given the migration up, after all had been saved. Its ports are open again, too."""
    connection, peer = talk(pair.hosts.server())
    peer.sendall(b"before")
    assert connection.read(6) == b"before"
    vm.stop()
    vm.save()
    peer.sendall(b"meanwhile")
    vm.start()
    assert connection.read(9) == b"meanwhile"
    connection.send(b"after")
    assert received(peer, 5) == b"after"
    pair.here.line_with("has not moved")
    peer = pair.hosts.peer.inside(socket.socket)
    peer.setblocking(False)
    peer.connect_ex((ADDRESS, 8080))
    assert Connection.accepted(vm, GUEST, 80).ack


def test_without_a_repair_helper_the_guest_moves_and_its_connections_do_not(
    hosts: TwoHosts, helper: Callable[..., Foreground], vm: Vm, talk: Talk
) -> None:
    """They are reset as soon as the guest uses them; new ones can be made at once."""
    here, there = helper(hosts.source), helper(hosts.target)
    vm.attach(here.socket)
    vm.start()
    connection, _ = talk(hosts.server())
    assert len(move(hosts, vm, there)) == HEAD
    connection.send(b"?")
    while not connection.reset:
        connection.take()
    again, peer = talk(hosts.server())
    peer.sendall(b"fresh")
    assert again.read(5) == b"fresh"


def test_a_repair_helper_that_cannot_do_it_fails_the_migration_and_nothing_is_lost(
    hosts: TwoHosts, helper: Callable[..., Foreground], repair: Callable[..., RepairHelper], vm: Vm, talk: Talk
) -> None:
    """One without the right, for instance. The monitor goes on with the guest where it is."""
    here = helper(hosts.source)
    repair(here, refuses=1)
    vm.attach(here.socket)
    vm.start()
    connection, peer = talk(hosts.server())
    vm.stop()
    ours, theirs = os.pipe()
    assert vm.transfer(SAVE, theirs) == NO_DESCRIPTOR
    os.close(theirs)
    assert vm.check() != 0
    os.close(ours)
    assert "went away, as it does without CAP_NET_ADMIN" in here.line_with("Migration")
    vm.start()
    peer.sendall(b"still here")
    assert connection.read(10) == b"still here"


def test_a_connection_whose_address_the_other_host_lacks_is_lost_alone(pair: Pair, vm: Vm, talk: Talk) -> None:
    """What moves is the guest; the other connection goes on."""
    pair.hosts.source.ip("addr add 10.9.0.77/24 dev eth0")
    server = pair.hosts.server()
    connection, peer = talk(server)
    pair.hosts.source.ip("route replace 10.9.0.0/24 dev eth0 src 10.9.0.77")
    lost, _ = talk(server)
    pair.move()
    assert "1 connections; 1 are lost" in pair.there.line_with("comes from another host")
    peer.sendall(b"here")
    assert connection.read(4) == b"here"
    lost.send(b"?")
    while not lost.reset:
        lost.take()


def test_a_connection_from_ipv4_to_ipv6_is_lost_alone(pair: Pair, vm: Vm, talk: Talk) -> None:
    """Cause: a state with one byte changed in the prefix of an address made an IPv6 socket that was then to be
    connected by IPv4, a TypeError that ended the helper which it reached."""
    _connection, _peer = talk(pair.hosts.server())
    vm.stop()
    state = bytearray(vm.save())
    state[HEAD + 54] = 1  # of the prefix ::ffff: of our own address
    vm.detach()
    vm.attach(pair.there.socket)
    assert vm.load(bytes(state)) == 0
    line = pair.there.line_with("comes from another host")
    assert "0 connections; 1 are lost its addresses are of IPv4 and of IPv6" in line
    vm.start()


@pytest.mark.parametrize("whose", ["ours", "passt"])
def test_the_command_passt_repair_is_all_that_it_needs(
    hosts: TwoHosts, helper: Callable[..., Foreground], vm: Vm, talk: Talk, whose: str
) -> None:
    """Ours or passt's."""
    command = [f"{PASST}-repair"] if whose == "ours" else [*peer_command(), "/usr/bin/passt-repair"]
    here, there = helper(hosts.source), helper(hosts.target)
    vm.attach(here.socket)
    vm.start()
    connection, peer = talk(hosts.server())
    repairs = [RepairCommand(command, Path(f"{one.socket}.repair")) for one in (here, there)]
    for repair, one in zip(repairs, (here, there), strict=True):
        repair.wait(f"{one.socket}.repair")
    move(hosts, vm, there)
    peer.sendall(b"on")
    assert connection.read(2) == b"on"
    for one in (here, there):
        one.send(signal.SIGTERM)
        one.wait()
    for repair in repairs:
        repair.close()


def test_passt_repair_waits_in_a_folder_for_a_helper_to_come(
    hosts: TwoHosts, helper: Callable[..., Foreground], folder: Path
) -> None:
    """Or takes the one that is there; a socket that nobody listens at any more is none."""
    place = folder / "0"
    place.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead.repair"))
    early = RepairCommand([f"{PASST}-repair"], place)
    here = helper(hosts.source)
    early.wait(f"{here.socket}.repair")
    here.send(signal.SIGTERM)
    here.wait()
    early.close()
    there = helper(hosts.target)
    late = RepairCommand([f"{PASST}-repair"], there.socket.parent)
    late.wait(f"{there.socket}.repair")
    there.send(signal.SIGTERM)
    there.wait()
    late.close()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "Usage: passt-repair PATH"),
        (["a", "b"], 2, "Usage: passt-repair PATH"),
        (["/nowhere"], 1, "/nowhere: No such file"),
        (["/dev/null"], 2, "neither a socket nor a folder"),
    ],
)
def test_what_passt_repair_is_told_wrong_it_says(words: list[str], status: int, says: str) -> None:
    """With passt's exit status."""
    done = subprocess.run([f"{PASST}-repair", *words], capture_output=True, text=True)
    assert done.returncode == status and says in done.stderr


@pytest.mark.parametrize(
    ("mode", "kind", "says"),
    [(5, socket.SOCK_STREAM, "mode 5"), (1, socket.SOCK_DGRAM, "CAP_NET_ADMIN is needed"), (1, None, "0 sockets")],
)
def test_what_passt_repair_cannot_do_ends_it_without_an_answer(
    folder: Path, mode: int, kind: socket.SocketKind | None, says: str
) -> None:
    """The helper hears the end of the connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "r"))
        listener.listen()
        process = subprocess.Popen([f"{PASST}-repair", str(folder / "r")], stderr=subprocess.PIPE, text=True)
        helper, _ = listener.accept()
    with helper, socket.socket(type=kind or socket.SOCK_STREAM) as sent:
        socket.send_fds(helper, [bytes([mode])], [] if kind is None else [sent.fileno()])
        assert helper.recv(1) == b""
    assert says in process.communicate()[1]
    assert process.returncode == 1


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda state: b"",
    "another magic": lambda state: b"x" + state[1:],
    "a newer version": lambda state: state[:8] + struct.pack(">II", 3, 3) + state[16:],
    "an older version": lambda state: state[:8] + struct.pack(">II", 1, 1) + state[16:],
    "too many flows": lambda state: state[:58] + struct.pack(">I", 1 << 31) + state[62:],
    "more flows than there are": lambda state: state[:58] + struct.pack(">I", 2) + state[62:],
    "half a flow": lambda state: state[: HEAD + 50],
    "half a socket": lambda state: state[: HEAD + FLOW + 20],
    "half a queue": lambda state: state[:-1],
    "a queue of 4 GB": lambda state: state[: HEAD + FLOW + 8] + b"\xff" * 4 + state[HEAD + FLOW + 12 :],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_state_fails_the_migration_and_leaves_no_trace(pair: Pair, vm: Vm, talk: Talk, what: str) -> None:
    """Not even of connections that were whole; the helper goes on, and so does the guest where it was."""
    connection, peer = talk(pair.hosts.server())
    peer.sendall(b"x" * 1000)
    vm.rings[0].wait()
    vm.stop()
    state = vm.save()
    other = Vm()
    other.attach(pair.there.socket)
    assert other.load(BROKEN[what](state)) != 0
    assert pair.there.line_with("Migration")
    other.start()
    vm.start()
    assert connection.read(1000) == b"x" * 1000
    connection.send(b"y")
    assert received(peer, 1) == b"y"
    other.detach()


def test_the_state_is_only_given_and_taken_while_the_rings_stand_still(pair: Pair, vm: Vm) -> None:
    """And in the one phase there is; asked for what was never begun, the answer is no."""
    ours, theirs = os.pipe()
    assert vm.transfer(SAVE, theirs) & 0xFF
    assert vm.check() != 0
    vm.stop()
    assert vm.transfer(2, theirs) & 0xFF
    assert vm.transfer(SAVE, theirs) == NO_DESCRIPTOR
    assert vm.check() == 0
    os.close(ours)
    os.close(theirs)


def test_a_monitor_that_leaves_in_the_middle_leaves_the_guest_as_it_was(pair: Pair, vm: Vm, talk: Talk) -> None:
    """Nobody reads the pipe, and then nobody is there; whoever connects next finds the connections."""
    connection, peer = talk(pair.hosts.server())
    peer.sendall(b"x" * 200_000)
    vm.rings[0].wait()
    vm.stop()
    ours, theirs = os.pipe()
    assert vm.transfer(SAVE, theirs) == NO_DESCRIPTOR
    vm.detach()
    os.close(theirs)
    vm.attach(pair.here.socket)
    vm.start()
    os.close(ours)
    assert connection.read(200_000) == b"x" * 200_000


def test_a_monitor_that_leaves_while_it_waits_for_a_transfer_ends_that(
    helper: Callable[..., Foreground], hosts: TwoHosts, vm: Vm
) -> None:
    """Though others hold the pipe. Cause: its end was only looked for after the answer, that is after the time that a
    monitor has for a byte, and whoever came next waited as long."""
    there = helper(hosts.target, "-1")
    vm.attach(there.socket)
    ours, theirs = os.pipe()
    assert vm.transfer(LOAD, ours) == NO_DESCRIPTOR
    vm.front_end.sock.sendall(struct.pack("=III", CHECK_DEVICE_STATE, 1, 0))
    vm.detach()
    assert there.wait() == 0
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("option", ["--one-off", "--migrate-exit", "--migrate-no-linger"])
def test_a_helper_whose_guest_has_left_stays_unless_it_is_told_not_to(
    hosts: TwoHosts,
    helper: Callable[..., Foreground],
    repair: Callable[..., RepairHelper],
    vm: Vm,
    talk: Talk,
    option: str,
) -> None:
    """--one-off would end it: with sockets whose peers go on with another host."""
    here, there = helper(hosts.source, option), helper(hosts.target)
    repair(here)
    repair(there)
    vm.attach(here.socket)
    vm.start()
    connection, peer = talk(hosts.server())
    move(hosts, vm, there)
    if option == "--migrate-exit":
        assert here.wait() == 0
    else:
        here.line_with("moves to another host")
        assert here.process.poll() is None
    peer.sendall(b"on")
    assert connection.read(2) == b"on"
