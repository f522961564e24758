# SPDX-License-Identifier: Apache-2.0
"""A port that a user publishes (`podman run -p`), as Podman writes it for rootlessport and for netavark, as rules.

Called by contracts/rootlessport.py and contracts/netavark.py. Pure. Adversary: nobody, Podman has checked the words.
"""

from __future__ import annotations

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.forward_rule import PORT_MAX, TCP, UDP, ForwardRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_PROTOCOLS = {"tcp": TCP, "udp": UDP}


def rules(mapping: Mapping[str, Any], child4: bytes, child6: bytes) -> list[ForwardRule] | None:
    """Where these ports lead, to a container with these addresses (unset: none of that family). None: that cannot be.
    A port without an address is that of both families, as far as the container has both; of IPv6 only if the host lets
    us."""
    protocols = [_PROTOCOLS.get(one) for one in str(mapping.get("protocol") or "tcp").split(",")]
    listen = _listen(str(mapping.get("host_ip") or ""))
    host, inside, count = (int(mapping.get(name) or 0) for name in ("host_port", "container_port", "range"))
    most = PORT_MAX - max(count, 1) + 1
    if listen is None or not (0 < host <= most and 0 < inside <= most):
        return None
    ways = _ways(listen, child4, child6)
    if not ways or None in protocols:
        return None
    return [
        ForwardRule(
            protocol=protocol,
            listen=where,
            dual_stack=False,
            interface="",
            first=host,
            last=host + max(count, 1) - 1,
            to_first=inside,
            target=target,
            best_effort=best_effort,
        )
        for protocol in filter(None, protocols)
        for where, target, best_effort in ways
    ]


def without_rivals(some: Sequence[ForwardRule]) -> list[ForwardRule]:
    """What is only welcome makes way for what was named."""
    named = [rule for rule in some if not rule.best_effort]
    return [rule for rule in some if not (rule.best_effort and any(map(rule.conflicts, named)))]


def _listen(text: str) -> bytes | None:
    """Empty: any of both families; None: no address."""
    return address.parse(text.strip("[]")) if text else b""


def _ways(listen: bytes, child4: bytes, child6: bytes) -> list[tuple[bytes, bytes, bool]]:
    """Where to listen, the target, and whether it is no matter if that cannot be."""
    if not listen:
        four = [(ANY4, child4, False)] if child4 != UNSET else []
        return four + ([(UNSET, child6, bool(four))] if child6 != UNSET else [])
    target = child4 if address.is_ipv4(listen) else child6
    return [(listen, target, False)] if target != UNSET else []
