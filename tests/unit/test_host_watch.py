# SPDX-License-Identifier: Apache-2.0
"""plugin/host_watch.py and netview.follow: what counts as a change, and how often it is looked at."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from host_samples import ETH0, ORDINARY, WLAN0, host, ip, own, route

from lockgate.plugin import address, hostnet, netview
from lockgate.plugin.host_watch import FileWatch, HostWatch, Outage, changes_in
from lockgate.plugin.spec import NetworkSpec

LINKS_MAX = 40  # path_resolution(7)
PATIENCE = 20  # seconds, for what takes a fifth of one
SPEC = NetworkSpec(contract="passt")
HOME = netview.assign(SPEC, host(*ORDINARY))
ELSEWHERE = (
    own(WLAN0, "198.51.100.9/24"),
    own(WLAN0, "2001:db8:9::9/64"),
    route("0.0.0.0/0", (WLAN0, "198.51.100.1")),
    route("::/0", (WLAN0, "fe80::b")),
)


def test_changes_are_read_out_of_inotifys_events() -> None:
    """Names are padded with zeros; a folder's own event has none."""
    events = struct.pack("=iIII", 1, 8, 0, 16) + b"resolv.conf".ljust(16, b"\0") + struct.pack("=iIII", 2, 8, 0, 0)
    assert changes_in(events) == {(1, b"resolv.conf"), (2, b"")}
    assert changes_in(b"") == changes_in(b"\1") == set()


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


def test_a_file_that_is_written_under_another_name_is_followed(tmp_path: Path) -> None:
    """Cause: a container engine mounts resolv.conf from a folder of its own, and writes it there again and again."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "engine").mkdir()
    file, elsewhere = tmp_path / "etc/resolv.conf", tmp_path / "engine/resolv.conf"
    file.write_text("x")
    os.link(file, elsewhere)  # as a mount: the same file, in another folder
    watch = FileWatch(str(file))
    for text in ("y", "z"):
        elsewhere.write_text(text)
        assert watch.touched() and not watch.touched()
    file.unlink()
    assert watch.touched()
    elsewhere.write_text("what nobody asks for any more")
    assert not watch.touched()


class Chain:
    """etc/resolv.conf -> ../run/now/one -> ROOT/state/two -> deep/real, where run/now is a link to first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("etc", "run/first", "state/deep"):
            (root / folder).mkdir(parents=True)
        self.file = root / "etc/resolv.conf"
        self.file.symlink_to("../run/./now//one")
        (root / "run/now").symlink_to("first")
        (root / "run/first/one").symlink_to(root / "state/two")
        (root / "state/two").symlink_to("deep/real")
        (root / "state/deep/real").write_text("first")

    def replace_link(self, name: str, target: str) -> None:
        """As ln -sfn does, by rename."""
        (self.root / "new").symlink_to(target)
        (self.root / "new").rename(self.root / name)


