# SPDX-License-Identifier: Apache-2.0
"""The netavark plugin: bridge networks of rootless Podman whose containers keep their addresses.

Called by launch.py when netavark or Podman runs `lockgate create|setup|teardown|info`: one word, JSON on standard input
and on standard output. `create` runs on the host; the others in the namespace that rootless containers share, where our
`pasta` serves a tap device, and refuse to work where it does not: only that helper takes packets of any container.
Adversary: nobody; what users wrote is checked in contracts/netavark.py.
Invariants: one object is printed, or nothing; what is wrong is an object with the one sentence, and exit status 1.
"""

from __future__ import annotations

import json
import os
import sys

from lockgate.plugin import hostnet, netlink
from lockgate.plugin.address import is_ipv4
from lockgate.plugin.bridge import bridge_network, meeting
from lockgate.plugin.contracts import netavark
from lockgate.plugin.contracts.netavark import Attachment, ContractError, Subnet
from lockgate.plugin.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from lockgate.plugin.forward_rule import ForwardRule

_INPUT_MAX = 1 << 22
_NETWORK_FILES_MAX = 1000


def main(arguments: Sequence[str]) -> int:
    try:
        said = _do(arguments[0], arguments[1:])
    except (ContractError, bridge_network.BridgeError, meeting.MeetingError, OSError) as fault:
        print(json.dumps({"error": str(fault)}), flush=True)
        return 1
    if said is not None:
        print(json.dumps(said), flush=True)
    return 0


def _do(command: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    if command == "info":
        return {"version": VERSION, "api_version": netavark.API_VERSION}
    if len(arguments) != (0 if command == "create" else 1):
        raise ContractError(f"lockgate {command}: expected the path of a network namespace, but for create")
    given = _read()
    if command == "create":
        return netavark.complete(given, _used())
    if command == "setup":
        return _setup(netavark.attachment(given), arguments[0])
    leaving = netavark.departure(given)
    bridge_network.detach(leaving)
    _disclaim(leaving)
    return None


def _read() -> dict[str, Any]:
    try:
        given = json.loads(sys.stdin.buffer.read(_INPUT_MAX))
    except ValueError as mistake:
        raise ContractError(f"expected JSON on standard input: {mistake}") from None
    if not isinstance(given, dict):
        raise ContractError("expected an object on standard input")
    return given


def _setup(made: Attachment, namespace: str) -> dict[str, Any]:
    helper = meeting.Client(meeting.NAME)
    facts = meeting.parse_facts(helper.ask(meeting.HELLO))
    mac = bridge_network.attach(made, namespace, facts.mtu)
    _claim(helper, made, [rule for rule in made.ports if (facts.ipv4 if is_ipv4(rule.listen) else facts.ipv6)])
    # No resolvers of our own: Podman names the host's where no network has one. Beside that of a bridge network, which
    # knows its containers' names, ours would say that there are no such names.
    return netavark.status(made, mac, made.dns)


def _claim(helper: meeting.Client, made: Attachment, ports: Sequence[ForwardRule]) -> None:
    """Where the ports lead that others may have opened."""
    try:
        helper.ask(meeting.pack_claim(_owner(made), ports))
    except meeting.MeetingError:
        bridge_network.detach(made)
        raise


def _disclaim(made: Attachment) -> None:
    try:
        meeting.Client(meeting.NAME).ask(meeting.pack_claim(_owner(made), ()))
    except meeting.MeetingError:
        pass  # a helper that is gone knows of none


def _owner(made: Attachment) -> str:
    return f"{made.container} {made.network}"


def _used() -> list[Subnet]:
    """What the host's routes lead to, and what other networks of this user have, as far as that can be found."""
    used = []
    try:
        host = hostnet.read_host()
        used += [_of_route(one) for one in host.routes if one.prefix and one.table == netlink.TABLE_MAIN]
    except OSError:
        pass  # then it cannot be avoided
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local/share")
    folder = os.path.join(data, "containers/storage/networks")
    try:
        names = sorted(os.listdir(folder))[:_NETWORK_FILES_MAX]
    except OSError:
        names = []
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                used += netavark.subnets_of(json.load(file))
        except (OSError, ValueError, AttributeError):
            continue  # not a network's
    return used


def _of_route(one: netlink.Route) -> Subnet:
    return Subnet(one.destination, one.prefix)
