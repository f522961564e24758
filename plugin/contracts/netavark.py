# SPDX-License-Identifier: Apache-2.0
"""The contract `netavark plugin`, API 1.0.0: what Podman and netavark say, as JSON, of a network and of a container.

Called by netavark_plugin.py, which does what is asked. Sans-io: dictionaries in, records and dictionaries out.
Adversary: nobody, Podman has written the JSON; but users wrote what is in it (options, addresses, names), so that each
field is checked, and a mistake is a ContractError, one sentence for them.

Invariants: `complete` changes neither name, id nor driver, and hands back whatever it does not know; a network that it
has returned is accepted by `attachment`. Addresses are those of address.py; prefix lengths count as in their family.
"""

from __future__ import annotations

import _socket

from lockgate.plugin import address
from lockgate.plugin.address import IPV4_MAPPED, UNSET
from lockgate.plugin.contracts import published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from lockgate.plugin.forward_rule import ForwardRule

API_VERSION = "1.0.0"
MTU_MIN, MTU_MIN6, MTU_MAX = 68, 1280, 65535  # RFC 791; RFC 8200 §5
METRIC_DEFAULT = 100  # of default routes, as on netavark's own bridges
MAC_BYTES = 6
NAME_MAX = 15  # of an interface
_OPTIONS = ("mtu", "metric", "no_default_route")
_BRIDGE_PREFIX, _BRIDGE_DIGITS = "lg", 12  # of a network's id

# Where subnets come from that nobody has chosen: the half of Podman's own pool that Podman would come to last (it
# begins at 10.89.0.0), at a place that the network's id says. In IPv6 a unique local prefix (RFC 4193 §3.2.2).
_POOL4, _POOL4_PREFIX, _SUBNET4_PREFIX = IPV4_MAPPED + bytes((10, 128, 0, 0)), 9, 24
_SUBNET6_PREFIX = 64

# rtm_type of <linux/rtnetlink.h>, by the names of `podman network create --route`
ROUTE_TYPES = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}


class ContractError(ValueError):
    """What is wrong: one sentence, for the user."""


# Of the host's loopback, and those by which containers know the host and its resolver (pasta's options under Podman).
_RESERVED = (
    *(address.LOOPBACK4, address.LOOPBACK6),
    *(IPV4_MAPPED + bytes((169, 254, 1, number)) for number in (1, 2)),
)


class Subnet:
    """`number` is the network part alone, as an address."""

    __slots__ = ("family", "gateway", "number", "prefix")

    def __init__(self, number: bytes, prefix: int, gateway: bytes = UNSET) -> None:
        self.family = _socket.AF_INET if address.is_ipv4(number) else _socket.AF_INET6
        self.prefix = prefix
        self.number = _masked(number, self.bits)
        self.gateway = gateway

    @property
    def bits(self) -> int:
        """Of the 16 bytes."""
        return self.prefix + (96 if self.family == _socket.AF_INET else 0)

    def holds(self, one: bytes) -> bool:
        return _masked(one, self.bits) == self.number

    def overlaps(self, other: Subnet) -> bool:
        return self.family == other.family and (self.holds(other.number) or other.holds(self.number))

    def text(self, one: bytes) -> str:
        return f"{address.to_text(one)}/{self.prefix}"


class StaticRoute:
    __slots__ = ("gateway", "kind", "metric", "subnet")

    def __init__(self, subnet: Subnet, gateway: bytes, metric: int, kind: int) -> None:
        self.subnet = subnet
        self.gateway = gateway
        self.metric = metric
        self.kind = kind


class Attachment:
    """One container on one network."""

    __slots__ = (
        "addresses",  # the container's, each with its subnet
        "bridge",  # its name
        "container",  # ids
        "default_route",
        "dns",  # resolvers that the network brings along
        "interface",  # in the container
        "internal",
        "mac",  # empty: any
        "metric",
        "mtu",  # 0: as large as possible
        "network",
        "ports",  # of the host, that lead to the container; none where nobody could be answered
        "routes",
        "subnets",
    )

    def __init__(self, container: str, network: str, bridge: str, interface: str) -> None:
        self.container = container
        self.network = network
        self.bridge = bridge
        self.interface = interface
        self.addresses: list[tuple[bytes, Subnet]] = []
        self.subnets: list[Subnet] = []
        self.routes: list[StaticRoute] = []
        self.dns: list[str] = []
        self.ports: list[ForwardRule] = []
        self.mac = b""
        self.mtu = 0
        self.metric = METRIC_DEFAULT
        self.default_route = True
        self.internal = False

    def child(self, family: int) -> bytes:
        """The container's first address of a family, or unset."""
        return next((one for one, subnet in self.addresses if subnet.family == family), UNSET)

    @property
    def families(self) -> set[int]:
        return {subnet.family for _, subnet in self.addresses}


# ---- create ----


