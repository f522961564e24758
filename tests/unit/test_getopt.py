# SPDX-License-Identifier: Apache-2.0
"""The option grammar of passt and pasta (plugin/contracts/getopt.py, strtoul.py) against the C library's own.

The oracle is a C program that calls getopt_long() or strtoul() and prints what comes back.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.plugin.contracts.getopt import Getopt, GetoptError, Option, OptionTable
from lockgate.plugin.contracts.passt_options import TABLE
from lockgate.plugin.contracts.strtoul import ULONG_MAX, strtoul

ORACLE = r"""
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* argv: name, "NAME has_arg value\n" for each long option, short options, then the words to parse */
int main(int argc, char **argv)
{
    static struct option longs[512];
    static char names[512][64];
    char *line = strtok(argv[1], "\n");
    int count = 0, value;

    for (; line; line = strtok(NULL, "\n"), count++) {
        sscanf(line, "%63s %d %d", names[count], &longs[count].has_arg, &longs[count].val);
        longs[count].name = names[count];
    }
    char *shorts = argv[2];
    argv[2] = argv[0];
    argv += 2;
    argc -= 2;
    setvbuf(stderr, NULL, _IONBF, 0);
    while ((value = getopt_long(argc, argv, shorts, longs, NULL)) != -1)
        fprintf(stderr, "=%d %s\n", value, value == '?' || !optarg ? "" : optarg);
    fprintf(stderr, "rest %d\n", argc - optind);
    return 0;
}
"""

STRTOUL = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    char *end;

    for (int i = 1; i < argc; i++) {
        errno = 0;
        unsigned long number = strtoul(argv[i], &end, 0);
        if (errno || *end || end == argv[i])
            puts("none");
        else
            printf("%lu\n", number);
    }
    return 0;
}
"""

Oracle = Callable[[OptionTable, list[str]], bytes]


def build(directory: Path, source: str) -> str:
    program = directory / "oracle"
    subprocess.run(["gcc", "-x", "c", "-o", program, "-"], input=source, text=True, check=True)
    return str(program)


