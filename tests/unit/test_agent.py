# SPDX-License-Identifier: Apache-2.0
"""plugin/namespace/agent.py in real namespaces, made as rootless callers make them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from host_samples import ORDINARY, host, ip, own, route
from namespaces import Namespace

from lockgate.plugin import netlink, port_scan
from lockgate.plugin.bridge import meeting
from lockgate.plugin.namespace import agent, agent_records, interface_plan
from lockgate.plugin.namespace.agent_records import BIND, DUAL_STACK, LISTEN, LOOPBACK, SocketsWanted
from lockgate.plugin.spec import NetworkSpec

if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
    pytest.skip("this machine does not let us make tap devices", allow_module_level=True)

PATIENCE = 20
MAC = bytes((2, 0, 0, 0, 0, 9))
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


class Running:
    """An agent, its interface, and the namespace to look into."""

    def __init__(
        self, inside: Namespace, target: agent.Target, interface: agent.Interface, files: Sequence[str] = ()
    ) -> None:
        self.inside = inside
        self.agent = agent.start(target, interface, "test-agent", files)
        self.tap = -1
        self.files: list[int] = []

    def ready(self) -> agent_records.Ready:
        ready, self.tap, self.files = self.agent.wait_ready()
        return ready

    def configure(self, plan: interface_plan.Plan) -> tuple[int, str]:
        record, fds = self.agent.ask(agent_records.pack_plan(plan))
        assert fds == []
        answer = agent_records.parse_answer(record)
        assert answer is not None
        return answer

    def sockets(self, wanted: SocketsWanted) -> tuple[list[int], list[socket.socket]]:
        record, fds = self.agent.ask(wanted.pack())
        errors = agent_records.parse_results(record, len(fds))
        assert errors is not None
        return errors, [socket.socket(fileno=fd) for fd in fds]

    def status(self) -> dict[str, str]:
        text = Path(f"/proc/{self.agent.pid}/status").read_text()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

    def close(self) -> int:
        self.agent.channel.close()
        for fd in (self.tap, *self.files):
            if fd >= 0:
                os.close(fd)
        return os.waitpid(self.agent.pid, 0)[1]


@pytest.fixture
def inside() -> Iterator[Namespace]:
    made = Namespace("--user", "--map-root-user", "--net")
    yield made
    made.close()


@pytest.fixture
def begin(inside: Namespace) -> Iterator[Callable[..., Running]]:
    """Starts agents in a namespace that is of a user namespace of its own, as with --userns."""
    running: list[Running] = []

    def begin(
        name: str = "eth0",
        plan: interface_plan.Plan | None = None,
        mac: bytes = MAC,
        target: agent.Target | None = None,
        files: Sequence[str] = (),
    ) -> Running:
        target = target or agent.Target(inside.path(), inside.path("user"))
        running.append(Running(inside, target, agent.Interface(name, plan, mac), files))
        return running[-1]

    yield begin
    for one in running:
        assert one.close() == 0


def plan_of(*records: netlink.Address | netlink.Route, mtu: int = 65520) -> interface_plan.Plan:
    return interface_plan.plan(NetworkSpec(contract="pasta", mtu=mtu), host(*(records or ORDINARY)))


def failure(running: Running) -> str:
    with pytest.raises(agent_records.AgentError) as caught:
        running.ready()
    return str(caught.value)


def test_the_interface_is_as_planned_when_the_agent_is_ready(begin: Callable[..., Running]) -> None:
    """Name, MAC, MTU, addresses that nobody is asked about, routes; loopback is up. The report says the same."""
    running = begin(plan=plan_of())
    ready = running.ready()
    (link,) = running.inside.ip("link", "show", "dev", "eth0")
    assert (link["ifindex"], link["mtu"], link["address"]) == (ready.index, 65520, "02:00:00:00:00:09")
    assert (ready.name, ready.mtu, ready.mac, ready.note) == ("eth0", 65520, MAC, "")
    assert "UP" in link["flags"] and "NOARP" not in link["flags"]
    assert running.inside.addresses("eth0", 4) == ["192.0.2.7/24"]
    assert running.inside.addresses("eth0", 6) == ["2001:db8::7/64", "fe80::ff:fe00:9/64"]
    assert ready.link_local == ip("fe80::ff:fe00:9")
    (shown,) = running.inside.ip("addr", "show", "dev", "eth0")
    assert not [one for one in shown["addr_info"] if one.get("dadfailed")]
    assert {"default via 192.0.2.1 dev eth0 proto unspec"} < set(running.inside.routes(4))
    assert [one["gateway"] for one in running.inside.ip("-6", "route", "show", "default")] == ["fe80::a"]
    (loopback,) = running.inside.ip("link", "show", "dev", "lo")
    assert "UP" in loopback["flags"]


def test_frames_go_both_ways_with_a_virtio_header(begin: Callable[..., Running]) -> None:
    """The descriptor does not block; what the namespace sends may be left unsegmented and without checksums."""
    running = begin(plan=plan_of())
    ready = running.ready()
    assert ready.offloads & 0x07 == 0x07
    assert fcntl.fcntl(running.tap, fcntl.F_GETFL) & os.O_NONBLOCK
    features = running.inside.run("ethtool", "-k", "eth0").splitlines()
    for wanted in ("tx-checksum-ip-generic: on", "tx-tcp-segmentation: on", "tx-tcp6-segmentation: on"):
        assert wanted in [line.strip() for line in features]
    errors, (sender,) = running.sockets(SocketsWanted(socket.AF_INET, UDP))
    assert errors == [0]
    request = b"\xff" * 6 + b"\x02" + bytes(4) + b"\1" + bytes.fromhex("0806 0001 0800 06 04 0001".replace(" ", ""))
    arp = b"\x02" + bytes(4) + b"\1" + ip("192.0.2.1")[12:] + bytes(6) + ip("192.0.2.7")[12:]
    os.write(running.tap, bytes(10) + request + arp)
    with sender:
        sender.sendto(b"x", ("192.0.2.1", 9))
    waiting = select.poll()
    waiting.register(running.tap, select.POLLIN)
    seen: set[str] = set()
    while seen != {"answer", "datagram"}:
        assert waiting.poll(PATIENCE * 1000)
        frame = os.read(running.tap, 65550)[10:]
        if frame[12:14] == b"\x08\x06" and frame[21] == 2:
            seen.add("answer")
        elif frame[12:14] == b"\x08\x00" and frame[-1:] == b"x":
            seen.add("datagram")


def test_without_a_plan_the_interface_is_left_down_and_bare(begin: Callable[..., Running]) -> None:
    """But with its MAC; a plan that comes later is refused. Loopback is up."""
    running = begin(plan=None)
    ready = running.ready()
    assert (ready.mac, ready.mtu) == (MAC, 1500)
    (shown,) = running.inside.ip("addr", "show", "dev", "eth0")
    assert "UP" not in shown["flags"] and shown["addr_info"] == []
    assert running.configure(plan_of())[0] == errno.EINVAL


def test_without_a_name_there_is_no_interface(begin: Callable[..., Running]) -> None:
    """As with --splice-only: loopback, and sockets."""
    running = begin(name="")
    assert (running.ready().name, running.tap) == ("", -1)
    assert [link["ifname"] for link in running.inside.ip("link")] == ["lo"]


def test_the_interface_has_the_mtu_and_the_mac_of_the_kernel_if_none_is_asked_for(
    begin: Callable[..., Running],
) -> None:
    """A MAC made up, locally administered."""
    ready = begin(plan=plan_of(mtu=0), mac=b"").ready()
    assert ready.mtu == 1500 and ready.mac[0] & 3 == 2


ROOTLESS = """
import json, os, subprocess, sys
sys.path[:0] = sys.argv[2:]
from lockgate.plugin import address, netlink
from lockgate.plugin.namespace import agent, interface_plan
inside = ["unshare", *sys.argv[1].split(), "sh", "-c", "echo; exec cat"]
with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
    container.stdout.readline()
    path = f"/proc/{container.pid}/ns/net"
    own = netlink.Address(2, 0, address.parse("192.0.2.7"), 24, 0, 0, address.UNSET)
    plan = interface_plan.Plan(65520, (own,), ())
    running = agent.start(agent.Target(path), agent.Interface("eth0", plan), "test-agent")
    ready, tap, _ = running.wait_ready()
    look = ["nsenter", "--net=" + path, "ip", "-j", "-4", "addr", "show", "dev", "eth0"]
    seen = json.loads(subprocess.run(look, check=True, capture_output=True).stdout)
    print(json.dumps([ready.note, tap > 2, seen[0]["mtu"], seen[0]["addr_info"][0]["local"]]))
    running.channel.close()
    sys.exit(os.waitpid(running.pid, 0)[1])
