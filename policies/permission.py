"""May this call be made? Rules are read, the strictest one that fits decides, and no rule means no.

`decide` is a function of its arguments alone; nothing here asks a clock, a file or a person. The laws it keeps:

- Deny beats ask, ask beats allow, and a call that no rule fits is denied. The order of rules changes nothing. A managed
  deny is named before others.
- Several policies are layers (organisation, deployment, graph, run): each one has to allow. A layer can only tighten.
- What cannot be judged (text where a number was expected) is never in the call's favour: an allow rule does not fit,
  a deny or ask rule that fits otherwise denies. A rule that fails while it is judged denies, whatever it says.
- A command line that cannot be read for sure is never better than ask.
- `under` and the globs look at names. Where a link leads a path to a place that a rule's `under` would judge otherwise,
  the sandbox, which has the files, refuses the call. The wall is that it shows the files of the call's profile only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from understudy.policies.argv import Unreadable, read_line, read_words
from understudy.policies.budget import Cost, dearest
from understudy.policies.condition import Finding, judge
from understudy.policies.history import History
from understudy.policies.profile import Profile, intersect
from understudy.policies.rule import REMEMBERED_MAX, OnTimeout, Ready, Remembered, one_of, why
from understudy.policies.rule import Effect as Effect
from understudy.policies.rule import Policy as Policy
from understudy.policies.rule import Request as Request
from understudy.policies.rule import Rule as Rule
from understudy.policies.rule import fits as fits

NO_HISTORY = History()


@dataclass(frozen=True)
class Allow:
    rule: str
    policy: str
    profile: Profile
    redact: tuple[str, ...] = ()
    """Paths into the arguments that no event shows."""
    marks: tuple[str, ...] = ()
    """What the call leaves in the run's history."""
    cost: tuple[Cost, ...] = ()
    """What it may cost at most, besides what is counted."""


@dataclass(frozen=True)
class Ask:
    """A person has to approve this very call. `profile` is what it may then see and use."""

    rule: str
    policy: str
    reason: str
    profile: Profile
    redact: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    deadline_s: float | None = None
    """Seconds for the answer; None: no end."""
    on_timeout: OnTimeout = "deny"
    cost: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class Deny:
    """`rule` is empty when no rule fits."""

    rule: str
    policy: str
    reason: str
    managed: bool = False
    redact: tuple[str, ...] = ()


Decision = Allow | Ask | Deny


@dataclass(frozen=True)
class Step:
    """What one rule had to say about a request, for `understudy policy explain`."""

    policy: str
    rule: str
    effect: Effect
    matched: bool
    why: str
    decided: bool = False
    """It is the rule that is named in the decision."""


def decide(
    policies: Sequence[Policy], request: Request, now: float | None = None, history: History = NO_HISTORY
) -> Decision:
    """The strictest word of all layers. What is granted is what every layer grants.

    Args:
        policies: those for other graphs are left out.
        now: seconds since the epoch; None: rules that speak of times cannot be judged.
        history: what the run was granted before.
    """
    layers = [_layer(policy, request, now, history) for policy in policies if policy.compiled.concerns(request.graph)]
    if len(layers) == 1:
        return _asked_about_shell(layers[0], request)
    denied = [decision for decision in layers if isinstance(decision, Deny)]
    if denied:
        return replace(next((deny for deny in denied if deny.managed), denied[0]), redact=_redact(layers))
    granted = [decision for decision in layers if not isinstance(decision, Deny)]
    if not granted:
        return Deny("", "", f"there is no policy, and no rule means no; write one that allows tool {request.tool!r}")
    return _asked_about_shell(_together(granted), request)


_TOGETHER = Remembered()
"""What several layers allow, by the identity of their decisions: each policy keeps its own, and comparing them by value
takes longer than judging a rule. They are kept here as well, so that no other object gets their identity."""


def _together(granted: list[Allow | Ask]) -> Allow | Ask:
    """One decision of several layers, none of which denies. The last is the run's own: the most telling name."""
    these = tuple(map(id, granted))
    known: tuple[list[Allow | Ask], Allow] | None = _TOGETHER.get(these)
    if known is not None:
        return known[1]
    profile = _intersected(tuple([decision.profile for decision in granted]))
    redact, marks = _redact(granted), _union([decision.marks for decision in granted])
    costs = [cost for decision in granted for cost in decision.cost]
    cost = dearest(costs) if costs else ()
    asks = [decision for decision in granted if isinstance(decision, Ask)]
    if asks:
        until = _until([(ask.deadline_s, ask.on_timeout) for ask in asks])
        return Ask(asks[0].rule, asks[0].policy, asks[0].reason, profile, redact, marks, *until, cost)
    allowed = Allow(granted[-1].rule, granted[-1].policy, profile, redact, marks, cost)
    return _TOGETHER.keep(these, (granted, allowed))[1]


@lru_cache(maxsize=REMEMBERED_MAX)
def _intersected(profiles: tuple[Profile, ...]) -> Profile:
    return intersect(profiles)


def _redact(decisions: Sequence[Decision]) -> tuple[str, ...]:
    return _union([decision.redact for decision in decisions])


