# SPDX-License-Identifier: Apache-2.0
"""The vhost-user codec and its table: complete against the specification, and every payload comes back as it went."""

from __future__ import annotations

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core._datapath import lib
from lockgate.plugin.vhost_user import messages
from lockgate.plugin.vhost_user.messages import (
    FEATURES,
    PAYLOAD_MAX,
    PROTOCOL_FEATURES,
    REGION,
    REQUESTS,
    U64,
    BackendRequest,
    Empty,
    Feature,
    Header,
    Log,
    MemRegion,
    MemTable,
    Payload,
    ProtocolFeature,
    Region,
    Request,
    VringAddr,
    VringState,
    mask,
    names,
    pack_message,
    request_name,
)
from lockgate.plugin.vhost_user.session import Session

# docs/interop/vhost-user.rst of QEMU 11, "Front-end message types", in the order of their ids from 1.
FRONT_END = """
    GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE SET_LOG_BASE SET_LOG_FD SET_VRING_NUM SET_VRING_ADDR
    SET_VRING_BASE GET_VRING_BASE SET_VRING_KICK SET_VRING_CALL SET_VRING_ERR GET_PROTOCOL_FEATURES
    SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_VRING_ENABLE SEND_RARP NET_SET_MTU SET_BACKEND_REQ_FD IOTLB_MSG
    SET_VRING_ENDIAN GET_CONFIG SET_CONFIG CREATE_CRYPTO_SESSION CLOSE_CRYPTO_SESSION POSTCOPY_ADVISE POSTCOPY_LISTEN
    POSTCOPY_END GET_INFLIGHT_FD SET_INFLIGHT_FD GPU_SET_SOCKET RESET_DEVICE VRING_KICK GET_MAX_MEM_SLOTS ADD_MEM_REG
    REM_MEM_REG SET_STATUS GET_STATUS GET_SHARED_OBJECT SET_DEVICE_STATE_FD CHECK_DEVICE_STATE GET_SHMEM_CONFIG
""".split()
# "Back-end message types", likewise.
BACK_END = """
    IOTLB_MSG CONFIG_CHANGE_MSG VRING_HOST_NOTIFIER_MSG VRING_CALL VRING_ERR SHARED_OBJECT_ADD SHARED_OBJECT_REMOVE
    SHARED_OBJECT_LOOKUP SHMEM_MAP SHMEM_UNMAP
""".split()
# "Protocol features", in the order of their bits from 0.
PROTOCOL = """
    MQ LOG_SHMFD RARP REPLY_ACK NET_MTU BACKEND_REQ CROSS_ENDIAN CRYPTO_SESSION PAGEFAULT CONFIG BACKEND_SEND_FD
    HOST_NOTIFIER INFLIGHT_SHMFD RESET_DEVICE INBAND_NOTIFICATIONS CONFIGURE_MEM_SLOTS STATUS XEN_MMAP SHARED_OBJECT
    DEVICE_STATE GET_VRING_BASE_INFLIGHT GPA_ADDRESSES SHMEM
""".split()

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
regions = st.builds(Region, u64, u64, u64, u64)
payloads = st.one_of(
    st.builds(Empty),
    st.builds(U64, u64),
    st.builds(VringState, u32, u32),
    st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    st.builds(MemTable, u32, st.lists(regions, max_size=messages.MEM_SLOTS).map(tuple)),
    st.builds(MemRegion, regions),
    st.builds(Log, u64, u64),
)


@pytest.mark.parametrize(
    ("spelled", "known", "first"),
    [(FRONT_END, Request, 1), (BACK_END, BackendRequest, 1), (PROTOCOL, ProtocolFeature, 0)],
)
def test_every_name_of_the_specification_has_its_number(spelled: list[str], known: type[IntEnum], first: int) -> None:
    """No request or protocol feature is missing, and none has another number than the specification gives it."""
    assert {member.name: int(member) for member in known} == {name: i for i, name in enumerate(spelled, first)}


def test_the_table_has_one_row_for_each_request() -> None:
    """A request that the front end may send is in the table, implemented or not."""
    assert list(REQUESTS) == [int(request) for request in Request]


