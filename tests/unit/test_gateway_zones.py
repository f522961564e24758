# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/zones.py: which names belong to a zone, what they are, and how zones are added to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.address import UNSET, parse_ipv4, to_text
from lockgate.plugin.gateway.names import zones as zones_module
from lockgate.plugin.gateway.names.regexp import RegexpError
from lockgate.plugin.gateway.names.zones import ZoneError, Zones
from lockgate.plugin.gateway.virtual_network import Record, Zone


def ip(text: str) -> bytes:
    address = parse_ipv4(text)
    assert address is not None
    return address


def zone(name: str, *records: tuple[str, str], default: str = "") -> Zone:
    """A record's name that begins with a slash is a pattern."""
    made = (Record("", ip(to), name[1:]) if name.startswith("/") else Record(name, ip(to)) for name, to in records)
    return Zone(name, tuple(made), ip(default) if default else UNSET)


def looked_up(zones: Zones, name: str) -> str | None:
    """The address; empty: there is no such name; None: it belongs to no zone."""
    found = zones.lookup([label.encode() for label in name.split(".") if label])
    return None if found is None else "" if found == UNSET else to_text(found)


BUILT_IN = zone("containers.internal.", ("gateway", "192.168.127.1"), ("host", "192.168.127.254"))


def test_names_are_found_by_their_zone_and_record() -> None:
    """The left part is compared as a whole."""
    zones = Zones([BUILT_IN, zone("crc.testing.", ("api", "10.0.0.1"), ("a.b", "10.0.0.2"))])
    assert looked_up(zones, "host.containers.internal.") == "192.168.127.254"
    assert looked_up(zones, "a.b.crc.testing.") == "10.0.0.2"
    assert looked_up(zones, "b.crc.testing.") == ""
    assert looked_up(zones, "x.host.containers.internal.") == ""


@pytest.mark.parametrize("name", ["containers.internal.", "internal.", "xcontainers.internal.", "example.org.", "."])
def test_a_zone_is_more_than_its_own_name(name: str) -> None:
    """And less than what merely ends like it: these belong to nobody here."""
    assert looked_up(Zones([BUILT_IN]), name) is None


def test_case_does_not_matter() -> None:
    """Neither a client's nor that of who wrote the zone."""
    zones = Zones([zone("Crc.Testing.", ("Api", "10.0.0.1"))])
    assert looked_up(zones, "aPi.cRC.testinG.") == "10.0.0.1"


def test_a_pattern_matches_as_written_or_in_lower_case() -> None:
    """What Go finds is found."""
    zones = Zones([zone("z.", ("/^API$", "10.0.0.1"), ("/^web$", "10.0.0.2"))])
    assert looked_up(zones, "API.z.") == "10.0.0.1"
    assert looked_up(zones, "api.z.") == ""
    assert looked_up(zones, "WEB.z.") == looked_up(zones, "web.z.") == "10.0.0.2"


def test_the_first_record_that_matches_counts() -> None:
    """By its name or by its pattern, in the order of the list; then the default address."""
    records = ("/^a.*$", "10.0.0.1"), ("ab", "10.0.0.2"), ("b", "10.0.0.3"), ("/b", "10.0.0.4"), ("b", "10.0.0.5")
    zones = Zones([zone("z.", *records, default="10.0.0.9")])
    names = ("ab.z.", "b.z.", "xb.z.", "c.z.")
    assert [looked_up(zones, name) for name in names] == ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.9"]


def test_a_record_may_have_both_a_name_and_a_pattern() -> None:
    """Either will do."""
    zones = Zones([Zone("z.", (Record("a", ip("10.0.0.1"), "^b$"),))])
    assert [looked_up(zones, name) for name in ("a.z.", "b.z.", "c.z.")] == ["10.0.0.1", "10.0.0.1", ""]


@pytest.mark.parametrize(
    ("order", "found"), [(("b.z.", "z."), "10.0.0.1"), (("z.", "b.z."), "10.0.0.2"), (("z.", "z."), "10.0.0.2")]
)
def test_the_first_zone_of_the_list_has_the_name(order: tuple[str, str], found: str) -> None:
    """Not the longest; a second one of the same name is never asked."""
    known = {"b.z.": zone("b.z.", ("a", "10.0.0.1")), "z.": zone("z.", ("a.b", "10.0.0.2"), ("/^a", "10.0.0.3"))}
    assert looked_up(Zones([known[name] for name in order]), "a.b.z.") == found


def test_a_zone_needs_no_dot_at_its_end() -> None:
    """Which nobody thinks of in a configuration file."""
    assert looked_up(Zones([zone("crc.testing", ("api", "10.0.0.1"))]), "api.crc.testing.") == "10.0.0.1"


def test_the_root_zone_has_all_names() -> None:
    """But its own."""
    zones = Zones([zone("", ("host.example", "10.0.0.1"), default="10.0.0.9")])
    assert [looked_up(zones, name) for name in ("host.example.", "x.", ".")] == ["10.0.0.1", "10.0.0.9", None]


