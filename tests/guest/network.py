# SPDX-License-Identifier: Apache-2.0
"""A helper with a guest behind it, in each of the variants that the tests run in.

Called by conftest.py. Adversary: nobody.
Invariants: the addresses are given on the command line, so that nothing depends on this machine's own network; the
guest reaches this machine's loopback through its gateway's addresses, which is the contract's default mapping.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import machine
import pytest
from data_server import DataServer
from free_ports import free_ports
from guest import Guest, Result
from helper import OUR_COMMAND, ROOT, Helper
from image import MissingIngredient

ADDRESS, PREFIX, GATEWAY = {4: "10.77.0.15", 6: "fd77::15"}, {4: 24, 6: 64}, {4: "10.77.0.1", 6: "fd77::1"}
OPTIONS = f"-a {ADDRESS[4]} -n {PREFIX[4]} -g {GATEWAY[4]} -a {ADDRESS[6]} -g {GATEWAY[6]}"
# RFC 4862, 5.4; and the first question for a router is not put off, which is for the sake of links with many machines.
NO_DETECTION = "cd /proc/sys/net/ipv6/conf/eth0; echo 0 >dad_transmits; echo 0 >router_solicitation_delay"
SANITIZED_COMMAND = str(ROOT / ".venv-asan" / "bin" / "passt")
SANITIZER_REPORT = re.compile(r"ERROR: \w+Sanitizer.*|.*runtime error: .*")
FRAME = re.compile(r"\((\S+_datapath\S*\.so)\+(0x[0-9a-f]+)\)")
FRAMES_SHOWN = 6


def sanitizer_environment() -> dict[str, str]:
    """For a module built with -fsanitize=address,undefined in a Python that was not.

    AddressSanitizer has to be the first library of the process, and `python -I` keeps LD_PRELOAD, which is the dynamic
    linker's. Reports go to standard error (the worker has no root to write a file in). Leaks are not looked for: that
    needs ptrace, and the interpreter keeps memory until its end anyway.
    """
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    return {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def sanitizer_report(errors: str) -> str | None:
    """The first report in what a helper wrote, with the places in the source; None if there is none.

    The worker has no root to look its own symbols up in, so addr2line does it here.
    """
    found = SANITIZER_REPORT.search(errors)
    if found is None:
        return None
    places = []
    for module, offset in FRAME.findall(errors[found.end() :])[:FRAMES_SHOWN]:
        looked_up = subprocess.run(["addr2line", "-f", "-s", "-e", module, offset], capture_output=True, text=True)
        places.append(looked_up.stdout.replace("\n", " "))
    return "\n".join([found[0], *places])


@dataclass(frozen=True)
class Variant:
    """What is booted, on which build of the helper."""

    name: str
    kind: str
    sanitized: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def helper(self, name: str, options: str, prefix: Sequence[str] = ()) -> Helper:
        """The helper of this variant, listening; started by the command `prefix`, which execs what follows it."""
        link = "" if self.kind.endswith("-stream") else "--vhost-user"
        if self.sanitized:
            environment = {**self.environment, **sanitizer_environment()}
            started = Helper(name, options, SANITIZED_COMMAND, environment, link=link, prefix=prefix)
        else:
            started = Helper(name, options, None, self.environment, link=link, prefix=prefix)
        started.wait_ready()
        return started

    def reason_to_skip(self) -> str | None:
        """Why another helper than ours cannot run in this variant."""
        other = os.environ.get("LOCKGATE_TEST_HELPER", OUR_COMMAND) != OUR_COMMAND
        return f"{self.name} is about our own build, another helper is tested" if other and self._is_ours else None

    @property
    def _is_ours(self) -> bool:
        return self.sanitized or bool(self.environment)


VARIANTS = [
    Variant("uml", "uml"),
    Variant("uml-discard", "uml", environment={"LOCKGATE_TCP_PEEK": "discard"}),
    Variant("uml-sanitized", "uml", sanitized=True),
    Variant("qemu", "qemu"),
    Variant("qemu-stream", "qemu-stream", sanitized=True),
    Variant("uml-peer", "uml-peer"),
    Variant("qemu-peer", "qemu-peer"),
    Variant("qemu-peer-stream", "qemu-peer-stream"),
]
SMALL_VARIANTS = [Variant("qemu-small", "qemu-small"), Variant("qemu-small-stream", "qemu-small-stream")]
VARIANT = {variant.name: variant for variant in [*VARIANTS, *SMALL_VARIANTS]}


def usable(variant: Variant) -> Variant:
    """The variant, unless it cannot be run: newer peers are an offer, the two guests of Debian are not."""
    if reason := variant.reason_to_skip():
        pytest.skip(reason)
    try:
        machine.find(variant.kind)
    except MissingIngredient as missing:
        if "-peer" in variant.kind:
            pytest.skip(str(missing))
        raise
    return variant


WEB, ECHO, NOBODY = 8080, 7007, 9999  # of the guest


@dataclass(frozen=True)
class Ports:
    """Of this machine, and they lead to those of a guest."""

    web: int
    nobody: int
    echo: int

    @classmethod
    def free(cls) -> Ports:
        return cls(*free_ports(socket.SOCK_STREAM, 2), *free_ports(socket.SOCK_DGRAM, 1))

    @property
    def options(self) -> str:
        return f"-t {self.web}:{WEB},{self.nobody}:{NOBODY} -u {self.echo}:{ECHO}"


class Network:
    """A booted guest with addresses, its helper, and a data server on this machine's loopback."""

    def __init__(
        self,
        variant: Variant,
        server: DataServer,
        more_programs: Mapping[str, str] | None = None,
        more_modules: tuple[str, ...] = (),
        families: str = "inet inet6",
        more_options: str = "",
        prefix: Sequence[str] = (),
        more_files: Mapping[str, bytes] | None = None,
        logs: str = "",
        detection: bool = False,
        ports: Ports | None = None,
    ) -> None:
        """`logs`: what its logs are called, if not as the variant: two networks at a time need two names. `detection`:
        the guest first asks whether others have its IPv6 addresses, which takes three seconds."""
        self.variant = variant
        self.server = server
        self._families = families
        self._detection = detection
        self.ports = ports
        name = logs or variant.name
        more = f"{more_options} {ports.options if ports else ''}"
        self.helper = variant.helper(name, f"-1 {OPTIONS} {more}", prefix)
        try:
            self.guest = Guest.boot(
                name,
                variant.kind,
                self.helper.socket,
                more_programs=more_programs,
                more_modules=more_modules,
                more_files=more_files,
            )
        except BaseException:
            self.helper.close()
            raise

    @cached_property
    def addressed(self) -> bool:
        """Brings the guest's network up, once."""
        if not self._detection:
            self.guest.output(NO_DETECTION)
        self.guest.network_up(self._families)
        return True

    def client(self, family: int, request: str, port: int | None = None, flags: str = "") -> str:
        """The command line of the guest's client program, to this machine's loopback; see client.c."""
        return f"client {flags} -r '{request}' {GATEWAY[family]} {port or self.server.port}"

    def run(self, command: str, timeout: float = 60) -> Result:
        """Runs a command in the guest once it is on the network."""
        assert self.addressed
        return self.guest.run(command, timeout)

    def close(self) -> None:
        """Ends both; a report of a sanitizer is a failure, whatever the tests saw."""
        self.guest.kill()
        try:
            self.helper.wait_exit()  # what it finds at its own end counts too
        finally:
            self.helper.close()
        report = sanitizer_report(self.helper.errors())
        assert report is None, f"{report}\nall of it is in {self.helper.log}"