"""


@pytest.mark.parametrize("inner", ["--net", "--user --net"], ids=["the same user", "another user"])
def test_root_of_a_user_namespace_configures_what_it_has_made(inner: str) -> None:
    """As Podman runs its helper: no rights outside, all within, and (keep-id) the container a user of its own."""
    outer = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*outer, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us make a user namespace")
    command = [*outer, sys.executable, "-c", ROOTLESS, inner, *filter(None, sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["", True, 65520, "192.0.2.7"]


def test_a_namespace_may_be_joined_by_a_descriptor(begin: Callable[..., Running], inside: Namespace) -> None:
    """It is not touched in the caller."""
    fd = os.open(inside.path(), os.O_RDONLY | os.O_CLOEXEC)
    assert begin(target=agent.Target(fd, inside.path("user"))).ready().name == "eth0"
    assert inside.addresses("lo", 4) == ["127.0.0.1/8"]
    os.close(fd)


def test_the_own_user_namespace_may_be_named_too(begin: Callable[..., Running], inside: Namespace) -> None:
    """Nobody can join where they are already: it is left out. (Here root may join any network namespace.)"""
    assert begin(target=agent.Target(inside.path(), "/proc/self/ns/user")).ready().name == "eth0"


def test_what_cannot_be_joined_is_one_sentence(begin: Callable[..., Running], tmp_path: Path) -> None:
    """Callers show it to people."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    missing = f"{tmp_path}/none"
    said = f"Couldn't open network namespace {missing}: No such file or directory"
    assert failure(begin(target=agent.Target(missing))) == said
    for name in ("file", "fifo"):
        refused = failure(begin(target=agent.Target(str(tmp_path / name))))
        assert refused == "Couldn't switch to pasta namespaces: Invalid argument"
    other_kind = agent.Target("/proc/self/ns/uts")
    assert failure(begin(target=other_kind)) == "Couldn't switch to pasta namespaces: Invalid argument"
    user = agent.Target("/proc/self/ns/net", missing)
    assert failure(begin(target=user)) == f"Couldn't open user namespace {missing}: No such file or directory"


