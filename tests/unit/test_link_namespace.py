# SPDX-License-Identifier: Apache-2.0
"""plugin/link_namespace.py: what may happen to a namespace while its network is made. The rest is in tests/contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_samples import ORDINARY, assignments, host

from lockgate.plugin import log
from lockgate.plugin.contracts import pasta
from lockgate.plugin.link_namespace import NamespaceLink
from lockgate.plugin.namespace import agent, agent_records
from lockgate.plugin.spec import StartError


class Agent:
    """One that has done all, with no interface to be made."""

    def wait_ready(self) -> tuple[agent_records.Ready, int, list[int]]:
        none = agent_records.Ready(
            index=0, mtu=0, offloads=0, mac=bytes(6), name="", link_local=bytes(16), note="", files=0
        )
        return none, -1, []


def test_a_path_that_is_removed_before_it_is_watched_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would tell of it any more: the helper would stay for ever."""
    path = tmp_path / "netns"
    path.touch()

    def start(*_: object) -> Agent:
        path.unlink()
        return Agent()

    monkeypatch.setattr(agent, "start", start)
    spec = pasta.parse(["--netns", str(path), "--splice-only", *"-t none -u none -T none -U none".split()], "pasta")
    with pytest.raises(StartError, match="netns has been removed meanwhile"):
        NamespaceLink(spec).start("pasta", assignments(), host(*ORDINARY), log.Log("pasta", log.WARNING, False))
