# SPDX-License-Identifier: Apache-2.0
"""plugin/port_scan.py: who listens, from the kernel's text, and from the kernel itself."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin import port_scan
from lockgate.plugin.forward_rule import TCP, UDP

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
    made = port_scan.opened_here([str(tmp_path / name) for name in ("tcp", "udp")])
    yield made
    made.close()


def message(port: int, kind: int = 20, attributes: bytes = b"") -> bytes:
    body = struct.pack("!BBBBHH64x", 2, 10, 0, 0, port, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 0, 0) + body + bytes(-len(body) % 4)


DONE = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)


def test_what_netlink_says_is_put_together_of_its_pieces() -> None:
    """Records may have something behind them that is not looked into."""
    piece = message(80) + message(65535, attributes=b"\5\0\1\0\1") + message(22)
    heard = port_scan.heard(piece)
    assert (heard.ports, heard.over, heard.error) == ({80, 65535, 22}, False, 0)
    heard = port_scan.heard(message(81) + DONE)
    assert (heard.ports, heard.over, heard.error) == ({81}, True, 0)
    for kind in (2, 3):  # an error that comes at once, and one that comes as the end
        heard = port_scan.heard(struct.pack("=IHHIIi", 20, kind, 0, 0, 0, -errno.ENOENT) + bytes(72))
        assert (heard.ports, heard.over, heard.error) == (set(), True, errno.ENOENT)


@given(st.binary(max_size=200))
def test_no_bytes_of_netlink_are_more_than_the_end(noise: bytes) -> None:
    port_scan.heard(noise)
    port_scan.heard(message(80) + noise)


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


FILES = ["/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6"]


@pytest.mark.parametrize("names", [FILES, port_scan.ways()], ids=["files", "what this machine has"])
def test_the_kernels_own_lists_are_read_anew(names: list[str]) -> None:
    """Through what stays open."""
    tables = port_scan.opened_here(names)
    assert len(tables.descriptors) == len(names)
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


def test_a_kernel_without_netlinks_list_has_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is no such socket, or no answer for a protocol."""
    monkeypatch.setattr(port_scan, "_QUERIES", [(socket.AF_INET, TCP), (socket.AF_INET, 254)])
    monkeypatch.setitem(port_scan._STATES, 254, b"07")
    assert port_scan.ways() == FILES
    monkeypatch.setattr(port_scan, "_NETLINK_SOCK_DIAG", 31)
    assert port_scan.ways() == FILES


def test_a_list_that_is_too_long_for_one_look_goes_on_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has come to its end, what was seen before is what is there."""
    if port_scan.ways() == FILES:
        pytest.skip("this kernel has no sock_diag for both protocols")
    monkeypatch.setattr(port_scan, "_PIECES_MAX", 1)
    many = []
    for _ in range(600):
        many.append(socket.socket(type=socket.SOCK_DGRAM))
        many[-1].bind(("127.0.0.1", 0))
    ports = {one.getsockname()[1] for one in many}
    tables = port_scan.opened_here(port_scan.ways())
    looks = 0
    while not ports <= tables.seen[UDP]:
        tables.look()
        assert not ports & tables.seen[UDP] or ports <= tables.seen[UDP]
        looks += 1
        assert looks < 1000
    assert looks > 4
    for one in many:
        one.close()
    for _ in range(looks + 5):
        tables.look()
    assert not ports & tables.seen[UDP]
    tables.close()
