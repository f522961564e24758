# SPDX-License-Identifier: Apache-2.0
"""plugin/control.py: who hears of what, with a worker and a keeper that are played by the test."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Advertise, DHCP6_Solicit, DHCP6OptClientId, DHCP6OptIA_NA
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import Ether

from lockgate.core import channel
from lockgate.core import worker as core_worker
from lockgate.core._datapath import ffi, lib
from lockgate.plugin import (
    address,
    control,
    control_start,
    forward_rule,
    forwards,
    hostnet,
    keeper,
    log,
    netview,
    resolvconf,
    sentences,
)
from lockgate.plugin.namespace import agent_records, inside
from lockgate.plugin.spec import NetworkSpec

VIEW = netview.assign(NetworkSpec(contract="passt"), hostnet.HostNet([], [], [], resolvconf.parse("")))
GUEST_MAC = "02:00:00:00:00:01"
GUEST = "fe80::ff:fe00:1"


def owned(raw: Any) -> socket.socket:
    return socket.socket(fileno=raw.detach())


async def receive(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 70000)


class Worker:
    """The other ends of the two channels."""

    def __init__(self, cmd: socket.socket, up: socket.socket) -> None:
        self.cmd, self.up = cmd, up

    async def answer(self) -> tuple[int, bytes]:
        """Takes the next command and says that it was carried out."""
        record = await receive(self.cmd)
        kind, seq = struct.unpack_from("=II", record)
        self.cmd.send(struct.pack("=IIiIQ", kind, seq, 0, 0, 0))
        return kind, record[16:]

    def close(self) -> None:
        self.cmd.close()
        self.up.close()


class Scene:
    """A control with all that surrounds it."""

    def __init__(self, **options: Any) -> None:
        keeper_end, own = core_worker.channel()
        channels = core_worker.Channels()
        self.keeper = owned(keeper_end)
        self.worker = Worker(*map(owned, channels.worker_ends))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract address of the kernel's choice
        self.listener.listen()
        pages = core_worker.SharedPages(capture=options.get("capture_fd", -1) >= 0)
        lines = log.Log("passt", options.pop("level", log.WARNING), json=False)
        settings = {"log": lines, "view": VIEW, "one_off": False, "trace": False, "capture_fd": -1, **options}
        settings.setdefault("vhost_user", True)
        start = control_start.Start(link_fd=os.dup(self.listener.fileno()), **settings)
        self.control = control.Control(start, keeper.Ends(own, channels.cmd, channels.up, pages))

    async def play(self, part: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        main = asyncio.create_task(self.control.main())
        playing = asyncio.create_task(part(self))
        await asyncio.wait([main, playing], return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            raise AssertionError(f"control ended too early, with {main.result()}")
        await playing
        self.keeper.close()
        assert await main == 0
        self.worker.close()
        self.listener.close()

    async def front_end_comes_and_goes(self) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.listener.getsockname())
        client.close()
        assert (await self.worker.answer())[0] == lib.LG_CMD_LINK_RESET

    def replace_worker(self) -> None:
        self.worker.close()
        channels = core_worker.Channels()
        cmd, up = map(owned, (channels.cmd, channels.up))
        socket.send_fds(self.keeper, [keeper.NEW_WORKER], [cmd.fileno(), up.fileno()])
        cmd.close()
        up.close()
        self.worker = Worker(*map(owned, channels.worker_ends))


def play(part: Callable[[Scene], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def run() -> None:
        await Scene(**options).play(part)

    asyncio.run(run())


def test_a_worker_is_told_the_network_first() -> None:
    """Before any front end is served, and as it is packed for it; without debugging, that is all."""

    async def part(scene: Scene) -> None:
        assert await scene.worker.answer() == (lib.LG_CMD_NET_VIEW, VIEW.pack(1))

    play(part)


def test_without_netlink_there_is_still_a_network(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Regression: the sentence about it was said to a log that was not there yet, and control ended."""

    def refused() -> None:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(control, "HostWatch", refused)

    async def part(scene: Scene) -> None:
        assert await scene.worker.answer() == (lib.LG_CMD_NET_VIEW, VIEW.pack(1))

    play(part, reassign=lambda view: (view, 0))
    assert "cannot be followed (netlink): Protocol not supported" in capfd.readouterr().err


