# SPDX-License-Identifier: Apache-2.0
"""A network of containers inside the namespace that they share with their helper: a bridge for each network, a pair of
links for each container. What they send elsewhere is routed to the helper's tap, and what comes for them from there.

Called by netavark_plugin.py, in that namespace. Nothing translates addresses: the helper hears of each container by its
own, and containers hear of peers by theirs.

Adversary: the containers, which have their own end of a pair: it may be gone, renamed or replaced at any time. What is
to be removed is found from this side, by the alias that it got here.
Invariants: `detach` may be called at any time and any number of times; an `attach` that fails leaves nothing behind.
The thread is in the shared namespace whenever a function returns or raises.
"""

from __future__ import annotations

import _socket
import os

from lockgate.core._datapath import lib
from lockgate.plugin import address, netlink, netlink_change
from lockgate.plugin.address import UNSET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lockgate.plugin.contracts.netavark import Attachment, StaticRoute, Subnet

_IPV4_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_IPV6_FORWARD = "/proc/sys/net/ipv6/conf/all/forwarding"
_BARRIER_PRIORITY = 1000  # after the rule for local addresses (0), before those for all others (32766)
_PROTOCOL_STATIC = 4  # RTPROT_STATIC
_METRICS_TRIED = 64  # networks of one container that have a default route each


class BridgeError(Exception):
    """Why a container cannot be attached: one sentence."""


def attach(made: Attachment, namespace: str, mtu: int) -> bytes:
    """The MAC address of the container's end; `mtu` is what the helper's tap takes. Raises BridgeError."""
    detach(made)  # what a container that was killed has left
    try:
        _forward(made)
        return _join(made, _bridge(made, made.mtu or mtu), namespace)
    except BaseException as failure:
        detach(made)
        if isinstance(failure, OSError):
            raise BridgeError(f"interface {made.interface} cannot be made: {failure.strerror}") from None
        raise


def detach(made: Attachment) -> None:
    """Takes away the container's links, and its network's bridge if it was the last one on it."""
    changes = netlink_change.Changes()
    for link in _links():
        if link.alias == _alias(made):
            changes.delete_link(link.index)
    links = _links()
    bridge = next((link for link in links if link.alias == _bridge_alias(made)), None)
    if bridge is None or any(link.master == bridge.index for link in links):
        return
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            changes.set_barrier(family, bridge.name, _BARRIER_PRIORITY, there=False)
        except OSError:
            pass  # a kernel without such rules has none
    changes.delete_link(bridge.index)


def _alias(made: Attachment) -> str:
    return f"lockgate {made.container} {made.network}"


def _bridge_alias(made: Attachment) -> str:
    return f"lockgate {made.network}"


def _links() -> list[netlink.Link]:
    socket = netlink.open_socket()
    try:
        return netlink.dump(socket, netlink.link_request(1)).links
    finally:
        socket.close()


# ---- the shared namespace ----


def _forward(made: Attachment) -> None:
    """Whoever was asked once for this stays a router: other networks rely on it too."""
    for family, path in ((_socket.AF_INET, _IPV4_FORWARD), (_socket.AF_INET6, _IPV6_FORWARD)):
        if family not in made.families:
            continue
        try:
            with open(path, "r+b", buffering=0) as file:
                if file.read(8).strip() != b"1":
                    file.seek(0)  # the kernel takes no notice of what is written elsewhere
                    file.write(b"1")
        except OSError as failure:
            raise BridgeError(f"packets cannot be forwarded ({path}: {failure.strerror})") from None


def _bridge(made: Attachment, mtu: int) -> netlink.Link:
    """The network's, which may be there already."""
    changes = netlink_change.Changes()
    known = _named(made.bridge)
    if known is None:
        changes.make_bridge(made.bridge, mtu=mtu, mac=_random_mac())
        known = _named(made.bridge)
        if known is None:
            raise BridgeError(f"bridge {made.bridge} was made and is gone again")
        changes.set_link(known.index, alias=_bridge_alias(made))
        known.alias = _bridge_alias(made)
    if known.kind != "bridge" or known.alias != _bridge_alias(made):
        raise BridgeError(f"interface {made.bridge} belongs to something else; choose another with --interface-name")
    if made.internal:
        for family in made.families:
            changes.set_barrier(family, made.bridge, _BARRIER_PRIORITY, there=True)
    _bring_up(changes, known.index, known.mac)
    for subnet in made.subnets:
        if subnet.gateway != UNSET:
            changes.add_address(known.index, _own(subnet.gateway, subnet))
    return known


