"""Secrets: a file that only its owner reads, what a tool gets of it, and that nothing it says shows one."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from understudy import END, START, Context, Graph, secret, tool
from understudy.actors.entrusted import entrust
from understudy.actors.errors import RunFailed
from understudy.actors.memory import MemoryStore
from understudy.actors.outcome import Outcome
from understudy.actors.secret import NoSuchSecret
from understudy.actors.secret_file import SecretFile, SecretsUnusable
from understudy.actors.secret_traces import SHORTEST, Traces
from understudy.policies.hosts import read_target
from understudy.policies.profile import Limits, Profile

VALUE = 'pa55"w/rd+é\\=='


def written(folder: Path, text: str, name: str = "secrets.yaml", mode: int = 0o600) -> SecretFile:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return SecretFile(str(path))


FILE = """
github:
  {value: "ghp_0123456789", hosts: ["api.github.com", "http://127.0.0.1:8080"], header: X-Token, template: "t {value}"}
signing: {file: "%s"}
"""


def test_a_grant_gets_what_it_names_and_in_the_way_the_file_says(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("signing-key\n")
    key.chmod(0o600)
    secrets = written(tmp_path, FILE % key)
    way_out = entrust(secrets, Profile(secrets=("github", "signing")), "r").way_out
    assert way_out.given == {"signing": "signing-key"}
    assert list(way_out.kept_back) == ["github"]
    first, second = way_out.injections
    assert (first.header, first.value, first.tls, str(first.host)) == (
        "X-Token",
        "t ghp_0123456789",
        True,
        "api.github.com:443",
    )
    assert (second.tls, str(second.host)) == (False, "127.0.0.1:8080")
    assert not first.host.fits(read_target("api.github.com:80"))
    assert entrust(secrets, Profile(), "r").way_out.injections == []
    assert "ghp_0123456789" not in repr((way_out, secrets.secrets()))
    assert "signing-key" not in repr((way_out, secrets.secrets()))


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    secrets = written(tmp_path, "{}")
    with pytest.raises(SecretsUnusable, match=r"names the secret 'a', which this deployment does not have"):
        secrets.named(["a"])
    written(tmp_path, "a: {value: long enough}")
    assert secrets.named(["a"])[0].value() == "long enough"


def test_toml_and_json_are_read_too(tmp_path: Path) -> None:
    assert written(tmp_path, '[a]\nvalue = "long enough"', "s.toml").named(["a"])[0].value() == "long enough"
    assert written(tmp_path, '{"a": {"value": "long enough"}}', "s.json").named(["a"])[0].value() == "long enough"


def test_without_a_file_a_grant_says_what_to_set() -> None:
    with pytest.raises(SecretsUnusable, match=r"UNDERSTUDY_SECRETS is unset"):
        SecretFile(None).named(["a"])
    assert SecretFile(None).named([]) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretsUnusable, match=f"can be read by others .mode {mode:04o}.; chmod 600"):
        written(tmp_path, "a: {value: long enough}", mode=mode).secrets()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "no YAML"),
        ("- a", "holds no names"),
        ("a b: {value: s3cr3t-value}", "no rule can grant"),
        ("a: s3cr3t-value", "is no mapping"),
        ("a: {value: s3cr3t-value, other: 1}", "is no mapping"),
        ("a: {}", "needs one of value, file and env"),
        ("a: {value: s3cr3t-value, file: b}", "needs one of"),
        ("a: {value: 12345678}", "as text"),
        ("a: {value: s3cr3t-value, hosts: x}", "hosts that are no list"),
        ("a: {value: s3cr3t-value, hosts: ['*:443']}", "hosts that are named"),
        ("a: {value: s3cr3t-value, hosts: ['10.0.0.0/8']}", "hosts that are named"),
        ("a: {value: s3cr3t-value, hosts: ['ftp://b']}", "neither http nor https"),
        ("a: {value: s3cr3t-value, header: 'A: b'}", "cannot be sent"),
        ("a: {value: s3cr3t-value, header: Host}", "cannot be sent"),
        ("a: {value: s3cr3t-value, template: x}", "without {value}"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_its_values(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(SecretsUnusable) as caught:
        written(tmp_path, text).secrets()
    assert why in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("value", ["short", "two\\nlines here", ""])
def test_a_value_that_cannot_be_used_is_refused(tmp_path: Path, value: str) -> None:
    secrets = written(tmp_path, f'a: {{value: "{value}", hosts: [b.example]}}')
    with pytest.raises(SecretsUnusable, match="the secret 'a' "):
        entrust(secrets, Profile(secrets=("a",)), "r")


# --- what a tool says ------------------------------------------------------------------------------------------------

TRACES = Traces({"key": VALUE, "longer": VALUE + "-and-more"})


@pytest.mark.parametrize(
    "shown",
    [
        VALUE,
        repr(VALUE),
        json.dumps({"a": VALUE}),
        json.dumps(json.dumps({"a": VALUE})),
        json.dumps(VALUE, ensure_ascii=False),
        f"https://h/?a={quote(VALUE)}&b",
        quote(VALUE, safe=""),
        base64.b64encode(VALUE.encode()).decode(),
        base64.b64encode(f"user:{VALUE}".encode()).decode(),
        base64.b64encode(f"u:{VALUE}:x".encode()).decode(),
        base64.urlsafe_b64encode(f"us:{VALUE}".encode()).decode(),
        VALUE.encode().hex(),
    ],
)
def test_a_secret_is_found_in_the_forms_in_which_it_comes_out(shown: str) -> None:
    told = TRACES.text(f"before {shown} after")
    assert "[secret key]" in told
    assert told.startswith("before ")
    assert told.endswith(" after")
    assert "pa55" not in told


def test_a_longer_secret_is_not_taken_for_the_one_in_it() -> None:
    assert TRACES.text(f"{VALUE}-and-more") == "[secret longer]"


def test_results_are_searched_whole() -> None:
    traces = Traces({"n": "1234567890", "k": "s3cret-value"})
    told = traces.value({"s3cret-value": [1234567890, 5, True, None, 1.5, {"a": "xs3cret-valuex"}]})
    assert told == {"[secret k]": ["[secret n]", 5, True, None, 1.5, {"a": "x[secret k]x"}]}


def test_what_was_cut_off_in_the_middle_of_a_secret_is_found() -> None:
    traces = Traces({"k": "s3cret-value"})
    limits = (20, 20)
    outcome = Outcome("output_too_large", error="it holds s3cret-va...", printed="ret-value and the rest")
    assert traces.outcome(outcome, *limits).printed == "[secret k] and the rest"
    ended = Outcome("error", error="x" * 11 + "s3cret-va", printed="printed s3cret-val")
    told = traces.outcome(ended, *limits)
    assert (told.error, told.printed) == ("x" * 11 + "[secret k]", "printed [secret k]")


@given(st.text(min_size=SHORTEST, alphabet=st.characters(blacklist_categories=("Cs",))), st.text(), st.text())
def test_no_text_shows_a_secret(value: str, before: str, after: str) -> None:
    traces = Traces({"it": value})
    if value not in "[secret it]":
        assert traces.text(before + value + after).count(value) <= (before + "[secret it]" + after).count(value)


# --- in a run --------------------------------------------------------------------------------------------------------


class State(BaseModel):
    said: str = ""


@tool
def uses(how: str) -> str:
    value = secret("key")
    print("has", value)
    if how == "raise":
        raise ValueError(f"no good: {value}")
    return f"used {value}" if how == "return" else str(len(value))


graph = Graph("secretive", State, version="1")


@graph.node
async def only(state: State, ctx: Context) -> dict[str, Any]:
    return {"said": await ctx.call(uses, how=state.said)}


graph.edge(START, "only").edge("only", END)


def test_run_inline_gives_secrets_and_records_none() -> None:
    store = MemoryStore()
    assert graph.run_inline({"said": "use"}, secrets={"key": VALUE}).said == str(len(VALUE))
    assert graph.run_inline({"said": "return"}, secrets={"key": VALUE}, store=store).said == "used [secret key]"
    with pytest.raises(RunFailed, match=r"no good: \[secret key\]"):
        graph.run_inline({"said": "raise"}, secrets={"key": VALUE})
    with pytest.raises(RunFailed, match=r"run_inline was given no secret 'key'; call it with secrets="):
        graph.run_inline({"said": "use"})


def test_elsewhere_there_are_none() -> None:
    with pytest.raises(NoSuchSecret, match="only inside a tool's call"):
        secret("key")


def test_the_limits_of_a_call_say_what_was_cut() -> None:
    assert entrust(SecretFile(None), Profile(limits=Limits(output_bytes=5)), "r").limits.output_bytes == 5
