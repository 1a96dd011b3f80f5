"""Mends the accounts of budgets after deaths: what nobody will settle any more is settled or given back here.

A process may die after it held an amount and before the call began, or after the call's receipt was written and before
it was charged. The receipts tell which it was. The laws kept here:

4. A call whose end nobody knows has cost all that was held for it: it is never free.
8. Accounts of runs and threads that are gone, and of windows long past, are erased.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from understudy.actors.accounts import SHELF, Accounts, account_in
from understudy.actors.documents import Document, Overtaken
from understudy.actors.effects import read_outcome
from understudy.actors.errors import CallerError, NotFound
from understudy.actors.records import Receipt, RunRecord
from understudy.actors.store import Store
from understudy.policies.budget import Account, Hold, Unit, amounts_in, release, settle

MEND_AFTER_S: Final = 30.0
"""What was held just now is about to begin, or to be settled, by whoever held it."""
KEPT_S: Final = 7 * 86_400.0
"""How long the account of a window is kept after its end."""
PAGE: Final = 50
"""Accounts that are looked at in one go: small documents, and 256 KiB at most."""
PAGES: Final = 20
"""Pages of one turn of the supervisor."""


@dataclass(frozen=True)
class Settled:
    """What becomes of a hold: it has cost this; None: all."""

    cost: Mapping[Unit, Decimal] | None


@dataclass(frozen=True)
class GivenBack:
    """The call has not begun, and never will; or it was charged before."""


Fate = Settled | GivenBack | None


def fate_of(hold: Hold, run: RunRecord | None, receipt: Receipt | None) -> Fate:
    """What becomes of what is held for a call; None: it stays held.

    Args:
        run: that the call belongs to; None: it is gone.
        receipt: of the call; None: there is none (any more).
    """
    if run is None:
        return Settled(None)
    if receipt is None:
        if run.status == "running" and run.epoch == hold.epoch:
            return None  # its owner may be about to begin it
        # No call begins with an old epoch. If the run has not left the checkpoint, a receipt would be there.
        return GivenBack() if run.head == hold.checkpoint else Settled(None)
    if receipt.state != "done":
        return Settled(None) if run.final else None
    if hold.again:
        return GivenBack()
    outcome = read_outcome(receipt.outcome)
    if outcome.cost is not None:
        return Settled(amounts_in(outcome.cost))
    return GivenBack() if outcome.kind == "denied" else Settled(None)


async def sweep(
    store: Store, accounts: Accounts, now: float, after: str = "", mend_after_s: float = MEND_AFTER_S
) -> str:
    """Look at one page of accounts, from behind `after`; where the next one begins (empty: from the start again)."""
    page = await store.documents(SHELF, after, PAGE)
    for document in page:
        with contextlib.suppress(CallerError):  # one that cannot be read is told to whoever wants to pay from it
            await _look_at(store, accounts, document, now, mend_after_s)
    return page[-1].name if len(page) == PAGE else ""


async def sweep_all(store: Store, accounts: Accounts, now: float, mend_after_s: float = MEND_AFTER_S) -> None:
    """All pages of it."""
    after = await sweep(store, accounts, now, "", mend_after_s)
    while after:
        after = await sweep(store, accounts, now, after, mend_after_s)


async def _look_at(store: Store, accounts: Accounts, document: Document, now: float, mend_after_s: float) -> None:
    account = account_in(document)
    if not account.held:
        if await _is_past(store, account, now):
            with contextlib.suppress(Overtaken):  # it is in use again
                await store.erase_document(SHELF, document.name, document.version)
        return
    fates = await _fates(store, account, now - mend_after_s)
    if fates:

        def act(found: Account | None) -> tuple[Account | None, None]:
            for key, (hold, fate) in fates.items():
                if found is not None and found.held.get(key) == hold:  # else somebody has held it anew
                    cost = fate.cost if isinstance(fate, Settled) else None
                    found = settle(found, key, cost) if isinstance(fate, Settled) else release(found, key, hold.epoch)
            return found, None

        await accounts.change(document.name, act)


async def _fates(store: Store, account: Account, before: float) -> dict[str, tuple[Hold, Settled | GivenBack]]:
    found = {}
    for run_id in sorted({hold.run_id for hold in account.held.values() if hold.at <= before}):
        run = await _run(store, run_id)
        receipts = {receipt.key: receipt for receipt in await store.receipts(run_id)} if run else {}
        for key, hold in account.held.items():
            if hold.run_id == run_id and hold.at <= before:
                fate = fate_of(hold, run, receipts.get(key))
                if fate is not None:
                    found[key] = (hold, fate)
    return found


async def _is_past(store: Store, account: Account, now: float) -> bool:
    title = account.title
    if title.ends_at is not None and title.ends_at + KEPT_S <= now:
        return True
    match title.scope:
        case "run":
            return await _run(store, title.of) is None
        case "thread":
            return not await store.runs(limit=1, thread_id=title.of)
        case "tenant":
            return False


async def _run(store: Store, run_id: str) -> RunRecord | None:
    try:
        return await store.run(run_id)
    except NotFound:
        return None
