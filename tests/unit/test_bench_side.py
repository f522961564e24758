# SPDX-License-Identifier: Apache-2.0
"""Which command a helper is started with, for which kind of guest.

Adversary: nobody.
"""

from __future__ import annotations

from measure import OURS, Side

SIDE = Side(OURS, "passt --vhost-user -s {socket} -f")


def test_a_helper_on_a_stream_is_not_told_to_speak_vhost_user() -> None:
    assert SIDE.command_for("qemu-peer-stream") == "passt -s {socket} -f"
    assert SIDE.command_for("qemu-peer") == SIDE.command
