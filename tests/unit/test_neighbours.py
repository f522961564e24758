# SPDX-License-Identifier: Apache-2.0
"""plugin/neighbours.py: which neighbours of the host are shown to the guest, and how often they are looked at."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest
from host_samples import ETH0, ORDINARY, assignments, host, ip

from lockgate.core._datapath import ffi, lib
from lockgate.plugin import address, neighbours, netlink, netlink_watch, netview
from lockgate.plugin.neighbours import Mirror, Neighbours, choose
from lockgate.plugin.spec import NetworkSpec

VIEW = assignments()  # 192.0.2.7/24 with the router 192.0.2.1, which is the host's loopback to the guest
REACHABLE, STALE, INCOMPLETE, FAILED, NOARP = 2, 4, 1, 32, 64
MAC, OTHER = bytes((2, 0, 0, 0, 0, 7)), bytes((2, 0, 0, 0, 0, 8))


def neighbour(text: str, mac: bytes = MAC, state: int = REACHABLE) -> netlink.Neighbour:
    return netlink.Neighbour(ETH0, ip(text), mac, state)


def table(mirror: Mirror) -> dict[str, bytes]:
    """As the worker reads it."""
    size = ffi.sizeof("struct lg_neighbour")
    assert len(mirror.packed) == mirror.count * size
    packed = [mirror.packed[at : at + size] for at in range(0, len(mirror.packed), size)]
    assert packed == sorted(packed)
    return {address.to_text(one[:16]): one[16:22] for one in packed}


def unmapped() -> netview.Assignments:
    """With --no-map-gw: the router is the host's own."""
    spec = NetworkSpec(contract="passt")
    spec.ipv4.map_host_loopback = spec.ipv6.map_host_loopback = address.UNSET
    return netview.assign(spec, host(*ORDINARY))


def test_neighbours_that_answer_are_mirrored() -> None:
    found = [neighbour("192.0.2.77"), neighbour("2001:db8::77", OTHER, STALE)]
    assert choose(found, {}, VIEW) == {ip("192.0.2.77"): MAC, ip("2001:db8::77"): OTHER}


@pytest.mark.parametrize(
    "useless",
    [
        neighbour("192.0.2.77", state=INCOMPLETE),
        neighbour("192.0.2.77", state=FAILED),
        neighbour("192.0.2.77", state=NOARP),
        neighbour("192.0.2.77", b""),  # of a tunnel
        neighbour("192.0.2.77", bytes(20)),  # of Infiniband
        neighbour("192.0.2.77", bytes(6)),
        neighbour("192.0.2.77", b"\xff" * 6),
        neighbour("224.0.0.251", bytes.fromhex("01005e0000fb")),
        neighbour("ff02::1"),
        neighbour("127.0.0.1"),
        netlink.Neighbour(ETH0, address.UNSET, MAC, REACHABLE),
    ],
)
def test_what_is_no_neighbour_is_not_mirrored(useless: netlink.Neighbour) -> None:
    assert choose([useless], {}, VIEW) == {}


@pytest.mark.parametrize("taken", ["192.0.2.7", "2001:db8::7", "192.0.2.1", "fe80::a"])
def test_nobody_outside_can_be_the_guest_or_what_it_finds_at_us(taken: str) -> None:
    """Its own addresses, and those that mean the host."""
    assert choose([neighbour(taken)], {}, VIEW) == {}


def test_what_means_the_host_is_pinned_to_our_mac() -> None:
    """Even where all else is behind the router."""
    mirror = Mirror({ip("192.0.2.77"): MAC}, VIEW)
    assert table(mirror) == {"192.0.2.1": VIEW.our_mac, "192.0.2.77": MAC, "fe80::a": VIEW.our_mac}
    assert (mirror.others4, mirror.others6) == (VIEW.our_mac, VIEW.our_mac)


def test_who_is_not_a_neighbour_is_behind_a_router_that_the_guest_may_know() -> None:
    """Without the mapping of the gateway, that is the host's own router."""
    view = unmapped()
    entries = choose([neighbour("192.0.2.1", OTHER)], {}, view)
    assert Mirror(entries, view).others4 == OTHER
    assert Mirror({}, view).others4 == view.our_mac


def test_a_flood_of_neighbours_pushes_nobody_out() -> None:
    """The table is bounded, and what is in it goes first; with what is pinned it is as large as the worker's."""
    flood = [neighbour(f"10.{n >> 8}.{n & 255}.1") for n in range(3000)]
    before = {ip("192.0.2.77"): MAC}
    chosen = choose([*flood, neighbour("192.0.2.77", OTHER)], before, VIEW)
    assert len(chosen) == neighbours.ENTRIES_MAX and chosen[ip("192.0.2.77")] == OTHER
    assert Mirror(chosen, VIEW).count <= lib.LG_NEIGHBOURS_MAX
    assert neighbours.ENTRIES_MAX + len(neighbours.pinned(VIEW)) <= lib.LG_NEIGHBOURS_MAX
    assert choose(reversed(flood), chosen, VIEW).keys() <= {one.address for one in flood}


def test_a_neighbour_is_read_from_the_kernels_message() -> None:
    """NDA_DST and NDA_LLADDR; what is not of IP is passed over."""

    def message(family: int, seq: int = 1) -> bytes:
        body = struct.pack("=BxxxiHBB", family, ETH0, REACHABLE, 0, 1)
        body += struct.pack("=HH4s", 8, 1, bytes((192, 0, 2, 77))) + struct.pack("=HH6sxx", 10, 2, MAC)
        return struct.pack("=IHHII", 16 + len(body), 28, 2, seq, 0) + body

    dump = netlink.Dump(1)
    dump.feed(message(2) + message(7))
    (one,) = dump.neighbours
    assert (one.index, one.address, one.mac, one.state) == (ETH0, ip("192.0.2.77"), MAC, REACHABLE)


def test_a_storm_is_one_look_and_nobody_listens_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said until the look is thrown away before it; the next word after it is the next look, a second later."""

    async def watch() -> None:
        ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        watching, loop = Neighbours(), asyncio.get_running_loop()
        watching._watch._socket = ours
        delays: list[float] = []
        looked = asyncio.Queue[None]()

        def at_once(wait: float, call: Callable[[], None]) -> asyncio.Handle:
            delays.append(wait)
            return loop.call_soon(call)

        monkeypatch.setattr(loop, "call_later", at_once)
        watching.start(lambda: looked.put_nowait(None))
        for said in range(1, 3):
            for _ in range(8):
                kernel.send(b"new neighbour")
            await looked.get()
            assert len(delays) == said and looked.empty()
            with pytest.raises(BlockingIOError):
                ours.recv(1)
        assert all(netlink_watch.GATHER_SECONDS <= wait <= netlink_watch.LEAST_SECONDS for wait in delays)
        loop.remove_reader(ours)
        ours.close()
        kernel.close()

    asyncio.run(watch())


def test_in_local_mode_there_are_no_neighbours() -> None:
    """There is no interface that the guest's network would be modelled on."""
    local = netview.assign(NetworkSpec(contract="passt"), host())
    assert neighbours.interfaces(local) == set() and Neighbours().look(local) == {}
