"""Whether this version of a graph can take up what another one left, and how: as it is, migrated, or not at all.

Law 6: a checkpoint carries the fingerprint and the version that wrote it. A compatible change (a new field with a
default, a wider type) loads as it is. Others need a declared migration (`@graph.migrate`); without one the run is
refused with a CodeError, and what is stored stays as it was. What takes it up is not this module but whoever calls
it: preflight asks the same question before a deployment.
"""

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from understudy.actors.attempts import Attempt, of_tasks
from understudy.actors.channels import Channel, reason_of
from understudy.actors.checkpoint import Checkpoint, restore
from understudy.actors.errors import CallerError, CodeError
from understudy.actors.files import CHANNEL, without_files
from understudy.actors.plan import END, Migration, Plan
from understudy.actors.records import Loaded, RunRecord
from understudy.actors.step import TaskResult, opening
from understudy.actors.values import Values, compact

TOLD_MAX = 5
"""Problems that one refusal tells."""


def take_up(
    plan: Plan, record: RunRecord, checkpoint: Checkpoint, done: Mapping[str, TaskResult]
) -> tuple[Checkpoint, str]:
    """What the run stands on, in the terms of this plan; and the input that is to be read if it has not begun.

    Args:
        checkpoint: the head, as stored; empty on a new thread.
        done: pending writes, by task id.
    Raises CodeError: this version of the graph cannot take the run up. It names everything that is in the way.
    """
    given = record.input
    if not checkpoint.checkpoint_id:
        return checkpoint, _given(plan, record)
    version = checkpoint.version or record.version
    if checkpoint.fingerprint != plan.fingerprint:
        path = _path(plan, version)
        if path and mode_of(record) != "latest":
            checkpoint = _migrated(plan, record, checkpoint, path)
        else:
            _refuse_unless_compatible(plan, record, checkpoint, version, bool(path))
            checkpoint = replace(checkpoint, values=_with_defaults(plan, checkpoint.values))
        checkpoint = replace(checkpoint, migrated=True, fingerprint=plan.fingerprint, version=plan.version)
    problems = [*_frontier_problems(plan, checkpoint), *_write_problems(plan, done)]
    if problems:
        raise _refusal(plan, record, version, problems, "keep what runs that are under way still need")
    return checkpoint, given


def would_take_up(plan: Plan, loaded: Loaded) -> Checkpoint:
    """What a run that was loaded would stand on. Raises CodeError, CallerError: this version cannot take it up."""
    record = loaded.run
    bodies = (item for item in of_tasks(loaded.writes).items() if Attempt.read(item[1]) is None)
    done = {task_id: TaskResult.read(body) for task_id, body in bodies}
    checkpoint, given = take_up(plan, record, restore(loaded.chain), done)
    return checkpoint if checkpoint.run_id == record.run_id else opened(plan, record, checkpoint, given)


def opened(plan: Plan, record: RunRecord, head: Checkpoint, given: str) -> Checkpoint:
    """`step.opening` for a run that may have been started under another version. Raises as it does, and CodeError."""
    try:
        checkpoint = opening(plan, head, given)
        if all(name in checkpoint.values for name in plan.channels):
            return checkpoint
        # The input had a value for each channel of its version; these are new.
        lacking = _lacking(plan, checkpoint.values)
        if not lacking:
            return opening(plan, head, _with_new_defaults(plan, checkpoint.values, given))
    except CallerError as error:
        if record.version == plan.version:
            raise
        remedy = f'declare @graph.migrate(from_="{record.version}"), or start it again'
        raise _refusal(plan, record, record.version, [str(error)], remedy) from None
    raise _refusal(plan, record, record.version, _new(lacking), _remedy(plan, record.version))


def _with_new_defaults(plan: Plan, values: Values, given: str) -> str:
    """An input that knows of the channels that it has no value for."""
    read = json.loads(given)
    read["defaults"] |= {name: json.loads(text) for name, text in _new_defaults(plan, values).items()}
    return json.dumps(read)


def _lacking(plan: Plan, values: Container[str]) -> list[str]:
    """Channels that have no value, and no default to begin with."""
    needed = (name for name, channel in plan.channels.items() if channel.required and channel.kind != "ephemeral")
    return [name for name in needed if name not in values]


def _new(names: Iterable[str]) -> list[str]:
    """Why a state without them does not fit, in words."""
    return [f"channel {name!r} is new and has no default" for name in names]


