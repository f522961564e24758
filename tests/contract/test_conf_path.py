# SPDX-License-Identifier: Apache-2.0
"""--conf-path: forwards of a running helper are changed, in a network namespace of its own, by our own client and,
where there is one, by the real `pesto`.

Adversary: clients, in tests/unit/test_forward_server.py; here it is shown that they are kept apart from all else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monitor import GATEWAY, GUEST, GUEST_MAC, Monitor
from pesto_client import UDP, Host, connect, greeted, real_pesto, replace, rule, shown
from running import PATIENCE, Foreground, FrontEnd, kill, name, run, status
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

Begin = Callable[..., Foreground]

OWN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")
ADDRESSES = ("-a", GUEST, "-n", "24", "-g", GATEWAY, "-4")
A, B, C = 8001, 8002, 8003
BIND_PORTS_ONLY = f"{1 << 10:016x}"  # CAP_NET_BIND_SERVICE, <linux/capability.h>
NO_CAPABILITIES = "0" * 16

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which the helper leaves")


@pytest.fixture(name="host")
def own_host() -> Iterator[Host]:
    possible = subprocess.run([*OWN_NAMESPACE, "ip", "link"], capture_output=True)
    if shutil.which("nsenter") is None or possible.returncode:
        pytest.skip(f"no namespaces here: {possible.stderr.decode().strip()}")
    host = Host(*OWN_NAMESPACE)
    yield host
    host.close()


@pytest.fixture(name="conf")
def path_of_the_socket(folder: Path) -> Path:
    return folder / "conf"


@pytest.fixture(name="begin")
def started_there(start: Begin, host: Host, conf: Path) -> Begin:
    """Starts a helper on that host."""

    def begin(*options: str, **settings: object) -> Foreground:
        return start("-c", str(conf), *options, prefix=host.prefix, **settings)

    return begin


def payload(packet: IP) -> bytes:
    """Of TCP, without what fills up a short frame."""
    return bytes(packet)[: packet.len][4 * (packet.ihl + packet[TCP].dataofs) :]


# ---- what becomes of the ports ----


def test_a_table_takes_the_place_of_the_other(begin: Begin, host: Host, conf: Path) -> None:
    """Shown, replaced, and shown again; what is gone is refused, what is new is there."""
    begin("-q", "-t", f"{A}:80", "-u", "5353")
    assert shown(conf) == [rule(A, to=80), rule(5353, protocol=UDP)]
    replace(conf, rule(B, C, 90))
    assert shown(conf) == [rule(B, C, 90)]
    assert host.refusal(A) == errno.ECONNREFUSED
    for port in (B, C):
        host.connects(port).close()
    replace(conf)
    assert shown(conf) == [] and host.refusal(B) == errno.ECONNREFUSED


def test_nobody_is_refused_at_a_port_that_stays(begin: Begin, host: Host, conf: Path) -> None:
    """However often the table around it changes, and wherever the port leads to."""
    begin("-q", "-t", f"{A}")
    connecting = host.connecting(A)
    for turn in range(20):
        replace(conf, rule(A, to=80 + turn % 2), rule(B + turn % 2))
    told, _ = connecting.communicate("", PATIENCE)
    count, errors = told.split(maxsplit=1)
    assert int(count) > 0 and errors == "[0]\n"


def test_a_connection_goes_on_without_its_port(begin: Begin, host: Host, conf: Path) -> None:
    """The guest answers after the port was taken away; both sides speak."""
    helper = begin("-q", "-t", f"{A}:80", *ADDRESSES, stream=True)
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(helper.socket))
    guest = Monitor(end)
    with host.connects(A) as peer:
        syn = guest.receives(TCP)
        assert (syn[IP].src, syn[IP].dst, syn[TCP].dport) == (GATEWAY, GUEST, 80)
        replace(conf)
        assert host.refusal(A) == errno.ECONNREFUSED
        head = Ether(src=GUEST_MAC, dst=syn.src) / IP(src=GUEST, dst=GATEWAY)
        ports = {"sport": 80, "dport": syn[TCP].sport, "ack": syn[TCP].seq + 1, "window": 65535}
        guest.send(bytes(head / TCP(flags="SA", seq=100, options=[("MSS", 1460)], **ports)))
        guest.send(bytes(head / TCP(flags="PA", seq=101, **ports) / b"still here"))
        assert peer.recv(100) == b"still here"
        peer.sendall(b"and here")
        while not (got := payload(guest.receives(TCP)[IP])):
            pass
        assert got == b"and here"
    end.close()


def test_a_port_that_is_taken_is_told_and_the_rest_is_there(begin: Begin, host: Host, conf: Path) -> None:
    """One line with the holder, by name. It stays in the table, can be taken back like others, and be had later."""
    helper = begin("-q", "-t", f"{A}")
    host.holds(B)
    replace(conf, rule(A), rule(B), rule(C))
    line = helper.line_with("not forwarded")
    holder = f"{name(host.process.pid)} (process {host.process.pid})"
    assert line.startswith(f"Ports are not forwarded: TCP port {B} is held by {holder}; ")
    host.connects(C).close()
    assert shown(conf) == [rule(A), rule(B), rule(C)]
    host.holds(0)
    replace(conf, rule(A), rule(B), rule(C))
    assert shown(conf) == [rule(A), rule(B), rule(C)]
    host.connects(B).close()


def test_another_worker_is_told_the_table_as_it_is(begin: Begin, host: Host, conf: Path) -> None:
    """What has come since the start leads to the guest with it too."""
    helper = begin("-d", "-t", f"{A}", *ADDRESSES, environment={"LOCKGATE_LOG_FORMAT": "json"})
    front_end = FrontEnd.connect(helper.socket)
    front_end.negotiate()
    replace(conf, rule(B, to=90))
    kill(helper.children()["passt-worker"])
    helper.line_with("another takes over")
    front_end.reach_worker()
    host.connects(B).close()
    opened = json.loads(helper.line_with("flow.open"))
    assert opened["guest"] == f"{GUEST}:90"


def test_each_change_is_one_event(begin: Begin, conf: Path) -> None:
    """With numbers, and the table as it is now; for those who do not debug, one line."""
    helper = begin("-d", "-t", f"{A}-{B}", environment={"LOCKGATE_LOG_FORMAT": "json"})
    replace(conf, rule(B), rule(C))
    event = json.loads(helper.line_with("forwards.replaced"))
    assert {name: event[name] for name in ("client", "opened", "closed", "kept")} == {
        "client": os.getpid(),
        "opened": 1,
        "closed": 1,
        "kept": 1,
    }
    assert event["table"] == f"TCP *:{B} => {B}, TCP *:{C} => {C}"


def test_ports_are_free_when_the_helper_has_ended(begin: Begin, host: Host, conf: Path) -> None:
    """Those that came later too; the socket's file stays, as it does with passt."""
    helper = begin("-q")
    replace(conf, rule(A))
    host.connects(A).close()
    helper.send(signal.SIGTERM)
    assert helper.wait() == 0
    assert host.refusal(A) == errno.ECONNREFUSED and conf.exists()


