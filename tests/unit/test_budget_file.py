"""Budgets and costs in a policy file: read as they are meant, kept with the run, and refused with what is wrong."""

import json
import pickle
from decimal import Decimal

import pytest
from jsonschema import Draft202012Validator

from understudy.policies import schema
from understudy.policies.budget import Budget, Cost, Degrade
from understudy.policies.permission import Allow, Ask, Request, decide
from understudy.policies.policy_file import PolicyError, canonical, from_canonical, load_policy
from understudy.policies.rule import Policy

TEXT = """
policy: shop
version: 1
budgets:
  - {id: run, scope: run, limits: {calls: 100, seconds: 10m, bytes: 64MiB, tokens: 2e3, money: "2.50"}}
  - {id: thread, scope: thread, limits: {tokens: "2000000000"}, at_limit: ask}
  - id: customer
    scope: tenant
    label: customer
    per: day
    limits: {money: 99.9}
    at_limit: degrade
    degrade: {deny: ["search*"], limits: {wall: 2s}}
rules:
  - {id: any, effect: allow, tool: "*", cost: {tokens: 10}}
  - {id: ask, effect: allow, tool: ask, cost: {tokens: {most: 4000, told: usage.total}, money: "0.05"}}
  - {id: pay, effect: ask, tool: pay, cost: {money: {most: 7, told: price}}}
"""


def load(text: str = TEXT.replace("2e3", "2000")) -> Policy:
    return load_policy(text, source="shop.yaml")


def test_budgets_are_read_as_they_are_meant() -> None:
    run, thread, customer = load().budgets
    limits = {"calls": 100, "seconds": 600, "bytes": 64 * 2**20, "tokens": 2000, "money": Decimal("2.5")}
    assert run == Budget("run", "run", {unit: Decimal(amount) for unit, amount in limits.items()})  # type: ignore[misc]
    assert thread == Budget("thread", "thread", {"tokens": Decimal(2_000_000_000)}, at_limit="ask")
    degrade = Degrade(("search*",), {"wall_s": 2.0})
    money = {"money": Decimal("99.9")}
    assert customer == Budget("customer", "tenant", money, "day", "customer", "degrade", degrade)  # type: ignore[arg-type]


def test_they_are_kept_with_the_run_and_are_part_of_what_it_is() -> None:
    policy = load()
    for again in (from_canonical(canonical(policy)), pickle.loads(pickle.dumps(policy))):
        assert again.budgets == policy.budgets
        assert [rule.cost for rule in again.rules] == [rule.cost for rule in policy.rules]
        assert (again, again.digest) == (policy, policy.digest)
    Draft202012Validator(schema.schema()).validate(json.loads(canonical(policy)))
    assert load(TEXT.replace("2e3", "2001")).digest != policy.digest
    assert load(TEXT.replace("2e3", "2000").replace("tokens: 10}", "tokens: 11}")).digest != policy.digest


def test_the_highest_cost_of_all_rules_and_layers_that_fit_counts() -> None:
    def request(tool: str) -> Request:
        return Request(tool, {}, "r", "g", "d")

    policy = load()
    one, other = decide([policy], request("ask")), decide([policy], request("pay"))
    assert isinstance(one, Allow)
    assert one.cost == (Cost("tokens", Decimal(4000)), Cost("money", Decimal("0.05")))  # `any` believes no result
    assert isinstance(other, Ask)
    assert other.cost == (Cost("tokens", Decimal(10)), Cost("money", Decimal(7), "price"))
    above = load_policy(
        "{policy: org, version: 1, layer: organisation, rules: [{id: x, effect: allow, tool: '*', cost: {money: 8}}]}",
        source="org.yaml",
    )
    both = decide([above, policy], request("pay"))
    assert isinstance(both, Ask)
    assert both.cost == (Cost("tokens", Decimal(10)), Cost("money", Decimal(8)))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("{scope: run, limits: {calls: 1}}", "budgets.0: the key 'id' is missing; add it"),
        ("{id: a, limits: {calls: 1}}", "budgets.0: the key 'scope' is missing; add it"),
        (
            "{id: a, scope: rnu, limits: {calls: 1}}",
            "budgets.0.scope: 'rnu' is no scope; write one of run, thread, tenant",
        ),
        ("{id: a, scope: run, limits: {}}", "budgets.0.limits: it limits nothing; write e.g. {calls: 100}"),
        ("{id: a, scope: run, limits: {euros: 1}}", "budgets.0.limits.euros: there is no such key"),
        ("{id: a, scope: run, limits: {calls: 1.5}}", "budgets.0.limits.calls: 1.5 is no amount that can be counted"),
        ("{id: a, scope: run, limits: {money: -1}}", "budgets.0.limits.money: -1 is no amount that can be counted"),
        ("{id: a, scope: run, limits: {money: nan}}", 'write e.g. 25 or "0.05", 1000000000000000 at most'),
        ("{id: a, scope: run, limits: {calls: 1}, label: x}", "a budget of scope run asks for no label"),
        ("{id: a, scope: run, limits: {calls: 1}, per: year}", "budgets.0.per: 'year' is no window; write one of hour"),
        ("{id: a, scope: run, limits: {calls: 1}, at_limit: degrade}", "budgets.0.degrade: say what goes on"),
        ("{id: a, scope: run, limits: {calls: 1}, degrade: {deny: [x]}}", "budgets.0.degrade: say what goes on"),
        (
            "{id: a, scope: run, limits: {calls: 1}, at_limit: degrade, degrade: {}}",
            "it says nothing, so nothing would",
        ),
    ],
)
def test_what_is_wrong_with_a_budget_is_told_with_its_place(budget: str, words: str) -> None:
    with pytest.raises(PolicyError) as told:
        load(f"policy: p\nversion: 1\nbudgets:\n  - {budget}\nrules: []\n")
    assert words in str(told.value)
    assert str(told.value).startswith("shop.yaml:4: ")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("cost: {calls: 1}", "cost.calls: there is no such key"),
        ("cost: {tokens: 0}", "cost.tokens: 0 is no amount that can be counted"),
        ("cost: {tokens: {most: 3}}", "cost.tokens: the key 'told' is missing; add it"),
        ("cost: {tokens: {most: 3, told: 'a..b'}}", "cost.tokens.told"),
        ("effect: deny, cost: {tokens: 3}", "a deny rule grants nothing"),
    ],
)
def test_what_is_wrong_with_a_cost_is_told(rule: str, words: str) -> None:
    effect = "" if "effect" in rule else "effect: allow, "
    with pytest.raises(PolicyError, match=words):
        load(f"{{policy: p, version: 1, rules: [{{id: x, tool: t, {effect}{rule}}}]}}")


def test_an_id_is_there_once() -> None:
    twice = "{id: a, scope: run, limits: {calls: 1}}"
    with pytest.raises(PolicyError, match="the id 'a' is there 2 times; give every budget its own"):
        load(f"{{policy: p, version: 1, budgets: [{twice}, {twice}], rules: []}}")
