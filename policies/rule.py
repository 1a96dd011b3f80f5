"""What rules and policies are, and the form that they are made ready in, once, before they decide anything.

A rule fits a call when everything that it names holds: tool, graph, labels, time, history, and conditions on the
arguments. What it grants counts only where it fits. How several rules decide together is told in `permission`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

from understudy.policies.budget import Budget, Cost, dearest
from understudy.policies.condition import Condition, Finding, Truth, judge, make_ready
from understudy.policies.history import Earlier, History
from understudy.policies.operators import JSON, listed
from understudy.policies.profile import (
    DEFAULT_TIER,
    Limits,
    Profile,
    Tier,
    Workspace,
    least,
    strongest,
    without_repeats,
)
from understudy.policies.window import Window, when

Effect = Literal["allow", "ask", "deny"]
OnTimeout = Literal["deny", "escalate"]
Layer = Literal["organisation", "deployment", "graph", "run"]
LAYERS: Final[tuple[Layer, ...]] = get_args(Layer)

T = TypeVar("T")

REMEMBERED_MAX = 1024
"""Tool names, and sets of rules, whose answer is kept at hand. Both are few; if they are not, start over (law 8)."""


@dataclass(frozen=True)
class Request:
    """A tool call to be judged, before anything has happened."""

    tool: str
    args: Mapping[str, JSON]
    run_id: str
    graph: str
    digest: str
    """Digest of tool, its version and arguments: what an approval is bound to."""
    labels: Mapping[str, str] = field(default_factory=dict)
    shell: tuple[str, ...] = ()
    """Arguments that a shell will read. A call is asked about at least, unless each of them is a plain command."""
    code: str = ""
    """Digest of the code that will be executed; what a grant is bound to."""
    thread_id: str = ""
    parent: str = ""
    """Id of the run that started this one as its child: it pays out of that one's budgets."""
    checkpoint_id: str = ""
    """The head that the call stands on."""
    effect: tuple[Cost, ...] | None = None
    """It is an effect of the node's own (`ctx.effect`) that may cost this: no rule speaks of it, but budgets do."""
    beyond: bool = False
    """A person has agreed that it goes beyond budgets that ask."""


@dataclass(frozen=True)
class Rule:
    """One line of a policy. `policy_file` makes it from a file, and checks it."""

    id: str
    effect: Effect
    tools: tuple[str, ...]
    """Globs, case-sensitive: `*`, `fs.*`, `read_[a-z]*`."""
    when: tuple[Condition, ...] = ()
    graphs: tuple[str, ...] = ()
    """Globs; empty: every graph."""
    labels: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Labels that the run has to carry, with this value or one of these."""
    time: tuple[Window, ...] = ()
    """One of them has to hold; empty: always."""
    after: Earlier = field(default_factory=Earlier)
    """What the run has to have done before."""
    not_after: Earlier = field(default_factory=Earlier)
    """What the run may not have done before."""
    managed: bool = False
    """A deny that is named before all others: whoever reads the refusal knows that nobody below can change it."""
    reason: str = ""
    alternative: str = ""
    """What to do instead; told together with a refusal."""
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    """By field of `Limits`. What no rule that fits names has the default."""
    tier: Tier = DEFAULT_TIER
    """The weakest isolation that will do; of several rules that fit, the strongest counts."""
    workspace: Workspace | None = None
    """What a call has to do with the files of its run; of several rules that fit and say so, the least counts."""
    network: tuple[str, ...] = ()
    """Hosts, with ports, as `hosts.HostPattern` spells them."""
    secrets: tuple[str, ...] = ()
    """Names of secrets."""
    redact: tuple[str, ...] = ()
    """Paths into the arguments whose values no event and no message shows."""
    marks: tuple[str, ...] = ()
    """What a call that it allows leaves in the run's history."""
    deadline_s: float | None = None
    """How long a person may take to answer."""
    on_timeout: OnTimeout = "deny"
    cost: tuple[Cost, ...] = ()
    """What a call may cost at most, in what only the policy knows; of several rules that fit, the highest counts."""


