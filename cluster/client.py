"""What a program uses: `connect()`, start runs, follow them, answer them. Everything here speaks to the store alone.

The first step of the path: `Cluster.start` -> `Store.create`, and the run is durable. If no supervisor serves the
store, `connect` starts one in this process, on a Ray of its own.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from understudy.actors.answers import checked_answer, json_of
from understudy.actors.approvals import Approval, approval_answer, withdrawal
from understudy.actors.audit_log import AuditLog
from understudy.actors.audited import answer_audited
from understudy.actors.checkpoint import restore
from understudy.actors.children import cancel_children, children_of
from understudy.actors.code import Code, CodeMode, load_ref
from understudy.actors.errors import CallerError, NotFound, StoreUnavailable
from understudy.actors.errors import RunFailed as RunFailed
from understudy.actors.files import Files, Given, bytes_of, checked_path, without_files
from understudy.actors.forks import Beyond, Mode
from understudy.actors.graph import Graph
from understudy.actors.mailbox import message_text
from understudy.actors.names import check_name
from understudy.actors.process import is_dead
from understudy.actors.records import (
    BUSY,
    Busy,
    CheckpointRow,
    Chunk,
    Event,
    Interrupt,
    RunRecord,
    Status,
)
from understudy.actors.records import open_questions as open_questions
from understudy.actors.results import with_result
from understudy.actors.ship import ship_graph
from understudy.actors.start import create, new_run
from understudy.actors.step import files_of, final_state
from understudy.actors.store import Store
from understudy.cluster import follow as following
from understudy.cluster.answering import call_to_decide, changed_args, question_to_answer
from understudy.cluster.auditing import pen
from understudy.cluster.belonging import take_into_service
from understudy.cluster.follow import Cursor, Seen
from understudy.cluster.forking import fork_point, new_fork
from understudy.cluster.sealed import SealedPolicy, seal_policy
from understudy.cluster.settings import Settings, mistyped, read_settings
from understudy.cluster.stores import open_store
from understudy.policies.permission import Policy

if TYPE_CHECKING:
    from understudy.cluster.host import Host

log = logging.getLogger(__name__)

SILENT_AFTER_S = 5.0
"""A supervisor that gave no sign for this long is taken for gone."""


STAND_BY_S = 1.0
"""How often a cluster that is served by others looks whether it still is."""


class Run:
    """A run, by its id; always addressable, resident or not."""

    def __init__(self, store: Store, run_id: str, graph: Graph | None = None, audit: AuditLog | None = None) -> None:
        self._store = store
        self._graph = graph
        self.run_id = run_id
        self.audit = audit
        """Where it is noted what a person says to the run, before it counts; None: nowhere but in the run."""

    @property
    def store(self) -> Store:
        return self._store

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
        record = await with_result(self._store, record)
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
        """Events in order, from a cursor (the `n` of the last one seen) on; with `follow`, until the run is final."""
        async for event in following.events(self._store, self.run_id, after, follow=follow):
            yield event

    async def stream(self, after: int = 0, *, follow: bool = True) -> AsyncIterator[Chunk]:
        """What the run streams, in order, from a cursor (the `n` of the last chunk seen) on; until the run is final.

        A chunk that is `withdrawn` says that what its attempt of the task has streamed so far is not part of the run
        any more; `live(chunks)` leaves out what is withdrawn.
        """
        async for chunk in following.chunks(self._store, self.run_id, after, follow=follow):
            yield chunk

    async def follow(self, after: Cursor | str = "", *, follow: bool = True) -> AsyncIterator[Seen]:
        """Events and chunks together, each with the cursor to come back with, until the run is final.

        Args:
            after: a cursor, or its text; default, from the beginning.
        Raises CallerError: `after` is no cursor.
        """
        cursor = after if isinstance(after, Cursor) else Cursor.read(after) if after else Cursor()
        async for seen in following.both(self._store, self.run_id, cursor, follow=follow):
            yield seen

    async def questions(self) -> list[Interrupt]:
        """Open questions, oldest first; none while the run does not wait."""
        return open_questions(await self.record())

    async def resume(self, answer: Any, interrupt_id: str = "") -> RunRecord:
        """Answer the run's open question (name it if there are several), and let it go on.

        An `unknown` call is answered with "retry", "fail" or {"value": what it returned}; an effect that a fork would
        `repeat` with "repeat", "reuse" or "refuse".
        Raises Conflict: there is none, there are several, it has another answer already, or it is a call to be
        approved; CallerError: the answer is not JSON, or does not fit the question's schema; NotFound.
        """
        interrupt_id, question = question_to_answer(await self.record(), interrupt_id)
        text = checked_answer(question, answer, time.time())
        return await self._answer(interrupt_id, text, said="answer", node=question.node if question else "")

    async def approve(
        self, call_id: str, *, args: Mapping[str, Any] | None = None, note: str = "", by: str = ""
    ) -> RunRecord:
        """Allow a tool call that the policy asks about; good for this very call, once.

        Args:
            args: arguments to be changed first, by name (JSON values). The changed call is judged by the policy again,
                and the approval is good for that one only.
            note, by: why, and who; both stand in the event log.
        Raises NotFound, CallerError: the call has no such argument; Conflict: somebody has decided otherwise.
        """
        return await self._decide(call_id, Approval(True, args, note=note, by=by))

    async def deny(self, call_id: str, *, note: str = "", by: str = "") -> RunRecord:
        """Refuse a tool call that the policy asks about."""
        return await self._decide(call_id, Approval(False, note=note, by=by))

    async def answer_call(self, call_id: str, value: Any, *, note: str = "", by: str = "") -> RunRecord:
        """Give the result of a tool call that the policy asks about (JSON values). Nothing is executed."""
        return await self._decide(call_id, Approval(False, answered=True, value=value, note=note, by=by))

    async def withdraw(self, call_id: str, why: str, *, by: str = "") -> RunRecord:
        """Take a question about a call back, as what it was about has changed: the policy judges the call anew."""
        call_to_decide(await self.record(), call_id)
        return await self._answer(call_id, json_of(withdrawal(why, by)), said="withdrawn", by=by)

    async def _decide(self, call_id: str, approval: Approval) -> RunRecord:
        call = call_to_decide(await self.record(), call_id)
        if approval.args is not None:
            changed_args(call, approval.args)
        text = json_of(approval_answer(approval))
        asked = {name: call.payload.get(name) for name in ("tool", "rule", "policy")}
        said = "approve" if approval.approve else "answer" if approval.answered else "deny"
        return await self._answer(call_id, text, said=said, changed=approval.args is not None, by=approval.by, **asked)

    async def _answer(self, interrupt_id: str, text: str, **told: Any) -> RunRecord:
        return await answer_audited(self._store, self.audit, self.run_id, interrupt_id, text, **told)

    async def cancel(self) -> RunRecord:
        """Ask the run, and the children that it started, to end. Asking twice is the same as once.

        A run that is over stays as it is, and its unfinished children are asked to end: children do not end with a
        run that succeeds without waiting for them, nor with one that fails or is quarantined, as `retry` takes it up
        with what they have done.
        """
        record = await self._store.cancel(self.run_id, time.time())
        if record.final:  # the owner of one that is running sees to its children
            await cancel_children(self._store, self.run_id, time.time())
        return record

    async def send(self, message: Any, id: str = "") -> int:
        """Put a message into the run's mailbox, for `ctx.receive()`; durable when this returns.

        Args:
            message: JSON values, at most 1 MiB.
            id: names the message: sent again under the same id, it is the same message. Default: a new one.
        Returns its number in the mailbox, from 1.
        Raises NotFound; Conflict (the run is final, or its mailbox is full); CallerError (it is no
        JSON, or the id no name).
        """
        check_name("the message's id", id)
        text = message_text(message)
        return await self._store.send(self.run_id, id or uuid.uuid4().hex, text, time.time())

    async def retry(self) -> RunRecord:
        """Take the run up again, if it failed or is quarantined, from its last checkpoint.

        Tasks of the superstep that had finished are not done again; calls that went well are answered by their
        receipts, those that failed are made again. Raises NotFound; Conflict: it has not failed, or its thread went on.
        """
        return await self._store.retry(self.run_id, time.time())

    async def children(self) -> list["Run"]:
        """The runs that this one has started, in order."""
        return [Run(self._store, run_id, audit=self.audit) for run_id in await children_of(self._store, self.run_id)]

    async def state(self) -> dict[str, Any]:
        """The channels at the run's newest checkpoint, as JSON values; empty if that is not kept any more."""
        record = await self.record()
        if not record.head:
            given = json.loads(record.input)
            return {**given["defaults"], **given["values"]}
        try:
            return await self._values(record.thread_id, record.head)
        except NotFound:  # the thread went on, and its graph keeps only some checkpoints
            return dict(json.loads(record.result or "{}"))

    async def workspace(self, checkpoint_id: str = "") -> Files:
        """The workspace at the run's newest checkpoint, or at another one of its thread: files, links and empty
        folders, by path. Raises NotFound.
        """
        record = await self.record()
        checkpoint = checkpoint_id or record.head
        if checkpoint:
            return files_of(restore(await self._store.chain(record.thread_id, checkpoint)).values)
        return {item["id"]: item for item in json.loads(record.input).get("files", [])}

    async def files(self, checkpoint_id: str = "") -> dict[str, bytes]:
        """What is in the files of `workspace`, by path. Links and empty folders are left out. Raises NotFound."""
        found = await self.workspace(checkpoint_id)
        # Whoever writes them to a folder goes by their paths, and the store may have been written to by somebody else.
        return {checked_path(path): bytes_of(found, path) for path, item in found.items() if item["kind"] == "file"}

    async def history(self) -> list[CheckpointRow]:
        """The thread's checkpoints, newest first."""
        return await self._store.history((await self.record()).thread_id)

    async def beyond(self, checkpoint_id: str) -> list[Beyond]:
        """The effects beyond a checkpoint, and, by `would(mode)`, what a fork does about each. Raises NotFound."""
        return list((await fork_point(self._store, await self.record(), checkpoint_id)).effects)

    async def fork(self, checkpoint_id: str, update: Mapping[str, Any] | None = None, effects: Mode = "ask") -> "Run":
        """Start a new run, on a thread of its own, from a checkpoint of this one.

        No receipt and no approval of this run is good there. Of the effects that this run has had beyond the checkpoint
        (see `beyond`) none is repeated without being asked: when the fork comes to the same place, a person is.

        Args:
            update: written to the channels first, through their reducers.
            effects: what to do in those places instead of asking. "reuse": the outcome here answers there; "repeat": it
                is done again; "refuse": it is denied. Where the fork asks for another call than this run did, a person
                is asked in any case but "repeat".
        Raises NotFound, InvalidWrite, CallerError.
        """
        record = await self.record()
        point = await fork_point(self._store, record, checkpoint_id)
        plan = (self._graph or await graph_of(record)).plan() if update else None
        new = new_fork(record, point, plan, update, effects)
        await create(self._store, new)
        return Run(self._store, new.run_id, self._graph, self.audit)

    async def _values(self, thread_id: str, checkpoint_id: str) -> dict[str, Any]:
        values = restore(await self._store.chain(thread_id, checkpoint_id)).values
        return {name: json.loads(text) for name, text in without_files(values).items()}