def _remedy(plan: Plan, version: str) -> str:
    """What to do about a state that does not fit, where no migration leads on."""
    if version != plan.version:
        return f'declare @graph.migrate(from_="{version}")'
    return "give the graph a new version=, and declare @graph.migrate from the old one"


def mode_of(record: RunRecord) -> str:
    """How the run follows the deployed code: `migrate`, `latest` or `pin` (see code.py)."""
    return str(json.loads(record.code).get("mode", "migrate")) if record.code.startswith("{") else "migrate"


# --- compatible ----------------------------------------------------------------------------------------------------


def _refuse_unless_compatible(
    plan: Plan, record: RunRecord, checkpoint: Checkpoint, version: str, has_path: bool
) -> None:
    values = checkpoint.values
    problems = []
    for name, text in without_files(values).items():
        if name not in plan.channels:
            problems.append(f"channel {name!r} is no field of {plan.state.__name__} any more; its value would be lost")
        elif problem := misfit(plan.channels[name], text):
            problems.append(f"channel {name!r}: {problem}")
    problems += _new(_lacking(plan, values))
    if not problems:
        return
    latest = "its code='latest' is never migrated: start such runs with code='migrate'"
    remedy = latest if has_path else _remedy(plan, version)
    raise _refusal(plan, record, version, problems, remedy)


def misfit(channel: Channel, text: str) -> str:
    """Why a stored text cannot be a value of this channel, in words; empty if it can, with nothing lost."""
    try:
        value = channel.adapter.validate_json(text)
        again = channel.adapter.dump_json(value)
    except Exception as error:  # of the user's own types
        return f"{_short(text)} is not {channel.type_name}: {reason_of(error)}"
    was, now = json.loads(text), json.loads(again)
    if not _keeps(was, now):
        return f"{_short(text)} would become {_short(compact(now))} ({channel.type_name})"
    if channel.kind == "messages" and any(not isinstance(item, dict) or "id" not in item for item in was):
        return f"{_short(text)} has messages without an id"
    return ""


def _keeps(was: Any, now: Any) -> bool:
    """Whether a value holds all that it held under another type. More is fine: new fields with defaults."""
    if isinstance(was, bool) or isinstance(now, bool):
        return was is now
    if isinstance(was, dict) and isinstance(now, dict):
        return all(key in now and _keeps(item, now[key]) for key, item in was.items())
    if isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            return False
        if all(_keeps(a, b) for a, b in zip(was, now, strict=True)):
            return True
        return sorted(map(compact, was)) == sorted(map(compact, now))  # a set, which has no order
    return bool(was == now)  # 1 and 1.0 are: an int became a float


def _with_defaults(plan: Plan, values: Values) -> Values:
    """With the defaults of channels that are new: a reducer's first write goes on from there."""
    return Values({**dict(values), **_new_defaults(plan, values)})


def _new_defaults(plan: Plan, there: Container[str]) -> dict[str, str]:
    """JSON texts of the defaults of channels that are not there."""
    return {n: text for n, c in plan.channels.items() if n not in there and (text := c.default_text) is not None}


# --- migrated ------------------------------------------------------------------------------------------------------


def _path(plan: Plan, version: str) -> tuple[Migration, ...]:
    """The migrations from a version to the plan's; empty if there are none. The plan has checked that they end."""
    path: list[Migration] = []
    while version != plan.version:
        step = plan.migrations.get(version)
        if step is None:
            return ()
        path.append(step)
        version = step.to
    return tuple(path)


def _migrated(plan: Plan, record: RunRecord, checkpoint: Checkpoint, path: tuple[Migration, ...]) -> Checkpoint:
    values = {name: json.loads(text) for name, text in without_files(checkpoint.values).items()}
    values = _walked(plan, record, values, path)
    texts: dict[str, str] = {}
    problems: list[str] = []
    for name, value in values.items():
        channel = plan.channels.get(name)
        if channel is None:
            problems.append(f"it gives {name!r}, which is no field of {plan.state.__name__}")
            continue
        try:
            texts[name] = _encoded(channel, value)
        except Exception as error:  # a validator of the user's may raise anything
            problems.append(f"channel {name!r}: {reason_of(error) if not isinstance(error, CallerError) else error}")
    problems += [f"it gives no {name!r}, which has no default" for name in _lacking(plan, values)]
    if problems:
        raise _refusal(plan, record, path[0].from_, problems, f"mend the migration {_named(path[-1])}")
    if CHANNEL in checkpoint.values:
        texts[CHANNEL] = checkpoint.values[CHANNEL]
    ordered = Values(texts).in_order(plan.channels)
    return replace(checkpoint, values=_with_defaults(plan, ordered))


