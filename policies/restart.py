"""A run that crashed starts again, at once and then ever more slowly; one that keeps crashing is set aside.

This is OTP's restart intensity, arithmetic on a list of times, after `add_restart/3` in Erlang's `supervisor.erl`: add
the crash, drop those older than the period, and give up when more than `intensity` are left. OTP then stops the whole
supervisor; here only the run is quarantined, because its neighbours have done nothing. The backoff is ours: OTP
restarts at once every time, and burns its intensity within milliseconds when the cause lasts a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

INTENSITY_MAX = 19
"""A store keeps the newest 20 crashes of a run (`RunRecord.crashes`): with more allowed than that, none is too many."""


@dataclass(frozen=True)
class RestartPolicy:
    """More than `intensity` crashes within `period_s` seconds are too many."""

    intensity: int = 5
    period_s: float = 60.0
    backoff_base_s: float = 0.1
    """Wait before the second restart in a period. The first is immediate: most crashes are a lost node."""
    backoff_factor: float = 2.0
    backoff_max_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.intensity <= INTENSITY_MAX:
            raise ValueError(f"intensity is {self.intensity}; give 0 (never restart) to {INTENSITY_MAX}")
        if not 0 < self.period_s < float("inf"):
            raise ValueError(f"period_s is {self.period_s}; give a positive number of seconds")
        if not (0 <= self.backoff_base_s <= self.backoff_max_s < float("inf") and 1 <= self.backoff_factor <= 100):
            raise ValueError(
                f"backoff is base {self.backoff_base_s} s, factor {self.backoff_factor}, max {self.backoff_max_s} s; "
                f"give a base from 0 to the maximum, and a factor from 1 to 100"
            )


@dataclass(frozen=True)
class Restart:
    after_s: float


@dataclass(frozen=True)
class Quarantine:
    reason: str


RestartDecision = Restart | Quarantine


def decide_restart(policy: RestartPolicy, crashes: Sequence[float], now: float) -> RestartDecision:
    """What becomes of a run that has just crashed. `crashes` holds the times of its crashes, this one among them.

    A time ahead of `now` (written by a clock that is) counts as recent.
    """
    recent = sum(1 for at in crashes if now - at <= policy.period_s)
    if recent > policy.intensity:
        return Quarantine(
            f"it crashed {recent} times within {policy.period_s:g} s, and {policy.intensity} are allowed; "
            f"see its events for the causes"
        )
    if recent <= 1:
        return Restart(0.0)
    return Restart(min(policy.backoff_max_s, policy.backoff_base_s * policy.backoff_factor ** (recent - 2)))
