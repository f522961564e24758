# SPDX-License-Identifier: Apache-2.0
"""The gateway of a virtual network, in control: whoever a guest asks, and whoever asks for a guest.

Made by control.py, which hands it the frames that the worker punts, and the keeper's records; the only module of this
folder that knows all the others. Adversary: the guest, whose frames the services parse, and clients of the API; each
has its own module.

A connection of the guest's to a service here is a flow of the worker's like any other: its SYN comes up, and one end of
a loopback connection that is made for it goes down with it. There is no standing listener that others could come by.
Events are those of the parts.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lockgate.core import channel
from lockgate.core._datapath import lib
from lockgate.plugin import resolvconf, stats
from lockgate.plugin.address import UNSET, is_ipv4, to_text
from lockgate.plugin.forward_table import ConflictError
from lockgate.plugin.gateway import notification, relay
from lockgate.plugin.gateway.address_pool import AddressPool
from lockgate.plugin.gateway.descriptors import Descriptors, limit_of_process
from lockgate.plugin.gateway.dhcp_server import LEASED, DhcpServer
from lockgate.plugin.gateway.exposed import Exposed, SshRemote
from lockgate.plugin.gateway.forward_words import rule_of
from lockgate.plugin.gateway.http import api
from lockgate.plugin.gateway.http.http_server import GUEST_LIMITS, HttpServer, Limits
from lockgate.plugin.gateway.links.datagram_server import DatagramServer
from lockgate.plugin.gateway.links.stdio import carry
from lockgate.plugin.gateway.links.switch import Switch, SwitchServer
from lockgate.plugin.gateway.links.vpnkit import VpnkitServer
from lockgate.plugin.gateway.loopback_pair import connected_pair
from lockgate.plugin.gateway.names import host_files
from lockgate.plugin.gateway.names.dns_service import DnsService
from lockgate.plugin.gateway.names.name_server import NameServer
from lockgate.plugin.gateway.names.upstream import Upstream
from lockgate.plugin.gateway.names.zones import Zones
from lockgate.plugin.gateway.opened import SSH_PORT
from lockgate.plugin.gateway.ssh.ssh_forward import SshForwards, TunnelError
from lockgate.plugin.gateway.view import DNS_PORT, HTTP_PORT
from lockgate.plugin.gateway.virtual_network import STDIO, VFKIT, VPNKIT, PortForward
from lockgate.plugin.netview import VIEW_IPV6
from lockgate.plugin.services.frame import Ignored, ip_parse
from lockgate.plugin.stream import StreamServer
from lockgate.plugin.vhost_user.worker import WorkerError, WorkerGone

if TYPE_CHECKING:
    import _socket

    from lockgate.plugin.clients import Emit
    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.forward_table import ForwardTable
    from lockgate.plugin.gateway.links.link_virtual import GatewayStart
    from lockgate.plugin.gateway.virtual_network import Zone
    from lockgate.plugin.keeper import Ends
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.services.frame import Packet
    from lockgate.plugin.worker_channels import WorkerChannels

_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_DHCP_PORT = 67
_PORTS = slice(2, 4)  # the destination's, of a TCP or UDP header
_WAITING_MAX = 256  # SYNs for which the worker is being given a socket
_SILENCE_SECONDS = 10.0  # after which a guest that has said nothing is one that waits to be spoken to
_LEASED_SECONDS = 0.1  # for a guest to take on the address that it was given; mostly it says something itself by then
# For its answer to an ssh that was started so: a SYN, and the next a second later. Who speaks later had heard neither.
_ANSWER_SECONDS = 1.5
_RESOLV_CONF_BYTES_MAX = 1 << 16


class Gateway:
    """One for each helper. What needs a loop is made by begin()."""

    def __init__(
        self,
        start: GatewayStart,
        view: Assignments,
        table: ForwardTable,
        ends: Ends,
        debug: Callable[[str], None],
    ) -> None:
        self._start = start
        self._network = network = start.network
        self._view = view
        self._table = table
        self._debug = debug
        self._counters = stats.Page(ends.pages.counters_fd)
        self._zones = Zones(network.zones)
        self._pool = AddressPool(network)
        self._dhcp = DhcpServer(network, self._pool, view.mtu, view.search)
        self._resolv_conf = host_files.HostFile("/etc/resolv.conf", resolvconf.parse, _RESOLV_CONF_BYTES_MAX)
        self._hosts = host_files.HostFile(host_files.HOSTS, host_files.hosts_parse, host_files.HOSTS_BYTES_MAX)
        self._opening: set[bytes] = set()  # by source and ports
        self._tasks: set[asyncio.Task[None]] = set()
        self._mac = UNSET  # of the one guest, where there is no switch
        self._silence: asyncio.TimerHandle | None = None  # of a guest that has come
        self._tried: float | None = None  # when that was over
        self._spoken = False  # the guest, with an address; nothing of the two above is for one that has

    def begin(self, worker: Callable[[], WorkerChannels], emit: Emit, tell_keeper: Callable[[bytes], None]) -> None:
        """In control's loop; `worker` is whichever there is at the moment."""
        network, start = self._network, self._start
        self._worker = worker
        self._emit = emit
        places = len(start.opened.listen) + len(start.opened.services)
        self._descriptors = Descriptors(limit_of_process(), places, emit)
        ways = self.dial, self._open_tunnel
        folder = start.opened.started_in
        self._exposed = Exposed(self._table, *ways, emit, at_start=network.forwards, folder=folder)
        self._http = self._serve_http(api.GUEST, GUEST_LIMITS)
        # Not of the host: few of its services listen at ::1, and many a client tries nothing else after that.
        twins = {network.gateway: network.gateway6, network.device: network.device6}
        ipv6 = bool(self._view.flags & VIEW_IPV6)
        names = NameServer(self._zones, self._hosts.current, ipv6=ipv6, twins=twins)
        upstream = Upstream(lambda: host_files.servers_of(self._resolv_conf.current()), self._descriptors.check)
        own = [one for one in (network.gateway, self._view.gateway6, self._view.our_link_local) if one != UNSET]
        self._dns = DnsService(names, upstream, network.gateway_mac, own, self._view.mtu, self._send)
        self._notifier = notification.Notifier(network.notification, emit) if network.notification else None
        self._ssh = SshForwards(start.opened.ssh_folder, tell_keeper, self._debug) if start.opened.ssh_folder else None
        for listener, forward in zip(start.opened.ssh, network.ssh_forwards if self._ssh else (), strict=True):
            assert self._ssh is not None, "there is a folder where there are such sockets"
            self._ssh.add_known(_owned(listener), forward.path, forward.destination)
        several = bool(network.listen) or network.transport == VPNKIT
        self._switch = Switch(worker(), emit, self._told) if several else None

    # ---- what control asks ----

    def make_server(self, worker: WorkerChannels) -> StreamServer:
        """Of the link."""
        network, framing = self._network, self._start.framing
        if self._switch is None:
            kind = DatagramServer if network.transport == VFKIT else StreamServer
            return kind(worker, self._emit, framing)
        if network.transport == VPNKIT:
            macs = network.vpnkit_macs
            return VpnkitServer(self._switch, worker, self._emit, framing, self._view.mtu, macs)
        one = _JoinedDatagramServer if network.transport == VFKIT else SwitchServer
        return one(self._switch, worker, self._emit, framing)

    def services(self) -> Iterator[Awaitable[None]]:
        """What serves each place of the host; each raises OSError when that is shut down."""
        opened, limits = self._start.opened, Limits(connections=self._descriptors.connections)
        for view, listeners in ((api.ALL, opened.listen), (api.SERVICES, opened.services)):
            for listener in listeners:  # a guest may reach those that are not files, too
                yield self._serve_http(view, limits).serve(_owned(listener))
        if self._notifier is not None:
            self._notifier.send(notification.READY)
            yield self._notifier.run()

    def _serve_http(self, view: str, limits: Limits) -> HttpServer:
        return HttpServer(api.Api(self, self._network, view).respond, self._emit, limits)

    def stdio(self) -> socket.socket | None:
        """The link of a guest that comes by standard input and output; None: it comes by a socket."""
        if self._network.transport != STDIO:
            return None
        ours, theirs = socket.socketpair()
        self._spawn(self._carry(ours))
        return theirs

    def takes(self, frame: bytes, port: int) -> bool | Ignored:
        """Whether a frame that was punted is for a service here; then it is being answered, or why it is not."""
        packet = ip_parse(frame)
        if isinstance(packet, Ignored) or packet.protocol not in (_TCP, _UDP):
            return False
        where = int.from_bytes(packet.payload[_PORTS])
        if packet.protocol == _TCP:
            self._open(frame, packet, where)
        elif where == DNS_PORT:
            return self._dns.handle_frame(frame, port) or True
        elif where == _DHCP_PORT:
            answer = self._dhcp.answer(frame)
            if isinstance(answer, Ignored):
                return answer
            self._send(answer.frame, port)
            self._emit(answer.event, **answer.fields)
            if answer.event == LEASED:
                self._reach_after(_LEASED_SECONDS)
        else:
            return False
        return True

    def link_changed(self, attached: bool) -> None:
        """There is a guest, or none any more."""
        if attached:
            self._reach_after(_SILENCE_SECONDS)
            return
        self._end_silence()
        self._spoken = False
        if self._ssh is not None:
            self._ssh.guest_left()
        self._forget_guest()

    def seen(self, mac: bytes, ipv4: bytes) -> None:
        """The one guest, where there is no switch."""
        if ipv4 != UNSET:
            self._has_spoken()
        if self._switch is None and mac != self._mac and not mac[0] & 1:
            self._forget_guest()
            self._mac = mac
            self._told(mac, True)

    def _forget_guest(self) -> None:
        if self._mac != UNSET:
            self._told(self._mac, False)
            self._mac = UNSET

    def learn(self, payload: bytes, port: int) -> None:
        """Of the switch: struct lg_cam."""
        mac = channel.parse_cam(payload)
        if self._switch is not None and mac is not None:
            self._switch.learn(mac, port)
            self._can_be_reached()

    def on_record(self, record: bytes, fds: Sequence[int]) -> bool:
        """A record of the keeper's; False: it is for somebody else."""
        return self._ssh is not None and self._ssh.on_record(record, fds)

    async def close(self) -> None:
        """The files that were made for the API go."""
        await self._exposed.close()
        if self._ssh is not None:
            self._ssh.close()

    # ---- connections ----

    def _open(self, frame: bytes, packet: Packet, where: int) -> None:
        """A guest's SYN. It will be repeated: neither twice at once, nor more than can be of any use."""
        key = packet.source + packet.payload[:4]
        if key not in self._opening and len(self._opening) < _WAITING_MAX:
            self._opening.add(key)
            self._spawn(self._serve_connection(frame, self._requester(packet), where, key))

    def _requester(self, packet: Packet) -> str:
        """The guest, as ports are led to it: by IPv4, also where it asks by IPv6."""
        if is_ipv4(packet.source):
            return to_text(packet.source)
        leased = self._pool.address_of(packet.eth_source)
        return to_text(packet.source if leased is None else leased)

    async def _serve_connection(self, frame: bytes, guest: str, where: int, key: bytes) -> None:
        try:
            ours, theirs = self._connected_pair()
        except OSError:
            self._opening.discard(key)
            return  # no descriptor is left: the guest asks again
        try:
            with theirs:
                await self._worker().serve(frame, theirs.fileno())
        except (WorkerError, WorkerGone):
            ours.close()
            return
        finally:
            self._opening.discard(key)
        if where == HTTP_PORT:
            self._http.take(ours, guest)
        else:
            await self._dns.serve_connection(ours)

    async def dial(self, ip: bytes, port: int) -> socket.socket:
        """A connection to a guest, which sees it come from the gateway. Raises OSError. That the guest refuses, or is
        not there, shows itself as a reset."""
        ours, theirs = self._connected_pair()
        try:
            with theirs:
                await self._worker().dial(ip, port, ours.getsockname()[1], theirs.fileno())
        except WorkerError as refusal:
            ours.close()
            raise OSError(refusal.error, str(refusal)) from None
        except WorkerGone:
            ours.close()
            raise OSError(errno.ENOTCONN, "the worker is being replaced") from None
        return ours

    def _connected_pair(self) -> tuple[socket.socket, socket.socket]:
        """Raises OSError."""
        pair = connected_pair()
        self._descriptors.check(*pair)
        return pair

    async def _open_tunnel(self, listener: socket.socket, remote: SshRemote) -> None:
        """Serves the clients of a socket that the API was asked for, until it is taken back."""
        rule = None
        try:
            if self._ssh is None:
                raise TunnelError("there is no ssh here")
            rule = await self._lead_to(remote.address, remote.port)
            port = self._start.opened.ssh_port if rule is None else rule.first
            name = listener.getsockname()
            number = self._ssh.add_tunnel(listener, name, port, remote.user, remote.path, remote.identity)
            try:
                await asyncio.get_running_loop().create_future()  # for ever
            finally:
                self._ssh.remove(number)
        except TunnelError as mistake:
            self._emit("relay.failed", local=listener.getsockname(), remote=remote.path, reason=str(mistake))
        finally:
            if rule is not None:
                await self._table.exchange([rule], [])

    async def _lead_to(self, ip: bytes, port: int) -> ForwardRule | None:
        """A port of the host's loopback for ssh to connect to; None: there is one already. Raises TunnelError."""
        if (ip, port) == (self._network.device, SSH_PORT):
            return None
        try:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                number = free.getsockname()[1]
        except OSError as failure:
            raise TunnelError(f"no port of the loopback can be had: {failure.strerror}") from None
        rule = rule_of(PortForward("tcp", f"127.0.0.1:{number}", f"{to_text(ip)}:{port}"))
        try:
            failures = await self._table.exchange([], [rule])
        except ConflictError:
            raise TunnelError("the port of the loopback that was free is somebody else's meanwhile") from None
        if failures:
            raise TunnelError(f"no port of the loopback can be had: {os.strerror(failures[0].error)}")
        return rule

    async def _carry(self, pair: socket.socket) -> None:
        with pair:
            source, sink = self._start.streams
            await carry(source, sink, pair)

    # ---- what the API asks: api.Network ----

    def exposed(self) -> Iterable[PortForward]:
        return self._exposed.all()

    async def expose(self, protocol: str, local: str, remote: str) -> None:
        await self._exposed.expose(protocol, local, remote)

    async def unexpose(self, protocol: str, local: str) -> None:
        await self._exposed.unexpose(protocol, local)

    def leases(self) -> Mapping[bytes, bytes]:
        return self._pool.leases()

    def zones(self) -> Sequence[Zone]:
        return self._zones.all()

    def add_zone(self, zone: Zone) -> None:
        self._zones.add(zone)

    def counters(self) -> Mapping[str, int]:
        return dict(zip(stats.NAMES, self._counters.read(), strict=True))

    def cam(self) -> Mapping[bytes, int]:
        if self._switch is not None:
            return self._switch.entries
        return {} if self._mac == UNSET else {self._mac: 1}

    async def take_link(self, link: socket.socket, behind: bytes, lengths: str) -> None:
        """A guest that came by /connect. What was read of it already goes in front, by way of a pair."""
        assert self._switch is not None, "the API that has /connect has a switch"
        framing = lib.LG_STREAM_SKIP
        if lengths == api.TWO_BYTES_LITTLE_ENDIAN:
            framing |= lib.LG_STREAM_LENGTH_16
        if not behind:
            with link:
                await self._switch.serve(link, framing)
            return
        near, far = socket.socketpair()
        self._spawn(relay.join(link, far, behind))
        with near:
            await self._switch.serve(near, framing)

    # ---- small things ----

    def _send(self, frame: bytes, port: int) -> None:
        self._worker().send_frame(frame, port)

    def _reach_after(self, seconds: float) -> None:
        """At the latest, unless the guest shows before that it has an address. Once: ssh is tried for ever then."""
        loop = asyncio.get_running_loop()
        if self._spoken or self._tried is not None:
            return
        if self._silence is None or self._silence.when() > loop.time() + seconds:
            self._end_silence()
            self._silence = loop.call_later(seconds, self._try_to_reach)

    def _end_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._tried = None

    def _try_to_reach(self) -> None:
        self._silence = None
        self._tried = asyncio.get_running_loop().time()
        self._can_be_reached()

    def _has_spoken(self) -> None:
        """With an address. An ssh that has asked it in vain would ask again after seconds: another one asks now."""
        tried = self._tried
        self._end_silence()
        self._spoken = True
        if tried is not None and asyncio.get_running_loop().time() > tried + _ANSWER_SECONDS and self._ssh is not None:
            self._ssh.dial_anew()
        self._can_be_reached()

    def _can_be_reached(self) -> None:
        """A guest has an address. Asked for its sshd before, it would answer nothing, not even a refusal, and ssh would
        wait for that, and seconds longer than it takes a guest to come up."""
        if self._ssh is not None:
            self._ssh.guest_came()

    def _told(self, mac: bytes, there: bool) -> None:
        if self._notifier is not None:
            self._notifier.send(notification.ESTABLISHED if there else notification.CLOSED, mac)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _JoinedDatagramServer(DatagramServer, SwitchServer):
    """The one guest of a socket of datagrams, on a switch that others may join: found as by the first, served as by the
    second."""


def _owned(raw: _socket.socket) -> socket.socket:
    """The same descriptor as an object of the socket module, which the wrapper does not import."""
    return socket.socket(fileno=raw.detach())
