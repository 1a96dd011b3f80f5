"""May this call be made? Rules are read, the strictest one that fits decides, and no rule means no.

`decide` is a function of its arguments alone; nothing here asks a clock, a file or a person. The laws it keeps:

- Deny beats ask, ask beats allow, and a call that no rule fits is denied. The order of rules changes nothing.
- Several policies are layers (the deployment's, the run's): each one has to allow. A layer can only tighten.
- What cannot be judged (text where a number was expected) is never in the call's favour: an allow rule does not fit,
  a deny or ask rule that fits otherwise denies.
- `under` and the globs look at names. They say what is wanted; the sandbox, which shows a call only the files of its
  profile, is the wall (a symlink fools a name, and not a wall).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cached_property
from typing import Any, Literal

from understudy.policies.condition import JSON, Condition, Finding, Truth, judge, make_ready
from understudy.policies.profile import DEFAULT_TIER, Limits, Profile, Tier, intersect, strongest, without_repeats

Effect = Literal["allow", "ask", "deny"]

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


@dataclass(frozen=True)
class Rule:
    """Fits a call when tool, graph, labels and all conditions do. `policy_file` makes it from a file, and checks it."""

    id: str
    effect: Effect
    tools: tuple[str, ...]
    """Globs, case-sensitive: `*`, `fs.*`, `read_[a-z]*`."""
    when: tuple[Condition, ...] = ()
    graphs: tuple[str, ...] = ()
    """Globs; empty: every graph."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the run has to carry, with these values."""
    reason: str = ""
    alternative: str = ""
    """What to do instead; told together with a refusal."""
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    """By field of `Limits`. What no rule that fits names has the default."""
    tier: Tier = DEFAULT_TIER
    """The weakest isolation that will do; of several rules that fit, the strongest counts."""


@dataclass(frozen=True)
class Policy:
    """Rules under a name. `digest` identifies their content; a run keeps the policy that it was started with."""

    name: str
    version: str
    rules: tuple[Rule, ...]
    digest: str = ""

    @cached_property
    def _compiled(self) -> "_Compiled":
        return _Compiled(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, (self.name, self.version, self.rules, self.digest)  # the compiled form stays where it was made


@dataclass(frozen=True)
class Allow:
    rule: str
    policy: str
    profile: Profile


@dataclass(frozen=True)
class Ask:
    """A person has to approve this very call. `profile` is what it may then see and use."""

    rule: str
    policy: str
    reason: str
    profile: Profile


@dataclass(frozen=True)
class Deny:
    """`rule` is empty when no rule fits."""

    rule: str
    policy: str
    reason: str


Decision = Allow | Ask | Deny


@dataclass(frozen=True)
class Step:
    """What one rule had to say about a request, for `understudy policy explain`."""

    policy: str
    rule: str
    effect: Effect
    matched: bool
    why: str


def decide(policies: Sequence[Policy], request: Request) -> Decision:
    """The strictest word of all layers. What is granted is what every layer grants."""
    if not policies:
        return Deny("", "", f"there is no policy, and no rule means no; write one that allows tool {request.tool!r}")
    layers = [_decide_layer(policy, request) for policy in policies]
    if len(layers) == 1:
        return layers[0]
    granted: list[Allow | Ask] = []
    for decision in layers:
        if isinstance(decision, Deny):
            return decision
        granted.append(decision)
    profile = intersect([decision.profile for decision in granted])
    asked = next((decision for decision in granted if isinstance(decision, Ask)), None)
    return replace(asked or granted[-1], profile=profile)  # the last layer is the run's own: the most telling name


def explain(policies: Sequence[Policy], request: Request) -> list[Step]:
    """For every rule of every layer, in the order of the file: whether it fits, and why."""
    steps = []
    for policy in policies:
        for ready in policy._compiled.rules:
            finding = _judge_fully(ready, request)
            rule = ready.rule
            matched = finding.truth == "yes" or (finding.truth == "unclear" and rule.effect != "allow")
            steps.append(Step(policy.name, rule.id, rule.effect, matched, _why(rule, finding)))
    return steps


def fits(rule: Rule, args: Mapping[str, JSON]) -> tuple[Truth, str]:
    """Whether a rule's conditions hold for these arguments, and why: what the examples in a file are checked with."""
    ready = _Ready(rule)
    finding = judge(ready.checks, args, ready.allowing)
    return finding.truth, _why(rule, finding)


# One layer.


def _decide_layer(policy: Policy, request: Request) -> Decision:
    denies: list[tuple[_Ready, Finding]] = []
    asks: list[_Ready] = []
    allows: list[_Ready] = []
    for ready in policy._compiled.for_tool(request.tool):
        if ready.particular and not _about(ready, request):
            continue
        finding = judge(ready.checks, request.args, ready.allowing)
        if finding.truth == "no" or (finding.truth == "unclear" and ready.allowing):
            continue
        if ready.allowing:
            allows.append(ready)
        elif ready.rule.effect == "deny" or finding.truth == "unclear":
            denies.append((ready, finding))
        else:
            asks.append(ready)
    if denies:  # named by the smallest id, so that the order of rules does not change even the words
        ready, finding = min(denies, key=lambda found: (found[1].truth == "unclear", found[0].rule.id))
        return Deny(ready.rule.id, policy.name, _refusal(ready.rule, finding, request.tool))
    if asks:
        rule = min((ready.rule for ready in asks), key=lambda rule: rule.id)
        reason = rule.reason or f"rule {rule.id!r} wants a person to approve tool {request.tool!r}"
        return Ask(rule.id, policy.name, reason, policy._compiled.granted((*asks, *allows)))
    if allows:
        rule = min((ready.rule for ready in allows), key=lambda rule: rule.id)
        return Allow(rule.id, policy.name, policy._compiled.granted(tuple(allows)))
    return Deny("", policy.name, _no_rule(policy, request))


def _granted(rules: Sequence[Rule]) -> Profile:
    """What the rules that fit grant together: the files of all, the least of the limits named, the strongest tier."""
    limits: dict[str, Any] = {}
    for rule in rules:
        for name, value in rule.limits.items():
            limits[name] = min(value, limits.get(name, value))
    read = tuple(path for rule in rules for path in rule.read)
    write = tuple(path for rule in rules for path in rule.write)
    tier = strongest([rule.tier for rule in rules])
    return without_repeats(Profile(read, write, Limits(**limits), tier))


class _Ready:
    """A rule, made ready: globs and regexes compiled."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.allowing = rule.effect == "allow"
        self.tools = _globs(rule.tools)
        self.graphs = _globs(rule.graphs) if rule.graphs else None
        self.labels = tuple(rule.labels.items())
        self.particular = bool(rule.graphs or rule.labels)
        self.checks = tuple(make_ready(condition) for condition in rule.when)


class _Compiled:
    """A policy's rules, made ready once. Which speak of a tool, and what several grant together, is remembered."""

    def __init__(self, policy: Policy) -> None:
        self.rules = tuple(_Ready(rule) for rule in policy.rules)
        self._by_tool: dict[str, tuple[_Ready, ...]] = {}
        self._profiles: dict[tuple[_Ready, ...], Profile] = {}

    def for_tool(self, tool: str) -> tuple[_Ready, ...]:
        found = self._by_tool.get(tool)
        if found is None:
            if len(self._by_tool) >= REMEMBERED_MAX:
                self._by_tool.clear()
            found = self._by_tool[tool] = tuple(ready for ready in self.rules if ready.tools.fullmatch(tool))
        return found

    def granted(self, matched: tuple[_Ready, ...]) -> Profile:
        found = self._profiles.get(matched)
        if found is None:
            if len(self._profiles) >= REMEMBERED_MAX:
                self._profiles.clear()
            found = self._profiles[matched] = _granted([ready.rule for ready in matched])
        return found


def _globs(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))