def complete(network: Mapping[str, Any], used: Iterable[Subnet]) -> dict[str, Any]:
    """The network as it will be: with a bridge and with subnets, none of which overlaps those that are used."""
    whole, taken = dict(network), list(used)
    identity = _text(network, "id")
    _read_options(Attachment("", identity, "", ""), network)
    driver = _text(_mapping(network, "ipam_options"), "driver", "host-local")
    if driver not in ("host-local", "none"):
        raise ContractError(f"lockgate hands out no addresses by {driver}; expected host-local or none as IPAM driver")
    if not network.get("network_interface"):
        whole["network_interface"] = _BRIDGE_PREFIX + identity[:_BRIDGE_DIGITS]
    _interface(_text(whole, "network_interface"))
    subnets = [dict(one) for one in _list(network, "subnets")]
    if driver == "none":
        if subnets:
            raise ContractError("the IPAM driver none hands out no addresses; leave out the subnets")
    else:
        whole["ipam_options"] = {**_mapping(network, "ipam_options"), "driver": driver}
        chosen = [_subnet(one) for one in subnets]
        _refuse_overlaps(chosen, taken)
        six = bool(network.get("ipv6_enabled")) or any(one.family == _socket.AF_INET6 for one in chosen)
        whole["ipv6_enabled"] = six
        missing4 = not subnets or (six and all(one.family != _socket.AF_INET for one in chosen))
        if missing4:
            subnets.append({"subnet": _shown(_free4(identity, taken))})
        if six and all(one.family != _socket.AF_INET6 for one in chosen):
            subnets.append({"subnet": _shown(_local6(identity))})
    for one in subnets:
        if not one.get("gateway"):
            one["gateway"] = address.to_text(_first_host(_subnet(one)))
    if subnets:
        whole["subnets"] = subnets
    return whole


def _refuse_overlaps(chosen: Sequence[Subnet], taken: Sequence[Subnet]) -> None:
    """A network in the place of another would take its containers' ports and packets."""
    for place, subnet in enumerate(chosen):
        shown = subnet.text(subnet.number)
        if any(subnet.holds(one) for one in _RESERVED) or address.is_multicast(subnet.number):
            raise ContractError(f"subnet {shown} has addresses that are not a container's to have; choose another one")
        for other in (*taken, *chosen[:place]):
            if subnet.overlaps(other):
                there = other.text(other.number)
                raise ContractError(
                    f"subnet {shown} overlaps {there}, which the host or another network has; choose another one"
                )


def subnets_of(network: Mapping[str, Any]) -> list[Subnet]:
    """Of a network's file; what cannot be understood is left out."""
    found = []
    for one in network.get("subnets") or ():
        try:
            found.append(_subnet(one))
        except (ContractError, AttributeError):
            continue
    return found


def _free4(identity: str, used: list[Subnet]) -> Subnet:
    step = 1 << 32 - _SUBNET4_PREFIX
    count = 1 << _SUBNET4_PREFIX - _POOL4_PREFIX
    begin = int(identity[:8], 16)
    for attempt in range(count):
        number = int.from_bytes(_POOL4, "big") + (begin + attempt) % count * step
        subnet = Subnet(number.to_bytes(16, "big"), _SUBNET4_PREFIX)
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise ContractError("all subnets of 10.128.0.0/9 are in use; name one with --subnet")


def _local6(identity: str) -> Subnet:
    return Subnet(b"\xfd" + bytes.fromhex(identity[8:22]) + bytes(8), _SUBNET6_PREFIX)


def _first_host(subnet: Subnet) -> bytes:
    """A network of one or two addresses (RFC 3021) has no number of its own."""
    last = subnet.prefix >= (31 if subnet.family == _socket.AF_INET else 127)
    return (int.from_bytes(subnet.number, "big") + (not last)).to_bytes(16, "big")


def _shown(subnet: Subnet) -> str:
    return subnet.text(subnet.number)


# ---- setup and teardown ----


def departure(request: Mapping[str, Any]) -> Attachment:
    """As much of it as says who leaves which network: that must succeed, whatever else is wrong."""
    network = _mapping(request, "network")
    return Attachment(_text(request, "container_id"), _text(network, "id"), "", "")


def attachment(request: Mapping[str, Any]) -> Attachment:
    network, options = _mapping(request, "network"), _mapping(request, "network_options")
    made = departure(request)
    made.bridge = _interface(_text(network, "network_interface"))
    made.interface = _interface(_text(options, "interface_name"))
    for name in _mapping(options, "options"):
        raise ContractError(f"lockgate knows no option {name} of a container on a network")
    _read_options(made, network)
    made.internal = bool(network.get("internal"))
    made.subnets = [_subnet(one) for one in _list(network, "subnets")]
    made.routes = [_route(one) for one in _list(network, "routes")]
    made.dns = [address.to_text(_address(one, "a resolver")) for one in _list(network, "network_dns_servers")]
    if options.get("static_mac"):
        made.mac = _mac(_text(options, "static_mac"))
    for text in _list(options, "static_ips"):
        one = _address(text, "an address of the container")
        subnet = next((subnet for subnet in made.subnets if subnet.holds(one)), None)
        if subnet is None:
            raise ContractError(f"{text} is in no subnet of the network {network.get('name')}; choose another --ip")
        made.addresses.append((one, subnet))
    children = made.child(_socket.AF_INET), made.child(_socket.AF_INET6)
    for mapping in [] if made.internal else _list(request, "port_mappings"):
        made.ports += published.rules(mapping, *children) or []
    made.ports = published.without_rivals(made.ports)
    return made


