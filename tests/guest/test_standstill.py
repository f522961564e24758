# SPDX-License-Identifier: Apache-2.0
"""Flows that cannot move cost nothing, and go on where they stopped: the guest does not read, the peer does not read,
the guest posts no buffers, the peer goes away meanwhile.

Adversary: a guest and peers that stop whenever they like. What the worker does is read from its counters; what is said
of time is how often it woke up in a stretch of it, never how long something took.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import transfers
from counters import Counters
from data_server import DataServer
from network import GATEWAY, VARIANT, Network, usable
from transfers import End

PATIENCE_SECONDS = 45  # then something hangs, or never ends
LOOKS_OF_SILENCE = 8
ANSWER_SECONDS = 60

PEERS = 16
DOWNLOAD_BYTES = 5_000_000  # by each of them: more than a guest's receive buffer takes
WAKEUPS_A_SECOND = 2
# Closed windows are asked after 0.2 s, then at doubling intervals, all at once. A silence of this length is followed by
# an interval of about 12.8 s: in the stretch that is measured lies one question to each, and its answers.
SILENCE_SECONDS, MEASURED_SECONDS = 4, 9

PACED_BYTES, PACE, CPU_PART = 80_000_000, "20M", 0.10
CHUNKS_AT_ONCE = f"-x{PEERS} -s{PEERS} -k1M"

# By each peer while the guest's kernel is stopped: none may be through by then, however late the test sees them run.
LONG_BYTES, RUNNING_BYTES = 20_000_000, 20_000_000
STOPPED_SECONDS = 2
STOPPED_TIMEOUTS = 4  # a flow's timer doubles from 0.2 s: at 0.2, 0.6, 1.4 and 3.0; and may begin with the stop

UPLOAD_BYTES = 20_000_000  # more than the send queue of the host and the guest's own together
PORTION, QUEUE_EVENTS = 1 << 16, 2  # half of what is queued is read: one third, or two if the kernel made more room
IDLE_CONNECTIONS, IDLE_SECONDS = 1000, 10


@pytest.fixture(scope="module", params=["uml"])
def network(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    """A guest with a download manager. Its helper is ours: only ours shares its counters."""
    booted = Network(usable(VARIANT[request.param]), server, more_programs={"aria2c": "aria2"}, families="inet")
    yield booted
    booted.close()


# The other kernels and the other way to peek; but not for the long ones.
everywhere = pytest.mark.parametrize("network", ["uml", "uml-discard", "uml-peer"], indirect=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """On the host's loopback, for a test that is the peer itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=IDLE_CONNECTIONS) as listening:
        listening.settimeout(ANSWER_SECONDS)
        yield listening


def accepted(listener: socket.socket) -> socket.socket:
    """The guest's connection, whose request has been read."""
    connection, _ = listener.accept()
    connection.settimeout(ANSWER_SECONDS)
    while not connection.recv(1, socket.MSG_WAITALL).endswith(b"\n"):
        pass
    return connection


def wait_still(network: Network, counters: Counters, names: set[str], seconds: float) -> None:
    """Until none of these counters has moved for so long."""
    still = 0
    look = seconds / LOOKS_OF_SILENCE
    for _ in range(int(PATIENCE_SECONDS / look)):
        moved = measured(network, counters, look)
        still = 0 if moved.keys() & names else still + 1
        if still == LOOKS_OF_SILENCE:
            return
    raise AssertionError(f"of {names} some still move after {PATIENCE_SECONDS} s, at last {moved}")


def wait_beyond(network: Network, counters: Counters, name: str, value: int) -> None:
    """Until the counter is above the value."""
    for _ in range(PATIENCE_SECONDS * 1000):
        if counters.read()[name] > value:
            return
        network.helper.watch(0.001)
    raise AssertionError(f"{name} is expected to get above {value}: {counters.read()}")


def measured(network: Network, counters: Counters, seconds: float) -> Counter[str]:
    """What the worker did in that time."""
    before = counters.read()
    network.helper.watch(seconds)
    return counters.since(before)


