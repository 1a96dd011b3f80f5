"""Trying again: a run that crashed, a node that raised. At once or soon, then more slowly, then not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.restart import Quarantine, Restart, RestartPolicy, decide_restart
from understudy.policies.retry import Retry, next_delay

POLICY = RestartPolicy(intensity=5, period_s=60, backoff_base_s=0.1, backoff_factor=2, backoff_max_s=10)

# Runs.


def test_the_first_restart_is_immediate_and_the_next_ones_wait_longer() -> None:
    crashes: list[float] = []
    waits = []
    for now in (100.0, 101.0, 102.0, 103.0, 104.0):
        crashes.append(now)
        decision = decide_restart(POLICY, crashes, now)
        assert isinstance(decision, Restart)
        waits.append(decision.after_s)
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_one_crash_more_than_the_intensity_is_quarantine() -> None:
    decision = decide_restart(POLICY, [100, 101, 102, 103, 104, 105], 105)
    assert isinstance(decision, Quarantine)
    assert "crashed 6 times within 60 s, and 5 are allowed" in decision.reason


def test_crashes_older_than_the_period_are_forgotten() -> None:
    assert decide_restart(POLICY, [0, 1, 2, 3, 4, 100], 100) == Restart(0.0)
    # As in OTP, the edge of the period is inside of it.
    assert isinstance(decide_restart(POLICY, [40, 41, 42, 43, 44, 100], 100), Quarantine)
    assert isinstance(decide_restart(POLICY, [39.9, 41, 42, 43, 44, 100], 100), Restart)


def test_intensity_zero_never_restarts() -> None:
    assert isinstance(decide_restart(RestartPolicy(intensity=0), [5.0], 5.0), Quarantine)


def test_a_crash_written_by_a_clock_that_is_ahead_counts() -> None:
    assert isinstance(decide_restart(POLICY, [200, 201, 202, 203, 204, 205], 100), Quarantine)


@pytest.mark.parametrize(
    "wrong",
    [{"intensity": 20}, {"intensity": -1}, {"period_s": 0}, {"backoff_base_s": 11}, {"backoff_factor": 0.5}],
)
def test_a_restart_policy_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        RestartPolicy(**wrong)  # type: ignore[arg-type]


@given(
    crashes=st.lists(st.floats(0, 1000), min_size=1, max_size=20),
    more=st.floats(0, 1000),
    intensity=st.integers(0, 19),
)
def test_another_crash_never_brings_a_run_back_sooner(crashes: list[float], more: float, intensity: int) -> None:
    policy = RestartPolicy(intensity=intensity)
    before = decide_restart(policy, crashes, 1000.0)
    after = decide_restart(policy, [*crashes, more], 1000.0)
    if isinstance(before, Quarantine):
        assert isinstance(after, Quarantine)
    elif isinstance(after, Restart):
        assert 0 <= before.after_s <= after.after_s <= policy.backoff_max_s


# Nodes.

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
    [{"attempts": 0}, {"base_s": 61}, {"factor": 0.5}, {"jitter": 2}, {"max_s": float("inf")}, {"on": "KeyError"}],
)
def test_a_retry_policy_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
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
