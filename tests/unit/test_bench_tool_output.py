# SPDX-License-Identifier: Apache-2.0
"""What the benchmark reads out of its tools' output, and that a run which failed never becomes a number.

Adversary: nobody.
"""

from __future__ import annotations

import json

import pytest
from tool_output import (
    Datagrams,
    Queries,
    Requests,
    Transfer,
    downloaded_bits_per_second,
    perf_counts,
    sockperf_percentile,
)

WRK = """Running 1s test @ http://192.0.2.1:5998/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   764.64us  556.33us   6.43ms   95.01%
    Req/Sec     6.23k   324.78     6.72k    80.00%
  6217 requests in 1.01s, 0.89MB read
Requests/sec:   6171.12
Transfer/sec:      0.88MB
"""
SOCKPERF = """sockperf: \x1b[2;35m====> avg-rtt=113.863 (std-dev=326.901)\x1b[0m
sockperf: ---> <MAX> observation = 8188.067
sockperf: ---> percentile 99.000 =  904.168
sockperf: ---> percentile 50.000 =   79.174
"""
PERF = """Events disabled
42,,raw_syscalls:sys_enter,266000988,100.00,,
<not counted>,,syscalls:sys_enter_read,0,100.00,,
17,,syscalls:sys_enter_write,266000988,100.00,,
"""


def test_a_transfer_is_what_the_receiver_got() -> None:
    """Not what the sender handed to its kernel."""
    received = {"bytes": 2_500_000_000, "bits_per_second": 1e10}
    output = json.dumps({"end": {"sum_sent": {"bytes": 9, "bits_per_second": 9}, "sum_received": received}})
    assert Transfer.parse(output) == Transfer(2.5, 10.0)


def test_datagrams_are_counted_by_the_receiver() -> None:
    output = "sent 1000 in 2.000000 s, received 900 in 2.500000 s\n"
    done = Datagrams.parse(output, 100)
    assert done.loss == pytest.approx(0.1)
    assert (done.received, done.sent_bits_per_second, done.received_bits_per_second) == (900, 400_000, 288_000)


def test_datagrams_that_come_at_once_did_not_come_faster_than_they_were_sent() -> None:
    assert Datagrams.parse("sent 2 in 1.000000 s, received 2 in 0.000010 s", 1000).received_bits_per_second == 16000


def test_datagrams_of_which_none_came_are_all_lost() -> None:
    assert Datagrams.parse("sent 9 in 1.000000 s, received 0 in 0.000000 s", 100).loss == 1.0


@pytest.mark.parametrize("output", ["", "sent 0 in 1.000000 s, received 0 in 0.000000 s"])
def test_a_run_that_sent_no_datagram_is_no_measurement(output: str) -> None:
    with pytest.raises(ValueError, match="sent no datagram"):
        Datagrams.parse(output, 100)


def test_queries_are_timed_by_those_that_were_answered() -> None:
    output = "sent 1000 in 2.000000 s, answered 990, half within 300 us, 99 % within 4500 us\n"
    done = Queries.parse(output)
    assert done.lost == pytest.approx(0.01)
    assert (done.answered, done.sent_per_second) == (990, 500)
    assert (done.half_microseconds, done.most_microseconds) == (300, 4500)


@pytest.mark.parametrize("answered", ["", "sent 9 in 1.000000 s, answered 0, half within 0 us, 99 % within 0 us"])
def test_queries_of_which_none_was_answered_are_no_measurement(answered: str) -> None:
    """No answer would be the quickest."""
    with pytest.raises(ValueError, match="got no answer"):
        Queries.parse(answered)


@pytest.mark.parametrize(
    "output",
    ["", "{}", '{"end": {}, "error": "unable to connect"}', '{"end": {"sum_received": {"bytes": 0}}}'],
)
def test_a_transfer_that_moved_nothing_is_no_transfer(output: str) -> None:
    """It would divide by its bytes."""
    with pytest.raises(ValueError):
        Transfer.parse(output)


def test_requests_are_counted_and_timed_by_wrk() -> None:
    """Both numbers of its summary."""
    assert Requests.parse(WRK) == Requests(6217, 6171.12)


@pytest.mark.parametrize(
    "output",
    [
        "",
        WRK.replace("6217 requests", "0 requests"),
        WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        WRK + "  Non-2xx or 3xx responses: 6217\n",
    ],
)
def test_requests_with_failures_are_no_measurement(output: str) -> None:
    """A refusal is quicker than an answer."""
    with pytest.raises(ValueError):
        Requests.parse(output)


def test_a_percentile_is_found_by_its_number() -> None:
    """99 is not 99.9."""
    assert (sockperf_percentile(SOCKPERF, 50), sockperf_percentile(SOCKPERF, 99)) == (79.174, 904.168)
    with pytest.raises(ValueError):
        sockperf_percentile(SOCKPERF, 90)


def test_events_that_were_not_counted_have_no_count() -> None:
    """0 would be a claim."""
    assert perf_counts(PERF) == {"raw_syscalls:sys_enter": 42, "syscalls:sys_enter_write": 17}


def test_a_whole_download_tells_its_speed() -> None:
    assert downloaded_bits_per_second("1000 250\n", 1000) == 2000.0


@pytest.mark.parametrize("output", ["999 250", "curl: (55) sendmsg() returned -1", ""])
def test_a_download_that_ended_early_is_no_measurement(output: str) -> None:
    with pytest.raises(ValueError, match="did not get its 1000 bytes"):
        downloaded_bits_per_second(output, 1000)
