"""May this call be made? Rules are read, the strictest one that fits decides, and no rule means no.

`decide` is a function of its arguments alone; nothing here asks a clock, a file or a person. The laws it keeps:

- Deny beats ask, ask beats allow, and a call that no rule fits is denied. The order of rules changes nothing.
- Several policies are layers (the deployment's, the run's): each one has to allow. A layer can only tighten.
- What cannot be judged (text where a number was expected) is never in the call's favour: an allow rule does not fit,
  a deny or ask rule that fits otherwise denies.
- `under` and the globs look at names. They say what is wanted; the sandbox, which shows a call only the files of its
  profile, is the wall (a symlink fools a name, and not a wall).
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cached_property
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeAlias, assert_never

from understudy.policies.profile import Limits, Profile, covers, intersect, without_repeats

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Effect = Literal["allow", "ask", "deny"]
Op = Literal["eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "matches", "under", "exists"]
Truth = Literal["yes", "no", "unclear"]

MATCHED_TEXT_MAX = 4096
"""Characters that `matches` looks at. Longer text cannot be judged: a regex must not keep the policy actor busy."""
TOOLS_REMEMBERED_MAX = 1024
"""Tool names whose rules are kept at hand. Names come from graphs, so they are few; if they are not, start over."""


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
class Condition:
    """What one argument has to be like. `field` is a path: `amount`, `order.lines.0.sku`."""

    field: str
    op: Op
    value: JSON


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
    finding = _judge(_Ready(rule), args)
    return finding.truth, _why(rule, finding)


# One layer.


def _decide_layer(policy: Policy, request: Request) -> Decision:
    denies: list[tuple[_Ready, _Finding]] = []
    asks: list[_Ready] = []
    allows: list[_Ready] = []
    for ready in policy._compiled.for_tool(request.tool):
        if not _about(ready, request):
            continue
        finding = _judge(ready, request.args)
        effect = ready.rule.effect
        if finding.truth == "no" or (finding.truth == "unclear" and effect == "allow"):
            continue
        if effect == "deny" or finding.truth == "unclear":
            denies.append((ready, finding))
        elif effect == "ask":
            asks.append(ready)
        else:
            allows.append(ready)
    if denies:  # named by the smallest id, so that the order of rules does not change even the words
        ready, finding = min(denies, key=lambda found: (found[1].truth == "unclear", found[0].rule.id))
        return Deny(ready.rule.id, policy.name, _refusal(ready.rule, finding, request.tool))
    if asks:
        rule = min((ready.rule for ready in asks), key=lambda rule: rule.id)
        reason = rule.reason or f"rule {rule.id!r} wants a person to approve tool {request.tool!r}"
        return Ask(rule.id, policy.name, reason, _granted([*asks, *allows]))
    if allows:
        rule = min((ready.rule for ready in allows), key=lambda rule: rule.id)
        return Allow(rule.id, policy.name, _granted(allows))
    return Deny("", policy.name, _no_rule(policy, request))


def _granted(matched: Sequence["_Ready"]) -> Profile:
    """What the rules that fit grant together: the files of all of them, and the least of the limits they name."""
    if len(matched) == 1:
        return matched[0].profile
    rules = [ready.rule for ready in matched]
    limits: dict[str, float] = {}
    for rule in rules:
        for name, value in rule.limits.items():
            limits[name] = min(value, limits.get(name, value))
    return _profile(chain.from_iterable(r.read for r in rules), chain.from_iterable(r.write for r in rules), limits)


def _profile(read: Iterable[str], write: Iterable[str], limits: Mapping[str, Any]) -> Profile:
    return without_repeats(Profile(tuple(read), tuple(write), Limits(**limits)))


# One rule.


class _Finding(NamedTuple):
    """How a rule turned out. Put into words only when somebody asks: most findings are a quick no."""

    truth: Truth
    check: "_Check | None" = None
    """The condition that settled it."""
    value: Any = None
    """What it was judged on."""
    note: str = ""
    """Why it could not be judged; or, without a check, why the rule is not about this call."""


_FITS: Final = _Finding("yes")


@dataclass(frozen=True)
class _Check:
    """A condition, made ready."""

    condition: Condition
    path: tuple[str, ...]
    test: Callable[[Any, Any], bool]
    operand: Any


class _Ready:
    """A rule, made ready: globs and regexes compiled, its own profile built."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.tools = _globs(rule.tools)
        self.graphs = _globs(rule.graphs) if rule.graphs else None
        self.labels = tuple(rule.labels.items())
        self.checks = tuple(_check(condition) for condition in rule.when)
        self.profile = _profile(rule.read, rule.write, rule.limits)


class _Compiled:
    """A policy's rules, made ready once; which of them speak of a tool is remembered by its name."""

    def __init__(self, policy: Policy) -> None:
        self.rules = tuple(_Ready(rule) for rule in policy.rules)
        self._by_tool: dict[str, tuple[_Ready, ...]] = {}

    def for_tool(self, tool: str) -> tuple[_Ready, ...]:
        found = self._by_tool.get(tool)
        if found is None:
            if len(self._by_tool) >= TOOLS_REMEMBERED_MAX:
                self._by_tool.clear()
            found = self._by_tool[tool] = tuple(ready for ready in self.rules if ready.tools.fullmatch(tool))
        return found


def _globs(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))