def test_a_name_that_is_taken_is_one_sentence(begin: Callable[..., Running]) -> None:
    """The kernel's reason, in the words that callers know."""
    assert begin().ready().name == "eth0"
    assert failure(begin()) == "TUNSETIFF ioctl on /dev/net/tun failed: Device or resource busy"


def test_a_namespace_without_ipv6_is_configured_all_the_same(begin: Callable[..., Running], inside: Namespace) -> None:
    """With what it has; the report notes the rest."""
    inside.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    ready = begin(plan=plan_of()).ready()
    assert ready.link_local == bytes(16) and "2001:db8::7/64" in ready.note
    assert inside.addresses("eth0", 4) == ["192.0.2.7/24"]


def test_a_namespace_that_is_populated_already_gets_its_interface_back(
    begin: Callable[..., Running], inside: Namespace
) -> None:
    """As when a helper has died, and another is started for a network with bridges in it."""
    first = begin(plan=plan_of())
    first.ready()
    inside.run("ip", "link", "add", "podman0", "type", "bridge")
    inside.run("ip", "addr", "add", "10.89.0.1/24", "dev", "podman0")
    os.close(first.tap)
    first.tap = -1
    assert begin(plan=plan_of()).ready().note == ""
    assert inside.addresses("eth0", 4) == ["192.0.2.7/24"]
    assert inside.addresses("podman0", 4) == ["10.89.0.1/24"]


