"""The audit log grows with every decision; whoever serves the store prunes what is older than the settings say.

What is not good is evidence: nothing of it is deleted, and the log of the daemon says so each time.
"""

import asyncio
import logging
import time

from understudy.actors.errors import CallerError, Conflict, StoreUnavailable
from understudy.actors.store import Store
from understudy.cluster.auditing import prune
from understudy.cluster.settings import Settings

log = logging.getLogger("understudy.audit")

EVERY_S = 3600.0
DAY_S = 86_400.0


async def prune_by_age(store: Store, settings: Settings, now: float) -> int:
    """Take out the segments that are older than the settings say; how many. Raises CallerError: the log is not good."""
    if not settings.audit_keep_days:
        return 0
    return await prune(store, settings.secret(), now - settings.audit_keep_days * DAY_S, now)


async def keep_pruning(store: Store, settings: Settings) -> None:
    """Now, and then every hour, until it is cancelled. Several may do it at once."""
    while settings.audit_keep_days:
        try:
            count = await prune_by_age(store, settings, time.time())
            if count:
                log.info("pruned %d segments of the audit log, older than %d days", count, settings.audit_keep_days)
        except (Conflict, StoreUnavailable) as error:  # another daemon was faster; or there is always a next time
            log.info("the audit log is pruned later: %s", error)
        except CallerError as error:
            log.error("%s", error)
        await asyncio.sleep(EVERY_S)