class Cluster:
    """A store and whoever serves it. Made by `connect`."""

    def __init__(self, store: Store, settings: Settings, host: "Host | None") -> None:
        self.store = store
        self.settings = settings
        self.host = host
        """The embedded host, if this process holds it."""
        self.policy: SealedPolicy | None = None
        """Of the runs that are started here without one of their own."""
        self._pen: AuditLog | None = None

    def _audit(self) -> AuditLog:
        self._pen = self._pen or pen(self.store, self.settings)
        return self._pen

    async def start(
        self,
        graph: Graph | str,
        input: BaseModel | Mapping[str, Any] | None = None,
        *,
        key: str = "",
        thread: str = "",
        busy: Busy = "enqueue",
        policy: Path | str | Policy | None = None,
        labels: Mapping[str, str] | None = None,
        code: CodeMode = "migrate",
        files: Given | None = None,
    ) -> Run:
        """Start a run. It is durable when this returns.

        Args:
            graph: a Graph, or `module:attribute`.
            input: the first state, or, on a thread that has one, a write to it.
            key: the same key (on the same thread) is the same run, whoever asks and however often.
            thread: the thread to run on; default, one of its own.
            busy: what becomes of unfinished runs on that thread. `enqueue`: this one stands behind them; `reject`: it
                is refused; `interrupt`: they are cancelled, and it goes on from what they had committed; `rollback`:
                they are cancelled, and it goes on from where the first of them had begun.
            policy: policy file, text, or Policy for this run's tool calls; default, the one given to `connect`.
            labels: for policies and for people.
            code: how the run follows the code that is deployed. `migrate`: the deployed version, with the migrations
                that it declares; `latest`: the deployed version, refused if the run's state would have to be migrated;
                `pin`: the very code that there is now, kept with the run, whatever is deployed later.
            files: the first files of the workspace, by path (see `actors.files.Given`); see `@tool(workspace=...)`.
        Raises GraphError, InvalidWrite, Conflict (the key belongs to another input; the thread is busy), CallerError.
        """
        if busy not in BUSY:
            raise CallerError(f"busy={busy!r} is none of {', '.join(BUSY)}")
        shipped, loaded = await ship_graph(graph, store=self.store, secret=self.settings.secret(), mode=code)
        sealed = self.policy if policy is None else await seal_policy(policy, self.settings.secret())
        plan = loaded.plan()
        new = new_run(
            plan,
            shipped,
            input,
            key=key,
            thread=thread,
            policy="" if sealed is None else await sealed.keep(self.store),
            labels=dict(labels or {}),
            busy=busy,
            files=files,
        )
        record = await create(self.store, new)
        if busy in ("interrupt", "rollback"):
            await self._cancel_children_on(record)
        return Run(self.store, record.run_id, loaded, self._audit())

    async def _cancel_children_on(self, start: RunRecord) -> None:
        """Children of the runs that a start has cancelled on its thread. Started again under its key, it does so again.

        Runs that had an actor see to theirs themselves.
        """
        for other in await self.store.runs("cancelled", thread_id=start.thread_id):
            if other.updated_at >= start.created_at:
                await cancel_children(self.store, other.run_id, time.time())

    async def run(self, run_id: str, graph: Graph | None = None) -> Run:
        """A run by its id. Raises NotFound."""
        await self.store.run(run_id)
        return Run(self.store, run_id, graph, self._audit())

    async def runs(self, status: Status | None = None, limit: int = 100) -> list[RunRecord]:
        """Newest first."""
        return await self.store.runs(status, limit)


