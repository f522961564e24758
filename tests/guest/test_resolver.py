# SPDX-License-Identifier: Apache-2.0
"""Names: a resolver on this machine's loopback, which no guest can reach by that address, answers every guest.

Adversary: nobody. The helper reads a resolv.conf of the test, in a mount namespace of its own.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import resolver
from data_server import DataServer
from network import GATEWAY, VARIANT, Network, Variant, usable
from resolver import ANSWER, ANSWER6, NAME, Resolver

FORWARD = "10.77.0.53"
VARIANTS = [VARIANT[name] for name in ("uml", "qemu-stream", "uml-peer", "qemu-peer")]
# A question for NAME's address as it goes over TCP: length, header with RD, name, A, IN.
QUESTION = "\\0\\037\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\010lockgate\\4test\\0\\0\\1\\0\\1"


@contextmanager
def network_with_resolver(variant: Variant, server: DataServer, options: str = "") -> Iterator[Network]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us make a mount namespace")
    with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
        prefix = [*resolver.WITH_RESOLV_CONF, str(resolver.resolv_conf(Path(folder)))]
        network = Network(usable(variant), server, more_options=options, prefix=prefix)
    assert network.addressed
    yield network
    network.close()


@pytest.fixture(scope="module", name="resolving", params=VARIANTS, ids=lambda variant: variant.name)
def network_whose_resolver_is_on_loopback(
    request: pytest.FixtureRequest, server: DataServer, names: Resolver
) -> Iterator[Network]:
    with network_with_resolver(request.param, server) as network:
        yield network


def test_a_resolver_on_loopback_is_offered_as_the_gateway_and_answers(resolving: Network, names: Resolver) -> None:
    assert resolving.guest.lease()["dns"] == GATEWAY[4]
    before = names.asked["udp"]
    answer = resolving.guest.output(f"nslookup {NAME}")
    assert ANSWER in answer and ANSWER6 in answer, answer
    assert names.asked["udp"] == before + 2


def test_a_name_that_nobody_has_is_answered_too(resolving: Network) -> None:
    """With NXDOMAIN, which is not silence."""
    result = resolving.run("nslookup nobody.test")
    assert result.status != 0 and "NXDOMAIN" in result.output, result.output


def test_questions_over_tcp_go_there_as_well(resolving: Network, names: Resolver) -> None:
    before = names.asked["tcp"]
    shown = "tail -c 4 | hexdump -e '4/1 \"%d.\"'"
    reply = resolving.guest.output(f"printf '{QUESTION}' | client {GATEWAY[4]} 53 | {shown}")
    assert reply == ANSWER + "."
    assert names.asked["tcp"] == before + 1


def test_dns_forward_names_another_address_also_without_the_gateways_mapping(
    server: DataServer, names: Resolver
) -> None:
    with network_with_resolver(VARIANT["uml"], server, f"--dns-forward {FORWARD} --no-map-gw") as network:
        assert network.guest.lease()["dns"] == FORWARD
        assert ANSWER in network.guest.output(f"nslookup {NAME}")
        assert network.run(f"client {GATEWAY[4]} {server.port} </dev/null").status == 3, "loopback by the gateway"
