"""How one tool call ended, and what has to be carried into the sandbox to make it.

Pure values; both cross process borders as JSON or as plain dataclasses, never as anything that runs when it is read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

OutcomeKind = Literal["ok", "error", "denied", "timeout", "out_of_memory", "output_too_large", "killed", "unknown"]

OUTCOME_KINDS: tuple[OutcomeKind, ...] = (
    "ok",
    "error",
    "denied",
    "timeout",
    "out_of_memory",
    "output_too_large",
    "killed",
    "unknown",
)


@dataclass(frozen=True)
class Outcome:
    """The end of a call. `value` is JSON data from untrusted code: data, and nothing more."""

    kind: OutcomeKind
    value: Any = None
    """The tool's result as JSON values; only with `ok`."""
    error: str = ""
    """One sentence for a person: what ended the call, the limit and its value where one did."""
    error_type: str = ""
    """Class name of the tool's exception, with `error`."""
    printed: str = ""
    """What the tool printed up to then (stdout and stderr), cut to the tail that fits `output_bytes`."""
    duration_s: float = 0.0
    peak_memory_bytes: int = 0
    note: str = ""
    """Where it comes from, if nothing was executed for it: `answered by a person`, `reused from run ...`."""
    files: Any = None
    """How it changed the workspace, as `files.checked` gives it; None: not at all. Only with `ok`."""
    cost: Mapping[str, str] | None = None
    """What its budgets are charged, by unit; None: nobody counts."""

    @property
    def said(self) -> str:
        """The error with its type, as Python would say it: a bare `3` or `'id'` means nothing to anybody."""
        return ": ".join(part for part in (self.error_type, self.error) if part)


@dataclass(frozen=True)
class ToolCode:
    """How the sandbox finds the function: by reference (`module:qualname`) or by value (a cloudpickle)."""

    ref: str = ""
    blob: bytes = b""
    """Verified by whoever hands it in; loaded only inside the sandbox."""
    environment: str = ""
    """The packages that it wants to find, as `Environment.text` says it; empty: those that the worker has."""
    beside: bool = False
    """The environment is for the programs that the function starts; it finds the packages of the worker itself."""

    @cached_property
    def digest(self) -> str:
        """What a grant is bound to."""
        code = hashlib.sha256(self.ref.encode() + b"\0" + self.blob).hexdigest()
        if not self.environment:
            return code
        return hashlib.sha256(f"{code}\0{self.beside}\0{self.environment}".encode()).hexdigest()


@dataclass(frozen=True)
class ToolCall:
    """One call, ready to be executed."""

    key: str
    """The effect key: names this very call for ever (law 4). Handed to the tool as UNDERSTUDY_EFFECT_KEY."""
    tool: str
    code: ToolCode
    args: dict[str, Any]
    """Keyword arguments as JSON values."""
    files: str | None = None
    """The workspace that it gets, as `files.text_of` writes it; None: none."""
    keeps: bool = False
    """Whether what it changes there is kept."""
    tier: str = ""
    """The weakest isolation that will do, by the tool's own word; empty: what the grant says."""
    environment: str = ""
    """Folder of the environment that it is lent, on this very machine; empty: none. The sandbox actor says which."""
