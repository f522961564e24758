# SPDX-License-Identifier: Apache-2.0
"""The configuration file of `gvproxy` (-config), which is YAML.

Called by gvproxy.py, and imported only if there is a file, since yaml costs 20 ms. Adversary: whoever wrote the file.
Invariants: it is read as nodes, so that nothing of it becomes an object, and what is wrong is told with file, line and
column; sizes and counts are bounded; every fault is a ConfigError. Keys that are not known are passed over, as callers
of newer versions need it; those that are, twice in one mapping, are a mistake.

Text is what is written, also where YAML would see a number in it (10:11:11:11:11:00, 1e3); null is as good as nothing.
"""

from __future__ import annotations

import yaml

from lockgate.plugin import address, resolvconf
from lockgate.plugin.contracts import goflags, subnet
from lockgate.plugin.gateway import forward_words, view
from lockgate.plugin.gateway.virtual_network import (
    BESS,
    QEMU,
    RECORDS_MAX,
    STDIO,
    VFKIT,
    VPNKIT,
    PortForward,
    Record,
    SshForward,
    Zone,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from yaml.nodes import Node

    from lockgate.plugin.contracts.gvproxy_settings import Settings

    Action = Callable[[Node], None]

FILE_BYTES_MAX = 256 << 10
ENTRIES_MAX = 1024  # of one mapping or list
TEXT_MAX = 4096  # characters
PORT_MAX = 65535

_TAG = "tag:yaml.org,2002:"
_TRUE = ("true", "yes", "on")
_GROUP_BIT = 1  # of the first byte of a MAC address


class ConfigError(Exception):
    """Why a file cannot be taken: what gvproxy says in its last line."""


class _Wrong(Exception):
    """What is wrong with a node, and, on the way up, under which keys it is."""

    def __init__(self, node: Node, sentence: str) -> None:
        super().__init__(sentence)
        self.node = node
        self.keys = ""


def read(path: str, settings: Settings) -> None:
    """Fills in what the file says. Raises ConfigError."""
    content = _content(path)
    try:
        loader = yaml.SafeLoader(content)
        try:
            root = loader.get_node() if loader.check_node() else None  # of several documents the first
        finally:
            loader.dispose()
        if root is not None and not _is_null(root):
            _Reader(settings).take(root)
    except _Wrong as wrong:
        mark = wrong.node.start_mark
        key = f"{wrong.keys}: " if wrong.keys else ""
        raise _fault(f"{path}:{mark.line + 1}:{mark.column + 1}: {key}{wrong}") from None
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise _fault(f"{path}{where}: {failure.problem or failure.context}") from None
    except yaml.YAMLError as failure:  # bytes that are no text
        raise _fault(f"{path}: {str(failure).splitlines()[0]}") from None
    except (ValueError, OverflowError) as failure:  # yaml lets through what chr() says to "\UFFFFFFFF"
        raise _fault(f"{path}: {failure}") from None
    except RecursionError:
        raise _fault(f"{path}: nested too deeply") from None


def _fault(text: str) -> ConfigError:
    return ConfigError(f"failed to parse configuration: {text}")


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as failure:
        reason = str(failure.strerror)
        raise ConfigError(f"failed to read config file: open {path}: {reason[:1].lower()}{reason[1:]}") from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"failed to read config file: {path}: expected at most {FILE_BYTES_MAX} bytes")
    return content