def _walked(plan: Plan, record: RunRecord, values: dict[str, Any], path: tuple[Migration, ...]) -> dict[str, Any]:
    """The channels after these migrations, which are the user's code. Raises CodeError."""
    for migration in path:
        try:
            given: Any = migration.fn(dict(values))
        except BaseException as error:  # SystemExit too: it would end the actor, in every restart
            said = f"the migration {_named(migration)} raised {type(error).__name__}: {error}"
            raise _refusal(plan, record, path[0].from_, [said], "mend it") from error
        if isinstance(given, BaseModel):
            given = {name: getattr(given, name) for name in type(given).model_fields}
        if not isinstance(given, Mapping):
            said = f"the migration {_named(migration)} returned a {type(given).__name__}"
            raise _refusal(plan, record, path[0].from_, [said], "return the dict of all channels")
        values = dict(given)
    return values


def _encoded(channel: Channel, value: Any) -> str:
    """What a migration gave for a channel: a JSON value, as it was given one, or an object of the channel's type."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return channel.encode(value, "the migration")
    return channel.encode(channel.adapter.validate_json(text), "the migration")


def _given(plan: Plan, record: RunRecord) -> str:
    """The input of a run that has not begun: the whole first state, so it is migrated like one."""
    path = _path(plan, record.version)
    if not path or mode_of(record) == "latest":
        return record.input
    given = json.loads(record.input)
    was = {**given["defaults"], **given["values"]}
    now = _walked(plan, record, was, path)
    kept = {name for name in given["defaults"] if name in now and now[name] == was[name]}
    try:
        given["values"] = {name: json.loads(json.dumps(v)) for name, v in now.items() if name not in kept}
    except (TypeError, ValueError) as error:
        raise _refusal(plan, record, record.version, [str(error)], "give JSON values for an input") from None
    given["defaults"] = {name: now[name] for name in kept}
    given["defaults"] |= {name: json.loads(text) for name, text in _new_defaults(plan, now).items()}
    return json.dumps(given)


# --- what comes next, and what was done of it -------------------------------------------------------------------------


def _frontier_problems(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    problems = []
    for spec in checkpoint.frontier:
        node = plan.nodes.get(spec.node)
        if node is None:
            problems.append(f"node {spec.node!r}, which comes next, does not exist any more")
        elif spec.arg is not None:
            try:
                node.arg_adapter.validate_json(spec.arg)
            except Exception as error:  # a validator of the user's may raise anything
                what = f"node {spec.node!r} cannot take what was sent to it, {_short(spec.arg)}"
                problems.append(f"{what}: {reason_of(error)}")
    joins = {join.name: join for join in plan.joins}
    for name, sources in checkpoint.arrived.items():
        if name not in joins:
            problems.append(
                f"the edge {name!r}, at which {', '.join(sources)} wait for the others, does not exist any more"
            )
    return problems


def _write_problems(plan: Plan, done: Mapping[str, TaskResult]) -> list[str]:
    problems = []
    for task_id, result in done.items():
        who = f"the finished task {task_id} of the present superstep"
        for name, text in without_files(result.writes).items():
            channel = plan.channels.get(name)
            if channel is None:
                problems.append(f"{who} wrote to {name!r}, which is no channel any more")
            elif problem := _write_misfit(channel, text):
                problems.append(f"{who} wrote to channel {name!r}: {problem}")
        for spec in result.goto or ():
            if spec.node != END and spec.node not in plan.nodes:
                problems.append(f"{who} leads to node {spec.node!r}, which does not exist any more")
    return problems


def _write_misfit(channel: Channel, text: str) -> str:
    if channel.kind == "messages":  # without what it takes out, it reads like a value
        text = compact([item for item in json.loads(text) if isinstance(item, dict)])
    return misfit(channel, text)


def _refusal(plan: Plan, record: RunRecord, version: str, problems: list[str], remedy: str) -> CodeError:
    told = "; ".join(problems[:TOLD_MAX])
    if len(problems) > TOLD_MAX:
        told += f"; and {len(problems) - TOLD_MAX} more"
    return CodeError(
        f"graph {plan.name!r} version {plan.version} cannot take up run {record.run_id} of version {version}: {told}. "
        f"Nothing of it was changed; {remedy}, and deploy that"
    )


def _named(migration: Migration) -> str:
    return f"{getattr(migration.fn, '__name__', 'migration')} (from {migration.from_!r} to {migration.to!r})"


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
