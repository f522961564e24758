# SPDX-License-Identifier: Apache-2.0
"""Arguments, names of files and the environment as the kernel has them: bytes, which need be no UTF-8 (PEP 383).

What os.fsencode and os.fsdecode do, for modules that cannot wait for `os`: a Python without `site` has not imported
that, and it costs 0.8 ms. Adversary: nobody. Invariant: what encode() makes of decode()'s result is the same again.
"""

from __future__ import annotations

import sys

_ENCODING = sys.getfilesystemencoding()


def encode(text: str) -> bytes:
    return text.encode(_ENCODING, "surrogateescape")


def decode(data: bytes) -> str:
    return data.decode(_ENCODING, "surrogateescape")
