# SPDX-License-Identifier: Apache-2.0
"""Ports of the host in the words of gvproxy's API and of its configuration (`:8080` to `192.168.127.2:80`), as rules.

Called by exposed.py while the network runs, and by gvproxy_config.py, and awaited.py where a start fails, before READY:
hence the light imports.
Adversary: whoever sent a request, or wrote a file. Every mistake is an ExposeError, in the words in which Go's package
net says it wherever that does, because people search them.

Invariants: pure, but for the question whether the kernel has IPv6; no name is looked up; the same texts always make
the same rule.

    local  := [ address | "localhost" ] ":" port     in front nothing, 0.0.0.0 or [::]: all addresses of both families
    remote := address ":" port                       of IPv4, in the virtual network

Go listens on both families wherever it is told any address, of whichever family, and so do we: gvproxy's users reach a
port at 0.0.0.0 by ::1, too.
"""

from __future__ import annotations

import errno
import posix

from lockgate.plugin import address
from lockgate.plugin.address import ANY4, LOOPBACK4, UNSET
from lockgate.plugin.forward_rule import PORT_MAX, TCP, UDP, ForwardRule, bracketed, is_interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.forwards import Failure
    from lockgate.plugin.gateway.virtual_network import PortForward

PROTOCOLS = {"tcp": TCP, "udp": UDP}

WRONG, FAILED = 400, 500  # statuses: the request makes no sense, or what it asks for cannot be had

_TEXT_MAX = 256  # characters of an address and a port, and then some
_SOCKET_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.EAFNOSUPPORT, errno.ENOBUFS, errno.ENOMEM})


class ExposeError(Exception):
    """Why nothing was changed: one sentence, and the status that it goes with."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def rule_of(forward: PortForward) -> ForwardRule:
    """Of a protocol that is one of those above. Raises ExposeError."""
    listen, dual_stack, interface, port = _local(forward.protocol, forward.local)
    if dual_stack and not address.has_ipv6():
        listen, dual_stack = ANY4, False
    target, to_port = parse_remote(forward.remote)
    return ForwardRule(
        protocol=PROTOCOLS[forward.protocol],
        listen=listen,
        dual_stack=dual_stack,
        interface=interface,
        first=port,
        last=port,
        to_first=to_port,
        target=target,
        best_effort=False,
    )


def parse_remote(remote: str) -> tuple[bytes, int]:
    """An address in the virtual network, and a port. Raises ExposeError."""
    try:
        host, port_text = split_host_port(remote)
        port = _port("tcp", port_text, remote)
    except ExposeError as mistake:
        raise ExposeError(str(mistake), WRONG) from None
    target = address.parse_ipv4(host)
    if target is None or target == ANY4:
        raise ExposeError(f"address {_shown(remote)}: expected the IPv4 address of a guest before the port", WRONG)
    return target, port


def with_requester(remote: str, requester: str) -> str:
    """`:PORT` is that of the guest who asks. `requester` is its address; empty: the host asks. Raises ExposeError."""
    try:
        host, _ = split_host_port(remote)
    except ExposeError as mistake:
        raise ExposeError(str(mistake), WRONG) from None
    if host:
        return remote
    if not requester:
        raise ExposeError(
            f"address {_shown(remote)}: expected the address of a guest before the port; only a guest's own requests "
            "can leave it out",
            WRONG,
        )
    return (f"[{requester}]" if ":" in requester else requester) + remote


def refusal(forward: PortForward, rule: ForwardRule, error: int) -> ExposeError:
    """Why the port cannot be had."""
    call = "socket" if error in _SOCKET_ERRORS else "bind"
    host, _ = split_host_port(forward.local)
    if host:
        zone = f"%{rule.interface}" if rule.interface else ""
        shown = address.to_text(_listen(host) or UNSET) + zone
        host = f"[{shown}]" if ":" in shown else shown
    return ExposeError(f"listen {forward.protocol} {host}:{rule.first}: {call}: {go_reason(error)}")


def start_failure(failure: Failure) -> str:
    """Why a port that the command line or the file asked for cannot be had, and who has it."""
    from lockgate.plugin import port_holder  # hardly anybody needs it

    rule, name = failure.rule, next(name for name, number in PROTOCOLS.items() if number == failure.rule.protocol)
    host = "" if address.is_unspecified(rule.listen) else bracketed(rule.listen)
    taken = failure.error == errno.EADDRINUSE
    holder = port_holder.find(rule.protocol, failure.port, lambda _: True) if taken else ""
    reason = f"{go_reason(failure.error)}{f' (held by {holder})' if holder else ''}"
    return f"cannot add network services: listen {name} {host}:{failure.port}: bind: {reason}"


def go_reason(error: int) -> str:
    """An errno, as Go says it."""
    return posix.strerror(error).lower()


def split_host_port(text: str) -> tuple[str, str]:
    """The host without its brackets. Raises ExposeError."""
    if not text:
        raise ExposeError("missing port in address")
    shown = _shown(text)
    host, colon, port = text.rpartition(":")
    if not colon or len(text) > _TEXT_MAX:
        raise ExposeError(f"address {shown}: missing port in address")
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket:
            where = "missing port" if "]" in port else "missing ']'"
            raise ExposeError(f"address {shown}: {where} in address")
        if rest:
            raise ExposeError(f"address {shown}: {'too many colons' if ':' in rest else 'missing port'} in address")
    elif ":" in host:
        raise ExposeError(f"address {shown}: too many colons in address")
    for bracket in "[]":
        if bracket in host + port:
            raise ExposeError(f"address {shown}: unexpected '{bracket}' in address")
    return host, port


def _local(protocol: str, text: str) -> tuple[bytes, bool, str, int]:
    """Where to listen, whether for both families, on which interface alone, and the port."""
    try:
        host, port_text = split_host_port(text)
        port = _port(protocol, port_text, text)
        listen = _listen(host)
        if listen is None:
            raise ExposeError(f"lookup {_shown(host)}: no such host; expected an address of this one, or localhost")
        interface = host.partition("%")[2]
        if "%" in host and not (address.is_link_local(listen) and is_interface(interface)):
            raise ExposeError(f"address {_shown(text)}: expected an interface for link-local addresses alone")
    except ExposeError as mistake:
        prefix = "listen tcp: " if protocol == "tcp" else ""  # of datagrams, the two steps are apart
        raise ExposeError(f"{prefix}{mistake}") from None
    if address.is_unspecified(listen):
        return UNSET, True, "", port
    return listen, False, interface, port


def _listen(host: str) -> bytes | None:
    """Of this host; without an address any."""
    if host == "localhost":
        return LOOPBACK4
    return address.parse(host.partition("%")[0]) if host else UNSET


def _port(protocol: str, text: str, whole: str) -> int:
    if text and not (text.isascii() and text.isdecimal()):
        raise ExposeError(f"lookup {protocol}/{_shown(text)}: unknown port; expected a number from 1 to {PORT_MAX}")
    port = int(text or "0")
    if port > PORT_MAX:
        raise ExposeError(f"address {text}: invalid port")
    if port == 0:
        raise ExposeError(f"address {_shown(whole)}: expected a port from 1 to {PORT_MAX} behind the colon")
    return port


def _shown(text: str) -> str:
    """What is quoted fits a line of a log."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= _TEXT_MAX else f"{shown[:_TEXT_MAX]}…"
