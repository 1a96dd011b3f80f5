"""A policy file is read as it is meant, or refused with everything that is wrong with it; never anything between."""

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from understudy.policies import policy_file
from understudy.policies.condition_reader import OPS
from understudy.policies.history import Earlier
from understudy.policies.permission import Allow, Deny, Request, decide
from understudy.policies.policy_file import PolicyError, canonical, from_canonical, load_policy
from understudy.policies.policy_reader import ENFORCED, RULE_KEYS
from understudy.policies.profile import Limits, Profile
from understudy.policies.strict_yaml import read as read_yaml

EXAMPLE = """
policy: demo
version: 1
rules:
  - id: metadata
    effect: allow
    tool: read_metadata
    when: {path: {under: "${environment}"}, depth: {ge: 0, le: 3}}
    files: {read: ["${environment}"], write: []}
    limits: {wall: 10s, memory: 512MiB, processes: 32, output: 1MiB, disk: 64MiB, cpu: 1500ms, open_files: 64}
    reason: reading metadata harms nobody
    match: [{path: "${environment}/a", depth: 1}]
    not_match: [{path: /etc/passwd, depth: 1}, {path: "${environment}/../b", depth: 1}]
  - id: pay
    effect: ask
    tool: [pay, "refund_*"]
    graph: "shop*"
    labels: {env: prod}
    when: {currency: {in: [EUR, USD]}, order.id: {matches: "[A-Z][0-9]+"}}
    tier: cold
    alternative: send an offer
"""
VARIABLES = {"environment": "/srv/env"}


def load(text: str, **variables: str) -> Any:
    return load_policy(text, source="demo.yaml", variables=variables or VARIABLES)


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load(text)
    return str(caught.value).splitlines()


def problem(rule: str, effect: str = "allow") -> str:
    """The one problem of a file with this one rule (beside id, effect and tool)."""
    (only,) = problems(f"{{policy: p, version: 1, rules: [{{id: x, effect: {effect}, tool: t, {rule}}}]}}")
    return only


# What is right.


def test_a_file_becomes_a_policy() -> None:
    policy = load(EXAMPLE)
    assert (policy.name, policy.version) == ("demo", "1")
    metadata, pay = policy.rules
    assert (metadata.read, metadata.write) == (("/srv/env",), ())
    assert (metadata.tier, pay.tier) == ("zygote", "cold")
    assert (pay.tools, pay.graphs, pay.labels, pay.alternative) == (
        ("pay", "refund_*"),
        ("shop*",),
        {"env": "prod"},
        "send an offer",
    )
    request = Request("read_metadata", {"path": "/srv/env/x", "depth": 0}, "r", "g", "d")
    limits = Limits(10.0, 1.5, 512 * 2**20, 32, 64, 64 * 2**20, 2**20)
    assert decide([policy], request) == Allow("metadata", "demo", Profile(("/srv/env",), (), limits))
    assert isinstance(decide([policy], Request("read_metadata", {"path": "/etc", "depth": 0}, "r", "g", "d")), Deny)


def test_the_example_in_the_documentation_is_one() -> None:
    assert policy_file.__doc__ is not None
    lines = policy_file.__doc__.splitlines()
    text = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert load(text).rules[0].id == "metadata"


def test_what_is_stored_reads_back_as_the_same_policy() -> None:
    policy = load(EXAMPLE)
    again = from_canonical(canonical(policy))
    assert again == policy
    assert canonical(again) == canonical(policy)
    assert len(policy.digest) == 64


def test_the_digest_is_of_the_meaning() -> None:
    policy = load(EXAMPLE)
    data = yaml.safe_load(EXAMPLE.replace("10s", "10000ms").replace("512MiB", "0.5GiB"))
    assert load(json.dumps(data)).digest == policy.digest
    assert load(EXAMPLE.replace("10s", "11s")).digest != policy.digest
    assert load(EXAMPLE, environment="/srv/other").digest != policy.digest
    assert load(EXAMPLE.replace("[A-Z]", "[A-Y]")).digest != policy.digest


def test_a_stored_policy_has_no_variables_any_more() -> None:
    policy = load('{policy: p, version: 1, rules: [{id: x, effect: deny, tool: "a$${b}", reason: "$${environment}"}]}')
    assert policy.rules[0].reason == "${environment}"
    assert from_canonical(canonical(policy)) == policy