@dataclass(frozen=True)
class Policy:
    """Rules under a name. `digest` identifies their content; a run keeps the policy that it was started with."""

    name: str
    version: str
    rules: tuple[Rule, ...]
    digest: str = ""
    layer: Layer = "deployment"
    """Where it comes from, when it comes from a file of the deployment's; a run's own policy is always of the run."""
    graphs: tuple[str, ...] = ()
    """Globs: the graphs that it is a layer for; empty: all."""
    budgets: tuple[Budget, ...] = ()
    """What its calls are paid from."""

    @cached_property
    def compiled(self) -> "Compiled":
        return Compiled(self)

    def told(self) -> dict[str, str]:
        """What every decision, and `status`, say of it: JSON values."""
        return {"policy": self.name, "version": self.version, "layer": self.layer, "digest": self.digest}

    def __reduce__(self) -> tuple[Any, ...]:
        # The compiled form stays where it was made.
        return Policy, (self.name, self.version, self.rules, self.digest, self.layer, self.graphs, self.budgets)


class Remembered(dict[Any, Any]):
    """Answers at hand, by what they depend on."""

    def keep(self, key: Any, value: T) -> T:
        if len(self) >= REMEMBERED_MAX:
            self.clear()
        self[key] = value
        return value


class Ready:
    """A rule, made ready: globs, conditions and zones compiled."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.allowing = rule.effect == "allow"
        self.tools = globs_pattern(rule.tools)
        self.graphs = globs_pattern(rule.graphs) if rule.graphs else None
        self.labels = tuple((name, (v,) if isinstance(v, str) else v) for name, v in rule.labels.items())
        self.particular = bool(rule.graphs or rule.labels or rule.time or rule.after or rule.not_after)
        self.checks = tuple(make_ready(condition, self.allowing) for condition in rule.when)

    def judge(self, request: Request, now: float | None, history: History) -> Finding:
        """Whether it fits, apart from the tool."""
        about = self.about(request, now, history) if self.particular else None
        if about is not None and about.truth == "no":
            return about
        found = judge(self.checks, request.args, self.allowing)
        return about if about is not None and found.truth == "yes" else found

    def about(self, request: Request, now: float | None, history: History) -> Finding | None:
        """Why it does not speak of this graph, run, time or history, or cannot tell; None: it speaks of them."""
        if self.graphs is not None and not self.graphs.fullmatch(request.graph):
            return Finding("no", note=f"it is about graph {one_of(self.rule.graphs)}, this is {request.graph!r}")
        for name, values in self.labels:
            if request.labels.get(name) not in values:
                return Finding("no", note=f"label {name!r} is {request.labels.get(name)!r}, not {one_of(values)}")
        return self._history(history) or (self._time(now) if self.rule.time else None)

    def _time(self, now: float | None) -> Finding | None:
        if now is None:
            return Finding("unclear", note="it speaks of times, and nobody said what time it is")
        if any(window.holds(now) for window in self.rule.time):
            return None
        spans = " or ".join(window.words() for window in self.rule.time)
        return Finding("no", note=f"it speaks of {spans}, and it is {when(now)}")

    def _history(self, history: History) -> Finding | None:
        """Whatever is in doubt, because only the run's origin did it, is taken against the call."""
        for_sure, at_most = history.own, history.at_most
        rule = self.rule
        if rule.after and not rule.after.happened(for_sure if self.allowing else at_most):
            return Finding("no", note=f"the run has not used {rule.after.words()} before")
        if rule.not_after and rule.not_after.happened(at_most if self.allowing else for_sure):
            return Finding("no", note=f"the run has used {rule.not_after.words()} before")
        return None


