"""Answers to questions of runs, with their entry in the audit log."""

import hashlib
import time
from typing import Any

from understudy.actors.audit_log import AuditLog
from understudy.actors.errors import CallerError
from understudy.actors.process import user_name
from understudy.actors.records import RunRecord
from understudy.actors.store import Store


async def answer_audited(
    store: Store, audit: AuditLog | None, run_id: str, interrupt_id: str, text: str, **told: Any
) -> RunRecord:
    """Give an answer (JSON), which is in the audit log before it counts; and so is it, if the store refuses it. Raises
    what `Store.resume` does."""
    if audit is None:
        return await store.resume(run_id, interrupt_id, text, time.time())
    digest = hashlib.sha256(text.encode()).hexdigest()
    entry = {"run": run_id, "interrupt": interrupt_id, "answer": digest, "user": user_name(), **told}
    await audit.append("answer", **entry)
    try:
        return await store.resume(run_id, interrupt_id, text, time.time())
    except CallerError as error:
        await audit.append("answer_refused", **entry, reason=str(error))
        raise