def test_a_variable_stands_for_its_very_text() -> None:
    text = """
policy: p
version: "1.10"
rules:
  - {id: x, effect: allow, tool: "${name}", when: {a: {matches: "${name}+"}}}
"""
    (rule,) = load(text, name="a.*[b]").rules
    assert rule.when[0].value == r"a\.\*\[b\]+"
    policy = load(text, name="a.*[b]")
    assert isinstance(decide([policy], Request("a.*[b]", {"a": "a.*[b]]"}, "r", "g", "d")), Allow)
    assert isinstance(decide([policy], Request("a.xxb", {"a": "a.*[b]]"}, "r", "g", "d")), Deny)


FULL = """
policy: full
version: "2"
layer: graph
graph: [refund, "report*"]
rules:
  - id: read
    effect: allow
    tool: fetch
    labels: {tenant: [acme, beta], env: test}
    time:
      - {zone: Europe/Berlin, days: [mon, fri], from: "09:00", to: "17:30", until: "2027-01-01T00:00:00+01:00"}
      - {from: "22:00", to: "06:00", since: "2026-01-01T00:00:00Z"}
    after: {tool: ["login*"]}
    not_after: {tool: [read_secret], mark: [secret]}
    when:
      host: {host: ["API.example.org.:443", 10.0.0.0/8]}
      page: {url: "https://example.org/a/../docs"}
      line: {command: {program: git, operands: [log, "**"], only_flags: [-n], any_flag: [-n]}, plain: true}
    redact: [token, "items.*.key"]
    marks: [seen]
"""


def test_all_that_a_rule_can_ask_for_and_grant() -> None:
    text = (
        FULL
        + """    match:
      - call:
          graph: refund
          labels: {tenant: beta, env: test}
          at: "2026-01-30T10:00:00+01:00"
          after: {tool: [login_user]}
          args: {host: "https://api.example.org/x", page: "https://example.org/docs/x", line: [git, log, -n, "5"]}
    not_match:
      - call:
          labels: {tenant: beta, env: test}
          at: "2026-01-31T10:00:00+01:00"
          after: {tool: [login_user]}
          args: {host: "https://api.example.org/x", page: "https://example.org/docs/x", line: [git, log, -n]}
      - call: {args: {}, after: {tool: [login_user], mark: [secret]}}
      - call: {args: {}, tool: fetch_all}
      - {host: api.example.org:80}
"""
    )
    policy = load(text)
    assert (policy.layer, policy.graphs) == ("graph", ("refund", "report*"))
    (rule,) = policy.rules
    assert rule.labels == {"tenant": ("acme", "beta"), "env": "test"}
    assert [window.words() for window in rule.time] == [
        "mon, fri 09:00-17:30 Europe/Berlin until 2026-12-31T23:00:00+00:00",
        "22:00-06:00 UTC from 2026-01-01T00:00:00+00:00",
    ]
    assert rule.after == Earlier(("login*",))
    assert rule.not_after == Earlier(("read_secret",), ("secret",))
    assert {(each.field, each.op): each.value for each in rule.when} == {
        ("host", "host"): ["api.example.org:443", "10.0.0.0/8"],
        ("page", "url"): ["https://example.org:443/docs"],
        ("line", "command"): {"program": ["git"], "operands": ["log", "**"], "only_flags": ["-n"], "any_flag": ["-n"]},
        ("line", "plain"): True,
    }
    assert (rule.redact, rule.marks) == (("token", "items.*.key"), ("seen",))
    again = from_canonical(canonical(policy))
    assert again == policy


def test_what_an_ask_and_a_managed_deny_say() -> None:
    policy = load("""
policy: p
version: 1
layer: organisation
rules:
  - {id: large, effect: ask, tool: pay, deadline: 2d, on_timeout: escalate}
  - {id: never, effect: deny, tool: "*", labels: {tenant: closed}, managed: true}
""")
    large, never = policy.rules
    assert (policy.layer, large.deadline_s, large.on_timeout, never.managed) == (
        "organisation",
        172800,
        "escalate",
        True,
    )
    assert from_canonical(canonical(policy)) == policy


