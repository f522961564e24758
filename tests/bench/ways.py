# SPDX-License-Identifier: Apache-2.0
"""The ways between a container and its host that a `pasta` has, and a visit with a load on one of them.

Called by the families of measures for `pasta`. Adversary: nobody.
Invariants: each visit starts afresh, with a helper of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from container import ANYWHERE, HOST, HOST_AS_SEEN, LOOPBACK, Client, Helper, Namespace, visiting
from measure import Side
from servers import Place

PORTS = (5201, 5202)
_RANGE = f"{PORTS[0]}-{PORTS[-1]}"
_MAPPED = f"{_RANGE}:{_RANGE}"
DIRECTIONS = {"out": "from the container", "in": "to the container"}
_AS_CLIENT = {True: {"out": "from_guest", "in": "to_guest"}, False: {"in": "from_guest", "out": "to_guest"}}


@dataclass(frozen=True)
class Way:
    """Who is the client, and what its helper is told."""

    key: str
    title: str
    short: str
    rate_aim: float
    cpu_aim: float
    ports: dict[str, str] = field(default_factory=dict)  # by option
    client_inside: bool = True

    def as_client(self, direction: str) -> str:
        """A key of DIRECTIONS as one of throughput's, where the client is the guest."""
        return _AS_CLIENT[self.client_inside][direction]


BRIDGE = Way("bridge", "a bridge network, MTU 1500", "MTU 1500", 1.5, 0.7)
TAP = Way("tap", "the tap device, MTU 65520", "MTU 65520", 1.2, 0.7)
PUBLISHED = Way(
    *("published", "a published port of the host's loopback", "published port", 0.95, 1.05),
    ports={"-t": _MAPPED, "-u": _MAPPED},
    client_inside=False,
)
OUTWARD = Way(
    *("outward", "a port of the host's in the container (-T, -U)", "port of the host", 0.95, 1.05),
    ports={"-T": _RANGE, "-U": _RANGE},
)
TAP_WAYS, LOOPBACK_WAYS = (BRIDGE, TAP), (PUBLISHED, OUTWARD)


@dataclass(frozen=True)
class Reach:
    """Both ends of a way, and what is between."""

    helper: Helper
    client: Client
    inside: Namespace  # the container, or the one on its bridge network
    places: list[Place]  # for servers


@contextmanager
def reaching(side: Side, way: Way) -> Iterator[Reach]:
    """One visit, once the helper has come to rest."""
    with visiting(side, way.ports) as visit:
        visit.helper.settle()
        host, container = visit.host, visit.container
        at_host = [host.place(HOST, port) for port in PORTS]
        if way == BRIDGE:
            with visit.bridged() as inner:
                yield Reach(visit.helper, Client(inner, HOST_AS_SEEN), inner, at_host)
        elif way == TAP:
            yield Reach(visit.helper, Client(container, HOST_AS_SEEN), container, at_host)
        elif way == PUBLISHED:
            there = [container.place(ANYWHERE, port) for port in PORTS]
            yield Reach(visit.helper, Client(host, LOOPBACK), container, there)
        else:
            here = [host.place(LOOPBACK, port) for port in PORTS]
            yield Reach(visit.helper, Client(container, LOOPBACK), container, here)
