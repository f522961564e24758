# SPDX-License-Identifier: Apache-2.0
"""A download over QUIC: what UDP is mostly used for, by real software on both sides.

Called by the runner. Adversary: nobody.
Invariants: curl in the guest, nginx on this machine's loopback, both of the newer root; the bytes come out of a hole
and are thrown away; a download that ends early is no measurement. That it arrives intact is a test's business.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import http3
import process_cost
from measure import Family, Measure, Settings, Side, Values
from tool_output import downloaded_bits_per_second
from visit import visiting

BYTES_PER_SECOND = 40_000_000  # about what an emulated guest decrypts
RATE_AIM, CPU_AIM = 0.95, 1.0
GIGABYTE = 1e9


def measures(_settings: Settings) -> list[Measure]:
    """Two."""
    return [
        Measure("quic.rate", "QUIC", "a download, MTU by DHCP", "Mbit/s", True, RATE_AIM),
        Measure("quic.cpu", "Helper CPU for each gigabyte of QUIC", "a download", "s/GB", aim=CPU_AIM),
    ]


def run(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    size = round(BYTES_PER_SECOND * settings.seconds)
    with (
        visiting(side, settings, more_files=http3.curl_files()) as visit,
        tempfile.TemporaryDirectory(prefix="lockgate-") as folder,
    ):
        Path(folder).chmod(0o755)
        with open(Path(folder, "file"), "wb") as file:
            file.truncate(size)
        with http3.nginx(Path(folder)) as port:
            show = "-o /dev/null -w '%{size_download} %{speed_download}'"
            before = process_cost.run_seconds(visit.helper.pid)
            output = visit.load(f"{http3.CURL} {show} https://{visit.gateway}:{port}/file", settings.seconds)
            used = process_cost.run_seconds(visit.helper.pid) - before
    values["quic.rate"] = downloaded_bits_per_second(output, size) / 1e6
    values["quic.cpu"] = used / (size / GIGABYTE)


FAMILY = Family("quic", "QUIC", measures, run)
