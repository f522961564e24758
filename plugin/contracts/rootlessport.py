# SPDX-License-Identifier: Apache-2.0
"""The contract `rootlessport` of Podman 5: which ports of the host lead to a container on a bridge network, as JSON.

Called by rootlessport.py. Sans-io. Adversary: nobody, Podman has written the JSON. Invariant: `rules` gives all that
was asked for, or None: then somebody else must do it, who copies bytes from one connection to another.
"""

from __future__ import annotations

import json

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, UNSET
from lockgate.plugin.contracts.forward_spec import PORT_MAX, RULES_MAX, TCP, UDP, ForwardRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_HEXADECIMAL = set("0123456789abcdef")


class ConfigError(ValueError):
    """What is wrong with the configuration: one sentence."""


class Config:
    """`child` is the container's address of IPv4, or unset; `bridge`: it is on a bridge network."""

    __slots__ = ("bridge", "child", "container", "exit_fd", "folder", "mappings", "namespace", "ready_fd")

    def __init__(self, given: dict[str, Any]) -> None:
        self.mappings: list[dict[str, Any]] = given.get("Mappings") or []
        self.namespace = str(given.get("NetNSPath") or "")
        self.exit_fd = int(given.get("ExitFD") or 0)
        self.ready_fd = int(given.get("ReadyFD") or 0)
        self.folder = str(given.get("TmpDir") or "")
        self.child = parse_child(given.get("ChildIP") or "")
        self.container = str(given.get("ContainerID") or "")
        self.bridge = bool(given.get("RootlessCNI"))


def parse(text: bytes) -> Config:
    """Raises ConfigError."""
    try:
        config = Config(json.loads(text))
    except (ValueError, TypeError, AttributeError) as mistake:
        raise ConfigError(f"expected a configuration as JSON on standard input: {mistake}") from None
    for there, name in (
        (config.namespace, "NetNSPath"),
        (config.exit_fd > 2, "ExitFD"),
        (config.ready_fd > 2, "ReadyFD"),
        (config.folder, "TmpDir"),
        (config.container and set(config.container) <= _HEXADECIMAL, "ContainerID"),
    ):
        if not there:
            raise ConfigError(f"expected {name} in the configuration on standard input")
    return config


def parse_child(text: str) -> bytes:
    """What is no address of IPv4 is none at all."""
    found = address.parse_ipv4(text)
    return UNSET if found is None else found


def rules(config: Config, child6: bytes, families: tuple[bool, bool]) -> list[ForwardRule] | None:
    """`child6` is the container's address of IPv6, or unset; `families` are those of the helper. A port without an
    address is that of both families, as far as the container has both; of IPv6 only if the host lets us."""
    child4 = config.child if families[0] else UNSET
    child6 = child6 if families[1] else UNSET
    made: list[ForwardRule] = []
    for mapping in config.mappings:
        names = [_PROTOCOLS.get(one) for one in str(mapping.get("protocol") or "tcp").split(",")]
        listen = _listen(str(mapping.get("host_ip") or ""))
        ports = [int(mapping.get(name) or 0) for name in ("host_port", "container_port", "range")]
        if None in names or listen is None or not _are_ports(*ports):
            return None
        for protocol in filter(None, names):
            ways = _ways(listen, child4, child6)
            if not ways:
                return None
            made += [_rule(protocol, *way, ports) for way in ways]
    return made if len(made) <= RULES_MAX else None


def _are_ports(host: int, inside: int, count: int) -> bool:
    most = PORT_MAX - max(count, 1) + 1
    return 0 < host <= most and 0 < inside <= most


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


def _rule(protocol: int, listen: bytes, target: bytes, best_effort: bool, ports: list[int]) -> ForwardRule:
    host, inside, count = ports
    return ForwardRule(
        protocol=protocol,
        listen=listen,
        dual_stack=False,
        interface="",
        first=host,
        last=host + max(count, 1) - 1,
        to_first=inside,
        target=target,
        best_effort=best_effort,
    )