def test_what_nothing_enforces_is_refused_until_something_does() -> None:
    granting = 'network: [API.example.org:443, "10.0.0.1:80"], secrets: [token]'
    text = f"{{policy: p, version: 1, rules: [{{id: x, effect: allow, tool: t, {granting}}}]}}"
    with pytest.raises(PolicyError, match="nothing enforces it yet"):
        load_policy(text, source="demo.yaml", enforced=ENFORCED - {"network"})
    assert load(text.replace(granting, "network: [], secrets: []")).rules[0].network == ()
    policy = load(text)
    assert (policy.rules[0].network, policy.rules[0].secrets) == (("api.example.org:443", "10.0.0.1:80"), ("token",))
    assert from_canonical(canonical(policy)) == policy
    with pytest.raises(PolicyError, match="cannot be granted"):
        from_canonical(canonical(policy), ENFORCED - {"secrets"})


def test_a_failing_example_says_which_rule_decides_instead() -> None:
    said = problems("""
policy: p
version: 1
rules:
  - id: small
    effect: allow
    tool: pay
    when: {amount: {le: 100}}
    match: [{amount: 50}, {amount: 500}]
  - id: large
    effect: ask
    tool: pay
    when: {amount: {gt: 100}}
    match:
      - {amount: 1}
      - call: {args: {amount: 700}, tool: refund}
""")
    assert said == [
        "demo.yaml:9: rule 'small': match.1: {'amount': 500} should fit and does not: 'amount' should be le 100: it is "
        "500; instead, rule 'large' decides: ask",
        "demo.yaml:15: rule 'large': match.0: {'amount': 1} should fit and does not: 'amount' should be gt 100: it is "
        "1; instead, rule 'small' decides: allow",
        "demo.yaml:16: rule 'large': match.1: {'amount': 700} should fit and does not: it is about tool 'pay', this is "
        "'refund'; instead, the lack of a rule that fits decides: deny",
    ]


# What is wrong.


