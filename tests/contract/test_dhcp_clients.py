# SPDX-License-Identifier: Apache-2.0
"""Real clients of DHCP and DHCPv6, with the scripts and files that Debian gives them: ISC's dhclient, and dhcpcd, which
also asks by ARP whether its address is taken and reads router advertisements itself.

The guest is namespaces with an /etc of its own, and an eth0 whose frames go to the helper (krun_device.py). All that it
is to learn is on the helper's command line, so that nothing depends on this machine's network. Adversary: nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from krun import DEVICE, MAC
from running import PATIENCE, Foreground, tree

NAMESPACES = "unshare --user --map-root-user --net --mount --uts --pid --fork --kill-child --mount-proc".split()
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# Without a user of its own dhcpcd does not change to it, which no user namespace with one user would let it.
SET_UP = """
mount -t tmpfs none /run; mkdir /run/etc; cp -a /etc/. /run/etc 2>/dev/null || :
sed -i '/^dhcpcd:/d' /run/etc/passwd; mount --bind /run/etc /etc; rm -f /etc/resolv.conf; : >/etc/resolv.conf
for folder in /var/lib/dhcp /var/lib/dhcpcd; do test ! -d $folder || mount -t tmpfs none $folder; done
for program in /sbin/resolvconf /usr/bin/resolvconf; do test ! -e $program || mount --bind /dev/null $program; done
hostname localhost; ip link set lo up
exec "$@"
"""
NO_DETECTION = "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad"  # of duplicate addresses: a second less to wait

ADDRESS, ADDRESS6, MTU = "10.77.0.15", "fd77::15", 1400
OPTIONS = (
    *("-a", ADDRESS6, "-g", "fe80::1", "--mtu", str(MTU), "-H", "vm", "--fqdn", "vm.example.org"),
    *("-D", "10.77.0.53", "-D", "10.77.0.54", "-D", "fd77::53", "-S", "one.example", "-S", "two.example"),
)
PACKAGES = {"dhclient": "isc-dhcp-client", "dhcpcd": "dhcpcd-base"}
FOR_IPV4 = {"dhclient": "dhclient -4 -1 -q eth0", "dhcpcd": "dhcpcd -4 -1 -w -q eth0"}
FOR_IPV6 = {
    "dhclient": "dhclient -6 -1 -q eth0",
    # It would be content with the address that it makes itself.
    "dhcpcd": "echo ipv6ra_noautoconf >>/etc/dhcpcd.conf; dhcpcd -6 -1 -w -q eth0",
}
NAMES = {"dhclient": "vm", "dhcpcd": "vm.example.org"}  # each takes another of the two
OUTSIDE = "10.99.0.1"  # of the guest's subnet


class Guest:
    def __init__(self, end: socket.socket) -> None:
        device = [sys.executable, "-I", "-S", str(DEVICE), str(end.fileno()), MAC]
        command = [*NAMESPACES, "sh", "-euc", SET_UP, "sh", *device]
        environment = {**os.environ, "PATH": PATH}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[end.fileno()], env=environment)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"
        first = str(tree(self.process.pid)[1])
        self._prefix = ["nsenter", "--preserve-credentials", "-U", "-n", "-m", "-u", "-p", "-t", first]
        self.runs(f"{NO_DETECTION}; ip link set eth0 up")

    def runs(self, script: str) -> str:
        done = subprocess.run(
            [*self._prefix, "sh", "-euc", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": PATH},
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _told(self, what: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = json.loads(self.runs(f"ip -json {what}"))
        return told

    def addresses(self) -> set[str]:
        """Of eth0, beyond the link."""
        (link,) = self._told("address show dev eth0")
        found = [one for one in link["addr_info"] if one["scope"] == "global"]
        return {f"{one['local']}/{one['prefixlen']}" for one in found}

    def router(self, version: int) -> str:
        (default,) = self._told(f"-{version} route show default")
        assert default["dev"] == "eth0"
        return str(default["gateway"])

    def mtu(self, version: int) -> int:
        """Of the interface, or of one family on it, or of the route: clients differ in what they set."""
        (link,), (default,) = self._told("link show dev eth0"), self._told(f"-{version} route show default")
        found = [link["mtu"], *(one["mtu"] for one in default.get("metrics", []) if "mtu" in one)]
        if version == 6:
            found.append(self.runs("cat /proc/sys/net/ipv6/conf/eth0/mtu"))
        return min(map(int, found))

    def resolvers(self) -> tuple[list[str], list[str]]:
        """The servers and the search list of its resolv.conf, in which dhclient writes absolute names."""
        lines = [line.split() for line in self.runs("cat /etc/resolv.conf").splitlines()]
        search = [name.rstrip(".") for words in lines if words[:1] == ["search"] for name in words[1:]]
        return [words[1] for words in lines if words[:1] == ["nameserver"]], search

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def present(name: str) -> str:
    if shutil.which(name, path=PATH) is None:
        pytest.skip(f"{name} is not here; Debian's {PACKAGES[name]} has it")
    return name


@pytest.fixture(params=PACKAGES)
def client(request: pytest.FixtureRequest) -> str:
    return present(request.param)


@pytest.fixture(name="boot")
def booting(start: Callable[..., Foreground]) -> Iterator[Callable[..., Guest]]:
    """Starts a helper with these options, and a guest at it."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun, which makes the guest's eth0, is not here or not for us")
    possible = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    if possible.returncode:
        pytest.skip(f"no namespaces for a guest here: {possible.stderr.strip()}")
    guests: list[Guest] = []

    def boot(*options: str) -> Guest:
        helper = start(*OPTIONS, *options, stream=True)
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(helper.socket))
            guests.append(Guest(end))
        return guests[-1]

    yield boot
    for guest in guests:
        guest.close()