async def graph_of(record: RunRecord) -> Graph:
    """The graph of a run that is given by reference. Raises CodeError, CallerError."""
    code = Code.read(record.code)
    if not code.ref:
        raise CallerError(f"run {record.run_id} was shipped by value; give the graph to cluster.run(run_id, graph)")
    return load_ref(code.ref, code.paths)


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
    if settings is None:
        settings = read_settings({"store": store})
        for line in mistyped(os.environ):
            log.warning("%s", line)
    if store is not None and settings.store != store:
        settings = settings.model_copy(update={"store": store})
    opened = await open_store(settings.store_url, allow_volatile=settings.allow_volatile)
    cluster = Cluster(opened, settings, None)
    standing_by: asyncio.Task[None] | None = None
    try:
        if policy is not None:
            cluster.policy = await seal_policy(policy, settings.secret())
            await cluster.policy.keep(opened)
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
    await take_into_service(cluster.store, cluster.settings)
    # Here and not above: it imports Ray, which takes a second, and most commands never need it.
    from understudy.cluster.host import Host

    cluster.host = Host(cluster.settings)
    await cluster.host.start()


async def _stand_by(cluster: Cluster) -> None:
    """The understudy's understudy: serve the store from here once whoever does it has left."""
    while cluster.host is None:
        await asyncio.sleep(STAND_BY_S)
        try:
            if not await is_served(cluster.store, time.time()):
                await _serve(cluster)
        except StoreUnavailable:
            continue
        except CallerError as error:
            log.warning("nobody serves the store any more, and this process cannot: %s", error)
            return
