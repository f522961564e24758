# SPDX-License-Identifier: Apache-2.0
"""The contract `passt`: its port forwards, which are read once all other options are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import refused

from lockgate.plugin.contracts import passt, request
from lockgate.plugin.spec import NetworkSpec


def parse(*words: str) -> NetworkSpec:
    """The specification; with --vhost-user in front, which changes nothing else."""
    return passt.parse(["--vhost-user", *words], "passt")


def refusal(*words: str) -> str:
    return refused.refusal(lambda: parse(*words))


def forwards(*words: str) -> list[str]:
    return [str(rule) for rule in parse(*words).forwards]


def test_forwards_of_both_protocols_add_up() -> None:
    """Short and long, in the order of the words; libvirt and QEMU join several ports with commas."""
    assert forwards(*"-t 127.0.0.1/8080-8080:80-80 --udp-ports=53 --tcp-ports [::1]%lo/22,~23,1000-1001".split()) == [
        "TCP 127.0.0.1:8080  =>  80",
        "UDP *:53  =>  53",
        "TCP [::1]%lo:22  =>  22",
        "TCP [::1]%lo:1000-1001  =>  1000-1001",
    ]
    assert parse().forwards == parse("-t", "none").forwards == ()


def test_forwards_see_options_that_follow_them() -> None:
    """They are read in a second pass."""
    assert forwards("-t", "80", "-4") == ["TCP 0.0.0.0:80  =>  80"]
    assert forwards("-t", "80", "-4", "-6") == ["TCP [::]:80  =>  80"]
    assert refusal("-t", "::1/80", "-4").startswith("--tcp-ports ::1/80: ::1: IPv6 is switched off by --ipv4-only")
    assert refusal("-t", "80", "--no-tcp").startswith("--tcp-ports 80: TCP is switched off by --no-tcp")
    assert forwards("-u", "80", "--no-tcp") == ["UDP *:80  =>  80"]


def test_a_port_is_forwarded_once() -> None:
    """As muvm --publish 8080:80 --publish [::1]:8080:80 would have it twice."""
    words = "-t 8080-8080:80-80 -t [::1]/8080-8080:80-80".split()
    beginning = "--tcp-ports [::1]/8080-8080:80-80: TCP port 8080 is forwarded already, by */8080;"
    assert refusal(*words).startswith(beginning)


def test_pastas_auto_is_refused() -> None:
    assert "auto follows what listens in a namespace, and is for pasta only" in refusal("-t", "auto")


def test_all_leaves_out_what_the_host_uses_itself() -> None:
    """The kernel's range of this machine."""
    low, high = request.ephemeral_ports()
    ports = {port for rule in parse("-t", "all").forwards for port in range(rule.first, rule.last + 1)}
    assert ports == set(range(1, 65536)) - set(range(low, high + 1))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("32768\t60999\n", (32768, 60999)),
        ("1 65535", (1, 65535)),
        ("60999\t32768\n", (49152, 65535)),
        ("1 65536", (49152, 65535)),
        ("x y", (49152, 65535)),
        ("5", (49152, 65535)),
        (None, (49152, 65535)),
    ],
)
def test_ephemeral_ports_have_a_default(tmp_path: Path, content: str | None, found: tuple[int, int]) -> None:
    """For a kernel that does not say, or says nonsense."""
    path = tmp_path / "ip_local_port_range"
    if content is not None:
        path.write_text(content)
    assert request.ephemeral_ports(str(path)) == found


def test_forwards_that_do_nothing_are_warned_of() -> None:
    """passt takes them without a word: all that is named is left out, or the target is the guest's loopback."""
    (nothing,) = parse("-t", "80,~80").warnings
    assert nothing.startswith("--tcp-ports 80,~80: forwards nothing")
    (loopback,) = parse("-t", "127.0.0.1/80:127.0.0.1").warnings
    assert loopback.startswith("TCP 127.0.0.1:80  =>  127.0.0.1:80: what comes from outside")
