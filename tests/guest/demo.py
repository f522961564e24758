# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a real Linux guest whose only network is lockgate moves 200 MB each way, and the sums are compared.

Called by the Makefile; a person reads it. Adversary: nobody.
Invariants: the helper is started as any VM monitor would start it, and what is printed was measured in this run.
Status 1 if a sum differs or anything does not work.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
import time

from data_server import PAYLOAD_BYTES, DataServer
from guest import Guest, GuestFailed
from helper import Helper, HelperFailed
from image import MissingIngredient
from machine import KINDS, find

WIDTH = 10
MEGABYTE = 1_000_000


class Screen:
    """What the person sees: one line a fact, a mark where something is wrong."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._dim, self._green, self._red, self._plain = (
            ("\033[2m", "\033[32m", "\033[31m", "\033[0m") if terminal else ("", "", "", "")
        )

    def fact(self, name: str, text: str) -> None:
        """One line."""
        print(f"  {self._dim}{name:<{WIDTH}}{self._plain}  {text}", flush=True)

    def verdict(self, good: bool, text: str) -> str:
        """Text in the colour of its meaning."""
        return f"{self._green if good else self._red}{text}{self._plain}"


def _timed(guest: Guest, command: str) -> tuple[float, str]:
    """Seconds by the guest's own clock, and what else the command printed."""
    words = guest.output(command, 120).split()  # "412 ms" is the client's last word
    return int(words[-2]) / 1000, words[0]


def _transfer(screen: Screen, guest: Guest, helper: Helper, server: DataServer) -> bool:
    """Down, then the same bytes up again; whether both sums are those of what the server has."""
    client, expected = f"{guest.gateway()} {server.port}", server.payload.sha256(PAYLOAD_BYTES)
    screen.fact("server", f"{guest.gateway()} port {server.port} in the guest is 127.0.0.1 on this machine")
    # The file is there before, so that the rate is not that of an emulated machine's page faults.
    guest.output(
        f"dd if=/dev/zero of=/tmp/data bs=1M count={PAYLOAD_BYTES // MEGABYTE} && truncate -s {PAYLOAD_BYTES} /tmp/data"
    )
    cpu = [helper.cpu_seconds()]
    down, _ = _timed(guest, f"client -t -r 'GET {PAYLOAD_BYTES}' {client} </dev/null 1<>/tmp/data")
    cpu.append(helper.cpu_seconds())
    up, came = _timed(guest, f"client -t -r 'PUT {PAYLOAD_BYTES}' {client} </tmp/data")
    cpu.append(helper.cpu_seconds())
    here = guest.output("sha256sum /tmp/data", 120).split()[0]
    for name, seconds, digest, used in (
        ("download", down, here, cpu[1] - cpu[0]),
        ("upload", up, came, cpu[2] - cpu[1]),
    ):
        verdict = screen.verdict(digest == expected, "equal" if digest == expected else f"not {expected[:12]}…")
        rate = f"{seconds:.2f} s, {PAYLOAD_BYTES * 8 / seconds / 1e9:.2f} Gbit/s"
        screen.fact(name, f"200 MB in {rate}, {used:.2f} s of the helper's CPU; sha256 {digest[:12]}… {verdict}")
    return here == came == expected


def _show(screen: Screen, guest: Guest) -> None:
    lease = guest.lease()
    screen.fact("guest", f"Linux {guest.kernel}, up after {guest.boot_seconds:.1f} s")
    screen.fact("IPv4", f"{lease['ip']}/{lease['mask']} via {lease.get('router', '(no router)')}, by DHCP")
    ipv6 = guest.run("ip -6 addr show dev eth0 scope global").output.split()
    if "inet6" in ipv6:
        screen.fact("IPv6", f"{ipv6[ipv6.index('inet6') + 1]} via {guest.gateway(6)}, by autoconfiguration")
    mtu = guest.output("cat /sys/class/net/eth0/mtu")
    screen.fact("resolvers", f"{lease.get('dns', 'none')}; MTU {mtu}")
    lines = textwrap.wrap(" ".join(guest.features()), 100)
    for line in lines:
        screen.fact("features" if line is lines[0] else "", line)


def demo(kind: str, debug: bool) -> int:
    """Everything in order; the exit status."""
    screen = Screen()
    began = time.monotonic()
    machine = find(kind)
    helper = Helper(f"demo-{kind}", "-1 -d" if debug else "-1", stderr_to_terminal=debug)
    print(f"\nA guest in {machine.title}, whose only network is\n  {shlex.join(helper.arguments)}\n")
    guest = None
    try:
        helper.wait_ready()
        screen.fact("helper", f"listens {helper.ready_seconds * 1000:.0f} ms after its start")
        guest = Guest.boot(f"demo-{kind}", kind, helper.socket)
        ipv6 = guest.run("network-up 5 inet inet6").status == 0
        if not ipv6:
            guest.network_up("inet")
        _show(screen, guest)
        names = ", ".join(f"{name} {pid}" for pid, name in helper.processes().items())
        memory = helper.pss_bytes()
        screen.fact("processes", names + (f"; {memory / MEGABYTE:.1f} MB in all" if memory is not None else ""))
        server = DataServer()
        equal = _transfer(screen, guest, helper, server)
        total = helper.cpu_seconds()
        guest.power_off()
        status = helper.wait_exit()
        ended = screen.verdict(status == 0, f"status {status}")
        screen.fact("the end", f"guest powered off, helper ended with {ended} after {total:.2f} s of CPU in all")
        server.close()
    finally:
        if guest is not None:
            guest.kill()
        helper.close()
    good = equal and status == 0
    print(
        f"\n{screen.verdict(good, 'Both sums are equal.' if good else 'FAILED')} ({time.monotonic() - began:.0f} s)\n"
    )
    return 0 if good else 1


def main() -> int:
    """The command line: --guest KIND, --debug."""
    parser = argparse.ArgumentParser(description="A real guest on lockgate's network moves 200 MB each way.")
    parser.add_argument("--guest", choices=KINDS, default="uml")
    parser.add_argument("--debug", action="store_true", help="show the helper's events as they come")
    chosen = parser.parse_args()
    try:
        return demo(chosen.guest, chosen.debug)
    except (GuestFailed, HelperFailed, MissingIngredient) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
