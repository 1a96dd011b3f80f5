"""The published schema says what the reader reads: what is accepted is valid, and what has a wrong shape is not."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from unit.test_policy_file import EXAMPLE, FILES, FULL, VARIABLES

from understudy.policies import policy_file, schema
from understudy.policies.policy_file import PolicyError, canonical, load_policy
from understudy.policies.policy_reader import RULE_KEYS

VALIDATOR = Draft202012Validator(schema.schema())


def test_the_file_is_in_step() -> None:
    """`python -c "from understudy.policies.schema import FILE, text; FILE.write_text(text())"` writes it anew."""
    assert schema.FILE.read_text() == schema.text()
    Draft202012Validator.check_schema(json.loads(schema.FILE.read_text()))


def test_it_knows_every_key() -> None:
    assert list(schema.schema()["$defs"]["rule"]["properties"]) != []
    assert set(schema.schema()["$defs"]["rule"]["properties"]) == set(RULE_KEYS)


def test_what_is_documented_is_valid() -> None:
    assert policy_file.__doc__ is not None
    documented = "\n".join(line[4:] for line in policy_file.__doc__.splitlines() if line.startswith("    "))
    for text in (EXAMPLE, FULL, documented):
        VALIDATOR.validate(yaml.safe_load(text))
        stored = json.loads(canonical(load_policy(text, source="x", variables=VARIABLES)))
        VALIDATOR.validate(stored)


@pytest.mark.parametrize(
    "rule",
    [
        {"effect": "alow"},
        {"tol": "t"},
        {"when": {"a": {"underr": "/x"}}},
        {"when": {"a": {}}},
        {"when": {"a..b": {"eq": 1}}},
        {"when": {"a": {"gt": "5"}}},
        {"when": {"a": {"command": {}}}},
        {"limits": {"wal": 1}},
        {"files": {"read": "/x"}},
        {"time": {"from": "25:00"}},
        {"time": {"days": ["monday"]}},
        {"after": {}},
        {"labels": {"a": 1}},
        {"tier": "zygot"},
        {"marks": ["a b"]},
        {"on_timeout": "allow"},
        {"managed": "yes"},
    ],
)
def test_what_has_a_wrong_shape_is_not(rule: dict[str, Any]) -> None:
    data = {"policy": "p", "version": 1, "rules": [{"id": "x", "effect": "allow", "tool": "t", **rule}]}
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(PolicyError):
        load_policy(json.dumps(data), source="x")


@given(FILES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_is_read_is_valid(data: Any) -> None:
    try:
        load_policy(json.dumps(data), source="x", variables={"a": "/a"})
    except PolicyError:
        return
    VALIDATOR.validate(json.loads(json.dumps(data)))