# ---- clients ----


def test_a_silent_client_is_in_nobodys_way(begin: Begin, host: Host, conf: Path) -> None:
    """The guest gets its address, peers get through to it; only other clients wait."""
    helper = begin("-q", "-t", f"{A}:80", *ADDRESSES, stream=True)
    with connect(conf) as silent, connect(conf), socket.socket(socket.AF_UNIX) as end:
        greeted(silent)
        silent.sendall(b"\1")
        end.connect(str(helper.socket))
        guest = Monitor(end)
        guest.resolves_gateway()
        guest.discovers()
        with host.connects(A):
            assert guest.receives(TCP)[TCP].dport == 80
        helper.send(signal.SIGTERM)
        assert helper.wait() == 0


@pytest.mark.parametrize(
    "said",
    [b"\2", b"\1\0\0\1\0", b"\1\0\0\0\1" + rule(0) + b"\0", b"\1\0\0\0\1" + rule(A)[:-1]],
    ids=["table", "rules", "port", "half"],
)
def test_a_message_that_is_wrong_changes_nothing(begin: Begin, conf: Path, said: bytes) -> None:
    """Another table, 256 rules, a port 0, or not to its end; one line says so."""
    helper = begin("-q", "-t", f"{C}")
    with connect(conf) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        greeted(client)
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # not all of it was worth reading
    assert helper.line_with("Forwards stay as they are").count(f"process {os.getpid()}") == 1
    assert shown(conf) == [rule(C)]


