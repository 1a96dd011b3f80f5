"""Moves a deployment from one store to another: every thread with all it has, blobs, documents and counters.

Nobody may serve the source meanwhile, and the target may hold nothing else. It can be killed at any line and called
again (law 9): a thread is there as a whole or not at all, a blob or document put twice is one, and of the counters only
what is missing is added. At the end everything is read again on both sides and compared: what came in between is
noticed. Not moved: chunks of streams, which may be lost with any store, and signs of life.
"""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from understudy.actors.documents import Document
from understudy.actors.errors import Conflict, NotFound
from understudy.actors.paging import each_document, each_thread
from understudy.actors.records import Counters, ThreadDump
from understudy.actors.store import Store
from understudy.cluster.client import is_served

PAGE = 1000
COUNTERS_OFF_BY = 1e-9
"""Relative: sums of floats differ by the order in which they were added."""


@dataclass(frozen=True)
class Moved:
    """What is in the target now, and was compared."""

    threads: int
    runs: int
    checkpoints: int
    blobs: int
    documents: int
    counters: int
    found: int
    """Threads that an earlier call had moved already."""
    digest: str
    """Of all threads, in their order: the same on both sides."""


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    of: int


async def move(source: Store, target: Store, tell: Callable[[Progress], None] = lambda _: None) -> Moved:
    """Make the target what the source is. Raises Conflict: the source is served, the target holds something else, or
    one of them went on meanwhile."""
    await _refuse_if_served(source, "the source", "stop it first (`understudy down`)")
    await _refuse_if_served(target, "the target", "it has to be empty, and served by nobody until all is moved")
    threads = [thread_id async for thread_id in each_thread(source)]
    await _refuse_strangers(threads, source, target)
    await _move_documents(source, target, tell)
    blobs = await _move_blobs(source, target, tell)
    found = 0
    for n, thread_id in enumerate(threads, start=1):
        if not await target.adopt(await source.dump(thread_id)):
            found += 1
        tell(Progress("threads", n, len(threads)))
    await _move_counters(source, target)
    moved = await _compare(source, target, threads, blobs, found, tell)
    await _refuse_if_served(source, "the source", "its runs went on there; empty the target and start over")
    return moved


async def shelved(store: Store) -> AsyncIterator[tuple[str, Document]]:
    """Every document, with its shelf."""
    for shelf in await store.shelves():
        async for document in each_document(store, shelf):
            yield shelf, document


def digest_of(dump: ThreadDump) -> str:
    """Of everything in it. Numbers count by their value: a store may give 0 for 0.0."""
    return hashlib.sha256(json.dumps(_plain(dump), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


async def _refuse_if_served(store: Store, which: str, remedy: str) -> None:
    if await is_served(store, time.time()):
        raise Conflict(f"{which}, {(await store.info()).where}, is served by a supervisor; {remedy}")


async def _refuse_strangers(threads: list[str], source: Store, target: Store) -> None:
    known = set(threads)
    async for thread_id in each_thread(target):
        if thread_id not in known:
            raise await _not_empty(target, f"thread {thread_id!r}")
    async for shelf, document in shelved(target):
        if await source.read_document(shelf, document.name) is None:
            raise await _not_empty(target, f"document {document.name!r} of shelf {shelf!r}")
    ours = await source.counters()
    for name, value in (await target.counters()).items():
        if value > ours.get(name, 0.0) * (1 + COUNTERS_OFF_BY):
            raise await _not_empty(target, f"counter {name} at {value:g}")


async def _not_empty(target: Store, what: str) -> Conflict:
    return Conflict(f"{(await target.info()).where} has {what}, which the source has not; choose an empty store")


async def _move_documents(source: Store, target: Store, tell: Callable[[Progress], None]) -> None:
    of, n = sum((await source.shelves()).values()), 0
    async for shelf, document in shelved(source):
        await target.adopt_document(shelf, document)
        n += 1
        tell(Progress("documents", n, of))


async def _move_blobs(source: Store, target: Store, tell: Callable[[Progress], None]) -> list[str]:
    """First, as runs name them. They are put anew, even those that are there: so no sweep takes them."""
    digests = await source.blobs()
    for n, digest in enumerate(digests, start=1):
        await target.put_blob(digest, await source.get_blob(digest), time.time())
        tell(Progress("blobs", n, len(digests)))
    return digests


async def _move_counters(source: Store, target: Store) -> None:
    """What is missing is added; so it does not matter how far an earlier call came. Twice, as a client that lost the
    answer counts again: then what is too much is taken away."""
    for _ in range(2):
        missing = await _missing(source, target)
        if missing:
            await target.count(missing)


async def _missing(source: Store, target: Store) -> Counters:
    there = await target.counters()
    return {
        name: value - there.get(name, 0.0)
        for name, value in (await source.counters()).items()
        if name not in there or abs(value - there[name]) > COUNTERS_OFF_BY * abs(value)
    }


async def _compare(
    source: Store, target: Store, threads: list[str], blobs: list[str], found: int, tell: Callable[[Progress], None]
) -> Moved:
    """Raises Conflict that names the first difference."""
    total = hashlib.sha256()
    runs = checkpoints = 0
    for n, thread_id in enumerate(threads, start=1):
        try:
            dump, there = await source.dump(thread_id), await target.dump(thread_id)
        except NotFound:
            raise await _differs(source, target, f"thread {thread_id!r} was deleted") from None
        if digest_of(dump) != digest_of(there):
            raise await _differs(source, target, f"thread {thread_id!r} is not the same on both sides")
        total.update(digest_of(dump).encode())
        runs, checkpoints = runs + len(dump.runs), checkpoints + len(dump.checkpoints)
        tell(Progress("compared", n, len(threads)))
    if threads != [thread_id async for thread_id in each_thread(source)]:
        raise await _differs(source, target, "there are other threads than at the beginning")
    for digest in blobs:
        if await source.get_blob(digest) != await target.get_blob(digest):
            raise await _differs(source, target, f"blob {digest} has other contents")
    documents = 0
    async for shelf, document in shelved(source):
        if await target.read_document(shelf, document.name) != document:
            raise await _differs(source, target, f"document {document.name!r} of shelf {shelf!r} differs")
        documents += 1
    if await target.shelves() != await source.shelves():
        raise await _differs(source, target, "documents were erased")
    missing = await _missing(source, target)
    if missing:
        raise await _differs(source, target, f"counters {', '.join(sorted(missing)[:3])} differ")
    counters = len(await source.counters())
    return Moved(len(threads), runs, checkpoints, len(blobs), documents, counters, found, total.hexdigest())


async def _differs(source: Store, target: Store, what: str) -> Conflict:
    return Conflict(
        f"{what}: somebody wrote to {(await source.info()).where} or to {(await target.info()).where} since they were "
        f"moved; see that nobody does, and move to an empty store"
    )