def socket_events(moved: Counter[str]) -> int:
    """How many of the worker's events were of its flows' sockets."""
    return moved["wakeup_events"] - moved["kicks"] - moved["frames_injected"]


def test_a_guest_that_stops_reading_lets_the_worker_sleep_while_16_peers_send(
    network: Network, counters: Counters
) -> None:
    """At most two wake-ups a second in all, once the windows are full; and every byte arrives when it reads again."""
    transfers.start(network, f"GET {DOWNLOAD_BYTES}", PEERS, stopped=True)
    wait_still(network, counters, {"wakeups"}, SILENCE_SECONDS)
    moved = measured(network, counters, MEASURED_SECONDS)
    assert moved["wakeups"] <= WAKEUPS_A_SECOND * MEASURED_SECONDS, moved
    transfers.go_on(network)
    expected = End(0, network.server.payload.sha256(DOWNLOAD_BYTES))
    assert transfers.ends(network, PEERS) == [expected] * PEERS


def test_a_download_in_16_chunks_that_is_held_at_20_megabytes_a_second_costs_little_cpu(
    network: Network, counters: Counters
) -> None:
    """aria2c holds its peers back by not reading; the helper's processes together stay below a tenth of a core."""
    url = f"http://{GATEWAY[4]}:{network.server.port}/{PACED_BYTES}"
    limits = f"--max-overall-download-limit={PACE} --file-allocation=none"
    began, cpu, before = time.monotonic(), network.helper.cpu_seconds(), counters.read()
    network.guest.output(f"aria2c -q {CHUNKS_AT_ONCE} {limits} -d /tmp -o paced {url}", ANSWER_SECONDS)
    part = (network.helper.cpu_seconds() - cpu) / (time.monotonic() - began)
    print(f"{part:.1%} of a core, {counters.since(before)}")
    assert network.guest.output("sha256sum </tmp/paced; rm /tmp/paced").split()[0] == network.server.payload.sha256(
        PACED_BYTES
    )
    assert part < CPU_PART


@everywhere
def test_a_guest_whose_kernel_stands_still_loses_nothing_and_does_not_make_the_worker_spin(
    network: Network, counters: Counters
) -> None:
    """It posts no buffers: flows wait for the link, and what wakes the worker is a timer, or the first that each flow's
    socket has to say. Then every transfer goes on."""
    transfers.start(network, f"GET {LONG_BYTES}", PEERS, stopped=True)
    transfers.wait_stopped(network, PEERS)  # a few alone could be through before the last has begun
    before = counters.read()
    transfers.go_on(network)
    wait_beyond(network, counters, "tcp_bytes_to_guest", before["tcp_bytes_to_guest"] + RUNNING_BYTES)
    before = counters.read()
    os.kill(network.guest.pid, signal.SIGSTOP)
    try:
        wait_still(network, counters, {"frames_to_guest"}, 0.2)  # what it had posted until it stood is used up
        assert counters.since(before)["stall_link"] > 0, counters.since(before)
        moved = measured(network, counters, STOPPED_SECONDS)
    finally:
        os.kill(network.guest.pid, signal.SIGCONT)
    assert moved["timers_fired"] <= PEERS * STOPPED_TIMEOUTS, moved
    assert moved["wakeups"] <= moved["timers_fired"] + PEERS, moved
    expected = End(0, network.server.payload.sha256(LONG_BYTES))
    assert transfers.ends(network, PEERS) == [expected] * PEERS


