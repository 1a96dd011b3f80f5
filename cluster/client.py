"""What a program uses: `connect()`, start runs, follow them, answer them. Everything here speaks to the store alone.

The first step of the path: `Cluster.start` -> `Store.create`, and the run is durable. If no supervisor serves the
store, `connect` starts one in this process, on a Ray of its own.
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from understudy.actors.by_value import pickled
from understudy.actors.checkpoint import restore, seed
from understudy.actors.code import Code, digest_of, load_ref, locate, sign_blob
from understudy.actors.errors import CallerError, Conflict, NotFound, StoreUnavailable
from understudy.actors.errors import RunFailed as RunFailed
from understudy.actors.graph import Graph
from understudy.actors.process import is_dead
from understudy.actors.records import (
    CheckpointRow,
    Event,
    Interrupt,
    NewRun,
    RunRecord,
    Status,
    run_id_on,
)
from understudy.actors.records import open_questions as open_questions
from understudy.actors.start import create, new_run, updated
from understudy.actors.step import final_state
from understudy.actors.store import Store
from understudy.cluster.settings import Settings, read_settings
from understudy.cluster.stores import open_store
from understudy.policies.permission import Policy
from understudy.policies.policy_file import PolicyError, canonical, load_policy

if TYPE_CHECKING:
    from understudy.cluster.host import Host

SILENT_AFTER_S = 5.0
"""A supervisor that gave no sign for this long is taken for gone."""


STAND_BY_S = 1.0
"""How often a cluster that is served by others looks whether it still is."""


class Run:
    """A run, by its id; always addressable, resident or not."""

    def __init__(self, store: Store, run_id: str, graph: Graph | None = None) -> None:
        self._store = store
        self._graph = graph
        self.run_id = run_id

    async def record(self) -> RunRecord:
        """The run as the store knows it. Raises NotFound."""
        return await self._store.run(self.run_id)

    async def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the end: the final state, as the graph's model where it is known, else as a dict.

        Raises RunFailed (failed, cancelled, quarantined), TimeoutError.
        """
        record = await self.wait(timeout_s)
        if record.status != "succeeded":
            raise RunFailed(record)
        if self._graph is None:
            return json.loads(record.result)
        return final_state(self._graph.plan(), record.result)

    async def wait(self, timeout_s: float | None = None, until: Collection[Status] = ()) -> RunRecord:
        """Wait until the run is final (or in one of `until`). Raises TimeoutError."""
        until_at = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.01
        while True:
            record = await self.record()
            if record.final or record.status in until:
                return record
            if until_at is not None and time.monotonic() >= until_at:
                raise TimeoutError(f"run {self.run_id} is {record.status} after {timeout_s} s, at step {record.step}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, 0.25)

    async def events(self, after: int = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        """Events in order, from a cursor on; with `follow`, until the run is final."""
        pause_s = 0.01
        while True:
            record = await self.record()
            found = await self._store.events(self.run_id, after)
            for event in found:
                after = event.n
                yield event
            if found:
                pause_s = 0.01
                continue
            if not follow or record.final:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, 0.25)

    async def questions(self) -> list[Interrupt]:
        """Open questions, oldest first; none while the run does not wait."""
        return open_questions(await self.record())

    async def resume(self, answer: Any, interrupt_id: str = "") -> RunRecord:
        """Answer the run's open question (name it if there are several), and let it go on.

        An `unknown` call is answered with "retry", "fail" or {"value": what it returned}.
        Raises Conflict: there is none, there are several, it has another answer already, or it is a call to be
        approved; CallerError: the answer is not JSON, or does not fit; NotFound.
        """
        record = await self.record()
        questions = [i for i in open_questions(record) if i.kind in ("question", "unknown")]
        if not interrupt_id:
            if len(questions) != 1:
                listed = ", ".join(f"{i.interrupt_id} (node {i.node!r})" for i in questions)
                raise Conflict(
                    f"run {self.run_id} is {record.status} and has {len(questions)} open questions: {listed}; name "
                    f"the one that you answer"
                    if questions
                    else f"run {self.run_id} is {record.status} and asks nothing that could be answered"
                )
            interrupt_id = questions[0].interrupt_id
        kind = next((i.kind for i in record.interrupts if i.interrupt_id == interrupt_id), "")
        if kind == "approval":
            raise Conflict(f"{interrupt_id} is a call to be approved, not a question: approve or deny it")
        if kind == "unknown" and answer not in ("retry", "fail") and not _is_value(answer):
            raise CallerError(
                f'an unknown call is answered with "retry", "fail" or {{"value": ...}}, not {answer!r:.80}'
            )
        return await self._store.resume(self.run_id, interrupt_id, _answer(answer), time.time())

    async def approve(self, call_id: str, *, note: str = "") -> RunRecord:
        """Allow a tool call that the policy asks about; good for this very call, once."""
        return await self._decide(call_id, True, note)

    async def deny(self, call_id: str, *, note: str = "") -> RunRecord:
        """Refuse a tool call that the policy asks about."""
        return await self._decide(call_id, False, note)

    async def _decide(self, call_id: str, approve: bool, note: str) -> RunRecord:
        record = await self.record()
        calls = [i for i in open_questions(record) if i.kind == "approval"]
        if not any(i.interrupt_id == call_id for i in calls):
            listed = ", ".join(f"{i.interrupt_id} ({i.payload['tool']})" for i in calls) or "none"
            raise NotFound(f"run {self.run_id} has no call {call_id!r} to be approved; waiting calls: {listed}")
        return await self._store.resume(self.run_id, call_id, _answer({"approve": approve, "note": note}), time.time())

    async def cancel(self) -> RunRecord:
        """Ask the run to end; it is cancelled soon. Asking twice is the same as once."""
        return await self._store.cancel(self.run_id, time.time())

    async def state(self) -> dict[str, Any]:
        """The channels at the newest checkpoint, as JSON values."""
        record = await self.record()
        if not record.head:
            given = json.loads(record.input)
            return {**given["defaults"], **given["values"]}
        return await self._values(record.thread_id, record.head)

    async def history(self) -> list[CheckpointRow]:
        """The thread's checkpoints, newest first."""
        return await self._store.history((await self.record()).thread_id)

    async def fork(self, checkpoint_id: str, update: Mapping[str, Any] | None = None) -> "Run":
        """Start a new run, on a thread of its own, from a checkpoint of this one.

        What lies beyond the checkpoint is done again, effects included: the fork's effects have names of their own, so
        no receipt and no approval of this run is good there.

        Args:
            update: written to the channels first, through their reducers.
        Raises NotFound, InvalidWrite.
        """
        record = await self.record()
        chain = await self._store.chain(record.thread_id, checkpoint_id)
        origin = restore(chain)
        values = origin.values
        if update:
            plan = (self._graph or await graph_of(record)).plan()
            values = updated(plan, values, update)
        thread_id = f"fork-{uuid.uuid4().hex[:20]}"
        run_id = run_id_on(thread_id, uuid.uuid4().hex[:16])
        new = NewRun(
            run_id=run_id,
            thread_id=thread_id,
            graph=record.graph,
            version=record.version,
            code=record.code,
            input=record.input,
            digest=record.digest,
            policy=record.policy,
            labels={**record.labels, "forked_from": f"{record.run_id}@{checkpoint_id}"},
            seed=seed(values, origin, run_id),
        )
        await create(self._store, new)
        return Run(self._store, run_id, self._graph)

    async def _values(self, thread_id: str, checkpoint_id: str) -> dict[str, Any]:
        values = restore(await self._store.chain(thread_id, checkpoint_id)).values
        return {name: json.loads(text) for name, text in values.items()}


def _is_value(answer: Any) -> bool:
    return isinstance(answer, dict) and list(answer) == ["value"]


def _answer(answer: Any) -> str:
    """JSON of an answer. Raises CallerError for what every store could not hold, or give back as it is."""
    try:
        json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CallerError(f"the answer {answer!r:.80} is not JSON: {error}") from None
    return json.dumps(answer)


class Cluster:
    """A store and whoever serves it. Made by `connect`."""

    def __init__(self, store: Store, settings: Settings, host: "Host | None") -> None:
        self.store = store
        self.settings = settings
        self.host = host
        """The embedded host, if this process holds it."""
        self.policy = ""
        """Digest of the policy of the runs that are started here without one of their own."""

    async def start(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        thread: str = "",
        policy: Path | str | Policy | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Run:
        """Start a run. It is durable when this returns.

        Args:
            graph: a Graph, or `module:attribute`.
            input: the first state, or, on a thread that has one, a write to it.
            key: the same key (on the same thread) is the same run, whoever asks and however often.
            thread: the thread to run on; default, one of its own.
            policy: policy file, text, or Policy for this run's tool calls; default, the one given to `connect`.
            labels: for policies and for people.
        Raises GraphError, InvalidWrite, Conflict (the key belongs to another input), CallerError.
        """
        code, loaded = await self._code(graph)
        plan = loaded.plan()
        new = new_run(
            plan,
            code,
            input,
            key=key,
            thread=thread,
            policy=self.policy if policy is None else await keep_policy(self.store, policy, self.settings.secret()),
            labels=dict(labels or {}),
        )
        record = await create(self.store, new)
        return Run(self.store, record.run_id, loaded)

    async def run(self, run_id: str, graph: Graph | None = None) -> Run:
        """A run by its id. Raises NotFound."""
        await self.store.run(run_id)
        return Run(self.store, run_id, graph)

    async def runs(self, status: Status | None = None, limit: int = 100) -> list[RunRecord]:
        """Newest first."""
        return await self.store.runs(status, limit)

    async def _code(self, graph: Graph | str) -> tuple[Code, Graph]:
        if isinstance(graph, str):
            loaded = load_ref(graph)
            found = locate(loaded)
            return Code(ref=graph, paths=found.paths if found else ()), loaded
        if not isinstance(graph, Graph):
            raise CallerError(f"start takes a Graph or MODULE:GRAPH, not {graph!r}")
        located = locate(graph)
        if located is not None:
            return located, graph
        try:
            data = await asyncio.to_thread(pickled, graph)
        except Exception as error:
            raise CallerError(
                f"graph {graph.name!r} is not in a module, and cannot be shipped by value: {error}; put it in a module "
                f"as a global name"
            ) from error
        digest = digest_of(data)
        await self.store.put_blob(digest, sign_blob(data, self.settings.secret()), time.time())
        return Code(blob=digest), graph


async def graph_of(record: RunRecord) -> Graph:
    """The graph of a run that is given by reference. Raises CodeError, CallerError."""
    code = Code.read(record.code)
    if not code.ref:
        raise CallerError(f"run {record.run_id} was shipped by value; give the graph to cluster.run(run_id, graph)")
    return load_ref(code.ref, code.paths)


async def keep_policy(store: Store, policy: Path | str | Policy, secret: bytes) -> str:
    """Store a policy by its digest, signed. Raises CallerError with everything that is wrong in it."""
    try:
        if isinstance(policy, Policy):
            text = canonical(policy)
        elif isinstance(policy, Path):
            text = canonical(load_policy(await asyncio.to_thread(policy.read_text), source=str(policy)))
        else:
            text = canonical(load_policy(policy, source="policy"))
    except (OSError, UnicodeDecodeError, PolicyError) as error:
        raise CallerError(f"the policy cannot be used: {error}") from None
    data = text.encode()
    digest = digest_of(data)
    await store.put_blob(digest, sign_blob(data, secret), time.time())
    return digest


async def is_served(store: Store, now: float) -> bool:
    """Whether a supervisor gave a sign of life in the last seconds, and is not known to have died since."""
    return any(now - at < SILENT_AFTER_S and not is_dead(member) for member, (at, _) in (await store.beats()).items())


@contextlib.asynccontextmanager
async def connect(
    store: str | None = None,
    *,
    policy: Path | str | Policy | None = None,
    settings: Settings | None = None,
    embedded: bool | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster to start runs on: the one that serves the store, or one that lives as long as this block.

    If the one that serves the store leaves meanwhile, one is started here, and takes its runs up.

    Args:
        store: its URL; default, from the settings.
        policy: policy file (Path), text, or Policy for the runs started here.
        settings: instead of UNDERSTUDY_* and understudy.toml.
        embedded: True starts a supervisor here even if another serves the store; False never does.
    Raises CallerError, UnsafeStore, StoreUnavailable.
    """
    settings = settings or read_settings({"store": store})
    if store is not None and settings.store != store:
        settings = settings.model_copy(update={"store": store})
    opened = await open_store(settings.store_url, allow_volatile=settings.allow_volatile)
    cluster = Cluster(opened, settings, None)
    standing_by: asyncio.Task[None] | None = None
    try:
        cluster.policy = "" if policy is None else await keep_policy(opened, policy, settings.secret())
        if embedded or (embedded is None and not await is_served(opened, time.time())):
            await _serve(cluster)
        elif embedded is None:
            standing_by = asyncio.ensure_future(_stand_by(cluster))
        yield cluster
    finally:
        if standing_by is not None:
            standing_by.cancel()
            await asyncio.wait([standing_by])
        if cluster.host is not None:
            await cluster.host.stop()
        await opened.close()


async def _serve(cluster: Cluster) -> None:
    # Here and not above: it imports Ray, which takes a second, and most commands never need it.
    from understudy.cluster.host import Host

    cluster.host = Host(cluster.settings)
    await cluster.host.start()


async def _stand_by(cluster: Cluster) -> None:
    """The understudy's understudy: serve the store from here once whoever does it has left."""
    while cluster.host is None:
        await asyncio.sleep(STAND_BY_S)
        with contextlib.suppress(StoreUnavailable):
            if not await is_served(cluster.store, time.time()):
                await _serve(cluster)
