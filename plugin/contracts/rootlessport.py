# SPDX-License-Identifier: Apache-2.0
"""The contract `rootlessport` of Podman 5: which ports of the host lead to a container on a bridge network, as JSON.

Called by rootlessport.py. Sans-io. Adversary: nobody, Podman has written the JSON. Invariant: `rules` gives all that
was asked for, or None: then somebody else must do it, who copies bytes from one connection to another.
"""

from __future__ import annotations

import json

from lockgate.plugin import address
from lockgate.plugin.address import UNSET
from lockgate.plugin.contracts import published
from lockgate.plugin.contracts.forward_spec import RULES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lockgate.plugin.forward_rule import ForwardRule

_HEXADECIMAL = set("0123456789abcdef")


class ConfigError(ValueError):
    """What is wrong with the configuration: one sentence."""


class Config:
    """`child` is one of the container's addresses, or unset; `bridge`: it is on a bridge network."""

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
    """Of a container without any network there is none. Raises ConfigError."""
    found = address.parse(text) if text else UNSET
    if found is None:
        raise ConfigError(f"{text}: expected the address of a container")
    return found


def rules(config: Config, children: tuple[bytes, bytes], families: tuple[bool, bool]) -> list[ForwardRule] | None:
    """`children` are the container's addresses of IPv4 and IPv6, or unset; `families` are those of the helper."""
    child4, child6 = (child if on else UNSET for child, on in zip(children, families, strict=True))
    made: list[ForwardRule] = []
    for mapping in config.mappings:
        more = published.rules(mapping, child4, child6)
        if more is None or not (child4 != UNSET or mapping.get("host_ip")):  # of IPv4 at least, as with Podman's own
            return None
        made += more
        where = str(mapping.get("host_ip") or "").strip("[]")
        if where and address.parse(where) == UNSET:
            made += _of_ipv4(mapping, child4)
        elif not where and child6 == UNSET:
            made += _of_ipv6(mapping, child4)
    made = published.without_rivals(made)
    return made if len(made) <= RULES_MAX else None


def _of_ipv6(mapping: dict[str, Any], child4: bytes) -> list[ForwardRule]:
    """Who asks for localhost by IPv6 reaches a container of IPv4, too, as with Podman's own. It sees the host."""
    more = _of_ipv4(mapping, child4)
    for rule in more:
        rule.listen = UNSET
    return more


def _of_ipv4(mapping: dict[str, Any], child4: bytes) -> list[ForwardRule]:
    """A port at [::] is one of both families with Podman's own."""
    more = published.rules({**mapping, "host_ip": "0.0.0.0"}, child4, UNSET) or []
    for rule in more:
        rule.best_effort = True
    return more
