# SPDX-License-Identifier: Apache-2.0
"""Ports of this machine that nobody uses, for a helper to listen on. Called by the tests. Adversary: nobody."""

from __future__ import annotations

import socket


def free_ports(kind: int, count: int) -> list[int]:
    """Of all addresses of both families."""
    probes = [socket.socket(socket.AF_INET6, kind) for _ in range(count)]
    try:
        for probe in probes:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