def _union(several: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Each once, in order."""
    if not any(several):
        return ()
    return tuple(sorted({each for some in several for each in some}))


def explain(
    policies: Sequence[Policy], request: Request, now: float | None = None, history: History = NO_HISTORY
) -> list[Step]:
    """For every rule of every layer, in the order of the file: whether it fits, and why it decided or did not."""
    decision = decide(policies, request, now, history)
    steps = []
    for policy in policies:
        hidden = policy.compiled.for_tool(request.tool).hidden
        for ready in policy.compiled.rules:
            rule = ready.rule
            if not policy.compiled.concerns(request.graph):
                note = f"its policy is about graph {one_of(policy.graphs)}, this is {request.graph!r}"
                finding = Finding("no", note=note)
            else:
                finding = _judge_fully(ready, request, now, history)
            fitting = finding.truth == "yes" or (finding.truth == "unclear" and not ready.allowing)
            named = fitting and (decision.policy, decision.rule) == (policy.name, rule.id)
            words = why(rule, finding, hidden)
            if fitting and not named:
                words += f"; {type(decision).__name__.lower()} was decided by {_decider(decision)}"
            steps.append(Step(policy.name, rule.id, rule.effect, fitting, words, named))
    return steps


# --- one layer -----------------------------------------------------------------------------------------------------


def _layer(policy: Policy, request: Request, now: float | None, history: History) -> Decision:
    denies: list[tuple[Ready, Finding]] = []
    asks: list[Ready] = []
    allows: list[Ready] = []
    compiled = policy.compiled
    rules, hidden, *_ = compiled.for_tool(request.tool)
    for ready in rules:
        try:
            if ready.particular:
                finding = ready.judge(request, now, history)
            else:
                finding = judge(ready.checks, request.args, ready.allowing)
        except Exception as error:
            denies.append((ready, _failure(error)))
            continue
        if finding.truth == "no" or (finding.truth == "unclear" and ready.allowing):
            continue
        if ready.allowing:
            allows.append(ready)
        elif ready.rule.effect == "deny" or finding.truth == "unclear":
            denies.append((ready, finding))
        else:
            asks.append(ready)
    if denies:
        return _denied(policy, request, denies, hidden)
    if not asks and not allows:
        return Deny("", policy.name, _no_rule(policy, request, now, history), redact=hidden)
    if asks:  # named by the smallest id, so that the order of rules does not change even the words
        rule = asks[0].rule
        reason = rule.reason or f"rule {rule.id!r} wants a person to approve tool {request.tool!r}"
        until = _until([(ready.rule.deadline_s, ready.rule.on_timeout) for ready in asks])
        profile, marks, cost = compiled.granted((*asks, *allows))
        return Ask(rule.id, policy.name, reason, profile, hidden, marks, *until, cost)
    these = (request.tool, *allows)
    found: Allow | None = compiled.allowed.get(these)
    if found is None:
        profile, marks, cost = compiled.granted(tuple(allows))
        found = compiled.allowed.keep(these, Allow(allows[0].rule.id, policy.name, profile, hidden, marks, cost))
    return found


def _denied(policy: Policy, request: Request, denies: Sequence[tuple[Ready, Finding]], hidden: Sequence[str]) -> Deny:
    def rank(found: tuple[Ready, Finding]) -> tuple[bool, bool, str]:
        ready, finding = found
        return not ready.rule.managed, finding.truth == "unclear", ready.rule.id

    ready, finding = min(denies, key=rank)
    rule = ready.rule
    if finding.truth == "unclear":
        words = f"rule {rule.id!r} cannot judge this call of tool {request.tool!r}, so it is denied: "
        words += why(rule, finding, hidden)
    else:
        words = rule.reason or f"rule {rule.id!r} denies tool {request.tool!r}"
    reason = f"{words}; instead: {rule.alternative}" if rule.alternative else words
    return Deny(rule.id, policy.name, reason, rule.managed, tuple(hidden))


def _until(asked: Sequence[tuple[float | None, OnTimeout]]) -> tuple[float | None, OnTimeout]:
    """The earliest of several deadlines; what happens then is a denial, if any wants that."""
    deadlines = [deadline_s for deadline_s, _ in asked if deadline_s is not None]
    ends = {on_timeout for deadline_s, on_timeout in asked if deadline_s is not None}
    return min(deadlines, default=None), "escalate" if ends == {"escalate"} else "deny"


def _asked_about_shell(decision: Decision, request: Request) -> Decision:
    """A line that a shell will read, and that we cannot, is shown to a person."""
    if not request.shell or not isinstance(decision, Allow):
        return decision
    for name in request.shell:
        value = request.args.get(name)
        try:
            if isinstance(value, str):
                read_line(value)
            elif value is not None:
                read_words(value if isinstance(value, list) else [value])
        except Unreadable as error:
            reason = f"argument {name!r} is no plain command: {error}"
            granted = (decision.profile, decision.redact, decision.marks)
            return Ask(decision.rule, decision.policy, reason, *granted, cost=decision.cost)
    return decision


def _failure(error: Exception) -> Finding:
    return Finding("unclear", note=f"the rule failed ({type(error).__name__}: {str(error)[:80]})")


def _judge_fully(ready: Ready, request: Request, now: float | None, history: History) -> Finding:
    if not ready.tools.fullmatch(request.tool):
        return Finding("no", note=f"it is about tool {one_of(ready.rule.tools)}")
    try:
        return ready.judge(request, now, history)
    except Exception as error:
        return _failure(error)


# --- words ---------------------------------------------------------------------------------------------------------


def _decider(decision: Decision) -> str:
    return f"rule {decision.rule!r} of policy {decision.policy!r}" if decision.rule else "the lack of a rule"


def _no_rule(policy: Policy, request: Request, now: float | None, history: History) -> str:
    """A refusal that teaches: the rule that came nearest and what it missed, or the line to add."""
    rules, hidden, *_ = policy.compiled.for_tool(request.tool)
    for ready in rules:
        if ready.rule.effect != "deny":
            words = why(ready.rule, _judge_fully(ready, request, now, history), hidden)
            return f"no rule allows this call of tool {request.tool!r}; rule {ready.rule.id!r} does not fit: {words}"
    name = request.tool[:64]
    return f"no rule allows tool {name!r}; add one: - {{id: {name}, effect: allow, tool: {name}}}"
