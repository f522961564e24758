# SPDX-License-Identifier: Apache-2.0
"""Two loopbacks joined by a worker of its own with real sockets; the namespace's agent is played by the test, and its
sockets are of the namespace that the test is in. The guest's address is another one of loopback's."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from core_pieces import ffi, lib
from worker_child import Worker

GUEST, OTHER_FAMILY = "127.0.0.2", bytes(15) + b"\1"
VIEW = 0x1FF | lib.LG_VIEW_SPLICE
PATIENCE = 30
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
HARD = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets


def mapped(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text if ":" in text else f"::ffff:{text}")


class Agent:
    """Gives what it is asked for, one request at a time, or an errno."""

    def __init__(self, worker: Worker, refusal: int = 0) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert worker.result(lib.LG_CMD_SPLICE_AGENT, [theirs.fileno()]) == 0
        theirs.close()
        self.refusal = refusal
        self.asked: list[tuple[int, int, int]] = []  # family, protocol, how many
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while record := self.channel.recv(100):
            kind, family, protocol, flags, first, count = struct.unpack_from("=cBBBHH", record)
            assert (kind, flags, first, record[8:]) == (b"S", 0, 0, bytes(16))
            self.asked.append((family, protocol, count))
            if self.refusal:
                self.channel.send(b"A" + struct.pack("=H", self.refusal) * count)
                continue
            made = [socket.socket(family, KINDS[protocol] | socket.SOCK_NONBLOCK, protocol) for _ in range(count)]
            socket.send_fds(self.channel, [b"A" + bytes(2 * count)], [one.fileno() for one in made])
            for one in made:
                one.close()

    def close(self) -> None:
        self.channel.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.channel.close()


@pytest.fixture(name="worker")
def worker_of_a_namespace() -> Iterator[Worker]:
    worker = Worker()
    set_view(worker)
    yield worker
    worker.close()


def set_view(worker: Worker, flags: int = VIEW, guest4: str = GUEST, guest6: bytes = bytes(16)) -> None:
    fields = {"flags": flags, "mtu": 65520, "guest4": mapped(guest4), "guest6": guest6}
    assert worker.result(lib.LG_CMD_NET_VIEW, view=ffi.new("struct lg_net_view *", fields)[0]) == 0


@pytest.fixture(name="agent")
def agent_of_the_worker(worker: Worker) -> Iterator[Agent]:
    agent = Agent(worker)
    yield agent
    agent.close()


def server_at(address: str, protocol: int = TCP, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, KINDS[protocol])
    made.settimeout(PATIENCE)
    made.bind((address, port))
    if protocol == TCP:
        made.listen()
    return made


def forward(worker: Worker, to: int, protocol: int = TCP, address: str = "127.0.0.1", outward: bool = False) -> int:
    """A port of the host that leads to the guest's port `to`."""
    listener = server_at(address, protocol)
    if protocol == UDP:
        listener.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    listener.setblocking(False)
    port = int(listener.getsockname()[1])
    fields = {"count": 1, "protocol": protocol, "outward": outward, "slot": [0], "guest_port": [to]}
    assert worker.result(lib.LG_CMD_LISTEN, [listener.fileno()], **fields) == 0
    listener.close()
    return port


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, port), timeout=PATIENCE)


def expect_reset(port: int) -> None:
    """It may come before connect() has returned."""
    with socket.socket() as client, pytest.raises(ConnectionResetError):
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", port))
        client.recv(1)


def joined(worker: Worker, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = connect(forward(worker, server.getsockname()[1]))
    guest, _ = server.accept()
    guest.settimeout(PATIENCE)
    return client, guest


def read_all(one: socket.socket) -> bytes:
    read = bytearray()
    while part := one.recv(1 << 20):
        read += part
    return bytes(read)


@pytest.mark.usefixtures("agent")
def test_a_connection_from_loopback_arrives_at_the_guest_from_its_own_address(worker: Worker) -> None:
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)
        assert guest.getsockname()[0] == GUEST and guest.getpeername()[0].startswith("127.")
        client.sendall(b"question")
        assert guest.recv(100) == b"question"
        guest.sendall(b"answer")
        assert client.recv(100) == b"answer"
        client.close()
        guest.close()