def test_a_route_that_leads_nowhere_is_noted_and_left_out(begin: Callable[..., Running]) -> None:
    """The rest is there."""
    far = route("10.0.0.0/8", (2, "203.0.113.1"))
    ready = begin(plan=plan_of(*ORDINARY, far)).ready()
    assert ready.note.startswith("route 10.0.0.0/8: Network is unreachable")


def test_a_new_plan_changes_what_is_different(begin: Callable[..., Running], inside: Namespace) -> None:
    """The host moves from one network to another. What the container made itself stays."""
    running = begin(plan=plan_of())
    running.ready()
    inside.run("ip", "addr", "add", "10.9.9.9/32", "dev", "eth0")
    moved = plan_of(
        own(2, "198.51.100.7/24"),
        own(2, "2001:db8:9::7/64"),
        own(2, "2001:db8:9::8/64"),
        route("0.0.0.0/0", (2, "198.51.100.1")),
        route("::/0", (2, "fe80::b")),
        mtu=1400,
    )
    assert running.configure(moved) == (0, "")
    assert inside.addresses("eth0", 4) == ["10.9.9.9/32", "198.51.100.7/24"]
    assert [one for one in inside.addresses("eth0", 6) if one[0] == "2"] == ["2001:db8:9::7/64", "2001:db8:9::8/64"]
    assert [one["gateway"] for one in inside.ip("route", "show", "default")] == ["198.51.100.1"]
    assert [one["gateway"] for one in inside.ip("-6", "route", "show", "default")] == ["fe80::b"]
    (link,) = inside.ip("link", "show", "dev", "eth0")
    assert link["mtu"] == 1400
    inside.run("ip", "route", "del", "default")
    assert running.configure(moved) == (0, "")  # nothing is different, so that nothing is done
    assert inside.ip("route", "show", "default") == []


def test_addresses_and_routes_that_the_kernel_takes_along_are_put_back(
    begin: Callable[..., Running], inside: Namespace
) -> None:
    """The first address of a network takes the others along, and the last of all the routes."""
    gateway = route("0.0.0.0/0", (2, "192.0.2.1"))
    running = begin(plan=plan_of(own(2, "192.0.2.7/24"), own(2, "192.0.2.8/24"), gateway))
    running.ready()
    assert running.configure(plan_of(own(2, "192.0.2.8/24"), gateway)) == (0, "")
    assert inside.addresses("eth0", 4) == ["192.0.2.8/24"]
    assert [one["gateway"] for one in inside.ip("route", "show", "default")] == ["192.0.2.1"]


def test_a_container_that_removes_its_interface_gets_no_more_than_refusals(
    begin: Callable[..., Running], inside: Namespace
) -> None:
    """The agent goes on; another interface of that name is not touched."""
    running = begin(plan=plan_of())
    running.ready()
    inside.run("ip", "link", "set", "eth0", "name", "old0")
    inside.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    assert running.configure(plan_of(own(2, "192.0.2.9/24"), route("0.0.0.0/0", (2, "192.0.2.1"))))[0] == 0
    assert inside.addresses("old0", 4) == ["192.0.2.9/24"] and inside.ip("-4", "addr", "show", "dev", "eth0") == []
    inside.run("ip", "link", "del", "old0")
    error, words = running.configure(plan_of())
    assert error == errno.ENODEV and "No such device" in words
    assert running.sockets(SocketsWanted(socket.AF_INET, TCP))[0] == [0]