def test_a_client_of_dhcp_takes_all_that_it_is_given(client: str, boot: Callable[..., Guest]) -> None:
    """dhcpcd has probed the address before (RFC 5227): nobody else has it."""
    guest = boot("-a", f"{ADDRESS}/24", "-g", "10.77.0.1")
    guest.runs(FOR_IPV4[client])
    assert f"{ADDRESS}/24" in guest.addresses()
    assert (guest.router(4), guest.mtu(4)) == ("10.77.0.1", MTU)
    assert guest.resolvers() == (["10.77.0.53", "10.77.0.54"], ["one.example", "two.example"])
    assert guest.runs("hostname").strip() == NAMES[client]


def test_a_client_of_dhcp_reaches_a_router_outside_its_subnet(client: str, boot: Callable[..., Guest]) -> None:
    """By option 121, with which the router of option 3 does not count (RFC 3442)."""
    guest = boot("-a", f"{ADDRESS}/32", "-g", OUTSIDE)
    without_probe = FOR_IPV4[client].replace("dhcpcd", "dhcpcd --noarp")
    guest.runs(without_probe)
    assert f"{ADDRESS}/32" in guest.addresses()
    assert (guest.router(4), guest.mtu(4)) == (OUTSIDE, MTU)
    assert "dev eth0" in guest.runs(f"ip -4 route show {OUTSIDE}")


def test_a_client_of_dhcpv6_takes_all_that_it_is_given(client: str, boot: Callable[..., Guest]) -> None:
    """And the router and the MTU from advertisements, whoever reads them: the kernel, or dhcpcd."""
    guest = boot("-6")
    guest.runs(FOR_IPV6[client])
    assert f"{ADDRESS6}/128" in guest.addresses()
    assert (guest.router(6), guest.mtu(6)) == ("fe80::1", MTU)
    assert guest.resolvers() == (["fd77::53"], ["one.example", "two.example"])


def test_dhcpcd_configures_itself_by_advertisements(boot: Callable[..., Guest]) -> None:
    """An address of its own making in the prefix, the resolvers (RDNSS) and the search list (DNSSL)."""
    present("dhcpcd")
    guest = boot("-6", "--no-dhcpv6")
    guest.runs("dhcpcd -6 -1 -w -q eth0")
    assert guest.addresses() and all(one.startswith("fd77::") and one.endswith("/64") for one in guest.addresses())
    assert (guest.router(6), guest.mtu(6)) == ("fe80::1", MTU)
    assert guest.resolvers() == (["fd77::53"], ["one.example", "two.example"])
