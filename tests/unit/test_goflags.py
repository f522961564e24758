# SPDX-License-Identifier: Apache-2.0
"""plugin/contracts/goflags.py: the grammar of Go's package flag, its error lines and its usage text.

tests/contract/test_gvproxy_command.py compares with a real program of Go; here is what needs none.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.contracts import goflags
from lockgate.plugin.contracts.goflags import BOOL, INT, LIST, STRING, Flag, Values
from lockgate.plugin.spec import Stop

FLAGS = (
    Flag("verbose", BOOL, "Say more"),
    Flag("colour", BOOL, "Use colours", True),
    Flag("port", INT, "Port", 2222),
    Flag("mtu", INT, "MTU"),
    Flag("file", STRING, "File", "a\tb"),
    Flag("Also", LIST, "Another"),
)
USAGE = (
    "Usage of /opt/program:\n"
    "  -Also value\n    \tAnother\n"
    "  -colour\n    \tUse colours (default true)\n"
    '  -file string\n    \tFile (default "a\\tb")\n'
    "  -mtu int\n    \tMTU\n"
    "  -port int\n    \tPort (default 2222)\n"
    "  -verbose\n    \tSay more\n"
)


def parse(*words: str) -> Values:
    return goflags.parse(FLAGS, words, "/opt/program")


def stop(*words: str) -> Stop:
    with pytest.raises(Stop) as caught:
        parse(*words)
    assert caught.value.stdout_text == ""
    return caught.value


def mistake(*words: str) -> str:
    """The line before the usage text."""
    ended = stop(*words)
    line, newline, rest = ended.stderr_text.partition("\n")
    assert (ended.exit_code, newline, rest) == (2, "\n", USAGE)
    return line


def test_without_words_everything_is_as_the_table_says() -> None:
    values = parse()
    assert (values.switch("verbose"), values.switch("colour"), values.number("port")) == (False, True, 2222)
    assert (values.text("file"), values.list("Also")) == ("a\tb", ())
    assert not any(values.given(flag.name) for flag in FLAGS)


@pytest.mark.parametrize("words", [("-port", "80"), ("--port", "80"), ("-port=80",), ("--port=80",)])
def test_one_dash_is_as_good_as_two_and_a_value_may_be_a_word_of_its_own(words: tuple[str, ...]) -> None:
    values = parse(*words)
    assert values.number("port") == 80 and values.given("port") and not values.given("mtu")


def test_a_value_may_look_like_a_flag_or_be_empty() -> None:
    assert parse("-port", "-1", "-file", "-verbose").text("file") == "-verbose"
    assert parse("-file", "").text("file") == parse("-file=").text("file") == ""
    assert parse("-file", "--").text("file") == "--"
    assert parse("-file=a=b").text("file") == "a=b"


def test_the_last_value_counts_and_those_of_a_list_add_up() -> None:
    values = parse("-port=1", "-Also", "b", "-port=2", "-Also=a", "-Also=b")
    assert values.number("port") == 2 and values.list("Also") == ("b", "a", "b")


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_a_switch_may_be_told_to_be_on(text: str) -> None:
    assert parse(f"-verbose={text}").switch("verbose")


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_a_switch_may_be_told_to_be_off(text: str) -> None:
    assert not parse(f"--colour={text}").switch("colour")


@pytest.mark.parametrize("end", [["--"], [""], ["-"], ["word"], ["false", "--"]])
def test_what_follows_the_flags_is_ignored(end: list[str]) -> None:
    """No value of a switch among it."""
    values = parse("-verbose", *end, "-mtu", "nonsense", "-nonsense")
    assert values.switch("verbose") and not values.given("mtu")


@pytest.mark.parametrize(
    "words, line",
    [
        (["-x"], "flag provided but not defined: -x"),
        (["--x=1"], "flag provided but not defined: -x"),
        (["-por", "1"], "flag provided but not defined: -por"),
        (["-é"], "flag provided but not defined: -é"),
        (["---port"], "bad flag syntax: ---port"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-port"], "flag needs an argument: -port"),
        (["-Also"], "flag needs an argument: -Also"),
        (["-port", "abc"], 'invalid value "abc" for flag -port: parse error'),
        (["-port="], 'invalid value "" for flag -port: parse error'),
        (["-port", 'a"b'], 'invalid value "a\\"b" for flag -port: parse error'),
        (["-port", "9" * 20], f'invalid value "{"9" * 20}" for flag -port: value out of range'),
        (["-verbose=maybe"], 'invalid boolean value "maybe" for -verbose: parse error'),
        (["-verbose="], 'invalid boolean value "" for -verbose: parse error'),
        (["-verbose=yes"], 'invalid boolean value "yes" for -verbose: parse error'),
        (["-x", "-y"], "flag provided but not defined: -x"),
    ],
)
def test_the_first_mistake_is_one_line_and_the_usage_text(words: list[str], line: str) -> None:
    assert mistake(*words) == line


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help", "-h=1", "-help=0"])
def test_help_is_the_usage_text_alone(word: str) -> None:
    ended = stop("-verbose", word, "-nonsense")
    assert (ended.exit_code, ended.stderr_text) == (0, USAGE)


def test_a_program_without_a_name_has_a_usage_text_all_the_same() -> None:
    assert goflags.usage((), "") == "Usage:\n"


@pytest.mark.parametrize(
    "text, number",
    [
        ("0", 0),
        ("-0", 0),
        ("00", 0),
        ("+80", 80),
        ("017", 15),
        ("0_7", 7),
        ("0o17", 15),
        ("0O17", 15),
        ("0x1F", 31),
        ("0X_1f", 31),
        ("-0x10", -16),
        ("0b11", 3),
        ("0B1_1", 3),
        ("1_000", 1000),
        ("9223372036854775807", (1 << 63) - 1),
        ("-9223372036854775808", -(1 << 63)),
        ("0" * 5000 + "7", 7),
    ],
)
def test_whole_numbers_are_literals_of_go(text: str, number: int) -> None:
    assert goflags.parse_int(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "+", "-", "+-1", "--1", " 1", "1 ", "08", "0_8", "_1", "1_", "1__0", "0x", "0b", "0o", "0x_", "0_", "1e3"]
    + ["1.0", "0xg", "0b2", "1x", "x1", "٣", "0x-1", "_", "b1", "0_x1"],
)
def test_what_is_no_literal_is_a_parse_error(text: str) -> None:
    with pytest.raises(ValueError, match="^parse error$"):
        goflags.parse_int(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "0x" + "f" * 16, "1" * 9000, "9" * 20])
def test_what_has_more_than_64_bits_is_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match="^value out of range$"):
        goflags.parse_int(text)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from(["d", "_d", "#x", "#_x", "#o", "#_o", "#b", "#_b"]))
def test_a_number_is_read_back_in_every_notation(number: int, notation: str) -> None:
    assert goflags.parse_int(format(number, notation)) == number


@given(st.text("0123456789abcdefxXoObB_+- ", max_size=12) | st.text(max_size=12))
def test_python_reads_no_other_number_where_both_read_one(text: str) -> None:
    """int() takes blanks and other digits, and does not take 017; what both take is the same."""
    try:
        ours: int | None = goflags.parse_int(text)
    except ValueError as refused:
        assert str(refused) in ("parse error", "value out of range")
        ours = None
    try:
        theirs = int(text, 0)
    except ValueError:
        return
    plain = text.isascii() and text == text.strip()
    if plain and abs(theirs) < 1 << 63:
        assert ours == theirs
    elif not plain:
        assert ours is None


@given(st.lists(st.sampled_from(["-port", "-verbose", "--file=", "-Also", "-mtu=0x1", "--", "-h", "1"]) | st.text()))
def test_every_command_line_is_values_or_a_stop(words: list[str]) -> None:
    try:
        values = parse(*words)
    except Stop as ended:
        assert ended.exit_code in (0, 2) and ended.stderr_text.endswith(USAGE) and ended.log_file is None
        return
    assert abs(values.number("port")) <= 1 << 63
    assert os.fspath(values.text("file")) is not None