@pytest.mark.usefixtures("agent")
def test_ten_megabytes_arrive_both_ways_at_once(worker: Worker) -> None:
    sent = os.urandom(10 << 20)
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)

        def say(one: socket.socket) -> None:
            one.sendall(sent)
            one.shutdown(socket.SHUT_WR)

        sayers = [threading.Thread(target=say, args=(one,)) for one in (client, guest)]
        for one in sayers:
            one.start()
        heard: list[bytes] = []
        reader = threading.Thread(target=lambda: heard.append(read_all(guest)))
        reader.start()
        heard.append(read_all(client))
        for one in (*sayers, reader):
            one.join()
        client.close()
        guest.close()
    assert [hashlib.sha256(one).digest() for one in heard] == [hashlib.sha256(sent).digest()] * 2
    assert worker.count("splice_bytes_to_guest") == worker.count("splice_bytes_from_guest") == 10 << 20


@pytest.mark.usefixtures("agent")
def test_answers_at_full_speed_each_arrive_to_their_last_byte(worker: Worker) -> None:
    """While nobody closes: where they came as a stream, the last of them is less than the kernel was to tell of."""
    sizes = [(5 << 20) + 1, (9 << 20) + 1, 100, (30 << 20) + 7] * 3
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)

        def answer() -> None:
            for size in sizes:
                assert guest.recv(100) == b"question"
                guest.sendall(bytes(size))

        answerer = threading.Thread(target=answer)
        answerer.start()
        for size in sizes:
            client.sendall(b"question")
            while size > 0:
                size -= len(client.recv(min(size, 1 << 20)))
        answerer.join()
        client.close()
        guest.close()


@pytest.mark.usefixtures("agent")
def test_each_half_is_closed_by_itself(worker: Worker) -> None:
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)
        client.sendall(b"all")
        client.shutdown(socket.SHUT_WR)
        assert read_all(guest) == b"all"
        guest.sendall(b"the answer comes behind")
        guest.close()
        assert read_all(client) == b"the answer comes behind"
        client.close()


@pytest.mark.usefixtures("agent")
def test_a_reset_is_one_on_both_sides(worker: Worker) -> None:
    with server_at(GUEST) as server:
        for first in (0, 1):
            ends = joined(worker, server)
            ends[first].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
            ends[first].close()
            with pytest.raises(ConnectionResetError):
                ends[1 - first].recv(1)
            ends[1 - first].close()
            assert worker.result(lib.LG_CMD_LISTEN_CLOSE, value=1 << 32) == 0


@pytest.mark.usefixtures("agent")
def test_what_was_said_before_a_reset_arrives(worker: Worker) -> None:
    """A server that refuses a long request says why, and closes with the rest of it unread."""
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)
        client.sendall(b"x" * 70000)
        assert guest.recv(1)
        guest.sendall(b"too long")
        guest.close()
        assert client.recv(100) == b"too long"
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        client.close()


@pytest.mark.usefixtures("agent")
def test_urgent_bytes_arrive_in_their_place(worker: Worker) -> None:
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        for one in (client, guest):
            one.sendall(b"before ")
            one.send(b"urgent ", socket.MSG_OOB)
            one.sendall(b"behind")
            one.shutdown(socket.SHUT_WR)
        assert read_all(client) == read_all(guest) == b"before urgent behind"
        client.close()
        guest.close()


@pytest.mark.usefixtures("agent")
def test_a_guest_that_refuses_resets_the_peer(worker: Worker) -> None:
    with server_at(GUEST) as server:
        port = server.getsockname()[1]
    expect_reset(forward(worker, port))
    assert worker.count("splice_refused") == 1


