"""A superstep: which tasks are due, what a node's return value means, and what the channels are after it.

Pure. The order of tasks is the order of the frontier, so merging is deterministic whoever finishes first. The model is
Pregel's bulk-synchronous one: all tasks of a superstep read the same state, and their writes show in the next.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from understudy.actors.alike import difference
from understudy.actors.attempts import Failure
from understudy.actors.channels import Channel, reason_of, short
from understudy.actors.checkpoint import Checkpoint, TaskSpec
from understudy.actors.errors import GraphError, InvalidWrite
from understudy.actors.files import CHANNEL, Item, read, together, without_files
from understudy.actors.lazy import plain, state_of
from understudy.actors.plan import END, START, Command, Node, Plan, Send
from understudy.actors.quick import quick
from understudy.actors.spelling import to_ascii
from understudy.actors.values import Change, Values, compact

GIVEN_MAX, GIVEN_CHARS_MAX = 1000, 100
"""Values of inputs that a plan remembers, and how long they are at most."""


@quick
@dataclass(frozen=True)
class Task:
    """A node's activation in one superstep. Its id is the same whenever this step is done again."""

    task_id: str
    node: str
    arg: str | None
    step: int
    attempt: int = 0
    """Which try this is, from 0."""
    index: int = 0
    """Its place among the tasks of its superstep: the same in a fork, where the id is another."""


@dataclass(frozen=True)
class TaskResult:
    """What a finished task wrote, as JSON text by channel, and where its Command leads (None: along the edges)."""

    writes: Mapping[str, str]
    goto: tuple[TaskSpec, ...] | None = None

    def body(self) -> str:
        """JSON of the result, as pending writes keep it."""
        goto = None if self.goto is None else [[spec.node, spec.arg] for spec in self.goto]
        return json.dumps({"w": dict(self.writes), "goto": goto}, ensure_ascii=False)

    @staticmethod
    def read(body: str) -> "TaskResult":
        raw = json.loads(body)
        goto = None if raw["goto"] is None else tuple(TaskSpec(node, arg) for node, arg in raw["goto"])
        return TaskResult(raw["w"], goto)


def tasks_of(checkpoint: Checkpoint, run_id: str) -> tuple[Task, ...]:
    """The tasks of the superstep that follows a checkpoint."""
    step = checkpoint.step + 1
    tasks = []
    for index, spec in enumerate(checkpoint.frontier):
        name = "\0".join((checkpoint.checkpoint_id, run_id, str(step), str(index), spec.node))
        tasks.append(Task(hashlib.sha256(name.encode()).hexdigest()[:20], spec.node, spec.arg, step, index=index))
    return tuple(tasks)


def opening(plan: Plan, head: Checkpoint, run_input: str) -> Checkpoint:
    """What a run stands on before its first superstep: the thread's channels with its input written to them.

    On a new thread the input is the state; on one that has a state, it is a write, merged by the reducers.
    Raises InvalidWrite, GraphError.
    """
    given = json.loads(run_input)
    unsaved: dict[str, Change] = {}
    for name, value in given["defaults"].items():
        if name in plan.channels and name not in head.values:
            unsaved[name] = Change(plan.channels[name].opened(_given(plan, name, value)))
    for name, value in given["values"].items():
        channel = _channel(plan, name, "the input")
        unsaved[name] = _written(channel, head.values, None, _given(plan, name, value), "the input")
    if given.get("files"):
        unsaved |= _files_changed(head.values, [("the input", given["files"])])
    values = head.values.after(unsaved).in_order(plan.channels)  # as the model has them
    frontier, arrived = route(plan, values, {}, [(START, None)])
    return Checkpoint(
        checkpoint_id=head.checkpoint_id,
        run_id=head.run_id,
        step=head.step,
        base_step=head.step,
        values=values,
        frontier=frontier,
        arrived=arrived,
        fingerprint=plan.fingerprint,
        version=plan.version,
        migrated=head.migrated,
        unsaved=unsaved,
        chain=head.chain,
    )


def _given(plan: Plan, name: str, value: Any) -> str:
    channel, text = _channel(plan, name, "the input"), to_ascii(value)
    known = plan.given.get((name, text))
    if known is not None:
        return known
    try:
        given = channel.adapter.validate_json(text)
    except ValidationError as error:
        raise InvalidWrite(f"the input's {name!r} is not {channel.type_name}: {reason_of(error)}") from None
    encoded = channel.encode(given, "the input")
    if len(text) <= GIVEN_CHARS_MAX and len(plan.given) < GIVEN_MAX:
        plan.given[name, text] = encoded
    return encoded


