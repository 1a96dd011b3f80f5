"""Accounts of budgets, for people: what is spent and held, raising a limit, and beginning one anew."""

import contextlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from understudy.actors.accounts import SHELF, Accounts, account_in, given, name_of
from understudy.actors.documents import Document
from understudy.actors.errors import CallerError, NotFound
from understudy.actors.paging import each_document
from understudy.actors.process import user_name
from understudy.actors.store import Store
from understudy.cluster.auditing import pen
from understudy.cluster.client import Run, open_questions
from understudy.cluster.settings import Settings
from understudy.policies.budget import UNITS, Account, Amounts, Title, Unit, lift, plain, written

WAITING_MAX = 100_000
"""Newest waiting runs that are looked through for questions about a budget."""


async def accounts_of(store: Store, run_id: str = "") -> list[tuple[str, Account]]:
    """By the names of their documents, in order; of one run: those that its calls are paid from.

    One that cannot be read is left out here; whoever wants to pay from it is told. Raises NotFound: no such run.
    """
    wanted = await _paid_by(store, run_id) if run_id else None
    found = []
    async for document in each_document(store, SHELF):
        with contextlib.suppress(CallerError):
            account = account_in(document)
            if wanted is None or (account.title.scope, account.title.of) in wanted:
                found.append((document.name, account))
    return found


async def _paid_by(store: Store, run_id: str) -> set[tuple[str, str]]:
    """Scope and owner of the accounts that may be a run's: as `actors.budgets` finds them, whatever the label."""
    record = await store.run(run_id)
    with contextlib.suppress(NotFound):
        while record.parent:
            record = await store.run(record.parent)
    tenants = {("tenant", value) for value in (*record.labels.values(), "")}
    return {("run", record.run_id), ("thread", record.thread_id), *tenants}


async def raise_limits(
    store: Store, settings: Settings, name: str, more: Amounts, *, by: str = "", note: str = ""
) -> list[str]:
    """Add to the limits of one account, as it is now: of a window, of this window.

    Questions of calls that it was too small for are withdrawn, and those calls judged again: the runs that asked them.
    Raises NotFound, CallerError.
    """
    account = await account_of(store, name)
    for unit in more:
        if unit not in account.limits:
            has = ", ".join(account.limits)
            raise CallerError(f"account {name!r} has no limit of {unit} that could be raised; it limits {has}")
    told = {"by": by or user_name(), "note": note, "user": user_name()}
    await pen(store, settings).append("budget_raised", account=name, more=written(more), **told)

    def act(found: Account | None) -> tuple[Account | None, Account | None]:
        after = None if found is None else lift(found, more)
        return after, after

    raised = await Accounts(given(store)).change(name, act)
    if raised is None:
        raise _no_account(name)
    return await _withdraw_questions(store, settings, name, "the budget was raised", told["by"])


async def reset(store: Store, settings: Settings, name: str, *, by: str = "", note: str = "") -> list[str]:
    """Begin an account anew: as if nothing had been spent, or held. As `raise_limits`. Raises NotFound, Overtaken."""
    document = await _found(store, name)
    told = {"by": by or user_name(), "note": note, "user": user_name()}
    with contextlib.suppress(CallerError):  # one that cannot be read is to be reset, above all
        told["spent"] = str(written(account_in(document).settled))
    await pen(store, settings).append("budget_reset", account=name, **told)
    await store.erase_document(SHELF, name, document.version)
    return await _withdraw_questions(store, settings, name, "the budget began anew", told["by"])


async def _withdraw_questions(store: Store, settings: Settings, name: str, why: str, by: str) -> list[str]:
    """Of the waiting runs that ask whether to go beyond this account. One whom a person answers meanwhile is left."""
    asked = []
    for record in await store.runs("waiting", WAITING_MAX):
        run = Run(store, record.run_id, audit=pen(store, settings))
        for question in open_questions(record):
            if question.kind == "approval" and name in _accounts_asked(question.payload):
                with contextlib.suppress(CallerError):
                    await run.withdraw(question.interrupt_id, why, by=by)
                    asked.append(record.run_id)
    return asked


def _accounts_asked(payload: Mapping[str, Any]) -> set[str]:
    """Names of the accounts that a question says are at their limit."""
    parts = ("scope", "of", "layer", "policy", "budget", "window")
    return {name_of(Title(*(told[part] for part in parts))) for told in payload.get("budgets", [])}


async def account_of(store: Store, name: str) -> Account:
    """One account. Raises NotFound, CallerError: it cannot be read."""
    return account_in(await _found(store, name))


async def _found(store: Store, name: str) -> Document:
    document = await store.read_document(SHELF, name)
    if document is None:
        raise _no_account(name)
    return document


def _no_account(name: str) -> NotFound:
    return NotFound(
        f"there is no account {name!r}: `understudy budgets` lists those that there are; one begins with its first call"
    )


def account_data(name: str, account: Account) -> dict[str, Any]:
    """JSON values; amounts as text."""
    title = account.title
    return {
        "account": name,
        "budget": title.budget,
        "policy": title.policy,
        "layer": title.layer,
        "scope": title.scope,
        "of": title.of,
        "label": title.label,
        "window": title.window,
        "at_limit": account.at_limit,
        "calls_held": len(account.held),
        "units": {unit: amounts_of(account, unit) for unit in UNITS if is_counted(account, unit)},
    }


def amounts_of(account: Account, unit: Unit) -> Mapping[str, str | None]:
    """Of one unit; None: there is no limit."""

    def said(amount: Decimal | None) -> str | None:
        return None if amount is None else plain(amount)

    return {
        "limit": said(account.limit(unit)),
        "raised": said(account.raised.get(unit, Decimal())),
        "spent": said(account.settled.get(unit, Decimal())),
        "held": said(account.holding(unit)),
        "left": said(account.left(unit)),
    }


def is_counted(account: Account, unit: Unit) -> bool:
    return unit in account.limits or unit in account.settled or bool(account.holding(unit))