class _Reader:
    """One method for each kind of value."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.virtual = settings.virtual

    def take(self, root: Node) -> None:
        _each(
            root,
            {
                "listen": self._listen,
                "services": self._text_into("services"),
                "log-level": self._text_into("log_level"),
                "pid-file": self._text_into("pid_file"),
                "log-file": self._text_into("log_file"),
                "notification": self._notification,
                "ec2-metadata-access": self._allow_link_local,
                "interfaces": self._interfaces,
                "forwards": self._ssh_forwards,
                "stack": self._stack,
            },
        )

    def _stack(self, node: Node) -> None:
        _each(
            node,
            {
                "debug": self._debug,
                "capture-file": self._text_into("capture_file"),
                "mtu": self._mtu,
                "subnet": self._subnet,
                "gatewayIP": self._text_into("gateway_ip"),
                "deviceIP": self._text_into("device_ip"),
                "hostIP": self._text_into("host_ip"),
                "gatewayMacAddress": self._gateway_mac,
                "dns": self._zones,
                "dnsSearchDomains": self._search,
                "forwards": self._forwards,
                "nat": self._nat,
                "gatewayVirtualIPs": self._virtual_addresses,
                "dhcpStaticLeases": self._leases,
                "vpnKitUUIDMacAddresses": self._vpnkit_macs,
                "ec2MetadataAccess": self._allow_link_local,
                "ipv6": self._ipv6,
                "hostPorts": self._host_ports,
                "guestMayExposeFiles": self._guest_may_expose_files,
            },
        )

    def _subnet(self, node: Node) -> None:
        """Checked here, where it stands; gvproxy.py makes the network of it."""
        self.settings.subnet = _text(node)
        try:
            subnet.parse(self.settings.subnet or subnet.DEFAULT)
        except subnet.SubnetError as fault:
            raise _Wrong(node, f"{self.settings.subnet}: {fault}") from None

    def _text_into(self, field: str) -> Action:
        return lambda node: setattr(self.settings, field, _text(node))

    def _listen(self, node: Node) -> None:
        self.settings.listen = tuple(map(_text, _items(node)))

    def _notification(self, node: Node) -> None:
        self.virtual.notification = _text(node)

    def _allow_link_local(self, node: Node) -> None:
        """Either of the two keys is enough."""
        self.virtual.allow_link_local |= _truth(node)

    def _interfaces(self, node: Node) -> None:
        def link(kind: str) -> Action:
            return lambda url: self.settings.links.update({kind: _text(url)})

        _each(node, {kind: link(kind) for kind in (VPNKIT, QEMU, BESS, STDIO, VFKIT)})

    def _ssh_forwards(self, node: Node) -> None:
        self.virtual.ssh_forwards = tuple(map(self._ssh_forward, _items(node)))

    def _ssh_forward(self, node: Node) -> SshForward:
        parts = _texts(node, ("socket", "dest", "user", "identity"))
        return SshForward(parts["socket"], parts["dest"], parts["user"], parts["identity"])

    def _debug(self, node: Node) -> None:
        self.settings.debug = _truth(node)

    def _mtu(self, node: Node) -> None:
        self.settings.mtu = _number(node)

    def _gateway_mac(self, node: Node) -> None:
        self.virtual.gateway_mac = _mac(node)

    def _zones(self, node: Node) -> None:
        zones: list[Zone] = []
        room = RECORDS_MAX
        for one in _items(node):
            zones.append(self._zone(one))
            room -= len(zones[-1].records)
            if room < 0:
                raise _Wrong(one, f"expected at most {RECORDS_MAX} records in all zones")
        self.virtual.zones = tuple(zones)

    def _zone(self, node: Node) -> Zone:
        zone = Zone("")
        records: list[Record] = []

        def take_name(name: Node) -> None:
            text = _text(name)
            zone.name = text if text.endswith(".") or not text else f"{text}."

        def take_records(wanted: Node) -> None:
            for one in _items(wanted):
                records.extend(_records(one))

        def take_default(default: Node) -> None:
            zone.default_address = _ipv4(default)

        _each(node, {"name": take_name, "records": take_records, "defaultIP": take_default})
        zone.records = tuple(records)
        return zone

    def _search(self, node: Node) -> None:
        wanted: list[str] = []
        for one in _items(node):
            domain = _text(one).rstrip(".")
            if not resolvconf.is_domain(domain):
                raise _Wrong(one, f"{_text(one)}: expected a domain name")
            wanted.append(domain)
        self.virtual.search = resolvconf.limit_search(wanted)
        if len(self.virtual.search) < len(set(wanted)):
            most = f"{resolvconf.SEARCH_MAX} domains or {resolvconf.SEARCH_BYTES_MAX} bytes"
            self.settings.warnings.append(f"stack.dnsSearchDomains: what goes beyond {most} in all is left out")

    def _forwards(self, node: Node) -> None:
        forwards: list[PortForward] = []
        rules = self.settings.rules
        for key, value in _pairs(node):
            protocol, _, local = _text(key).partition(":")
            if protocol not in forward_words.PROTOCOLS:
                protocol, local = "tcp", _text(key)
            forward = PortForward(protocol, local, _text(value))
            try:
                rules.append(forward_words.rule_of(forward))
            except forward_words.ExposeError as mistake:
                raise _Wrong(key, str(mistake)) from None
            forwards.append(forward)
        self.virtual.forwards = tuple(forwards)

    def _nat(self, node: Node) -> None:
        self.virtual.nat = {_ipv4(key): _ipv4(value) for key, value in _pairs(node, view.NAT_MAX)}

    def _virtual_addresses(self, node: Node) -> None:
        self.virtual.virtual_addresses = tuple(dict.fromkeys(map(_ipv4, _items(node, view.OTHERS_MAX))))

    def _leases(self, node: Node) -> None:
        leases: dict[bytes, bytes] = {}
        for key, value in _pairs(node):
            mac = _mac(value)
            if mac in leases.values():
                raise _Wrong(value, f"{_text(value)}: expected one address for each MAC address")
            leases[_ipv4(key)] = mac
        self.virtual.device_leases = leases

    def _vpnkit_macs(self, node: Node) -> None:
        self.virtual.vpnkit_macs = {_text(key): _mac(value) for key, value in _pairs(node)}

    def _ipv6(self, node: Node) -> None:
        self.virtual.ipv6 = _truth(node)

    def _host_ports(self, node: Node) -> None:
        self.virtual.host_ports = tuple(map(_port_range, _items(node, view.HOST_PORTS_MAX)))

    def _guest_may_expose_files(self, node: Node) -> None:
        self.virtual.guest_may_expose_files = _truth(node)


# ---- nodes ----


def _is_null(node: Node) -> bool:
    return bool(node.tag == f"{_TAG}null")


def _kind(node: Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "text"


def _each(node: Node, actions: Mapping[str, Action]) -> None:
    """What to do with the value of each key that is known."""
    for key, value in _pairs(node):
        action = actions.get(key.value)
        if action is None or _is_null(value):
            continue
        try:
            action(value)
        except _Wrong as wrong:
            wrong.keys = f"{key.value}.{wrong.keys}" if wrong.keys else key.value
            raise


def _pairs(node: Node, most: int = ENTRIES_MAX) -> Iterator[tuple[Node, Node]]:
    """In their order; the keys are text."""
    if not isinstance(node, yaml.MappingNode):
        raise _Wrong(node, f"expected a mapping of keys and values, got {_kind(node)}")
    _check_count(node, most)
    seen: dict[str, int] = {}
    for key, value in node.value:
        if key.tag == f"{_TAG}merge":
            raise _Wrong(key, "merge keys are not taken; write out what they stand for")
        text = _text(key)
        if text in seen:
            raise _Wrong(key, f"key {text} is given twice, in line {seen[text]}, too")
        seen[text] = key.start_mark.line + 1
        yield key, value


def _items(node: Node, most: int = ENTRIES_MAX) -> list[Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _Wrong(node, f"expected a list, got {_kind(node)}")
    _check_count(node, most)
    items: list[Node] = node.value
    return items


def _check_count(node: Node, most: int) -> None:
    if len(node.value) > most:
        raise _Wrong(node, f"expected at most {most} entries")


def _text(node: Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _Wrong(node, f"expected text, got {_kind(node)}")
    if _is_null(node):
        return ""
    text: str = node.value
    if len(text) > TEXT_MAX:
        raise _Wrong(node, f"expected at most {TEXT_MAX} characters")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _Wrong(node, "expected text without NUL and surrogates")
    return text


def _texts(node: Node, keys: tuple[str, ...]) -> dict[str, str]:
    """A mapping that holds nothing but text."""
    texts = dict.fromkeys(keys, "")

    def store(key: str) -> Action:
        return lambda value: texts.update({key: _text(value)})

    _each(node, {key: store(key) for key in keys})
    return texts


def _truth(node: Node) -> bool:
    if node.tag != f"{_TAG}bool":
        raise _Wrong(node, "expected true or false")
    return node.value.lower() in _TRUE


def _number(node: Node) -> int:
    text = _text(node)
    try:
        if isinstance(node, yaml.ScalarNode) and node.style is None:  # in quotes it is text
            return goflags.parse_int(text)
    except ValueError:
        pass
    raise _Wrong(node, f"{text}: expected a whole number")


def _ipv4(node: Node) -> bytes:
    ip = address.parse_ipv4(_text(node))
    if ip is None:
        raise _Wrong(node, f"{_text(node)}: expected an IPv4 address")
    return ip


def _mac(node: Node) -> bytes:
    """Pairs of digits with colons or dashes, or groups of four with dots."""
    text = _text(node)
    for separator, groups, length in ((":", 6, 2), ("-", 6, 2), (".", 3, 4)):
        parts = text.lower().split(separator)
        if len(parts) == groups and all(len(part) == length and not part.strip("0123456789abcdef") for part in parts):
            mac = bytes.fromhex("".join(parts))
            if not mac[0] & _GROUP_BIT:
                return mac
    raise _Wrong(node, f"{text}: expected the MAC address of one interface, as in 5a:94:ef:e4:0c:ee")


def _records(node: Node) -> list[Record]:
    """A record may name one name and match others."""
    parts = _texts(node, ("name", "regexp", "ip"))
    ip = address.parse_ipv4(parts["ip"])
    if ip is None:
        raise _Wrong(node, f"ip: {parts['ip'] or 'nothing'}: expected an IPv4 address")
    if parts["regexp"]:
        from lockgate.plugin.gateway.names import regexp

        try:
            regexp.Regexp(parts["regexp"])
        except regexp.RegexpError as fault:
            raise _Wrong(node, f"regexp: {fault}") from None
    records = [Record(parts["name"], ip)] if parts["name"] or not parts["regexp"] else []
    return [*records, Record("", ip, parts["regexp"])] if parts["regexp"] else records


def _port_range(node: Node) -> tuple[int, int]:
    first, dash, last = _text(node).partition("-")
    texts = (first, last if dash else first)
    numbers = [int(text) for text in texts if text.isascii() and text.isdecimal() and len(text) <= len(f"{PORT_MAX}")]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= PORT_MAX:
        raise _Wrong(node, f"{_text(node)}: expected a port from 1 to {PORT_MAX}, or a range like 8000-8010")
    return numbers[0], numbers[1]
