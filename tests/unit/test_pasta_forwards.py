# SPDX-License-Identifier: Apache-2.0
"""The contract `pasta`: its port forwards, into the namespace and out of it, and how Podman writes them."""

from __future__ import annotations

import pytest
import refused
from host_samples import ip

from lockgate.plugin.contracts import pasta, request
from lockgate.plugin.spec import NetworkSpec

NETNS = "/run/netns/blue"


@pytest.fixture(autouse=True)
def _known_ephemeral_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "ephemeral_ports", lambda: (32768, 60999))


def parse(*words: str) -> NetworkSpec:
    """With a namespace to join, which changes nothing else."""
    return pasta.parse(["--netns", NETNS, *words], "pasta")


def refusal(*words: str) -> str:
    return refused.refusal(lambda: parse(*words))


def inbound(*words: str) -> list[str]:
    return [str(rule) for rule in parse(*words).forwards]


def outbound(*words: str) -> list[str]:
    namespace = parse(*words).namespace
    assert namespace
    return [str(rule) for rule in namespace.forwards]


AUTO = [f"{ports}  =>  {ports}  (best effort)  (auto-scan)" for ports in ("1-32767", "61000-65535")]


def test_ports_of_which_nothing_is_said_follow_what_listens() -> None:
    """Each of the four kinds by itself, for the families and protocols that are there."""
    assert inbound() == [f"{protocol} *:{ports}" for protocol in ("TCP", "UDP") for ports in AUTO]
    assert outbound() == [f"{protocol} *%lo:{ports}" for protocol in ("TCP", "UDP") for ports in AUTO]
    assert inbound("-t", "80") == ["TCP *:80  =>  80", *(f"UDP *:{ports}" for ports in AUTO)]
    assert inbound("-u", "none") == [f"TCP *:{ports}" for ports in AUTO]
    assert outbound("-T", "none", "-4") == [f"UDP 0.0.0.0%lo:{ports}" for ports in AUTO]
    assert outbound("-U", "auto,5000", "-6") == ["UDP [::]%lo:5000  =>  5000  (auto-scan)"] + [
        f"TCP [::]%lo:{ports}" for ports in AUTO
    ]
    assert inbound("--no-tcp", "--no-udp") == outbound("--no-tcp", "--no-udp") == []


@pytest.mark.parametrize("word", ["-T 80", "-T  80", "--tcp-ns 80", "--tcp-ns=80", "-T80"])
def test_an_option_and_its_argument_may_be_one_word(word: str) -> None:
    """Then Podman adds "-T none", because it has not seen it: a note, and no fault."""
    got = parse(word, "-T", "none", "-U", "none")
    assert got.namespace and [str(rule) for rule in got.namespace.forwards] == ["TCP *%lo:80  =>  80"]
    assert got.notes == ["--tcp-ns none: changes nothing, because ports were named before"]
    assert got.warnings == []


def test_blanks_before_ports_do_no_harm() -> None:
    """`--network pasta:-T, 80` of Podman is one; numbers in C may begin with them."""
    assert outbound("-T", " 80,  81", "-U", " none") == ["TCP *%lo:80  =>  80", "TCP *%lo:81  =>  81"]
    assert refusal("-T", "8 0").startswith("--tcp-ns 8 0: expected a port")


def test_other_options_may_be_one_word_with_their_argument_too() -> None:
    got = parse("--config-net", "-a 10.0.2.0", "--netmask 24", "-H  blue", "--search a.example b.example")
    assert (got.ipv4.address, got.ipv4.prefix_length) == (ip("10.0.2.0"), 24)
    assert (got.hostname, got.search) == ("blue", ("a.example", "b.example"))


@pytest.mark.parametrize("option", ["-t", "-u", "-T", "-U"])
def test_none_counts_before_ports_and_for_its_kind_only(option: str) -> None:
    """After ports it is a note; after those of another kind it says what it says."""
    kind = inbound if option in ("-t", "-u") else outbound
    others = [word for other in ("-t", "-u", "-T", "-U") if other != option for word in (other, "none")]
    assert len(kind(option, "none", option, "80", option, "none", *others)) == 1
    assert kind(option, "none", *others) == []
    got = parse("-t", "80", "-u", "53", "-T", "80", "-U", "53", option, "none")
    assert len(got.notes) == 1
    got = parse(*(word for other in ("-t", "-u", "-T", "-U") for word in (other, "none")))
    assert got.notes == []


@pytest.mark.parametrize("option", ["-T", "-U"])
@pytest.mark.parametrize("text", ["127.0.0.1/80", "*/80", "%lo/80", "[::1]/80"])
def test_ports_that_lead_out_have_no_address(option: str, text: str) -> None:
    """Only the namespace's loopback leads to the host's."""
    assert refusal(option, text).endswith("expected ports only: it is the namespace's loopback that listens")


def test_ports_that_lead_out_are_mapped_and_left_out_as_others() -> None:
    assert outbound("-T", "8000-8003:9000-9003,~8002", "-U", "none") == [
        "TCP *%lo:8000-8001  =>  9000-9001",
        "TCP *%lo:8003  =>  9003",
    ]
    assert outbound("-T", "all,~80", "-U", "none")[0] == "TCP *%lo:1-79  =>  1-79  (best effort)"


def test_the_two_directions_do_not_meet() -> None:
    """The same port may lead in and out; twice in one direction it is refused."""
    assert inbound("-t", "80", "-T", "80", "-u", "none") == ["TCP *:80  =>  80"]
    assert refusal("-T", "80", "--tcp-ns", "80").startswith("--tcp-ns 80: TCP port 80 is forwarded already, by *%lo/80")
    assert "is forwarded already" in refusal("-t", "80", "-t", "auto")


def test_a_target_that_loopback_hides_is_warned_of_on_the_way_in_only() -> None:
    got = parse(*"-4 -t 80:127.0.0.1/81 -T 80:127.0.0.1/81".split())
    assert [warning.startswith("TCP 0.0.0.0:80  =>  127.0.0.1:81: ") for warning in got.warnings] == [True]
