# SPDX-License-Identifier: Apache-2.0
"""Pings that leave through the host's ping sockets, from a real guest and through a real kernel.

Most kernels allow ping sockets to nobody until a sysctl says otherwise, so the helper runs in a network namespace of
its own: it is told there, and the addresses that are pinged are on its loopback.

Adversary: nobody.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from data_server import DataServer
from network import VARIANTS, Network, usable

HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
NOBODY = {4: "192.0.2.17", 6: "2001:db8::17"}
UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]
SET_UP = (
    "ip link set lo up && "
    f"ip addr add {HOST[4]}/32 dev lo && ip addr add {HOST[6]}/128 dev lo && "
    'echo "$1" > /proc/sys/net/ipv4/ping_group_range && shift && exec "$@"'
)


@pytest.fixture(scope="module", name="allowed", params=VARIANTS, ids=lambda variant: variant.name)
def network_whose_host_allows_ping_sockets(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us make a user and a network namespace")
    # The one group that is mapped there is ours, as 0.
    booted = Network(usable(request.param), server, prefix=[*UNSHARE, "sh", "-c", SET_UP, "sh", "0 0"])
    yield booted
    booted.close()


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_pings_of_others_come_back_from_the_hosts_kernel(allowed: Network, family: int) -> None:
    """Another address than the gateway's, for which the helper would answer by itself."""
    result = allowed.run(f"ping -{family} -c 2 -i 0.1 -W 5 {HOST[family]}")
    assert result.status == 0 and "2 packets received" in result.output, result.output
    nobody = allowed.run(f"ping -{family} -c 1 -W 1 {NOBODY[family]}")
    assert nobody.status == 1 and " 0 packets received" in nobody.output, nobody.output