def test_each_handler_of_the_table_is_a_method_of_the_session() -> None:
    """The names in the table's handler column exist, and no two rows share one."""
    handlers = [rule.handler for rule in REQUESTS.values() if rule.handler is not None]
    assert all(callable(getattr(Session, handler)) for handler in handlers)
    assert len(handlers) == len(set(handlers))


def test_what_belongs_to_an_offered_protocol_feature_is_implemented() -> None:
    """The table never promises what was not offered: a row's protocol feature is one of ours."""
    for rule in REQUESTS.values():
        assert rule.needs is None or mask(rule.needs) & PROTOCOL_FEATURES, rule.request


def test_memory_slots_are_those_of_the_worker() -> None:
    """MEM_SLOTS is LG_MEM_SLOTS of datapath.h: GET_MAX_MEM_SLOTS may not promise more than the worker holds."""
    assert lib.LG_MEM_SLOTS == messages.MEM_SLOTS


def test_the_offer_is_what_the_design_says() -> None:
    """The offered features, bit by bit."""
    assert names(FEATURES, Feature) == [
        "NET_F_CSUM",
        "NET_F_GUEST_CSUM",
        "NET_F_GUEST_TSO4",
        "NET_F_GUEST_TSO6",
        "NET_F_HOST_TSO4",
        "NET_F_HOST_TSO6",
        "NET_F_MRG_RXBUF",
        "VHOST_F_LOG_ALL",
        "RING_F_INDIRECT_DESC",
        "RING_F_EVENT_IDX",
        "PROTOCOL_FEATURES",
        "VERSION_1",
        "NET_F_GUEST_USO4",
        "NET_F_GUEST_USO6",
        "NET_F_HOST_USO",
    ]
    assert FEATURES == 0x1C0_0001_7400_9983
    assert names(PROTOCOL_FEATURES, ProtocolFeature) == [
        "LOG_SHMFD",
        "RARP",
        "REPLY_ACK",
        "NET_MTU",
        "BACKEND_REQ",
        "CONFIGURE_MEM_SLOTS",
        "STATUS",
        "DEVICE_STATE",
    ]


@given(payloads)
def test_a_payload_comes_back_as_it_went(payload: Payload) -> None:
    """unpack(pack(x)) is x, and every packed payload has a size that its class accepts."""
    data = payload.pack()
    assert type(payload).fits(len(data))
    assert type(payload).unpack(data) == payload


@given(st.sampled_from([U64, VringState, VringAddr, MemRegion, Log]), st.integers(0, PAYLOAD_MAX))
def test_a_fixed_payload_accepts_one_size(kind: type[Payload], size: int) -> None:
    """One byte more or less is refused."""
    assert kind.fits(size) == (size == kind.sizes[0])


@given(st.integers(0, PAYLOAD_MAX * 2))
def test_a_memory_table_is_whole_regions(size: int) -> None:
    """8 bytes, then up to 64 regions of 32; never a piece of one."""
    assert MemTable.fits(size) == (size >= 8 and (size - 8) % REGION.size == 0 and size <= 8 + 64 * 32)


@given(u32, u32, st.binary(max_size=64))
def test_a_message_is_its_header_and_its_payload(request: int, flags: int, payload: bytes) -> None:
    """The header tells the size of exactly what follows."""
    packed = pack_message(request, payload, flags)
    assert Header.unpack(packed[:12]) == Header(request, flags, len(payload))
    assert packed[12:] == payload


@given(u32, u32, u32)
def test_only_a_sound_header_passes(request: int, flags: int, size: int) -> None:
    """Version 1, no flag but NEED_REPLY, and a size that some message has."""
    sound = flags in (0x1, 0x9) and size <= PAYLOAD_MAX
    assert (Header(request, flags, size).fault() is None) == sound


@given(st.sets(st.integers(0, 63)))
def test_names_and_mask_are_of_the_same_bits(bits: set[int]) -> None:
    """Each set bit has one name, known or "bit N"."""
    assert len(names(mask(*bits), Feature)) == len(bits)


def test_a_bit_and_a_request_without_a_name_are_told_by_number() -> None:
    """What the specification does not know is still said in a way that can be looked up."""
    assert names(mask(32, 45), Feature) == ["VERSION_1", "bit 45"]
    assert request_name(5) == "SET_MEM_TABLE"
    assert request_name(99) == "request 99"