def test_sockets_are_of_the_namespace(begin: Callable[..., Running]) -> None:
    """Several at once, close-on-exec, and do not block: a listener and a client of it, both inside."""
    running = begin(plan=plan_of())
    running.ready()
    loopback = ip("127.0.0.1")
    wanted = SocketsWanted(socket.AF_INET, TCP, 2, flags=BIND | LISTEN, address=loopback, first=8080)
    errors, (listener, other) = running.sockets(wanted)
    assert errors == [0, 0] and other.getsockname() == ("127.0.0.1", 8081)
    errors, clients = running.sockets(SocketsWanted(socket.AF_INET, TCP, 8))
    assert errors == [0] * 8
    assert not any(os.get_blocking(one.fileno()) or os.get_inheritable(one.fileno()) for one in clients)
    assert clients[0].connect_ex(("127.0.0.1", 8080)) in (0, errno.EINPROGRESS)
    listener.settimeout(PATIENCE)
    accepted, peer = listener.accept()
    assert peer == clients[0].getsockname()
    for one in (listener, other, accepted, *clients):
        one.close()


def test_a_dual_stack_socket_may_be_for_the_loopback_interface_alone(begin: Callable[..., Running]) -> None:
    """As -T listens: both families, whatever the interface is called, and any port below 1024."""
    running = begin(plan=plan_of())
    running.ready()
    wanted = SocketsWanted(socket.AF_INET6, TCP, flags=BIND | LISTEN | DUAL_STACK | LOOPBACK, first=80)
    errors, (listener,) = running.sockets(wanted)
    assert errors == [0] and listener.getsockname()[:2] == ("::", 80)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    listener.close()
    wanted = SocketsWanted(socket.AF_INET6, UDP, flags=BIND | DUAL_STACK | LOOPBACK, first=80)
    errors, (bound,) = running.sockets(wanted)
    assert errors == [0] and bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == 1
    assert bound.getsockopt(socket.IPPROTO_IP, 8) == 1  # IP_PKTINFO
    assert running.sockets(wanted)[0] == [errno.EADDRINUSE], "two cannot have one port of datagrams"
    bound.close()
    only6 = SocketsWanted(socket.AF_INET6, UDP, flags=BIND, address=ip("::1"), first=5353)
    errors, (bound,) = running.sockets(only6)
    assert errors == [0] and bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    bound.close()


def test_files_are_those_of_the_namespace(begin: Callable[..., Running]) -> None:
    """Also without an interface; they are read anew from their beginning, and need nobody any more for it."""
    running = begin(name="", files=["/proc/net/tcp", "/proc/net/udp"])
    assert (running.ready().files, running.tap, len(running.files)) == (2, -1, 2)
    head = os.pread(running.files[0], 4096, 0)
    assert head.count(b"\n") == 1 and b"local_address" in head
    errors, (listener,) = running.sockets(SocketsWanted(socket.AF_INET, TCP, flags=BIND | LISTEN, first=8080))
    assert errors == [0] and b" 00000000:1F90 " in os.pread(running.files[0], 4096, 0)
    listener.close()
    _, (later,) = running.sockets(SocketsWanted(socket.AF_INET, UDP))
    later.close()  # when it was made, the agent had let go of what it gave before
    assert os.pread(running.files[0], 4096, 0) == head


def test_the_list_of_sockets_is_that_of_the_namespace(begin: Callable[..., Running]) -> None:
    """Through a socket that was made there, and is used here."""
    ways = port_scan.ways()
    running = begin(name="", files=ways)
    running.ready()
    tables, running.files = port_scan.opened(ways, running.files), []
    assert not tables.look() and tables.seen == {TCP: set(), UDP: set()}
    _, (listener,) = running.sockets(SocketsWanted(socket.AF_INET6, TCP, flags=BIND | LISTEN, first=8080))
    _, (bound,) = running.sockets(SocketsWanted(socket.AF_INET, UDP, flags=BIND, first=53))
    assert tables.look() and tables.seen == {TCP: {8080}, UDP: {53}}
    listener.close()
    assert tables.look() and tables.seen == {TCP: set(), UDP: {53}}
    bound.close()
    tables.close()