def _named(name: str) -> netlink.Link | None:
    return next((link for link in _links() if link.name == name), None)


def _random_mac() -> bytes:
    """Of nobody's making, and of one interface."""
    drawn = os.urandom(6)
    return bytes((drawn[0] & 0xFC | 0x02,)) + drawn[1:]


def _own(one: bytes, subnet: Subnet) -> netlink.Address:
    return netlink.Address(subnet.family, 0, one, subnet.prefix, 0, 0)


def _bring_up(changes: netlink_change.Changes, index: int, mac: bytes) -> None:
    """With a link-local address of our own making: about one of the kernel's, others would be asked for a second, in
    which neither end looks for the other."""
    _set_link_local(changes, index, by_kernel=False)
    changes.set_link(index, up=True)
    own = address.link_local_of(mac)
    try:
        changes.add_address(index, netlink.Address(_socket.AF_INET6, 0, own, 64, netlink.SCOPE_LINK, 0))
    except OSError:
        return  # no IPv6
    _set_link_local(changes, index, by_kernel=True)  # should somebody take it down and up


def _set_link_local(changes: netlink_change.Changes, index: int, by_kernel: bool) -> None:
    try:
        changes.set_link_local(index, by_kernel)
    except OSError:
        pass  # no IPv6


# ---- the container ----


def _join(made: Attachment, bridge: netlink.Link, namespace: str) -> bytes:
    changes = netlink_change.Changes()
    mac = made.mac or _random_mac()
    outer = f"lg{os.urandom(6).hex()}"
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        changes.make_veth(outer, made.interface, fd, mtu=bridge.mtu, mac=mac)
        index = _socket.if_nametoindex(outer)
        changes.set_link(index, alias=_alias(made))
        _set_link_local(changes, index, by_kernel=False)  # a port of a bridge is nobody
        changes.set_link(index, master=bridge.index, up=True)
        inside, own = _inside(fd, lambda: (netlink_change.Changes(), _socket.if_nametoindex(made.interface)))
        _configure(made, inside, own, mac)
    finally:
        os.close(fd)
    return mac


def _inside(fd: int, work: Callable[[], tuple[netlink_change.Changes, int]]) -> tuple[netlink_change.Changes, int]:
    """Called in the container's namespace; a socket that is made there stays there."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(fd)
        try:
            return work()
        finally:
            _enter(own)
    finally:
        os.close(own)


def _enter(fd: int) -> None:
    refused = lib.lg_namespace_enter(fd, True)
    if refused:
        raise OSError(-refused, os.strerror(-refused))


def _configure(made: Attachment, inside: netlink_change.Changes, index: int, mac: bytes) -> None:
    _bring_up(inside, index, mac)
    for one, subnet in made.addresses:
        inside.add_address(index, _own(one, subnet))
    for route in made.routes:
        inside.add_route(index, _static(route))
    if made.internal or not made.default_route:
        return
    routed: set[int] = set()
    for _, subnet in made.addresses:
        if subnet.gateway != UNSET and subnet.family not in routed:
            routed.add(subnet.family)
            _add_default(made, inside, index, subnet)


def _add_default(made: Attachment, inside: netlink_change.Changes, index: int, subnet: Subnet) -> None:
    """Behind those of networks that the container has joined before."""
    hops = (netlink.NextHop(0, subnet.gateway, 1, 0),)
    for place in range(_METRICS_TRIED):
        metric = made.metric + place
        kind, table = netlink.ROUTE_UNICAST, netlink.TABLE_MAIN
        try:
            inside.add_route_alone(
                index, netlink.Route(subnet.family, table, kind, UNSET, 0, metric, hops, _PROTOCOL_STATIC)
            )
            return
        except FileExistsError:
            continue
    raise BridgeError(f"the container has {_METRICS_TRIED} default routes already")


def _static(one: StaticRoute) -> netlink.Route:
    hops = () if one.gateway == UNSET else (netlink.NextHop(0, one.gateway, 1, 0),)
    subnet, table = one.subnet, netlink.TABLE_MAIN
    return netlink.Route(
        subnet.family, table, one.kind, subnet.number, subnet.prefix, one.metric, hops, _PROTOCOL_STATIC
    )
