# SPDX-License-Identifier: Apache-2.0
"""A link to the guest that loses, reorders and repeats packets, both ways: every byte arrives, once and in its place.

No vhost-user link does that by itself. The guest's own kernel does it for us, with netem behind its device: on the way
out at once, on the way in through an ifb device. A token bucket that lets all through stands in front of both, because
it cuts super-segments to packets of the MTU, so that it is packets that get lost.
Adversary: the link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from counters import Counters
from data_server import DataServer
from network import VARIANT, Network, Variant, usable

TC = "/usr/bin/tc"  # busybox has one too, which does not know netem
PROGRAMS = {"tc": "iproute2"}
MODULES = ("sch_netem", "sch_tbf", "sch_ingress", "cls_matchall", "act_mirred", "ifb")
MTU = 1500
CUT = f"rate 10gbit burst {MTU + 500} limit 100000000"  # what is longer than the burst is cut to segments
QUEUE = "limit 100000"  # packets: more than all windows, or netem would lose others too

# What is done to packets, and the counter that shows that it was done to those from the guest.
TROUBLES = {
    "loss 1%": "tcp_out_of_order",
    "loss 5%": "tcp_out_of_order",
    "delay 2ms reorder 25%": "tcp_out_of_order",
    "duplicate 10%": "tcp_duplicate",
}
TRANSFER_BYTES = 3_000_000  # two thousand packets
ANSWER_SECONDS = 60

GOODPUT_LOSS, GOODPUT_FACTOR = "loss 2%", 3
ROUNDS, ROUND_SECONDS = 2, 1
UPLOAD_BYTES = 10_000_000_000  # more than a round gets through
WITHOUT_QUEUE = {"LOCKGATE_TCP_REORDER": "off"}


def booted(variant: Variant, server: DataServer) -> Network:
    """A guest with an MTU of 1500, whose packets from the helper pass through ifb0."""
    network = Network(usable(variant), server, PROGRAMS, MODULES, families="inet")
    assert network.addressed
    network.guest.output(f"ip link set eth0 mtu {MTU} && ip link set ifb0 up")
    network.guest.output(
        f"{TC} qdisc add dev eth0 handle ffff: ingress &&"
        f"{TC} filter add dev eth0 parent ffff: matchall action mirred egress redirect dev ifb0"
    )
    return network


def make_trouble(network: Network, from_guest: str, to_guest: str = "") -> None:
    """Replaces what was done to the packets before."""
    for device, trouble in {"eth0": from_guest, "ifb0": to_guest}.items():
        network.guest.run(f"{TC} qdisc del dev {device} root")
        network.guest.output(
            f"{TC} qdisc add dev {device} root handle 1: tbf {CUT} &&"
            f"{TC} qdisc add dev {device} parent 1:1 netem {QUEUE} {trouble}"
        )


@pytest.fixture(scope="module", params=["uml"])
def network(request: pytest.FixtureRequest, server: DataServer) -> Iterator[Network]:
    """Whose helper is ours: only ours shares its counters."""
    with closing(booted(VARIANT[request.param], server)) as started:
        yield started


def transfer_both_ways(network: Network, counters: Counters, trouble: str) -> None:
    """A download, then an upload of what came; both have the sha256 of what the server has."""
    make_trouble(network, trouble, trouble)
    expected = network.server.payload.sha256(TRANSFER_BYTES)
    before = counters.read()
    download = f"{network.client(4, f'GET {TRANSFER_BYTES}')} </dev/null >/tmp/data && sha256sum </tmp/data"
    assert network.guest.output(download, ANSWER_SECONDS).split()[0] == expected
    upload = f"{network.client(4, f'PUT {TRANSFER_BYTES}')} </tmp/data"
    assert network.guest.output(upload, ANSWER_SECONDS) == expected
    moved = counters.since(before)
    assert moved[TROUBLES[trouble]] > 0, moved
    assert moved["tcp_retransmits"] > 0 or not trouble.startswith("loss"), moved


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_byte_arrives_over_a_link_that_is_in_trouble_both_ways(
    network: Network, counters: Counters, trouble: str
) -> None:
    """A download and an upload, with each trouble."""
    transfer_both_ways(network, counters, trouble)


@pytest.mark.parametrize("network", ["uml-discard", "uml-peer"], indirect=True)
def test_the_other_way_to_peek_and_another_guest_kernel_recover_too(network: Network, counters: Counters) -> None:
    """From the trouble that asks most of both: 5 % of all packets are lost."""
    transfer_both_ways(network, counters, "loss 5%")


def test_packets_that_come_twice_are_no_sign_of_loss(network: Network, counters: Counters) -> None:
    """The guest reports each as a duplicate (RFC 2883), and nothing is sent again for it."""
    make_trouble(network, "", "duplicate 10%")
    before = counters.read()
    download = f"{network.client(4, f'GET {TRANSFER_BYTES}')} </dev/null | sha256sum"
    assert network.guest.output(download, ANSWER_SECONDS).split()[0] == network.server.payload.sha256(TRANSFER_BYTES)
    assert counters.since(before)["tcp_fast_retransmits"] == 0


def uploaded(network: Network, counters: Counters) -> int:
    """How many bytes of the guest's the peer's kernel took in one round; the connection is then broken off."""
    before = counters.read()
    upload = f"timeout {ROUND_SECONDS} {network.client(4, f'PUT {UPLOAD_BYTES}')} </dev/zero"
    network.guest.run(upload, ANSWER_SECONDS)
    return counters.since(before)["tcp_bytes_from_guest"]


def test_the_queue_for_what_comes_ahead_of_a_gap_makes_uploads_faster_where_packets_get_lost(
    network: Network, counters: Counters, server: DataServer
) -> None:
    """At 2 % loss at least three times the goodput of the same build without it, in turn."""
    taken: Counter[str] = Counter()
    plain = Variant("uml-no-reorder", "uml", environment=WITHOUT_QUEUE)
    with closing(booted(plain, server)) as other, closing(Counters(other.helper.pid)) as others:
        for guest in (network, other):
            make_trouble(guest, GOODPUT_LOSS)
        for _ in range(ROUNDS):
            taken["with"] += uploaded(network, counters)
            taken["without"] += uploaded(other, others)
    print(f"{taken['with'] / taken['without']:.1f} times: {dict(taken)} bytes")
    assert 0 < GOODPUT_FACTOR * taken["without"] <= taken["with"]
