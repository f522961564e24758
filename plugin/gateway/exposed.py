# SPDX-License-Identifier: Apache-2.0
"""What the host exposes of a virtual network: ports and socket files, by the texts that the API knows them by.

Called by api.py, through whoever joins the parts of the network. Ports are rules of the one table of forwards
(plugin/forward_table.py), in which others may have theirs; socket files are made here, and their clients are joined to
connections into the network.
Adversary: whoever may speak to the API, also from inside a guest: api.py says who may ask for what. Texts are checked
in forward_words.py and contracts/place.py; there is a bound on all that can be asked for.

Invariants: a request changes one entry or nothing; an entry is listed exactly as long as it is there; the same protocol
with the same text is there once.
Events: expose.added and expose.removed (protocol, local, remote); relay.failed is relay.py's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from lockgate.plugin.clients import Emit
from lockgate.plugin.contracts.place import Url, UrlError
from lockgate.plugin.forward_rule import ForwardRule
from lockgate.plugin.forward_table import ConflictError
from lockgate.plugin.forwards import Failure
from lockgate.plugin.gateway.forward_words import (
    PROTOCOLS,
    WRONG,
    ExposeError,
    go_reason,
    parse_remote,
    refusal,
    rule_of,
)
from lockgate.plugin.gateway.relay import JoinedClients
from lockgate.plugin.gateway.socket_file import SocketFile
from lockgate.plugin.gateway.ssh import ssh_child
from lockgate.plugin.gateway.virtual_network import PortForward

UNIX, NAMED_PIPE = "unix", "npipe"  # protocols, beside those of ports

FILES_MAX = 256  # socket files, each with a descriptor and clients of its own
_LOCAL_MAX = 4096  # characters of a path, and so of whatever the table is asked to remember
_REMOTE_MAX = 16 << 10  # of a URL with paths

SSH_PORT = 22


class Table(Protocol):
    """What is asked of the table of forwards."""

    async def exchange(self, old: Sequence[ForwardRule], new: Sequence[ForwardRule]) -> list[Failure]:
        """See ForwardTable.exchange()."""


class SshRemote:
    """A socket in a guest, which SSH leads to."""

    __slots__ = ("address", "identity", "path", "port", "user")

    def __init__(self, address: bytes, port: int, user: str, path: str, identity: str) -> None:
        self.address = address  # of the guest
        self.port = port
        self.user = user
        self.path = path  # in the guest
        self.identity = identity  # file on the host with the private key


# Serves the clients of a listening socket until it is cancelled; the socket stays the caller's. Connects when the first
# client comes.
OpenSshTunnel = Callable[[socket.socket, SshRemote], Awaitable[None]]

# A socket that is connected to a port in the virtual network. Raises OSError.
DialNetwork = Callable[[bytes, int], Awaitable[socket.socket]]


class _Entry:
    """What is exposed: a rule in the table, or a file and who serves its clients."""

    __slots__ = ("file", "forward", "rule", "serving")

    def __init__(self, forward: PortForward) -> None:
        self.forward = forward
        self.rule: ForwardRule | None = None
        self.file: SocketFile | None = None
        self.serving: asyncio.Task[None] | None = None


class Exposed:
    """All of it."""

    def __init__(
        self,
        table: Table,
        dial: DialNetwork,
        open_ssh_tunnel: OpenSshTunnel,
        emit: Emit,
        *,
        at_start: Iterable[PortForward] = (),
        folder: str,
    ) -> None:
        """`at_start`: whose rules are in the table already. `folder`: where paths begin that do not say where."""
        self._table = table
        self._dial = dial
        self._open_ssh_tunnel = open_ssh_tunnel
        self._emit = emit
        self._folder = folder
        self._turn = asyncio.Lock()
        self._entries: dict[tuple[str, str], _Entry] = {}
        for forward in at_start:
            entry = self._entries[forward.protocol, forward.local] = _Entry(forward)
            entry.rule = rule_of(forward)

    def all(self) -> list[PortForward]:
        """In no order."""
        return [entry.forward for entry in self._entries.values()]

    async def expose(self, protocol: str, local: str, remote: str) -> None:
        """Raises ExposeError."""
        if len(local) > _LOCAL_MAX or len(remote) > _REMOTE_MAX:
            raise ExposeError(f"expected at most {_LOCAL_MAX} characters for local and {_REMOTE_MAX} for remote", WRONG)
        entry = _Entry(PortForward(protocol, local, remote))
        async with self._turn:
            if (protocol, local) in self._entries:
                raise ExposeError(f"proxy already running for {protocol} on {local}")
            if protocol in PROTOCOLS:
                await self._open_port(entry)
            elif protocol == UNIX:
                self._open_file(entry)
            elif protocol == NAMED_PIPE:
                raise ExposeError("named pipes are not supported by this platform")
            else:
                raise ExposeError(f"unknown protocol {protocol}")
            self._entries[protocol, local] = entry
        self._emit("expose.added", protocol=protocol, local=local, remote=remote.partition("?")[0])

    async def unexpose(self, protocol: str, local: str) -> None:
        """Connections go on. Raises ExposeError."""
        async with self._turn:
            entry = self._entries.pop((protocol, local), None)
            if entry is None:
                raise ExposeError("proxy not found")
            await _close_file(entry)
            if entry.rule is not None:
                await self._table.exchange([entry.rule], [])
        self._emit("expose.removed", protocol=protocol, local=local, remote=entry.forward.remote.partition("?")[0])

    async def close(self) -> None:
        """Removes the files. Ports are the table's."""
        for entry in list(self._entries.values()):  # a client may still be at it
            await _close_file(entry)

    async def _open_port(self, entry: _Entry) -> None:
        rule = rule_of(entry.forward)
        try:
            failures = await self._table.exchange([], [rule])
        except ConflictError:
            raise refusal(entry.forward, rule, errno.EADDRINUSE) from None
        if failures:
            raise refusal(entry.forward, rule, failures[0].error)
        entry.rule = rule

    def _open_file(self, entry: _Entry) -> None:
        local = entry.forward.local
        serve = self._server_of(local, entry.forward.remote)
        if sum(one.file is not None for one in self._entries.values()) >= FILES_MAX:
            raise ExposeError(f"{FILES_MAX} sockets are exposed already; unexpose some of them")
        path = local if local.startswith("@") else os.path.join(self._folder, local) if local else ""
        try:
            entry.file = SocketFile(path)
        except OSError as failure:
            raise ExposeError(f"listen unix {local}: bind: {go_reason(failure.errno or errno.EINVAL)}") from None
        entry.serving = asyncio.get_running_loop().create_task(_serve(serve, entry.file.listener))

    def _server_of(self, local: str, remote: str) -> Callable[[socket.socket], Awaitable[None]]:
        try:
            place = Url(remote)
        except UrlError as mistake:
            raise ExposeError(f"failed to parse remote uri :{remote} : {mistake}") from None
        if place.scheme == "ssh-tunnel":
            ssh = _ssh_remote(place)
            return lambda listener: self._open_ssh_tunnel(listener, ssh)
        if place.scheme != "tcp":  # nor does gvproxy, whose words these are, take any other
            raise ExposeError(f"remote protocol for unix forwarder is not implemented: {place.scheme}")
        where, port = parse_remote(place.host)
        return JoinedClients(local, remote, lambda: self._dial(where, port), self._emit).serve


def _ssh_remote(place: Url) -> SshRemote:
    values = place.values()
    identity, passphrase = values.get("key", ""), values.get("passphrase", "")
    if not identity:
        raise ExposeError("key not provided for unix-ssh connection")
    if not place.path:
        raise ExposeError("remote uri must contain a path to a socket file")
    if passphrase:
        raise ExposeError("a key with a passphrase is not taken; ssh-keygen -p makes one without", WRONG)
    fault = ssh_child.fault_of(place.user, place.path) or ssh_child.fault_of_key_path(identity)
    if fault:
        raise ExposeError(fault, WRONG)
    _, colon, _ = place.host.rpartition(":")
    address, port = parse_remote(place.host if colon else f"{place.host}:{SSH_PORT}")
    return SshRemote(address, port, place.user, place.path, identity)


async def _serve(serve: Callable[[socket.socket], Awaitable[None]], listener: socket.socket) -> None:
    await serve(listener)


async def _close_file(entry: _Entry) -> None:
    """Nobody watches a descriptor that is closed."""
    if entry.serving is not None:
        entry.serving.cancel()
        await asyncio.wait([entry.serving])
    if entry.file is not None:
        entry.file.close()
