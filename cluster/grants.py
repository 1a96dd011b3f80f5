"""Grants in force: which calls of a run may still begin, or are at work, under which grant; and taking them back."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from understudy.actors.approvals import read_approval
from understudy.actors.errors import Conflict, NotFound
from understudy.actors.process import user_name
from understudy.actors.revocations import read_revocations, write_revocation
from understudy.actors.store import Store
from understudy.cluster.auditing import entries_of, pen
from understudy.cluster.settings import Settings
from understudy.policies.grant import GRANT_TTL_S
from understudy.policies.revocation import Revocation


@dataclass(frozen=True)
class InForce:
    """A grant that is good, or that a call is at work under."""

    grant: str
    run_id: str
    key: str
    tool: str
    call: str
    policy: str
    rule: str
    approved: bool
    """A person has approved it."""
    issued_at: float
    expires_at: float
    at_work: bool

    @property
    def id(self) -> str:
        """As the grant itself calls it."""
        return self.grant


async def grants_of(store: Store, secret: bytes, run_id: str, now: float) -> list[InForce]:
    """Oldest first. As the audit log has them, without those whose call or time is over, or that were revoked."""
    states = {receipt.key: receipt.state for receipt in await store.receipts(run_id)}
    revoked = [revocation for revocation, _ in await read_revocations(store, secret, now)]
    found = []
    async for _, told in entries_of(store, run_id):
        entry = defaultdict(str, told)  # it may be a forged one that lacks something
        if entry.get("kind") != "decision" or "grant" not in entry:
            continue
        state = states.get(entry["key"], "")
        grant = InForce(
            grant=entry["grant"],
            run_id=run_id,
            key=entry["key"],
            tool=entry["tool"],
            call=entry["call"],
            policy=entry["policy"],
            rule=entry["rule"],
            approved="approved" in entry,
            issued_at=entry["at"],
            expires_at=entry["at"] + GRANT_TTL_S,
            at_work=state == "started",
        )
        is_good = not state and grant.expires_at > now
        if (is_good or grant.at_work) and not any(each.covers(grant) for each in revoked):
            found.append(grant)
    return found


async def approved_of(store: Store, run_id: str) -> list[str]:
    """Calls that a person has approved, and that have not begun: as they are asked about."""
    record = await store.run(run_id)
    if record.final:
        return []
    begun = {receipt.digest for receipt in await store.receipts(run_id)}
    return [
        f"{asked.interrupt_id} ({asked.payload['tool']})"
        for asked in record.interrupts
        if asked.kind == "approval"
        and asked.digest not in begun
        and read_approval(json.loads(record.answers.get(asked.interrupt_id, "null"))).approve
    ]


async def _named(store: Store, text: str) -> tuple[str, str]:
    """The grant that is meant, and its run. A name that no grant has would be revoked, and no call be ended."""
    found = {
        str(entry["grant"]): str(entry.get("run"))
        async for _, entry in entries_of(store)
        if entry.get("kind") == "decision" and str(entry.get("grant", "")).startswith(text)
    }
    if not found:
        raise NotFound(f"there is no grant {text!r} in the audit log; `understudy grants RUN` lists those in force")
    if len(found) > 1:
        raise Conflict(f"{len(found)} grants begin with {text!r}: {', '.join(sorted(found)[:5])}; give more of the id")
    return next(iter(found.items()))


async def revoke(
    store: Store, settings: Settings, *, run_id: str = "", key: str = "", grant: str = "", by: str = "", note: str = ""
) -> list[InForce]:
    """Take grants back: what was in force of the run, or under the grant whose id begins as `grant` does.

    No call begins under them any more, and those at work are ended. Raises NotFound: there is no such grant; Conflict:
    there are several.
    """
    now = time.time()
    hit: list[InForce] = []
    if grant:
        grant, of_run = await _named(store, grant)
        hit = [each for each in await grants_of(store, settings.secret(), of_run, now) if each.grant == grant]
    if run_id:
        hit = [each for each in await grants_of(store, settings.secret(), run_id, now) if each.key.startswith(key)]
        if not hit:
            which = f"no grant in force for call {key!r}" if key else "no grant in force"
            approved = await approved_of(store, run_id)
            if approved:
                raise NotFound(
                    f"run {run_id} has {which} yet, but the word of a person that stands: {', '.join(approved)}. "
                    f"It becomes a grant when the run takes it up, and cannot be taken back before; cancel the run, or "
                    f"have a policy deny the call"
                )
            raise NotFound(f"run {run_id} has {which}; `understudy grants {run_id}` lists those that there are")
    keys = {each.key for each in hit} if run_id and key else {""}
    # The policy actor's clock may be ahead of this one: what is meant is what is there, and one grant is meant by name.
    until = max([now + GRANT_TTL_S if grant else now, *(each.issued_at for each in hit)])
    told: dict[str, Any] = {"by": by or user_name(), "note": note}
    for each in sorted(keys):
        about = {"run": run_id, "key": each, "grant": grant}
        await pen(store, settings).append("revoke", **about, **told, user=user_name())
        revocation = Revocation(until, run_id=run_id, key=each, grant_id=grant)
        await write_revocation(store, settings.secret(), revocation, **told)
    return hit
