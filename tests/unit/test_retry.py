"""A node that raised is tried again: soon, then more slowly, then not at all."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.retry import Retry, next_delay

NAMES = ("ConnectionResetError", "ConnectionError", "OSError", "Exception", "BaseException", "object")


def test_by_default_a_node_is_not_tried_again() -> None:
    assert next_delay(Retry(), 1, NAMES, "t") is None


def test_waits_grow_up_to_the_cap_and_end_with_the_attempts() -> None:
    retry = Retry(attempts=6, base_s=1, factor=3, max_s=10, jitter=0)
    assert [next_delay(retry, attempt, NAMES, "t") for attempt in range(1, 7)] == [1, 3, 9, 10, 10, None]


@pytest.mark.parametrize(
    ("on", "again"),
    [(("*",), True), (("OSError",), True), (("Connection*",), True), (("ValueError", "KeyError"), False), ((), False)],
)
def test_only_errors_of_the_named_classes_are_tried_again(on: tuple[str, ...], again: bool) -> None:
    assert (next_delay(Retry(attempts=2, on=on), 1, NAMES, "t") is not None) is again


def test_the_wait_depends_on_the_seed_and_on_nothing_else() -> None:
    retry = Retry(attempts=9, base_s=10, jitter=0.5)
    waits = {seed: next_delay(retry, 1, NAMES, seed) for seed in map(str, range(100))}
    assert waits == {seed: next_delay(retry, 1, NAMES, seed) for seed in waits}
    assert len(set(waits.values())) == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"base_s": 61},
        {"factor": 0.5},
        {"jitter": 2},
        {"max_s": float("inf")},
        {"on": "KeyError"},
        {"attempts": "x"},
        {"attempts": 2.5},
        {"attempts": True},
        {"base_s": None},
        {"max_s": "60"},
    ],
)
def test_a_retry_policy_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        Retry(**wrong)  # type: ignore[arg-type]


@given(
    st.integers(1, 1000),
    st.integers(1, 2000),
    st.floats(0, 60),
    st.floats(1, 100),
    st.floats(0, 1),
    st.text(max_size=9),
)
def test_a_wait_is_never_negative_and_never_above_the_cap(
    attempts: int, attempt: int, base_s: float, factor: float, jitter: float, seed: str
) -> None:
    retry = Retry(attempts=attempts, base_s=base_s, factor=factor, jitter=jitter)
    wait_s = next_delay(retry, attempt, NAMES, seed)
    assert (wait_s is None) == (attempt >= attempts)
    assert wait_s is None or 0 <= wait_s <= retry.max_s


@pytest.mark.parametrize(
    ("on", "good"), [(ConnectionError, "(ConnectionError,)"), ("Timeout*", "('Timeout*',)"), (5, "(ConnectionError,)")]
)
def test_the_remedy_for_what_is_no_tuple_is_one_that_works(on: object, good: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"e.g. {good}")):
        Retry(attempts=2, on=on)  # type: ignore[arg-type]
