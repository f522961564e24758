# SPDX-License-Identifier: Apache-2.0
"""core/datapath/siphash.c against the algorithm of the paper, and against Python's own hash of bytes, which is the same
function since 3.11."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import given, settings
from hypothesis import strategies as st

MASK = 2**64 - 1


def rotated(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK


def sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    """Aumasson and Bernstein 2012, figure 2.1."""
    v0, v2 = (v0 + v1) & MASK, (v2 + v3) & MASK
    v1, v3 = rotated(v1, 13) ^ v0, rotated(v3, 16) ^ v2
    v0 = rotated(v0, 32)
    v2, v0 = (v2 + v1) & MASK, (v0 + v3) & MASK
    v1, v3 = rotated(v1, 17) ^ v2, rotated(v3, 21) ^ v0
    return v0, v1, rotated(v2, 32), v3


def paper_siphash(key: bytes, data: bytes, compression: int = 1, finalization: int = 3) -> int:
    """SipHash-c-d, section 2 of the paper."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    state = (k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573)
    padded = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        state = (*state[:3], state[3] ^ word)
        for _ in range(compression):
            state = sip_round(*state)
        state = (state[0] ^ word, *state[1:])
    state = (state[0], state[1], state[2] ^ 0xFF, state[3])
    for _ in range(finalization):
        state = sip_round(*state)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def ours(key: bytes, data: bytes) -> int:
    words = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
    return int(lib.siphash(ffi.new("struct siphash_key *", (words,)), data, len(data)))


def test_the_model_itself_gives_the_papers_vector() -> None:
    """SipHash-2-4 of 00..0e under 00..0f, worked out in the paper's appendix A."""
    assert paper_siphash(bytes(range(16)), bytes(range(15)), 2, 4) == 0xA129CA6149BE45E5


@settings(max_examples=3 * EXAMPLES)
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=80))
def test_it_is_siphash_1_3_for_any_key_and_length(key: bytes, data: bytes) -> None:
    """One round a word and three at the end, every length of the last word among them."""
    assert ours(key, data) == paper_siphash(key, data)


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes in another way")
def test_it_agrees_with_pythons_hash_of_bytes() -> None:
    """An implementation that is not ours, at its key of zeros."""
    samples = [bytes(range(length)) for length in range(1, 64)]
    program = f"import json; print(json.dumps([hash(s) for s in {samples!r}]))"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert [ours(bytes(16), sample) for sample in samples] == [value & MASK for value in json.loads(done.stdout)]