@pytest.mark.usefixtures("agent")
def test_a_service_of_the_other_family_is_found(worker: Worker) -> None:
    """curl tries ::1 before 127.0.0.1 for localhost, and a connection that was accepted is the one that it uses."""
    set_view(worker, guest6=OTHER_FAMILY)
    with server_at(GUEST) as server:
        client = connect(forward(worker, server.getsockname()[1], address="::1"), "::1")
        guest, _ = server.accept()
        guest.sendall(b"here")
        assert client.recv(100) == b"here"
        client.close()
        guest.close()


@pytest.mark.usefixtures("agent")
def test_the_same_loopback_address_is_kept_where_that_is_wanted(worker: Worker) -> None:
    set_view(worker, flags=VIEW | lib.LG_VIEW_SPLICE_LOOPBACK)
    with server_at("0.0.0.0") as server:
        port = forward(worker, server.getsockname()[1], address="127.0.0.77")
        with socket.socket() as client:
            client.settimeout(PATIENCE)
            client.bind(("127.0.0.5", 0))
            client.connect(("127.0.0.77", port))
            guest, _ = server.accept()
            assert (guest.getsockname()[0], guest.getpeername()[0]) == ("127.0.0.77", "127.0.0.5")
            guest.close()


def test_a_port_that_leads_out_needs_no_agent(worker: Worker) -> None:
    with server_at("127.0.0.1") as server:
        client = connect(forward(worker, server.getsockname()[1], outward=True))
        host, _ = server.accept()
        host.sendall(b"host")
        assert client.recv(100) == b"host"
        assert host.getsockname()[0] == "127.0.0.1"
        client.close()
        host.close()


def test_without_an_agent_the_peer_is_reset(worker: Worker) -> None:
    expect_reset(forward(worker, 9))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_agent_that_refuses_is_asked_again_for_the_next(worker: Worker, protocol: int) -> None:
    agent = Agent(worker, errno.EMFILE)
    port = forward(worker, 9, protocol)
    for times in (1, 2):
        if protocol == TCP:
            expect_reset(port)
        else:
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"lost", ("127.0.0.1", port))
                while worker.count("datagrams_turned_away") < times:
                    pass
    assert len(agent.asked) == 2
    agent.close()


def test_an_agent_that_goes_takes_its_waiting_connections_along(worker: Worker) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert worker.result(lib.LG_CMD_SPLICE_AGENT, [theirs.fileno()]) == 0
    theirs.close()
    client = connect(forward(worker, 9))
    assert len(ours.recv(100)) == ffi.sizeof("struct lg_agent_sockets")
    ours.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


