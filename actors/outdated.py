"""Questions about budgets of the deployment whose limits are others by now are withdrawn, and the calls judged anew.

As `understudy budgets --raise` does for one account; here the policy itself was changed. A call that is still too dear
asks again, with the new numbers. What a run's own policy asks about never changes.
"""

import contextlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from understudy.actors.accounts import SHELF, account_in, name_of
from understudy.actors.answers import json_of
from understudy.actors.approvals import withdrawal
from understudy.actors.audit_log import AuditLog
from understudy.actors.audited import answer_audited
from understudy.actors.errors import CallerError
from understudy.actors.records import open_questions
from understudy.actors.store import Store
from understudy.policies.budget import ZERO, Budget, Title
from understudy.policies.permission import Policy

WAITING_MAX = 1000
WHY = "the policy has another limit now"
BY = "policy"

Budgets = Mapping[tuple[str, str, str], Budget]
"""Of the deployment, by layer, policy and id."""


async def withdraw_outdated(store: Store, audit: AuditLog, layers: Sequence[Policy]) -> list[str]:
    """Of the runs that wait: ids of those whose question was withdrawn. Can be repeated; a question that somebody
    answers meanwhile is left."""
    budgets: Budgets = {(layer.layer, layer.name, budget.id): budget for layer in layers for budget in layer.budgets}
    withdrawn = []
    for record in await store.runs("waiting", WAITING_MAX):
        for question in open_questions(record):
            told = question.payload.get("budgets", ()) if question.kind == "approval" else ()
            if not any([await _is_outdated(store, each, budgets) for each in told]):
                continue
            text, asked = json_of(withdrawal(WHY, BY)), (record.run_id, question.interrupt_id)
            with contextlib.suppress(CallerError):
                await answer_audited(store, audit, *asked, text, said="withdrawn", by=BY)
                withdrawn.append(record.run_id)
    return withdrawn


async def _is_outdated(store: Store, told: Mapping[str, Any], budgets: Budgets) -> bool:
    """Whether what a question says of the limit of an account (`budget.Short.told`) is not so any more."""
    if told["layer"] == "run":
        return False
    budget = budgets.get((told["layer"], told["policy"], told["budget"]))
    if budget is None or told["unit"] not in budget.limits:
        return True
    title = Title(*(told[part] for part in ("scope", "of", "layer", "policy", "budget", "window")))
    document = await store.read_document(SHELF, name_of(title))
    try:
        raised = account_in(document).raised.get(told["unit"], ZERO) if document else ZERO
    except CallerError:  # whoever judges the call says so
        return False
    return budget.limits[told["unit"]] + raised != Decimal(told["limit"])
