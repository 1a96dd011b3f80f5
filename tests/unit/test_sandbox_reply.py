"""What comes out of a sandbox is data, whatever it is: every reply becomes an outcome that any store can keep."""

import errno
import json
import socket
from urllib.error import URLError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.files import checked_path
from understudy.actors.outcome import OUTCOME_KINDS, Outcome
from understudy.actors.sandbox.reply import DEEPEST, Reply, decode
from understudy.actors.sandbox.runner import LONGEST_MESSAGE, NO_NETWORK, STARTED, WAY_OUT, told_of_error

LIMIT = 1 << 20


def read(body: bytes | str) -> Outcome:
    reply = decode(STARTED + (body.encode() if isinstance(body, str) else body), LIMIT)
    assert reply.started
    assert reply.outcome is not None
    return reply.outcome


def test_a_result() -> None:
    assert read('{"kind":"ok","peak":7,"value":{"a":[1,null]}}') == Outcome(
        "ok", value={"a": [1, None]}, peak_memory_bytes=7
    )


def test_an_exception() -> None:
    outcome = read('{"kind":"error","error":"no","error_type":"KeyError","peak":0}')
    assert (outcome.kind, outcome.error, outcome.error_type) == ("error", "no", "KeyError")


def test_a_tool_that_lost_sight_of_what_it_began() -> None:
    outcome = read('{"kind":"unknown","error":"no answer","error_type":"ServerLost","peak":0}')
    assert (outcome.kind, outcome.error, outcome.error_type) == ("unknown", "no answer", "ServerLost")


@pytest.mark.parametrize(
    "cause", [socket.gaierror(-3, "Temporary failure in name resolution"), OSError(errno.ENETUNREACH, "no way there")]
)
def test_an_error_of_the_network_says_what_of_one_the_call_has(cause: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(raised: BaseException) -> str:
        try:
            try:
                raise raised
            except OSError as error:
                raise URLError(error)  # noqa: B904 (as urllib does)
        except URLError as error:
            return str(told_of_error(error)["error"])

    monkeypatch.delenv("HTTP_PROXY", raising=False)
    assert told(cause).endswith(f"; {NO_NETWORK}")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:3128")
    assert told(cause).endswith(f"; {WAY_OUT}")
    assert told(FileNotFoundError(2, "no such file")) == "<urlopen error [Errno 2] no such file>"
    assert len(told(type(cause)(cause.errno, "x" * 5000))) == LONGEST_MESSAGE, "behind what was cut follows nothing"


def test_no_answer() -> None:
    assert decode(b"", LIMIT) == Reply(started=False)
    assert decode(STARTED[:-1], LIMIT) == Reply(started=False)
    assert decode(STARTED, LIMIT) == Reply(started=True, outcome=None)


def ok(value: str) -> str:
    return f'{{"kind":"ok","peak":0,"value":{value}}}'


MALFORMED = {
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    "a pickle": (b"\x80\x04\x95\x10\x00cos\nsystem\n", "not UTF-8"),
    "cut off": (ok('"abc')[:-1], "cut off"),
    "two documents": (ok("1") + ok("2"), "not JSON"),
    "NaN": (ok("NaN"), "NaN"),
    "infinity": (ok("-Infinity"), "-Infinity"),
    "infinity in figures": (ok("1e999"), "too large"),
    "very deep": ("[" * 200_000, "deeper"),
    "closed and deep": (ok("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)), "deeper"),
    "objects and deep": (ok('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1)), "deeper"),
    "half a character": (ok(r'"\ud800"'), "surrogate"),
    "half a character as a key": (ok(r'{"\udfff":1}'), "surrogate"),
    "many digits": (ok("9" * 5000), "cannot be read|can be read"),
    "no object": ("[]", "none of the answers"),
    "another kind": ('{"kind":"denied","peak":0}', "none of the answers"),
    "a kind that is no text": ('{"kind":["ok"],"peak":0,"value":1}', "none of the answers"),
    "a figure that is none": ('{"kind":"ok","peak":"7","value":1}', "none of the answers"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_an_error_in_words(name: str) -> None:
    body, words = MALFORMED[name]
    outcome = read(body)
    assert (outcome.kind, outcome.error_type) == ("error", "BadResult")
    assert outcome.error.startswith("the tool's result ")
    assert any(word in outcome.error for word in words.split("|")), outcome.error


def test_depth_up_to_the_bound_is_fine() -> None:
    assert read(ok("[" * DEEPEST + "]" * DEEPEST)).kind == "ok"


def test_texts_are_cut() -> None:
    outcome = read(json.dumps({"kind": "error", "error": "x" * 100_000, "error_type": "y" * 100_000, "peak": -5}))
    assert (len(outcome.error), len(outcome.error_type), outcome.peak_memory_bytes) == (2000, 200, 0)


def test_room_for_files_is_no_room_for_a_value() -> None:
    """A tool can write its answer itself, past the runner that measures it."""
    for body in (ok(json.dumps("x" * 1000)), ok(json.dumps("x" * 1000))[:-1] + ',"files":[]}'):
        outcome = decode(STARTED + body.encode(), 500).outcome
        assert outcome is not None
        assert (outcome.kind, outcome.value) == ("output_too_large", None)
        assert decode(STARTED + body.encode(), 1002).outcome == Outcome("ok", value="x" * 1000)


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(body: bytes) -> None:
    check_storable(decode(body, LIMIT))
    check_storable(decode(STARTED + body, LIMIT))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
PATHS = (
    st.sampled_from(["a", "b/c", "../a", "/a", "a/../b", "a//b", ".", "", "a\n", "\u202ea", "a/b", "x" * 600])
    | st.text()
)
CHANGES = st.lists(
    st.lists(PATHS, max_size=2)
    | st.fixed_dictionaries(
        {"id": PATHS, "kind": st.sampled_from(["file", "link", "folder", "device"])},
        optional={"data": st.sampled_from(["", "YQ==", "Y", "%"]), "x": st.booleans() | st.none(), "target": PATHS},
    ),
    max_size=6,
)
ANSWERS = st.fixed_dictionaries(
    {"kind": st.sampled_from([*OUTCOME_KINDS, "other"]) | JSON},
    optional={
        **dict.fromkeys(("value", "peak", "error", "error_type", "size", "trace", "errno"), JSON),
        "files": JSON | CHANGES,
    },
)


@given(JSON | ANSWERS)
def test_any_json_is_survived(answer: object) -> None:
    check_storable(decode(STARTED + json.dumps(answer).encode(), LIMIT))


@given(ANSWERS, st.data())
def test_damaged_answers_are_survived(answer: object, data: st.DataObject) -> None:
    body = bytearray(json.dumps(answer).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check_storable(decode(STARTED + bytes(body[: data.draw(st.integers(0, len(body)))]), LIMIT))


def check_storable(reply: Reply) -> None:
    if reply.outcome is not None:
        for path in (each["id"] for each in reply.outcome.files or () if isinstance(each, dict)):
            assert checked_path(path) == path
        assert reply.outcome.kind in ("ok", "error", "out_of_memory", "output_too_large")
        fields = [reply.outcome.value, reply.outcome.error, reply.outcome.error_type, reply.outcome.peak_memory_bytes]
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
