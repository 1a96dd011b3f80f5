"""A policy as it is stored: its canonical text, signed, under its digest; so that all runs of a policy share one."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from understudy.actors.code import digest_of, sign_blob
from understudy.actors.errors import CallerError
from understudy.actors.ship import keep_signed
from understudy.actors.store import BLOB_KEPT_S, Store
from understudy.policies.permission import Policy
from understudy.policies.policy_file import PolicyError, canonical, load_policy

PUT_AGAIN_S = BLOB_KEPT_S / 24
"""A blob that no run names is dropped a day after it was put: a program that lives longer puts its policy again."""


@dataclass
class SealedPolicy:
    """A policy that is ready to be stored."""

    digest: str
    signed: bytes
    name: str
    put_at: float = 0.0

    async def keep(self, store: Store) -> str:
        """See to it that the store has it; its digest. Raises CallerError: the store has it under another key."""
        now = time.time()
        if now - self.put_at > PUT_AGAIN_S:
            await keep_signed(store, self.digest, self.signed, f"policy {self.name!r}")
            self.put_at = now
        return self.digest


async def seal_policy(policy: Path | str | Policy, secret: bytes) -> SealedPolicy:
    """Read and sign a policy: a file, its text, or the policy itself. Raises CallerError with all that is wrong."""
    try:
        if isinstance(policy, Policy):
            read = policy
        elif isinstance(policy, Path):
            read = load_policy(await asyncio.to_thread(policy.read_text), source=str(policy))
        elif not isinstance(policy, str):
            raise CallerError(f"the policy is {policy!r:.80}; give a Path to its file, its text, or a Policy")
        elif _names_a_file(policy):
            raise CallerError(f"the policy {policy!r} is a text, not a file; write policy=Path({policy!r})")
        else:
            read = load_policy(policy, source="policy")
    except (OSError, UnicodeDecodeError, PolicyError) as error:
        raise CallerError(f"the policy cannot be used: {error}") from None
    data = canonical(read).encode()
    return SealedPolicy(digest_of(data), sign_blob(data, secret), read.name)


def _names_a_file(text: str) -> bool:
    """Read as YAML, `policy.yaml` is a text of one word, and said to be no mapping."""
    return "\n" not in text and text.endswith((".yaml", ".yml"))
