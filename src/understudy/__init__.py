"""Understudy: a durable, supervised runtime for agents on Ray.

The public names. They are loaded when they are first used, so that a process which needs one of them (a sandbox, a
worker) does not pay for the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.actors.attempts import Failure
    from understudy.actors.blocking import BlockingContext
    from understudy.actors.context import Context
    from understudy.actors.environment import Environment
    from understudy.actors.errors import (
        AnswerNeeded,
        BudgetExceeded,
        CallerError,
        ChildFailed,
        EffectFailed,
        EffectMismatch,
        InterruptExpired,
        RunFailed,
        ToolDenied,
        ToolError,
        UnderstudyError,
    )
    from understudy.actors.inline import SteppedClock
    from understudy.actors.interrupts import Continue, Escalate
    from understudy.actors.mcp.server import mcp_server
    from understudy.actors.outcome import Outcome
    from understudy.actors.paid import Paid
    from understudy.actors.plan import END, START, Command, Send
    from understudy.actors.programs import python, shell
    from understudy.actors.reconciled import Done, EndUnknown, NeverHappened, Unsure
    from understudy.actors.reducers import Remove, add, append, barrier, ephemeral, merge, messages, topic, union
    from understudy.actors.runnable import Graph
    from understudy.actors.secret import NoSuchSecret, secret
    from understudy.actors.streaming import live
    from understudy.actors.tool import tool
    from understudy.cluster.client import Cluster, Run, connect
    from understudy.cluster.follow import Cursor, Seen
    from understudy.cluster.stores import open_store
    from understudy.cluster.version import __version__
    from understudy.policies.retention import Age, All, Last
    from understudy.policies.retry import Retry

_HOMES = {
    "actors.attempts": ("Failure",),
    "actors.blocking": ("BlockingContext",),
    "actors.context": ("Context",),
    "actors.environment": ("Environment",),
    "actors.errors": (
        "AnswerNeeded",
        "BudgetExceeded",
        "CallerError",
        "EffectFailed",
        "EffectMismatch",
        "ChildFailed",
        "InterruptExpired",
        "RunFailed",
        "ToolDenied",
        "ToolError",
        "UnderstudyError",
    ),
    "actors.inline": ("SteppedClock",),
    "actors.interrupts": ("Continue", "Escalate"),
    "actors.mcp.server": ("mcp_server",),
    "actors.outcome": ("Outcome",),
    "actors.paid": ("Paid",),
    "actors.plan": ("END", "START", "Command", "Send"),
    "actors.programs": ("python", "shell"),
    "actors.reducers": (
        "Remove",
        "add",
        "append",
        "barrier",
        "ephemeral",
        "merge",
        "messages",
        "topic",
        "union",
    ),
    "actors.reconciled": ("Done", "EndUnknown", "NeverHappened", "Unsure"),
    "actors.runnable": ("Graph",),
    "actors.secret": ("NoSuchSecret", "secret"),
    "actors.streaming": ("live",),
    "actors.tool": ("tool",),
    "cluster.client": ("Cluster", "Run", "connect"),
    "cluster.follow": ("Cursor", "Seen"),
    "cluster.stores": ("open_store",),
    "cluster.version": ("__version__",),
    "policies.retention": ("Age", "All", "Last"),
    "policies.retry": ("Retry",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "END",
    "START",
    "Age",
    "All",
    "AnswerNeeded",
    "BlockingContext",
    "BudgetExceeded",
    "CallerError",
    "ChildFailed",
    "Cluster",
    "Command",
    "Context",
    "Continue",
    "Cursor",
    "Done",
    "EffectFailed",
    "EffectMismatch",
    "EndUnknown",
    "Environment",
    "Escalate",
    "Failure",
    "Graph",
    "InterruptExpired",
    "Last",
    "NeverHappened",
    "NoSuchSecret",
    "Outcome",
    "Paid",
    "Remove",
    "Retry",
    "Run",
    "RunFailed",
    "Seen",
    "Send",
    "SteppedClock",
    "ToolDenied",
    "ToolError",
    "UnderstudyError",
    "Unsure",
    "__version__",
    "add",
    "append",
    "barrier",
    "connect",
    "ephemeral",
    "live",
    "mcp_server",
    "merge",
    "messages",
    "open_store",
    "python",
    "secret",
    "shell",
    "tool",
    "topic",
    "union",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"understudy.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
