"""The JSON schema of a policy file, for editors and for whoever writes policies by program.

`policy.schema.json` beside this module is what `schema()` says. It tells shapes and words; what a value means (whether
a pattern compiles, a zone is known, an example fits) is told by `understudy policy check`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from understudy.policies.budget import AT_LIMIT, SCOPES
from understudy.policies.budget_reader import BUDGET_KEYS, BUDGETS_MAX, COST_UNITS, KINDS
from understudy.policies.budget_window import PERS
from understudy.policies.condition_reader import COMMAND_KEYS, OPS, PATTERN_MAX
from understudy.policies.operators import Op
from understudy.policies.policy_reader import CALL_KEYS, EFFECTS, LIMITS, RULES_MAX, TIMEOUTS
from understudy.policies.profile import DEFAULT_TIER, TIERS, WORKSPACES
from understudy.policies.reading import Kind
from understudy.policies.rule import LAYERS
from understudy.policies.window import DAYS

FILE: Final = Path(__file__).with_name("policy.schema.json")

_NAME: Final = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
_PATH: Final = r"^[^.\s]{1,64}(\.[^.\s]{1,64}){0,15}$"
_TEXT: Final = {"type": "string"}
_BOOLEAN: Final = {"type": "boolean"}
_GLOB: Final = {"type": "string", "minLength": 1, "maxLength": 256}
_CLOCK: Final = {"type": "string", "pattern": "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"}
_MOMENT: Final = {"type": "string", "description": "With its offset: 2026-01-31T12:00:00+01:00"}
_QUANTITY: Final = {"type": ["string", "number"], "description": "As in limits; money as 25 or '0.05'"}
_AMOUNTS: Final[Mapping[Kind, Any]] = {
    "duration": {"type": ["string", "number"], "description": "500ms, 10s, 2m, 1h, 2d, or seconds"},
    "size": {"type": ["string", "number"], "description": "64KiB, 512MiB, 1GiB, 1MB, or bytes"},
    "count": {"type": ["string", "number"], "description": "A whole number from 1 to 1000000"},
}


def text() -> str:
    """As it is published."""
    return json.dumps(schema(), indent=2) + "\n"


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Understudy policy",
        "description": "Which tool calls of a run may be made, and what they may see and use. No rule means no.",
        **_object(
            {
                "policy": {"type": "string", "pattern": _NAME, "description": "Its name."},
                "version": {"type": ["integer", "string"], "description": "Recorded with every decision."},
                "layer": {"enum": list(LAYERS), "description": "Every layer has to allow. Default: deployment."},
                "graph": {**_globs(), "description": "With layer: graph, the graphs that it is for."},
                "budgets": {
                    **_list({"$ref": "#/$defs/budget"}),
                    "maxItems": BUDGETS_MAX,
                    "description": "What the calls are paid from.",
                },
                "rules": {"type": "array", "maxItems": RULES_MAX, "items": {"$ref": "#/$defs/rule"}},
            },
            ("policy", "version", "rules"),
        ),
        "$defs": {
            "rule": _rule(),
            "budget": _budget(),
            "condition": _condition(),
            "window": _window(),
            "earlier": _earlier(),
        },
    }


def _rule() -> dict[str, Any]:
    earlier = {"$ref": "#/$defs/earlier"}
    window = {"$ref": "#/$defs/window"}
    examples = {"type": "array", "items": {"anyOf": [_example(), {"type": "object"}]}}
    limits = {name: _AMOUNTS[kind] for name, (_, kind) in LIMITS.items()}
    return _object(
        {
            "id": {"type": "string", "pattern": _NAME, "description": "Once in the file."},
            "effect": {"enum": list(EFFECTS), "description": "The strictest rule that fits decides: deny, ask, allow."},
            "tool": {**_globs(), "description": "Names of tools, or globs."},
            "graph": {**_globs(), "description": "Default: all graphs."},
            "labels": {
                **_map({"anyOf": [_TEXT, _list(_TEXT, 1)]}),
                "description": "Labels that the run has to carry, with this value or one of these.",
            },
            "time": {"anyOf": [window, _list(window)], "description": "When it speaks. Default: always."},
            "after": {**earlier, "description": "What the run has to have done before."},
            "not_after": {**earlier, "description": "What the run may not have done before."},
            "when": {
                "type": "object",
                "propertyNames": {"pattern": _PATH},
                "additionalProperties": {"$ref": "#/$defs/condition"},
                "description": "Conditions on arguments, by path (order.lines.0.sku). All have to hold.",
            },
            "files": {**_object({"read": _list(_TEXT), "write": _list(_TEXT)}), "description": "Absolute paths."},
            "limits": _object(limits),
            "tier": {
                "enum": list(TIERS),
                "description": f"The weakest isolation that will do. Default: {DEFAULT_TIER}.",
            },
            "workspace": {
                "enum": list(WORKSPACES),
                "description": "The files of the run: none (the default), read, or write, which keeps what it changes.",
            },
            "network": {
                **_list(_TEXT),
                "description": "Hosts that may be reached, each with its port; see `policies.hosts`.",
            },
            "secrets": {**_names(), "description": "Names of the deployment's secrets."},
            "cost": _cost(),
            "marks": {**_names(), "description": "What a call leaves in the run's history, for after and not_after."},
            "redact": {
                **_list({"type": "string", "pattern": _PATH}),
                "description": "Paths of arguments whose values no event and no message shows.",
            },
            "deadline": {**_AMOUNTS["duration"], "description": "With effect: ask, how long the answer may take."},
            "on_timeout": {"enum": list(TIMEOUTS), "description": "What then. Default: deny."},
            "managed": {**_BOOLEAN, "description": "With effect: deny: named before any other rule."},
            "reason": _TEXT,
            "alternative": {**_TEXT, "description": "What to do instead; told together with a refusal."},
            "match": {**examples, "description": "Arguments, or whole calls, that have to fit."},
            "not_match": {**examples, "description": "Arguments, or whole calls, that must not."},
        },
        ("id", "effect", "tool"),
    )


def _budget() -> dict[str, Any]:
    limits = {name: _AMOUNTS[kind] for name, (_, kind) in LIMITS.items()}
    shapes = {
        "id": {"type": "string", "pattern": _NAME, "description": "Once in the file."},
        "scope": {"enum": list(SCOPES), "description": "Each run (with its children), thread or tenant has its own."},
        "label": {**_TEXT, "description": "With scope: tenant, the label that names it. Default: tenant."},
        "per": {"enum": list(PERS), "description": "Anew in each, in UTC. Default: never."},
        "limits": {**_object(dict.fromkeys(KINDS, _QUANTITY)), "minProperties": 1},
        "at_limit": {"enum": list(AT_LIMIT), "description": "Default: stop."},
        "degrade": {**_object({"deny": _globs(), "limits": _object(limits)}), "minProperties": 1},
    }
    return _object({key: shapes[key] for key in BUDGET_KEYS}, ("id", "scope", "limits"))


def _cost() -> dict[str, Any]:
    told = _object({"most": _QUANTITY, "told": {"type": "string", "pattern": _PATH}}, ("most", "told"))
    return {
        **_object({unit: {"anyOf": [_QUANTITY, told]} for unit in COST_UNITS}),
        "description": "What one call costs at most; with `told`, the path in its result that says what it did cost.",
    }


def _condition() -> dict[str, Any]:
    number, texts = {"type": "number"}, {"anyOf": [_TEXT, _list(_TEXT, 1)]}
    words = {"anyOf": [_GLOB, _list(_GLOB)]}
    operands: Mapping[Op, Any] = {
        "eq": True,
        "ne": True,
        "in": {"type": "array", "minItems": 1},
        "not_in": {"type": "array", "minItems": 1},
        **dict.fromkeys(("lt", "le", "gt", "ge"), number),
        "matches": {"type": "string", "maxLength": PATTERN_MAX, "description": "A regular expression, for all of it."},
        "under": {**texts, "description": "Absolute paths: it is one of these, or below."},
        "exists": _BOOLEAN,
        "host": {**texts, "description": "example.org, *.example.org:443, 10.0.0.0/8; of a URL or host:port."},
        "url": {**texts, "description": "https://example.org/docs: this, or what is below."},
        "command": {**_object(dict.fromkeys(COMMAND_KEYS, words)), "minProperties": 1},
        "plain": {**_BOOLEAN, "description": "Whether it is a command line that can be read for sure."},
    }
    return {**_object({op: operands[op] for op in OPS}), "minProperties": 1}


def _window() -> dict[str, Any]:
    days = {"enum": list(DAYS)}
    keys = {
        "zone": {**_TEXT, "description": "Europe/Berlin. Default: UTC."},
        "days": {"anyOf": [days, _list(days)]},
        "from": _CLOCK,
        "to": {**_CLOCK, "description": "Not part of it any more. Before 'from': on the next day."},
        "since": _MOMENT,
        "until": _MOMENT,
    }
    return {**_object(keys), "minProperties": 1}


def _earlier() -> dict[str, Any]:
    return {**_object({"tool": _globs(), "mark": _names()}), "minProperties": 1}


def _example() -> dict[str, Any]:
    parts = {"tool": _TEXT, "args": {"type": "object"}, "graph": _TEXT, "labels": _map(_TEXT), "at": _MOMENT}
    call = _object({key: parts.get(key, {"$ref": "#/$defs/earlier"}) for key in CALL_KEYS}, ("args",))
    return _object({"call": call}, ("call",))


# --- shapes --------------------------------------------------------------------------------------------------------


def _object(properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return found | ({"required": list(required)} if required else {})


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


def _list(items: Any, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items} | ({"minItems": least} if least else {})


def _globs() -> dict[str, Any]:
    return {"anyOf": [_GLOB, _list(_GLOB)]}


def _names() -> dict[str, Any]:
    return _list({"type": "string", "pattern": _NAME})
