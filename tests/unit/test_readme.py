"""What the README shows works as it stands there: a newcomer types it before reading anything else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy.cluster.testing.crash import crash_points
from understudy.policies.policy_file import load_policy

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, word: str) -> str:
    """The one block of code that has this word in it."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text]
    return str(found)


def names_of(source: str, **given: Any) -> dict[str, Any]:
    names = dict(given)
    exec(compile(source, "README.md", "exec"), names)
    return names


def test_the_example_runs_under_its_policy_and_survives_crashes():
    graph = names_of(block("python", 'Graph("refund"'), __name__="refund")["graph"]
    policy = load_policy(block("yaml", "policy: refunds"), source="policy.yaml")
    done = graph.run_inline({"order": "A1"}, answers={"charge": "fine"}, policy=policy)
    assert (done.receipt, done.notes) == ("receipt-A1", ["charged, they said fine"])
    report = crash_points(graph, {"order": "A1"}, answers={"charge": "fine"})
    assert report.ok, report


def test_the_budgets_are_ones():
    policy = load_policy("policy: readme\nversion: 1\n" + block("yaml", "budgets:"), source="policy.yaml")
    assert [budget.id for budget in policy.budgets] == ["each-run", "each-customer"]


def test_the_migration_leaves_no_channel_behind_that_the_new_model_does_not_have():
    class Declaring:
        declared: Callable[[dict[str, Any]], dict[str, Any]]

        def migrate(self, *, from_: str) -> Callable[[Any], None]:
            assert from_ == "1"
            return lambda fn: setattr(self, "declared", fn)

    graph = Declaring()
    names_of(block("python", "@graph.migrate"), graph=graph)
    assert graph.declared({"order": "A1", "notes": []}) == {"orders": ["A1"], "notes": []}
