# SPDX-License-Identifier: Apache-2.0
"""The name server of a virtual network: what it answers itself, and what it leaves to the host's resolvers.

Called by dns_service.py for each query, by UDP or TCP. Adversary: the guest. Invariants: sans-io, a pure function of
the query, of the zones and of the host's /etc/hosts; an answer of ours fits into the 512 bytes that any client takes.

Addresses (A, AAAA) come from the zones, then from /etc/hosts, since names mean to the guest what they mean on the host;
all other questions are forwarded. Our answers have TTL 0: zones change at any moment.

Where this differs from gvisor-tap-vsock, on purpose:
- All types of records are forwarded; there, most get an answer without content.
- AAAA is answered for what has IPv6 here. A name of a zone that has only IPv4 exists nonetheless: NOERROR without
  content, for NXDOMAIN makes musl and systemd-resolved forget the other family as well. In a network without IPv6 that
  is the answer for all names, as there.
- Of a name in a zone, other types are asked upstream as there, where nobody knows it: that NXDOMAIN becomes NOERROR.
- An OPT record is answered with one (RFC 6891 §6.1.1).
- Names in any case are found (see zones.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from dns.rcode import BADVERS, NOERROR, NXDOMAIN, REFUSED
from dns.rdataclass import IN
from dns.rdatatype import AAAA, AXFR, IXFR, A

from lockgate.plugin.address import IPV4_MAPPED, UNSET, is_ipv4
from lockgate.plugin.gateway.names.dns_message import Query, build, query_parse, rcode_of, with_rcode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lockgate.plugin.gateway.names.zones import Zones


@dataclass(frozen=True, slots=True)
class Forward:
    """A query for the host's resolvers. `exists`: we know the name, whatever they say."""

    query: Query
    exists: bool = False

    def settle(self, answer: bytes) -> bytes:
        """What they say, as the client is to hear it."""
        if self.exists and rcode_of(answer) == NXDOMAIN:
            return with_rcode(answer, NOERROR)
        return answer


class NameServer:
    """`hosts` are the names of /etc/hosts, as host_files.hosts_parse makes them. `twins` says which address of IPv6
    means the same as one of IPv4: a record of the latter has both."""

    def __init__(
        self,
        zones: Zones,
        hosts: Callable[[], Mapping[bytes, bytes]],
        *,
        ipv6: bool = True,
        twins: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        self._zones = zones
        self._hosts = hosts
        self._ipv6 = ipv6
        self._twins = twins

    def answer(self, wire: bytes) -> bytes | Forward | None:
        """An answer, what to forward, or nothing at all."""
        query = query_parse(wire)
        if not isinstance(query, Query):
            return query
        if query.edns_version:
            return build(query, BADVERS)
        if query.kind in (AXFR, IXFR):
            return build(query, REFUSED)
        if query.question_class != IN:
            return Forward(query)
        found = self._zones.lookup(query.labels)
        if query.kind not in (A, AAAA):
            return Forward(query, exists=found is not None and found != UNSET)
        if found is not None:
            return self._answer_from_zone(query, found)
        if query.kind == AAAA and not self._ipv6:
            return build(query, NOERROR)
        return self._answer_from_hosts(query) or Forward(query)

    def _answer_from_zone(self, query: Query, found: bytes) -> bytes:
        if found == UNSET:
            return build(query, NXDOMAIN)
        if query.kind == A:
            return build(query, NOERROR, (found[12:],) if is_ipv4(found) else ())
        twin = self._twins.get(found, UNSET) if is_ipv4(found) else found
        return build(query, NOERROR, (twin,) if self._ipv6 and twin != UNSET else ())

    def _answer_from_hosts(self, query: Query) -> bytes | None:
        """A name that has addresses of the other family alone has none of this one, as gethostbyname2(3) sees it."""
        packed = self._hosts().get(b".".join(query.labels).lower())
        if not packed:
            return None
        known = [packed[at : at + 16] for at in range(0, len(packed), 16)]
        if query.kind == A:
            return build(query, NOERROR, tuple(one[12:] for one in known if one.startswith(IPV4_MAPPED)))
        return build(query, NOERROR, tuple(one for one in known if not is_ipv4(one)))
