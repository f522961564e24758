# SPDX-License-Identifier: Apache-2.0
"""Regular expressions in the syntax of Go's package regexp, matched against names in linear time.

Called by zones.py. Adversary: the guest, which chooses the names; the patterns are the host's own. Python's `re` goes
back and tries again, for hours where repetitions are nested, and a guest could make it do so; Go never does. As there,
a pattern becomes an automaton all of whose states are followed at once.

Invariants: one name costs at most its length times the pattern's instructions, and both are bounded. The states that
names led to are kept, so that most names cost one look-up a character; there are never more than _STATES_MAX of them.
`matches` does not raise. Names are ASCII (zones.py escapes the rest), hence a set of characters is a mask of 128 bits.
All of Go's syntax is taken but for Unicode's classes (\\p), which no ASCII name needs; the messages are Go's.
"""

from __future__ import annotations

from typing import Final

INSTRUCTIONS_MAX = 1000  # a few dozen are usual; 256 characters cost such a pattern some 20 ms at worst
_NESTING_MAX = 50
_REPEAT_MAX = 1000  # as in Go
_STATES_MAX = 256

_ALL = (1 << 128) - 1
_END = 128  # the symbol behind the last character; in no mask

_SET, _SPLIT, _ASSERT, _MATCH = range(4)  # instructions: (kind, mask or target or assertion, target)
_AT_START, _AT_END, _AT_BOUNDARY, _NOT_AT_BOUNDARY = range(4)

_BEGIN, _WORD, _OTHER = range(3)  # what is before a place in a name


