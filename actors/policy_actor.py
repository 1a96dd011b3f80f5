"""The policy actor: the one authority that turns a request into a signed grant, a question for a person, or a refusal.

It thinks with `permission.decide` (pure) and keeps nothing that cannot be lost: policies come from files and, by
digest, from the store; every decision is written to the run's event log by whoever acts on it, in the same move as the
act (law 2), with the name, version and digest of every policy that decided. Before that, it is in the audit log: nobody
is told a decision that is not durable there.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

from understudy.actors.audit_log import AuditLog
from understudy.actors.budgets import Budgets, own_effect_allowed
from understudy.actors.calls import Granted, Refused, Verdict
from understudy.actors.code import digest_of, open_blob
from understudy.actors.errors import CodeError, StoreUnavailable
from understudy.actors.open import OpenStore
from understudy.actors.outdated import withdraw_outdated
from understudy.actors.packed import pack, unpack
from understudy.actors.policy_source import LOOK_EVERY_S, DeploymentPolicies, PolicySource
from understudy.actors.process import name_of_this_process
from understudy.actors.run_history import RunHistories
from understudy.actors.store import Store
from understudy.actors.verdicts import entry_of, verdict
from understudy.policies.grant import GRANT_TTL_S, Grant, args_digest, sign
from understudy.policies.history import History
from understudy.policies.permission import NO_HISTORY, Allow, Ask, Policy, Request, decide
from understudy.policies.policy_file import from_canonical

POLICIES_MAX = 256
"""Policies of runs that are kept at hand (law 8)."""


class PolicyActor:
    """Ray shell. `source`: the policies that bound every run; without any, runs' own policies decide."""

    def __init__(self, open_store: OpenStore, secret: bytes, source: PolicySource) -> None:
        self._open_store = open_store
        self._secret = secret
        self._deployment = DeploymentPolicies(source)
        self._opened: Store | None = None
        self._histories: RunHistories | None = None
        self._policies: dict[str, Policy] = {}
        self._looking: asyncio.Task[None] | None = None
        self._audit = AuditLog(self._store, secret)
        self._budgets = Budgets(self._store)

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        """The verdict on one call.

        Args:
            key: the effect key that a grant is bound to.
            policy: digest of the run's own policy, or empty.
            approved: a person has approved this very digest; turns ask into a grant, never a denial.
        """
        if request.effect is not None and not await self._has_budgets(policy):
            return Granted("", "", "")
        found, grant_id = await self._verdict(request, key, epoch, policy, approved)
        place = await self._audit.append("decision", **entry_of(request, key, found, approved, grant_id))
        return dataclasses.replace(found, noted={**found.noted, "audit": place})

    async def decide_packed(self, asked: bytes) -> bytes:
        """`decide`, of its packed arguments; its packed answer. With both goes a word of where the audit log ends."""
        word, *args = unpack(asked)
        self._audit.hear(word)
        answer = await self.decide(*args)
        return pack((self._audit.word(), answer))

    async def _verdict(
        self, request: Request, key: str, epoch: int, policy: str, approved: bool
    ) -> tuple[Verdict, str]:
        """What is decided, and the id of the grant, if one was given."""
        own = await self._policy(policy)
        layers = self._deployment.layers if own is None else (*self._deployment.layers, own)
        if not layers and request.effect is None:
            no = f"there is no policy, and no rule means no; write one that allows tool {request.tool!r} and name it "
            return Refused("", "", no + "with --policy FILE, UNDERSTUDY_POLICY, or connect(policy=...)"), ""
        now, grant_id = time.time(), uuid.uuid4().hex
        if request.effect is None:
            decision = decide(layers, request, now, await self._history(layers, request))
        else:
            decision = own_effect_allowed(request)
        named = [("run" if layer is own else layer.layer, layer) for layer in layers]
        judged = await self._budgets.judge(named, request, decision, key, epoch, approved, now)

        def token(decision: Allow | Ask) -> str:
            deciding = [layer for layer in layers if layer.compiled.concerns(request.graph)]
            paths = set().union(*(layer.compiled.for_tool(request.tool).judged_paths for layer in deciding))
            grant = Grant(
                run_id=request.run_id,
                key=key,
                tool=request.tool,
                digest=request.digest,
                code=request.code,
                epoch=epoch,
                profile=decision.profile,
                policy_digest=hashlib.sha256("\n".join(layer.digest for layer in deciding).encode()).hexdigest(),
                rule=decision.rule,
                decision="approved" if isinstance(decision, Ask) else "allow",
                issued_at=now,
                expires_at=now + GRANT_TTL_S,
                id=grant_id,
                args=args_digest(request.args),
                bill=judged.bill,
                paths=tuple(sorted(paths)),
            )
            return sign(grant, self._secret)

        if request.effect is not None:  # nobody but the run's own process acts on it, and no sandbox may
            return verdict(layers, request, judged, lambda _: ""), ""
        found = verdict(layers, request, judged, token, grant_id)
        return found, grant_id if isinstance(found, Granted) else ""

    async def _has_budgets(self, policy: str) -> bool:
        own = await self._policy(policy)
        return any(layer.budgets for layer in (*self._deployment.layers, *([own] if own else [])))

    async def report(self, known: PolicySource) -> tuple[dict[str, Any], PolicySource | None]:
        """What is in force, for `status`; and where it comes from, if that is not what the caller knows."""
        self._look()
        source = self._deployment.source
        return self._deployment.report(), None if source == known else source

    async def ready(self) -> str:
        """The name of the process."""
        self._look()
        return name_of_this_process()

    # --- inside ---

    def _look(self) -> None:
        """Begin to look for changes of the deployment's policies, unless that is at work."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_on())

    async def _look_on(self) -> None:
        """Questions that were asked under policies from before are looked at when this process begins and after each
        change; then once more, for a run may just be going to wait."""
        looks = 2
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            before = self._deployment.layers
            await asyncio.to_thread(self._deployment.look)
            if self._deployment.layers is not before:
                looks = 2
            if looks and self._deployment.source.path:
                with contextlib.suppress(StoreUnavailable):  # else at the next look
                    await withdraw_outdated(await self._store(), self._audit, self._deployment.layers)
                    looks -= 1

    async def _history(self, layers: Sequence[Policy], request: Request) -> History:
        if not any(layer.compiled.for_tool(request.tool).asks_history for layer in layers):
            return NO_HISTORY
        self._histories = self._histories or RunHistories(await self._store())
        return await self._histories.of(request.run_id)

    async def _policy(self, digest: str) -> Policy | None:
        if not digest:
            return None
        if digest not in self._policies:
            data = open_blob(await (await self._store()).get_blob(digest), self._secret, f"policy {digest[:12]}")
            if digest_of(data) != digest:  # another policy of ours, put in the place of this one
                raise CodeError(f"policy {digest[:12]} has other contents than its name says; it is not used")
            if len(self._policies) >= POLICIES_MAX:  # of runs that have ended, most of them
                self._policies.clear()
            self._policies[digest] = from_canonical(data.decode())
        return self._policies[digest]

    async def _store(self) -> Store:
        self._opened = self._opened or await self._open_store()
        return self._opened
