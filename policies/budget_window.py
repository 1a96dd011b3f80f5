"""The windows of time that a budget may be counted in: hours, days, weeks and months, all in UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

Per = Literal["hour", "day", "week", "month"]
PERS: Final[tuple[Per, ...]] = get_args(Per)


def a(per: Per) -> str:
    """`a day`, `an hour`."""
    return f"an {per}" if per == "hour" else f"a {per}"


def start_and_end(per: Per, now: float) -> tuple[str, float]:
    """The window that a time lies in: its name, and when it ends, in seconds since the epoch."""
    at = datetime.fromtimestamp(now, UTC)
    hour = at.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    match per:
        case "hour":
            return f"{hour:%Y-%m-%dT%H}", (hour + timedelta(hours=1)).timestamp()
        case "day":
            return f"{day:%Y-%m-%d}", (day + timedelta(days=1)).timestamp()
        case "week":
            year, week, weekday = day.isocalendar()
            return f"{year}-W{week:02d}", (day + timedelta(days=8 - weekday)).timestamp()
        case "month":
            after = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
            return f"{day:%Y-%m}", after.timestamp()
