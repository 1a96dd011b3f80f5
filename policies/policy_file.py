"""Reads a policy from a file that people write and review; everything that is wrong with it is said at once.

YAML or JSON. An example with every key there is:

    policy: demo                              # a name: letters, digits, . _ -
    version: 1                                # a whole number or text
    layer: deployment                         # or organisation, or graph (then with `graph: NAME`, a glob or a list)
    budgets:                                  # what the calls are paid from; see below
      - id: each-run
        scope: run                            # each run and its children; or thread, or tenant
        limits: {calls: 100, seconds: 10m, bytes: 64MiB, tokens: 2000000, money: "2.50"}      # one or more of these
        at_limit: stop                        # refuse the call; or ask a person, call by call
      - id: each-customer
        scope: tenant
        label: customer                       # the label of the run that names the tenant; without it, `tenant`
        per: day                              # anew each hour, day, week or month (UTC); without it, never
        limits: {money: 100}
        at_limit: degrade                     # go on beyond the limit with less:
        degrade: {deny: ["search*"], limits: {wall: 2s}}      # without these tools, and with these limits of a call
    rules:
      - id: metadata                          # once in the file
        effect: allow                         # allow, ask (a person approves) or deny
        tool: read_metadata                   # a glob or a list of globs, case-sensitive
        graph: "report*"                      # the same for graphs; without it, all
        labels: {env: [test, dev]}            # labels that the run has to carry: a value, or one of several
        time: {zone: Europe/Berlin, days: [mon, fri], from: "09:00", to: "17:00"}      # a window, or a list of them
        after: {tool: ["login*"], mark: []}   # the run has called such a tool before, or a call has left such a mark
        not_after: {mark: [secret]}           # the run has not, nor has a run that its state comes from
        when:                                 # conditions on the arguments; all have to hold
          path: {under: "${environment}"}
          depth: {ge: 0, le: 3}
          options.format: {in: [json, csv]}   # a path into the argument; numbers are places in a list
          source: {host: ["*.example.org:443", 10.0.0.0/8]}
          page: {url: "https://example.org/docs"}
          line: {command: {program: [git], operands: [log, "**"], only_flags: [-n, --oneline]}}
        files: {read: ["${environment}"], write: []}      # absolute paths that the call may see
        limits: {wall: 10s, cpu: 10s, memory: 512MiB, processes: 32, open_files: 64, disk: 64MiB, output: 1MiB}
        tier: zygote                          # the weakest isolation that will do: landlock, zygote, cold or gvisor
        workspace: write                      # the files of the run: none, read or write
        redact: [options.key]                 # arguments whose values no event and no message shows
        cost: {tokens: 4000, money: {most: "0.05", told: usage.price}}    # of one call, at most; see below
        marks: [metadata-seen]                # what the call leaves in the run's history
        reason: reading metadata harms nobody
        alternative: ""                       # told together with a refusal
        match:                                # arguments that have to fit, and that must not
          - {path: "${environment}/a", depth: 1, options: {format: csv}, source: a.example.org:443,
             page: "https://example.org/docs/a", line: git log --oneline}
        not_match: [{path: /etc/passwd}]
      - id: large
        effect: ask
        tool: pay
        when: {amount: {gt: 100}}
        deadline: 2h                          # how long the answer may take
        on_timeout: deny                      # what then: deny, or escalate (asked once more, as urgent)
      - id: never
        effect: deny
        tool: "*"
        labels: {tenant: closed}
        managed: true                         # named before any other rule that denies
        match: [{call: {tool: pay, args: {amount: 1}, labels: {tenant: closed}, at: "2026-01-31T10:00:00Z"}}]

Conditions: `eq ne in not_in lt le gt ge matches` (a regular expression for the whole text) `under` (an absolute path,
or a list) `exists` (true or false) `host url` (of a URL, or `host:port`; see `hosts`) `command` (of a command line, or
a list of words: `program operands any_operand only_flags any_flag`; see `command_line`) `plain` (whether it is a
command line that can be read for sure). Durations are `500ms`, `10s`, `2m`, `1h`, `2d` or seconds; sizes `64KiB`,
`1MiB`, `2GiB` (powers of 1024), `1MB` (of 1000) or bytes. `${name}` is replaced, in values, from the variables that the
caller gives and from nothing else; in a glob or a regular expression it stands for its very text. `$${` stands for
`${`. `network: ["api.example.org:443", "*.example.org:80"]` lists what may be reached; an address that is not public
has to be listed itself (`"10.0.0.7:5432"`, beside the name that leads to it; or `"localhost:8080"`). `secrets: [name]`
names secrets of the deployment's (UNDERSTUDY_SECRETS).

A budget counts the calls that were made, the seconds they took, the bytes that they answered and printed, and the
tokens and money that `cost` says. Before a call, the most that it may cost is held: one call, the `wall` and twice the
`output` of its limits, and its `cost`; where that is more than is left, the budget is at its limit. Afterwards what it
did cost is settled. Of tokens and money that is all that `cost` says, or with `told` what stands there in its result
(all, if nothing does). Effects of nodes are counted when they say what they may cost: `ctx.effect(..., cost=...)`. A
call whose end nobody knows has cost all. Children pay out of the budgets of the run that they come from; every layer's
budgets count.

How rules decide is told in `permission`. What is stored with a run is `canonical(policy)`, found by its digest; it says
the same in JSON, with variables replaced and without examples.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from understudy.policies.budget_reader import budget_data, cost_data
from understudy.policies.policy_reader import ENFORCED, LIMITS, PolicyReader
from understudy.policies.profile import DEFAULT_TIER
from understudy.policies.reading import PolicyError as PolicyError  # this is where its callers look for it
from understudy.policies.reading import Problem
from understudy.policies.rule import Policy, Rule
from understudy.policies.strict_yaml import TEXT_MAX_BYTES, Unreadable, line_of, read
from understudy.policies.window import Window, clock, when


def load_policy(
    text: str,
    *,
    source: str,
    variables: Mapping[str, str] | None = None,
    enforced: Collection[str] = ENFORCED,
) -> Policy:
    """The policy in a file's text. Its examples are checked.

    Args:
        source: what messages call the file.
        variables: values for `${name}`.
        enforced: obligations that are carried out where the calls execute; another one that grants is refused.

    Raises:
        PolicyError: with all problems.
    """
    return _load(text, source, variables or {}, enforced)


def canonical(policy: Policy) -> str:
    """The policy as JSON, always spelled the same: what is stored with a run, and what the digest is made of."""
    data: dict[str, Any] = {"policy": policy.name, "version": policy.version}
    if policy.layer != "deployment":
        data["layer"] = policy.layer
    if policy.graphs:
        data["graph"] = list(policy.graphs)
    if policy.budgets:
        data["budgets"] = [budget_data(budget) for budget in policy.budgets]
    data["rules"] = [_rule_data(rule) for rule in policy.rules]
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_canonical(text: str, enforced: Collection[str] = ENFORCED) -> Policy:
    """The policy that `canonical` wrote. It is checked as a file is. Raises PolicyError."""
    return _load(text, "stored policy", None, enforced)


def _load(text: str, source: str, variables: Mapping[str, str] | None, enforced: Collection[str]) -> Policy:
    reader = PolicyReader(source, variables, locate=partial(line_of, text), enforced=enforced)
    try:
        data = read(text)
    except Unreadable as error:
        reader.problems.append(Problem(source, "", "", str(error)))  # it says where, as well as it can
        data = None
    policy = reader.read_policy(data)
    written = b"" if reader.problems else canonical(policy).encode()
    if len(written) > TEXT_MAX_BYTES:
        reader.wrong("", f"with variables replaced it has {len(written)} bytes, and {TEXT_MAX_BYTES} are the most")
    if reader.problems:
        raise PolicyError(tuple(dict.fromkeys(reader.problems)))
    return replace(policy, digest=hashlib.sha256(written).hexdigest())


def _rule_data(rule: Rule) -> dict[str, Any]:
    conditions: dict[str, dict[str, Any]] = {}
    for condition in rule.when:
        conditions.setdefault(condition.field, {})[condition.op] = condition.value
    limits = {name: rule.limits[kept] for name, (kept, _) in LIMITS.items() if kept in rule.limits}
    data: dict[str, Any] = {"id": rule.id, "effect": rule.effect, "tool": list(rule.tools), "when": conditions}
    labels = {name: value if isinstance(value, str) else list(value) for name, value in rule.labels.items()}
    data |= {"graph": list(rule.graphs), "labels": labels, "limits": limits}
    data |= {"time": [_window_data(window) for window in rule.time], "managed": rule.managed}
    for name, earlier in (("after", rule.after), ("not_after", rule.not_after)):
        data[name] = {"tool": list(earlier.tools), "mark": list(earlier.marks)} if earlier else {}
    data |= {"reason": rule.reason, "alternative": rule.alternative}
    data["tier"] = rule.tier if rule.tier != DEFAULT_TIER else ""
    data["workspace"] = rule.workspace or ""
    data["files"] = {"read": list(rule.read), "write": list(rule.write)} if rule.read or rule.write else {}
    data |= {"network": list(rule.network), "secrets": list(rule.secrets), "redact": list(rule.redact)}
    data |= {"marks": list(rule.marks), "deadline": rule.deadline_s, "cost": cost_data(rule.cost)}
    data["on_timeout"] = rule.on_timeout if rule.on_timeout != "deny" else ""
    return {key: value for key, value in data.items() if value}


def _window_data(window: Window) -> dict[str, Any]:
    data: dict[str, Any] = {"zone": window.zone, "from": clock(window.start_min), "to": clock(window.end_min)}
    if window.days:
        data["days"] = list(window.days)
    if window.since is not None:
        data["since"] = when(window.since)
    if window.until is not None:
        data["until"] = when(window.until)
    return data
