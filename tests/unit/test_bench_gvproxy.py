# SPDX-License-Identifier: Apache-2.0
"""The benchmark of `gvproxy`: what its command says, and what is asked of it beside another gvproxy and beside a passt.

Adversary: nobody.
"""

from __future__ import annotations

from pathlib import Path

import bench
import gvproxy_names
import gvproxy_rest
import gvproxy_throughput
import pytest
from helper import filled
from measure import OURS, PEER, Measure, Settings, Side


def beside(peer: str) -> Settings:
    """Settings with that program as the other helper."""
    return Settings("gvproxy", 3, 10, 10_000, peer=peer)


def aims(measures: list[Measure]) -> list[float | None]:
    """In their order."""
    return [measure.aim for measure in measures]


def test_its_command_names_the_socket_as_an_address_and_a_port_that_nobody_has() -> None:
    words = filled(bench.default_ours("gvproxy").split(), Path("/tmp/s"))
    assert words[1:4] == ["-mtu", "1500", "-ssh-port"] and 1024 <= int(words[4]) <= 65535
    assert words[5:] == ["-listen-qemu", "unix:///tmp/s", "-pid-file", "/tmp/s.pid", "-log-file", "/tmp/s.log"]


def test_each_command_by_default_is_for_the_guest_that_was_asked_for() -> None:
    names = {guest: Side(OURS, bench.default_ours(guest)).program for guest in bench.FAMILIES}
    assert names.pop("gvproxy") == names.pop("gvproxy-peer") == "gvproxy"
    assert names.pop("pasta") == names.pop("podman") == "pasta"
    assert set(names.values()) == {"passt"}


def test_a_gvproxy_of_path_is_another_unless_lockgate_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version line is the same."""
    program = tmp_path / "gvproxy"
    program.write_text("#!/bin/sh\necho gvproxy version v0.8.9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("LOCKGATE_PEER_ROOT", raising=False)
    assert (bench.default_peer("gvproxy") or "").startswith(f"{program} -mtu ")
    (tmp_path / "lockgate").touch()
    assert bench.default_peer("gvproxy") is None


@pytest.mark.parametrize("peer", ["gvproxy", "passt", ""])
def test_no_two_measures_share_a_key(peer: str) -> None:
    keys = [measure.key for family in bench.FAMILIES["gvproxy"] for measure in family.measures(beside(peer))]
    assert len(keys) == len(set(keys))


def test_throughput_is_to_be_much_better_than_gvproxys_and_as_good_as_passts() -> None:
    """A passt has no network to make up, and costs less."""
    assert aims(gvproxy_throughput.measures(beside("gvproxy"))) == [1.6, 1.25, 0.125, 0.125]
    assert aims(gvproxy_throughput.measures(beside("passt"))) == [0.97, 0.97, None, None]


def test_a_start_is_compared_with_a_gvproxys() -> None:
    assert aims(gvproxy_rest.ready_measures(beside("gvproxy"))) == [1.2, None]
    assert aims(gvproxy_rest.ready_measures(beside("passt"))) == [None]


def test_names_are_asked_of_a_helper_that_has_zones() -> None:
    assert {measure.sides for measure in gvproxy_names.measures(beside("gvproxy"))} == {(OURS, PEER)}
    assert {measure.sides for measure in gvproxy_names.measures(beside("passt"))} == {(OURS,)}