class Looks:
    """In place of HostWatch: as many looks as there are outcomes, at once."""

    def __init__(self, *outcomes: int | OSError | hostnet.InterfaceError) -> None:
        self.outcomes = list(outcomes)

    def start(self, changed: Callable[[], None]) -> None:
        while self.outcomes:
            changed()

    def reassign(self, view: netview.Assignments) -> tuple[netview.Assignments, int]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return view, outcome


def test_the_end_of_the_hosts_network_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also if it is the interface that was asked for. What the kernel refuses to say is no such end. Cause: each look
    at a host without that interface was told."""
    gone = hostnet.InterfaceError("interface 'eth0' does not exist")
    world = hostnet.REACH_ALL
    looks = Looks(world, gone, hostnet.REACH_NOTHING, OSError(errno.ENOBUFS, "No buffer space"), gone, world, world)
    monkeypatch.setattr(control, "HostWatch", lambda: looks)

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        while looks.outcomes:
            await asyncio.sleep(0)

    play(part, reassign=looks.reassign, reach=world, level=log.INFO)
    told = [line for line in capfd.readouterr().err.splitlines() if "network" in line]
    assert [line.split("(")[0].strip() for line in told] == [
        "The host has lost its network",
        "The host's network cannot be followed: [Errno 105] No buffer space; the guest keeps what it has",
        "The host has a network again",
    ]


def test_a_capture_that_cannot_begin_is_one_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """Cause: a file that refuses its header ended the capture before control knew whether there was one, and control
    with it. No worker is told to capture; the guest has its network."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        await scene.front_end_comes_and_goes()

    play(part, capture_fd=os.open("/dev/full", os.O_WRONLY))
    assert capfd.readouterr().err == "Capture stopped, the file cannot be written: No space left on device\n"


def test_events_are_asked_for_when_somebody_hears_them() -> None:
    """--debug: events; --trace: one for each frame too."""
    for trace, level in ((False, 1), (True, 2)):

        async def part(scene: Scene, level: int = level) -> None:
            await scene.worker.answer()
            assert await scene.worker.answer() == (lib.LG_CMD_EVENTS, struct.pack("=Q", level))

        play(part, level=log.DEBUG, trace=trace)


def test_a_punted_request_is_answered_through_the_worker() -> None:
    """A DHCP DISCOVER up, an OFFER of the assigned address down."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        request = (
            Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff")
            / IP(src="0.0.0.0", dst="255.255.255.255")
            / UDP(sport=68, dport=67)
            / BOOTP(chaddr=bytes.fromhex(GUEST_MAC.replace(":", "")), xid=7)
            / DHCP(options=[("message-type", "discover"), "end"])
        )
        scene.worker.up.send(channel.pack_up(lib.LG_UP_PUNT, bytes(request)))
        up = channel.parse_up(await receive(scene.worker.up))
        assert up is not None and up.kind == lib.LG_UP_FRAME
        offer = Ether(up.payload)
        assert offer.dst == GUEST_MAC and offer[BOOTP].xid == 7 and offer[BOOTP].yiaddr == "169.254.2.1"

    play(part)


def test_each_service_of_ipv6_answers_what_is_its_own() -> None:
    """A SOLICIT to port 547 gets an ADVERTISE, a router solicitation an advertisement of the router."""
    spec = NetworkSpec(contract="passt")
    spec.ipv6.address = address.parse_ipv6("2001:db8::7") or b""
    view = netview.assign(spec, hostnet.HostNet([], [], [], resolvconf.parse("")))
    link = Ether(src=GUEST_MAC, dst="33:33:00:00:00:02")
    identifier = DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC))
    solicit = DHCP6_Solicit(trid=7) / identifier / DHCP6OptIA_NA(iaid=1, T1=0, T2=0)
    requests = {
        DHCP6_Advertise: link / IPv6(src=GUEST, dst="ff02::1:2") / UDP(sport=546, dport=547) / solicit,
        ICMPv6ND_RA: link / IPv6(src=GUEST, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
    }

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        for expected, request in requests.items():
            scene.worker.up.send(channel.pack_up(lib.LG_UP_PUNT, bytes(request)))
            up = channel.parse_up(await receive(scene.worker.up))
            assert up is not None and up.kind == lib.LG_UP_FRAME
            reply = Ether(up.payload)
            assert expected in reply and (reply.dst, reply[IPv6].dst) == (GUEST_MAC, GUEST)

    play(part, view=view)


def test_a_frame_that_deserves_no_answer_is_counted() -> None:
    """By its reason; the frames around it are answered as ever."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        ipv6 = bytes(12) + b"\x86\xdd"
        payloads = (b"", b"short", bytes(14), bytes(12) + b"\x08\x00" + bytes(40), ipv6, ipv6 + bytes(6) + b"\x11")
        for payload in payloads:
            scene.worker.up.send(channel.pack_up(lib.LG_UP_PUNT, payload))
        while sum(scene.control.ignored.values()) < len(payloads):
            await asyncio.sleep(0)

    play(part)


