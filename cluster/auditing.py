"""Reads the audit log: verifies it from its beginning to its end and against the runs, shows it, and prunes it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from understudy.actors.audit_log import ANCHOR, ANCHORS, SHELF, AuditLog, anchor_of
from understudy.actors.documents import Document
from understudy.actors.errors import CallerError, NotFound
from understudy.actors.paging import each_document, each_thread
from understudy.actors.store import Store
from understudy.cluster.settings import Settings
from understudy.policies.audit import (
    Entry,
    Fault,
    Head,
    fault_of,
    fault_of_head,
    fault_of_named,
    name_of,
    place_of,
    read_segment,
    write_anchor,
)

EVENTS_AT_ONCE = 1000
RUNS_MAX = 1_000_000
PRUNABLE_AFTER_S = 3600.0
"""Younger segments stay: a writer may still believe that the end of the log is where it was (see audit_log)."""


@dataclass(frozen=True)
class Verified:
    first: int
    """Number of the first segment that was looked at."""
    head: Head
    """The last one that is good."""
    entries: int
    fault: Fault | None
    """The first thing that is wrong; None: nothing."""


def pen(store: Store, settings: Settings) -> AuditLog:
    """What people do from this process is noted with it, under the deployment's secret."""

    async def opened() -> Store:
        return store

    return AuditLog(opened, settings.secret(), strict=True)


async def verify(
    store: Store, secret: bytes, *, start: int = 0, noted: Head | None = None, runs: bool = True
) -> Verified:
    """Go along the chain. Raises CallerError: it does not have the segment to start with.

    Args:
        start: number of the first segment to be looked at; 0: the first that there is. What comes before is believed.
        noted: a head that somebody wrote down before.
        runs: look whether every entry that an event of a run names is there.
    """
    while True:
        before = await store.read_document(ANCHORS, ANCHOR)
        found = await _verify(store, secret, start, noted, runs)
        # What is pruned meanwhile is missed, and nothing is wrong with it.
        if found.fault is None or before == await store.read_document(ANCHORS, ANCHOR):
            return found


async def _verify(store: Store, secret: bytes, start: int, noted: Head | None, runs: bool) -> Verified:
    named = await _named(store) if runs else {}  # before the log: an event names what is there already
    try:
        after = await anchor_of(store, secret)
    except ValueError as error:
        return Verified(0, Head(), 0, Fault(0, "forged", str(error)))
    if start > after.number + 1:
        before = await store.read_document(SHELF, name_of(start - 1))
        if before is None:
            raise CallerError(f"there is no segment {start - 1} in the audit log, so none can be verified behind it")
        after = Head(start - 1, _mac_in(before))
    first, entries, passed = after.number + 1, 0, None
    async for document in _documents(store, after.number):
        fault = fault_of(document.name, document.version, document.data, after, secret)
        if fault:
            return Verified(first, after, entries, fault)
        segment = read_segment(document.data)
        for index, entry in enumerate(segment.entries):
            place = place_of(segment.number, index)
            if named.get(place) == (entry.get("run"), entry.get("key")):
                del named[place]
        entries += len(segment.entries)
        after = segment.head
        passed = after if noted and noted.number == after.number else passed
    fault = fault_of_head(noted, passed, first, after.number) if noted else None
    return Verified(first, after, entries, fault or fault_of_named(named, first, after.number))


async def entries_of(store: Store, run_id: str = "") -> AsyncIterator[tuple[str, Entry]]:
    """Entries with their places, oldest first; of one run, or of all."""
    async for document in _documents(store, 0):
        try:
            segment = read_segment(document.data)
        except ValueError as error:  # somebody has spoilt it: verification says more
            if not run_id:
                yield document.name, {"kind": "spoilt", "at": 0.0, "why": str(error)}
            continue
        for index, entry in enumerate(segment.entries):
            if not run_id or entry.get("run") == run_id:
                yield place_of(segment.number, index), entry


async def prune(store: Store, secret: bytes, before: float, now: float) -> int:
    """Take out the segments that are older than a time, and leave a signed note; how many.

    The note is written first: whoever dies in between leaves some segments too many, which the next call takes. Raises
    CallerError: the log is not good, and so it is evidence; or what is asked for is too young.
    """
    if before > now - PRUNABLE_AFTER_S:
        raise CallerError(
            f"segments younger than {PRUNABLE_AFTER_S / 60:.0f} minutes are not pruned; choose an earlier time"
        )
    anchor = await store.read_document(ANCHORS, ANCHOR)
    try:
        after = begin = await anchor_of(store, secret)
    except ValueError as error:
        raise CallerError(f"the audit log is not pruned: {error}") from None
    async for document in _documents(store, after.number):
        fault = fault_of(document.name, document.version, document.data, after, secret)
        if fault:
            raise CallerError(f"the audit log is not pruned, as {fault}; `understudy audit verify` says more")
        segment = read_segment(document.data)
        if segment.at >= before:
            break
        after = segment.head
    if after != begin:
        data = write_anchor(after, now, secret)
        await store.write_document(ANCHORS, ANCHOR, data, anchor.version if anchor else 0)
    pruned = 0
    async for document in _documents(store, 0):
        if document.name > name_of(after.number):
            break
        await store.erase_document(SHELF, document.name, document.version)
        pruned += 1
    return pruned


def _documents(store: Store, after: int) -> AsyncIterator[Document]:
    return each_document(store, SHELF, name_of(after) if after else "")


async def _named(store: Store) -> dict[str, tuple[str, str]]:
    """Run and key by the place of the entry that the decision about it names."""
    named: dict[str, tuple[str, str]] = {}
    async for thread_id in each_thread(store):
        for run in await store.runs(limit=RUNS_MAX, thread_id=thread_id):
            named |= await _named_by(store, run.run_id)
    return named


async def _named_by(store: Store, run_id: str) -> dict[str, tuple[str, str]]:
    named: dict[str, tuple[str, str]] = {}
    n = 0
    with contextlib.suppress(NotFound):  # it was deleted meanwhile
        while events := await store.events(run_id, n, EVENTS_AT_ONCE):
            for event in events:
                if event.kind == "decided" and "audit" in event.data:
                    named[str(event.data["audit"])] = (run_id, str(event.data.get("key")))
            n = events[-1].n
    return named


def _mac_in(document: Document) -> str:
    try:
        return read_segment(document.data).mac
    except ValueError:
        return ""
