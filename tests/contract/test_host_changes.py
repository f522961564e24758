# SPDX-License-Identifier: Apache-2.0
"""The host's network changes while the helper runs: what the guest is told, and by itself where it can be.

The host is a namespace that the test makes, with one cable whose other end lies in it too, and an /etc of its own.
Adversary: nobody.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from monitor import Monitor
from running import PATIENCE, Foreground
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptRDNSS
from scapy.packet import Packet

NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount")
START = """
mount -t tmpfs none /etc; echo nameserver 10.5.0.53 > /etc/resolv.conf
ip link set lo up; ip link add cable type veth peer name end; ip link set end up; ip link set cable up
ip address add 10.5.0.2/24 dev cable; ip route add default via 10.5.0.1
ip address add fd05::2/64 dev cable nodad; ip route add default via fd05::1
"""


class Host:
    def __init__(self) -> None:
        keep = [*NAMESPACES, "sh", "-c", "echo; exec cat"]  # lives until its standard input ends
        self.process = subprocess.Popen(keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline()
        self.prefix = ("nsenter", "--preserve-credentials", "-U", "-n", "-m", "-t", str(self.process.pid))

    def does(self, script: str) -> None:
        subprocess.run([*self.prefix, "sh", "-euc", script], check=True, timeout=PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(name="host")
def started_host() -> Iterator[Host]:
    possible = subprocess.run([*NAMESPACES, "ip", "link", "add", "type", "veth"], capture_output=True)
    if possible.returncode:
        pytest.skip(f"no namespaces with cables here: {possible.stderr.decode().strip()}")
    host = Host()
    host.does(START)
    yield host
    host.close()


@pytest.fixture(name="helper")
def started_helper(host: Host, start: Callable[..., Foreground]) -> Foreground:
    return start("-d", prefix=host.prefix, stream=True)


@pytest.fixture(name="guest")
def attached_guest(helper: Foreground) -> Iterator[Monitor]:
    import socket

    end = socket.socket(socket.AF_UNIX)
    end.connect(str(helper.socket))
    yield Monitor(end)
    end.close()


def lease(guest: Monitor) -> tuple[str, list[object]]:
    """The address that DHCP hands out now, and the resolvers."""
    message = BOOTP(guest.discovers())
    options: dict[str, object] = {one[0]: one[1] for one in message[DHCP].options if isinstance(one, tuple)}
    servers = options.get("name_server", [])
    return message.yiaddr, servers if isinstance(servers, list) else [servers]


def prefixes(advertisement: Packet) -> dict[str, int]:
    """Each prefix, and for how long it is preferred."""
    found, layer = {}, advertisement
    while layer := layer.payload:
        if isinstance(layer, ICMPv6NDOptPrefixInfo):
            found[layer.prefix] = layer.preferredlifetime
    return found


def test_an_address_that_the_host_loses_for_another(host: Host, helper: Foreground, guest: Monitor) -> None:
    """The old prefix is told to be out of favour, and what is open goes on (RFC 4862, 5.5.4); DHCP has the new one."""
    assert lease(guest)[0] == "10.5.0.2"
    host.does("""
        ip address add 10.6.0.2/24 dev cable; ip address del 10.5.0.2/24 dev cable
        ip route replace default via 10.6.0.1
        ip address add fd06::2/64 dev cable nodad; ip address del fd05::2/64 dev cable
    """)
    advertisement = guest.receives(ICMPv6ND_RA)
    while prefixes(advertisement) != {"fd06::": 0xFFFFFFFF, "fd05::": 0}:
        advertisement = guest.receives(ICMPv6ND_RA)  # a look in the middle of it
    helper.line_with("network.change")
    while lease(guest)[0] != "10.6.0.2":
        pass


def test_a_host_without_network_for_a_while(host: Host, helper: Foreground, guest: Monitor) -> None:
    """The guest keeps its addresses: there is nothing better, and the host may be about to have the same ones again."""
    host.does("ip link set cable down; ip address flush dev cable")
    host.does("echo nameserver 10.5.0.54 > /etc/resolv.conf")
    assert "dns4" in helper.line_with("network.change"), "so it has looked"
    assert lease(guest) == ("10.5.0.2", ["10.5.0.54"])


def test_a_better_way_out_does_not_renumber_the_guest_of_an_address_that_stays(host: Host, guest: Monitor) -> None:
    """A host with privacy extensions (RFC 8981) has a new address each day beside the ones before."""
    host.does("ip address add fd05::9:9/128 dev cable nodad; ip address add 10.5.0.77/32 dev cable")
    host.does("echo nameserver fd05::53 > /etc/resolv.conf")
    while ICMPv6NDOptRDNSS not in (advertisement := guest.receives(ICMPv6ND_RA)):
        pass
    assert advertisement[ICMPv6NDOptRDNSS].dns == ["fd05::53"]
    assert lease(guest)[0] == "10.5.0.2"


@pytest.mark.parametrize(
    "change",
    [
        "echo nameserver 10.5.0.54 > /etc/resolv.conf",
        "echo nameserver 10.5.0.54 > /etc/new; mv /etc/new /etc/resolv.conf",
        "mkdir /etc/elsewhere; echo nameserver 10.5.0.54 > /etc/elsewhere/r; ln -sf elsewhere/r /etc/resolv.conf",
    ],
    ids=["written", "replaced", "a link instead"],
)
def test_other_resolvers(host: Host, helper: Foreground, guest: Monitor, change: str) -> None:
    """As editors, resolvconf and NetworkManager change them."""
    assert lease(guest)[1] == ["10.5.0.53"]
    host.does(change)
    helper.line_with("network.change")
    assert lease(guest)[1] == ["10.5.0.54"]


def test_what_a_link_leads_to_is_followed(host: Host, start: Callable[..., Foreground]) -> None:
    """systemd-resolved writes the file that /etc/resolv.conf leads to."""
    host.does("mkdir /etc/elsewhere; echo nameserver 10.5.0.53 > /etc/elsewhere/r; ln -sf elsewhere/r /etc/resolv.conf")
    helper = start("-d", prefix=host.prefix, stream=True)
    host.does("echo nameserver 10.5.0.54 > /etc/elsewhere/new; mv /etc/elsewhere/new /etc/elsewhere/r")
    assert "10.5.0.54" in helper.line_with("network.change")
