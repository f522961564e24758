# SPDX-License-Identifier: Apache-2.0
"""Which command a helper is started with, for which kind of guest.

Adversary: nobody.
"""

from __future__ import annotations

import pytest
from measure import OURS, PEER, Side

SIDE = Side(OURS, "passt --vhost-user -s {socket} -f")


def test_a_helper_on_a_stream_is_not_told_to_speak_vhost_user() -> None:
    assert SIDE.command_for("qemu-peer-stream") == "passt -s {socket} -f"
    assert SIDE.command_for("qemu-peer") == SIDE.command


def test_a_program_is_told_by_its_name_whatever_brings_it_into_another_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKGATE_PEER_RUN", "/srv/run --in other")
    assert Side(PEER, "/srv/run --in other gvproxy -mtu 1500").program == "gvproxy"
    assert Side(OURS, "/opt/lockgate/bin/passt -f").program == "passt"
