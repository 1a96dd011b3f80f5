"""Reads a policy out of plain data: rules with what they ask for, what they grant, and their examples."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast, get_args

from understudy.policies.budget_reader import LIMITS as LIMITS
from understudy.policies.budget_reader import BudgetReader
from understudy.policies.example import Example, try_out
from understudy.policies.history import NOTHING, Earlier, Past
from understudy.policies.hosts import NotCanonical, read_host_pattern
from understudy.policies.operators import show
from understudy.policies.profile import DEFAULT_TIER, TIERS, WORKSPACES, Tier, Workspace
from understudy.policies.reading import is_name
from understudy.policies.rule import LAYERS, Effect, Layer, OnTimeout, Policy, Rule
from understudy.policies.window import DAY_MIN, DAYS, Window, zone_of

RULES_MAX = 1000
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)
TIMEOUTS: Final[tuple[OnTimeout, ...]] = get_args(OnTimeout)
ENFORCED: Final = frozenset(("files", "limits", "tier", "workspace", "network", "secrets", "redact", "marks", "cost"))
"""Obligations that are carried out. A grant of another one would promise what nothing keeps, so it is refused."""
POLICY_KEYS: Final = ("policy", "version", "layer", "graph", "budgets", "rules")
ASKED_KEYS: Final = ("tool", "graph", "labels", "time", "after", "not_after", "when")
GRANT_KEYS: Final = ("files", "limits", "tier", "workspace", "network", "secrets", "marks", "cost")
RULE_KEYS: Final = (
    *("id", "effect", *ASKED_KEYS, *GRANT_KEYS, "redact", "deadline", "on_timeout", "managed"),
    *("reason", "alternative", "match", "not_match"),
)
CALL_KEYS: Final = ("tool", "args", "graph", "labels", "at", "after")
WINDOW_KEYS: Final = ("zone", "days", "from", "to", "since", "until")
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_ADDRESSES: Final = re.compile(r".*/[0-9]+")


@dataclass
class PolicyReader(BudgetReader):
    """The parts of a policy file."""

    enforced: Collection[str] = ENFORCED
    examples: list[tuple[Rule, int, str, Example]] = field(default_factory=list)
    """Rule, its place, `match.0`, and what has to fit or not."""

    def read_policy(self, data: Any) -> Policy:
        if self.problems:
            return Policy("", "", ())
        top = self.mapping("", data, POLICY_KEYS, required=("policy", "version", "rules"))
        name = self.name("policy", top.get("policy", "x"))
        version = top.get("version", 1)
        if isinstance(version, bool) or not isinstance(version, int | str) or not 1 <= len(str(version)) <= 64:
            self.wrong("version", f"{show(version)} is no version; give a whole number, or text in quotes")
        layer = cast(Layer, self.word("layer", top.get("layer", "deployment"), "layer", LAYERS))
        graphs = self.globs("graph", top["graph"]) if "graph" in top else ()
        if bool(graphs) != (layer == "graph") and not self.problems:
            said = "names no graph" if layer == "graph" else f"is for the layer {layer!r}, and names a graph"
            self.wrong("graph", f"the policy {said}; write both 'layer: graph' and 'graph: NAME', or neither")
        budgets = self.budgets(top.get("budgets", []))
        listed = top.get("rules", [])
        if not isinstance(listed, list) or len(listed) > RULES_MAX:
            self.wrong("rules", f"{show(listed)} is no list of rules (of {RULES_MAX} at most); begin each with '- id:'")
            listed = []
        rules = [self.read_rule(place, each) for place, each in enumerate(listed)]
        self.rule, self.place = "", None
        ids = [rule.id for rule in rules]
        for twice in sorted({id for id in ids if ids.count(id) > 1 and id}):
            self.wrong("rules", f"the id {twice!r} is there {ids.count(twice)} times; give every rule its own")
        policy = Policy(name, str(version), tuple(rules), layer=layer, graphs=graphs, budgets=budgets)
        self.try_examples(policy)
        return policy

    def read_rule(self, place: int, data: Any) -> Rule:
        id = data.get("id") if isinstance(data, dict) else None
        self.rule, self.place = repr(id) if is_name(id) else f"no. {place + 1}", place
        before = len(self.problems)
        raw = self.mapping("", data, RULE_KEYS, required=("id", "effect", "tool"))
        effect = cast(Effect, self.word("effect", raw.get("effect", "deny"), "effect", EFFECTS, "deny"))
        self.only_where_it_counts(raw)
        files = self.mapping("files", raw.get("files", {}), ("read", "write"))
        rule = Rule(
            id=self.name("id", raw.get("id", "")) if "id" in raw else "",
            effect=effect,
            tools=self.globs("tool", raw.get("tool", [])) if "tool" in raw else (),
            when=tuple(sorted(self.conditions(raw.get("when", {})), key=lambda each: (each.field, each.op))),
            graphs=self.globs("graph", raw["graph"]) if "graph" in raw else (),
            labels=dict(self.labels(raw.get("labels", {}))),
            time=tuple(self.windows(raw.get("time", []))),
            after=self.earlier("after", raw["after"]) if "after" in raw else Earlier(),
            not_after=self.earlier("not_after", raw["not_after"]) if "not_after" in raw else Earlier(),
            managed=self.boolean("managed", raw.get("managed", False)),
            reason=self.text("reason", raw.get("reason", "")),
            alternative=self.text("alternative", raw.get("alternative", "")),
            read=self.paths("files.read", files.get("read", [])),
            write=self.paths("files.write", files.get("write", [])),
            limits=dict(self.call_limits("limits", raw.get("limits", {}))),
            tier=cast(Tier, self.word("tier", raw.get("tier", DEFAULT_TIER), "tier", TIERS, DEFAULT_TIER)),
            workspace=(
                cast(Workspace, self.word("workspace", raw["workspace"], "workspace", WORKSPACES, "none"))
                if "workspace" in raw
                else None
            ),
            network=tuple(self.network(raw.get("network", []))),
            secrets=self.names("secrets", raw.get("secrets", [])),
            redact=self.redact(raw.get("redact", [])),
            marks=self.names("marks", raw.get("marks", [])),
            cost=tuple(self.cost(raw.get("cost", {}))),
            deadline_s=self.amount("deadline", raw["deadline"], "duration") if "deadline" in raw else None,
            on_timeout=cast(OnTimeout, self.word("on_timeout", raw.get("on_timeout", "deny"), "end", TIMEOUTS)),
        )
        found = [(key, *each) for key in ("match", "not_match") for each in self.read_examples(key, raw.get(key, []))]
        if len(self.problems) == before:  # a rule that is not understood need not be tried
            self.examples += [(rule, place, f"{key}.{number}", example) for key, number, example in found]
        return rule

    def only_where_it_counts(self, raw: Mapping[str, Any]) -> None:
        """What would have no effect in this rule is a mistake, or a misunderstanding."""
        effect = raw.get("effect")
        granted = [key for key in GRANT_KEYS if raw.get(key)]
        if effect == "deny" and granted:
            self.wrong(granted[0], "a deny rule grants nothing; leave it out, or write an allow rule")
        for key in granted:
            if key not in self.enforced:
                words = f"nothing enforces it yet, so every call is without {key}"
                self.wrong(key, f"{show(raw[key])} cannot be granted: {words}; leave it out")
        for key in ("deadline", "on_timeout"):
            if key in raw and effect in ("allow", "deny"):
                self.wrong(key, f"nobody is asked by a rule that says {effect}; leave it out, or write 'effect: ask'")
        if "on_timeout" in raw and "deadline" not in raw and effect == "ask":
            self.wrong("on_timeout", "it never comes without a deadline; add e.g. 'deadline: 2h'")
        if raw.get("managed") and effect in ("allow", "ask"):
            self.wrong("managed", f"a rule that says {effect} cannot be managed; leave it out, or write 'effect: deny'")

    # --- what a rule asks for ---

    def labels(self, data: Any) -> Iterable[tuple[str, str | tuple[str, ...]]]:
        for name, value in self.mapping("labels", data).items():
            at = f"labels.{name}"
            found = self.texts(at, value, "[test, dev]") if isinstance(value, list) else self.text(at, value)
            for each in (name, *([found] if isinstance(found, str) else found)):
                self.as_seen(at, each)
            yield name, found

    def windows(self, data: Any) -> Iterable[Window]:
        for number, each in enumerate(data if isinstance(data, list) else [data]):
            at = f"time.{number}" if isinstance(data, list) else "time"
            raw = self.mapping(at, each, WINDOW_KEYS)
            if each == {}:
                self.wrong(at, "{} says nothing; write e.g. {zone: Europe/Berlin, from: '09:00', to: '17:00'}")
            days = raw.get("days", [])
            days = [days] if isinstance(days, str) else days
            if not isinstance(days, list) or not all(day in DAYS for day in days):
                self.wrong(f"{at}.days", f"{show(days)} are no days; write some of {', '.join(DAYS)}")
                days = []
            zone = self.text(f"{at}.zone", raw.get("zone", "UTC"))
            try:
                zone_of(zone)
            except ValueError as error:
                self.wrong(f"{at}.zone", f"{error}; write e.g. UTC or Europe/Berlin, or install tzdata")
                zone = "UTC"
            start = self.clock(f"{at}.from", raw.get("from", "00:00"))
            end = self.clock(f"{at}.to", raw.get("to", "24:00"))
            if start in (end, DAY_MIN):
                self.wrong(at, f"{show(each)} ends when it begins; leave 'from' and 'to' out for the whole day")
            since, until = self.moment(f"{at}.since", raw.get("since")), self.moment(f"{at}.until", raw.get("until"))
            if since is not None and until is not None and since >= until:
                self.wrong(f"{at}.until", f"{show(raw['until'])} is not after {show(raw['since'])}; exchange them")
            yield Window(zone, tuple(str(day) for day in days), start, end, since, until)

    def clock(self, at: str, value: Any) -> int:
        found = _TIME.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            self.wrong(at, f'{show(value)} is no time of day; write e.g. "09:30", in quotes')
            return 0
        return DAY_MIN if found[1] is None else int(found[1]) * 60 + int(found[2])

    def moment(self, at: str, value: Any) -> float | None:
        """Seconds since the epoch."""
        if value is None:
            return None
        text = self.text(at, value)
        try:
            found = datetime.fromisoformat(text)
            if found.tzinfo is None or found.microsecond or not 1971 <= found.year <= 9998:
                raise ValueError
            return found.timestamp()
        except (ValueError, OverflowError):
            self.wrong(at, f'{show(value)} is no moment; write e.g. "2026-01-31T12:00:00+01:00", with its offset')
            return None

    def earlier(self, at: str, data: Any) -> Earlier:
        raw = self.mapping(at, data, ("tool", "mark"))
        tools = self.globs(f"{at}.tool", raw["tool"]) if raw.get("tool", []) != [] else ()
        found = Earlier(tools, self.names(f"{at}.mark", raw.get("mark", [])))
        if data in ({}, {"tool": []}, {"mark": []}, {"tool": [], "mark": []}):
            self.wrong(at, f'{show(data)} names nothing; write e.g. {{tool: ["read_secret*"]}} or {{mark: [secret]}}')
        return found

    # --- what it grants ---

    def network(self, data: Any) -> Iterable[str]:
        for text in self.texts("network", data, "['api.example.org:443']") if data != [] else ():
            try:
                found = read_host_pattern(text)
                if found.port is None or _ADDRESSES.fullmatch(text):
                    raise NotCanonical("it names no port")
                yield str(found)
            except NotCanonical as error:
                self.wrong("network", f"{show(text)} is no place to go: {error}; write e.g. api.example.org:443")

    def redact(self, data: Any) -> tuple[str, ...]:
        found = self.texts("redact", data, "[card.number]") if data != [] else ()
        for path in found:
            self.field_path("redact", path)
        return found

    # --- its examples ---

    def read_examples(self, at: str, value: Any) -> Iterable[tuple[int, Example]]:
        if not isinstance(value, list):
            self.wrong(at, f"{show(value)} is no list; write a list of arguments, e.g. [{{path: /a}}]")
            return
        for number, each in enumerate(value):
            place = f"{at}.{number}"
            given = self.anything(place, self.mapping(place, each))
            yield number, self.example(place, given)

    def example(self, at: str, data: Mapping[str, Any]) -> Example:
        call = data.get("call")
        if len(data) != 1 or not isinstance(call, dict) or "args" not in call:
            return Example(data)
        raw = self.mapping(f"{at}.call", call, CALL_KEYS)
        labels = self.mapping(f"{at}.call.labels", raw.get("labels", {}))
        earlier = self.earlier(f"{at}.call.after", raw["after"]) if "after" in raw else None
        return Example(
            args=self.mapping(f"{at}.call.args", raw["args"]),
            whole=True,
            tool=self.text(f"{at}.call.tool", raw.get("tool", "")),
            graph=self.text(f"{at}.call.graph", raw.get("graph", "")),
            labels={name: self.text(f"{at}.call.labels.{name}", value) for name, value in labels.items()},
            at=self.moment(f"{at}.call.at", raw.get("at")),
            done=Past(frozenset(earlier.tools), frozenset(earlier.marks)) if earlier else NOTHING,
        )

    def try_examples(self, policy: Policy) -> None:
        """A problem for each example that turns out otherwise, with the rule that decides instead."""
        complete = None if self.problems else policy
        for rule, place, at, example in self.examples:
            self.rule, self.place = repr(rule.id), place
            said = try_out(rule, example, at.startswith("match"), complete)
            if said:
                self.wrong(at, said)
        self.rule, self.place = "", None
