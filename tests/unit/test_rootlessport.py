# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/rootlessport.py: configurations as Podman 5 writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from host_samples import ip

from lockgate.plugin.contracts import rootlessport
from lockgate.plugin.contracts.rootlessport import ConfigError

CHILD4, CHILD6, NONE = "10.89.0.5", "fd00::5", "::"
BOTH = (True, True)
GIVEN: dict[str, Any] = {
    "Mappings": [{"host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp"}],
    "NetNSPath": "/run/user/1000/netns/netns-1",
    "ExitFD": 3,
    "ReadyFD": 4,
    "TmpDir": "/run/user/1000/libpod/tmp",
    "ChildIP": CHILD4,
    "ContainerID": 64 * "c",
    "RootlessCNI": True,
}


def parsed(**changes: Any) -> rootlessport.Config:
    return rootlessport.parse(json.dumps({**GIVEN, **changes}).encode())


def mapping(**changes: Any) -> dict[str, Any]:
    return {**GIVEN["Mappings"][0], **changes}


def ways(
    *mappings: dict[str, Any], child4: str = CHILD4, child6: str = CHILD6, families: tuple[bool, bool] = BOTH
) -> list[str] | None:
    made = rootlessport.rules(parsed(Mappings=list(mappings)), (ip(child4), ip(child6)), families)
    return None if made is None else [" ".join(str(rule).split()) for rule in made]


FOUR = "TCP 0.0.0.0:8080 => 10.89.0.5:80"
SIX = "TCP [::]:8080 => [fd00::5]:80 (best effort)"
SIX_TO_FOUR = "TCP [::]:8080 => 10.89.0.5:80 (best effort)"


def test_a_configuration_says_who_the_container_is() -> None:
    config = parsed()
    assert (config.exit_fd, config.ready_fd, config.bridge) == (3, 4, True)
    assert (config.child, config.container) == (ip(CHILD4), 64 * "c")
    assert (config.namespace, config.folder) == (GIVEN["NetNSPath"], GIVEN["TmpDir"])


@pytest.mark.parametrize(("child", "found"), [("", NONE), (CHILD4, CHILD4), (CHILD6, CHILD6)])
def test_a_container_has_an_address_of_either_family_or_none(child: str, found: str) -> None:
    assert parsed(ChildIP=child).child == ip(found)


def test_a_port_without_an_address_is_one_of_ipv4_and_of_ipv6_if_the_container_has_that() -> None:
    """To a container without IPv4, whoever comes by that must be led by Podman's own."""
    assert ways(mapping()) == [FOUR, SIX]
    assert ways(mapping(), child6=NONE) == [FOUR, SIX_TO_FOUR]
    assert ways(mapping(), families=(True, False)) == [FOUR, SIX_TO_FOUR]
    assert ways(mapping(), child4=NONE) is None
    assert ways(mapping(), families=(False, True)) is None


def test_what_is_only_welcome_makes_way_for_what_was_named() -> None:
    assert ways(mapping(), mapping(host_ip="::1", container_port=81)) == [FOUR, "TCP [::1]:8080 => [fd00::5]:81"]


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("0.0.0.0", FOUR),
        ("127.0.0.1", "TCP 127.0.0.1:8080 => 10.89.0.5:80"),
        ("::1", "TCP [::1]:8080 => [fd00::5]:80"),
    ],
)
def test_a_port_with_an_address_is_of_its_family_alone(address: str, way: str) -> None:
    assert ways(mapping(host_ip=address)) == [way]


def test_a_port_at_any_address_of_ipv6_is_one_of_ipv4_too_unless_that_was_named() -> None:
    """As with Podman's own."""
    assert ways(mapping(host_ip="::")) == ["TCP [::]:8080 => [fd00::5]:80", f"{FOUR} (best effort)"]
    assert ways(mapping(host_ip="::"), mapping(host_ip="0.0.0.0")) == ["TCP [::]:8080 => [fd00::5]:80", FOUR]


def test_ranges_and_both_protocols_are_rules_of_their_own() -> None:
    assert ways(mapping(protocol="tcp,udp", range=3), child6=NONE) == [
        "TCP 0.0.0.0:8080-8082 => 10.89.0.5:80-82",
        "UDP 0.0.0.0:8080-8082 => 10.89.0.5:80-82",
        "TCP [::]:8080-8082 => 10.89.0.5:80-82 (best effort)",
        "UDP [::]:8080-8082 => 10.89.0.5:80-82 (best effort)",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"protocol": "sctp"}, {"protocol": "tcp,sctp"}, {"host_ip": "::1"}, {"host_ip": "here"}, {"host_port": 0}]
    + [{"container_port": 65536}, {"range": 60000}],
    ids=str,
)
def test_what_we_cannot_lead_to_is_not_ours(changes: dict[str, Any]) -> None:
    assert ways(mapping(), mapping(**changes), child6=NONE) is None


def test_more_ports_than_a_table_takes_are_not_ours() -> None:
    assert ways(*(mapping(host_port=8000 + place) for place in range(256)), child6=NONE) is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'{"ExitFD": "three"}']
    + [json.dumps({**GIVEN, name: None}).encode() for name in ("NetNSPath", "ExitFD", "ReadyFD", "TmpDir")]
    + [json.dumps({**GIVEN, **change}).encode() for change in ({"ContainerID": "../../x"}, {"ChildIP": "nobody"})],
)
def test_what_is_no_configuration_is_one_sentence(text: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        rootlessport.parse(text)
    assert "standard input" in str(caught.value) and "\n" not in str(caught.value)
