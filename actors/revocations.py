"""Revocations in the store: who takes a grant back writes one, and every sandbox reads them before it begins a call.

A revocation is signed, as a grant is: who can write to the store and does not know the secret takes nothing back.
It ends when every grant that it is about has ended; who then reads it erases it (law 8).
"""

import contextlib
import hmac
import json
import uuid
from dataclasses import asdict
from typing import Any, Final

from understudy.actors.documents import Overtaken
from understudy.actors.paging import each_document
from understudy.actors.store import Store
from understudy.policies.grant import GRANT_TTL_S
from understudy.policies.revocation import Revocation

SHELF: Final = "revocations"
KEPT_S: Final = 86_400.0
"""A call may be at work for long after its grant was used; no longer than this."""
_DOMAIN: Final = b"understudy revocation 1\0"


async def write_revocation(store: Store, secret: bytes, revocation: Revocation, **told: str) -> str:
    """Take grants back; the name of the note. Durable when this returns, and no call begins with them after that.

    Args:
        told: who and why, for whoever lists them.
    """
    name = f"{revocation.issued_until:018.6f}-{uuid.uuid4().hex[:12]}"
    content = {"revocation": asdict(revocation), "told": told}
    data = json.dumps({**content, "mac": _mac(content, secret)}, sort_keys=True).encode()
    await store.write_document(SHELF, name, data, 0)
    return name


async def read_revocations(store: Store, secret: bytes, now: float) -> list[tuple[Revocation, dict[str, str]]]:
    """Those that still matter, with who and why. What is not ours is passed over, what is past is erased."""
    found = []
    async for document in each_document(store, SHELF):
        try:
            content = json.loads(document.data)
            mac = str(content.pop("mac"))
            if not hmac.compare_digest(_mac(content, secret).encode(), mac.encode(errors="replace")):
                continue
            revocation = Revocation(**content["revocation"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if revocation.issued_until + GRANT_TTL_S + KEPT_S <= now:
            with contextlib.suppress(Overtaken):
                await store.erase_document(SHELF, document.name, document.version)
            continue
        found.append((revocation, dict(content["told"])))
    return found


def _mac(content: dict[str, Any], secret: bytes) -> str:
    return hmac.digest(secret, _DOMAIN + json.dumps(content, sort_keys=True).encode(), "sha256").hex()
