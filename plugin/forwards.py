# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, one for each port that is forwarded: on the host, and what is alike of those in a namespace.

Called by the wrapper before READY, because ports are bound with the caller's rights, hence the light imports; and by
what becomes of it, the keeper, when the table of forwards is changed (ports.py). Those in a namespace are made by its
agent. What the rules mean is decided in contracts/forward_spec.py; who accepts on the sockets is not known here.
Adversary: nobody; but ports are taken by others at any time, so that only bind() itself is believed.

Invariants: bind() returns all that was asked for, or leaves nothing open. Sockets do not block, and are closed on exec.

What a socket is, by rule:
- Without an address it serves both families: an IPv6 socket that takes IPv4 too. With an address, and if only one
  family is enabled (on a kernel without IPv6 no more is), it serves one.
- TCP: SO_REUSEADDR, for a port must not be lost to connections of a helper that has ended.
- UDP: without it, since two processes could then bind one port and only one would be heard. Each datagram comes with
  the address that it was sent to, from which the answer must come; errors are queued.
- With `freebind`, it may have an address that the host does not have, or not yet.
"""

from __future__ import annotations

import _socket
import errno
import posix

from lockgate.plugin import address, native_text
from lockgate.plugin.forward_rule import PROTOCOL_NAMES, TCP, UDP, range_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lockgate.plugin.forward_rule import ForwardRule

    # Opens that many ports of a rule, from a first one on: for each its descriptor, or an errno below zero.
    OpenPorts = Callable[[ForwardRule, int, int], Sequence[int]]

_OPTIONS = {TCP: "--tcp-ports", UDP: "--udp-ports"}
_OUTWARD_OPTIONS = {TCP: "--tcp-ns", UDP: "--udp-ns"}

BACKLOG = 4096  # as far as net.core.somaxconn allows
BATCH_MAX = 64  # ports that are opened at once: whoever is asked for them has other things to do
UNPRIVILEGED_FILE = "/proc/sys/net/ipv4/ip_unprivileged_port_start"  # of both families
UNPRIVILEGED_DEFAULT = 1024

EXAMPLES_MAX = 5  # of runs of ports that are named where many could not be bound

# <linux/in.h> and <linux/in6.h>; not in every _socket
_IP_PKTINFO = 8
_IP_RECVERR = 11
_IP_FREEBIND = 15
_IPV6_RECVERR = 25
_IP_MULTICAST_ALL = 49
_IPV6_FREEBIND = 78

_IPV4_UDP = ((_socket.IPPROTO_IP, _IP_PKTINFO, 1), (_socket.IPPROTO_IP, _IP_RECVERR, 1))
_IPV6_UDP = ((_socket.IPPROTO_IPV6, _socket.IPV6_RECVPKTINFO, 1), (_socket.IPPROTO_IPV6, _IPV6_RECVERR, 1))
# Of an IPv4 datagram, IPv6's options bring the address in its header, which may be that of a broadcast, and no errors.
# And of IPv4's groups that the host is in, only a socket of IPv4 hears by itself.
_DUAL_STACK_UDP = (*_IPV6_UDP, *_IPV4_UDP, (_socket.IPPROTO_IP, _IP_MULTICAST_ALL, 1))


class ForwardError(Exception):
    """Why ports cannot be forwarded: one sentence for the caller."""

    def __init__(self, text: str, refused: Sequence[Failure] = ()) -> None:
        super().__init__(text)
        self.refused = refused  # one of each rule


class Listener:
    """A bound socket, by the descriptor that other processes are handed. Whoever has the Listener closes it."""

    __slots__ = ("fd", "port", "rule")

    def __init__(self, fd: int, rule: ForwardRule, port: int) -> None:
        self.fd = fd
        self.rule = rule
        self.port = port


def bind(
    rules: Sequence[ForwardRule], room: int, warn: Callable[[str], None], open_ports: OpenPorts | None = None
) -> list[Listener]:
    """Binds every port, TCP ones listening; on the host, if nothing else opens them. `room` is how many descriptors
    may be used for it.

    Raises ForwardError if a port that was named cannot be bound, or none of a run of ports of which any would do;
    warn() has got a line for each such rule then, in passt's words. What is missing of "all" otherwise is one line.
    """
    check_room(rules, room)
    listeners: list[Listener] = []
    refused: list[Failure] = []
    missed: list[Failure] = []
    for rule in rules:
        failures = _bind_rule(open_ports or on_host(), rule, range(rule.first, rule.last + 1), listeners)
        if rule.best_effort and len(failures) < rule.count:
            missed += failures
        else:
            refused += failures[:1]
    if refused:
        close(listeners)
        for failure in refused:
            warn(failure.line())
        raise ForwardError(f"Couldn't listen on requested ports: {explain(refused[0])}", refused)
    if missed:
        total = sum(rule.count for rule in rules if rule.best_effort)
        warn(f"{len(missed)} of {total} ports are not forwarded: {examples(missed)}")
    return listeners


def bind_some(wanted: Iterable[tuple[ForwardRule, Sequence[int]]], room: int, open_ports: OpenPorts) -> list[Listener]:
    """Of each rule the ports that are named, in ascending order, as far as they can be had."""
    listeners: list[Listener] = []
    for rule, numbers in wanted:
        _bind_rule(open_ports, rule, numbers[: max(room - len(listeners), 0)], listeners)
    return listeners


def close(listeners: Iterable[Listener]) -> None:
    """Frees the ports, as far as no other process has a copy of the socket."""
    for listener in listeners:
        posix.close(listener.fd)


def check_room(rules: Sequence[ForwardRule], room: int) -> None:
    """Raises ForwardError if they want more sockets than that."""
    wanted = sum(rule.count for rule in rules if not rule.auto)
    if wanted > max(room, 0):
        options = " and ".join(dict.fromkeys(map(_option_of, rules)))
        raise ForwardError(
            f"{options}: {wanted} ports need a socket each, and the limit on open files leaves {max(room, 0)} for "
            "them; forward fewer ports, or raise the hard limit (ulimit -Hn, or LimitNOFILE= of a systemd unit)"
        )


class Failure:
    """A port that could not be bound."""

    __slots__ = ("error", "port", "rule")

    def __init__(self, rule: ForwardRule, port: int, error: int) -> None:
        self.rule = rule
        self.port = port
        self.error = error

    @property
    def reason(self) -> str:
        return posix.strerror(self.error)

    def line(self) -> str:
        """In the contract's words, which callers search."""
        rule = self.rule
        where = f"{'SPLICE' if rule.outward else 'HOST'} {PROTOCOL_NAMES[rule.protocol]} port"
        return f"Listen failed for {where} {rule.listen_text}/{self.port}: {self.reason}"