# ---- the socket ----


def test_the_mode_of_the_socket_is_what_the_umask_leaves(start: Begin, conf: Path) -> None:
    start("-q", "-c", str(conf), prefix=["sh", "-c", 'umask 027; exec "$@"', "sh"])
    assert stat.S_IMODE(conf.stat().st_mode) == 0o750


def test_a_stale_file_gives_way_and_a_living_helper_does_not(start: Begin, folder: Path, conf: Path) -> None:
    conf.write_text("left behind")
    start("-q", "-c", str(conf))
    assert shown(conf) == []
    result = run("--vhost-user", "-f", "-s", str(folder / "other"), "-c", str(conf))
    assert result.returncode == 1
    assert result.stderr == f"--conf-path {conf} is already in use; stop the other helper, or name another path\n"
    assert shown(conf) == []


# ---- rights ----


@as_root
def test_of_all_of_roots_rights_the_keeper_keeps_that_to_ports(start: Begin, conf: Path) -> None:
    """And only where somebody may ask for ports; its children have none in any case."""
    host = Host("unshare", "--net")
    helper = start("-q", "-c", str(conf), prefix=host.prefix)
    replace(conf, rule(80))
    host.connects(80).close()
    facts = status(helper.process.pid)
    for kind in ("CapPrm", "CapEff"):
        assert facts[kind] == BIND_PORTS_ONLY
    assert facts["CapInh"] == facts["CapAmb"] == NO_CAPABILITIES
    assert set(facts["Uid"].split()) == {"65534"}
    for child in helper.children().values():
        assert status(child)["CapPrm"] == NO_CAPABILITIES
    host.close()


@as_root
def test_without_the_option_the_keeper_keeps_no_right(start: Begin) -> None:
    helper = start("-q")
    assert status(helper.process.pid)["CapPrm"] == NO_CAPABILITIES


# ---- the real client ----


def test_the_real_pesto(begin: Begin, host: Host, conf: Path) -> None:
    """Each of its commands, and the ports that follow. It goes before its wish is granted; the next one waits."""
    pesto = real_pesto(conf)
    begin("-q", "-t", f"{A}:80", "-u", f"127.0.0.1%lo/{A}")
    first, datagrams = f"TCP [*]:{A} => 80", f"UDP [127.0.0.1]%lo:{A} => {A}"
    assert pesto("--show") == [first, datagrams]
    assert pesto("-s", "-A", "-t", f"{B}-{C}") == [first, datagrams, first, datagrams, f"TCP [*]:{B}-{C} => {B}-{C}"]
    assert pesto("-s") == [first, datagrams, f"TCP [*]:{B}-{C} => {B}-{C}"]  # served when the one before is done with
    host.connects(C).close()
    pesto("-D", "-t", f"{A}:80")
    assert pesto("-s") == [datagrams, f"TCP [*]:{B}-{C} => {B}-{C}"]
    assert host.refusal(A) == errno.ECONNREFUSED
    pesto("-t", f"{A},{B}:90", "-u", "53:5353")
    assert pesto("-s") == [f"TCP [*]:{A} => {A}", f"TCP [*]:{B} => 90", "UDP [*]:53 => 5353"]
    pesto("-t", f"127.0.0.1/{A}:{GUEST}/81")
    assert pesto("-s") == [f"TCP [127.0.0.1]:{A} => {GUEST}:81"]
    host.connects(A).close()
    pesto("-C", "HOST")
    assert pesto("-s") == [] and host.refusal(A) == errno.ECONNREFUSED
