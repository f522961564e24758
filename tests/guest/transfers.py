# SPDX-License-Identifier: Apache-2.0
"""Connections of the guest that run in the background while a test looks at something else, and how each ended.

Called by the tests about stalls. Adversary: nobody.
Invariants: a reader that is to be stopped stops itself before its first read, so that there is nothing to race with;
the files of the former transfers are gone when the next ones start.
"""

from __future__ import annotations

from dataclasses import dataclass

from network import Network

STOP = "sh -c 'echo $$ >>/tmp/stopped; kill -STOP $$; exec cat' |"  # in a pipe: reads nothing until it is sent SIGCONT
FILES = "/tmp/end.* /tmp/error.* /tmp/sum.* /tmp/stopped"
ANSWER_SECONDS = 60


@dataclass(frozen=True)
class End:
    """How one connection ended."""

    status: int  # of client.c
    digest: str  # of what it read from the connection
    error: str = ""


def start(network: Network, request: str, count: int = 1, port: int | None = None, stopped: bool = False) -> None:
    """Opens connections that send the request and read to the end; `stopped` ones read nothing before `go_on`."""
    client = f"({network.client(4, request, port)} </dev/null 2>/tmp/error.$n; echo $? >/tmp/end.$n)"
    one = f"{client} | {STOP if stopped else ''} sha256sum >/tmp/sum.$n"
    assert network.addressed
    network.guest.output(f"rm -f {FILES}; for n in $(seq {count}); do {one} & done")


def wait_stopped(network: Network, count: int) -> None:
    """Until so many have stopped themselves: whoever is told to go on before that stops for ever."""
    stopped = "cat $(sed 's|.*|/proc/&/status|' /tmp/stopped) 2>/dev/null | grep -c 'State:.T'"
    network.guest.output(f"until [ $({stopped}) = {count} ]; do sleep 0.05; done", ANSWER_SECONDS)


def go_on(network: Network) -> None:
    """Lets those that were stopped read."""
    network.guest.output("kill -CONT $(cat /tmp/stopped)")


def ends(network: Network, count: int = 1) -> list[End]:
    """Waits for all of them."""
    wait = f"until [ $(cat /tmp/sum.* | wc -l) = {count} ]; do sleep 0.05; done"
    one = "echo $(cat $end) $(cut -d' ' -f1 /tmp/sum.$n) $(cat /tmp/error.$n)"
    show = f"for end in /tmp/end.*; do n=${{end##*.}}; {one}; done"
    lines = network.guest.output(f"{wait}; {show}", ANSWER_SECONDS).splitlines()
    found = [(line.split(maxsplit=2) + [""])[:3] for line in lines]
    return [End(int(status), digest, error) for status, digest, error in found]
