"""Leases after an outage of the store."""

from understudy.policies.grace import Grace


def test_an_outage_gives_every_owner_one_lease() -> None:
    grace = Grace(10.0)
    assert not grace.holds(0.0)
    grace.asked(100.0, 102.4)
    assert not grace.holds(102.4)  # owners renew often enough to sit it out
    grace.asked(103.0, 105.5)  # and here they might not: it began when the last renewal was a quarter of a lease ago,
    assert grace.holds(115.4)  # and may have been noticed late
    assert not grace.holds(115.5)
    grace.asked(116.0, 127.0)
    assert grace.holds(136.9)
    assert not grace.holds(137.0)


def test_many_short_refusals_are_one_outage() -> None:
    grace = Grace(10.0)
    for now in range(100, 112):
        grace.asked(now, now + 0.1, answered=False)
    assert grace.holds(112.0)
    grace.asked(112.0, 112.1)
    assert grace.holds(122.0)
    assert not grace.holds(122.1)
    grace.asked(130.0, 130.1, answered=False)
    grace.asked(131.0, 131.1)  # a short one, over by now
    grace.asked(139.0, 139.1, answered=False)
    assert not grace.holds(140.0)


def test_who_was_not_there_itself_gives_every_owner_one_lease() -> None:
    grace = Grace(10.0)
    grace.looks(5000.0, 1.0)
    assert not grace.holds(1.0)  # the first look says nothing
    grace.looked(5000.1)
    grace.looks(5004.0, 5.0)
    assert not grace.holds(5.0)
    grace.looked(5004.1)
    grace.looks(8604.1, 5.5)  # an hour later by the clock of leases: the machine slept, or the clock was set
    assert grace.holds(15.4)
    assert not grace.holds(15.5)


def test_with_short_leases_the_usual_pause_is_no_absence() -> None:
    grace = Grace(1.0)
    grace.looked(5000.0)
    grace.looks(5001.0, 1.0)
    assert not grace.holds(1.0)


def test_an_answer_that_comes_at_once_does_not_end_it() -> None:
    grace = Grace(10.0)
    grace.asked(0.0, 30.0)
    grace.asked(30.0, 30.01)
    assert grace.holds(39.9)
    grace.asked(31.0, 41.0)  # away once more
    assert grace.holds(50.9)
