"""A host or a URL has one spelling, and whatever could lead elsewhere than it seems is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.condition import Condition
from understudy.policies.hosts import (
    HostPattern,
    NotCanonical,
    covers_host,
    read_host_pattern,
    read_target,
    read_url,
    read_url_pattern,
)
from understudy.policies.rule import Rule, fits


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("example.org", "example.org", None, ""),
        ("EXAMPLE.org.", "example.org", None, ""),
        ("example.org:8080", "example.org", 8080, ""),
        ("10.0.0.1", "10.0.0.1", None, ""),
        ("[::1]:443", "::1", 443, ""),
        ("[0:0::1]", "::1", None, ""),
        ("[::ffff:10.0.0.1]", "10.0.0.1", None, ""),
        ("https://example.org", "example.org", 443, "/"),
        ("HTTP://Example.ORG:80/a/../b/./c?x=/..#y", "example.org", 80, "/b/c"),
        ("https://example.org/%61%2d%7Eb", "example.org", 443, "/a-~b"),
        ("https://example.org/a%20b%c3%a9", "example.org", 443, "/a%20b%C3%A9"),
        ("https://example.org/../..", "example.org", 443, "/"),
        ("https://example.org/a/b/..", "example.org", 443, "/a/"),
        ("https://example.org?x", "example.org", 443, "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
        ("custom://h/", "h", None, "/"),
    ],
)
def test_one_spelling(text: str, host: str, port: int | None, path: str) -> None:
    found = read_target(text)
    assert (found.host, found.port, found.path) == (host, port, path)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a.example", "a b", "a\tb", "a\0b", "exämple.org", "a/b", "a_b!", "x" * 64 + ".org"),
        *("127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "1.2.3.4.5", "999.1.1.1", "1.2.3.4:x"),
        *("a:99999", "a:-1", "a:", "a:080", "[::1", "[::1]x", "[fe80::1%25eth0]", "[x]", "::1"),
        *("https://good.example@evil.example/", "https://good.example\\@evil.example/", "https://user:p@a.example/"),
        *("https:///x", "https://", "1http://a", "https://a%2eb/", "https://a/%2f..", "https://a/%5c", "https://a/%00"),
        *(
            "https://a/%252e%252e",
            "https://a/%",
            "https://a/%zz",
            "https://a/b//../c",
            "https://a/..;/c",
            "https://a/\\b",
        ),
        "https://a/" + "x" * 5000,
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(NotCanonical) as caught:
        read_target(text)
    assert str(caught.value)


@given(st.text() | st.from_regex(r"https?://[a-z0-9.%:@/\\\[\]-]{0,30}"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read_target(text)
    except NotCanonical:
        return
    again = read_target(f"[{found.host}]" if ":" in found.host else found.host)
    assert again.host == found.host
    assert ".." not in found.path.split("/")


def holds(op: Any, patterns: Any, value: Any) -> str:
    return fits(Rule("x", "allow", ("t",), (Condition("it", op, patterns),)), {"it": value})[0]


@pytest.mark.parametrize(
    ("patterns", "value", "expected"),
    [
        ("example.org", "example.org", "yes"),
        ("example.org", "https://EXAMPLE.org./x", "yes"),
        ("example.org", "a.example.org", "no"),
        ("example.org", "example.org.evil.example", "no"),
        ("*.example.org", "a.b.example.org", "yes"),
        ("*.example.org", "example.org", "no"),
        ("*.example.org", "evilexample.org", "no"),
        ("*", "anything.example", "yes"),
        ("example.org:443", "https://example.org/", "yes"),
        ("example.org:443", "http://example.org/", "no"),
        ("example.org:443", "example.org", "unclear"),
        (["example.org:443", "example.org"], "example.org", "yes"),
        ("10.0.0.0/8", "http://10.9.8.7/", "yes"),
        ("10.0.0.0/8", "[::ffff:10.0.0.1]", "yes"),
        ("10.0.0.0/8", "11.0.0.1", "no"),
        ("10.0.0.0/8", "ten.example", "no"),
        ("10.0.0.0/8", "[::1]", "no"),
        ("fd00::/8", "[fd00::1]", "yes"),
        ("[::1]", "[0::1]:5", "yes"),
        ("example.org", "https://example.org@evil.example/", "unclear"),
        ("example.org", "0x7f.1", "unclear"),
        ("example.org", 5, "unclear"),
    ],
)
def test_hosts_in_conditions(patterns: Any, value: Any, expected: str) -> None:
    assert holds("host", patterns, value) == expected


@pytest.mark.parametrize(
    ("patterns", "value", "expected"),
    [
        ("https://example.org/docs", "https://example.org/docs", "yes"),
        ("https://example.org/docs", "https://example.org/docs/a?b#c", "yes"),
        ("https://example.org/docs", "https://example.org/docsx", "no"),
        ("https://example.org/docs", "https://example.org/docs/../admin", "no"),
        ("https://example.org/docs", "https://example.org/docs/%2e%2e/admin", "no"),
        ("https://example.org/docs", "https://example.org/docs/..%2fadmin", "unclear"),
        ("https://example.org/docs", "http://example.org/docs", "no"),
        ("https://example.org/docs", "https://example.org:8443/docs", "no"),
        ("https://example.org", "https://example.org:443/anything", "yes"),
        ("https://*.example.org:8443/", "https://a.example.org:8443/", "yes"),
        ("https://example.org/", "example.org", "unclear"),
    ],
)
def test_urls_in_conditions(patterns: Any, value: Any, expected: str) -> None:
    assert holds("url", patterns, value) == expected


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "*.10.0.0.1", "a*b.example", "*.*.example", "https://a", "a@b"])
def test_a_host_pattern_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(NotCanonical):
        read_host_pattern(text)


@pytest.mark.parametrize("text", ["example.org", "https://a/b?c", "https://a/#", "https://10.0.0.0/8x?", "://a"])
def test_a_url_pattern_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(NotCanonical):
        read_url_pattern(text)


SPELLED = [
    *("*", "*:443", "example.org", "example.org:443", "*.example.org", "*.example.org:443", "a.example.org:443"),
    *("10.0.0.1", "10.0.0.1:80", "10.0.0.0/8", "10.1.0.0/16", "[::1]:443", "fd00::/8", "[fd00::1]"),
]
TARGETS = [
    *("example.org:443", "example.org:80", "a.example.org:443", "x.a.example.org:443", "other.example:443"),
    *("10.0.0.1:80", "10.1.2.3:443", "[::1]:443", "[fd00::1]:443", "11.0.0.1:80"),
]


@pytest.mark.parametrize("text", SPELLED)
def test_a_pattern_is_spelled_as_it_is_read(text: str) -> None:
    assert str(read_host_pattern(text)) == text


@pytest.mark.parametrize("wide", SPELLED)
@pytest.mark.parametrize("narrow", SPELLED)
def test_what_one_pattern_covers_fits_it(wide: str, narrow: str) -> None:
    """Covering is what a second layer is measured by: it may never let more through."""
    one, other = read_host_pattern(wide), read_host_pattern(narrow)
    if one.covers(other):
        for target in map(read_target, TARGETS):
            assert not other.fits(target) or one.fits(target)
    assert one.covers(one)
    assert covers_host([wide], narrow) is one.covers(other)


@given(st.sampled_from(SPELLED), st.sampled_from(SPELLED), st.sampled_from(SPELLED))
def test_covering_is_transitive(a: str, b: str, c: str) -> None:
    one, two, three = map(read_host_pattern, (a, b, c))
    if one.covers(two) and two.covers(three):
        assert one.covers(three)


def test_a_url_is_spelled_as_it_is_read() -> None:
    assert str(read_url_pattern("HTTPS://Example.org/a/../b")) == "https://example.org:443/b"
    assert read_url("https://example.org/b").path == "/b"
    assert isinstance(read_url_pattern("https://a.example").host, HostPattern)