def status(made: Attachment, mac: bytes, dns: Iterable[str]) -> dict[str, Any]:
    """What the container has got; `dns` are the resolvers that it can reach."""
    subnets = [
        {
            "ipnet": subnet.text(one),
            "gateway": None if subnet.gateway == UNSET or made.internal else address.to_text(subnet.gateway),
        }
        for one, subnet in made.addresses
    ]
    return {
        "dns_search_domains": [],
        "dns_server_ips": list(dns),
        "interfaces": {made.interface: {"mac_address": mac.hex(":"), "subnets": subnets}},
    }


# ---- fields ----


def _read_options(made: Attachment, network: Mapping[str, Any]) -> None:
    options = _mapping(network, "options")
    for name in options:
        if name not in _OPTIONS:
            raise ContractError(f"lockgate knows no option {name}; expected one of {', '.join(_OPTIONS)}")
    if "mtu" in options:
        six = network.get("ipv6_enabled") or any(":" in str(one.get("subnet")) for one in _list(network, "subnets"))
        made.mtu = _number(options, "mtu", MTU_MIN6 if six else MTU_MIN, MTU_MAX)
    if "metric" in options:
        made.metric = _number(options, "metric", 1, (1 << 32) - 1)
    if "no_default_route" in options:
        said = str(options["no_default_route"]).lower()
        if said not in ("1", "true", "0", "false"):
            raise ContractError(f"no_default_route={said}: expected true or false")
        made.default_route = said in ("0", "false")


def _number(options: Mapping[str, Any], name: str, least: int, most: int) -> int:
    text = str(options[name])
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and least <= int(text) <= most):
        raise ContractError(f"{name}={text}: expected a number from {least} to {most}")
    return int(text)


def _mapping(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name) or {}
    if not isinstance(value, dict):
        raise ContractError(f"{name}: expected an object, not {value!r}")
    return value


def _list(holder: Mapping[str, Any], name: str) -> list[Any]:
    value = holder.get(name) or []
    if not isinstance(value, list):
        raise ContractError(f"{name}: expected a list, not {value!r}")
    return value


def _text(holder: Mapping[str, Any], name: str, otherwise: str = "") -> str:
    value = holder.get(name) or otherwise
    if not isinstance(value, str) or not value:
        raise ContractError(f"{name}: expected a text, not {value!r}")
    return value


def _interface(name: str) -> str:
    if (
        len(name.encode("utf-8", "surrogateescape")) > NAME_MAX
        or name in (".", "..")
        or any(c in "/:" or c.isspace() for c in name)
    ):
        raise ContractError(f"{name}: expected the name of an interface, 1 to {NAME_MAX} bytes without blanks, / and :")
    return name


def _address(text: object, what: str) -> bytes:
    one = address.parse(text) if isinstance(text, str) else None
    if one is None:
        raise ContractError(f"{text}: expected {what}")
    return one


def _subnet(one: Mapping[str, Any]) -> Subnet:
    subnet = _network(one.get("subnet"))
    if one.get("gateway"):
        subnet.gateway = _address(one["gateway"], "a gateway's address")
        if not subnet.holds(subnet.gateway):
            raise ContractError(f"gateway {one['gateway']} is not in its subnet {one['subnet']}")
    return subnet


def _network(text: object) -> Subnet:
    first, _, length = str(text).partition("/")
    number = address.parse(first)
    most = 32 if ":" not in first else 128
    if number is None or not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= most):
        raise ContractError(f"{text}: expected a subnet like 10.1.2.0/24 or fd00:1::/64")
    return Subnet(number, int(length))


def _route(one: Mapping[str, Any]) -> StaticRoute:
    kind = _text(one, "route_type", "unicast")
    if kind not in ROUTE_TYPES:
        raise ContractError(f"route type {kind}: expected one of {', '.join(ROUTE_TYPES)}")
    subnet = _network(one.get("destination"))
    gateway = UNSET
    if kind == "unicast":
        gateway = _address(one.get("gateway"), f"a gateway for the route to {one.get('destination')}")
        if address.is_ipv4(gateway) != (subnet.family == _socket.AF_INET):
            raise ContractError(f"gateway {one['gateway']} is not of the family of {one['destination']}")
    metric = one.get("metric")
    return StaticRoute(subnet, gateway, METRIC_DEFAULT if metric is None else int(metric), ROUTE_TYPES[kind])


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != MAC_BYTES or mac[0] & 1:
        raise ContractError(f"{text}: expected the MAC address of one interface, like 02:00:00:00:00:01")
    return mac


def _masked(one: bytes, bits: int) -> bytes:
    free = 128 - bits
    return (int.from_bytes(one, "big") >> free << free).to_bytes(16, "big")
