"""The policy actor: the one authority that turns a request into a signed grant, a question for a person, or a refusal.

It thinks with `permission.decide` (pure) and keeps nothing that cannot be lost: policies come from the store by digest,
and every decision is written to the run's event log by whoever acts on it, in the same move as the act (law 2).
"""

import time

from understudy.actors.calls import Asked, Granted, Refused, Verdict
from understudy.actors.code import digest_of, open_blob
from understudy.actors.errors import CodeError
from understudy.actors.open import OpenStore
from understudy.actors.process import name_of_this_process
from understudy.actors.store import Store
from understudy.policies.grant import Grant, sign
from understudy.policies.permission import Allow, Ask, Deny, Policy, Request, decide
from understudy.policies.policy_file import from_canonical

GRANT_TTL_S = 600.0
"""A grant that was not used after this long is refused by the sandbox; it covers the wait for a free sandbox."""


class PolicyActor:
    """Ray shell. `deployment`: canonical text of the policy that bounds every run; empty: runs' own policies decide."""

    def __init__(self, open_store: OpenStore, secret: bytes, deployment: str) -> None:
        self._open_store = open_store
        self._secret = secret
        self._deployment = from_canonical(deployment) if deployment else None
        self._store: Store | None = None
        self._policies: dict[str, Policy] = {}

    async def decide(self, request: Request, key: str, epoch: int, policy: str, approved: bool) -> Verdict:
        """The verdict on one call.

        Args:
            key: the effect key that a grant is bound to.
            policy: digest of the run's own policy, or empty.
            approved: a person has approved this very digest; turns ask into a grant, never a denial.
        """
        layers = [layer for layer in (self._deployment, await self._policy(policy)) if layer is not None]
        if not layers:
            return Refused(
                "",
                "",
                f"there is no policy, and no rule means no; write one that allows tool {request.tool!r} and name it "
                f"with --policy FILE, UNDERSTUDY_POLICY, or connect(policy=...)",
            )
        decision = decide(layers, request)
        match decision:
            case Deny(rule=rule, policy=name, reason=reason):
                return Refused(rule, name, reason)
            case Ask(rule=rule, policy=name, reason=reason) if not approved:
                return Asked(rule, name, reason)
            case Ask(rule=rule, policy=name, profile=profile) | Allow(rule=rule, policy=name, profile=profile):
                now = time.time()
                grant = Grant(
                    run_id=request.run_id,
                    key=key,
                    tool=request.tool,
                    digest=request.digest,
                    epoch=epoch,
                    profile=profile,
                    policy_digest=policy,
                    rule=rule,
                    decision="approved" if isinstance(decision, Ask) else "allow",
                    issued_at=now,
                    expires_at=now + GRANT_TTL_S,
                )
                reason = "approved by a person" if isinstance(decision, Ask) else ""
                return Granted(sign(grant, self._secret), rule, name, reason)

    async def _policy(self, digest: str) -> Policy | None:
        if not digest:
            return None
        if digest not in self._policies:
            self._store = self._store or await self._open_store()
            data = open_blob(await self._store.get_blob(digest), self._secret, f"policy {digest[:12]}")
            if digest_of(data) != digest:  # another policy of ours, put in the place of this one
                raise CodeError(f"policy {digest[:12]} has other contents than its name says; it is not used")
            self._policies[digest] = from_canonical(data.decode())
        return self._policies[digest]

    async def ready(self) -> str:
        """The name of the process."""
        return name_of_this_process()
