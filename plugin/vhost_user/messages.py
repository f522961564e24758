# SPDX-License-Identifier: Apache-2.0
"""messages: the vhost-user messages: their names, their layout, and the one table that says what is allowed of each.

Called by session.py (which message may come when, what is in it) and server.py (header and sizes on the wire).

Adversary: the front end. Nothing in a header or payload is believed here: sizes are checked against the table before a
payload is decoded, and a decoded payload is still only numbers; what they mean is checked in session.py.

Invariants: REQUESTS has one row for each request of the specification (QEMU, docs/interop/vhost-user.rst). All numbers
travel in the machine's own byte order, hence "=" in each layout.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

# How many regions of guest memory we take: LG_MEM_SLOTS of datapath.h, which a test compares. The worker looks an
# address up in all of them, so that a limit is needed; QEMU asks for it (GET_MAX_MEM_SLOTS), others send two to eight.
MEM_SLOTS = 64

# Section "Header": the low two bits of the flags are the version.
VERSION = 1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

# "Bits (0-7) of the payload contain the vring index. Bit 8 is the invalid FD flag." of SET_VRING_KICK, CALL and ERR.
VRING_INDEX_MASK = 0xFF
VRING_NOFD = 0x100

VRING_F_LOG = 1  # of SET_VRING_ADDR's flags: writes to the used ring are logged
VRING_SIZE_MAX = 32768  # virtio 1.2, 2.7: a split ring has a power of two of descriptors, at most these
VRING_BASE_MAX = 0xFFFF  # the avail ring's index is 16 bits wide


class Request(enum.IntEnum):
    """What the front end may ask; section "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    """What a back end may ask over the descriptor of SET_BACKEND_REQ_FD. We never ask: the names are for who reads."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Feature(enum.IntEnum):
    """Bit numbers of GET_FEATURES: virtio 1.3, 5.1.3 and 6, and vhost's own 26 and 30."""

    NET_F_CSUM = 0
    NET_F_GUEST_CSUM = 1
    NET_F_MTU = 3
    NET_F_GUEST_TSO4 = 7
    NET_F_GUEST_TSO6 = 8
    NET_F_HOST_TSO4 = 11
    NET_F_HOST_TSO6 = 12
    NET_F_MRG_RXBUF = 15
    VHOST_F_LOG_ALL = 26
    RING_F_INDIRECT_DESC = 28
    RING_F_EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    NET_F_GUEST_USO4 = 54
    NET_F_GUEST_USO6 = 55
    NET_F_HOST_USO = 56


class ProtocolFeature(enum.IntEnum):
    """Bit numbers of GET_PROTOCOL_FEATURES; section "Protocol features"."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    NET_MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    SHMEM = 22


def mask(*bits: int) -> int:
    """The number in which these bits are set."""
    return sum(1 << bit for bit in set(bits))


def names(value: int, vocabulary: type[enum.IntEnum]) -> list[str]:
    """The set bits of `value` by name, those without one as "bit 45": for events and for sentences."""
    known = {int(member): member.name for member in vocabulary}
    return [known.get(bit, f"bit {bit}") for bit in range(value.bit_length()) if value >> bit & 1]


# NET_F_MTU is not among these: User-mode Linux, which sees it before it is asked whether NET_MTU is understood, gives
# up PROTOCOL_FEATURES together with it. Session.offered() adds it once NET_MTU was acknowledged. No NET_F_MQ: one queue
# pair, and User-mode Linux 6.1 stops probing at it. No ECN: the engine does not know CWR from an ordinary flag.
FEATURES = mask(*(bit for bit in Feature if bit is not Feature.NET_F_MTU))

# STATUS is offered and only remembered. It is safe with every QEMU that uses it (7.2 and later): they read the byte
# before they add bits to it. It must not be acted on: 7.2 sends SET_STATUS 0 *before* GET_VRING_BASE, and a back end
# that took this for a reset would have no base left to tell; later ones send it after. RESET_DEVICE is not offered:
# stopping the rings is all that a reset means to us, and GET_VRING_BASE does that.
PROTOCOL_FEATURES = mask(
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.RARP,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.NET_MTU,
    ProtocolFeature.BACKEND_REQ,  # User-mode Linux 6.1 fails to probe without
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
)

# On a socket that was handed over (--fd), which only QEMU's own `-netdev passt` does, there is no way back to the front
# end: 10.1 to 11.1 close their copy of our end twice, and the second time hits the descriptor that took its number
# meanwhile, which is their end of that very channel. They then read from whatever follows it, and give the device up.
PROTOCOL_FEATURES_HANDED_OVER = PROTOCOL_FEATURES & ~mask(ProtocolFeature.BACKEND_REQ)

HEADER = struct.Struct("=III")
HEADER_SIZE = HEADER.size


class Header(NamedTuple):
    request: int
    flags: int
    size: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*HEADER.unpack(data))

    def fault(self) -> str | None:
        """Why nothing after this header can be trusted, or None. Such a connection is closed: even if the front end
        waits for an answer, where its next message starts is not known."""
        if self.flags & VERSION_MASK != VERSION:
            return f"version {self.flags & VERSION_MASK} in the header's flags; version {VERSION} is spoken here"
        if self.flags & ~(VERSION_MASK | FLAG_NEED_REPLY):
            return f"flags {self.flags:#x} in the header; of a request only {VERSION | FLAG_NEED_REPLY:#x} may be set"
        if self.size > PAYLOAD_MAX:
            return f"a payload of {self.size} bytes; the largest message has {PAYLOAD_MAX}"
        return None


def pack_message(request: int, payload: bytes, flags: int = VERSION | FLAG_REPLY) -> bytes:
    """A whole message; by default a reply, as the back end sends it."""
    return HEADER.pack(request, flags, len(payload)) + payload


def request_name(number: int) -> str:
    try:
        return Request(number).name
    except ValueError:
        return f"request {number}"


# ---- Payloads. Each class knows the sizes that it accepts; unpack() is only called with one of these. ----


class Payload:
    """What follows a header. `sizes` is (smallest, largest, step): see fits()."""

    __slots__ = ()
    sizes: ClassVar[tuple[int, int, int]]

    @classmethod
    def fits(cls, size: int) -> bool:
        least, most, step = cls.sizes
        return least <= size <= most and (size - least) % step == 0

    @classmethod
    def expected(cls) -> str:
        least, most, step = cls.sizes
        return f"{least} are" if least == most else f"{least} to {most} in steps of {step} are"

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        raise NotImplementedError

    def pack(self) -> bytes:
        raise NotImplementedError


class Fields(Payload):
    """A payload that is its fields, one behind the other, as `layout` has them."""

    __slots__ = ()
    layout: ClassVar[struct.Struct]

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls.layout.unpack(data))

    def pack(self) -> bytes:
        names: tuple[str, ...] = self.__slots__  # of the dataclass, in their order
        return self.layout.pack(*(getattr(self, name) for name in names))


@dataclass(frozen=True, slots=True)
class Empty(Payload):
    """No payload."""

    sizes = (0, 0, 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls()

    def pack(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class U64(Fields):
    """The specification's "u64"."""

    value: int

    layout: ClassVar = struct.Struct("=Q")
    sizes = (8, 8, 1)