def test_a_new_worker_is_told_everything_again() -> None:
    """The keeper sends its ends; what the old one knew is not assumed."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        scene.replace_worker()
        assert (await scene.worker.answer())[0] == lib.LG_CMD_NET_VIEW

    play(part)


class Agent(agent_records.Agent):
    """Gives a channel to each worker, whose other end it keeps; or is gone."""

    def __init__(self, there: bool = True) -> None:
        ours, self._other = socket.socketpair()
        super().__init__(0, ours)
        self._there = there
        self.ends: list[socket.socket] = []

    def open_worker_channel(self) -> socket.socket:
        if not self._there:
            raise agent_records.AgentError("The namespace agent is gone")
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        self.ends.append(ours)
        return theirs

    def close(self) -> None:
        for end in (self.channel, self._other, *self.ends):
            end.close()


@pytest.fixture(name="one_port")
def bound_port() -> Iterator[dict[str, Any]]:
    """Of control's settings."""
    rule = forward_rule.ForwardRule(
        protocol=forward_rule.TCP,
        listen=address.UNSET,
        dual_stack=True,
        interface="",
        first=80,
        last=80,
        to_first=80,
        target=address.UNSET,
        best_effort=False,
    )
    fd = os.open("/dev/null", os.O_RDONLY)
    yield {"rules": (rule,), "forwards": [forwards.Listener(fd, rule, 80)]}
    os.close(fd)


def test_each_worker_can_ask_the_agent_before_it_has_ports(one_port: dict[str, Any]) -> None:
    """Through a channel of its own, which control does not keep. There may be no device."""
    agent = Agent()

    async def part(scene: Scene) -> None:
        for workers in (1, 2):
            assert [(await scene.worker.answer())[0] for _ in range(3)] == [
                lib.LG_CMD_NET_VIEW,
                lib.LG_CMD_SPLICE_AGENT,
                lib.LG_CMD_LISTEN,
            ]
            assert len(agent.ends) == workers
            assert await asyncio.get_running_loop().sock_recv(agent.ends[-1], 1) == b"", "nobody else has it"
            scene.replace_worker()

    play(part, inside=inside.Inside(agent, None, True, None), **one_port)
    agent.close()


def test_the_end_of_the_agent_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """When it comes, not when somebody next wants something of it."""
    agent = Agent()

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        await scene.worker.answer()
        agent._other.close()
        for _ in range(3):
            await asyncio.sleep(0)  # the loop looks at its descriptors each time

    play(part, inside=inside.Inside(agent, None, True, None))
    assert capfd.readouterr().err.count("The namespace agent has ended") == 1
    agent.close()