def test_every_problem_is_told_at_once_with_file_rule_field_value_and_remedy() -> None:
    text = """
policy: my policy
version: 1.10
rulez: []
rules:
  - id: a
    efect: allow
    tool: t
  - id: a
    effect: alow
    tool: []
    when: {path: {underr: /x}, n: {gt: "5"}, s: {matches: "("}, p: {under: relative}}
    files: {read: [data], wirte: [/x]}
    limits: {wall: 10 parsecs, memory: -1, processes: 1.5, disk: true}
  - tool: true
    effect: deny
    limits: {wall: 1s}
  - just text
"""
    assert problems(text) == [
        "demo.yaml:4: rulez: there is no such key; did you mean 'rules'?",
        "demo.yaml:2: policy: 'my policy' is no name; write up to 64 letters, digits, '.', '_' or '-', in "
        "quotes if need be",
        "demo.yaml:3: version: 1.1 is no version; give a whole number, or text in quotes",
        "demo.yaml:7: rule 'a': efect: there is no such key; did you mean 'effect'?",
        "demo.yaml:6: rule 'a': the key 'effect' is missing; add it",
        "demo.yaml:10: rule 'a': effect: 'alow' is no effect; write one of allow, ask, deny; did you mean 'allow'?",
        "demo.yaml:13: rule 'a': files.wirte: there is no such key; did you mean 'write'?",
        "demo.yaml:11: rule 'a': tool: [] names none; write a name, a glob or a list of them, in quotes if need be",
        "demo.yaml:12: rule 'a': when.path.underr: there is no such key; did you mean 'under'?",
        "demo.yaml:12: rule 'a': when.n.gt: '5' is no number; write one, without quotes",
        "demo.yaml:12: rule 'a': when.s.matches: '(' is no regular expression: missing ), unterminated "
        "subpattern at position 0",
        "demo.yaml:12: rule 'a': when.p.under: 'relative' is no absolute path; begin it with / (or with a "
        "variable that does)",
        "demo.yaml:13: rule 'a': files.read: 'data' is no absolute path; begin it with / (or with a variable "
        "that does)",
        "demo.yaml:14: rule 'a': limits.wall: '10 parsecs' is no duration; write e.g. 500ms, 10s, 2m, 1h, 2d "
        "or a number of seconds, 30 days at most",
        "demo.yaml:14: rule 'a': limits.memory: -1 is no size; write e.g. 64KiB, 512MiB, 1GiB or a number of "
        "bytes, 100TiB at most",
        "demo.yaml:14: rule 'a': limits.processes: 1.5 is no count that can be kept; write a whole number "
        "from 1 to 1000000",
        "demo.yaml:14: rule 'a': limits.disk: True is no size; write e.g. 64KiB, 512MiB, 1GiB or a number of "
        "bytes, 100TiB at most",
        "demo.yaml:15: rule no. 3: the key 'id' is missing; add it",
        "demo.yaml:17: rule no. 3: limits: a deny rule grants nothing; leave it out, or write an allow rule",
        "demo.yaml:15: rule no. 3: tool: True names none; write a name, a glob or a list of them, in quotes if need be",
        "demo.yaml:18: rule no. 4: 'just text' is no mapping; write 'key: value' pairs with the keys id, "
        "effect, tool, graph, labels, time, after, not_after, when, files, limits, tier, workspace, network, secrets, "
        "marks, cost, redact, deadline, on_timeout, managed, reason, alternative, match, not_match",
        "demo.yaml:5: rules: the id 'a' is there 2 times; give every rule its own",
    ]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ('files: {read: ["${enviroment}/a"]}', "'${enviroment}' is not known; did you mean 'environment'?"),
        ('reason: "${environment"', "'${environment' is not known"),
        ('reason: "${HOME}"', "given are: environment; for the text itself write $${"),
        ('files: {read: ["${environment}/../.."]}', "goes up with '..'"),
        ("files: {read: /data}", "'/data' is no list of paths"),
        ("files: [/data]", "is no mapping; write 'key: value' pairs with the keys read, write"),
        ("tier: zygot", "'zygot' is no tier; write one of landlock, zygote, cold, gvisor; did you mean 'zygote'?"),
        ("tier: 2", "2 is no tier"),
        ("limits: {wall: 0}", "0 is no duration that can be kept"),
        ("limits: {wall: 31000h}", "30 days at most"),
        ("limits: {memory: 10mb}", "'10mb' is no size"),
        ("limits: {memory: 0.5}", "0.5 is no size that can be kept"),
        ("when: {a: 5}", "5 is no mapping; write 'key: value' pairs with the keys eq, ne, in"),
        ("when: {a: {}}", "{} says nothing"),
        ("when: {a..b: {eq: 1}}", "'a..b' names no argument"),
        ("when: {a: {in: EUR}}", "'EUR' is no list of values"),
        ("when: {a: {exists: 1}}", "1 is neither true nor false"),
        ("when: {a: {under: []}}", "over nothing"),
        ("when: {a: {gt: true}}", "True is no number"),
        (f"when: {{a: {{matches: {'a' * 600}}}}}", "it has 600 characters, and 512 are the most"),
        ("reason: 5", "5 is read as a number, not as text; put it in quotes"),
        ('graph: "shop "', "'shop ' begins or ends with a blank"),
        ('graph: ["a", "sh\\uFEFFop"]', "holds '\\ufeff', which nobody sees"),
        ('labels: {tenant: "acme\\n"}', "begins or ends with a blank"),
        ('labels: {tenant: ["a\\u200Bb"]}', "holds '\\u200b', which nobody sees"),
        ('labels: {"tenant ": a}', "labels.tenant : 'tenant ' begins or ends with a blank"),
        ('files: {read: ["/data "]}', "begins or ends with a blank"),
        ('when: {a: {under: "/da\\u00ADta"}}', "holds '\\xad', which nobody sees"),
        ('when: {a: {command: {program: "git\\t"}}}', "begins or ends with a blank"),
        ('after: {tool: " read"}', "begins or ends with a blank"),
        ("labels: {env: true}", "True is read as true or false, not as text; put it in quotes"),
        ("match: {a: 1}", "is no list; write a list of arguments"),
        ("time: {}", "{} says nothing"),
        ("time: {from: 630}", '630 is no time of day; write e.g. "09:30", in quotes'),
        ('time: {from: "25:00"}', "'25:00' is no time of day"),
        ('time: {from: "09:00", to: "09:00"}', "ends when it begins"),
        ("time: {days: [monday]}", "['monday'] are no days; write some of mon, tue"),
        ("time: {zone: Mars/Olympus}", "no time zone 'Mars/Olympus' is known here; write e.g. UTC or Europe/Berlin"),
        ('time: {since: "2026-01-31"}', "'2026-01-31' is no moment; write e.g."),
        ('time: {since: "2026-02-01T00:00:00Z", until: "2026-01-01T00:00:00Z"}', "exchange them"),
        ("after: {}", "names nothing; write e.g. {tool:"),
        ("after: {tols: [a]}", "there is no such key; did you mean 'tool'?"),
        ("labels: {env: []}", "is no list of texts"),
        ("when: {a: {host: '127.1'}}", "'127.1' names no host: '127.1' is an address in an odd spelling"),
        ("when: {a: {host: 5}}", "5 is no list of texts"),
        ("when: {a: {url: example.org}}", "'example.org' names no url: it has no scheme"),
        ("when: {a: {command: {}}}", "{} says nothing; write e.g. {program: git}"),
        ("when: {a: {command: git}}", "is no mapping; write 'key: value' pairs with the keys program, operands"),
        ("when: {a: {command: {program: sudo}}}", "'sudo' starts other commands, so no line with it can be judged"),
        ('when: {a: {command: {operands: ["**", a]}}}', "'**' stands for all that follows; write it last"),
        ("when: {a: {plain: 1}}", "1 is neither true nor false"),
        ("redact: [a..b]", "'a..b' names no argument"),
        ("marks: [a b]", "'a b' is no name"),
        ("deadline: 5s", "nobody is asked by a rule that says allow"),
        ("on_timeout: deny", "nobody is asked by a rule that says allow"),
        ("managed: true", "a rule that says allow cannot be managed"),
        ("match: [{call: {args: {}, at: noon}}]", "match.0.call.at: 'noon' is no moment"),
        (
            "when: {a: {lt: 5}}, match: [{a: 3}, {a: 7}]",
            "match.1: {'a': 7} should fit and does not: 'a' should be lt 5",
        ),
        ("when: {a: {lt: 5}}, not_match: [{a: 3}]", "not_match.0: {'a': 3} should not fit and does"),
    ],
)
def test_what_cannot_work_is_refused_with_a_remedy(rule: str, words: str) -> None:
    said = problem(rule)
    assert said.startswith("demo.yaml:1: rule 'x': ")
    assert words in said


