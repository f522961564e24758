# SPDX-License-Identifier: Apache-2.0
"""`make bench`: a guest behind our helper and behind another in turn, and how they compare.

The guest is a machine that is booted (see machine.py), with GUEST=gvproxy as `podman machine` boots it, or with
GUEST=pasta a network namespace as that of a container, or with GUEST=podman a real container.

Called by the Makefile; a person reads it. Adversary: nobody.
Invariants: A B A B …, each family of measures with a guest of its own on either side; the results are written after
every pair, and an interrupted run reports the pairs that it completed; a visit that fails costs its pair and is named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import datagrams
import gvproxy_names
import gvproxy_rest
import gvproxy_throughput
import idle_flows
import machine
import pasta_datagrams
import pasta_requests
import pasta_rest
import pasta_stalls
import pasta_throughput
import picture
import podman_run
import quic
import readiness
import report
import request_response
import servers
import stalls
import stream_link
import system_calls
import throughput
from container import LoadFailed
from guest import GuestFailed
from helper import OUR_COMMAND, ROOT, HelperFailed
from image import MissingIngredient
from measure import MACHINE, OURS, PEER, Family, Settings, Side, Values

MACHINE_FAMILIES = (
    throughput.FLOOR,
    throughput.FAMILY,
    stream_link.FAMILY,
    datagrams.FAMILY,
    quic.FAMILY,
    request_response.FAMILY,
    stalls.FAMILY,
    idle_flows.FAMILY,
    readiness.FAMILY,
    system_calls.FAMILY,
)
GVPROXY_FAMILIES = (
    throughput.FLOOR,
    gvproxy_throughput.FAMILY,
    gvproxy_names.FAMILY,
    gvproxy_rest.REST,
    gvproxy_rest.READY,
)
GVPROXY_GUESTS = ("gvproxy", "gvproxy-peer")  # the latter with QEMU of the other root
FAMILIES = {
    "pasta": (
        throughput.FLOOR,
        pasta_throughput.TAP,
        pasta_throughput.LOOPBACK,
        pasta_datagrams.FAMILY,
        pasta_requests.FAMILY,
        pasta_stalls.FAMILY,
        pasta_rest.REST,
        pasta_rest.READY,
    ),
    "podman": (podman_run.FAMILY,),
}
FAMILIES |= dict.fromkeys(machine.KINDS, MACHINE_FAMILIES) | dict.fromkeys(GVPROXY_GUESTS, GVPROXY_FAMILIES)
# By guest, with what its caller says; the families for pasta say more.
PROGRAMS = dict.fromkeys(("pasta", "podman"), ("pasta", ""))
PROGRAMS |= dict.fromkeys(machine.KINDS, ("passt", " --vhost-user -s {socket} -f -1"))
PODMANS = " -mtu 1500 -ssh-port {port} -listen-qemu unix://{socket} -pid-file {socket}.pid -log-file {socket}.log"
PROGRAMS |= dict.fromkeys(GVPROXY_GUESTS, ("gvproxy", PODMANS))
OUTPUT = ROOT / "build" / "bench"
FLOWS = 10_000
DESCRIPTORS = 1 << 16
DESCRIPTORS_FOR_FLOWS = 2  # passt takes a timer beside the socket
DESCRIPTORS_SPARED = 400  # its pools and listeners, and ours
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
# How long an idle processor of a VM spins before it is the hypervisor's, in ns. With 0, to wake it takes tens of
# microseconds, and the kernel rather has helper and guest take turns on one: then the rate is that of their sum.
HALT_POLL = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
FAILURES = (
    *(GuestFailed, HelperFailed, LoadFailed, servers.ServerFailed, system_calls.PerfFailed, ValueError, OSError),
    MissingIngredient,  # of a family that needs more than the chosen guest
)


def default_ours(guest: str) -> str:
    """Of this tree."""
    name, options = PROGRAMS[guest]
    return shlex.quote(str(Path(OUR_COMMAND).with_name(name))) + options


def default_peer(guest: str) -> str | None:
    """Of the other root that machine.py knows, else of PATH; None if there is none but ours."""
    name, options = PROGRAMS[guest]
    root, run = os.environ.get("LOCKGATE_PEER_ROOT"), os.environ.get("LOCKGATE_PEER_RUN")
    if root and run and Path(root, "usr/bin", name).exists():
        return f"{run} {name}{options}"
    found = shutil.which(name)
    return f"{found}{options}" if found and not _is_ours(found) else None


def _is_ours(program: str) -> bool:
    """By its version, or by what lies beside it: the version of our gvproxy is that of the one that it stands for."""
    beside = Path(program).resolve().with_name("lockgate")
    return beside.exists() or "lockgate" in _version(Side(PEER, program))


def _title(guest: str) -> str:
    """What the guest is."""
    if guest == "pasta":
        return "a network namespace of this machine"
    if guest == "podman":
        return "a container of rootless Podman in the other root"
    if guest in GVPROXY_GUESTS:
        return f"{machine.find(stream_link.kind(guest)).title}, as a machine of Podman's"
    return machine.find(guest).title


def _host() -> str:
    """What decides the figures besides the helper."""
    parts = [f"Linux {platform.release()}", f"{os.cpu_count()} processors", CONGESTION_CONTROL.read_text().strip()]
    if HALT_POLL.exists():
        parts.append(f"idle processors polled for {int(HALT_POLL.read_text()) // 1000} µs")
    return ", ".join(parts)


def _version(side: Side) -> str:
    asked = [*side.runner, side.words[0], "--version"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout
    except OSError as error:
        raise MissingIngredient(f"{side.name}: {shlex.join(asked)}: {error.strerror}") from error


def flows_possible() -> int:
    """How many idle flows either helper can have under this machine's limit on descriptors, in hundreds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(DESCRIPTORS, hard)))
    except (ValueError, PermissionError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    have, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(FLOWS, (have - DESCRIPTORS_SPARED) // DESCRIPTORS_FOR_FLOWS // 100 * 100)


def visits(families: Sequence[Family], sides: Sequence[Side]) -> Iterator[tuple[Family, str, Side]]:
    """One pair's visits in order, each with the side under which its values are kept."""
    for family in families:
        if family.without_helper:
            yield family, MACHINE, sides[0]
        else:
            for side in sides:
                yield family, side.name, side


def measure_pair(
    number: int, families: Sequence[Family], sides: Sequence[Side], settings: Settings, results: report.Results
) -> None:
    """Fills one pair of the results; KeyboardInterrupt leaves what is complete."""
    pair: report.PairValues = {}
    results.pairs.append(pair)
    for family, name, side in visits(families, sides):
        began = time.monotonic()
        values: Values = {}
        try:
            family.run(side, settings, values)
            end = ""
        except FAILURES as failure:
            first, _, rest = str(failure).partition("\n")
            results.failures.append(f"pair {number}, {family.title}, {name}: {first}")
            end = f"  FAILED: {first}\n{rest}"
        pair.setdefault(name, {}).update(values)
        print(f"pair {number:>2}  {family.title:<16} {name:<8}{time.monotonic() - began:5.0f} s{end}", flush=True)


def save(results: report.Results, path: Path) -> None:
    """PATH.json, and PATH.svg if there is something to see."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.json").write_text(json.dumps(report.as_json(results), indent=1, ensure_ascii=False) + "\n")
    if rows := report.rows(results):
        beside = f" beside {results.about['peer']}" if results.has_peer else ""
        title = f"lockgate{beside}"
        subtitle = (
            f"{results.about['guest']}. Alternating pairs: {report.fewest_pairs(rows)}. "
            "Bars: median, with 10th to 90th percentile. ×: median of the paired ratios, with its 90 % interval."
        )
        Path(f"{path}.svg").write_text(picture.draw(title, subtitle, rows))


def arguments() -> argparse.Namespace:
    """The command line, which the Makefile fills."""
    parser = argparse.ArgumentParser(description="Ours and another helper, one after the other, behind a real guest.")
    parser.add_argument("--guest", choices=tuple(FAMILIES), default="uml")
    parser.add_argument("--peer", default="", help="its command line with {socket}; none; else the one that is here")
    parser.add_argument("--ours", default="")
    parser.add_argument("--pairs", type=int, default=report.PAIRS_FOR_A_CLAIM)
    parser.add_argument("--seconds", type=float, default=3, help="of load for each value")
    parser.add_argument("--idle-seconds", type=float, default=10, help="of each window without load")
    parser.add_argument("--processor", default="", help="a number: the guest is bound to it, see visit.py")
    parser.add_argument("--only", default="", help="names of families, which depend on the guest")
    chosen = parser.parse_args()
    names = [family.name for family in FAMILIES[chosen.guest]]
    for command in (chosen.ours, chosen.peer):
        if "{socket}" in PROGRAMS[chosen.guest][1] and command not in ("", "none") and "{socket}" not in command:
            parser.error(f"{command}: expected {{socket}} where the path of its socket goes")
    chosen.families = chosen.only.replace(",", " ").split() or names
    if unknown := set(chosen.families) - set(names):
        parser.error(f"--only {' '.join(unknown)}: expected some of {' '.join(names)}")
    return chosen


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def bench(chosen: argparse.Namespace) -> report.Results:
    """The whole run."""
    peer = default_peer(chosen.guest) if not chosen.peer else None if chosen.peer == "none" else chosen.peer
    sides = [Side(OURS, chosen.ours or default_ours(chosen.guest))] + ([Side(PEER, peer)] if peer else [])
    processor = int(chosen.processor) if chosen.processor else None
    peer_program = sides[-1].program if peer else ""
    settings = Settings(chosen.guest, chosen.seconds, chosen.idle_seconds, flows_possible(), processor, peer_program)
    families = [family for family in FAMILIES[chosen.guest] if family.name in chosen.families]
    about: dict[str, object] = {side.name: _version(side).partition("\n")[0] for side in sides}
    about.setdefault(PEER, "none: none was found here" if not chosen.peer else "none")
    about |= {f"{side.name} is": side.command for side in sides}
    about |= {
        "guest": _title(chosen.guest) + (f", bound to processor {processor}" if chosen.processor else ""),
        "host": _host(),
        "settings": f"{chosen.seconds:g} s of load, {chosen.idle_seconds:g} s of silence",
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    measures = [measure for family in families for measure in family.measures(settings)]
    results = report.Results(about, measures, peer is not None)
    bound = ["bound"] if chosen.processor else []
    other = [peer_program] if peer_program not in ("", PROGRAMS[chosen.guest][0]) else []
    path = OUTPUT / "-".join([chosen.guest, *other, *bound, *chosen.only.replace(",", " ").split()])
    try:
        for number in range(1, chosen.pairs + 1):
            measure_pair(number, families, sides, settings, results)
            save(results, path)
    except KeyboardInterrupt:
        print("interrupted: what follows is of the complete pairs", flush=True)
        save(results, path)
    print(f"\n{report.text(results)}\n{path}.json, {path}.svg")
    return results


def main() -> int:
    """Status 1 if nothing could be measured."""
    chosen = arguments()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return 0 if report.rows(bench(chosen)) else 1
    except MissingIngredient as missing:
        print(f"bench: {missing}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
