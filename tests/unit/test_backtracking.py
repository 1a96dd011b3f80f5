"""A pattern in a rule is bounded on any text, or it is no pattern of a rule: one policy actor judges for everybody."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.backtracking import Runaway, longest_text
from understudy.policies.condition import Condition
from understudy.policies.operators import MATCHED_TEXT_MAX
from understudy.policies.permission import Allow, Policy, Request, decide
from understudy.policies.policy_file import load_policy
from understudy.policies.reading import PolicyError
from understudy.policies.rule import Rule


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a*)*b",
        "(a|a)*b",
        "(a|ab)*c",
        "([a-z]+ ?)+",
        "(?:[a-z0-9]+[._-]?)*@x",
        "(a?){30}a{30}",
        "a?" * 30 + "a" * 30,
        "(?:a|ab?)" * 50,
        "(x+x+)+y",
        "(?:(?:a{1,5}){1,5}){1,5}b",
        r"^(([a-z])+.)+[A-Z]([a-z])+$",
        r"(?i)(?:[a-z]|[A-Z])+x|(?:a|A)+" + "(?i:(?:aB|Ab)+)+",
        "(?:" * 60 + "a?" + "b)*" * 60,
        ".*" * 12 + "x",
    ],
)
def test_what_could_take_for_ever_is_no_pattern(pattern: str) -> None:
    re.compile(pattern)
    with pytest.raises(Runaway):
        longest_text(pattern, MATCHED_TEXT_MAX)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        ".*",
        "/etc/.*",
        "[A-Z][0-9]+",
        r"(\d{1,3}\.){3}\d{1,3}",
        r"\w+\s+\w+\s+\w+",
        r"[\w.+-]+@[\w-]+\.[\w.-]+",
        "(?:GET|GEM)+",
        "(?:http|https)://x.*",
        "(?:a++)+b",
        "(?>a+)+b",
        "(a)?(?(1)b|c)+",
        "(?=.*a)(?=.*b).*",
        "[\u0100-\u0200]+",
    ],
)
def test_ordinary_patterns_are_asked_about_every_text(pattern: str) -> None:
    assert longest_text(pattern, MATCHED_TEXT_MAX) == MATCHED_TEXT_MAX


def test_the_more_repetitions_share_the_shorter_is_the_text() -> None:
    lengths = [longest_text(".*a" * count, MATCHED_TEXT_MAX) for count in range(1, 6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == MATCHED_TEXT_MAX
    assert 32 < lengths[4] < 100


SMALL = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", "c", "(?:a|b)", "(?:a|ab)"])
REPEATED = st.tuples(SMALL, st.sampled_from(["", "*", "+", "?", "{1,3}", "*?", "*+"])).map("".join)
PATTERNS = st.recursive(
    st.lists(REPEATED, min_size=1, max_size=4).map("".join),
    lambda inner: st.tuples(inner, st.sampled_from(["(?:%s)", "(?:%s)*", "(?:%s|c)+", "(?>%s)", "(?:%s){1,3}"])).map(
        lambda pair: pair[1] % pair[0]
    ),
    max_leaves=4,
)


@given(PATTERNS, st.sampled_from(["a", "b", "ab", "aab", "cab"]))
def test_a_pattern_that_is_taken_comes_to_an_end(pattern: str, text: str) -> None:
    """On what patterns stumble over; if it did not, this would not end."""
    try:
        longest = longest_text(pattern, 64)
    except Runaway:
        return
    re.fullmatch(pattern, (text * longest)[: longest - 1] + "!")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@given(st.text(alphabet=r"ab.*+?{}()[]|\^$,1-dws:=!<>P", max_size=30))
def test_any_text_is_a_pattern_or_none(text: str) -> None:
    try:
        re.compile(text)
    except (re.error, OverflowError):
        return
    with contextlib.suppress(Runaway):
        assert 0 < longest_text(text, MATCHED_TEXT_MAX) <= MATCHED_TEXT_MAX


def test_a_rule_with_one_is_refused_with_the_remedy() -> None:
    text = 'policy: p\nversion: 1\nrules:\n  - {id: a, effect: allow, tool: t, when: {x: {matches: "(a+)+b"}}}\n'
    with pytest.raises(PolicyError, match=r"could take for ever on a text made for it: .*write a possessive"):
        load_policy(text, source="p.yaml")


def test_a_text_that_is_too_long_for_its_pattern_is_not_allowed() -> None:
    rule = Rule("x", "allow", ("t",), (Condition("x", "matches", ".*a.*b.*c"),))

    def decided(text: str) -> object:
        return decide([Policy("p", "1", (rule,))], Request("t", {"x": text}, "r", "g", "d"))

    assert isinstance(decided("a b c"), Allow)
    refused = decided("a" * 4000 + "bc")
    assert not isinstance(refused, Allow)