@pytest.fixture(scope="module")
def getopt_long(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    program = build(tmp_path_factory.mktemp("getopt"), ORACLE)

    def run(table: OptionTable, words: list[str]) -> bytes:
        value = value_of(table)
        longs = "".join(
            f"{name} {int(bool(option.argument))} {value[option]}\n" for name, option in table.longs.items()
        )
        shorts = "+" + "".join(option.short + ":" * bool(option.argument) for option in table.shorts.values())
        done = subprocess.run(
            ["passt", longs, shorts, *words],
            executable=program,
            stderr=subprocess.PIPE,
            env={"LC_ALL": "C"},
            check=True,
        )
        return done.stderr

    return run


def value_of(table: OptionTable) -> dict[Option, int]:
    """What getopt_long returns for an option: its short letter, as passt has it, or a number beyond all letters."""
    return {option: ord(option.short) if option.short else 1000 + n for n, option in enumerate(table.options)}


def ours(table: OptionTable, words: list[str]) -> bytes:
    """The same text from the parser under test."""
    value = value_of(table)
    parser = Getopt(table, words, "passt")
    lines = []
    while True:
        try:
            for option, argument in parser:
                lines.append(f"={value[option]} {argument}\n")
        except GetoptError as error:
            lines += [f"{error}\n", f"={ord('?')} \n"]
            continue
        lines.append(f"rest {len(parser.rest)}\n")
        return os.fsencode("".join(lines))


# ---- words that are nearly right: real names and letters, cut short, glued and misspelt ----

ARGUMENTS = st.sampled_from(["", "80", "-", "--", "-f", "--fd", "a=b", "é", " "])
NOISE = st.text(alphabet="abfs-=:;+1Wé\x7f", max_size=5)


def words_for(table: OptionTable) -> st.SearchStrategy[list[str]]:
    names = st.sampled_from(list(table.longs))
    cut = st.builds(lambda name, length: name[:length], names, st.integers(0, 12))
    long = st.builds(str.__add__, st.just("--"), st.one_of(names, cut, NOISE))
    with_value = st.builds("{}={}".format, long, ARGUMENTS)
    letters = st.one_of(st.sampled_from([*table.shorts, *table.shorts, *"zé:;-+W?"]))
    short = st.builds(lambda bundle, tail: "-" + "".join(bundle) + tail, st.lists(letters, max_size=4), ARGUMENTS)
    return st.lists(st.one_of(long, with_value, short, ARGUMENTS, NOISE), max_size=6)


@st.composite
def tables_and_words(draw: st.DrawFn) -> tuple[OptionTable, list[str]]:
    """Any table of names that are one another's beginnings, with spellings of the same option among them."""
    names = draw(st.lists(st.text(alphabet="ab-", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
    letters = iter("abcdefgh")
    options = []
    while names:
        aliases = tuple(names.pop() for _ in range(draw(st.integers(0, 2))) if len(names) > 1)
        short = next(letters) if draw(st.booleans()) else ""
        options.append(Option(names.pop(), short, draw(st.sampled_from(["", "X"])), aliases=aliases))
    table = OptionTable(options)
    return table, draw(words_for(table))


@settings(deadline=None, max_examples=400)
@given(words=words_for(TABLE))
def test_passt_options_parse_as_glibc_parses_them(getopt_long: Oracle, words: list[str]) -> None:
    """Options, arguments, error lines and the words left over are the C library's, also after an error."""
    assert ours(TABLE, words) == getopt_long(TABLE, words)


@settings(deadline=None, max_examples=300)
@given(case=tables_and_words())
def test_any_table_parses_as_glibc_parses_it(getopt_long: Oracle, case: tuple[OptionTable, list[str]]) -> None:
    """The engine knows nothing of passt: tables with every kind of overlap give the C library's answers too."""
    table, words = case
    assert ours(table, words) == getopt_long(table, words)


SMALL = OptionTable(
    [
        Option("foreground", "f"),
        Option("fd", "F", "N"),
        Option("socket", "s", "PATH", aliases=("socket-path",)),
        Option("tcp-ports", "t", "SPEC"),
        Option("quiet", "q"),
    ]
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-qft", "80"], "q, f, t=80"),
        (["-t80"], "t=80"),
        (["-t", "-q"], "t=-q"),
        (["--tcp", "80"], "t=80"),
        (["--tcp-ports=80=81"], "t=80=81"),
        (["--tcp-ports="], "t="),
        (["--sock", "p"], "s=p"),
        (["--socket-p", "p"], "s=p"),
        (["-q", "word", "-f"], "q, rest word -f"),
        (["-q", "--", "-f"], "q, rest -f"),
        (["-"], "rest -"),
        (["--foo"], "passt: unrecognized option '--foo'"),
        (["--foo=bar"], "passt: unrecognized option '--foo=bar'"),
        (["-z"], "passt: invalid option -- 'z'"),
        (["--fd"], "passt: option '--fd' requires an argument"),
        (["-qF"], "q, passt: option requires an argument -- 'F'"),
        (["--qui=1"], "passt: option '--quiet' doesn't allow an argument"),
        (["--f"], "passt: option '--f' is ambiguous; possibilities: '--foreground' '--fd'"),
    ],
)
def test_each_rule_of_the_grammar(words: list[str], expected: str) -> None:
    """One example for each rule, to be read; the comparison with glibc covers the rest."""
    parser = Getopt(SMALL, words, "passt")
    seen = []
    try:
        for option, argument in parser:
            seen.append(f"{option.short}={argument}" if option.argument else option.short)
    except GetoptError as error:
        seen.append(str(error))
    else:
        seen += ["rest " + " ".join(parser.rest)] if parser.rest else []
    assert ", ".join(seen) == expected


def test_an_exhausted_parser_stays_exhausted() -> None:
    """Words after "--" are never taken for options, however often the iteration is resumed."""
    parser = Getopt(SMALL, ["--", "-q"], "passt")
    assert list(parser) == []
    assert list(parser) == []
    assert list(parser.rest) == ["-q"]


@pytest.fixture(scope="module")
def c_strtoul(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], int | None]:
    program = build(tmp_path_factory.mktemp("strtoul"), STRTOUL)

    def run(text: str) -> int | None:
        answer = subprocess.run([program, text], stdout=subprocess.PIPE, check=True).stdout.strip()
        return None if answer == b"none" else int(answer)

    return run


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(alphabet="0123789abfxXF \t+_.٣", max_size=9), st.integers(0, 1 << 66).map(str)))
def test_numbers_are_read_as_strtoul_reads_them(c_strtoul: Callable[[str], int | None], text: str) -> None:
    """Base 8, 10 and 16 by prefix, leading blanks and plus; anything behind the number is a mistake."""
    assert strtoul(text) == c_strtoul(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (str(ULONG_MAX), ULONG_MAX),
        (str(ULONG_MAX + 1), None),
        ("0" * 9000 + "17", 15),
        ("9" * 9000, None),
        (" \t\n\v\f\r17", 17),
        ("-1", None),
        ("-0", None),
    ],
)
def test_numbers_at_the_limits(text: str, number: int | None) -> None:
    """The largest unsigned long is the last number; there is no minus; no length of text is a surprise."""
    assert strtoul(text) == number


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (["-T 80"], [("tcp-ns", "80")]),
        (["-qT  80", "x"], [("quiet", ""), ("tcp-ns", "80")]),
        (["--tcp-ns  80"], [("tcp-ns", "80")]),
        (["--search a=b"], [("search", "a=b")]),
        (["--search=a b"], [("search", "a b")]),
        (["-T", " 80"], [("tcp-ns", " 80")]),
        (["-T "], [("tcp-ns", "")]),
    ],
)
def test_blanks_may_stand_between_an_option_and_its_argument(words: list[str], taken: list[tuple[str, str]]) -> None:
    """In one word, if the caller says that it may be so; glibc takes the blanks for a part of the argument."""
    assert [(option.name, argument) for option, argument in Getopt(TABLE, words, "pasta", blanks=True)] == taken


@pytest.mark.parametrize("word", ["--bogus 80", "--quiet yes", "--tcp-n 80"])
def test_blanks_make_no_option_out_of_other_words(word: str) -> None:
    """Not of one without an argument, nor of an abbreviation."""
    with pytest.raises(GetoptError, match=f"^pasta: unrecognized option '{word}'$"):
        next(Getopt(TABLE, [word], "pasta", blanks=True))