def result_of(plan: Plan, node: Node, returned: Any) -> TaskResult:
    """What a node's return value means. Raises InvalidWrite, GraphError, naming the node."""
    who = f"node {node.name!r}"
    goto: tuple[TaskSpec, ...] | None = None
    if isinstance(returned, Command):
        if returned.goto is not None:
            goto = tuple(_specs(plan, returned.goto, node.goto, f"the Command of {who}", "@graph.node(goto=[...])"))
        returned = returned.update
    if returned is None:
        return TaskResult({}, goto)
    if isinstance(returned, plan.state):
        returned = {name: getattr(returned, name) for name in returned.model_fields_set}
    if not isinstance(returned, Mapping):
        raise InvalidWrite(
            f"{who} returned {type(returned).__name__} {str(returned)[:80]!r}; return a dict by channel, "
            f"a {plan.state.__name__}, a Command, or None"
        )
    writes = {name: _channel(plan, name, who).encode_write(value, who, node.name) for name, value in returned.items()}
    return TaskResult(writes, goto)


def _channel(plan: Plan, name: str, who: str) -> Channel:
    if name not in plan.channels:
        raise InvalidWrite(
            f"{who} wrote to {name!r}, which is no channel; {plan.state.__name__} has {', '.join(plan.channels)}"
        )
    return plan.channels[name]


def apply(
    plan: Plan, before: Checkpoint, results: Sequence[tuple[Task, TaskResult]]
) -> tuple[Values, dict[str, Change], tuple[TaskSpec, ...], dict[str, tuple[str, ...]]]:
    """The channels after a finished superstep, how they changed, the next frontier, and the joins under way.

    Raises InvalidWrite: two writers to a channel that has no reducer. GraphError: a branch that leads nowhere.
    """
    changes: dict[str, Change] = {}
    writers: dict[str, str] = {}
    left: list[tuple[str, Any]] = []
    for task, result in results:
        for name, text in result.writes.items():
            if name == CHANNEL:
                left.append((task.node, json.loads(text)))
                continue
            channel = _channel(plan, name, f"node {task.node!r}")
            if name in writers and not channel.is_shared:
                raise InvalidWrite(
                    f"channel {name!r} got 2 writes in superstep {task.step} (nodes {writers[name]!r}, {task.node!r}); "
                    f"give it a reducer, e.g. Annotated[list[str], append]"
                )
            writers[name] = task.node
            changes[name] = _written(channel, before.values, changes.get(name), text, f"node {task.node!r}")
    if left:
        changes |= _files_changed(before.values, left)
    for channel in plan.passing:
        if channel.name not in changes and channel.name in before.values:
            expired = channel.expired(before.values[channel.name])
            if expired is not None:
                changes[channel.name] = expired
    values = before.values.after(changes)
    stored = {
        name: before.unsaved[name].then(change) if name in before.unsaved else change
        for name, change in changes.items()
    }
    sources = [(task.node, result.goto) for task, result in results]
    frontier, arrived = route(plan, values, before.arrived, sources)
    return values, {**before.unsaved, **stored}, frontier, arrived


def files_of(values: Values) -> dict[str, Item]:
    """The workspace, as it is in these channels."""
    return read(values.get(CHANNEL, ""))


def _files_changed(before: Values, left: Sequence[tuple[str, Any]]) -> dict[str, Change]:
    """The change of the workspace's channel by what each has left there; none, if all is as it was."""
    change = together(files_of(before), left)
    return {CHANNEL: Change(compact(change), "messages")} if change else {}


def _written(channel: Channel, before: Values, present: Change | None, text: str, writer: str) -> Change:
    """The change that a write makes of a channel, beside the one that the same superstep made of it already."""
    if channel.name not in before and present is None:
        return Change(channel.opened(text))
    return channel.change(before[channel.name] if channel.needs_old else None, present, text, writer)


def result_text(plan: Plan, values: Values) -> str:
    """JSON object of the channels as a node would see them: what a run gives."""
    shown = {
        name: plan.channels[name].shown(text) if name in plan.channels else text
        for name, text in without_files(values).items()
    }
    return spelled(shown)


