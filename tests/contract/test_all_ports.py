# SPDX-License-Identifier: Apache-2.0
"""`-t all -u all`, in a namespace whose ephemeral ports leave some thousands of each protocol.

Adversary: nobody. That many sockets fit the hard limit on open files of most machines, and no soft one.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable

import pytest
from running import Foreground, FrontEnd, descriptors, run

LAST, HELD = 3999, 1234
SOFT_LIMIT = 256
OWN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
SET_UP = f"""
ip link set lo up
echo "{LAST + 1} 65535" >/proc/sys/net/ipv4/ip_local_port_range
ulimit -Sn {SOFT_LIMIT}
exec "$@"
"""
# Somebody else has one of the ports for as long as the helper lives, which this becomes.
HOLDER = f"""
import ctypes, os, signal, socket, sys
held = socket.socket()
held.bind(("", {HELD}))
held.listen()
if not os.fork():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.pause()
held.close()
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(name="prefix")
def namespace() -> list[str]:
    possible = shutil.which("unshare") and not subprocess.run([*OWN_NAMESPACE, "true"], capture_output=True).returncode
    if not possible:
        pytest.skip("this machine does not let us make a user and a network namespace")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3 * LAST:
        pytest.skip(f"the hard limit on open files is below {3 * LAST}")
    return [*OWN_NAMESPACE, "sh", "-euc", SET_UP, "sh"]


def test_all_ports_are_bound_and_the_soft_limit_is_raised(start: Callable[..., Foreground], prefix: list[str]) -> None:
    helper = start("-q", "-t", "all", "-u", "all", prefix=prefix)
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    front_end.reach_worker()  # it has been told of all of them
    assert 2 * LAST < len(descriptors(helper.process.pid)) < 2 * LAST + 32
    assert 2 * LAST < len(descriptors(helper.children()["passt-worker"])) < 2 * LAST + 32


def test_a_port_that_is_missing_is_told_in_one_line(start: Callable[..., Foreground], prefix: list[str]) -> None:
    holds = [*prefix, shutil.which("python3") or "python3", "-c", HOLDER]
    helper = start("-q", "-t", "all", "-u", "all,~1-1000", prefix=holds)
    total = LAST + LAST - 1000
    assert (
        helper.line_with("not forwarded")
        == f"1 of {total} ports are not forwarded: TCP {HELD} (Address already in use)"
    )


def test_too_many_ports_for_the_hard_limit_are_one_sentence(prefix: list[str]) -> None:
    """With what to do."""
    limited = [*prefix, "sh", "-euc", 'ulimit -Hn 1024; exec "$@"', "sh"]
    result = run("-q", "-f", "-t", "all", "-u", "all", prefix=limited)
    assert result.returncode == 1
    assert result.stderr == (
        f"--tcp-ports and --udp-ports: {2 * LAST} ports need a socket each, and the limit on open files leaves 768 for "
        "them; forward fewer ports, or raise the hard limit (ulimit -Hn, or LimitNOFILE= of a systemd unit)\n"
    )