def test_a_file_that_is_not_there_is_one_sentence(begin: Callable[..., Running]) -> None:
    """As with everything that is opened at the start."""
    said = failure(begin(files=["/proc/net/none"]))
    assert said == "Couldn't open /proc/net/none in the namespace: No such file or directory"


def ask(channel: socket.socket, request: bytes) -> tuple[bytes, list[int]]:
    channel.settimeout(PATIENCE)
    channel.send(request)
    record, fds, _, _ = socket.recv_fds(channel, 1000, agent_records.SOCKETS_MAX)
    return record, list(fds)


def worker_channel(running: Running) -> socket.socket:
    return socket.socket(fileno=running.agent.open_worker_channel().detach())


def test_a_worker_gets_sockets_that_can_be_connected_and_nothing_else(begin: Callable[..., Running]) -> None:
    """On a channel of its own: it has perhaps been taken over by a guest."""
    running = begin(plan=plan_of())
    running.ready()
    with worker_channel(running) as worker:
        record, fds = ask(worker, SocketsWanted(socket.AF_INET6, UDP, 64).pack())
        assert agent_records.parse_results(record, 64) == [0] * 64
        made = [socket.socket(fileno=fd) for fd in fds]
        assert {one.getsockname() for one in made} == {("::", 0, 0, 0)}
        for one in made:
            one.close()
        hostile = [
            SocketsWanted(socket.AF_INET, TCP, flags=BIND, first=80).pack(),
            SocketsWanted(socket.AF_INET, TCP, flags=LOOPBACK).pack(),
            SocketsWanted(socket.AF_INET, TCP, 65).pack(),
            SocketsWanted(socket.AF_INET, TCP).pack() + b"x",
            agent_records.pack_plan(plan_of(mtu=1400)),
            agent_records.WORKER,
            b"?",
        ]
        for request in hostile:
            assert ask(worker, request) == (agent_records.ANSWER, [])
    (link,) = running.inside.ip("link", "show", "dev", "eth0")
    assert link["mtu"] == 65520


def test_a_worker_that_takes_no_answers_holds_up_nobody(begin: Callable[..., Running]) -> None:
    """It loses its channel."""
    running = begin(name="")
    running.ready()
    with worker_channel(running) as worker:
        worker.settimeout(PATIENCE)
        with pytest.raises(OSError):
            while True:
                worker.send(SocketsWanted(socket.AF_INET, TCP, 64).pack())
        left = 0
        while answer := socket.recv_fds(worker, 1000, 64)[1]:
            left += len(answer)
            for fd in answer:
                os.close(fd)
        assert 64 <= left < 2000, "few descriptors lie in the channel"
        errors, (made,) = running.sockets(SocketsWanted(socket.AF_INET, TCP))
        assert errors == [0]
        made.close()


def test_each_worker_has_a_channel_of_its_own(begin: Callable[..., Running]) -> None:
    """What the last one asked for, and whether it has broken it, is nothing to the next; it may also be gone."""
    running = begin(name="")
    running.ready()
    first, second = worker_channel(running), worker_channel(running)
    first.settimeout(PATIENCE)
    assert first.recv(1) == b""
    second.shutdown(socket.SHUT_RDWR)
    second.close()
    third = worker_channel(running)
    record, fds = ask(third, SocketsWanted(socket.AF_INET, TCP).pack())
    assert agent_records.parse_results(record, len(fds)) == [0]
    os.close(fds[0])
    first.close()
    third.close()
    assert running.configure(plan_of())[0] == errno.EINVAL  # it has no interface, and still answers


def test_a_descriptor_that_nobody_asked_for_is_let_go(begin: Callable[..., Running]) -> None:
    """Of either side."""
    running = begin(name="")
    running.ready()
    read_end, write_end = os.pipe()
    assert running.agent.ask(b"?", [write_end]) == (agent_records.ANSWER, [])
    assert running.agent.ask(agent_records.WORKER) == (agent_records.ANSWER, [])
    with worker_channel(running) as worker:
        socket.send_fds(worker, [b"?"], [write_end])
        worker.settimeout(PATIENCE)
        assert worker.recv(10) == agent_records.ANSWER
    os.close(write_end)
    assert os.read(read_end, 1) == b"", "nobody else has it"
    os.close(read_end)


