# SPDX-License-Identifier: Apache-2.0
"""What a person who starts this by hand wants to see: what the guest is given, and how a monitor is told of it.

Called by start.py at the end of a start. Adversary: nobody.
"""

from __future__ import annotations

from lockgate.plugin.address import UNSET, to_text
from lockgate.plugin.log import INFO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lockgate.plugin.log import Log
    from lockgate.plugin.netview import Assignments
    from lockgate.plugin.spec import NetworkSpec


def announce(spec: NetworkSpec, view: Assignments, link: str, hint: str, log: Log) -> None:
    """With -q, the warnings remain. `link` is its name, `hint` what to tell a monitor; empty: nothing."""
    # Podman takes a line for a fault, and names a resolver whatever the host has.
    tell = log.warning if spec.namespace is None else log.info
    for warning in view.warnings:
        tell(_sentence(warning))
    if log.level < INFO:
        return
    if spec.virtual is not None:
        _announce_places(spec, log)
        return
    if spec.namespace is not None and spec.namespace.splice_only:
        log.info(f"Link: loopback alone, {link}")
    else:
        _announce_link(spec, view, link, log)
    for rule in spec.forwards:
        log.info(f"Forward: {rule}")
    for rule in spec.namespace.forwards if spec.namespace else ():
        log.info(f"Forward, out of the namespace: {rule}")
    for note in view.notes:
        log.info(_sentence(note))
    if hint:
        log.info(hint)


def _announce_places(spec: NetworkSpec, log: Log) -> None:
    """In the words of gvproxy's own log."""
    assert spec.virtual is not None, "of a virtual network"
    log.info("waiting for clients...")
    for place in spec.virtual.listen:
        log.info(f"listening {place.text}")
    if spec.virtual.services is not None:
        log.info(f"enabling services API. Listening {spec.virtual.services.text}")


def _announce_link(spec: NetworkSpec, view: Assignments, link: str, log: Log) -> None:
    log.info(f"Link: {spec.link}, {link}")
    log.info(f"Modelled on: {_families(view.interface4 or 'local', view.interface6 or 'local', spec)}")
    log.info(f"MAC address of the gateway: {view.our_mac.hex(':')}")
    prefix = f"/{view.prefix4}" if view.prefix4 else ""
    log.info(f"Guest: {_families(_shown(view.guest4) + prefix, _shown(view.guest6), spec)}")
    log.info(f"Gateway: {_families(_shown(view.gateway4), _shown(view.our_link_local), spec)}")
    log.info(f"Host loopback as: {_families(_shown(view.map_host4), _shown(view.map_host6), spec)}")
    log.info(f"MTU: {view.advertised_mtu or 'not advertised'}")
    _announce_names(view, log)


def _announce_names(view: Assignments, log: Log) -> None:
    kept_back = ", not handed out"
    resolvers = ", ".join(map(to_text, view.dns4 + view.dns6))
    log.info(f"Resolvers: {resolvers or 'none'}{'' if view.dhcp_dns or not resolvers else kept_back}")
    for match, answering in ((view.dns_match4, view.dns_host4), (view.dns_match6, view.dns_host6)):
        if match != UNSET:
            log.info(f"What the guest asks of resolver {to_text(match)} goes to {to_text(answering)}")
    if view.search:
        log.info(f"Search domains: {', '.join(view.search)}{'' if view.dhcp_search else kept_back}")
    if view.hostname or view.fqdn:
        log.info(f"Name of the guest: {', '.join(filter(None, (view.hostname, view.fqdn)))}")


def _shown(address: bytes) -> str:
    return "none" if address == UNSET else to_text(address)


def _families(text4: str, text6: str, spec: NetworkSpec) -> str:
    """Both families side by side, without the one that is switched off."""
    shown = [text for text, family in ((text4, spec.ipv4), (text6, spec.ipv6)) if family.enabled]
    return ", ".join(shown)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