CHANGES = {
    "the first link": lambda chain: chain.replace_link("etc/resolv.conf", "../other/real"),
    "a link in the middle": lambda chain: chain.replace_link("run/first/one", "../../other/real"),
    "the last link": lambda chain: chain.replace_link("state/two", "../other/real"),
    "a link to a folder": lambda chain: chain.replace_link("run/now", "../other/links"),
    "the target, by rename": lambda chain: (chain.root / "other/real").rename(chain.root / "state/deep/real"),
    "the target, written": lambda chain: (chain.root / "state/deep/real").write_text("second"),
    "the folder of the target": lambda chain: (
        (chain.root / "state/deep").rename(chain.root / "old"),
        (chain.root / "other").rename(chain.root / "state/deep"),
    ),
    "a folder above": lambda chain: (
        (chain.root / "state").rename(chain.root / "old"),
        (chain.root / "other/state").rename(chain.root / "state"),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_link_and_folder_on_the_way_to_the_file_is_followed(
    tmp_path: Path, change: Callable[[Chain], object]
) -> None:
    """And where it leads afterwards is watched in turn."""
    chain = Chain(tmp_path)
    for folder in ("links", "state"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    (tmp_path / "other/real").write_text("second")
    (tmp_path / "other/links/one").symlink_to("../real")
    (tmp_path / "other/state/two").write_text("second")
    watch = FileWatch(str(chain.file))
    (tmp_path / "unrelated").mkdir()
    assert not watch.touched()
    change(chain)
    assert watch.touched() and chain.file.read_text() == "second"
    assert not watch.touched()
    chain.file.resolve().write_text("third")
    assert watch.touched() and chain.file.read_text() == "third"


def test_a_folder_that_goes_and_comes_back_is_followed(tmp_path: Path) -> None:
    """At each step: the names that are missing are waited for where the first of them belongs."""
    chain = Chain(tmp_path)
    watch = FileWatch(str(chain.file))
    shutil.rmtree(tmp_path / "state")
    assert watch.touched() and not chain.file.exists()
    (tmp_path / "state/deep").mkdir(parents=True)
    assert watch.touched()
    (tmp_path / "state/two").symlink_to("deep/real")
    assert watch.touched()
    (tmp_path / "state/deep/real").write_text("second")
    assert watch.touched() and not watch.touched()


def test_what_happened_on_a_way_that_is_no_longer_taken_is_not_told(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    watch = FileWatch(str(chain.file))
    chain.file.unlink()
    chain.file.write_text("second")
    assert watch.touched()
    (tmp_path / "state/deep/real").write_text("third")
    (tmp_path / "state/deep").rename(tmp_path / "old")
    assert not watch.touched()


def test_as_many_links_are_followed_as_the_kernel_follows(tmp_path: Path) -> None:
    """A ring of links is none that leads anywhere, and is no loop of ours."""
    chain = [tmp_path / str(number) for number in range(LINKS_MAX + 2)]
    for link, target in pairwise(chain):
        link.symlink_to(target)
    watch, too_long = FileWatch(str(chain[1])), FileWatch(str(chain[0]))
    chain[-1].write_text("x")
    assert chain[1].read_text() == "x" and watch.touched() and not too_long.touched()
    with pytest.raises(OSError, match="levels of symbolic links"):
        chain[0].read_text()
    (tmp_path / "ring").symlink_to("ring")
    FileWatch(str(tmp_path / "ring/resolv.conf"))


def test_events_that_the_kernel_lost_are_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = FileWatch(str(tmp_path / "resolv.conf"))
    overflow = [struct.pack("=iIII", -1, 0x4000, 0, 0)]  # IN_Q_OVERFLOW, inotify(7)

    def read(fd: int, size: int) -> bytes:
        if not overflow:
            raise BlockingIOError
        return overflow.pop()

    monkeypatch.setattr(os, "read", read)
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


def looked(monkeypatch: pytest.MonkeyPatch, *records: object, spec: NetworkSpec = SPEC) -> hostnet.HostNet:
    """What a look at a host with these records makes of an ordinary one before."""
    now = host(*records)  # type: ignore[arg-type]
    monkeypatch.setattr(hostnet, "_read_tables", lambda: now.tables)
    return netview.look_again(spec, host(*ORDINARY, resolv_conf="nameserver 192.0.2.53"), "/nonexistent")


NOTHING6 = own(ETH0, "fe80::7/64", scope=253)
STAYS4 = own(ETH0, "192.0.2.7/24"), route("0.0.0.0/0", (ETH0, "192.0.2.1"))


@pytest.mark.parametrize("records", [(), (NOTHING6,), STAYS4, (*STAYS4, NOTHING6)])
def test_a_family_without_network_is_as_it_was(records: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the host is off line, or where it was."""
    again = looked(monkeypatch, *records)
    assert netview.follow(SPEC, again, HOME).changes(HOME) == {"dns4": (ip("192.0.2.53"),)}
    assert again.resolvers.servers4 == (ip("192.0.2.53"),)


def test_a_family_without_network_on_the_interface_that_was_asked_for_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever others have. Cause: with --interface, the guest's address was taken away as soon as the host had
    another way out."""
    spec = NetworkSpec(contract="passt", interface="eth0")
    before = netview.assign(spec, host(*ORDINARY, resolv_conf="nameserver 192.0.2.53"))
    again = looked(monkeypatch, *ELSEWHERE, spec=spec)
    assert netview.follow(spec, again, before).changes(before) == {}
    assert netview.reach(spec, again) == hostnet.REACH_NOTHING


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


@pytest.mark.parametrize(
    ("reaches", "told"),
    [
        ([2, 2, 0, 0, 2, 2], ["lost: no address", "found"]),
        ([2, 1, 0, 1, 2], ["lost: no default route", "found"]),
        ([1, 0, 1], ["lost: no address", "found"]),
        ([0, 0, 1, 2, 1], ["lost: no default route"]),
    ],
    ids=["all at once", "piece by piece", "never had a default route", "started without"],
)
def test_an_outage_is_told_when_it_begins_and_when_it_is_over(reaches: list[int], told: list[str]) -> None:
    outage = Outage(reaches[0])
    looks = [outage.look(reach) for reach in reaches[1:]]
    assert [": ".join([event.removeprefix("network."), *fields.values()]) for event, fields in looks if event] == told


EVERYBODY, NEIGHBOURS, NOBODY = hostnet.REACH_ALL, hostnet.REACH_NETWORK, hostnet.REACH_NOTHING
ALONE4 = own(ETH0, "192.0.2.7/24"), route("192.0.2.0/24", (ETH0, ""))


@pytest.mark.parametrize(
    ("records", "wanted", "ipv6", "reach"),
    [
        (ORDINARY, "", True, EVERYBODY),
        ((), "", True, NOBODY),
        (ALONE4, "", True, NEIGHBOURS),
        ((*ALONE4, route("0.0.0.0/0", (ETH0, ""))), "", True, EVERYBODY),
        ((*ALONE4, *ELSEWHERE[1::2]), "", True, EVERYBODY),
        ((*ALONE4, *ELSEWHERE[1::2]), "", False, NEIGHBOURS),
        (ORDINARY, "wlan0", True, NOBODY),
        (ORDINARY, "wlan1", True, NOBODY),
    ],
    ids=["ordinary", "nothing", "a network", "no router", "by one family", "not that one", "elsewhere", "gone"],
)
def test_whom_a_host_reaches(records: tuple[Any, ...], wanted: str, ipv6: bool, reach: int) -> None:
    spec = NetworkSpec(contract="passt", interface=wanted)
    spec.ipv6.enabled = ipv6
    assert netview.reach(spec, host(*records)) == reach


def test_a_host_reaches_nobody_by_what_is_kept_for_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    again = looked(monkeypatch)
    assert netview.follow(SPEC, again, HOME).guest4 == HOME.guest4 and netview.reach(SPEC, again) == NOBODY