def test_a_port_that_is_taken_is_an_error_for_that_port_alone(begin: Callable[..., Running]) -> None:
    """The others are handed out."""
    running = begin(plan=plan_of())
    running.ready()
    _, (taken,) = running.sockets(SocketsWanted(socket.AF_INET, TCP, flags=BIND | LISTEN, first=7001))
    errors, opened = running.sockets(SocketsWanted(socket.AF_INET, TCP, 3, flags=BIND | LISTEN, first=7000))
    assert errors == [0, errno.EADDRINUSE, 0] and len(opened) == 2
    for one in (taken, *opened):
        one.close()


def test_a_meeting_place_is_the_namespaces_own(begin: Callable[..., Running], inside: Namespace) -> None:
    """Whoever is in the namespace finds it, and nobody else; there is one."""
    running = begin(plan=plan_of())
    running.ready()
    record, fds = running.agent.ask(agent_records.MEETING)
    assert agent_records.parse_results(record, len(fds)) == [0]
    with socket.socket(fileno=fds[0]) as listener:
        assert listener.type == socket.SOCK_SEQPACKET and not os.get_blocking(listener.fileno())
        inside.run(sys.executable, "-c", f"import socket; socket.socket(1, 5).connect({meeting.NAME!r})")
        listener.settimeout(PATIENCE)
        listener.accept()[0].close()
        with pytest.raises(meeting.MeetingError, match="Connection refused"):
            meeting.Client(meeting.NAME)
        assert running.agent.ask(agent_records.MEETING) == (agent_records.pack_results([errno.EADDRINUSE]), [])


def test_a_request_that_makes_no_sense_is_refused_and_the_agent_goes_on(begin: Callable[..., Running]) -> None:
    """Unknown, too short, too long."""
    running = begin(plan=plan_of())
    running.ready()
    good = agent_records.pack_plan(plan_of())
    for noise in (b"?", b"S", b"C", good[:-1], good + b"x", SocketsWanted(socket.AF_INET, TCP).pack() + b"x"):
        record, fds = running.agent.ask(noise)
        assert fds == [] and record[:1] == b"A" and record[1:4] in (b"", struct.pack("=xH", errno.EINVAL))
    assert running.configure(plan_of()) == (0, "")


def test_a_running_agent_has_two_rights_and_nothing_else(begin: Callable[..., Running]) -> None:
    """Its descriptors are its channel and netlink's; its root is empty; no process that it would start gains any."""
    running = begin(plan=plan_of())
    running.ready()
    assert running.configure(plan_of()) == (0, "")
    status = running.status()
    rights = f"{1 << 12 | 1 << 10:016x}"
    assert (status["CapEff"], status["CapPrm"]) == (rights, rights)
    assert [status[name] for name in ("CapInh", "CapAmb", "CapBnd")] == ["0" * 16] * 3
    assert (status["NoNewPrivs"], status["Name"]) == ("1", "test-agent")
    folder = Path(f"/proc/{running.agent.pid}")
    held = sorted(os.readlink(folder / "fd" / name).partition(":")[0] for name in os.listdir(folder / "fd"))
    assert held == ["/dev/null"] * 3 + ["socket"] * 2
    assert os.listdir(folder / "root") == []


def test_an_agent_ends_with_its_channel(begin: Callable[..., Running]) -> None:
    """Its interface does too, once nobody has the descriptor."""
    running = begin(plan=plan_of())
    running.ready()
    pidfd = os.pidfd_open(running.agent.pid)
    running.agent.channel.shutdown(socket.SHUT_RDWR)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    os.close(running.tap)
    running.tap = -1
    assert [link["ifname"] for link in running.inside.ip("link")] == ["lo"]
    assert running.agent.ask(b"?") == (b"", [])
