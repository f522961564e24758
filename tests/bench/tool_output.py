# SPDX-License-Identifier: Apache-2.0
"""What iperf3, pace_datagrams, pace_queries, curl, sockperf, wrk and perf print, as numbers.

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
    """A run of pace_datagrams."""

    received: int
    loss: float  # the share of those that the receiver missed
    sent_bits_per_second: float
    received_bits_per_second: float

    @classmethod
    def parse(cls, output: str, size: int) -> Datagrams:
        """Of datagrams of `size` bytes. All lost is a result too, and a run that sent nothing is none."""
        told = re.search(r"sent (\d+) in ([\d.]+) s, received (\d+) in ([\d.]+) s", output)
        if told is None or int(told[1]) == 0:
            raise ValueError(f"pace_datagrams sent no datagram: {output!r}")
        sent, received = int(told[1]), int(told[3])
        seconds = max(float(told[2]), float(told[4]))  # few that come at once were not received any faster
        rate = 8 * size / seconds
        return cls(received, max(0.0, 1 - received / sent), 8 * size * sent / float(told[2]), received * rate)


@dataclass(frozen=True)
class Queries:
    """A run of pace_queries."""

    answered: int
    lost: float  # the share of those that were sent
    sent_per_second: float
    half_microseconds: float
    most_microseconds: float  # within which 99 of 100 answers came

    @classmethod
    def parse(cls, output: str) -> Queries:
        """A run without an answer has no times, and is none."""
        told = re.search(
            r"sent (\d+) in ([\d.]+) s, answered (\d+), half within (\d+) us, 99 % within (\d+) us", output
        )
        if told is None or int(told[3]) == 0:
            raise ValueError(f"pace_queries got no answer: {output!r}")
        sent, answered = int(told[1]), int(told[3])
        return cls(answered, 1 - answered / sent, sent / float(told[2]), float(told[4]), float(told[5]))


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
