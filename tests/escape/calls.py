"""Making one sandboxed call from a test: a function by value, and how it ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
from escape import attempts, tools

from support.waiting import run_async
from understudy.actors.outcome import Outcome, ToolCall, ToolCode
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.sandbox.runtime import this_runtime
from understudy.policies.profile import Limits, Profile

NOTHING = Profile()


def by_value(function: object) -> ToolCode:
    for module in (attempts, tools):
        cloudpickle.register_pickle_by_value(module)
    try:
        return ToolCode(blob=cloudpickle.dumps(function))
    finally:
        for module in (attempts, tools):
            cloudpickle.unregister_pickle_by_value(module)


def tool_call(function: Callable[..., Any], **args: Any) -> ToolCall:
    """Arguments travel as JSON; what JSON does not have (bytes) is carried by value, in a partial function."""
    return ToolCall("effect-1", "attempt", by_value(function), args)


def outcome_of(function: Callable[..., Any], profile: Profile = NOTHING, **args: Any) -> Outcome:
    return run_async(BubblewrapBackend().execute(tool_call(function, **args), profile))


def tried(function: Callable[..., Any], profile: Profile = NOTHING, **args: Any) -> Any:
    """What an attempt that ends by itself says of how far it got."""
    outcome = outcome_of(function, profile, **args)
    assert outcome.kind == "ok", outcome
    return outcome.value


def limited(**limits: Any) -> Profile:
    return Profile(limits=Limits(**limits))


def shown_below(folder: str) -> list[str]:
    """What of a folder a sandbox has to show, because the interpreter or this very clone lies in it."""
    places = [Path(place) for _, place in this_runtime().folders]
    return sorted({place.relative_to(folder).parts[0] for place in places if place.is_relative_to(folder)})
