# SPDX-License-Identifier: Apache-2.0
"""GNU getopt_long over a table, to the letter of its error lines, which callers search (podman: "unrecognized option").

Called by the contracts passt and pasta, before READY: no imports. The standard library's getopt and argparse lost:
other error lines, no `possibilities`, and 6 ms. Adversary: whoever made the command line. Invariants: no I/O; words are
never changed; stepping always ends, also when the caller goes on after an error.

The rules (glibc, with "+" at the head of the option string; tests/unit/test_getopt.py compares with the real one):
- Options end at the first word that is no option, or after "--". A lone "-" is no option.
- Shorts can be bundled; an argument is the rest of the word, or the next word, whatever that looks like.
- A long option's argument follows "=" or is the next word. A name can be cut short: an exact match wins, else all that
  begin so must be the same option; spellings of one option do not make an abbreviation ambiguous.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Option:
    """One row of a contract's table. getopt reads the first line of fields; the others are the contract's own."""

    __slots__ = ("aliases", "argument", "built", "help", "mode", "name", "sets", "short")

    def __init__(
        self,
        name: str,
        short: str = "",
        argument: str = "",
        *,
        aliases: tuple[str, ...] = (),
        help: str = "",
        mode: str = "",
        built: bool = True,
        sets: dict[str, object] | None = None,
    ) -> None:
        self.name, self.aliases, self.short, self.argument = name, aliases, short, argument
        self.help = help  # one line for the usage text
        self.mode = mode  # the only contract that takes it; empty: all that read this table
        self.built = built  # False: known, and refused with a sentence of its own
        self.sets = sets or {}  # for a switch: fields of the NetworkSpec and their values


class GetoptError(Exception):
    """str() is the line that glibc would have printed."""


class OptionTable:
    """What is looked up again and again, made once for each table."""

    __slots__ = ("longs", "options", "shorts")

    def __init__(self, options: Sequence[Option]) -> None:
        self.options = options
        self.longs = {name: option for option in options for name in (option.name, *option.aliases)}
        self.shorts = {option.short: option for option in options if option.short}


class Getopt:
    """Iterates over (option, argument), the argument empty for an option without one.

    A step may raise GetoptError; iterating again goes on behind the mistake, as calling getopt_long again does.
    With `blanks`, one word may hold an option and its argument with blanks between: "-T 80", "--tcp-ns 80". To glibc
    the blanks of the first belong to the argument, and the second is no option.
    """

    __slots__ = ("_blanks", "_bundle", "_ended", "_index", "_program", "_table", "_words")

    def __init__(self, table: OptionTable, words: Sequence[str], program: str, *, blanks: bool = False) -> None:
        self._blanks = blanks
        self._table = table
        self._words = words
        self._program = program
        self._index = 0  # of the next word
        self._bundle = b""  # short options of the last word that are still to come; bytes, as glibc sees them
        self._ended = False

    @property
    def rest(self) -> Sequence[str]:
        """The words that are no options, once iteration has ended."""
        return self._words[self._index :]

    def __iter__(self) -> Getopt:
        return self

    def __next__(self) -> tuple[Option, str]:
        if self._bundle:
            return self._short()
        if self._ended or self._index == len(self._words):
            raise StopIteration
        word = self._words[self._index]
        if word == "-" or not word.startswith("-"):
            self._ended = True
            raise StopIteration
        self._index += 1
        if word == "--":
            self._ended = True
            raise StopIteration
        if word.startswith("--"):
            return self._long(word[2:])
        self._bundle = os.fsencode(word[1:])
        return self._short()

    def _short(self) -> tuple[Option, str]:
        letter, self._bundle = os.fsdecode(self._bundle[:1]), self._bundle[1:]
        option = self._table.shorts.get(letter)
        if option is None:
            raise self._error(f"invalid option -- '{letter}'")
        if not option.argument:
            return option, ""
        if self._bundle:
            argument, self._bundle = os.fsdecode(self._bundle), b""
            return option, argument.lstrip(" ") if self._blanks else argument
        if self._index == len(self._words):
            raise self._error(f"option requires an argument -- '{letter}'")
        return option, self._next_word()

    def _long(self, text: str) -> tuple[Option, str]:
        given, equals, argument = text.partition("=")
        if self._blanks and " " in given:
            head, _, tail = text.partition(" ")
            if head in self._table.longs and self._table.longs[head].argument:
                given, equals, argument = head, " ", tail.lstrip(" ")
        name = given if given in self._table.longs else self._complete(given, text)
        option = self._table.longs[name]
        if equals:
            if not option.argument:
                raise self._error(f"option '--{name}' doesn't allow an argument")
            return option, argument
        if not option.argument:
            return option, ""
        if self._index == len(self._words):
            raise self._error(f"option '--{name}' requires an argument")
        return option, self._next_word()

    def _complete(self, given: str, text: str) -> str:
        names = [name for name in self._table.longs if name.startswith(given)]
        if not names:
            raise self._error(f"unrecognized option '--{text}'")
        first = self._table.longs[names[0]]
        others = [name for name in names if self._table.longs[name] is not first]
        if others:
            possibilities = " ".join(f"'--{name}'" for name in (names[0], *others))
            raise self._error(f"option '--{text}' is ambiguous; possibilities: {possibilities}")
        return names[0]

    def _next_word(self) -> str:
        self._index += 1
        return self._words[self._index - 1]

    def _error(self, sentence: str) -> GetoptError:
        return GetoptError(f"{self._program}: {sentence}")
