"""How a run begins, whoever starts it: a client, a node of another run, or `run_inline`.

What a caller gives (an input, an update from outside) becomes the JSON that the engine reads, or a refusal that says
what to change.
"""

import difflib
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from understudy.actors.channels import Channel
from understudy.actors.code import Code
from understudy.actors.errors import CallerError
from understudy.actors.events import counters_of
from understudy.actors.files import Given
from understudy.actors.files import given as files_given
from understudy.actors.names import check_labels, check_name
from understudy.actors.plan import Plan
from understudy.actors.records import Event, NewRun, RunRecord, run_id_on, thread_of_key
from understudy.actors.step import written
from understudy.actors.store import Store
from understudy.actors.values import Values, compact


def new_run(
    plan: Plan,
    code: Code,
    given: BaseModel | Mapping[str, Any] | None,
    *,
    key: str = "",
    thread: str = "",
    files: Given | None = None,
    **more: Any,
) -> NewRun:
    """A run as `create` takes it; on the thread that its key names, or one of its own, unless one is given.

    `files`: the first of its workspace. `more` are further fields of NewRun.
    Raises CallerError: the input does not fit.
    """
    check_name("the key", key)
    check_name("the thread", thread)
    check_labels(more.get("labels", {}))
    text = input_text(plan, given)
    first = [json.loads(text)["values"]]
    if files:
        workspace = files_given(files)
        first.append(workspace)
        text = f'{text[:-1]},"files":{compact(workspace)}}}'
    named = json.dumps([plan.name, *first], sort_keys=True)
    blobs = tuple(digest for digest in (code.blob, str(more.get("policy", ""))) if digest)
    thread_id = thread or (thread_of_key(f"{plan.name}\0{key}") if key else f"t-{uuid.uuid4().hex[:20]}")
    return NewRun(
        run_id=run_id_on(thread_id, uuid.uuid4().hex[:16]),
        thread_id=thread_id,
        graph=plan.name,
        version=plan.version,
        code=code.text(),
        input=text,
        digest=hashlib.sha256(named.encode()).hexdigest()[:32],
        key=key,
        blobs=blobs,
        **more,
    )


async def create(store: Store, new: NewRun, now: float | None = None) -> RunRecord:
    """Make a run durable, with its first event. `now`: seconds since the epoch; None: as this machine's clock says."""
    now = time.time() if now is None else now
    data = {"graph": new.graph, "version": new.version, "thread_id": new.thread_id}
    events = [Event("created", now, data)]
    return await store.create(new, events, counters_of(new.graph, events), now)


def input_text(plan: Plan, given: BaseModel | Mapping[str, Any] | None) -> str:
    """JSON of a run's input: the values that were given, and the model's defaults. Raises CallerError that teaches."""
    try:
        if isinstance(given, plan.state):
            model: BaseModel = given
        elif isinstance(given, BaseModel):
            raise CallerError(f"graph {plan.name!r} takes a {plan.state.__name__}, not a {type(given).__name__}")
        elif given is not None and not isinstance(given, Mapping):
            raise CallerError(f"the input of graph {plan.name!r} is {given!r}; give a {plan.state.__name__} or a dict")
        else:
            for name in given or {}:
                _channel(plan, name, "the input")
            model = plan.state.model_validate(dict(given or {}))
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, i['loc'])) or 'input'}: {i['msg']}" for i in error.errors(include_url=False)]
        raise CallerError(
            f"the input does not fit graph {plan.name!r} ({plan.state.__name__}): {'; '.join(parts)}"
        ) from None
    texts = {name: channel.encode(getattr(model, name), "the input") for name, channel in plan.channels.items()}
    given_names = [name for name in texts if name in model.model_fields_set]
    rest = [name for name in texts if name not in model.model_fields_set]
    values = ",".join(f"{json.dumps(name)}:{texts[name]}" for name in given_names)
    defaults = ",".join(f"{json.dumps(name)}:{texts[name]}" for name in rest)
    return f'{{"values":{{{values}}},"defaults":{{{defaults}}}}}'


def _channel(plan: Plan, name: str, what: str) -> Channel:
    """A channel by name. pydantic would drop a name that it does not know, and a typo would go unseen."""
    if name in plan.channels:
        return plan.channels[name]
    close = difflib.get_close_matches(name, plan.channels, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{plan.state.__name__} has {', '.join(plan.channels)}"
    raise CallerError(f"{what} of graph {plan.name!r} names {name!r}, which is no channel; {hint}")


def updated(plan: Plan, values: Values, update: Mapping[str, Any]) -> Values:
    """The channels after a write from outside, through their reducers. Raises CallerError, InvalidWrite."""
    for name in update:
        _channel(plan, name, "the update")
    return written(plan, values, update, "the update")
