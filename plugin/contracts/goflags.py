# SPDX-License-Identifier: Apache-2.0
"""The grammar of Go's package flag over a table, to the letter of its error lines and of its usage text.

Called by the contract gvproxy, before READY: light imports. Adversary: whoever made the command line. Invariants: no
I/O; a command line that is wrong is a Stop with the texts that Go would have printed, never another exception.

The rules (tests/contract/test_gvproxy_command.py compares with a real gvproxy):
- One dash is as good as two. "-name=value" is one word; otherwise the value is the next word, whatever that looks like.
- A switch has its value behind "=" or none; the next word is never its value.
- Flags end at the first word that is none, a lone "-" or an empty one among them, or after "--". What follows is
  ignored.
- The first mistake counts. Of a flag given twice the last value counts, or all, if it is a list.
- Whole numbers are literals of Go: 0x, 0o, 0b, a leading 0 for octal, underscores between digits; 64 bits.
"""

from __future__ import annotations

from lockgate.plugin.logrus import quote
from lockgate.plugin.spec import Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Value = bool | int | str | tuple[str, ...]

# Kinds of flags, by the word that the usage text has for their values.
BOOL, INT, STRING, LIST = "", "int", "string", "value"

_ZERO: dict[str, Value] = {BOOL: False, INT: 0, STRING: "", LIST: ()}

INT_MAX = (1 << 63) - 1

_HELP = ("h", "help")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_BASES = {"0x": 16, "0o": 8, "0b": 2}
_DIGITS = "0123456789abcdef"


class Flag:
    """One row of a contract's table."""

    __slots__ = ("default", "help", "kind", "name")

    def __init__(self, name: str, kind: str, help: str, default: Value | None = None) -> None:
        self.name = name
        self.kind = kind
        self.help = help  # for the usage text
        self.default = _ZERO[kind] if default is None else default


class Values:
    """What a command line says, with the defaults where it says nothing."""

    __slots__ = ("_given", "_values")

    def __init__(self, flags: Sequence[Flag]) -> None:
        self._values: dict[str, Value] = {flag.name: flag.default for flag in flags}
        self._given: set[str] = set()

    def take(self, name: str, value: Value) -> None:
        self._values[name] = value
        self._given.add(name)

    def given(self, name: str) -> bool:
        return name in self._given

    def switch(self, name: str) -> bool:
        return bool(self._values[name])

    def number(self, name: str) -> int:
        value = self._values[name]
        assert isinstance(value, int)
        return value

    def text(self, name: str) -> str:
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def list(self, name: str) -> tuple[str, ...]:
        value = self._values[name]
        assert isinstance(value, tuple)
        return value


def parse(flags: Sequence[Flag], words: Sequence[str], program: str) -> Values:
    """`program` is argv[0], for the usage text. Raises Stop."""
    table = {flag.name: flag for flag in flags}
    values = Values(flags)
    rest = list(reversed(words))
    try:
        while rest and len(rest[-1]) > 1 and rest[-1].startswith("-"):
            word = rest.pop()
            if word == "--":
                break
            _take(word, rest, table, values)
    except FlagError as mistake:
        text = f"{mistake}\n" if str(mistake) else ""
        raise Stop(2 if text else 0, "", text + usage(flags, program)) from None
    return values


class FlagError(Exception):
    """What Go says; nothing, if only the usage text is wanted."""


def _take(word: str, rest: list[str], table: dict[str, Flag], values: Values) -> None:
    """One flag, and its value from `rest`, whose end is the next word."""
    name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
    if not name or name.startswith("-"):
        raise FlagError(f"bad flag syntax: {word}")
    flag = table.get(name)
    if flag is None:
        raise FlagError("" if name in _HELP else f"flag provided but not defined: -{name}")
    if flag.kind == BOOL:
        truth = _truth(text) if equals else True
        if truth is None:
            raise FlagError(f"invalid boolean value {quote(text)} for -{name}: parse error")
        values.take(name, truth)
        return
    if not equals:
        if not rest:
            raise FlagError(f"flag needs an argument: -{name}")
        text = rest.pop()
    values.take(name, _value(flag, text, values))


def _value(flag: Flag, text: str, values: Values) -> Value:
    if flag.kind == LIST:
        return (*values.list(flag.name), text)
    if flag.kind == STRING:
        return text
    try:
        return parse_int(text)
    except ValueError as mistake:
        raise FlagError(f"invalid value {quote(text)} for flag -{flag.name}: {mistake}") from None


def _truth(text: str) -> bool | None:
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def parse_int(text: str) -> int:
    """A literal of Go with 64 bits. Raises ValueError with what package flag makes of strconv's two errors."""
    sign = -1 if text.startswith("-") else 1
    digits = (text[1:] if text[:1] in ("+", "-") else text).lower()
    if digits[:2] in _BASES and len(digits) > 2:
        prefix = digits[:2]
    else:
        prefix = "0" if digits.startswith("0") else ""
    base = _BASES.get(prefix, 8 if prefix else 10)
    digits = digits[len(prefix) :]
    number = 0
    for digit in digits.replace("_", ""):
        value = _DIGITS.find(digit)
        if not 0 <= value < base:
            raise ValueError("parse error")
        number = number * base + value
        if number >> 64:  # whatever follows
            raise ValueError("value out of range")
    if not (digits or prefix) or not _underscores_fit(digits, bool(prefix)):
        raise ValueError("parse error")
    if number > INT_MAX + (sign < 0):
        raise ValueError("value out of range")
    return sign * number


def _underscores_fit(digits: str, prefixed: bool) -> bool:
    """Each has a digit behind it, and before it one or the prefix."""
    return not digits.endswith("_") and "__" not in digits and (prefixed or not digits.startswith("_"))


def usage(flags: Sequence[Flag], program: str) -> str:
    """All flags by name, with what they are if nobody says otherwise."""
    lines = [f"Usage of {program}:" if program else "Usage:"]
    for flag in sorted(flags, key=lambda flag: flag.name):
        shown = f" (default {_shown(flag.default)})" if flag.default else ""
        lines.append(f"  -{flag.name} {flag.kind}".rstrip())
        lines.append(f"    \t{flag.help}{shown}")
    return "\n".join(lines) + "\n"


def _shown(default: Value) -> str:
    return quote(default) if isinstance(default, str) else str(default).lower()
