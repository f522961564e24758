# SPDX-License-Identifier: Apache-2.0
"""session: one front end's connection: its state, the checks, and what follows for the worker.

Called by server.py, which reads messages, hands each to receive() and carry_out(), and sends what answer() says.
Neither sockets nor a clock nor asyncio are known here; the worker is reached through worker.Worker.

Adversary: the front end, one step from the guest. A message may say anything at any time.

Strategy. receive() has a message checked against the table, then its handler checks what it says; whatever is wrong
ends here as a Refused, with nothing changed. Else the handler changes the *model*, that is all the front end has told
us, and returns a Plan: a verdict, and perhaps an effect on the worker, which carry_out() runs. What the front end is
told follows from the verdict in dispatch.answer(), not here.

A worker may die in the middle of an effect. Because the model was changed first, resume() only has to tell all of the
model to the next worker, and the request is done. Only GET_VRING_BASE changes the model last: its answer is in the
worker, so that it is asked again (Plan.again).

Invariants: a descriptor that came is either in the model, which closes it once, or still in the message's list, whose
owner closes it. The worker runs exactly the rings that are `active` here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lockgate.plugin.clients import Emit
from lockgate.plugin.vhost_user.dispatch import ACK_OK, Done, Message, Plan, Refused, Reply, Verdict, table_fault
from lockgate.plugin.vhost_user.memory import DirtyLog, GuestMemory, describe
from lockgate.plugin.vhost_user.messages import (
    FEATURES,
    MEM_SLOTS,
    PROTOCOL_FEATURES,
    REQUESTS,
    U64,
    VRING_BASE_MAX,
    VRING_INDEX_MASK,
    VRING_NOFD,
    DeviceState,
    Empty,
    Feature,
    Log,
    MemRegion,
    MemTable,
    ProtocolFeature,
    VringAddr,
    VringState,
    mask,
    names,
)
from lockgate.plugin.vhost_user.vring import Vring, size_fault
from lockgate.plugin.vhost_user.worker import StateTransfer, Worker, WorkerError

QUEUES = 2  # 0 receiveq, to the guest; 1 transmitq, from the guest
QUEUE_PAIRS = 1

MTU_MIN, MTU_MAX = 68, 65535  # virtio 1.2, 5.1.4.1
STATUS_FAILED = 0x80  # virtio 1.2, 2.1: the driver has given up on the device
STATUS_MAX = 0xFF

DIRECTIONS = ("saved", "loaded")  # of SET_DEVICE_STATE_FD
STATE_REFUSED, STATE_NO_DESCRIPTOR = 1, 0x100  # its answer: an error in the low byte; ours brings no descriptor


DONE = Plan(Done())


class Session:
    """From connect to disconnect. One request at a time: receive(), carry_out(), then the next.

    resume() must not run between receive() and the end of carry_out(), unless that ended with WorkerGone.
    """

    def __init__(
        self,
        worker: Worker,
        emit: Emit,
        transfer: StateTransfer | None = None,
        protocol_offer: int = PROTOCOL_FEATURES,
    ) -> None:
        self.worker = worker
        self.transfer = transfer
        self.emit = emit
        self._protocol_offer = protocol_offer
        self.protocol_features = 0
        self.features = 0
        self.negotiated = False  # SET_FEATURES came
        self.status = 0
        self.memory = GuestMemory()
        self.log = DirtyLog()
        self.rings = [Vring(index) for index in range(QUEUES)]
        self.backend_req_fd: int | None = None
        self.attached = False  # frames pass both ways, and link.attach was emitted

    # ---- The steps of a request. ----

    def receive(self, message: Message) -> Plan:
        """Checks a message and takes it into the model. Descriptors that are kept are taken out of message.fds."""
        started = any(ring.started for ring in self.rings)
        fault = table_fault(message, self.protocol_features, self.negotiated, started)
        if fault is not None:
            return Plan(Refused(fault))
        rule = REQUESTS[message.header.request]
        handler: Callable[[Any, list[int]], Plan] = getattr(self, rule.handler or "")
        return handler(rule.payload.unpack(message.payload), message.fds)

    async def carry_out(self, message: Message, plan: Plan) -> Verdict:
        """Raises WorkerGone. After resume() the plan's verdict holds, or, of a plan to be run again, this anew."""
        verdict = plan.verdict
        if plan.effect is not None:
            try:
                verdict = await plan.effect(self.worker) or plan.verdict
            except WorkerError as error:
                verdict = Refused(f"the worker refused: {error}", close=REQUESTS[message.header.request].barrier)
        self._note_link("the front end stopped a ring")
        return verdict

    # ---- The life of the connection. ----

    async def resume(self, worker: Worker) -> None:
        """Tells a new worker all that the old one knew. WorkerError: it will not have it, and the session is over."""
        self.worker = worker
        self._deactivate(self.rings)
        if self.negotiated:
            await worker.link_features(self.features)
        if self.memory.regions:
            await worker.mem_table(self.memory.regions)
        if self.log.fd is not None:
            await self._tell_log(worker)
        await self._revive(worker)
        self.emit("link.resume", rings=[ring.index for ring in self.rings if ring.active])
        self._note_link("the rings could not be started again")

    async def detach(self, reason: str) -> None:
        """The connection is over. Returns when the worker has let go of everything; WorkerGone says the same."""
        if self.attached:
            self.attached = False
            self.emit("link.detach", reason=reason)
        self.close()
        await self.worker.link_reset()

    def close(self) -> None:
        """Closes every descriptor that the front end has sent."""
        for ring in self.rings:
            ring.reset()
        self.memory.clear()
        self.log.close()
        if self.backend_req_fd is not None:
            os.close(self.backend_req_fd)
            self.backend_req_fd = None

    def _note_link(self, reason: str) -> None:
        attached = all(ring.running for ring in self.rings)
        if attached == self.attached:
            return
        self.attached = attached
        if attached:
            self.emit("link.attach", features=names(self.features, Feature))
        else:
            self.emit("link.detach", reason=reason)

    # ---- Rings and the worker. ----

    def _deactivate(self, rings: list[Vring]) -> list[Vring]:
        """Model: the worker is not to run these. Returns those that it ran: to stop (_collect), or dead with it."""
        stopped = [ring for ring in rings if ring.active]
        for ring in stopped:
            ring.active = False
        return stopped

    async def _collect(self, worker: Worker, stopped: list[Vring]) -> None:
        for ring in stopped:
            ring.base = await worker.vring_stop(ring.index)
            ring.base_known = True

    async def _start(self, worker: Worker, ring: Vring) -> None:
        if self.transfer is not None:
            await self.transfer.link_starts()
        start, known = ring.start(), ring.base_known
        ring.base_known = False  # from here on, also of a worker that dies before it answers
        try:
            await worker.vring_start(start)
        except WorkerError:
            ring.base_known = known
            ring.set_kick(None)
            raise
        ring.active = True

    async def _restart(self, worker: Worker, ring: Vring) -> None:
        """Starts a ring that ran before, and has both sides look at it: neither need know that it was interrupted."""
        await self._start(worker, ring)
        ring.signal()

    async def _revive(self, worker: Worker) -> None:
        """Starts what should run and can, after memory or the worker has changed; nothing disabled (see vring.py)."""
        for ring in self.rings:
            if ring.started and ring.enabled and not ring.active:
                fault = ring.fault(self.memory)
                if fault is None:
                    await self._restart(worker, ring)
                else:
                    self.emit("link.parked", ring=ring.index, reason=fault)

    def _reconfigure(self, ring: Vring) -> list[Vring]:
        """Model: a started ring is told something that only holds for a stopped one: it stops, until its next kick.

        User-mode Linux does that when its driver is loaded again: it never says GET_VRING_BASE.
        """
        ring.set_kick(None)
        return self._deactivate([ring])

    def _ring(self, index: int) -> Vring | Refused:
        if index >= QUEUES:
            return Refused(f"ring {index} does not exist: this device has {QUEUES}")
        return self.rings[index]

    # ---- Handlers: features. ----

    def offered(self) -> int:
        if self.protocol_features & mask(ProtocolFeature.NET_MTU):
            return FEATURES | mask(Feature.NET_F_MTU)
        return FEATURES

    def get_features(self, payload: Empty, fds: list[int]) -> Plan:
        return Plan(Reply(U64(self.offered())))

    def set_features(self, payload: U64, fds: list[int]) -> Plan:
        features = payload.value
        if unknown := features & ~self.offered():
            return Plan(Refused(f"{', '.join(names(unknown, Feature))} acknowledged, which was not offered"))
        if not features & mask(Feature.VERSION_1):
            return Plan(
                Refused("VERSION_1 was not acknowledged: the guest needs a virtio 1.0 driver (not a legacy device)")
            )
        stopped: list[Vring] = []
        # LOG_ALL comes and goes while rings run, when a migration starts or is given up. Anything else changes how the
        # worker reads the rings.
        if self.negotiated and (features ^ self.features) & ~mask(Feature.VHOST_F_LOG_ALL):
            stopped = [stop for ring in self.rings for stop in self._reconfigure(ring)]
        self.features = features
        self.negotiated = True
        enabled: list[Vring] = []
        if not features & mask(Feature.PROTOCOL_FEATURES):
            # Section "Ring states": without it, the back end must enable all rings immediately.
            enabled = [ring for ring in self.rings if ring.active and not ring.enabled]
            for ring in self.rings:
                ring.enabled = True

        async def effect(worker: Worker) -> None:
            await self._collect(worker, stopped)
            await worker.link_features(features)
            for ring in enabled:
                await worker.vring_enable(ring.index, True)

        return Plan(Done(), effect)

    def get_protocol_features(self, payload: Empty, fds: list[int]) -> Plan:
        return Plan(Reply(U64(self._protocol_offer)))

    def set_protocol_features(self, payload: U64, fds: list[int]) -> Plan:
        if unknown := payload.value & ~self._protocol_offer:
            return Plan(Refused(f"{', '.join(names(unknown, ProtocolFeature))} acknowledged, which was not offered"))
        self.protocol_features = payload.value
        return DONE

    def get_queue_num(self, payload: Empty, fds: list[int]) -> Plan:
        return Plan(Reply(U64(QUEUE_PAIRS)))

    # ---- Handlers: the device. ----

    def set_owner(self, payload: Empty, fds: list[int]) -> Plan:
        return DONE

    def reset_owner(self, payload: Empty, fds: list[int]) -> Plan:
        """Deprecated. Back ends are to ignore it or to disable all rings; never to forget the rest."""
        for ring in self.rings:
            ring.enabled = False

        async def effect(worker: Worker) -> None:
            for ring in self.rings:
                if ring.active:
                    await worker.vring_enable(ring.index, False)

        return Plan(Done(), effect)

    def reset_device(self, payload: Empty, fds: list[int]) -> Plan:
        """Back to the start, except for what is not the device's: memory and protocol features.

        A front end with CONFIGURE_MEM_SLOTS keeps account of the regions that it has sent, and sends no region twice.
        """
        for ring in self.rings:
            ring.reset()
        self.log.close()
        self.features = 0
        self.negotiated = False
        self.status = 0

        async def effect(worker: Worker) -> None:
            await worker.link_reset()
            if self.memory.regions:
                await worker.mem_table(self.memory.regions)

        return Plan(Done(), effect)

    def get_status(self, payload: Empty, fds: list[int]) -> Plan:
        return Plan(Reply(U64(self.status)))

    def set_status(self, payload: U64, fds: list[int]) -> Plan:
        """Remembered, not acted on: see PROTOCOL_FEATURES in messages.py."""
        if payload.value > STATUS_MAX:
            return Plan(Refused(f"a device status of {payload.value:#x}: one byte is expected"))
        if payload.value & STATUS_FAILED and not self.status & STATUS_FAILED:
            self.emit("link.failed", reason="the guest's driver has given up on the device")
        self.status = payload.value
        return DONE

    def net_set_mtu(self, payload: U64, fds: list[int]) -> Plan:
        if not MTU_MIN <= payload.value <= MTU_MAX:
            return Plan(Refused(f"an MTU of {payload.value}: {MTU_MIN} to {MTU_MAX} is expected"))
        self.emit("link.mtu", mtu=payload.value)
        return DONE

    def send_rarp(self, payload: U64, fds: list[int]) -> Plan:
        """The guest has moved here. There is no switch on our side whose ports would have to learn it."""
        self.emit("link.rarp", mac=payload.pack()[:6].hex(":"))
        return DONE

    def set_backend_req_fd(self, payload: Empty, fds: list[int]) -> Plan:
        """Kept open, never written: we ask nothing. User-mode Linux takes the end of this pipe for an interrupt."""
        if self.backend_req_fd is not None:
            os.close(self.backend_req_fd)
        self.backend_req_fd = fds.pop()
        return DONE

    # ---- Handlers: a guest that moves. ----

    def set_device_state_fd(self, payload: DeviceState, fds: list[int]) -> Plan:
        """Answered at once; whether it worked is asked by CHECK_DEVICE_STATE."""
        fault: str | None = None
        if payload.direction >= len(DIRECTIONS) or payload.phase:
            fault = f"direction {payload.direction} in phase {payload.phase}: 0 or 1, and phase 0, are expected"
        elif any(ring.started for ring in self.rings):
            fault = f"the state can only be {DIRECTIONS[payload.direction]} while no ring is started"
        elif self.transfer is None:
            fault = "there is no state"
        else:
            fault = self.transfer.begin(payload.direction, fds[0])
            if fault is None:
                fds.clear()  # it is not ours any more
        if fault is not None:
            self.emit("link.refused", reason=fault, request="SET_DEVICE_STATE_FD")
            return Plan(Reply(U64(STATE_REFUSED | STATE_NO_DESCRIPTOR)))
        return Plan(Reply(U64(STATE_NO_DESCRIPTOR)))

    def check_device_state(self, payload: Empty, fds: list[int]) -> Plan:
        async def effect(worker: Worker) -> Verdict:
            return Reply(U64(STATE_REFUSED if self.transfer is None else await self.transfer.result()))

        return Plan(Reply(U64(STATE_REFUSED)), effect)

    # ---- Handlers: memory. ----

    def set_mem_table(self, payload: MemTable, fds: list[int]) -> Plan:
        count = payload.count
        if count > len(payload.regions):  # of which the table allows MEM_SLOTS
            return Plan(Refused(f"{count} regions are announced, and {len(payload.regions)} are in the payload"))
        if count != len(fds):
            return Plan(Refused(f"{len(fds)} descriptors for {count} regions: one for each is expected"))
        table = payload.regions[:count]
        if fault := self.memory.table_fault(table, fds):
            return Plan(Refused(fault))
        stopped = self._deactivate(self.rings)
        self.memory.replace(table, fds)
        fds.clear()

        async def effect(worker: Worker) -> None:
            await self._collect(worker, stopped)
            await worker.mem_table(self.memory.regions)
            await self._revive(worker)

        return Plan(Done(), effect)

    def get_max_mem_slots(self, payload: Empty, fds: list[int]) -> Plan:
        return Plan(Reply(U64(MEM_SLOTS)))

    def add_mem_reg(self, payload: MemRegion, fds: list[int]) -> Plan:
        if fault := self.memory.add_fault(payload.region, fds[0]):
            return Plan(Refused(fault))
        region = self.memory.add(payload.region, fds.pop())

        async def effect(worker: Worker) -> None:
            await worker.mem_add(region)
            await self._revive(worker)

        return Plan(Done(), effect)

    def rem_mem_reg(self, payload: MemRegion, fds: list[int]) -> Plan:
        region = self.memory.find(payload.region)
        if region is None:
            return Plan(Refused(f"the {describe(payload.region)} was never added"))
        at = region.at
        stopped = self._deactivate([ring for ring in self.rings if ring.overlaps(at.user_addr, at.size)])
        self.memory.remove(region)

        async def effect(worker: Worker) -> None:
            # QEMU takes a region away and adds its parts back when the memory map changes under a running guest: such
            # a ring stays started, and runs again when all of its memory is there.
            await self._collect(worker, stopped)
            await worker.mem_remove(at)
            await self._revive(worker)

        return Plan(Done(), effect)

    def set_log_base(self, payload: Log, fds: list[int]) -> Plan:
        if fault := self.log.fault(payload.size, payload.offset, fds[0]):
            return Plan(Refused(fault))
        self.log.set_table(fds.pop(), payload.size, payload.offset)
        return Plan(Reply(U64(ACK_OK)), self._tell_log)

    def set_log_fd(self, payload: Empty, fds: list[int]) -> Plan:
        self.log.set_event(fds.pop())
        return Plan(Done(), self._tell_log if self.log.fd is not None else None)

    async def _tell_log(self, worker: Worker) -> None:
        await worker.dirty_log(self.log.fd, self.log.size, self.log.offset, self.log.event_fd)

    # ---- Handlers: rings. ----

    def set_vring_num(self, payload: VringState, fds: list[int]) -> Plan:
        ring = self._ring(payload.index)
        if isinstance(ring, Refused):
            return Plan(ring)
        if fault := size_fault(payload.num):
            return Plan(Refused(fault))
        stopped = self._reconfigure(ring)
        ring.size = payload.num
        return Plan(Done(), lambda worker: self._collect(worker, stopped))

    def set_vring_addr(self, payload: VringAddr, fds: list[int]) -> Plan:
        ring = self._ring(payload.index)
        if isinstance(ring, Refused):
            return Plan(ring)
        if fault := ring.addr_fault(payload, self.memory if ring.size and self.memory.regions else None):
            return Plan(Refused(fault))
        if ring.moves(payload):
            stopped = self._reconfigure(ring)
        else:
            # The same place: what changes is whether the used ring is logged, when a migration starts or is given up.
            stopped = self._deactivate([ring])
        ring.addr = payload

        async def effect(worker: Worker) -> None:
            await self._collect(worker, stopped)
            if stopped and ring.started:
                await self._restart(worker, ring)

        return Plan(Done(), effect)

    def set_vring_base(self, payload: VringState, fds: list[int]) -> Plan:
        ring = self._ring(payload.index)
        if isinstance(ring, Refused):
            return Plan(ring)
        if payload.num > VRING_BASE_MAX:
            return Plan(Refused(f"a base of {payload.num} for ring {ring.index}: at most {VRING_BASE_MAX} is expected"))
        stopped = self._reconfigure(ring)
        ring.base = payload.num
        ring.base_known = True

        async def effect(worker: Worker) -> None:
            for active in stopped:
                await worker.vring_stop(active.index)  # where it stood is of no interest: it is told where to go on

        return Plan(Done(), effect)

    def get_vring_base(self, payload: VringState, fds: list[int]) -> Plan:
        ring = self._ring(payload.index)
        if isinstance(ring, Refused):
            return Plan(ring)

        async def effect(worker: Worker) -> Verdict:
            if not ring.active and not ring.base_known and ring.started and ring.fault(self.memory) is None:
                # The worker that ran it has died, and the ring is disabled: a start and a stop tell what used->idx is.
                await self._start(worker, ring)
            if ring.active:
                await self._collect(worker, [ring])
                ring.active = False
            ring.set_kick(None)
            return Reply(VringState(ring.index, ring.base))

        return Plan(Reply(VringState(ring.index, ring.base)), effect, again=True)

    def set_vring_enable(self, payload: VringState, fds: list[int]) -> Plan:
        ring = self._ring(payload.index)
        if isinstance(ring, Refused):
            return Plan(ring)
        if payload.num > 1:
            return Plan(Refused(f"{payload.num} for ring {ring.index}: 1 enables, 0 disables"))
        ring.enabled = bool(payload.num)

        async def effect(worker: Worker) -> None:
            if ring.active:
                await worker.vring_enable(ring.index, ring.enabled)
            else:
                await self._revive(worker)

        return Plan(Done(), effect)

    def _ring_and_fd(self, payload: U64, fds: list[int]) -> tuple[Vring, int | None] | Refused:
        """Of SET_VRING_KICK, CALL and ERR. The descriptor stays in `fds`."""
        if payload.value & ~(VRING_INDEX_MASK | VRING_NOFD):
            return Refused(f"{payload.value:#x}: only a ring index and {VRING_NOFD:#x}, no descriptor, are expected")
        ring = self._ring(payload.value & VRING_INDEX_MASK)
        if isinstance(ring, Refused):
            return ring
        wanted = 0 if payload.value & VRING_NOFD else 1
        if len(fds) != wanted:
            return Refused(f"{len(fds)} descriptors for ring {ring.index} where its flags announce {wanted}")
        return ring, fds[0] if wanted else None

    def set_vring_kick(self, payload: U64, fds: list[int]) -> Plan:
        found = self._ring_and_fd(payload, fds)
        if isinstance(found, Refused):
            return Plan(found)
        ring, fd = found
        if fd is None:
            return Plan(Refused(f"ring {ring.index} is to be polled: only kicks by eventfd are implemented"))
        if fault := ring.fault(self.memory):
            return Plan(Refused(fault))
        stopped = self._deactivate([ring])
        ring.set_kick(fd)
        fds.clear()

        async def effect(worker: Worker) -> None:
            await self._collect(worker, stopped)
            await self._start(worker, ring)

        return Plan(Done(), effect)

    def set_vring_call(self, payload: U64, fds: list[int]) -> Plan:
        found = self._ring_and_fd(payload, fds)
        if isinstance(found, Refused):
            return Plan(found)
        ring, fd = found
        ring.set_call(fd)
        fds.clear()

        async def effect(worker: Worker) -> None:
            if ring.active:
                await worker.vring_call(ring.index, fd)
                # What was used between the old descriptor's last look and now would otherwise never be told.
                ring.signal_call()

        return Plan(Done(), effect)

    def set_vring_err(self, payload: U64, fds: list[int]) -> Plan:
        found = self._ring_and_fd(payload, fds)
        if isinstance(found, Refused):
            return Plan(found)
        ring, fd = found
        ring.set_err(fd)
        fds.clear()

        async def effect(worker: Worker) -> None:
            if ring.active:
                await worker.vring_err(ring.index, fd)

        return Plan(Done(), effect)
