"""Examples inside rules: arguments, or whole calls, that have to fit the rule, and others that must not.

The usual form is the arguments: `{amount: 5}`; they are held against the rule's conditions alone. A whole call,
`{call: {tool: pay, args: {amount: 5}, labels: ..., graph: ..., at: ..., after: ...}}`, is held against all of the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from understudy.policies.history import NOTHING, History, Past
from understudy.policies.operators import show
from understudy.policies.permission import Allow, Ask, Decision, decide
from understudy.policies.rule import Policy, Ready, Request, Rule, fits, one_of, why

_WILD: Final = frozenset("*?[")


@dataclass(frozen=True)
class Example:
    args: Mapping[str, Any]
    whole: bool = False
    """It is a whole call, and not only arguments."""
    tool: str = ""
    """Empty: the rule's own, if it has a plain one."""
    graph: str = ""
    labels: Mapping[str, str] | None = None
    at: float | None = None
    done: Past = NOTHING


def try_out(rule: Rule, example: Example, should_fit: bool, policy: Policy | None) -> str:
    """What is wrong with an example; empty: nothing.

    Args:
        policy: all rules together, to tell which one decides instead; None: not known.
    """
    truth, words = _judged(rule, example) if example.whole else fits(rule, example.args)
    shown = show(dict(example.args))
    if should_fit and truth != "yes":
        return f"{shown} should fit and does not: {words}{_instead(rule, example, policy)}"
    if not should_fit and (truth == "yes" or (truth == "unclear" and rule.effect != "allow")):
        return f"{shown} should not fit and does: {words}"
    return ""


def _judged(rule: Rule, example: Example) -> tuple[str, str]:
    ready = Ready(rule)
    request = _request(rule, example)
    if not ready.tools.fullmatch(request.tool):
        return "no", f"it is about tool {one_of(rule.tools)}, this is {request.tool!r}"
    finding = ready.judge(request, example.at, History(example.done))
    return finding.truth, why(rule, finding, rule.redact)


def _instead(rule: Rule, example: Example, policy: Policy | None) -> str:
    request = _request(rule, example)
    if policy is None or not request.tool:
        return ""
    graph = request.graph or _plain(policy.graphs)
    decision = decide(
        [policy],
        Request(request.tool, request.args, "", graph, "", request.labels),
        example.at,
        History(example.done),
    )
    by = f"rule {decision.rule!r}" if decision.rule else "the lack of a rule that fits"
    return f"; instead, {by} decides: {_word(decision)}"


def _request(rule: Rule, example: Example) -> Request:
    """What is not said is taken from the rule, where it says it plainly."""
    labels = example.labels
    if labels is None:
        labels = {name: value if isinstance(value, str) else value[0] for name, value in rule.labels.items()}
    tool = example.tool or _plain(rule.tools)
    return Request(tool, example.args, "", example.graph or _plain(rule.graphs), "", labels)


def _plain(globs: tuple[str, ...]) -> str:
    return next((glob for glob in globs if _WILD.isdisjoint(glob)), "")


def _word(decision: Decision) -> str:
    return "allow" if isinstance(decision, Allow) else "ask" if isinstance(decision, Ask) else "deny"
