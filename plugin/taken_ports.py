# SPDX-License-Identifier: Apache-2.0
"""Ports that are taken when a helper starts: which are worth waiting for, and the words for the others.

Called by start.py, and by gateway/awaited.py and gateway/places.py where ports are taken, before READY. Adversary:
nobody. Invariants: nobody waits for a port that will not be free, as far as that can be known.

`podman restart` removes the namespace of the old container and starts the new one's helper at once, which may be sooner
than the old one's has ended; libvirt starts a helper that was killed as soon as its link closes. Whoever has published
a port twice, or has it from another program, hears of it at once.
"""

from __future__ import annotations

import errno
import os

from lockgate.plugin import address, ending, port_holder
from lockgate.plugin.address import UNSET
from lockgate.plugin.forward_rule import PROTOCOL_NAMES, TCP, range_text
from lockgate.plugin.forwards import ForwardError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from lockgate.plugin.forward_rule import ForwardRule
    from lockgate.plugin.forwards import Failure, Listener


def bind(
    bind_all: Callable[[Callable[[str], None]], list[Listener]],
    warn: Callable[[str], None],
    patience: float = ending.PATIENCE,
    called_by: Callable[[], str] | None = None,
) -> list[Listener]:
    """What `bind_all` binds, which is forwards.bind but for where its lines go. Raises ForwardError."""
    ours = ending.Patience(patience)
    while True:
        lines: list[str] = []
        try:
            listeners = bind_all(lines.append)
        except ForwardError as fault:
            if ours.waits([_is_leaving(one) for one in fault.refused]):
                continue
            _tell(lines, warn)
            if fault.refused and (called_by or caller)() == "podman":
                raise ForwardError(
                    f"{fault} (-p {published(fault.refused[0].rule)} of podman)", fault.refused
                ) from None
            raise
        _tell(lines, warn)
        return listeners


def listen(open_one: Callable[[], _socket.socket], ip: bytes, port: int) -> _socket.socket:
    """What `open_one` opens, which listens for TCP there; at the unspecified address, for both families. Raises
    OSError."""
    ours = ending.Patience()
    while True:
        try:
            return open_one()
        except OSError as failure:
            look = failure.errno == errno.EADDRINUSE and port_holder.is_leaving(
                TCP, port, lambda other: ip in (other, UNSET) or address.is_unspecified(other)
            )
            if not ours.waits([look]):
                raise


def _tell(lines: list[str], warn: Callable[[str], None]) -> None:
    for line in lines:
        warn(line)


def _is_leaving(failure: Failure) -> bool | None:
    rule = failure.rule
    return failure.error == errno.EADDRINUSE and port_holder.is_leaving(
        rule.protocol, failure.port, lambda ip: rule.shares_address(ip, ip == UNSET)
    )


def caller() -> str:
    """The name by which the process was called that has called us."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            return os.path.basename(os.fsdecode(file.read().partition(b"\0")[0]))
    except OSError:
        return ""


def published(rule: ForwardRule) -> str:
    """As podman's users write it."""
    where = "" if address.is_unspecified(rule.listen) else f"{rule.listen_text}:"
    inside = range_text(rule.to_first, rule.to_first + rule.last - rule.first)
    protocol = PROTOCOL_NAMES[rule.protocol].lower()
    return f"{where}{range_text(rule.first, rule.last)}:{inside}{'' if protocol == 'tcp' else '/' + protocol}"
