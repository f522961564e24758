# SPDX-License-Identifier: Apache-2.0
"""Control: the asyncio process beside the worker. Joins the vhost-user session, the services, events and the capture.

Called by start.py in the child that the keeper forked; the only module that knows all the others.
Adversary: whoever can reach one of these, that is the front end (session), the guest (punted frames) and a worker that
the guest has broken (records). Each is parsed elsewhere; here it is only said who hears of what.

Invariants: control holds no state of a flow, so that a worker can be replaced under it: all that a worker must be told
is told by _configure() and by the session. Nothing here waits for the worker but what a front end waits for anyway.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import time
from types import MappingProxyType

from lockgate.core import channel
from lockgate.core._datapath import lib
from lockgate.plugin import keeper as keeper_records
from lockgate.plugin import lean_asyncio, ports
from lockgate.plugin.address import UNSET, to_text
from lockgate.plugin.control_start import Start, owned
from lockgate.plugin.events import Events, from_worker
from lockgate.plugin.forward_table import ForwardTable
from lockgate.plugin.host_watch import HostWatch, Outage
from lockgate.plugin.hostnet import REACH_NOTHING, InterfaceError
from lockgate.plugin.namespace.agent_records import AgentError
from lockgate.plugin.neighbours import Mirror, Neighbours
from lockgate.plugin.sentences import SENTENCES, LineLimit
from lockgate.plugin.services import dhcp, dhcpv6, neighbour, ra
from lockgate.plugin.services.frame import PROTOCOL_UDP, Ignored, mac_text
from lockgate.plugin.stream import StreamServer
from lockgate.plugin.tap import TapServer
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone
from lockgate.plugin.worker_channels import WorkerChannels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from lockgate.plugin.forward_follow import Follower
    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.gateway.gateway import Gateway
    from lockgate.plugin.keeper import Ends
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.port_clients import PortClients
    from lockgate.plugin.services.frame import Answer
    from lockgate.plugin.vhost_user.movable_guest import MovableGuest
    from lockgate.plugin.vhost_user.server import VhostUserServer

EVENTS, EVENTS_AND_FRAMES = 1, 2  # of LG_CMD_EVENTS

_ETHERTYPE = slice(12, 14)
_IPV4 = b"\x08\x00"
_NEXT_HEADER = slice(20, 21)  # of IPv6
_UDP = bytes((PROTOCOL_UDP,))

_FORMER_MAX = 8  # views; a worker remembers as many addresses


def run(control: Control) -> int:
    """The life of the process; its exit status."""
    # All that was imported stays for ever: the collector need not look at it, nor its pages be written to.
    gc.collect()
    gc.freeze()
    gc.enable()
    lib.lg_release_memory()
    loop = asyncio.new_event_loop()  # not asyncio.run(): it would take over signals, which the keeper handles
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(control.main())


class Control:
    """Made before rights are given up: whatever is needed later is imported by then, but for who tells whose a port is
    that is taken (forwards.explain)."""

    def __init__(self, start: Start, ends: Ends) -> None:
        self._start = start
        self._log = start.log
        self._view, self._version = start.view, 1
        self._former: list[Assignments] = []  # whose addresses were taken from the guest; a new worker learns so which
        self._watch: HostWatch | None = None
        self._outage = Outage(start.reach)
        self._neighbours: Neighbours | None = None
        if start.reassign is not None:
            self._open_watches()
        self._pages = ends.pages
        self._keeper = owned(ends.keeper)
        self._first = (owned(ends.cmd), owned(ends.up))
        self._events = Events(start.log)
        self._lines = LineLimit()
        self._attached = False
        self._advertising: asyncio.TimerHandle | None = None
        self._seen = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self.ignored: dict[str, int] = {}  # punted frames without an answer, by reason
        self._forwards = ForwardTable(start.rules, start.forwards, self._ask_ports, start.room)
        self._gateway: Gateway | None = None
        if start.gateway is not None:
            from lockgate.plugin.gateway.names import lean_dnspython

            lean_dnspython.load()
            from lockgate.plugin.gateway.gateway import Gateway

            self._gateway = Gateway(start.gateway, self._view, self._forwards, ends, start.log.debug)
        self._guest_type: type[MovableGuest] | None = None
        if start.vhost_user:
            lean_asyncio.load_dataclasses()
            from lockgate.plugin.vhost_user.movable_guest import MovableGuest

            self._guest_type = MovableGuest
        self._guest: MovableGuest | None = None
        self._follower: Follower | None = None
        if start.inside is not None and start.inside.tables is not None:
            from lockgate.plugin.forward_follow import Follower

            self._follower = Follower(*start.inside.tables, self._forwards, self.emit)
        self._port_clients: PortClients | None = None
        if start.port_rights is not None and (start.conf is not None or start.meetings):
            from lockgate.plugin.port_clients import PortClients

            rights, places = start.port_rights, (start.conf, start.meetings)
            outward = None if start.inside is None else start.inside.outward_rights(rights)
            self._port_clients = PortClients(rights, outward, self._forwards, *places, lambda: self._view, self.emit)
        self._print_stats: Callable[[], None] | None = None
        if start.stats_seconds:
            from lockgate.plugin import stats

            self._print_stats = stats.Printer(ends.pages.counters_fd, start.log).print
        self._capture_type: type[Capture] | None = None
        if start.capture_fd >= 0:
            from lockgate.plugin.pcap import Capture

            self._capture_type = Capture
        self._capturing = False  # whether workers are told to

    def _open_watches(self) -> None:
        try:
            self._watch, self._neighbours = HostWatch(), Neighbours()
        except OSError as failure:
            self._watch = self._neighbours = None
            self._log.warning(f"Changes of the host's network cannot be followed (netlink): {failure.strerror}")

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_fault)
        self._ended: asyncio.Future[None] = loop.create_future()
        self._worker = WorkerChannels(*self._first, self._on_up)
        if self._guest_type is not None:
            self._guest = self._guest_type(self._start, self._worker, self.emit)
        if self._gateway is not None:
            self._gateway.begin(lambda: self._worker, self.emit, self._tell_keeper)
        self._server = self._make_server()
        capture, pages = None, self._pages
        if self._capture_type is not None:
            fds = pages.pcap_fd, pages.pcap_event_fd, self._start.capture_fd
            capture = self._capture_type(loop, *fds, self._capture_ended)
            self._capturing = capture.active  # not if the file has refused its header: then it has ended already
        loop.add_reader(self._keeper, self._on_keeper)
        if self._start.inside is not None:
            self._start.inside.watch(loop, self._log.warning)
        self._schedule_stats()
        if self._neighbours is not None:
            self._look_at_neighbours(first=True)
            self._neighbours.start(self._look_at_neighbours)
        await (self._take_over(self._worker) if self._start.told else self._adopt(self._worker))
        if self._watch is not None:
            self._watch.start(self._look_at_host)
        if self._guest is not None:
            self._spawn(_until_shut_down(self._guest.repair.serve()))
        for place in self._port_clients.serve() if self._port_clients is not None else ():
            self._spawn(_until_shut_down(place))
        if self._follower is not None:
            self._spawn(self._follower.run())
        for service in self._gateway.services() if self._gateway is not None else ():
            self._spawn(_until_shut_down(service))
        serving = loop.create_task(self._serve())
        await asyncio.wait([serving, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.done():
            serving.result()  # raises what ended it, if that was a fault of ours
            if self._gateway is not None:
                self._log.error("gvproxy exiting: the guest's connection has ended")
            self._tell_keeper(keeper_records.CONTROL_DONE)
            await self._ended
        if self._gateway is not None:
            await self._gateway.close()
        self._worker.close()
        if capture is not None:
            capture.finish()
        return 0

    # ---- the link ----

    def _make_server(self) -> VhostUserServer | StreamServer | TapServer:
        if self._start.inside is not None:
            return TapServer(self._worker, self.emit, self._start.inside.device)
        if self._gateway is not None:
            return self._gateway.make_server(self._worker)
        if self._guest is not None:
            return self._guest.server
        return StreamServer(self._worker, self.emit)

    def _serving(self) -> Awaitable[None]:
        if isinstance(self._server, TapServer):
            return self._server.serve()
        link = self._start.link or (None if self._gateway is None else self._gateway.stdio())
        return self._ended if link is None else self._server.serve(link, one_off=self._start.one_off)

    async def _serve(self) -> None:
        """Until the one front end has gone, with --one-off or --fd; else for ever. A guest that has moved away leaves
        us here all the same: an end would close sockets whose peers go on with another host."""
        shut_down = await _until_shut_down(self._serving())
        if shut_down or (self._guest is not None and self._guest.has_left and not self._start.migrate_exit):
            await self._ended

    def emit(self, event: str, /, **fields: object) -> None:
        """Hears of events, the session's and the worker's; shows them, and follows whether there is a link."""
        self._events.emit(event, **fields)
        if event in ("link.attach", "link.detach"):
            self._attached = event == "link.attach"
            self._schedule_advertisement()
            if self._gateway is not None:
                self._gateway.link_changed(self._attached)
        if event == "link.attach":
            for frame in neighbour.questions(self._view, {} if self._neighbours is None else self._neighbours.entries):
                self._worker.send_frame(frame)
        if event in ("migration.saved", "migration.resumed"):
            self._spawn(self._follow_guest(event == "migration.resumed"))
        if event == "migration.left" and self._start.migrate_exit:
            self._tell_keeper(keeper_records.CONTROL_DONE)
        if self._events.on or event not in SENTENCES:
            return
        level, sentence = SENTENCES[event]
        if self._lines.allows(event, time.monotonic()):
            getattr(self._log, level)(sentence.format(**fields))

    # ---- the worker ----

    async def _adopt(self, worker: WorkerChannels, memory_lost: bool = False) -> None:
        """Tells a new worker everything. One that dies meanwhile is followed by another."""
        try:
            await self._configure(worker)
            await self._server.resume(worker, memory_lost)
        except WorkerGone:
            pass
        except WorkerError as refusal:
            self._fail(f"The worker refused its configuration: {refusal}")

    async def _take_over(self, worker: WorkerChannels) -> None:
        """The first one, which knows all but what comes and goes."""
        self._forwards.take_over(worker)
        try:
            await self._tell_neighbours(worker)
        except WorkerGone:
            return  # another will come
        except WorkerError as refusal:
            self._fail(f"The worker refused its configuration: {refusal}")
        if self._start.inside is not None and self._start.inside.device is not None:
            self.emit("link.attach", link="tap")

    async def _configure(self, worker: WorkerChannels) -> None:
        for view in (*self._former, self._view):
            await worker.net_view(view.pack(self._version))
        await self._tell_neighbours(worker)
        await self._tell_agent(worker)
        await self._forwards.restore(worker)
        if self._events.on:
            await worker.events(EVENTS_AND_FRAMES if self._start.trace else EVENTS)
        if self._capturing:
            await worker.capture(True)

    async def _tell_agent(self, worker: WorkerChannels) -> None:
        """Before the first connection comes to it."""
        try:
            end = None if self._start.inside is None else self._start.inside.open_worker_channel()
        except AgentError as fault:
            self._log.warning(f"{fault}: nothing reaches the namespace from the host's loopback")
            return
        if end is not None:
            with owned(end) as channel_end:
                await worker.splice_agent(channel_end.fileno())

    async def _ask_ports(self, kind: bytes, rule: ForwardRule, first: int, count: int) -> tuple[list[int], list[int]]:
        """One request; the table of forwards makes the next when it has the answer."""
        if rule.outward:
            assert self._start.inside is not None, "it leads out of a namespace"
            return self._start.inside.ask_ports(kind, rule, first, count)
        self._keeper.send(ports.pack_request(kind, rule, first, count))
        self._ports_answer: asyncio.Future[tuple[list[int], list[int]]] = asyncio.get_running_loop().create_future()
        return await self._ports_answer

    async def _follow_guest(self, here: bool) -> None:
        """A guest that has moved away has no ports here, until it comes back."""
        try:
            await (self._forwards.come_back(self._worker) if here else self._forwards.leave())
        except (WorkerGone, WorkerError):
            pass  # the next worker is told all

    def _on_keeper(self) -> None:
        try:
            record, fds, _, _ = socket.recv_fds(self._keeper, keeper_records.RECORD_MAX, ports.BATCH_MAX)
        except BlockingIOError:
            return
        except OSError:
            record, fds = b"", []
        if self._gateway is not None and self._gateway.on_record(record, fds):
            return
        if record.startswith(ports.ANSWER):
            self._ports_answer.set_result((ports.parse_answer(record), list(fds)))
            return
        if record in (keeper_records.NEW_WORKER, keeper_records.NEW_WORKER_MEMORY_LOST) and len(fds) == 2:
            self._worker.close()
            self._worker = WorkerChannels(socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]), self._on_up)
            if self._guest is not None:
                self._guest.has_other_worker(self._worker)
            self._spawn(self._adopt(self._worker, record == keeper_records.NEW_WORKER_MEMORY_LOST))
        elif not record:
            asyncio.get_running_loop().remove_reader(self._keeper)
            if not self._ended.done():
                self._ended.set_result(None)

    def _on_up(self, up: channel.Up) -> None:
        if up.kind == lib.LG_UP_PUNT:
            self._answer(up.payload, up.port)
        elif up.kind == lib.LG_UP_EVENT:
            event = from_worker(up.payload)
            if event is not None:
                self.emit(event[0], **event[1])
        elif up.kind == lib.LG_UP_SEEN:
            self._note_seen(up.payload)
        elif up.kind == lib.LG_UP_LINK_END and isinstance(self._server, StreamServer | TapServer):
            self._server.link_ended(up.payload, up.port)
        elif up.kind == lib.LG_UP_CAM and self._gateway is not None:
            self._gateway.learn(up.payload, up.port)

    def _note_seen(self, payload: bytes) -> None:
        seen = channel.parse_seen(payload)
        if seen is None or payload == self._seen:
            return
        self._seen = payload
        if self._gateway is not None:
            self._gateway.seen(seen.mac, seen.addr4)
        if self._guest is not None:
            self._guest.has_shown(seen)
        addresses = {"ipv4": seen.addr4, "ipv6": seen.addr6, "link_local": seen.link_local}
        told = {name: to_text(address) for name, address in addresses.items() if address != UNSET}
        self._events.emit("guest.seen", mac=mac_text(seen.mac), **told)

    # ---- services ----

    def _answer(self, frame: bytes, port: int) -> None:
        taken = self._gateway is not None and self._gateway.takes(frame, port)
        if taken is True:
            return
        answer = taken or _service(frame)(frame, self._view)
        if isinstance(answer, Ignored):
            self.ignored[answer.value] = self.ignored.get(answer.value, 0) + 1
            self._events.emit("frame.ignored", reason=answer.value)
            return
        self._worker.send_frame(answer.frame, port)
        self._events.emit(answer.event, **answer.fields)

    def _schedule_advertisement(self) -> None:
        """Unsolicited advertisements, at random intervals for as long as there is a link (RFC 4861 §6.2.4)."""
        if self._advertising is not None:
            self._advertising.cancel()
            self._advertising = None
        if self._attached and self._view.ra:
            # The random module would cost a megabyte.
            share = int.from_bytes(os.urandom(4), "big") / (1 << 32)
            seconds = ra.UNSOLICITED_MIN + share * (ra.UNSOLICITED_MAX - ra.UNSOLICITED_MIN)
            self._advertising = asyncio.get_running_loop().call_later(seconds, self._advertise)

    def _advertise(self) -> None:
        self._worker.send_frame(ra.advertise(self._view))
        self._events.emit("ra.sent")
        self._schedule_advertisement()

    # ---- the host ----

    def _look_at_host(self) -> None:
        """Something has changed there; perhaps something that concerns the guest."""
        assert self._start.reassign is not None
        try:
            view, reach = self._start.reassign(self._view)
        except InterfaceError:
            view, reach = self._view, REACH_NOTHING  # the one that the guest's is modelled on is gone
        except OSError as fault:
            self.emit("network.failed", reason=str(fault))
            return
        event, fields = self._outage.look(reach)
        if event:
            self.emit(event, **fields)
        changes = view.changes(self._view)
        if not changes:
            return
        before, self._view, self._version = self._view, view, self._version + 1
        device = None if self._start.inside is None else self._start.inside.device
        if device is not None and device.ours and (before.guest4, before.guest6) != (view.guest4, view.guest6):
            device.follow(view)
            self._former = [*self._former, before][-_FORMER_MAX:]
        self._spawn(self._tell_network(self._worker))
        if self._neighbours is not None:
            self._look_at_neighbours()  # perhaps of another interface
        self.emit("network.change", **{name: _shown(value) for name, value in changes.items()})
        if self._attached and view.ra:
            farewell = ra.farewell(before, view)
            if farewell is not None:
                self._worker.send_frame(farewell)
            self._advertise()

    def _look_at_neighbours(self, first: bool = False) -> None:
        """The first ones are part of what a worker is configured with, and no news to a guest."""
        assert self._neighbours is not None
        try:
            gone = set(self._neighbours.entries)
            new = self._neighbours.look(self._view)
            gone -= set(self._neighbours.entries)
        except OSError as fault:
            self.emit("network.failed", reason=str(fault))
            return
        if not new and not gone:
            return
        if not first:
            self._spawn(self._tell_network(self._worker, new))
        self._events.emit("network.neighbours", new=len(new), gone=len(gone), known=len(self._neighbours.entries))

    async def _tell_neighbours(self, worker: WorkerChannels) -> None:
        """Until there are any, a worker knows that all is at us."""
        if self._neighbours is not None and self._neighbours.entries:
            await worker.neighbours(Mirror(self._neighbours.entries, self._view))

    async def _tell_network(self, worker: WorkerChannels, new: Mapping[bytes, bytes] = MappingProxyType({})) -> None:
        """Also the guest, of neighbours that are new: once the worker answers for them in the same way."""
        try:
            await worker.net_view(self._view.pack(self._version))
            if self._neighbours is not None:
                await worker.neighbours(Mirror(self._neighbours.entries, self._view))
            for frame in neighbour.announcements(self._view, new) if self._attached else ():
                worker.send_frame(frame)
        except WorkerGone:
            pass  # the next one is told everything
        except WorkerError as refusal:
            self._fail(f"The worker refused its configuration: {refusal}")

    # ---- counters ----

    def _schedule_stats(self, due: bool = False) -> None:
        if self._print_stats is None:
            return
        if due:
            self._print_stats()
        asyncio.get_running_loop().call_later(self._start.stats_seconds, self._schedule_stats, True)

    # ---- faults ----

    def _capture_ended(self, why: str) -> None:
        self._log.warning(why)
        if self._capturing and not self._ended.done():
            self._capturing = False
            self._spawn(self._stop_capture())

    async def _stop_capture(self) -> None:
        try:
            await self._worker.capture(False)
        except (WorkerGone, WorkerError):
            pass  # the next worker is not told to capture in the first place

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault of ours in a callback or in a task that nobody waits for: said, and survived."""
        failure = context.get("exception")
        if self._lines.allows("fault", time.monotonic()):
            self._log.error(f"Control: {context['message']}: {type(failure).__name__}: {failure}")

    def _fail(self, why: str) -> None:
        self._log.error(why)
        self._tell_keeper(keeper_records.CONTROL_FAILED)

    def _tell_keeper(self, record: bytes) -> None:
        try:
            self._keeper.send(record)
        except OSError:
            pass  # it is ending us already


async def _until_shut_down(serving: Awaitable[None]) -> bool:
    """Waits for who serves a listening socket; true: the keeper has shut that down, and is about to end us."""
    try:
        await serving
    except OSError as failure:
        if failure.errno != errno.EINVAL:
            raise
        return True
    return False


def _service(frame: bytes) -> Callable[[bytes, Assignments], Answer | Ignored]:
    """Who answers a punted frame: of IPv4 only DHCP is punted, of IPv6 only DHCPv6 and router solicitations."""
    if frame[_ETHERTYPE] == _IPV4:
        return dhcp.answer
    return dhcpv6.answer if frame[_NEXT_HEADER] == _UDP else ra.answer


def _shown(value: object) -> object:
    """Of an assignment, for a person: an address or several, or what it is."""
    if isinstance(value, tuple):
        return ", ".join(str(_shown(one)) for one in value) or "none"
    if isinstance(value, bytes):
        return "none" if value == UNSET else to_text(value) if len(value) == len(UNSET) else mac_text(value)
    return value