def test_a_policy_for_graphs_names_them() -> None:
    for head in ("layer: graph", "graph: refund", "layer: run, graph: refund"):
        (said,) = problems(f"{{policy: p, version: 1, {head}, rules: []}}")
        assert "write both 'layer: graph' and 'graph: NAME', or neither" in said


def test_a_deadline_that_never_comes_has_no_end() -> None:
    assert "it never comes without a deadline" in problem("on_timeout: escalate", "ask")
    assert "a deny rule grants nothing" in problem("marks: [x]", "deny")


def test_a_host_is_granted_with_its_port() -> None:
    for host in ("a.example", "10.0.0.0/8"):
        said = problems(f"{{policy: p, version: 1, rules: [{{id: x, effect: allow, tool: t, network: [{host}]}}]}}")
        assert f"'{host}' is no place to go: it names no port; write e.g. api.example.org:443" in said[-1]


def test_an_example_that_cannot_be_judged_is_no_match_and_no_safe_miss() -> None:
    assert "should fit and does not" in problem('when: {a: {gt: 5}}, match: [{a: "9"}]', "deny")
    assert "should not fit and does" in problem('when: {a: {gt: 5}}, not_match: [{a: "9"}]', "deny")


# What two readers could read differently.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: a\npolicy: b", "line 2: the key 'policy' is there twice"),
        ('{"policy": "a", "policy": "b"}', "the key 'policy' is there twice"),
        ("a: &x [1]\nb: *x", "line 1: anchors and aliases"),
        ("a: {<<: {b: 1}}", "the key '<<' is not text"),
        ("1: a", "line 1: the key '1' is not text"),
        ("? [a]\n: b", "is not text"),
        ("a: 2024-01-01", "a: '2024-01-01' is read as a date; put it in quotes"),
        ("a: !!set {b: null}", "is read as a set"),
        ("a: no", "line 1: 'no' is not the same to every reader of YAML; put it in quotes"),
        ("b: 1\na: [Off]", "line 2: 'Off' is not the same"),
        ("a: {yes: 1}", "'yes' is not the same"),
        ("a: 010", "'010' is not the same"),
        ("a: 08", "'08' is not the same"),
        ("a: 0o17", "'0o17' is not the same"),
        ("a: 0b11", "'0b11' is not the same"),
        ("a: 1_000", "'1_000' is not the same"),
        ("a: 10:30", "'10:30' is not the same"),
        ("a: 1:30.5", "'1:30.5' is not the same"),
        ("a: 1e3", "'1e3' is not the same"),
        ("a: -.5", "'-.5' is not the same"),
        ("a:\nb: 1", "line 1: there is nothing where a value should be; write it, or null"),
        ("a: [1, {b}]", "line 1: there is nothing where a value should be"),
        ("a: !!python/object/apply:os.system [x]", "it is no YAML"),
        ('a: !!int ""', "it is no YAML"),
        ("a: !!bool x", "it is no YAML"),
        ("a: .nan", "a: nan is no number"),
        ('{"a": NaN}', "a: nan is no number"),
        ('{"a": "\\ud800"}', "half a character"),
        ("a: 0x" + "f" * 900, "3600 bits"),
        ("a: 1" + ":1" * 300_000, "line 1: a number of 600001 characters, 1:1:1:1:1:1:1:1:1:1:...; 1000 are the most"),
        ("a:\n- !!int '" + "1" * 5000 + "'", "line 2: a number of 5000 characters"),
        ('{"a": ' + "1" * 600_000 + "}", "line 1: a number of 600000 characters"),
        ("a: [", "it is no YAML: line 1, column 5: while parsing a flow node, "),
        ("policy: a\n  version: 1", "it is no YAML: line 2, column 10: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "it is no YAML"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 32 levels"),
        ('{"a": ' + "[" * 100000 + "]" * 100000 + "}", "nested deeper than 32 levels"),
        ("a" * (1024 * 1024 + 1), "it has 1048577 bytes, and 1048576 are the most"),
        ("\0", "it is no YAML"),
        ("a: 1\n# a note\u2028b: 2", "line 2: it holds '\\u2028', which hides from people what is read"),
        ("a: 1 # a note\x85b: 2", "line 1: it holds '\\x85'"),
        ("a: 1 #\u202e: b", "line 1: it holds '\\u202e'"),
    ],
)
def test_ambiguous_text_is_refused(text: str, words: str) -> None:
    (only,) = problems(text)
    assert only.startswith("demo.yaml: ")
    assert words in only


