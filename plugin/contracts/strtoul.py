# SPDX-License-Identifier: Apache-2.0
"""Numbers as a C program reads them: strtoul(3) with base 0, so 1500, 0x5dc and 02734 are the same.

Called by the contracts passt and pasta, before READY: no imports. Adversary: whoever made the command line. int() lost:
it takes 1_500, other scripts' digits and 0o; and refuses 02734. On purpose not as in C: a minus sign is no number
(strtoul wraps -1 to the largest), nor is one that does not fit.
"""

from __future__ import annotations

ULONG_MAX = (1 << 64) - 1

_SPACE = " \t\n\v\f\r"
_DIGITS = "0123456789abcdef"
_LONGEST = 22  # digits of ULONG_MAX in octal; int() refuses thousands of decimal digits with an exception


def strtoul(text: str) -> int | None:
    """The number that the whole text is, or None."""
    digits = text.lstrip(_SPACE).removeprefix("+").lower()
    base = 10
    if digits.startswith("0x"):
        base, digits = 16, digits[2:]
    elif digits.startswith("0"):
        base = 8
    allowed = _DIGITS[:base]
    if not digits or any(digit not in allowed for digit in digits) or len(digits.lstrip("0")) > _LONGEST:
        return None
    number = int(digits, base)
    return number if number <= ULONG_MAX else None
