# SPDX-License-Identifier: Apache-2.0
"""plugin/host_watch.py and netview.follow: what counts as a change, and how often it is looked at."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from host_samples import ETH0, ORDINARY, WLAN0, host, ip, own, route

from lockgate.plugin import address, hostnet, netview
from lockgate.plugin.host_watch import FileWatch, HostWatch, names_in
from lockgate.plugin.spec import NetworkSpec

PATIENCE = 20  # seconds, for what takes a fifth of one
SPEC = NetworkSpec(contract="passt")
HOME = netview.assign(SPEC, host(*ORDINARY))
ELSEWHERE = (
    own(WLAN0, "198.51.100.9/24"),
    own(WLAN0, "2001:db8:9::9/64"),
    route("0.0.0.0/0", (WLAN0, "198.51.100.1")),
    route("::/0", (WLAN0, "fe80::b")),
)


def test_names_are_read_out_of_inotifys_events() -> None:
    """Padded with zeros; a folder's own event has none."""
    events = struct.pack("=iIII", 1, 8, 0, 16) + b"resolv.conf".ljust(16, b"\0") + struct.pack("=iIII", 1, 8, 0, 0)
    assert names_in(events) == {b"resolv.conf", b""}
    assert names_in(b"") == names_in(b"\1") == set()


def test_only_its_own_file_touches_a_watch(tmp_path: Path) -> None:
    """Not its neighbours; and what a link leads to counts from the moment when it leads there."""
    file, other = tmp_path / "resolv.conf", tmp_path / "elsewhere"
    other.mkdir()
    watch = FileWatch(str(file))
    (tmp_path / "hosts").write_text("x")
    assert not watch.touched()
    file.write_text("x")
    assert watch.touched() and not watch.touched()
    file.unlink()
    file.symlink_to(other / "real")
    assert watch.touched()
    (other / "real").write_text("y")
    assert watch.touched()


def test_a_folder_that_cannot_be_watched_is_no_error() -> None:
    assert not FileWatch("/nonexistent/resolv.conf").touched()


def test_what_is_said_at_once_is_one_look(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    looks = 0

    async def watch() -> None:
        watching = HostWatch(str(file))
        looked = asyncio.Event()

        def look() -> None:
            nonlocal looks
            looks += 1
            looked.set()

        watching.start(look)
        for _ in range(100):
            file.write_text("nameserver 192.0.2.1")
        await asyncio.wait_for(looked.wait(), PATIENCE)

    asyncio.run(watch())
    assert looks == 1


def test_the_same_host_is_no_change() -> None:
    assert netview.follow(SPEC, host(*ORDINARY), HOME).changes(HOME) == {}


def test_another_network_withdraws_the_prefix_of_the_one_before() -> None:
    now = netview.follow(SPEC, host(*ELSEWHERE), HOME)
    assert (now.guest4, now.guest6) == (ip("198.51.100.9"), ip("2001:db8:9::9"))
    assert now.withdrawn6 == (ip("2001:db8::")[:8],)
    assert {"guest4", "guest6", "gateway4", "interface4"} <= set(now.changes(HOME))
    back = netview.follow(SPEC, host(*ORDINARY), now)
    assert back.withdrawn6 == (ip("2001:db8:9::")[:8],)


def test_no_more_prefixes_are_withdrawn_than_an_advertisement_should_carry() -> None:
    view = HOME
    for number in range(10):
        records = own(ETH0, f"2001:db8:{number:x}::1/64"), route("::/0", (ETH0, "fe80::a"))
        view = netview.follow(SPEC, host(*records), view)
    assert len(view.withdrawn6) == netview.WITHDRAWN_MAX and view.withdrawn6[0] == ip("2001:db8:8::")[:8]


def test_an_address_that_the_guest_has_is_kept_while_the_host_has_it() -> None:
    """Even one that is deprecated meanwhile; where it is gone, the rules of the start hold."""
    fresh = own(ETH0, "2001:db8::77/128")
    assert netview.assign(SPEC, host(*ORDINARY, fresh)).guest6 == ip("2001:db8::77")
    assert netview.follow(SPEC, host(*ORDINARY, fresh), HOME).guest6 == HOME.guest6
    without = [one for one in ORDINARY if getattr(one, "address", None) != HOME.guest6]
    assert netview.follow(SPEC, host(*without, fresh), HOME).guest6 == ip("2001:db8::77")


def looked(monkeypatch: pytest.MonkeyPatch, *records: object) -> hostnet.HostNet:
    """What a look at a host with these records makes of an ordinary one before."""
    now = host(*records)  # type: ignore[arg-type]
    monkeypatch.setattr(hostnet, "_read_tables", lambda: now.tables)
    return hostnet.read_again(host(*ORDINARY, resolv_conf="nameserver 192.0.2.53"), "/nonexistent")


NOTHING6 = own(ETH0, "fe80::7/64", scope=253)
STAYS4 = own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, "192.0.2.1"))


@pytest.mark.parametrize("records", [(), (NOTHING6,), STAYS4, (*STAYS4, NOTHING6)])
def test_a_family_without_network_is_as_it_was(records: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the host is off line, or where it was."""
    again = looked(monkeypatch, *records)
    assert netview.follow(SPEC, again, HOME).changes(HOME) == {"dns4": (ip("192.0.2.53"),)}
    assert again.resolvers.servers4 == (ip("192.0.2.53"),)


@pytest.mark.parametrize("records", [(), (NOTHING6,)], ids=["nothing", "link-local"])
def test_a_family_that_the_host_has_left_behind_is_taken_back(
    records: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: it was kept whatever the other family did, and a guest in a network without IPv6 had the prefix of the
    one before for ever, and tried that first."""
    view = netview.follow(SPEC, looked(monkeypatch, *ELSEWHERE[::2], *records), HOME)
    assert (view.guest4, view.guest6, view.dhcpv6) == (ip("198.51.100.9"), address.UNSET, False)
    assert view.withdrawn6 == (HOME.guest6[:8],)
    view = netview.follow(SPEC, looked(monkeypatch, *ELSEWHERE[1::2]), HOME)
    assert (view.guest4, view.guest6) == (netview.LOCAL_GUEST4, ip("2001:db8:9::9"))