def test_text_may_be_as_long_as_no_number() -> None:
    digits, words = "1" * 5000, "a word and " * 500
    assert problems(f"policy: a\nversion: 1\nrules: []\nx: '{digits}'\ny: {words}") == problems(
        "policy: a\nversion: 1\nrules: []\nx: x\ny: y"
    )


def test_what_is_the_same_to_every_reader_is_read() -> None:
    plain = "[true, False, null, ~, 0, -7, +7, 0x1F, 1.5, 1.0e+3, -0.5, 1.2.3, 09:30x, nobody]"
    values = [True, False, None, None, 0, -7, 7, 31, 1.5, 1000.0, -0.5, "1.2.3", "09:30x", "nobody"]
    assert read_yaml(plain) == values
    assert read_yaml("[!!str no, !!str 1e3, 'no', \"010\", '']") == ["no", "1e3", "no", "010", ""]
    assert read_yaml('\ufeffa: "\\u2028"') == {"a": "\u2028"}, (
        "a mark of the byte order, and what is written to be seen"
    )


def test_a_bomb_does_not_go_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "anchors and aliases" in problems("\n".join(lines))[0]


def test_variables_cannot_make_a_policy_too_large_to_be_stored() -> None:
    text = json.dumps(
        {"policy": "p", "version": 1, "rules": [{"id": "x", "effect": "deny", "tool": "t", "reason": "${v}" * 300}]}
    )
    with pytest.raises(PolicyError, match="with variables replaced it has 12"):
        load(text, v="y" * 4096)


# Whatever comes in.

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["${a}", "/x", "10s", "allow"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        key: JSON_VALUES
        | st.dictionaries(st.sampled_from(["a", "read", "write", "wall", "memory"]), JSON_VALUES, max_size=3)
        | st.dictionaries(st.just("a"), st.dictionaries(st.sampled_from(OPS), JSON_VALUES, max_size=3))
        | st.lists(st.dictionaries(st.just("a"), JSON_VALUES), max_size=3)
        | st.dictionaries(
            st.sampled_from(["tool", "mark", "from", "to", "zone", "days", "since"]), JSON_VALUES, max_size=3
        )
        | st.sampled_from(["allow", "ask", "deny", "x", ["x"], "09:00", "escalate", True, "2026-01-31T12:00:00+01:00"])
        for key in RULE_KEYS
    },
)
AMOUNTS = st.dictionaries(
    st.sampled_from(["calls", "seconds", "bytes", "tokens", "money", "wall"]),
    JSON_VALUES | st.sampled_from([1, "2", "0.001ms", "3GiB", 1e-9, "1e5"]),
    max_size=3,
)
BUDGETS = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "b"]), "scope": st.sampled_from(["run", "tenant"]), "limits": AMOUNTS},
    optional={
        "label": JSON_VALUES,
        "per": st.sampled_from(["day", "x", None]),
        "at_limit": st.sampled_from(["ask", "degrade"]),
        "degrade": st.fixed_dictionaries({}, optional={"deny": JSON_VALUES, "limits": AMOUNTS}),
    },
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "policy": JSON_VALUES | st.just("p"),
        "version": JSON_VALUES,
        "rules": st.lists(RULES, max_size=3),
        "budgets": st.lists(BUDGETS, max_size=2) | JSON_VALUES,
    },
)


