# SPDX-License-Identifier: Apache-2.0
"""What iperf3, curl, sockperf, wrk and perf print, as numbers.

Called by the families of measures. Adversary: nobody.
Invariants: pure; a run that did not do what was asked raises ValueError and is no measurement.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """A run of `iperf3 -J`."""

    gigabytes: float  # what the receiver got, wherever that was
    gigabits_per_second: float

    @classmethod
    def parse(cls, output: str) -> Transfer:
        """JSONDecodeError is a ValueError too."""
        told = json.loads(output)
        received = told.get("end", {}).get("sum_received", {})
        if "error" in told or not received.get("bytes"):
            raise ValueError(f"iperf3 moved nothing: {told.get('error', 'it names no bytes')}")
        return cls(received["bytes"] / 1e9, received["bits_per_second"] / 1e9)


@dataclass(frozen=True)
class Datagrams:
    """A run of `iperf3 -u -J`."""

    received: int
    loss: float  # the share of those that the receiver missed, by their numbers
    sent_bits_per_second: float
    received_bits_per_second: float

    @classmethod
    def parse(cls, output: str) -> Datagrams:
        """All lost is a result too, and a run that sent nothing is none."""
        told = json.loads(output)
        end = told.get("end", {})
        sent, received = end.get("sum_sent", {}), end.get("sum_received", {})
        if "error" in told or not sent.get("packets"):
            raise ValueError(f"iperf3 sent no datagram: {told.get('error', 'it names none')}")
        expected = received["packets"]
        arrived = expected - received["lost_packets"]
        loss = received["lost_packets"] / expected if expected else 1.0
        return cls(arrived, loss, sent["bits_per_second"], received["bits_per_second"])


@dataclass(frozen=True)
class Requests:
    """A run of wrk."""

    count: int
    per_second: float

    @classmethod
    def parse(cls, output: str) -> Requests:
        """Every request has to be answered, and well."""
        count, rate = re.search(r"(\d+) requests in", output), re.search(r"Requests/sec: +([\d.]+)", output)
        if count is None or rate is None or int(count[1]) == 0 or "Socket errors" in output or "Non-2xx" in output:
            raise ValueError(f"wrk did not get its answers: {output!r}")
        return cls(int(count[1]), float(rate[1]))


def downloaded_bits_per_second(output: str, size: int) -> float:
    """Of curl's "%{size_download} %{speed_download}", where all of so many bytes have to have come."""
    told = re.fullmatch(r"(\d+) (\d+)\s*", output)
    if told is None or int(told[1]) != size:
        raise ValueError(f"curl did not get its {size} bytes: {output!r}")
    return int(told[2]) * 8.0


def sockperf_percentile(output: str, percentile: int) -> float:
    """Microseconds."""
    found = re.search(rf"percentile {percentile}\.000 = +([\d.]+)", output)
    if found is None:
        raise ValueError(f"sockperf names no percentile {percentile}: {output!r}")
    return float(found[1])


def perf_counts(output: str) -> dict[str, int]:
    """Of `perf stat -x,`: the count of each event; without remarks, and events that could not be counted."""
    lines = [line.split(",") for line in output.splitlines()]
    return {fields[2]: int(fields[0]) for fields in lines if len(fields) > 2 and fields[0].isdigit()}
