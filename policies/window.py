"""When a rule speaks: hours of the day, days of the week, or a span of time. A function of `now`; no clock is asked.

Hours and days are those of a zone, as people there read them: on the night that the clock is set back, an hour of a
window comes twice. A window that ends before it begins goes over midnight, and belongs to the day on which it began.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Final
from zoneinfo import ZoneInfo

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60


@dataclass(frozen=True)
class Window:
    """All that is given has to hold."""

    zone: str = "UTC"
    """Name of a time zone, e.g. `Europe/Berlin`."""
    days: tuple[str, ...] = ()
    """Of `DAYS`; empty: every day."""
    start_min: int = 0
    """Minutes after midnight."""
    end_min: int = DAY_MIN
    """Minutes after midnight, not part of it any more. Before `start_min`: on the next day."""
    since: float | None = None
    """Seconds since the epoch."""
    until: float | None = None
    """Seconds since the epoch, not part of it any more."""

    @cached_property
    def _zone(self) -> tzinfo:
        return zone_of(self.zone)

    def holds(self, now: float) -> bool:
        """Whether `now` (seconds since the epoch) lies in it."""
        if (self.since is not None and now < self.since) or (self.until is not None and now >= self.until):
            return False
        if not self.days and self.start_min == 0 and self.end_min == DAY_MIN:
            return True
        there = datetime.fromtimestamp(now, self._zone)
        minute = there.hour * 60 + there.minute
        day = there.weekday()
        if self.start_min < self.end_min:
            return self.start_min <= minute < self.end_min and self._is_day(day)
        if minute >= self.start_min:
            return self._is_day(day)
        return minute < self.end_min and self._is_day((day - 1) % 7)

    def _is_day(self, day: int) -> bool:
        return not self.days or DAYS[day] in self.days

    def words(self) -> str:
        """`mon, tue 09:00-17:00 Europe/Berlin`."""
        parts = [", ".join(self.days), f"{clock(self.start_min)}-{clock(self.end_min)} {self.zone}"]
        if self.since is not None:
            parts.append(f"from {when(self.since)}")
        if self.until is not None:
            parts.append(f"until {when(self.until)}")
        return " ".join(part for part in parts if part)


def zone_of(name: str) -> tzinfo:
    """Raises ValueError if this machine does not know it."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, LookupError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"no time zone {name[:64]!r} is known here") from None


def when(now: float) -> str:
    """`2026-01-31T12:00:00+00:00`."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=now)).isoformat(timespec="seconds")


def clock(minute: int) -> str:
    """Minutes after midnight as `09:30`."""
    return f"{minute // 60:02}:{minute % 60:02}"