def _about(ready: _Ready, request: Request) -> bool:
    """Whether the rule speaks of this graph and of runs with these labels."""
    if ready.graphs is not None and not ready.graphs.fullmatch(request.graph):
        return False
    return all(request.labels.get(name) == value for name, value in ready.labels)


def _judge_fully(ready: _Ready, request: Request) -> Finding:
    if not ready.tools.fullmatch(request.tool):
        return Finding("no", note=f"it is about tool {_one_of(ready.rule.tools)}")
    if ready.graphs is not None and not ready.graphs.fullmatch(request.graph):
        return Finding("no", note=f"it is about graph {_one_of(ready.rule.graphs)}, this is {request.graph!r}")
    for name, value in ready.labels:
        if request.labels.get(name) != value:
            return Finding("no", note=f"label {name!r} is {request.labels.get(name)!r}, not {value!r}")
    return judge(ready.checks, request.args, ready.allowing)


# Words.


def _one_of(globs: Sequence[str]) -> str:
    return " or ".join(map(repr, globs))


def _why(rule: Rule, finding: Finding) -> str:
    if finding.truth == "yes" and not rule.when:
        return "it has no conditions"
    if finding.truth == "unclear":
        return f"{finding.words()}; what cannot be judged is {'not allowed' if rule.effect == 'allow' else 'denied'}"
    return finding.words()


def _refusal(rule: Rule, finding: Finding, tool: str) -> str:
    if finding.truth == "unclear":
        words = f"rule {rule.id!r} cannot judge this call of tool {tool!r}, so it is denied: {_why(rule, finding)}"
    else:
        words = rule.reason or f"rule {rule.id!r} denies tool {tool!r}"
    return f"{words}; instead: {rule.alternative}" if rule.alternative else words


def _no_rule(policy: Policy, request: Request) -> str:
    """A refusal that teaches: the rule that came nearest and what it missed, or the line to add."""
    for ready in sorted(policy._compiled.for_tool(request.tool), key=lambda ready: ready.rule.id):
        if ready.rule.effect != "deny":
            why = _why(ready.rule, _judge_fully(ready, request))
            return f"no rule allows this call of tool {request.tool!r}; rule {ready.rule.id!r} does not fit: {why}"
    name = request.tool[:64]
    return f"no rule allows tool {name!r}; add one: - {{id: {name}, effect: allow, tool: {name}}}"