class RegexpError(ValueError):
    """A pattern that cannot be taken, in Go's words."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(f"error parsing regexp: {why}: `{where}`")


def _mask(characters: str) -> int:
    return sum(1 << ord(one) for one in set(characters))


def _range(first: int, last: int) -> int:
    """Characters outside ASCII are in no name."""
    return sum(1 << one for one in range(first, min(last, 127) + 1))


_LOWER, _UPPER, _DIGIT = _range(97, 122), _range(65, 90), _range(48, 57)
_ALNUM = _LOWER | _UPPER | _DIGIT
_WORDS = _ALNUM | _mask("_")
_GRAPH = _range(33, 126)
_PERL = {"d": _DIGIT, "s": _mask("\t\n\f\r "), "w": _WORDS}
_POSIX = {
    "alnum": _ALNUM,
    "alpha": _LOWER | _UPPER,
    "ascii": _ALL,
    "blank": _mask("\t "),
    "cntrl": _range(0, 31) | 1 << 127,
    "digit": _DIGIT,
    "graph": _GRAPH,
    "lower": _LOWER,
    "print": _GRAPH | _mask(" "),
    "punct": _GRAPH & ~_ALNUM,
    "space": _mask("\t\n\v\f\r "),
    "upper": _UPPER,
    "word": _WORDS,
    "xdigit": _DIGIT | _mask("abcdefABCDEF"),
}
_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_ASSERTIONS = {"A": _AT_START, "z": _AT_END, "b": _AT_BOUNDARY, "B": _NOT_AT_BOUNDARY}


class _State:
    """A set of instructions to go on from, what is before it, and where each character led so far."""

    __slots__ = ("after", "before", "targets")

    def __init__(self, targets: frozenset[int], before: int) -> None:
        self.targets = targets
        self.before = before
        self.after: dict[int, _State] = {}


_MATCHED: Final = _State(frozenset(), _OTHER)


class Regexp:
    """One pattern. Raises RegexpError."""

    __slots__ = ("_entry", "_program", "_start", "_states", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        compiled = _Program()
        self._entry = compiled.emit(_Parser(pattern).parse(), compiled.add(_MATCH, 0, 0))
        self._program = compiled.instructions
        self._start = _State(frozenset(), _BEGIN)
        self._states: dict[tuple[frozenset[int], int], _State] = {}

    def matches(self, name: bytes) -> bool:
        """Whether the pattern matches anywhere in an ASCII name."""
        state = self._start
        for symbol in (*name, _END):
            after = state.after.get(symbol)
            if after is None:
                after = state.after[symbol] = self._step(state, symbol)
            if after is _MATCHED:
                return True
            state = after
        return False

    def _step(self, state: _State, symbol: int) -> _State:
        """What a character leads to: all instructions that can be reached without one, and then over it."""
        is_word = bool(_WORDS >> symbol & 1)
        boundary = is_word != (state.before == _WORD)
        holds = (state.before == _BEGIN, symbol == _END, boundary, not boundary)
        waiting = [self._entry, *state.targets]  # a match may begin anywhere
        seen: set[int] = set()
        targets: set[int] = set()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            kind, value, target = self._program[at]
            if kind == _MATCH:
                return _MATCHED
            if kind == _SPLIT:
                waiting += (value, target)
            elif kind == _SET:
                if value >> symbol & 1:
                    targets.add(target)
            elif holds[value]:
                waiting.append(target)
        key = frozenset(targets), _WORD if is_word else _OTHER
        known = self._states.get(key)
        if known is None:
            if len(self._states) >= _STATES_MAX:
                self._states.clear()
                self._start.after.clear()
            known = self._states[key] = _State(*key)
        return known


class _Node:
    """A part of a pattern: `kind` is one of the five below, which say what the other two are."""

    __slots__ = ("children", "kind", "value")

    def __init__(self, kind: str, value: tuple[int, ...] = (), children: tuple[_Node, ...] = ()) -> None:
        self.kind = kind  # "set" (mask), "assert" (which), "repeat" (least, most or -1), "sequence", "choice"
        self.value = value
        self.children = children


class _Program:
    """Instructions, made from the end of a pattern to its beginning: each knows what follows it."""

    def __init__(self) -> None:
        self.instructions: list[tuple[int, int, int]] = []
        self._left = 4 * INSTRUCTIONS_MAX  # parts, those among them that become nothing

    def add(self, kind: int, value: int, target: int) -> int:
        if len(self.instructions) >= INSTRUCTIONS_MAX:
            raise RegexpError("expression too large", f"more than {INSTRUCTIONS_MAX} steps")
        self.instructions.append((kind, value, target))
        return len(self.instructions) - 1

    def emit(self, node: _Node, following: int) -> int:
        """Where `node` begins if `following` is what comes behind it."""
        self._left -= 1
        if self._left < 0:
            raise RegexpError("expression too large", f"more than {INSTRUCTIONS_MAX} steps")
        if node.kind == "set":
            return self.add(_SET, node.value[0], following)
        if node.kind == "assert":
            return self.add(_ASSERT, node.value[0], following)
        if node.kind == "repeat":
            return self._emit_repeat(node, following)
        if node.kind == "sequence":
            for child in reversed(node.children):
                following = self.emit(child, following)
            return following
        entry = self.emit(node.children[-1], following)
        for child in reversed(node.children[:-1]):
            entry = self.add(_SPLIT, self.emit(child, following), entry)
        return entry

    def _emit_repeat(self, node: _Node, following: int) -> int:
        (least, most), child = node.value, node.children[0]
        entry = following
        if most < 0:
            entry = self.add(_SPLIT, following, following)
            self.instructions[entry] = (_SPLIT, self.emit(child, entry), following)
        for _ in range(most - least):
            entry = self.add(_SPLIT, self.emit(child, entry), following)
        for _ in range(least):
            entry = self.emit(child, entry)
        return entry


class _Parser:
    """Reads a pattern from left to right. Of the flags only `i` says anything here: there are no lines in a name, and
    it does not matter how much a repetition takes."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._fold = False
        self._nesting = 0

    def parse(self) -> _Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise RegexpError("unexpected )", self._pattern)
        return node

    def _next(self) -> str:
        """The next character; empty at the end."""
        return self._pattern[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _take_until(self, text: str) -> str | None:
        end = self._pattern.find(text, self._at)
        if end < 0:
            return None
        taken = self._pattern[self._at : end]
        self._at = end + len(text)
        return taken

    def _choice(self) -> _Node:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Node("choice", (), tuple(branches))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated())
        return _Node("sequence", (), tuple(parts))

    def _repeated(self) -> _Node:
        if self._next() in ("*", "+", "?"):
            raise RegexpError("missing argument to repetition operator", self._next())
        node = self._atom()
        before = self._at
        counts = self._counts()
        if counts is None:
            return node
        self._take("?")
        if self._counts() is not None:
            raise RegexpError("invalid nested repetition operator", self._pattern[before : self._at])
        least, most = counts
        if max(least, most) > _REPEAT_MAX or 0 <= most < least:
            raise RegexpError("invalid repeat count", self._pattern[before : self._at])
        return _Node("repeat", counts, (node,))

    def _counts(self) -> tuple[int, int] | None:
        """Of a repetition operator, if one is next. Braces with something else in them are characters, as in Go."""
        for operator, counts in (("*", (0, -1)), ("+", (1, -1)), ("?", (0, 1))):
            if self._take(operator):
                return counts
        start = self._at
        inside = self._take_until("}") if self._take("{") else None
        least, comma, most = (inside or "").partition(",")
        if _is_number(least) and (_is_number(most) or most == ""):
            return int(least), int(most) if most else -1 if comma else int(least)
        self._at = start
        return None

    def _atom(self) -> _Node:
        character = self._next()
        self._at += 1
        if character == "(":
            return self._group()
        if character == "[":
            return _Node("set", (self._set(),))
        if character == ".":
            return _Node("set", (_ALL,))
        if character in ("^", "$"):
            return _Node("assert", (_AT_START if character == "^" else _AT_END,))
        if character == "\\":
            return self._escaped()
        return self._literal(ord(character))

    def _literal(self, code: int) -> _Node:
        return _Node("set", (self._folded(_range(code, code)),))

    def _folded(self, mask: int) -> int:
        return mask | (mask & _LOWER) >> 32 | (mask & _UPPER) << 32 if self._fold else mask

    def _group(self) -> _Node:
        self._nesting += 1
        if self._nesting > _NESTING_MAX:
            raise RegexpError("expression nests too deeply", self._pattern)
        fold = self._fold
        if self._take("?") and self._flags():
            self._nesting -= 1
            return _Node("sequence")  # to the end of the group around it
        node = self._choice()
        if not self._take(")"):
            raise RegexpError("missing closing )", self._pattern)
        self._fold = fold
        self._nesting -= 1
        return node

    def _flags(self) -> bool:
        """Behind "(?". Whether that is all of the group."""
        start = self._at - 2
        if self._take("P<") or self._take("<"):
            name = self._take_until(">")
            if not name or not name.isascii() or not name.replace("_", "a").isalnum():
                raise RegexpError("invalid named capture", self._pattern[start : self._at])
            return False
        on = True
        while (flag := self._next()) in ("i", "m", "s", "U", "-"):
            self._at += 1
            if flag == "-":
                on = False
            elif flag == "i":
                self._fold = on
        if self._take(":"):
            return False
        if self._take(")"):
            return True
        raise RegexpError("invalid or unsupported Perl syntax", self._pattern[start : self._at + 1])

    def _escaped(self) -> _Node:
        """Behind a backslash, outside of a set."""
        if self._take("Q"):
            quoted = self._take_until("\\E")
            if quoted is None:
                quoted, self._at = self._pattern[self._at :], len(self._pattern)
            return _Node("sequence", (), tuple(self._literal(ord(one)) for one in quoted))
        letter = self._next()
        if letter in _ASSERTIONS:
            self._at += 1
            return _Node("assert", (_ASSERTIONS[letter],))
        mask = self._perl()
        return self._literal(self._code()) if mask is None else _Node("set", (self._folded(mask),))

    def _perl(self) -> int | None:
        """Behind a backslash: a class of Perl's."""
        letter = self._next()
        if letter in ("p", "P"):
            raise RegexpError("Unicode classes are not supported, names are ASCII", f"\\{letter}")
        mask = _PERL.get(letter.lower())
        if mask is None:
            return None
        self._at += 1
        return mask if letter.islower() else _ALL & ~mask

    def _code(self) -> int:
        """Behind a backslash: the one character that is meant."""
        start = self._at
        letter = self._next()
        self._at += 1
        if letter == "":
            raise RegexpError("trailing backslash at end of expression", "")
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "x":
            digits = self._take_until("}") if self._take("{") else self._digits(2)
            if digits and all(one in "0123456789abcdefABCDEF" for one in digits) and int(digits, 16) <= 0x10FFFF:
                return int(digits, 16)
        elif letter in "01234567":
            digits = letter + self._octals(2)
            if letter == "0" or len(digits) > 1:  # else it would refer to a group
                return int(digits, 8)
        elif letter.isascii() and not letter.isalnum() and letter != "_":
            return ord(letter)
        raise RegexpError("invalid escape sequence", self._pattern[start - 1 : self._at])

    def _digits(self, count: int) -> str:
        taken = self._pattern[self._at : self._at + count]
        self._at += len(taken)
        return taken if len(taken) == count else ""

    def _octals(self, most: int) -> str:
        start = self._at
        while self._at < start + most and self._next() in tuple("01234567"):
            self._at += 1
        return self._pattern[start : self._at]

    def _set(self) -> int:
        """Behind "["."""
        start = self._at - 1
        negated = self._take("^")
        mask, first = 0, True
        while first or not self._take("]"):
            if self._at >= len(self._pattern):
                raise RegexpError("missing closing ]", self._pattern[start:])
            mask |= self._set_part(start)
            first = False
        mask = self._folded(mask)
        return _ALL & ~mask if negated else mask

    def _set_part(self, start: int) -> int:
        if self._pattern.startswith("[:", self._at) and self._pattern.find(":]", self._at + 2) >= 0:
            self._at += 2
            name = self._take_until(":]") or ""
            mask = _POSIX.get(name.removeprefix("^"))
            if mask is None:
                raise RegexpError("invalid character class range", f"[:{name}:]")
            return _ALL & ~mask if name.startswith("^") else mask
        if self._take("\\"):
            mask = self._perl()
            if mask is not None:
                return mask
            self._at -= 1
        at = self._at
        low = self._set_character()
        if self._next() != "-" or self._pattern[self._at + 1 : self._at + 2] in ("]", ""):
            return _range(low, low)
        self._at += 1
        high = self._set_character() if self._at < len(self._pattern) else -1
        if high < low:
            raise RegexpError("invalid character class range", self._pattern[at : self._at])
        return _range(low, high)

    def _set_character(self) -> int:
        if self._take("\\"):
            return self._code()
        character = self._next()
        self._at += 1
        return ord(character)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
