# SPDX-License-Identifier: Apache-2.0
"""Records of whole TCP flows, which control moves to another worker or takes from one: a part of channel.py.

Called by control, for migrations. Adversary and invariants: as there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from lockgate.core import channel
from lockgate.core._datapath import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class TcpFlow:
    """What a worker knows of the guest's end of a connection: an lg_tcp_flow, field by field."""

    guest_addr: bytes
    remote_addr: bytes
    guest_port: int
    remote_port: int
    mss: int
    guest_scale: int
    our_scale: int
    inbound: int
    sack_allowed: int
    snd_una: int
    snd_nxt: int
    snd_window: int
    rcv_nxt: int
    rcv_acked: int
    rcv_edge: int
    irs: int
    guest_ended: int = 0  # 1: its FIN is with the kernel
    peer_ended: int = 0  # 1: its FIN follows what is in the queue; 2: the guest has acknowledged that
    id: int = 0  # of a frozen flow, for its worker


def flow_adopt(flow: TcpFlow, port: int = 0) -> channel.Command:
    """LG_CMD_FLOW_ADOPT; the socket goes along."""
    header = {"type": lib.LG_CMD_FLOW_ADOPT, "port": port}
    record = ffi.new("struct lg_cmd_flow *", {"header": header, "flow": asdict(flow)})
    return channel.Command(lib.LG_CMD_FLOW_ADOPT, record)


def parse_frozen(record: bytes, descriptors: int) -> list[TcpFlow] | None:
    """The flows of an lg_frozen_page; None: it is none, or not as many sockets came with it."""
    if len(record) != ffi.sizeof("struct lg_frozen_page"):
        return None
    page = channel.copied("lg_frozen_page", record)
    if page.count > lib.LG_FROZEN_PAGE or page.count != descriptors:
        return None
    return [_tcp_flow(page.flow[at]) for at in range(page.count)]


def _tcp_flow(raw: Any) -> TcpFlow:
    content: dict[str, Any] = {field.name: getattr(raw, field.name) for field in fields(TcpFlow)}
    content |= {"guest_addr": bytes(raw.guest_addr), "remote_addr": bytes(raw.remote_addr)}
    return TcpFlow(**content)
