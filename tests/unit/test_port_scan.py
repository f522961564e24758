# SPDX-License-Identifier: Apache-2.0
"""plugin/port_scan.py: who listens, from the kernel's text, and from the kernel itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import port_scan
from lockgate.plugin.contracts.forward_spec import TCP, UDP

HEAD4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
HEAD6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue\n"


def row(number: int, port: int, state: str, ip: str = "00000000") -> str:
    queues = "00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0"
    return f"{number:4}: {ip}:{port:04X} {'0' * len(ip)}:0000 {state} {queues}\n"


@pytest.fixture(name="tables")
def tables_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[port_scan.Tables]:
    """Two of them, without any socket at first."""
    for name in ("tcp", "udp"):
        (tmp_path / name).write_text(HEAD4)
    monkeypatch.setattr(port_scan, "_FILES", {str(tmp_path / "tcp"): TCP, str(tmp_path / "udp"): UDP})
    made = port_scan.opened_here(port_scan.files_of_host())
    yield made
    made.close()


def test_what_listens_is_found_whatever_its_address() -> None:
    text = HEAD4 + row(0, 22, "0A") + row(1, 8080, "0A", "0100007F") + row(2, 22, "01") + row(3, 40000, "06")
    assert port_scan.listening(TCP, text.encode()) == {22, 8080}
    text = HEAD6 + row(0, 443, "0A", 32 * "0") + row(10000, 65535, "0A", "0000000000000000FFFF00000100007F")
    assert port_scan.listening(TCP, text.encode()) == {443, 65535}
    text = HEAD4 + row(0, 53, "07") + row(1, 40001, "01") + row(17, 10, "07")
    assert port_scan.listening(UDP, text.encode()) == {53, 10}


def test_a_table_without_sockets_has_no_ports() -> None:
    assert port_scan.listening(TCP, b"") == port_scan.listening(UDP, HEAD4.encode()) == set()


@given(st.lists(st.tuples(st.integers(0, 65535), st.sampled_from(["01", "06", "07", "0A"]))))
def test_each_protocol_has_one_state_that_counts(sockets: list[tuple[int, str]]) -> None:
    text = HEAD4 + "".join(row(number, port, state) for number, (port, state) in enumerate(sockets))
    for protocol, counts in ((TCP, "0A"), (UDP, "07")):
        assert port_scan.listening(protocol, text.encode()) == {port for port, state in sockets if state == counts}


def test_our_own_ports_lead_nowhere() -> None:
    """Else what leads into a namespace would lead out of it again."""
    seen = {TCP: {80, 81}, UDP: {53, 54}}
    assert port_scan.others(seen, {TCP: {81}, UDP: {54}}) == {TCP: {80}, UDP: {53, 80}}
    assert port_scan.others(seen, {TCP: set(), UDP: {81}}) == {TCP: {80, 81}, UDP: {53, 54, 80}}
    assert port_scan.others({TCP: set(), UDP: set()}, seen) == {TCP: set(), UDP: set()}


def test_a_look_says_whether_ports_have_come_or_gone(tables: port_scan.Tables, tmp_path: Path) -> None:
    """Not whether anything else has: queues, connections, sockets in another order."""
    assert not tables.look() and tables.seen == {TCP: set(), UDP: set()}
    (tmp_path / "tcp").write_text(HEAD4 + row(0, 80, "0A") + row(1, 81, "0A"))
    assert tables.look() and tables.seen == {TCP: {80, 81}, UDP: set()}
    (tmp_path / "tcp").write_text(HEAD4 + row(0, 81, "0A") + row(1, 80, "0A") + row(2, 80, "01"))
    assert not tables.look()
    (tmp_path / "udp").write_text(HEAD4 + row(0, 53, "07"))
    (tmp_path / "tcp").write_text(HEAD4 + row(1, 80, "0A"))
    assert tables.look() and tables.seen == {TCP: {80}, UDP: {53}}


def test_no_more_is_read_than_is_of_use(tables: port_scan.Tables, tmp_path: Path) -> None:
    """Of TCP, the connections behind what listens; of any table, what a container piles up without end."""
    many = "".join(row(number, number % 60000, "0A") for number in range(2000))
    (tmp_path / "tcp").write_text(HEAD4 + many + row(0, 5, "01") * 2000 + row(0, 64000, "0A"))
    assert tables.look() and tables.seen[TCP] == set(range(2000))
    (tmp_path / "udp").write_text(HEAD4 + row(0, 53, "07") * 20000 + row(0, 54, "07"))
    assert tables.look() and tables.seen[UDP] == {53}


def test_the_kernels_own_tables_are_read_anew() -> None:
    """Of this machine, through files that stay open."""
    tables = port_scan.opened_here(port_scan.files_of_host())
    assert len(tables.descriptors) in (2, 4)
    tables.look()
    before = tables.seen
    listener, bound = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    ports = {TCP: listener.getsockname()[1], UDP: bound.getsockname()[1]}
    assert tables.look()
    assert all(port in tables.seen[protocol] and port not in before[protocol] for protocol, port in ports.items())
    listener.close()
    bound.close()
    assert tables.look()
    assert all(port not in tables.seen[protocol] for protocol, port in ports.items())
    tables.close()
