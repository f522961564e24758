# SPDX-License-Identifier: Apache-2.0
"""gvproxy's HTTP API: which path means what, for whom, and how the network is asked for it.

Called by http_server.py, with one Api for each of three views: the whole API at -listen, all but /connect at -services,
and for guests, at the gateway's port 80, what they need to publish ports: the three paths below /services/forwarder/,
and of their protocols tcp and udp alone. A guest that could have a socket made, or the file of one removed, could do so
wherever the host's user may; whoever wants that as gvproxy has it says so (VirtualNetwork.guest_may_expose_files).
Adversary: whoever may connect, guests among them. Bodies are read in api_json.py, texts in them further below.

Invariants: a request that is wrong gets a status of 400 or more and changes nothing; statuses, texts and types are
those of upstream where it has any, as programs look at them (Podman in a guest shows them to its user).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from lockgate.plugin import address
from lockgate.plugin.forward_rule import PORT_MAX
from lockgate.plugin.gateway import relay
from lockgate.plugin.gateway.exposed import NAMED_PIPE, UNIX
from lockgate.plugin.gateway.forward_words import WRONG, ExposeError, with_requester
from lockgate.plugin.gateway.http import api_json, gateway_stats
from lockgate.plugin.gateway.http.http_server import Request, Response, Takeover, error, text
from lockgate.plugin.gateway.virtual_network import QEMU, PortForward, VirtualNetwork, Zone

ALL, SERVICES, GUEST = "all", "services", "guest"  # views

TWO_BYTES_LITTLE_ENDIAN, FOUR_BYTES_BIG_ENDIAN = "2-byte little-endian", "4-byte big-endian"  # lengths before frames

_OK = b"OK"  # what a tunnel begins with
_OK_SECONDS = 10.0  # for a client to take that


class Network(Protocol):
    """What the API is about."""

    def exposed(self) -> Iterable[PortForward]:
        """In any order."""

    async def expose(self, protocol: str, local: str, remote: str) -> None:
        """Raises ExposeError."""

    async def unexpose(self, protocol: str, local: str) -> None:
        """Raises ExposeError."""

    def leases(self) -> Mapping[bytes, bytes]:
        """MAC addresses by address, the gateway's too."""

    def zones(self) -> Sequence[Zone]:
        """In the order in which they count."""

    def add_zone(self, zone: Zone) -> None:
        """Also what is added to one that is there. Raises ValueError, whose text says why that cannot be."""

    def counters(self) -> Mapping[str, int]:
        """By the names of core/datapath/counters.h."""

    def cam(self) -> Mapping[bytes, int]:
        """By MAC address, the number of the connection behind which it is."""

    async def dial(self, ip: bytes, port: int) -> socket.socket:
        """A socket that is connected to a port in the network. Raises OSError."""

    async def take_link(self, link: socket.socket, behind: bytes, lengths: str) -> None:
        """A guest comes by this connection, of which `behind` has been read already; `lengths` is one of those above.
        The socket is the network's from now on."""


Handler = Callable[[Request], Awaitable[Response | Takeover]]
Change = Callable[[Request], Awaitable[None]]  # raises BodyError or ExposeError, and has changed nothing then


