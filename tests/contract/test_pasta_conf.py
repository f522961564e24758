# SPDX-License-Identifier: Apache-2.0
"""--conf-path of `pasta`: besides ports of the host, those that lead out of a container are changed while it runs, by
our own client and, where there is one, by the real `pesto`.

Adversary: clients, in tests/unit/test_forward_server.py; namespaces as in test_pasta.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pesto_client
import pytest
from host_namespace import Namespace
from pasta_caller import BYTES, CLIENT, SERVER, Pasta, digest, runs, serves
from running import PATIENCE

HEAD = "!B128sII"  # of a table: id, name, capabilities, how many rules
NO_PORTS = "-t none -u none -T none -U none --no-map-gw --quiet"


@pytest.fixture(name="conf")
def socket_of_the_helper(host: Namespace, container: Namespace, tmp_path: Path) -> Iterator[Path]:
    """Of one that has no port yet."""
    conf = tmp_path / "conf"
    pasta = Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", f"-c {conf}", NO_PORTS)
    assert (pasta.status, pasta.told) == (0, "")
    yield conf
    pasta.close()


def tables(conf: Path) -> dict[bytes, list[bytes]]:
    """The rules that the helper has, by the name of their table."""
    found = {}
    with pesto_client.connect(conf) as client, client.makefile("rb") as greeting:
        greeting.read(20)
        while (number := greeting.read(1)) != b"\0":
            _, name, _, count = struct.unpack(HEAD, number + greeting.read(struct.calcsize(HEAD) - 1))
            found[name.rstrip(b"\0")] = [greeting.read(56) for _ in range(count)]
    return found


def out(port: int, to: int) -> bytes:
    """A rule: of any address of the container's loopback interface."""
    return bytes(32) + b"lo".ljust(16, b"\0") + pesto_client.rule(port, to=to)[48:]


def send(conf: Path, inward: list[bytes], outward: list[bytes]) -> None:
    """Both tables, whole; returns when the helper has done it."""
    with pesto_client.connect(conf) as client:
        for number, rules in ((1, inward), (3, outward)):
            client.sendall(struct.pack("!BI", number, len(rules)) + b"".join(rules))
        client.sendall(b"\0")
        while client.recv(4096):
            pass


def passes(here: Namespace, there: Namespace, port: int, target: int) -> None:
    """10 MB, from loopback to loopback or, of a container, to its address."""
    server, _ = serves(there, SERVER, "0.0.0.0", target)
    assert runs(here, CLIENT, "127.0.0.1", port, BYTES).split()[1] == digest()
    assert server.wait(PATIENCE) == 0


def test_ports_that_lead_out_come_and_go(host: Namespace, container: Namespace, conf: Path) -> None:
    """Beside those that lead in; one port may be of both. What both tables name stays."""
    assert tables(conf) == {b"HOST": [], b"SPLICE": []}
    send(conf, [pesto_client.rule(5555, to=80)], [out(5555, 8080), out(5556, 8081)])
    assert tables(conf) == {b"HOST": [pesto_client.rule(5555, to=80)], b"SPLICE": [out(5555, 8080), out(5556, 8081)]}
    passes(host, container, 5555, 80)
    passes(container, host, 5555, 8080)
    passes(container, host, 5556, 8081)
    assert container.does("ss -Htln").count("%lo:") == 2
    send(conf, [], [out(5556, 8082)])
    assert tables(conf) == {b"HOST": [], b"SPLICE": [out(5556, 8082)]}
    assert container.does("ss -Htln").count("%lo:") == 1
    passes(container, host, 5556, 8082)


def test_a_port_that_somebody_has_in_the_container_is_left_out(container: Namespace, conf: Path) -> None:
    """The others are there. It stays in the table, and comes with the next change once it is free."""
    server, _ = serves(container, SERVER, "0.0.0.0", 5555)
    wanted = [out(5555, 8080), out(5556, 8081)]
    send(conf, [], wanted)
    assert tables(conf)[b"SPLICE"] == wanted and container.does("ss -Htln").count("%lo:") == 1
    server.kill()
    server.communicate()
    send(conf, [], wanted)
    assert container.does("ss -Htln").count("%lo:") == 2


def test_ports_lead_out_also_without_splicing(host: Namespace, container: Namespace, tmp_path: Path) -> None:
    """Which is about the way in."""
    conf = tmp_path / "conf"
    options = f"-c {conf} --no-splice -T 5555:8080 -t none -u none -U none"
    pasta = Pasta(host, tmp_path, f"/proc/{container.pid}/ns/net", options, "--no-map-gw --quiet")
    assert tables(conf) == {b"HOST": [], b"SPLICE": [out(5555, 8080)]}
    send(conf, [], [out(5556, 8081)])
    passes(container, host, 5556, 8081)
    pasta.close()


def test_the_real_pesto_sees_both_tables(host: Namespace, container: Namespace, conf: Path) -> None:
    """And adds to each, and deletes."""
    pesto = pesto_client.real_pesto(conf)
    pesto("--add", "-t", "5555:80", "-T", "5556:8081")
    assert sorted(pesto("--show")) == ["TCP [*]%lo:5556 => 8081", "TCP [*]:5555 => 80"]
    passes(host, container, 5555, 80)
    passes(container, host, 5556, 8081)
    pesto("--delete", "-T", "5556:8081")
    assert pesto("--show") == ["TCP [*]:5555 => 80"]
