"""Reads a policy from a file that people write and review; everything that is wrong with it is said at once.

YAML or JSON. An example with every key there is:

    policy: demo                              # a name: letters, digits, . _ -
    version: 1                                # a whole number or text
    rules:
      - id: metadata                          # once in the file
        effect: allow                         # allow, ask (a person approves) or deny
        tool: read_metadata                   # a glob or a list of globs, case-sensitive
        graph: "report*"                      # the same for graphs; without it, all
        labels: {env: test}                   # labels that the run has to carry
        when:                                 # conditions on the arguments; all have to hold
          path: {under: "${environment}"}
          depth: {ge: 0, le: 3}
          options.format: {in: [json, csv]}   # a path into the argument; numbers are places in a list
        files: {read: ["${environment}"], write: []}      # absolute paths that the call may see
        limits: {wall: 10s, cpu: 10s, memory: 512MiB, processes: 32, open_files: 64, disk: 64MiB, output: 1MiB}
        tier: zygote                          # the weakest isolation that will do: landlock, zygote, cold or gvisor
        reason: reading metadata harms nobody
        alternative: ""                       # told together with a refusal
        match: [{path: "${environment}/a", depth: 1, options: {format: csv}}]     # arguments that have to fit,
        not_match: [{path: /etc/passwd}]                                          # and that must not

Conditions: `eq ne in not_in lt le gt ge matches` (a regular expression for the whole text) `under` (an absolute path,
or a list) `exists` (true or false). Durations are `500ms`, `10s`, `2m`, `1h` or seconds; sizes `64KiB`, `1MiB`, `2GiB`
(powers of 1024), `1MB` (of 1000) or bytes. `${name}` is replaced, in values, from the variables that the caller gives
and from nothing else; in a glob or a regular expression it stands for its very text. `$${` stands for `${`.

How rules decide is told in `permission`. What is stored with a run is `canonical(policy)`, found by its digest; it says
the same in JSON, with variables replaced and without examples.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, cast, get_args

from understudy.policies.condition import Condition, Op, show
from understudy.policies.permission import Effect, Policy, Rule, fits
from understudy.policies.profile import DEFAULT_TIER, TIERS, Tier
from understudy.policies.reading import Kind, Reader, is_name, near
from understudy.policies.reading import PolicyError as PolicyError  # this is where its callers look for it
from understudy.policies.strict_yaml import TEXT_MAX_BYTES, Unreadable, read

PATTERN_MAX = 512
"""Characters of a regular expression."""
RULES_MAX = 1000

OPS: Final[tuple[Op, ...]] = get_args(Op)
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)
_POLICY_KEYS: Final = ("policy", "version", "rules")
_RULE_KEYS: Final = (
    *("id", "effect", "tool", "graph", "labels", "when", "files", "limits", "tier", "reason", "alternative"),
    *("match", "not_match"),
)
_LIMITS: Final[Mapping[str, tuple[str, Kind]]] = {
    "wall": ("wall_s", "duration"),
    "cpu": ("cpu_s", "duration"),
    "memory": ("memory_bytes", "size"),
    "processes": ("processes", "count"),
    "open_files": ("open_files", "count"),
    "disk": ("disk_bytes", "size"),
    "output": ("output_bytes", "size"),
}
_FIELD: Final = re.compile(r"[^.\s]{1,64}(?:\.[^.\s]{1,64}){0,15}")


def load_policy(text: str, *, source: str, variables: Mapping[str, str] | None = None) -> Policy:
    """The policy in a file's text. Its examples are checked.

    Args:
        source: what messages call the file.
        variables: values for `${name}`.

    Raises:
        PolicyError: with all problems.
    """
    return _load(text, source, variables or {})


def canonical(policy: Policy) -> str:
    """The policy as JSON, always spelled the same: what is stored with a run, and what the digest is made of."""
    data = {"policy": policy.name, "version": policy.version, "rules": [_rule_data(rule) for rule in policy.rules]}
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_canonical(text: str) -> Policy:
    """The policy that `canonical` wrote. It is checked as a file is. Raises PolicyError."""
    return _load(text, "stored policy", None)


def _load(text: str, source: str, variables: Mapping[str, str] | None) -> Policy:
    reader = _PolicyReader(source, variables)
    try:
        data = read(text)
    except Unreadable as error:
        reader.wrong("", str(error))
        data = None
    policy = reader.read_policy(data)
    written = b"" if reader.problems else canonical(policy).encode()
    if len(written) > TEXT_MAX_BYTES:
        reader.wrong("", f"with variables replaced it has {len(written)} bytes, and {TEXT_MAX_BYTES} are the most")
    if reader.problems:
        raise PolicyError(tuple(dict.fromkeys(reader.problems)))
    return replace(policy, digest=hashlib.sha256(written).hexdigest())


def _rule_data(rule: Rule) -> dict[str, Any]:
    when: dict[str, dict[str, Any]] = {}
    for condition in rule.when:
        when.setdefault(condition.field, {})[condition.op] = condition.value
    limits = {name: rule.limits[kept] for name, (kept, _) in _LIMITS.items() if kept in rule.limits}
    data: dict[str, Any] = {"id": rule.id, "effect": rule.effect, "tool": list(rule.tools), "when": when}
    data |= {"graph": list(rule.graphs), "labels": dict(rule.labels), "limits": limits}
    data |= {"reason": rule.reason, "alternative": rule.alternative}
    data["tier"] = rule.tier if rule.tier != DEFAULT_TIER else ""
    data["files"] = {"read": list(rule.read), "write": list(rule.write)} if rule.read or rule.write else {}
    return {key: value for key, value in data.items() if value}


class _PolicyReader(Reader):
    """The parts of a policy file."""

    def read_policy(self, data: Any) -> Policy:
        if self.problems:
            return Policy("", "", ())
        top = self.mapping("", data, _POLICY_KEYS, required=_POLICY_KEYS)
        name = self.name("policy", top.get("policy", "x"))
        version = top.get("version", 1)
        if isinstance(version, bool) or not isinstance(version, int | str) or not 1 <= len(str(version)) <= 64:
            self.wrong("version", f"{show(version)} is no version; give a whole number, or text in quotes")
        listed = top.get("rules", [])
        if not isinstance(listed, list) or len(listed) > RULES_MAX:
            self.wrong("rules", f"{show(listed)} is no list of rules (of {RULES_MAX} at most); begin each with '- id:'")
            listed = []
        rules = [self.read_rule(place, each) for place, each in enumerate(listed, 1)]
        self.rule = ""
        ids = [rule.id for rule in rules]
        for twice in sorted({id for id in ids if ids.count(id) > 1 and id}):
            self.wrong("rules", f"the id {twice!r} is there {ids.count(twice)} times; give every rule its own")
        return Policy(name, str(version), tuple(rules))

    def read_rule(self, place: int, data: Any) -> Rule:
        id = data.get("id") if isinstance(data, dict) else None
        self.rule = repr(id) if is_name(id) else f"no. {place}"
        before = len(self.problems)
        raw = self.mapping("", data, _RULE_KEYS, required=("id", "effect", "tool"))
        effect = raw.get("effect", "deny")
        if effect not in EFFECTS:
            self.wrong("effect", f"{show(effect)} is no effect; write allow, ask or deny{near(effect, EFFECTS)}")
            effect = "deny"
        files = self.mapping("files", raw.get("files", {}), ("read", "write"))
        limits = self.mapping("limits", raw.get("limits", {}), tuple(_LIMITS))
        tier = self.tier(raw.get("tier", DEFAULT_TIER))
        if raw.get("effect") == "deny" and (files or limits or "tier" in raw):
            at = "files" if files else "limits" if limits else "tier"
            self.wrong(at, "a deny rule grants nothing; leave it out, or write an allow rule")
        rule = Rule(
            id=self.name("id", raw.get("id", "")) if "id" in raw else "",
            effect=effect,
            tools=self.globs("tool", raw.get("tool", [])) if "tool" in raw else (),
            when=tuple(sorted(self.conditions(raw.get("when", {})), key=lambda each: (each.field, each.op))),
            graphs=self.globs("graph", raw["graph"]) if "graph" in raw else (),
            labels={
                name: self.text(f"labels.{name}", value)
                for name, value in self.mapping("labels", raw.get("labels", {})).items()
            },
            reason=self.text("reason", raw.get("reason", "")),
            alternative=self.text("alternative", raw.get("alternative", "")),
            read=self.paths("files.read", files.get("read", [])),
            write=self.paths("files.write", files.get("write", [])),
            limits=dict(self.limits(limits)),
            tier=tier,
        )
        examples = [(key, self.examples(key, raw[key])) for key in ("match", "not_match") if key in raw]
        if len(self.problems) == before:  # a rule that is not understood need not be tried
            for key, some in examples:
                self.try_out(rule, key, some)
        return rule

    def tier(self, value: Any) -> Tier:
        if value in TIERS:
            return cast(Tier, value)
        self.wrong("tier", f"{show(value)} is no tier; write one of {', '.join(TIERS)}{near(value, TIERS)}")
        return DEFAULT_TIER

    def conditions(self, data: Any) -> Iterable[Condition]:
        for path, tests in self.mapping("when", data).items():
            at = f"when.{path}"
            if not _FIELD.fullmatch(path):
                self.wrong("when", f"{show(path)} names no argument; write names with dots between, e.g. order.amount")
            if isinstance(tests, dict) and not tests:
                self.wrong(at, f"{{}} says nothing; write e.g. {{{OPS[0]}: 1}}")
            for known, value in self.mapping(at, tests, OPS).items():
                op = cast(Op, known)
                yield Condition(path, op, self.operand(f"{at}.{op}", op, value))

    def operand(self, at: str, op: Op, value: Any) -> Any:
        match op:
            case "eq" | "ne":
                return self.anything(at, value)
            case "in" | "not_in":
                if not isinstance(value, list) or not value:
                    self.wrong(at, f"{show(value)} is no list of values; write e.g. [EUR, USD]")
                    return []
                return self.anything(at, value)
            case "lt" | "le" | "gt" | "ge":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    self.wrong(at, f"{show(value)} is no number; write one, without quotes")
                return value
            case "matches":
                return self.pattern(at, value)
            case "under":
                found = self.paths(at, [value] if isinstance(value, str) else value)
                if not found and isinstance(value, list) and not value:
                    self.wrong(at, "an empty list is over nothing; name a folder")
                return found[0] if isinstance(value, str) and found else list(found)
            case "exists":
                if not isinstance(value, bool):
                    self.wrong(at, f"{show(value)} is neither true nor false; write one of them, without quotes")
                return value

    def pattern(self, at: str, value: Any) -> str:
        pattern = self.text(at, value, re.escape)
        if len(pattern) > PATTERN_MAX:
            self.wrong(at, f"it has {len(pattern)} characters, and {PATTERN_MAX} are the most; split the rule")
            return ""
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            self.wrong(at, f"{show(pattern)} is no regular expression: {error}")
        return pattern

    def limits(self, data: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
        for name, value in data.items():
            kept, kind = _LIMITS[name]
            yield kept, self.amount(f"limits.{name}", value, kind)

    def examples(self, at: str, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            self.wrong(at, f"{show(value)} is no list; write a list of arguments, e.g. [{{path: /a}}]")
            return []
        return [self.anything(at, self.mapping(f"{at}.{place}", each)) for place, each in enumerate(value)]

    def try_out(self, rule: Rule, key: str, examples: Iterable[dict[str, Any]]) -> None:
        for place, args in enumerate(examples):
            truth, why = fits(rule, args)
            if key == "match" and truth != "yes":
                self.wrong(f"{key}.{place}", f"{show(args)} should fit and does not: {why}")
            if key == "not_match" and (truth == "yes" or (truth == "unclear" and rule.effect != "allow")):
                self.wrong(f"{key}.{place}", f"{show(args)} should not fit and does: {why}")
