"""What nodes stream: sent to the store beside the commits, in batches, so that whoever follows the run sees it at once.

It costs no commit and survives no more than the store promises of chunks; the run's state never depends on it. Laws
kept here:
1. Chunks carry the owner's epoch: one that has lost the run streams nothing any more.
8. A chunk, a batch and what waits to be sent are bounded; a limit that is reached is an error in the node.

A task that is tried again, or whose run was taken up by another owner, streams anew under the name of a new attempt;
before that, what the attempts before it have streamed is marked as withdrawn.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from understudy.actors.errors import CallerError
from understudy.actors.records import Chunk, RunRecord
from understudy.actors.step import Task
from understudy.actors.store import Store

EVERY_S = 0.03
"""Between two batches. The first chunk after a pause is sent at once."""
CHUNK_BYTES_MAX = 65_536
BATCH_MAX = 500
PENDING_MAX = 10_000
TICK_S = 1e-6
PAGE = 1000


class Stream:
    """The chunks of one residence of a run, on their way to the store.

    Args:
        failed: called with what makes it impossible to go on: Fenced, StoreUnavailable, or a bug.
    """

    def __init__(
        self, store: Store, run: RunRecord, clock: Callable[[], float], failed: Callable[[BaseException], None]
    ) -> None:
        self._store = store
        self._run = run
        self._clock = clock
        self._failed = failed
        self._pending: list[Chunk] = []
        self._streamed: dict[str, set[str]] = {}
        """Attempts that have streamed, by task."""
        self._unsure: dict[str, Task] = {}
        """Tasks that an owner before this one may have tried: what it streamed is read before anything is sent."""
        self._sending: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._sent_at = 0.0
        self._at = 0.0
        self._broken = False

    def begin(self, task: Task, *, again: bool) -> None:
        """An attempt of a task begins. `again`: an owner before this one may have tried it."""
        if self._streamed:
            for attempt in sorted(self._streamed.pop(task.task_id, ())):
                self._put(self._mark(task, attempt))
        if again:
            self._unsure[task.task_id] = task
            self._wake()

    def put(self, task: Task, text: str) -> None:
        """Send a chunk (see `chunk_text`). Returns at once. Raises CallerError: the store does not keep up."""
        if len(self._pending) >= PENDING_MAX:
            raise CallerError(
                f"node {task.node!r} streams faster than the store takes it: {PENDING_MAX} chunks wait to be sent; "
                f"put more into one chunk, or await something between them"
            )
        attempt = self._attempt(task)
        self._streamed.setdefault(task.task_id, set()).add(attempt)
        self._put(Chunk(task.task_id, task.node, attempt, text, self._now()))

    async def flush(self) -> None:
        """Wait until everything that was put so far is sent: afterwards, the run may leave."""
        while self._sending is not None:
            self._hurry.set()
            await asyncio.wait([self._sending])

    def stop(self) -> None:
        """Nobody wants the rest."""
        self._broken = True
        self._failed = lambda _error: None  # else it kept the driver until garbage is looked for
        if self._sending is not None:
            self._sending.cancel()

    # --- inside ---

    def _attempt(self, task: Task) -> str:
        """Each owner has an epoch of its own, and each of its tries a number."""
        return f"{self._run.epoch}.{task.attempt}"

    def _mark(self, task: Task, attempt: str) -> Chunk:
        return Chunk(task.task_id, task.node, attempt, "null", self._now(), withdrawn=True)

    def _now(self) -> float:
        """The time; no two chunks have the same, so that one that was sent twice can be told (see `Once`)."""
        self._at = max(self._clock(), self._at + TICK_S)
        return self._at

    def _put(self, chunk: Chunk) -> None:
        self._pending.append(chunk)
        self._wake()

    def _wake(self) -> None:
        if self._sending is None and not self._broken:
            self._hurry.clear()
            self._sending = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        try:
            while self._unsure or self._pending:
                if self._unsure:
                    await self._withdraw()
                await self._pause()
                batch, self._pending = self._pending[:BATCH_MAX], self._pending[BATCH_MAX:]
                if batch:
                    await self._store.stream(self._run.run_id, self._run.epoch, batch)
                self._sent_at = asyncio.get_running_loop().time()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._broken = True
            self._failed(error)
        finally:
            self._sending = None

    async def _pause(self) -> None:
        wait_s = self._sent_at + EVERY_S - asyncio.get_running_loop().time()
        if wait_s > 0 and len(self._pending) < BATCH_MAX:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()

    async def _withdraw(self) -> None:
        """Put marks before everything else, for what earlier owners' attempts of these tasks have streamed."""
        unsure, self._unsure = self._unsure, {}
        stored: list[Chunk] = []
        while page := await self._store.chunks(self._run.run_id, stored[-1].n if stored else 0, PAGE):
            stored += page
        left = {(chunk.task_id, chunk.attempt): None for chunk in live(stored) if chunk.task_id in unsure}
        self._pending[:0] = [self._mark(unsure[task_id], attempt) for task_id, attempt in left]


class Once:
    """Lets each chunk pass once. A store that lost an answer is sent the same batch again, and may then have it twice,
    one behind the other."""

    def __init__(self, before: Iterable[Chunk] = ()) -> None:
        """`before`: the last chunks that were seen, at most a batch of them."""
        self._seen: dict[tuple[str, str, float], None] = {}
        self.news(before)

    def news(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that did not pass yet."""
        found = []
        for chunk in chunks:
            name = (chunk.task_id, chunk.attempt, chunk.at)
            if name not in self._seen:
                self._seen[name] = None
                found.append(chunk)
                if len(self._seen) > 2 * BATCH_MAX:
                    del self._seen[next(iter(self._seen))]
        return found


def live(chunks: Iterable[Chunk]) -> list[Chunk]:
    """What is left of chunks once those are dropped that were withdrawn: by a mark, or by a later attempt's chunk."""
    kept: list[Chunk] = []
    for chunk in chunks:
        if chunk.withdrawn:
            kept = [k for k in kept if (k.task_id, k.attempt) != (chunk.task_id, chunk.attempt)]
        else:
            if kept and _is_new_attempt(kept, chunk):
                kept = [k for k in kept if k.task_id != chunk.task_id]
            kept.append(chunk)
    return kept


def _is_new_attempt(kept: Sequence[Chunk], chunk: Chunk) -> bool:
    newest = next((k for k in reversed(kept) if k.task_id == chunk.task_id), None)
    return newest is not None and newest.attempt != chunk.attempt


def chunk_text(data: Any, node: str) -> str:
    """JSON of a chunk. Raises CallerError: it is none, no store could hold it, or it is too large."""
    try:
        text = json.dumps(data, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(
            f"ctx.stream in node {node!r}: {data!r:.80} is not JSON ({error}); use .model_dump(mode='json')"
        ) from None
    if size > CHUNK_BYTES_MAX:
        raise CallerError(
            f"ctx.stream in node {node!r}: a chunk of {size} bytes, and {CHUNK_BYTES_MAX} is the limit; stream it in "
            f"pieces, or write it to the state"
        )
    return text