def reads_or_refuses(text: str) -> None:
    try:
        policy = load_policy(text, source="demo.yaml", variables={"a": "/a"})
    except PolicyError as error:
        policy, said = None, str(error)
    if policy is None:
        assert re.match(r"demo\.yaml(:[0-9]+)?: ", said)
        return
    assert from_canonical(canonical(policy)) == policy


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    reads_or_refuses(text)


@given(FILES | JSON_VALUES)
def test_any_data_is_read_or_refused(data: Any) -> None:
    reads_or_refuses(json.dumps(data))
    reads_or_refuses(yaml.safe_dump(data, allow_unicode=True))


@given(
    st.integers(0, len(EXAMPLE)),
    st.integers(0, 12),
    st.text(alphabet="${}[]:,&*!?|>-#'\"\\ \n\t0aé\0\x85\ufeff%@`<=~", max_size=6),
)
def test_a_broken_file_is_read_or_refused(place: int, cut: int, junk: str) -> None:
    reads_or_refuses(EXAMPLE[:place] + junk + EXAMPLE[place + cut :])


@given(
    st.integers(0, len(EXAMPLE)),
    st.integers(0, 60),
    st.text(alphabet="${}]:,&!|>-#'\"\\ \n\t0aé\0%@`<=~", max_size=12),
)
def test_no_damage_to_a_file_allows_what_it_does_not_name(place: int, cut: int, junk: str) -> None:
    damaged = EXAMPLE[:place] + junk + EXAMPLE[place + cut :]
    try:
        policy = load(damaged)
    except PolicyError:
        return
    for args in ({}, {"path": "/srv/env/x", "depth": 0}):
        assert not isinstance(decide([policy], Request("delete", args, "r", "shop", "d", {"env": "prod"})), Allow)


RULE_VALUES: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"effect": st.sampled_from(["allow", "ask"]), "tool": st.sampled_from(["t", ["a", "b*"]])},
    optional={
        "when": st.dictionaries(
            st.sampled_from(["a", "b.c", "d.0"]),
            st.fixed_dictionaries(
                {"ne": JSON_VALUES},
                optional={
                    "lt": st.integers(-(2**63), 2**63),
                    "under": st.just(["/a/", "//b"]),
                    "exists": st.booleans(),
                },
            ),
            max_size=3,
        ),
        "files": st.just({"read": ["/a/./b", "/c/"]}),
        "limits": st.fixed_dictionaries({"wall": st.floats(0.001, 86400), "memory": st.integers(1, 2**46)}),
        "graph": st.just("g*"),
        "cost": st.just({"tokens": {"most": 3, "told": "usage.0.n"}, "money": "0.000000001"}) | AMOUNTS,
    },
)


@given(st.lists(RULE_VALUES, max_size=4), st.lists(BUDGETS, max_size=2))
def test_a_policy_survives_being_stored(rules: list[dict[str, Any]], budgets: list[dict[str, Any]]) -> None:
    listed = [{"id": f"r{n}", **rule} for n, rule in enumerate(rules)]
    reads_or_refuses(json.dumps({"policy": "p", "version": "1", "rules": listed, "budgets": budgets}))


def test_lines_are_looked_for_as_long_as_somebody_reads_them() -> None:
    """Each looks through the file: eighty thousand unknown keys took minutes."""
    with pytest.raises(PolicyError) as caught:
        load_policy("\n".join(f"k{number}: 1" for number in range(300)), source="p.yaml")
    lines = [problem.line for problem in caught.value.problems]
    assert all(lines[:50])
    assert not any(lines[100:])
