# SPDX-License-Identifier: Apache-2.0
"""pace_queries with a resolver of this test: what counts as an answer, and what becomes of queries that get none.

Adversary: nobody.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from image import compiled
from tool_output import Queries

NAME, ADDRESS = "host.containers.internal", "192.168.127.254"
QUESTION = b"\x04host\x0acontainers\x08internal\x00\x00\x01\x00\x01"
HEADER_BYTES = 12
PORTS = 16


@dataclass
class Run:
    """What the resolver saw, and what the program said of it."""

    queries: list[bytes] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    replies: int = 0
    status: int = 0
    output: str = ""


def answer(query: bytes, address: str = ADDRESS) -> bytes:
    """With one record, whose name is a pointer to the question's."""
    record = b"\xc0\x0c\x00\x01\x00\x01" + bytes(4) + b"\x00\x04" + socket.inet_aton(address)
    return query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[HEADER_BYTES:] + record


def run_with(replies: Callable[[int, bytes], list[bytes]]) -> Run:
    """A run of some thirty queries; `replies` says what the resolver sends for the first, second, … of them."""
    run = Run()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        port = str(resolver.getsockname()[1])
        command = [str(compiled("pace_queries")), "127.0.0.1", port, NAME, ADDRESS, "1000", "30"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            ended = os.pidfd_open(process.pid)
            while ended not in select.select([resolver.fileno(), ended], [], [])[0]:
                query, asker = resolver.recvfrom(512)
                for reply in replies(len(run.queries), query):
                    resolver.sendto(reply, asker)
                    run.replies += 1
                run.queries.append(query)
                run.ports.add(asker[1])
            os.close(ended)
            run.output, run.status = process.communicate()[0], process.returncode
    return run


def test_every_query_is_the_same_question_with_a_number_of_its_own_from_ports_in_turn() -> None:
    run = run_with(lambda _, query: [answer(query)])
    assert {query[2:] for query in run.queries} == {b"\x01\x00\x00\x01" + bytes(6) + QUESTION}
    assert [int.from_bytes(query[:2], "big") for query in run.queries] == list(range(len(run.queries)))
    assert len(run.ports) == min(PORTS, len(run.queries))


def test_an_answer_counts_once() -> None:
    run = run_with(lambda _, query: [answer(query), answer(query)])
    told = Queries.parse(run.output)
    assert (run.status, told.lost) == (0, 0.0)
    assert told.half_microseconds <= told.most_microseconds


def test_a_query_without_an_answer_is_told_at_the_end() -> None:
    run = run_with(lambda number, query: [answer(query)] if number % 3 == 0 else [])
    assert run.status == 0
    assert Queries.parse(run.output).answered == run.replies < len(run.queries)


def test_another_address_is_no_answer() -> None:
    run = run_with(lambda _, query: [answer(query, "192.168.127.1")])
    assert run.status == 1 and "not the expected address" in run.output


def test_an_error_is_no_answer() -> None:
    run = run_with(lambda _, query: [query[:2] + b"\x81\x83" + query[4:] + bytes(4)])
    assert run.status == 1 and "it is an error" in run.output