def _bind_rule(
    open_ports: OpenPorts, rule: ForwardRule, numbers: Sequence[int], listeners: list[Listener]
) -> list[Failure]:
    """Appends what could be bound; returns what could not, of ports that were named at least the first."""
    failures = []
    for first, count in runs(numbers, BATCH_MAX):
        for port, fd in enumerate(open_ports(rule, first, count), first):
            if fd >= 0:
                listeners.append(Listener(fd, rule, port))
            else:
                failures.append(Failure(rule, port, -fd))
        if failures and not rule.best_effort:
            break
    return failures


def runs(numbers: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """First of consecutive numbers, and how many, in ascending ones."""
    first, count = 0, 0
    for number in numbers:
        if count and (number != first + count or count == most):
            yield first, count
            count = 0
        if not count:
            first = number
        count += 1
    if count:
        yield first, count


def on_host(freebind: bool = False) -> OpenPorts:
    def open_ports(rule: ForwardRule, first: int, count: int) -> list[int]:
        recipe = Recipe(rule, freebind)
        return [recipe.try_open(port) for port in range(first, first + count)]

    return open_ports


def socket_options(protocol: int, ipv4: bool, dual_stack: bool) -> list[tuple[int, int, int]]:
    """What a socket is by its protocol and family, wherever it is made."""
    options = [] if ipv4 else [(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0 if dual_stack else 1)]
    if protocol == TCP:
        options.append((_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1))
    else:
        options += _IPV4_UDP if ipv4 else _DUAL_STACK_UDP if dual_stack else _IPV6_UDP
    return options


class Recipe:
    """What the sockets of one rule have in common."""

    __slots__ = ("family", "host", "kind", "options", "scope_id", "tcp")

    def __init__(self, rule: ForwardRule, freebind: bool) -> None:
        self.tcp = tcp = rule.protocol == TCP
        stream = _socket.SOCK_STREAM if tcp else _socket.SOCK_DGRAM
        self.kind = stream | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        ipv4 = address.is_ipv4(rule.listen)
        self.family = _socket.AF_INET if ipv4 else _socket.AF_INET6
        self.host = address.to_text(rule.listen)
        self.scope_id = 0 if ipv4 else _scope_id(rule)
        self.options: list[tuple[int, int, int | bytes]] = [*socket_options(rule.protocol, ipv4, rule.dual_stack)]
        if freebind:
            ours = (_socket.IPPROTO_IP, _IP_FREEBIND, 1) if ipv4 else (_socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            self.options.append(ours)
        if rule.interface:
            name = native_text.encode(rule.interface) + b"\0"
            self.options.append((_socket.SOL_SOCKET, _socket.SO_BINDTODEVICE, name))

    def open(self, port: int) -> int:
        sock = _socket.socket(self.family, self.kind)
        try:
            for level, name, value in self.options:
                sock.setsockopt(level, name, value)
            where = (self.host, port) if self.family == _socket.AF_INET else (self.host, port, 0, self.scope_id)
            sock.bind(where)
            if self.tcp:
                sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock.detach()

    def try_open(self, port: int) -> int:
        try:
            return self.open(port)
        except OSError as failure:
            return -(failure.errno or errno.EINVAL)


def _scope_id(rule: ForwardRule) -> int:
    """fe80::1 is an address of each link; only with the interface it is known which."""
    if not rule.interface or not address.is_link_local(rule.listen):
        return 0
    try:
        return _socket.if_nametoindex(rule.interface)
    except OSError:
        return 0  # SO_BINDTODEVICE will say so


# ---- what is said ----


def explain(failure: Failure) -> str:
    """Why, and what to do; without a full stop. Looks for the holder of a port that is taken."""
    rule, error, port = failure.rule, failure.error, failure.port
    what = f"{PROTOCOL_NAMES[rule.protocol]} port {port}"
    other = f"or choose another port for {_option_of(rule)}"
    if rule.best_effort:
        what = f"none from {range_text(rule.first, rule.last)} can be had, {what}"
        other = f"or leave them out of {_option_of(rule)}, with ~{range_text(rule.first, rule.last)}"
    if rule.outward:
        if error == errno.EADDRINUSE:
            return f"{what} is taken in the namespace already; stop what has it there, {other}"
        return f"{what} of the namespace: {failure.reason}"
    if error == errno.EADDRINUSE:
        from lockgate.plugin import port_holder  # hardly anybody needs it

        holder = port_holder.find(rule.protocol, port, lambda ip: rule.shares_address(ip, ip == address.UNSET))
        return f"{what} is held by {holder or 'another process'}; stop that, {other}"
    start = _unprivileged_start()
    if error == errno.EACCES and port < start:
        return (
            f"{what} is for root only (net.ipv4.ip_unprivileged_port_start is {start}); "
            f"`sysctl net.ipv4.ip_unprivileged_port_start={port}` changes that, {other}"
        )
    if error == errno.EADDRNOTAVAIL:
        return f"this machine has no address {address.to_text(rule.listen)}; `ip address` lists what it has"
    if error == errno.ENODEV:
        return f"there is no interface {rule.interface}; `ip link` lists what there is"
    if error == errno.EPERM and rule.interface:
        return f"before Linux 5.7 only root may listen on one interface; leave out %{rule.interface}"
    if error == errno.EINVAL and not rule.interface and address.is_link_local(rule.listen):
        return f"a link-local address needs its interface, as in {rule.listen_text}%eth0/{port}"
    return f"{what}: {failure.reason}"


def _option_of(rule: ForwardRule) -> str:
    return (_OUTWARD_OPTIONS if rule.outward else _OPTIONS)[rule.protocol]


def _unprivileged_start() -> int:
    try:
        with open(UNPRIVILEGED_FILE, "rb", buffering=0) as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return UNPRIVILEGED_DEFAULT


def examples(missed: Sequence[Failure]) -> str:
    """The first few runs of ports that failed alike, and how many ports more."""
    runs: list[list[Failure]] = []
    for failure in missed:
        last = runs[-1][-1] if runs else None
        if last and last.rule is failure.rule and (last.port + 1, last.error) == (failure.port, failure.error):
            runs[-1].append(failure)
        else:
            runs.append([failure])
    shown = [
        f"{PROTOCOL_NAMES[run[0].rule.protocol]} {range_text(run[0].port, run[-1].port)} ({run[0].reason})"
        for run in runs[:EXAMPLES_MAX]
    ]
    more = sum(map(len, runs[EXAMPLES_MAX:]))
    return ", ".join(shown) + (f", and {more} more" if more else "")