def test_a_dot_inside_of_a_label_is_none_between_two() -> None:
    """Labels hold any bytes; such a one is another name."""
    zones = Zones([BUILT_IN, zone("z.", ("/^a\\\\.b$", "10.0.0.1"), ("/^\\\\007$", "10.0.0.2"))])
    assert zones.lookup([b"host.containers", b"internal"]) is None
    assert zones.lookup([b"host", b"containers.internal"]) is None
    assert zones.lookup([b"a.b", b"z"]) == ip("10.0.0.1")
    assert zones.lookup([b"\7", b"z"]) == ip("10.0.0.2")
    assert zones.lookup([b"a", b"b", b"z"]) == UNSET


def test_records_that_are_added_come_first() -> None:
    """The others stay behind them; the default address is replaced, also by none."""
    zones = Zones([zone("z.", ("a", "10.0.0.1"), ("b", "10.0.0.2"), default="10.0.0.9"), BUILT_IN])
    zones.add(zone("z.", ("a", "10.0.0.3"), ("c", "10.0.0.4")))
    names = ("a.z.", "b.z.", "c.z.", "d.z.")
    assert [looked_up(zones, name) for name in names] == ["10.0.0.3", "10.0.0.2", "10.0.0.4", ""]
    assert [one.name for one in zones.all()] == ["z.", "containers.internal."]
    listed = [(record.name, to_text(record.address)) for record in zones.all()[0].records]
    assert listed == [(name, f"10.0.0.{last}") for name, last in (("a", 3), ("c", 4), ("a", 1), ("b", 2))]
    assert zones.all()[0].default_address == UNSET
    zones.add(zone("z.", default="10.0.0.5"))
    assert looked_up(zones, "d.z.") == "10.0.0.5"


def test_a_zone_that_is_new_comes_last() -> None:
    """And is listed with all that it has."""
    zones = Zones([BUILT_IN])
    zones.add(zone("apps.testing.", default="10.0.0.1"))
    zones.add(zone("crc.testing.", ("/^a", "10.0.0.2")))
    assert [str(one) for one in zones.all()[1:]] == [
        "Zone(apps.testing., [], default=10.0.0.1)",
        "Zone(crc.testing., [Record(^a=10.0.0.2)], default=::)",
    ]
    assert looked_up(zones, "x.y.apps.testing.") == "10.0.0.1"


def test_a_zone_that_cannot_be_taken_changes_nothing() -> None:
    """A pattern is wrong."""
    zones = Zones([zone("z.", ("a", "10.0.0.1"))])
    before = [str(one) for one in zones.all()]
    for name in ("z.", "new."):
        with pytest.raises(RegexpError, match="missing closing"):
            zones.add(zone(name, ("b", "10.0.0.2"), ("/(", "10.0.0.3")))
    assert [str(one) for one in zones.all()] == before
    assert looked_up(zones, "b.z.") == "" and looked_up(zones, "a.new.") is None


def test_who_adds_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones and records have a limit each."""
    monkeypatch.setattr(zones_module, "ZONES_MAX", 2)
    monkeypatch.setattr(zones_module, "RECORDS_MAX", 3)
    zones = Zones([BUILT_IN])
    zones.add(zone("z.", ("a", "10.0.0.1")))
    with pytest.raises(ZoneError, match="'y.' is one too many"):
        zones.add(zone("y."))
    with pytest.raises(ZoneError, match="room for 3"):
        zones.add(zone("z.", ("b", "10.0.0.2")))
    assert looked_up(zones, "b.z.") == ""


def plainly(zones: list[Zone], name: str) -> str | None:
    """The rule of the contract, word by word, for names without patterns."""
    for one in zones:
        if name.endswith("." + one.name):
            left = name.removesuffix("." + one.name)
            for record in one.records:
                if record.name == left:
                    return to_text(record.address)
            return "" if one.default_address == UNSET else to_text(one.default_address)
    return None


LABELS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)


@given(
    st.lists(st.tuples(LABELS, st.lists(LABELS, max_size=3), st.booleans()), max_size=4), st.lists(LABELS, min_size=1)
)
def test_names_are_found_as_the_contract_says(made: list[tuple[str, list[str], bool]], names: list[str]) -> None:
    """A model of the rule that looks at each zone and record in turn."""
    listed = [
        zone(f"{name}.", *((left, f"10.0.{index}.{place}") for place, left in enumerate(lefts)), default=default)
        for index, (name, lefts, has_default) in enumerate(made)
        for default in (f"10.1.0.{index}" if has_default else "",)
    ]
    zones = Zones(listed)
    for name in names:
        assert looked_up(zones, f"{name}.") == plainly(listed, f"{name}.")


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=6))
def test_no_name_is_too_strange_to_be_looked_up(labels: list[bytes]) -> None:
    """Any bytes."""
    zones = Zones([zone("z.", ("/.*", "10.0.0.1"))])
    assert zones.lookup([*labels, b"Z"]) == (ip("10.0.0.1") if labels else None)
