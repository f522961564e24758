# SPDX-License-Identifier: Apache-2.0
"""The JSON of gvproxy's API: requests as Go's encoding/json reads them, replies as it writes them.

Called by api.py. Adversary: whoever sends a request; what makes no sense is a BodyError.
Invariants: pure; a text that came out can be encoded as UTF-8.

As Go does, so do we: of the keys, upper and lower case do not matter, unknown ones are passed over, the last one of a
name counts, null means that nothing was said, and whatever follows the first value is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lockgate.plugin import address
from lockgate.plugin.address import UNSET
from lockgate.plugin.gateway.virtual_network import PortForward, Record, Zone
from lockgate.plugin.services.frame import mac_text

_SPACE = " \t\r\n"
_RECORDS_MAX = 4096  # in one request, which has room for that many

# What could end a script or an attribute, if somebody put a reply into a web page.
_ESCAPED = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"})


class BodyError(ValueError):
    """What is wrong with a request's body: one sentence."""


def encode(value: object) -> bytes:
    """One line. Of what Go has as a map, whoever calls sorts the keys."""
    line = json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED)
    return line.encode("utf-8", "replace") + b"\n"


def parse_forward(body: bytes) -> PortForward:
    """Of expose and unexpose; only the protocol has a default. Raises BodyError."""
    fields = _object(_first_value(body), "the request")
    protocol, local, remote = (_text(fields, name) for name in ("protocol", "local", "remote"))
    return PortForward(protocol or "tcp", local, remote)


def parse_zone(body: bytes) -> Zone:
    """Raises BodyError."""
    fields = _object(_first_value(body), "the zone")
    records = fields.get("records")
    if records is None:
        records = []
    if not isinstance(records, list) or len(records) > _RECORDS_MAX:
        raise BodyError(f"expected Records as a list of at most {_RECORDS_MAX} objects")
    parsed = tuple(_record(_object(one, "a record")) for one in records)
    return Zone(_text(fields, "name"), parsed, _address(fields, "defaultip"))


def forwards(entries: Iterable[PortForward]) -> bytes:
    """Sorted, as they are listed."""
    ordered = sorted(entries, key=lambda one: (one.local, one.protocol))
    return encode([{"local": one.local, "remote": one.remote, "protocol": one.protocol} for one in ordered])


def zones(entries: Iterable[Zone]) -> bytes:
    """In their order."""
    return encode(
        [
            {
                "Name": zone.name,
                "Records": [*map(_shown, zone.records)] or None,
                "DefaultIP": _address_text(zone.default_address),
            }
            for zone in entries
        ]
    )


def leases(entries: Mapping[bytes, bytes]) -> bytes:
    """MAC addresses, by address."""
    return encode(dict(sorted((address.to_text(ip), mac_text(mac)) for ip, mac in entries.items())))


def cam(entries: Mapping[bytes, int]) -> bytes:
    """Numbers of connections, by MAC address."""
    return encode(dict(sorted((mac_text(mac), number) for mac, number in entries.items())))


def _record(fields: Mapping[str, Any]) -> Record:
    return Record(_text(fields, "name"), _address(fields, "ip"), _text(fields, "regexp"))


def _shown(record: Record) -> dict[str, str]:
    shown = {"Name": record.name, "IP": _address_text(record.address)}
    if record.pattern:
        shown["Regexp"] = record.pattern
    return shown


def _address_text(ip: bytes) -> str:
    return "" if ip == UNSET else address.to_text(ip)


def _first_value(body: bytes) -> Any:
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    if not text:
        raise BodyError("EOF")
    try:
        return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text)[0]
    except RecursionError:
        raise BodyError("expected a JSON object, not one value within another without end") from None
    except ValueError as mistake:
        raise BodyError(f"expected a JSON object: {mistake}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    """Its fields by their names in lower case."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BodyError(f"expected {what} as a JSON object")
    return {name.casefold(): field for name, field in value.items() if field is not None}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise BodyError(f"expected {name} as a string")
    # Half of a pair that only two \\u escapes together make is no letter.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _address(fields: Mapping[str, Any], name: str) -> bytes:
    text = _text(fields, name)
    if not text:
        return UNSET
    ip = address.parse(text)
    if ip is None:
        raise BodyError(f"invalid IP address: {text[:64]}")
    return ip
