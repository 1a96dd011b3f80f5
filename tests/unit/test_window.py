"""A window in time holds as people in its zone would say, and asks no clock."""

from datetime import datetime

import pytest

from understudy.policies.permission import Allow, Deny, Policy, Request, Rule, decide, explain
from understudy.policies.window import DAY_MIN, Window, zone_of


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


OFFICE = Window("Europe/Berlin", ("mon", "tue", "wed", "thu", "fri"), 9 * 60, 17 * 60)
NIGHT = Window("UTC", ("fri",), 22 * 60, 6 * 60)


@pytest.mark.parametrize(
    ("window", "moment", "expected"),
    [
        (OFFICE, "2026-01-30T09:00:00+01:00", True),  # a Friday
        (OFFICE, "2026-01-30T08:59:59+01:00", False),
        (OFFICE, "2026-01-30T16:59:59+01:00", True),
        (OFFICE, "2026-01-30T17:00:00+01:00", False),
        (OFFICE, "2026-01-31T10:00:00+01:00", False),
        (OFFICE, "2026-07-31T07:30:00+00:00", True),  # summer time: 09:30 there
        (OFFICE, "2026-01-30T07:30:00+00:00", False),
        (NIGHT, "2026-01-30T23:00:00+00:00", True),
        (NIGHT, "2026-01-31T05:59:00+00:00", True),  # it began on the Friday
        (NIGHT, "2026-01-31T06:00:00+00:00", False),
        (NIGHT, "2026-01-30T05:00:00+00:00", False),  # that night began on the Thursday
        (Window("Europe/Berlin", start_min=120, end_min=180), "2026-10-25T00:30:00+00:00", True),  # 02:30 there
        (Window("Europe/Berlin", start_min=120, end_min=180), "2026-10-25T01:30:00+00:00", True),  # and once more
        (Window("Europe/Berlin", start_min=120, end_min=180), "2026-03-29T01:30:00+00:00", False),  # it was left out
        (Window("Asia/Kolkata", ("sun",)), "2026-01-31T18:29:59+00:00", False),
        (Window("Asia/Kolkata", ("sun",)), "2026-01-31T18:30:00+00:00", True),  # Sunday begins there
        (Window("Pacific/Kiritimati", ("fri",), 22 * 60, 6 * 60), "2026-01-30T15:59:59+00:00", True),
        (
            Window("Pacific/Kiritimati", ("fri",), 22 * 60, 6 * 60),
            "2026-01-30T16:00:00+00:00",
            False,
        ),  # 06:00, Saturday
        (Window(end_min=DAY_MIN), "2026-01-30T23:59:59+00:00", True),
        (Window(since=at("2026-01-30T12:00:00+00:00")), "2026-01-30T11:59:59+00:00", False),
        (Window(since=at("2026-01-30T12:00:00+00:00")), "2026-01-30T12:00:00+00:00", True),
        (Window(until=at("2026-01-30T12:00:00+00:00")), "2026-01-30T12:00:00+00:00", False),
    ],
)
def test_windows(window: Window, moment: str, expected: bool) -> None:
    assert window.holds(at(moment)) is expected


def test_an_unknown_zone_is_said_so() -> None:
    for name in ("Mars/Olympus", "", "../../etc/passwd", "/etc/localtime", "a\0b", "x" * 500):
        with pytest.raises(ValueError, match="no time zone"):
            zone_of(name)


REQUEST = Request("pay", {}, "r", "g", "d")


def test_a_rule_speaks_in_its_time_only() -> None:
    policy = Policy("p", "1", (Rule("office", "allow", ("pay",), time=(OFFICE, NIGHT)),))
    assert isinstance(decide([policy], REQUEST, at("2026-01-30T10:00:00+01:00")), Allow)
    assert isinstance(decide([policy], REQUEST, at("2026-01-30T23:00:00+00:00")), Allow)
    denied = decide([policy], REQUEST, at("2026-01-31T10:00:00+01:00"))
    assert isinstance(denied, Deny)
    assert "it speaks of mon, tue, wed, thu, fri 09:00-17:00 Europe/Berlin or fri 22:00-06:00 UTC" in denied.reason
    assert "it is 2026-01-31T09:00:00+00:00" in denied.reason


def test_without_a_time_nothing_is_allowed_and_everything_is_denied() -> None:
    allowing = Policy("p", "1", (Rule("office", "allow", ("pay",), time=(OFFICE,)),))
    denying = Policy("p", "1", (Rule("all", "allow", ("pay",)), Rule("night", "deny", ("pay",), time=(NIGHT,))))
    for policy in (allowing, denying):
        denied = decide([policy], REQUEST)
        assert isinstance(denied, Deny)
        assert "nobody said what time it is" in denied.reason
    assert [step.matched for step in explain([denying], REQUEST)] == [True, True]