class Api:
    """One view of it."""

    def __init__(self, network: Network, spec: VirtualNetwork, view: str) -> None:
        self._network = network
        self._files = view != GUEST or spec.guest_may_expose_files
        self._lengths = FOUR_BYTES_BIG_ENDIAN if spec.transport == QEMU else TWO_BYTES_LITTLE_ENDIAN
        self._handlers: dict[str, Handler] = {
            "/services/forwarder/all": self._list,
            "/services/forwarder/expose": _changes(self._expose),
            "/services/forwarder/unexpose": _changes(self._unexpose),
        }
        if view != GUEST:
            self._handlers |= {
                "/services/dhcp/leases": self._leases,
                "/leases": self._leases,
                "/services/dns/all": self._zones,
                "/services/dns/add": _changes(self._add_zone),
                "/stats": self._stats,
                "/cam": self._cam,
                "/tunnel": self._tunnel,
            }
        if view == ALL:
            self._handlers["/connect"] = self._connect

    async def respond(self, request: Request) -> Response | Takeover:
        """What http_server.py asks."""
        handler = self._handlers.get(request.path)
        return error(404, "404 page not found") if handler is None else await handler(request)

    # ---- ports ----

    async def _list(self, request: Request) -> Response:
        shown = [one for one in self._network.exposed() if self._files or one.protocol != UNIX]
        return _json(api_json.forwards(shown))

    async def _expose(self, request: Request) -> None:
        asked = api_json.parse_forward(await request.body())
        if asked.protocol == UNIX:
            self._check_files()
        files = asked.protocol in (UNIX, NAMED_PIPE)
        remote = asked.remote if files else with_requester(asked.remote, request.requester)
        if not files and request.requester and _host(remote) != request.requester:
            raise ExposeError(f"a guest may expose ports of its own, {request.requester}, and no others", WRONG)
        await self._network.expose(asked.protocol, asked.local, remote)

    async def _unexpose(self, request: Request) -> None:
        asked = api_json.parse_forward(await request.body())
        if asked.protocol == UNIX:
            self._check_files()
        elif request.requester and not self._is_of(request.requester, asked.protocol, asked.local):
            raise ExposeError("proxy not found")
        await self._network.unexpose(asked.protocol, asked.local)

    def _is_of(self, requester: str, protocol: str, local: str) -> bool:
        """Whether what a guest wants taken back leads to it, whoever has asked for it."""
        there = (one for one in self._network.exposed() if (one.protocol, one.local) == (protocol, local))
        return any(_host(one.remote) == requester for one in there)

    def _check_files(self) -> None:
        if not self._files:
            raise ExposeError(
                "a guest may expose ports (tcp, udp), and no files of the host; stack.guestMayExposeFiles in the "
                "configuration file would change that"
            )

    # ---- names ----

    async def _zones(self, request: Request) -> Response:
        return _json(api_json.zones(self._network.zones()))

    async def _add_zone(self, request: Request) -> None:
        zone = api_json.parse_zone(await request.body())
        try:
            self._network.add_zone(zone)
        except ValueError as mistake:
            raise api_json.BodyError(str(mistake)) from None

    # ---- what there is ----

    async def _leases(self, request: Request) -> Response:
        return _json(api_json.leases(self._network.leases()))

    async def _cam(self, request: Request) -> Response:
        return _json(api_json.cam(self._network.cam()))

    async def _stats(self, request: Request) -> Response:
        return _json(api_json.encode(gateway_stats.reply(self._network.counters())))

    # ---- connections that become something else ----

    async def _tunnel(self, request: Request) -> Response | Takeover:
        ip_text, port_text = request.query.get("ip", ""), request.query.get("port", "")
        if not ip_text:
            return error(500, "ip is mandatory")
        ip = address.parse_ipv4(ip_text)
        if ip is None:
            return error(400, f"invalid IP address: {ip_text[:64]}")
        port = int(port_text) if port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5 else 0
        if not 0 < port <= PORT_MAX:
            return error(500, f"port {port_text[:64]!r}: expected a number from 1 to {PORT_MAX}")

        async def run(client: socket.socket, behind: bytes) -> None:
            try:
                async with asyncio.timeout(_OK_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(client, _OK)
                far = await relay.dial(lambda: self._network.dial(ip, port))
            except OSError:
                client.close()
            except BaseException:
                client.close()
                raise
            else:
                await relay.join(client, far, behind)

        return Takeover(run)

    async def _connect(self, request: Request) -> Takeover:
        return Takeover(lambda link, behind: self._network.take_link(link, behind, self._lengths))


def _changes(change: Change) -> Handler:
    """The handler of a path that changes something: asked by POST, and answered with nothing, or why not."""

    async def handle(request: Request) -> Response:
        if request.method != "POST":
            return error(400, "post only")
        try:
            await change(request)
        except api_json.BodyError as mistake:
            return error(400, str(mistake))
        except ExposeError as refusal:
            return error(refusal.status, str(refusal))
        return Response(200)

    return handle


def _host(remote: str) -> str:
    return remote.rpartition(":")[0]


def _json(body: bytes) -> Response:
    response = text("")
    response.body = body
    return response