@pytest.mark.parametrize("record", [b"A", b"", b"Z" * 500, b"A" + bytes(64)])
def test_an_agent_that_talks_nonsense_does_no_harm(worker: Worker, record: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert worker.result(lib.LG_CMD_SPLICE_AGENT, [theirs.fileno()]) == 0
    theirs.close()
    before = worker.fds()
    pipes = os.pipe()
    socket.send_fds(ours, [record or b"x"], list(pipes))
    ours.send(record or b"x")
    client = connect(forward(worker, 9))
    assert ours.recv(100)
    ours.send(record or b"x")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    assert worker.fds() == before + 1  # the port's
    for end in pipes:
        os.close(end)
    ours.close()


def test_an_answer_to_another_question_leaves_ours_open(worker: Worker) -> None:
    """It is one to the worker before; the refusal that comes next is for who waits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert worker.result(lib.LG_CMD_SPLICE_AGENT, [theirs.fileno()]) == 0
    theirs.close()
    client = connect(forward(worker, 9))
    assert ours.recv(100)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        socket.send_fds(ours, [b"A" + bytes(2)], [other.fileno()])
    ours.send(b"A" + struct.pack("=H", errno.EMFILE) * 32)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    ours.close()


def test_many_connections_at_once_share_few_questions(worker: Worker, agent: Agent) -> None:
    with server_at(GUEST) as server:
        server.listen(200)
        port = forward(worker, server.getsockname()[1])
        clients = [connect(port) for _ in range(8)]  # two sockets each: 16, the worker's limit
        guests = [server.accept()[0] for _ in clients]
        for one in guests:
            one.sendall(b"!")
        assert all(one.recv(1) == b"!" for one in clients)
        for one in (*clients, *guests):
            one.close()
    assert agent.asked == [(socket.AF_INET, TCP, 32)]


def test_descriptors_go_with_their_connection(worker: Worker, agent: Agent) -> None:
    with server_at(GUEST) as server:
        port = forward(worker, server.getsockname()[1])
        counts = []
        for _ in range(3):
            client = connect(port)
            guest, _ = server.accept()
            guest.sendall(b"x" * 100)
            guest.close()
            assert len(read_all(client)) == 100
            client.close()
            while worker.count("flows"):
                pass
            counts.append(worker.fds() - len(agent.asked) * 32)
    assert counts[1] - counts[2] == counts[0] - counts[1] == 1  # a socket of the pool each; the pipe stays


@pytest.mark.usefixtures("agent")
def test_a_guest_that_does_not_read_costs_no_wakeups(worker: Worker) -> None:
    with server_at(GUEST) as server:
        client, guest = joined(worker, server)
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                client.send(b"x" * 65536)
        # Until it is accepted, the connection may be heard of once; and once for each time that its bytes could not
        # move.
        assert worker.count("wakeups_idle") <= 1 + worker.count("interest_changes")
        client.close()  # with a FIN behind what is on its way
        heard = len(read_all(guest))
        assert heard == worker.count("splice_bytes_to_guest")
        guest.close()


# ---- datagrams ----


@pytest.mark.usefixtures("agent")
def test_datagrams_go_both_ways_with_their_bounds(worker: Worker) -> None:
    """Empty ones too. The answer comes from the address that was asked. The peer's port would be kept if it were not
    the peer's own here, where both sides are one namespace."""
    with server_at(GUEST, UDP) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.bind(("127.0.0.3", 0))
        client.connect(("127.0.0.1", forward(worker, server.getsockname()[1], UDP)))
        said = [b"one", b"", b"three" * 1000, b"x" * 65507]
        for one in said:
            client.send(one)
        heard = [server.recvfrom(70000) for _ in said]
        assert [one for one, _ in heard] == said
        assert len({peer for _, peer in heard}) == worker.count("udp_port_taken") == 1
        for one in said:
            server.sendto(one, heard[0][1])
        assert [client.recv(70000) for _ in said] == said


@pytest.mark.usefixtures("agent")
def test_each_peer_gets_its_own_answers(worker: Worker) -> None:
    with server_at(GUEST, UDP) as server:
        port = forward(worker, server.getsockname()[1], UDP)
        clients = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(5)]
        for number, client in enumerate(clients):
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            for _ in range(3):
                client.send(b"%d" % number)
        for _ in range(15):
            said, peer = server.recvfrom(100)
            server.sendto(said * 2, peer)
        for number, client in enumerate(clients):
            assert [client.recv(100) for _ in range(3)] == [b"%d" % number * 2] * 3
            client.close()


@pytest.mark.usefixtures("agent")
def test_a_datagram_to_nobody_ends_nothing(worker: Worker) -> None:
    """The error that comes back is taken; what is sent once somebody listens arrives."""
    with server_at(GUEST, UDP) as server:
        port = server.getsockname()[1]
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", forward(worker, port, UDP)))
        client.send(b"nobody")
        while worker.count("splice_datagrams") < 1:
            pass
        with server_at(GUEST, UDP, port) as server:
            client.send(b"somebody")
            assert server.recv(100) == b"somebody"


def test_datagrams_lead_out_too(worker: Worker) -> None:
    with server_at("127.0.0.1", UDP) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", forward(worker, server.getsockname()[1], UDP, outward=True)))
        client.send(b"out")
        said, peer = server.recvfrom(100)
        server.sendto(said * 2, peer)
        assert client.recv(100) == b"outout"
