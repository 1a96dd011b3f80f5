"""A decision of the policies, as the run that asked gets it, and as its event log has it."""

from collections.abc import Callable, Sequence
from typing import Any

from understudy.actors.budgets import Judged
from understudy.actors.calls import Asked, Granted, Refused, Verdict
from understudy.actors.effects import call_text
from understudy.policies.permission import Allow, Ask, Deny, Policy, Request
from understudy.policies.redact import redacted


def verdict(
    layers: Sequence[Policy],
    request: Request,
    judged: Judged,
    token: Callable[[Allow | Ask], str],
    order: str = "",
) -> Verdict:
    """What follows from a decision, with the name, version and digest of every policy that had a say in it.

    Args:
        judged: a decision; that a person has approved this very call turns ask into a grant, never a denial.
        token: signs the grant.
        order: the name of the one start that it is good for; empty: any.
    """
    decision, approved = judged.decision, judged.approved
    noted: dict[str, Any] = {"policies": [layer.told() for layer in layers if layer.compiled.concerns(request.graph)]}
    noted |= judged.noted
    match decision:
        case Deny(rule=rule, policy=name, reason=reason):
            if decision.managed:
                noted["managed"] = True
            return Refused(rule, name, reason, noted, decision.redact)
        case Ask(rule=rule, policy=name, reason=reason) if not approved:
            return Asked(rule, name, reason, noted, decision.redact, decision.deadline_s, decision.on_timeout)
        case Ask(rule=rule, policy=name) | Allow(rule=rule, policy=name):
            if decision.marks:
                noted["marks"] = list(decision.marks)
            reason = "approved by a person" if isinstance(decision, Ask) else ""
            return Granted(
                token(decision),
                rule,
                name,
                reason,
                noted=noted,
                redact=decision.redact,
                workspace=decision.profile.workspace,
                order=order,
                bill=judged.bill,
            )


def entry_of(request: Request, key: str, found: Verdict, approved: bool, grant_id: str) -> dict[str, Any]:
    """What the audit log has of a decision, without what no event may show."""
    entry: dict[str, Any] = {
        "run": request.run_id,
        "graph": request.graph,
        "key": key,
        "tool": request.tool,
        "call": call_text(request.tool, redacted(request.args, found.redact)),
        "digest": request.digest,
        "labels": dict(request.labels),
        "decision": "ask" if isinstance(found, Asked) else "allow" if isinstance(found, Granted) else "deny",
        "policy": found.policy,
        "rule": found.rule,
        "reason": found.reason,
        "policies": found.noted.get("policies", []),
    }
    for name in ("budgets", "beyond"):
        if name in found.noted:
            entry[name] = found.noted[name]
    if approved:
        entry["approved"] = True
    if grant_id:
        entry["grant"] = grant_id
    return entry
