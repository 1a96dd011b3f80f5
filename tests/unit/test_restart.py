"""A run that crashed is tried again: at once, then more slowly, then not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies.restart import Quarantine, Restart, RestartPolicy, decide_restart

POLICY = RestartPolicy(intensity=5, period_s=60, backoff_base_s=0.1, backoff_factor=2, backoff_max_s=10)


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
