# SPDX-License-Identifier: Apache-2.0
"""plugin/gateway/names/regexp.py, with Python's own `re` as the oracle where the two syntaxes mean the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.plugin.gateway.names.regexp import INSTRUCTIONS_MAX, Regexp, RegexpError


def matching(pattern: str, *names: str) -> list[str]:
    compiled = Regexp(pattern)
    return [name for name in names if compiled.matches(name.encode())]


def repeated(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "{1,3}", "*?", "+?", "??"])
    return st.one_of(
        st.tuples(inner, operators).map(lambda two: f"(?:{two[0]}){two[1]}"),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda many: f"({'|'.join(many)})"),
    )


ATOMS = st.sampled_from(
    ["a", "b", "-", ".", "[ab]", "[^a]", "[a-c]", "[]a]", "[a-]"]
    + ["\\d", "\\W", "[\\w-]", "\\.", "^", "$", "\\b", "\\B", ""]
)
PATTERNS = st.recursive(ATOMS, repeated, max_leaves=8)


@given(PATTERNS, st.lists(st.text("ab1-.", min_size=1, max_size=6), min_size=1, max_size=6))
def test_names_match_as_with_the_oracle(pattern: str, names: list[str]) -> None:
    """One object for all of them: what the first name has left behind does not matter to the next."""
    wanted = [name for name in names if re.search(pattern, name)]
    assert matching(pattern, *names) == wanted


@pytest.mark.parametrize(
    ("pattern", "matched", "not_matched"),
    [
        ("crc-(.*?)-master-0", "crc-abc-master-0", "crc-master-0"),
        ("^(api|api-int)$", "api-int", "api-intern"),
        ("(?i)^API$", "api", "apis"),
        ("a(?i)B|c", "C", "A"),
        ("(?i:A)b", "ab", "aB"),
        ("(?-i:a)", "a", "A"),
        ("(?P<name>x)y", "xy", "y"),
        ("(?<name>x)y", "xy", "y"),
        ("(?ms)^a$", "a", "b"),
        (r"\Aa\z", "a", "ba"),
        (r"\Qa.b\E", "a.b", "axb"),
        (r"\Qa.b", "a.b", "axb"),
        (r"\x61\x{62}\143", "abc", "abd"),
        ("[[:alpha:]]{2}[[:^digit:]]", "abc", "ab1"),
        ("a{,2}", "a{,2}", "aa"),
        ("a{x}", "a{x}", "a"),
        ("^a{2,3}$", "aaa", "aaaa"),
        ("[a-c-e]$", "-", "d"),
        ("[\\]\\-]", "]", "a"),
        ("\\+", "+", "a"),
        ("é|b", "b", "e"),
        ("x*", "", None),
    ],
)
def test_the_syntax_is_that_of_go(pattern: str, matched: str, not_matched: str | None) -> None:
    """Where Python's differs, or has no such thing."""
    assert matching(pattern, matched) == [matched]
    assert not_matched is None or matching(pattern, not_matched) == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing closing ): `(`"),
        (")", "unexpected ): `)`"),
        ("[", "missing closing ]: `[`"),
        ("[a", "missing closing ]: `[a`"),
        ("*a", "missing argument to repetition operator: `*`"),
        ("a|+", "missing argument to repetition operator: `+`"),
        ("a**", "invalid nested repetition operator: `**`"),
        ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"),
        ("a{1001}", "invalid repeat count: `{1001}`"),
        ("a{3,2}", "invalid repeat count: `{3,2}`"),
        ("[b-a]", "invalid character class range: `b-a`"),
        ("[[:nope:]]", "invalid character class range: `[:nope:]`"),
        ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
        ("(?<!a)", "invalid named capture: `(?<`"),
        ("(?P<>a)", "invalid named capture: `(?P<>`"),
        ("(?", "invalid or unsupported Perl syntax: `(?`"),
        ("\\1", "invalid escape sequence: `\\1`"),
        ("\\Z", "invalid escape sequence: `\\Z`"),
        ("\\x6", "invalid escape sequence: `\\x6`"),
        ("\\x{110000}", "invalid escape sequence: `\\x{110000}`"),
        ("a\\", "trailing backslash at end of expression: ``"),
        ("\\pL", "Unicode classes are not supported, names are ASCII: `\\p`"),
        ("(" * 51 + ")" * 51, "expression nests too deeply"),
        ("(a{500}){500}", "expression too large"),
        ("((|){1000}){1000}", "expression too large"),
    ],
)
def test_a_pattern_that_cannot_be_taken_is_told_in_the_words_of_go(pattern: str, message: str) -> None:
    """The first words, and the part that is wrong."""
    with pytest.raises(RegexpError) as refusal:
        Regexp(pattern)
    assert str(refusal.value).startswith(f"error parsing regexp: {message}")


@given(st.text("ab()[]{}*+?|\\^$.,:-<>PQEpxdw019i", max_size=24), st.text("ab.-", max_size=8))
def test_no_text_is_worse_than_a_refused_pattern(pattern: str, name: str) -> None:
    """And what is not refused can be asked."""
    try:
        compiled = Regexp(pattern)
    except RegexpError:
        return
    compiled.matches(name.encode())


@pytest.mark.parametrize("pattern", ["^(a*)*$", "^(a|a)*$", "^(a|aa)+$", ".*.*.*.*.*=.*", "(x+x+)+y", "^(.*a){20}$"])
def test_repetitions_within_repetitions_cost_no_more_than_others(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes longer than anybody waits where a matcher goes back and tries again; steps are counted."""
    steps = []
    step = Regexp._step

    def counted(self: Regexp, state: Any, symbol: int) -> Any:
        steps.append(symbol)
        return step(self, state, symbol)

    monkeypatch.setattr(Regexp, "_step", counted)
    name = b"a" * 254 + b"!"
    Regexp(pattern).matches(name)
    assert len(steps) <= len(name) + 1


def test_states_are_forgotten_before_they_become_many() -> None:
    """A pattern with 2 ** 12 of them, and names that lead to all."""
    compiled = Regexp("a.{12}$")
    for number in range(1 << 13):
        name = f"{number:013b}".replace("1", "a")
        assert compiled.matches(name.encode()) == (name[0] == "a")
        assert len(compiled._states) <= 256


def test_the_largest_pattern_is_taken() -> None:
    """One instruction for each character, and one for the match."""
    size = INSTRUCTIONS_MAX - 1
    assert matching("a" * size) == []
    with pytest.raises(RegexpError, match="too large"):
        Regexp("a" * (size + 1))
