# SPDX-License-Identifier: Apache-2.0
"""core/datapath/pieces.c against slices of one byte string."""

from __future__ import annotations

from typing import Any

from core_pieces import EXAMPLES, ffi, iovec_array, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

parts_lists = st.lists(st.binary(max_size=6), max_size=8)


def bytes_of(array: Any, count: int) -> list[bytes]:
    return [bytes(ffi.buffer(array[at].iov_base, array[at].iov_len)) for at in range(count)]


@settings(max_examples=3 * EXAMPLES)
@given(parts_lists, st.integers(0, 50), st.integers(0, 50), st.integers(0, 9))
@example([b"ab", b"", b"cd"], 2, 2, 1)
def test_a_slice_is_the_bytes_in_as_many_pieces_as_they_touch(
    parts: list[bytes], skip: int, length: int, most: int
) -> None:
    """No piece without bytes, none beyond `max`, and 0 when they are too many."""
    whole = b"".join(parts)
    skip = min(skip, len(whole))
    length = min(length, len(whole) - skip)
    array, kept = iovec_array(parts)
    out = ffi.new("struct iovec[]", 10)
    count = lib.pieces_slice(array, len(kept), skip, length, out, most)
    starts = [sum(map(len, parts[:at])) for at in range(len(parts))]
    touched = [
        p for p, start in zip(parts, starts, strict=True) if max(start, skip) < min(start + len(p), skip + length)
    ]
    if len(touched) > most:
        assert count == 0
    else:
        found = bytes_of(out, count)
        assert b"".join(found) == whole[skip : skip + length]
        assert len(found) == len(touched) and all(found)


@settings(max_examples=3 * EXAMPLES)
@given(parts_lists, st.integers(0, 50), st.integers(0, 50))
def test_reading_gives_what_is_there(parts: list[bytes], skip: int, length: int) -> None:
    """Up to the length, or up to the end."""
    whole = b"".join(parts)
    array, kept = iovec_array(parts)
    to = ffi.new("uint8_t[]", 50)
    got = lib.pieces_read(array, len(kept), skip, to, length)
    assert bytes(ffi.buffer(to, got)) == whole[skip:][:length]


@settings(max_examples=3 * EXAMPLES)
@given(parts_lists, st.integers(0, 50), st.binary(max_size=50))
def test_writing_changes_those_bytes_and_no_other(parts: list[bytes], skip: int, data: bytes) -> None:
    """Across pieces with and without bytes."""
    whole = b"".join(parts)
    skip = min(skip, len(whole))
    data = data[: len(whole) - skip]
    array, kept = iovec_array(parts)
    lib.pieces_write(array, skip, data, len(data))
    assert b"".join(bytes_of(array, len(kept))) == whole[:skip] + data + whole[skip + len(data) :]


@settings(max_examples=3 * EXAMPLES)
@given(parts_lists, st.integers(0, 50))
def test_skipping_drops_the_first_bytes_in_place(parts: list[bytes], skip: int) -> None:
    """Whole pieces go, the next one is shortened; skipping more than there is leaves nothing."""
    array, kept = iovec_array(parts)
    gone = lib.pieces_skip(array, len(kept), skip)
    left = [array[at] for at in range(gone, len(kept))]
    assert b"".join(bytes(ffi.buffer(p.iov_base, p.iov_len)) for p in left) == b"".join(parts)[skip:]
