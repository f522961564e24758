# SPDX-License-Identifier: Apache-2.0
"""Ports of this machine that nobody uses, for a helper to listen on. Called by the tests. Adversary: other tests beside
them, which connect and bind without naming a port: the kernel gives them others, so that a helper that is started again
finds its own."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

_NAMED_ONLY = range(10000, 20000)  # below net.ipv4.ip_local_port_range, and what tests/unit/forwarding.py has


def free_ports(kind: int, count: int) -> list[int]:
    """Of all addresses of both families."""
    found: list[int] = []
    with ExitStack() as probes:
        for port in random.sample(_NAMED_ONLY, len(_NAMED_ONLY)):
            if len(found) == count:
                break
            probe = probes.enter_context(socket.socket(socket.AF_INET6, kind))
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                probe.bind(("::", port))
            except OSError:
                continue
            found.append(port)
    assert len(found) == count, f"{count - len(found)} ports short: nearly all of {_NAMED_ONLY} are in use"
    return found
