"""Budgets: never over the limit by holding, and settled is what was spent, whatever order, repetition or crash."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.documents import DOCUMENT_BYTES_MAX
from understudy.policies.budget import (
    HELD_MAX,
    RECENT_MAX,
    UNITS,
    Account,
    Amounts,
    Budget,
    Cost,
    Hold,
    Short,
    Title,
    Unit,
    dearest,
    from_data,
    lift,
    opened,
    plain,
    release,
    reserve,
    settle,
    title_of,
    to_data,
)
from understudy.policies.budget_window import a, start_and_end

TITLE = Title("tenant", "acme", "deployment", "shop", "daily", "2026-11-24", 1_795_651_200.0)
amounts = st.dictionaries(
    st.sampled_from(UNITS), st.decimals(0, 50, places=2, allow_nan=False, allow_infinity=False), max_size=3
)
limits = st.dictionaries(
    st.sampled_from(UNITS), st.decimals(0, 200, places=2, allow_nan=False, allow_infinity=False), min_size=1, max_size=5
)
keys = st.sampled_from([f"k{n}" for n in range(6)])
steps = st.lists(st.tuples(st.sampled_from(("reserve", "settle", "release", "stale")), keys, amounts), max_size=40)


def hold(wanted: Amounts, run_id: str = "r00-1") -> Hold:
    return Hold(wanted, run_id, 1, "c1", 10.0)


def total(costs: list[Amounts]) -> dict[Unit, Decimal]:
    sums = {unit: sum((cost.get(unit, Decimal()) for cost in costs), Decimal()) for unit in UNITS}
    return {unit: amount for unit, amount in sums.items() if amount}


@given(limits, steps)
def test_no_order_of_acts_goes_over_a_limit_or_loses_a_cost(
    limit: Amounts, acts: list[tuple[str, str, Amounts]]
) -> None:
    account, spent = Account(TITLE, limit), list[Amounts]()
    for act, key, wanted in acts:
        before = account
        match act:
            case "reserve":
                answer = reserve(account, key, hold(wanted))
                if isinstance(answer, Short):
                    assert account == before
                else:
                    account = answer
                    assert all(account.held[key].amounts.get(unit, 0) >= wanted[unit] for unit in wanted)
                    assert reserve(account, key, hold(wanted)) == account  # its answer was lost
            case "settle" if key in account.held:
                cost = {unit: amount / 2 for unit, amount in account.held[key].amounts.items()}
                account = settle(account, key, cost)
                assert settle(account, key, wanted) == account
                spent.append(cost)
            case "stale":  # of a call that is settled, or was never held: nothing is charged a second time
                account = settle(account, "x" + key, wanted)
                assert account == before
            case "release":
                account = release(account, key, 1)
                assert key not in account.held
                assert release(account, key, 1) == account
        assert all(left is None or left >= 0 for left in map(account.left, UNITS))
        assert account.settled == total(spent)
        assert from_data(json.loads(json.dumps(to_data(account)))) == account


@given(limits, st.lists(st.tuples(keys, amounts), unique_by=lambda each: each[0], max_size=6), st.randoms())
def test_the_order_of_settling_changes_nothing(limit: Amounts, calls: list[tuple[str, Amounts]], dice: object) -> None:
    account = Account(TITLE, {unit: amount * 10 for unit, amount in limit.items()})
    for key, wanted in calls:
        answer = reserve(account, key, hold(wanted))
        account = account if isinstance(answer, Short) else answer
    ends = []
    for order in (
        sorted(account.held),
        sorted(account.held, reverse=True),
        dice.sample(sorted(account.held), len(account.held)),
    ):  # type: ignore[attr-defined]
        after = account
        for key in order:
            after = settle(after, key, None)
        ends.append((after.settled, after.held))
    assert ends[0] == ends[1] == ends[2] == (total([each.amounts for each in account.held.values()]), {})


def test_a_call_that_is_made_again_under_its_name_is_held_again() -> None:
    """The reserve of a name that was settled answers as if it had worked, and nothing is held: that was the fault."""
    account = Account(TITLE, {"calls": Decimal(2)})
    for turn in range(2):
        answer = reserve(account, "k", hold({"calls": Decimal(1)}))
        assert not isinstance(answer, Short)
        assert answer.held["k"].again is bool(turn)
        account = settle(answer, "k", None)
    assert isinstance(reserve(account, "k", hold({"calls": Decimal(1)})), Short)


def test_who_holds_under_its_name_already_is_not_short_of_what_it_has() -> None:
    account = reserve(Account(TITLE, {"money": Decimal(1)}), "k", hold({"money": Decimal(1)}))
    assert not isinstance(account, Short)
    later = reserve(account, "k", replace(hold({"money": Decimal("0.5")}), epoch=7))
    assert not isinstance(later, Short)
    assert (later.held["k"].epoch, later.left("money")) == (7, 0)
    more = reserve(account, "k", hold({"money": Decimal("1.5")}))
    assert isinstance(more, Short)
    assert (more.wanted, more.limit, more.spent, more.held) == (Decimal("0.5"), 1, 0, 1)


def test_an_owner_of_before_gives_nothing_back_that_the_next_one_holds() -> None:
    """Both decided on the same call; the first was short in another account, and gave back what the second stood on."""
    account = Account(TITLE, {"calls": Decimal(1)})
    for epoch in (1, 2, 1):
        answer = reserve(account, "k", replace(hold({"calls": Decimal(1)}), epoch=epoch))
        assert not isinstance(answer, Short)
        account = answer
    assert release(account, "k", 1) is account
    assert release(account, "k", 2).held == {}


def test_more_than_was_held_is_settled_as_it_is_and_then_nothing_goes_but_what_is_lifted() -> None:
    answer = reserve(Account(TITLE, {"money": Decimal("1.00")}), "k", hold({"money": Decimal("0.10")}))
    assert not isinstance(answer, Short)
    account = settle(answer, "k", {"money": Decimal("1.20")})
    assert account.left("money") == Decimal("-0.20")
    short = reserve(account, "k2", hold({"calls": Decimal(1)}))
    assert isinstance(short, Short)
    assert str(short) == (
        "budget 'daily' of policy 'shop' (tenant 'acme', 2026-11-24) is at its limit: 0 money wanted, the limit is 1, "
        "spent are 1.2 and held 0"
    )
    assert not isinstance(reserve(account, "k2", hold({"calls": Decimal(1)}), beyond=True), Short)
    lifted = lift(account, {"money": Decimal(1), "tokens": Decimal(5)})
    assert (lifted.left("money"), lifted.left("tokens"), lifted.left("calls")) == (Decimal("0.80"), None, None)
    assert not isinstance(reserve(lifted, "k2", hold({"money": Decimal("0.8")})), Short)


def test_an_account_stays_one_small_document() -> None:
    account = Account(replace(TITLE, of="x" * 300), {unit: Decimal(10**15) for unit in UNITS})
    huge = {unit: Decimal("123456789012.123456789") for unit in UNITS}
    for n in range(3 * HELD_MAX):
        answer = reserve(account, f"{n:032x}", hold(huge, "r00-" + "f" * 32), beyond=True)
        if n < HELD_MAX:
            assert not isinstance(answer, Short)
            account = replace(
                answer, held={**answer.held, f"{n:032x}": replace(answer.held[f"{n:032x}"], checkpoint="c" * 40)}
            )
        else:  # also for who may go beyond: a limit reached is told, and nothing is dropped
            assert isinstance(answer, Short)
            assert "holds 700 calls" in str(answer)
    assert len(json.dumps(to_data(account))) < DOCUMENT_BYTES_MAX
    for key in list(account.held):
        account = settle(account, key, None)
    for n in range(1000):
        answer = reserve(account, f"{n:032x}", hold({"calls": Decimal(1)}))
        assert not isinstance(answer, Short)
        account = settle(answer, f"{n:032x}", None)
    assert len(account.recent) == RECENT_MAX
    assert len(json.dumps(to_data(account))) < 4096


def test_an_account_without_a_label_is_read_as_it_was_and_named_in_words() -> None:
    account = Account(replace(TITLE, of="", label="customer"), {"calls": Decimal(1)})
    data = to_data(account)
    assert from_data(data) == account
    assert len(data["title"]) == 7, "a process of before reads it, too"
    del data["label"]
    assert from_data(data).title == replace(TITLE, of="")
    assert account.title.whose == "runs without a label 'customer'"
    short = reserve(account, "k", hold({"calls": Decimal(2)}))
    assert "(runs without a label 'customer', 2026-11-24) is at its limit: 2 calls wanted" in str(short)


def test_windows_begin_and_end_in_utc() -> None:
    assert [a(per) for per in ("hour", "day")] == ["an hour", "a day"]
    at = 1_767_225_599.0  # 2025-12-31T23:59:59Z, a Wednesday
    assert start_and_end("hour", at) == ("2025-12-31T23", at + 1)
    assert start_and_end("day", at) == ("2025-12-31", at + 1)
    assert start_and_end("month", at) == ("2025-12", at + 1)
    assert start_and_end("week", at) == ("2026-W01", at + 1 + 4 * 86400)
    budget = Budget("daily", "tenant", {"calls": Decimal(1)}, per="day")
    assert title_of(budget, "shop", "run", "acme", at + 1).window == "2026-01-01"
    assert title_of(replace(budget, per=None), "shop", "run", "acme", at) == Title(
        "tenant", "acme", "run", "shop", "daily", label="tenant"
    )


def test_an_account_follows_what_the_policy_says_today() -> None:
    budget = Budget("daily", "tenant", {"calls": Decimal(1)})
    account = opened(TITLE, budget)
    account = settle(reserve(account, "k", hold({"calls": Decimal(1)})), "k", None)
    assert opened(TITLE, budget, account) is account
    wider = opened(TITLE, replace(budget, limits={"calls": Decimal(3)}), account)
    assert (wider.left("calls"), wider.settled) == (2, {"calls": 1})


def test_the_dearest_word_counts_and_a_result_is_believed_only_where_all_believe_it() -> None:
    told, fixed = Cost("tokens", Decimal(20), "usage"), Cost("tokens", Decimal(10))
    assert dearest([told, fixed, Cost("money", Decimal(1))]) == (Cost("tokens", Decimal(20)), Cost("money", Decimal(1)))
    assert dearest([fixed, told]) == (Cost("tokens", Decimal(20)),)
    assert dearest([told, replace(told, most=Decimal(5))]) == (told,)
    assert dearest([told, replace(told, told="elsewhere")]) == (Cost("tokens", Decimal(20)),)


@pytest.mark.parametrize(("amount", "text"), [("1E+3", "1000"), ("0.500", "0.5"), ("0E-9", "0"), ("25", "25")])
def test_amounts_are_written_as_people_write_them(amount: str, text: str) -> None:
    assert plain(Decimal(amount)) == text