class OfTool(NamedTuple):
    """What a policy has about one tool."""

    rules: tuple[Ready, ...]
    """By id, so that their order in the file changes nothing."""
    hidden: tuple[str, ...]
    """What of its arguments no event shows, whichever of the rules fits."""
    asks_history: bool
    """What it says of the tool depends on what the run has done before."""
    judged_paths: frozenset[tuple[str, tuple[str, ...]]]
    """By argument, the folders that rules ask about: names, which a link can fool."""


def _of(rules: Sequence[Ready]) -> OfTool:
    conditions = [condition for ready in rules for condition in ready.rule.when]
    return OfTool(
        rules=tuple(rules),
        hidden=tuple(sorted({path for ready in rules for path in ready.rule.redact})),
        asks_history=any(ready.rule.after or ready.rule.not_after for ready in rules),
        judged_paths=frozenset((each.field, tuple(listed(each.value))) for each in conditions if each.op == "under"),
    )


class Compiled:
    """A policy's rules, made ready once. Which speak of a tool, and what several grant together, is remembered."""

    def __init__(self, policy: Policy) -> None:
        self.rules = tuple(Ready(rule) for rule in policy.rules)
        self._by_id = sorted(self.rules, key=lambda ready: ready.rule.id)
        self.graphs = globs_pattern(policy.graphs) if policy.graphs else None
        self._by_tool = Remembered()
        self._granted = Remembered()
        self.allowed = Remembered()
        """Decisions of `permission`, by tool and the rules that fit."""

    def concerns(self, graph: str) -> bool:
        return self.graphs is None or self.graphs.fullmatch(graph) is not None

    def for_tool(self, tool: str) -> OfTool:
        found: OfTool | None = self._by_tool.get(tool)
        if found is None:
            found = self._by_tool.keep(tool, _of([ready for ready in self._by_id if ready.tools.fullmatch(tool)]))
        return found

    def granted(self, matched: tuple[Ready, ...]) -> tuple[Profile, tuple[str, ...], tuple[Cost, ...]]:
        """The profile, the marks and the cost of rules that fit together."""
        found: tuple[Profile, tuple[str, ...], tuple[Cost, ...]] | None = self._granted.get(matched)
        if found is None:
            marks = {mark for ready in matched for mark in ready.rule.marks}
            cost = dearest([each for ready in matched for each in ready.rule.cost])
            profile = granted([ready.rule for ready in matched])
            found = self._granted.keep(matched, (profile, tuple(sorted(marks)), cost))
        return found


def granted(rules: Sequence[Rule]) -> Profile:
    """What the rules that fit grant together: the files of all, the least of the limits named, the strongest tier."""
    limits: dict[str, Any] = {}
    for rule in rules:
        for name, value in rule.limits.items():
            limits[name] = min(value, limits.get(name, value))
    return without_repeats(
        Profile(
            tuple(path for rule in rules for path in rule.read),
            tuple(path for rule in rules for path in rule.write),
            Limits(**limits),
            strongest([rule.tier for rule in rules]),
            tuple(host for rule in rules for host in rule.network),
            tuple(name for rule in rules for name in rule.secrets),
            least([rule.workspace for rule in rules if rule.workspace] or ["none"]),
        )
    )


def fits(rule: Rule, args: Mapping[str, JSON]) -> tuple[Truth, str]:
    """Whether a rule's conditions hold for these arguments, and why: what the examples in a file are checked with."""
    ready = Ready(rule)
    finding = judge(ready.checks, args, ready.allowing)
    return finding.truth, why(rule, finding, rule.redact)


def globs_pattern(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))


# --- words ---------------------------------------------------------------------------------------------------------


def one_of(globs: Sequence[str]) -> str:
    return " or ".join(map(repr, globs))


def why(rule: Rule, finding: Finding, hidden: Sequence[str]) -> str:
    """A finding in words, without the values that are hidden."""
    if finding.truth == "yes":
        return finding.words(hidden) if rule.when else "it has no conditions"
    if finding.truth == "unclear":
        end = "not allowed" if rule.effect == "allow" else "denied"
        return f"{finding.words(hidden)}; what cannot be judged is {end}"
    return finding.words(hidden)