@everywhere
def test_a_peer_that_does_not_read_closes_the_guests_window_and_opens_it_again_when_it_does(
    network: Network, counters: Counters, listener: socket.socket
) -> None:
    """EPOLLOUT comes once for a third of the host's send queue that got free, however many reads that takes."""
    network.guest.output(f"{network.client(4, f'GET {UPLOAD_BYTES}')} </dev/null >/tmp/data")
    upload = network.client(4, "upload", listener.getsockname()[1])
    before = counters.read()
    network.guest.output(f"rm -f /tmp/end; ({upload} </tmp/data >/tmp/errors 2>&1; echo $? >/tmp/end) >/dev/null &")
    with accepted(listener) as connection:
        wait_still(network, counters, {"tcp_bytes_from_guest"}, 1)
        taken = counters.read()["tcp_bytes_from_guest"] - before["tcp_bytes_from_guest"]
        assert taken < UPLOAD_BYTES
        assert (waiting := measured(network, counters, 2))["wakeups"] <= WAKEUPS_A_SECOND * 2, waiting

        before, digest = counters.read(), hashlib.sha256()
        for _ in range(taken // 2 // PORTION):
            digest.update(connection.recv(PORTION, socket.MSG_WAITALL))
        wait_still(network, counters, {"tcp_bytes_from_guest"}, 0.5)
        moved = counters.since(before)
        assert moved["tcp_bytes_from_guest"] > 0
        assert 0 < socket_events(moved) <= QUEUE_EVENTS, moved

        while data := connection.recv(1 << 20):
            digest.update(data)
    assert digest.hexdigest() == network.server.payload.sha256(UPLOAD_BYTES)
    wait = "until [ -s /tmp/end ]; do sleep 0.05; done; cat /tmp/end /tmp/errors"
    assert network.guest.output(wait, ANSWER_SECONDS) == "0"


def stall_with_bytes_behind(network: Network, counters: Counters, connection: socket.socket) -> int:
    """Sends until the guest takes no more and something is left in the host's queue; how much was sent in all."""
    before, sent = counters.read(), 0
    while counters.since(before)["tcp_bytes_to_guest"] == sent:
        sent += send_payload(network, connection, sent, PORTION)
        wait_still(network, counters, {"tcp_bytes_to_guest"}, 0.02)
    return sent


def send_payload(network: Network, connection: socket.socket, start: int, size: int) -> int:
    """The payload's next bytes; done when the peer's own kernel has handed all of them over."""
    network.server.payload.send(connection, start + size, start)
    for _ in range(PATIENCE_SECONDS * 100):
        if struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0] == 0:
            return size
        network.helper.watch(0.01)
    raise AssertionError(f"the last of {start + size} bytes were not taken by the worker's kernel")


@everywhere
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
def test_a_peer_that_goes_away_during_a_stall_makes_nothing_spin_and_the_guest_learns_it_after_the_last_byte(
    network: Network, counters: Counters, listener: socket.socket, reset: bool
) -> None:
    """What had arrived before is read first; then the end is clean after a FIN, and ECONNRESET after a RST."""
    transfers.start(network, "anything", port=listener.getsockname()[1], stopped=True)
    with accepted(listener) as connection:
        sent = stall_with_bytes_behind(network, counters, connection)
        before = counters.read()
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    network.helper.watch(STOPPED_SECONDS)
    moved = counters.since(before)
    assert socket_events(moved) <= 2, moved
    assert moved["timers_fired"] <= STOPPED_TIMEOUTS, moved
    transfers.go_on(network)
    (end,) = transfers.ends(network)
    assert end.digest == network.server.payload.sha256(sent), end
    assert end.status == int(reset), end
    assert (f": {errno.ECONNRESET} " in end.error) == reset, end


def test_a_thousand_idle_connections_do_not_wake_the_worker(
    network: Network, counters: Counters, listener: socket.socket
) -> None:
    """Not once in ten seconds: each return of epoll_wait() is counted, and there is no other place to wait."""
    port = listener.getsockname()[1]
    network.guest.output(f"hold_connections {IDLE_CONNECTIONS} {GATEWAY[4]} {port}", ANSWER_SECONDS)
    try:
        wait_still(network, counters, {"wakeups"}, 2)
        assert counters.read()["flows"] >= IDLE_CONNECTIONS
        assert measured(network, counters, IDLE_SECONDS)["wakeups"] == 0
    finally:
        network.guest.output("killall hold_connections")