@dataclass(frozen=True, slots=True)
class VringState(Fields):
    """The specification's "vring state description"; for a split ring also its "descriptor index"."""

    index: int
    num: int

    layout: ClassVar = struct.Struct("=II")
    sizes = (8, 8, 1)


@dataclass(frozen=True, slots=True)
class VringAddr(Fields):
    """The specification's "vring address description". Ring addresses are the front end's own; `log` is the guest's."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int

    layout: ClassVar = struct.Struct("=IIQQQQ")
    sizes = (40, 40, 1)


class Region(NamedTuple):
    """A piece of guest memory, in the order of the wire."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


REGION = struct.Struct("=QQQQ")


@dataclass(frozen=True, slots=True)
class MemTable(Payload):
    """The specification's "multiple memory regions description".

    User-mode Linux always sends room for two regions and says in the count how many are meant, so that a payload may
    be longer than its count asks for, by whole regions.
    """

    count: int
    regions: tuple[Region, ...]  # all that the payload has room for; those past `count` mean nothing

    head: ClassVar = struct.Struct("=II")
    sizes = (8, 8 + REGION.size * MEM_SLOTS, REGION.size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        count, _ = cls.head.unpack_from(data)
        return cls(count, tuple(Region(*fields) for fields in REGION.iter_unpack(data[cls.head.size :])))

    def pack(self) -> bytes:
        return self.head.pack(self.count, 0) + b"".join(REGION.pack(*region) for region in self.regions)


@dataclass(frozen=True, slots=True)
class MemRegion(Payload):
    """The specification's "single memory region description"."""

    region: Region

    head: ClassVar = struct.Struct("=Q")
    sizes = (40, 40, 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(Region(*REGION.unpack_from(data, cls.head.size)))

    def pack(self) -> bytes:
        return self.head.pack(0) + REGION.pack(*self.region)


@dataclass(frozen=True, slots=True)
class Log(Fields):
    """The specification's "log description": of the shared memory in which pages are marked."""

    size: int
    offset: int

    layout: ClassVar = struct.Struct("=QQ")
    sizes = (16, 16, 1)


@dataclass(frozen=True, slots=True)
class DeviceState(Fields):
    """The specification's "device state transfer parameters"."""

    direction: int  # 0 save, 1 load
    phase: int  # 0: the device has stopped; there is no other

    layout: ClassVar = struct.Struct("=II")
    sizes = (8, 8, 1)


PAYLOAD_MAX = MemTable.sizes[1]
FDS_MAX = MEM_SLOTS  # of one message: one for each region of SET_MEM_TABLE


# ---- The table. ----


class State(enum.Enum):
    """When a request may come."""

    ANY = "at any time"
    NEGOTIATED = "after SET_FEATURES"
    STOPPED = "while no ring is started"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: what the dispatcher checks before the handler, and what it does after it."""

    request: Request
    handler: str | None = None  # a method of Session; None: known by name, not implemented
    payload: type[Payload] = Empty
    fds: tuple[int, int] = (0, 0)
    state: State = State.ANY
    needs: ProtocolFeature | None = None  # must have been acknowledged
    reply: bool = False  # the front end waits for an answer of the request's own, with or without REPLY_ACK
    # The worker takes or lets go of memory or a ring. The answer waits for the worker, and should it refuse, the
    # connection is closed: the front end and we would have different ideas of what is shared.
    barrier: bool = False


def _rules() -> Iterable[Rule]:
    r, f, s = Request, ProtocolFeature, State
    yield Rule(r.GET_FEATURES, "get_features", reply=True)
    yield Rule(r.SET_FEATURES, "set_features", U64)
    yield Rule(r.SET_OWNER, "set_owner")
    yield Rule(r.RESET_OWNER, "reset_owner", barrier=True)
    yield Rule(r.SET_MEM_TABLE, "set_mem_table", MemTable, fds=(0, MEM_SLOTS), barrier=True)
    yield Rule(r.SET_LOG_BASE, "set_log_base", Log, fds=(1, 1), needs=f.LOG_SHMFD, reply=True, barrier=True)
    yield Rule(r.SET_LOG_FD, "set_log_fd", fds=(1, 1), barrier=True)
    yield Rule(r.SET_VRING_NUM, "set_vring_num", VringState)
    yield Rule(r.SET_VRING_ADDR, "set_vring_addr", VringAddr)
    yield Rule(r.SET_VRING_BASE, "set_vring_base", VringState)
    yield Rule(r.GET_VRING_BASE, "get_vring_base", VringState, reply=True, barrier=True)
    yield Rule(r.SET_VRING_KICK, "set_vring_kick", U64, fds=(0, 1), state=s.NEGOTIATED)
    yield Rule(r.SET_VRING_CALL, "set_vring_call", U64, fds=(0, 1))
    yield Rule(r.SET_VRING_ERR, "set_vring_err", U64, fds=(0, 1))
    yield Rule(r.GET_PROTOCOL_FEATURES, "get_protocol_features", reply=True)
    yield Rule(r.SET_PROTOCOL_FEATURES, "set_protocol_features", U64, state=s.STOPPED)
    # Belongs to MQ, which is not offered; some front ends ask all the same, and the answer is short.
    yield Rule(r.GET_QUEUE_NUM, "get_queue_num", reply=True)
    yield Rule(r.SET_VRING_ENABLE, "set_vring_enable", VringState)
    yield Rule(r.SEND_RARP, "send_rarp", U64, needs=f.RARP)
    yield Rule(r.NET_SET_MTU, "net_set_mtu", U64, needs=f.NET_MTU)
    yield Rule(r.SET_BACKEND_REQ_FD, "set_backend_req_fd", fds=(1, 1), needs=f.BACKEND_REQ)
    yield Rule(r.IOTLB_MSG, reply=True)
    yield Rule(r.SET_VRING_ENDIAN)
    yield Rule(r.GET_CONFIG, reply=True)
    yield Rule(r.SET_CONFIG)
    yield Rule(r.CREATE_CRYPTO_SESSION, reply=True)
    yield Rule(r.CLOSE_CRYPTO_SESSION)
    yield Rule(r.POSTCOPY_ADVISE, reply=True)
    yield Rule(r.POSTCOPY_LISTEN)
    yield Rule(r.POSTCOPY_END, reply=True)
    yield Rule(r.GET_INFLIGHT_FD, reply=True)
    yield Rule(r.SET_INFLIGHT_FD)
    yield Rule(r.GPU_SET_SOCKET)
    # Its protocol feature is not offered; who sends it all the same is better served than refused.
    yield Rule(r.RESET_DEVICE, "reset_device", barrier=True)
    yield Rule(r.VRING_KICK)
    yield Rule(r.GET_MAX_MEM_SLOTS, "get_max_mem_slots", needs=f.CONFIGURE_MEM_SLOTS, reply=True)
    yield Rule(r.ADD_MEM_REG, "add_mem_reg", MemRegion, fds=(1, 1), needs=f.CONFIGURE_MEM_SLOTS, barrier=True)
    # "The back-end MAY accept messages with one file descriptor", and must close it; some QEMUs sent one.
    yield Rule(r.REM_MEM_REG, "rem_mem_reg", MemRegion, fds=(0, 1), needs=f.CONFIGURE_MEM_SLOTS, barrier=True)
    yield Rule(r.SET_STATUS, "set_status", U64, needs=f.STATUS)
    yield Rule(r.GET_STATUS, "get_status", needs=f.STATUS, reply=True)
    yield Rule(r.GET_SHARED_OBJECT, reply=True)
    yield Rule(r.SET_DEVICE_STATE_FD, "set_device_state_fd", DeviceState, (1, 1), needs=f.DEVICE_STATE, reply=True)
    yield Rule(r.CHECK_DEVICE_STATE, "check_device_state", needs=f.DEVICE_STATE, reply=True)
    yield Rule(r.GET_SHMEM_CONFIG, reply=True)


REQUESTS: dict[int, Rule] = {int(rule.request): rule for rule in _rules()}