def test_an_agent_that_is_gone_is_told_and_the_rest_goes_on(
    one_port: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    agent = Agent(there=False)

    async def part(scene: Scene) -> None:
        assert [(await scene.worker.answer())[0] for _ in range(2)] == [lib.LG_CMD_NET_VIEW, lib.LG_CMD_LISTEN]

    play(part, inside=inside.Inside(agent, None, True, None), **one_port)
    assert "The namespace agent is gone: nothing reaches the namespace" in capfd.readouterr().err
    agent.close()


def test_one_off_is_reported_to_the_keeper() -> None:
    """When the first front end has gone, and the worker has let go of what was its."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        await scene.front_end_comes_and_goes()
        assert await receive(scene.keeper) == keeper.CONTROL_DONE

    play(part, one_off=True)


def test_a_ring_that_the_guest_broke_is_a_warning(capfd: Any) -> None:
    """One line, without any debugging."""

    async def part(scene: Scene) -> None:
        await scene.worker.answer()
        event = ffi.new("struct lg_event *", {"kind": lib.LG_EVENT_RING_STOPPED, "value": 1, "reason": 1})
        scene.worker.up.send(channel.pack_up(lib.LG_UP_EVENT, bytes(ffi.buffer(event))))
        told = ""
        while not told:
            await asyncio.sleep(0)
            told = capfd.readouterr().err
        assert told.startswith("The guest broke ring 1 (") and told.count("\n") == 1

    play(part)


def test_lines_of_a_kind_are_limited_each_second() -> None:
    """Five, and five more a second later; other kinds have their own count."""
    lines = sentences.LineLimit()
    assert [lines.allows("a", 0.5) for _ in range(7)] == [True] * 5 + [False] * 2
    assert lines.allows("b", 0.5)
    assert not lines.allows("a", 1.4)
    assert [lines.allows("a", 1.5) for _ in range(6)] == [True] * 5 + [False]


def test_control_carries_no_more_than_it_needs() -> None:
    """Neither ssl nor inspect, yaml, h11, structlog or json is in memory for a network that nobody looks at; nor what
    serves another kind of link."""
    program = """
import sys
from lockgate.plugin import lean_asyncio
lean_asyncio.load()
from lockgate.plugin import control
heavy = "ssl inspect ast subprocess yaml h11 structlog json rich random ipaddress argparse typing re dataclasses"
heavy += " logging traceback concurrent.futures lockgate.plugin.vhost_user.session lockgate.plugin.migration.move"
print(sorted(set(sys.modules) & set(heavy.split())))
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n"


def test_a_callback_that_raises_is_still_named_where_asyncio_was_loaded_lean() -> None:
    """asyncio asks `inspect` for the source line of a callback; the stand-in knows as much as is needed for it."""
    program = """
import functools, sys
from lockgate.plugin import lean_asyncio
lean_asyncio.load()
import asyncio
def raises():
    raise ValueError("told")
loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda loop, context: print(context["exception"], "raises" in context["message"]))
loop.call_soon(raises)
loop.call_soon(functools.wraps(raises)(lambda: raises()))
loop.call_soon(loop.stop)
loop.run_forever()
async def coroutine(): ...
print(asyncio.iscoroutinefunction(coroutine), asyncio.iscoroutinefunction(raises), "inspect" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "told True\ntold True\nTrue False False\n", result.stderr


def test_whoever_asks_for_more_of_inspect_gets_the_real_one() -> None:
    """But not a dataclass without a docstring, which wants its signature for one."""
    program = """
import sys
from lockgate.plugin import lean_asyncio
lean_asyncio.load_dataclasses()
import dataclasses
@dataclasses.dataclass
class Pair:
    first: int
print(Pair.__doc__, "inspect" in sys.modules)
print(dataclasses.inspect.cleandoc(" real"), "inspect" in sys.modules)
import inspect
print(inspect.signature(Pair))
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "Pair(...) False\nreal True\n(first: int) -> None\n", result.stderr