def spelled(values: Mapping[str, str]) -> str:
    """JSON object of channels, by the text of each."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in values.items()) + "}"


def final_state(plan: Plan, result: str) -> BaseModel:
    """What `result_text` made, as the graph's model. Through the channels, which wrote it: the model alone would read
    bytes in another way."""
    values = {name: compact(value) for name, value in json.loads(result).items()}
    state = state_of(plan.state, plan.channels, values)
    plain(state)
    return state


def written(plan: Plan, values: Values, update: Mapping[str, Any], who: str) -> Values:
    """The channels after a write from outside, through their reducers. Raises InvalidWrite."""
    changes = {}
    for name, value in update.items():
        channel = _channel(plan, name, who)
        # A barrier takes from outside what its writers give, by their names.
        whole = channel.kind == "barrier"
        text = channel.encode(value, who) if whole else channel.encode_write(value, who, "")
        changes[name] = _written(channel, values, None, text, who)
    return values.after(changes)


def route(
    plan: Plan,
    values: Values,
    arrived: Mapping[str, tuple[str, ...]],
    finished: Sequence[tuple[str, tuple[TaskSpec, ...] | None]],
) -> tuple[tuple[TaskSpec, ...], dict[str, tuple[str, ...]]]:
    """What follows the finished nodes: along Commands, else edges, branches and joins. Each node once, Sends each."""
    if len(finished) == 1 and finished[0][1] is None and (straight := plan.straight.get(finished[0][0])) is not None:
        return straight, dict(arrived)
    targets: list[TaskSpec] = []
    waiting = dict(arrived)
    names = list(dict.fromkeys(name for name, _ in finished))
    for _, goto in finished:
        targets += goto or ()
    along = [name for name in names if any(n == name and goto is None for n, goto in finished)]
    state: BaseModel | None = None
    for name in along:
        targets += [TaskSpec(target) for target in plan.edges.get(name, ())]
        for branch in plan.branches:
            if branch.source == name:
                state = state_of(plan.state, plan.channels, values) if state is None else state
                targets += _chosen(plan, branch.source, branch.choose, branch.targets, state)
    for join in plan.joins:
        here = [name for name in along if name in join.sources]
        if here:
            came = tuple(dict.fromkeys((*waiting.get(join.name, ()), *here)))
            if set(came) == set(join.sources):
                waiting.pop(join.name, None)
                targets.append(TaskSpec(join.target))
            else:
                waiting[join.name] = came
    frontier: list[TaskSpec] = []
    for spec in targets:
        if spec.node != END and (spec.arg is not None or spec not in frontier):
            frontier.append(spec)
    return tuple(frontier), waiting


def _chosen(plan: Plan, source: str, choose: Any, targets: tuple[str, ...], state: BaseModel) -> list[TaskSpec]:
    who = f"the branch after {source!r}"
    try:
        choice = choose(state)
    except BaseException as error:  # SystemExit too: it would end the actor, in every restart
        raise GraphError(f"{who} raised {type(error).__name__}: {error}") from error
    if choice is None:
        raise GraphError(f"{who} returned None; return one of {', '.join(map(_spelled, targets))}")
    return list(_specs(plan, choice, targets, who, "the branch's targets"))


def _specs(plan: Plan, goto: Any, allowed: tuple[str, ...], who: str, where: str) -> Iterable[TaskSpec]:
    items = goto if isinstance(goto, list | tuple) else [goto]
    for item in items:
        send = item if isinstance(item, Send) else None
        target = send.node if send else item
        name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
        if name not in allowed:
            raise GraphError(
                f"{who} leads to {_spelled(name)}, which is not declared; add it to {where}, which names "
                f"{', '.join(map(_spelled, allowed)) or 'nothing'}"
            )
        if send is None:
            yield TaskSpec(name)
        elif name == END:
            raise GraphError(f"{who} sends to END; send to a node, or lead to END without an argument")
        else:
            yield TaskSpec(name, _arg(plan.nodes[name], send.arg, who))


def fallback_of(plan: Plan, node: Node, failure: Failure) -> TaskSpec:
    """The task that comes once a node is given up."""
    target = plan.nodes[node.fallback]
    if target.takes_model or not target.takes_state:
        return TaskSpec(target.name)
    return TaskSpec(target.name, _arg(target, failure, f"the failure of node {node.name!r}"))


def _spelled(name: str) -> str:
    """As it is written in a graph."""
    return "END" if name == END else repr(name)


def _arg(node: Node, value: Any, who: str) -> str:
    try:
        checked = node.arg_adapter.validate_python(value)
        text = node.arg_adapter.dump_json(checked).decode()
        where = difference(checked, node.arg_adapter.validate_json(text))
    except Exception as error:  # a validator of the user's may raise anything
        raise InvalidWrite(
            f"{who} sends {short(value)} to node {node.name!r}, which cannot take it: {reason_of(error)}"
        ) from None
    if where is not None:
        place = f"what lies at {where} of it" if where else "it"
        raise InvalidWrite(
            f"{who} sends {short(value)} to node {node.name!r}, where {place} would come as another value or type; "
            f"annotate the node's first parameter, e.g. {node.name}(item: Item)"
        )
    return text