def _check(condition: Condition) -> _Check:
    operand: Any = condition.value
    match condition.op:
        case "matches":
            operand = re.compile(str(operand))
        case "under":
            operand = tuple(normal_path(each) for each in ([operand] if isinstance(operand, str) else operand or ()))
        case _:
            pass
    return _Check(condition, tuple(condition.field.split(".")), _TESTS[condition.op], operand)


def _about(ready: _Ready, request: Request) -> bool:
    """Whether the rule speaks of this graph and of runs with these labels."""
    if ready.graphs is not None and not ready.graphs.fullmatch(request.graph):
        return False
    return all(request.labels.get(name) == value for name, value in ready.labels)


def _judge_fully(ready: _Ready, request: Request) -> _Finding:
    if not ready.tools.fullmatch(request.tool):
        return _Finding("no", note=f"it is about tool {_one_of(ready.rule.tools)}")
    if ready.graphs is not None and not ready.graphs.fullmatch(request.graph):
        return _Finding("no", note=f"it is about graph {_one_of(ready.rule.graphs)}, this is {request.graph!r}")
    for name, value in ready.labels:
        if request.labels.get(name) != value:
            return _Finding("no", note=f"label {name!r} is {request.labels.get(name)!r}, not {value!r}")
    return _judge(ready, request.args)


def _judge(ready: _Ready, args: Mapping[str, JSON]) -> _Finding:
    """All conditions together: one that fails settles it, whatever the others are (so their order does not matter)."""
    unclear: _Finding | None = None
    for check in ready.checks:
        try:
            value = _look_up(args, check.path)
            if value is not _MISSING:
                holds = check.test(value, check.operand)
            else:
                holds = _holds_without(check, ready.rule.effect)
        except _Unclear as error:
            unclear = unclear or _Finding("unclear", check, note=str(error))
            continue
        if not holds:
            return _Finding("no", check, value)
    return unclear or _FITS


def _holds_without(check: _Check, effect: Effect) -> bool:
    """Whether a condition holds on an argument that was not given."""
    match check.condition.op:
        case "exists":
            return check.operand is False
        case "ne" | "not_in":  # true in logic; but nothing is allowed because of what was left out
            return effect != "allow"
        case "eq" | "in" | "lt" | "le" | "gt" | "ge" | "matches" | "under":
            return False
        case never:
            assert_never(never)


# Conditions.


class _Unclear(Exception):
    """A condition that cannot be judged on this value."""


_MISSING: Final = object()


def _look_up(args: Mapping[str, JSON], path: tuple[str, ...]) -> Any:
    value: Any = args.get(path[0], _MISSING)
    for part in path[1:]:
        if value is _MISSING or value is None:
            return _MISSING
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else _MISSING
        else:
            raise _Unclear(f"{_show(value)} has no field {part!r}")
    return value


def _same(value: JSON, other: JSON) -> bool:
    """Equal as JSON: `true` is not 1, as it is in Python; 1 is 1.0."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return value == other


def _within(value: JSON, others: list[JSON]) -> bool:
    return any(_same(value, other) for other in others)


def _number(value: Any) -> float:
    # NaN is refused: every comparison with it is false, so `deny when amount gt 100` would let it pass.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise _Unclear(f"it is {_show(value)}, and only a number can be compared")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unclear(f"it is {_show(value)}, and only text can be looked at")
    return value


def _matches(value: Any, pattern: re.Pattern[str]) -> bool:
    text = _text(value)
    if len(text) > MATCHED_TEXT_MAX:
        raise _Unclear(f"it has {len(text)} characters, and 'matches' looks at {MATCHED_TEXT_MAX} at most")
    return pattern.fullmatch(text) is not None


def _under(value: Any, folders: tuple[str, ...]) -> bool:
    path = _text(value)
    if not path.startswith("/") or "\0" in path:
        raise _Unclear(f"it is {_show(value)}, and only an absolute path has a known place")
    return covers(folders, normal_path(path))


def normal_path(path: str) -> str:
    """An absolute path without `.`, `..` and repeated slashes (posix lets a path begin with two; here it may not)."""
    return posixpath.normpath("/" + path.lstrip("/"))


_TESTS: Final[Mapping[Op, Callable[[Any, Any], bool]]] = {
    "eq": _same,
    "ne": lambda value, other: not _same(value, other),
    "in": _within,
    "not_in": lambda value, others: not _within(value, others),
    "lt": lambda value, bound: _number(value) < bound,
    "le": lambda value, bound: _number(value) <= bound,
    "gt": lambda value, bound: _number(value) > bound,
    "ge": lambda value, bound: _number(value) >= bound,
    "matches": _matches,
    "under": _under,
    "exists": lambda value, wanted: wanted is True,
}


# Words.


def _show(value: Any) -> str:
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_of(globs: Sequence[str]) -> str:
    return " or ".join(map(repr, globs))


def _why(rule: Rule, finding: _Finding) -> str:
    if finding.truth == "yes":
        return "all conditions hold" if rule.when else "it has no conditions"
    if finding.check is None:
        return finding.note
    condition = finding.check.condition
    wanted = f"{condition.field!r} should be {condition.op} {_show(condition.value)}"
    if finding.truth == "no":
        return f"{wanted}: it is {'missing' if finding.value is _MISSING else _show(finding.value)}"
    return f"{wanted}: {finding.note}; what cannot be judged is {'not allowed' if rule.effect == 'allow' else 'denied'}"


def _refusal(rule: Rule, finding: _Finding, tool: str) -> str:
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
