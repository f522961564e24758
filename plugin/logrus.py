# SPDX-License-Identifier: Apache-2.0
"""The text format of logrus, in which `gvproxy` writes its log, and Go's way to quote a string (strconv.Quote, %q).

Called by the contract gvproxy, whose messages quote paths, by goflags.py, and by log.py for its lines; before READY,
hence the light imports. Adversary: whoever wrote the text. Invariants: pure; what is quoted is printable, and a line is
one line, whatever it says.
"""

from __future__ import annotations

import time

PANIC, FATAL, ERROR, WARNING, INFO, DEBUG, TRACE = LEVELS = (
    "panic",
    "fatal",
    "error",
    "warning",
    "info",
    "debug",
    "trace",
)  # from few lines to many

_ALIASES = {"warn": WARNING}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")  # needs no quotes
_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
_BYTES = range(0xDC80, 0xDD00)  # what PEP 383 makes of bytes that are no UTF-8


def level_of(text: str) -> str | None:
    """The level that a configuration names, in any case; None: there is no such level."""
    name = text.lower()
    name = _ALIASES.get(name, name)
    return name if name in LEVELS else None


def line(level: str, message: str, when: float) -> str:
    """One line, with its end. `when` is in seconds since 1970."""
    text = f"time={_value(timestamp(when))} level={level}"
    return f"{text} msg={_value(message)}\n" if message else f"{text}\n"


def timestamp(when: float) -> str:
    """RFC 3339, in the zone of this machine, to the second."""
    here = time.localtime(when)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", here)
    minutes = here.tm_gmtoff // 60
    if not minutes:
        return f"{date}Z"
    return f"{date}{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def quote(text: str) -> str:
    """As %q has it: printable is what Unicode calls so, everything else is escaped."""
    return f'"{"".join(map(_escaped, text))}"'


def quote_list(words: list[str]) -> str:
    """As %q has it of several."""
    return f"[{' '.join(map(quote, words))}]"


def _value(text: str) -> str:
    return text if text and _PLAIN.issuperset(text) else quote(text)


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable():
        return letter
    code = ord(letter)
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
