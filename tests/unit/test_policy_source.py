"""The deployment's policies change without a restart; what cannot be used changes nothing, and says so."""

import os
import pickle
from pathlib import Path

import pytest

from understudy.actors.policy_source import DeploymentPolicies, PoliciesUnusable, read_policies, source_of

SECRET = b"0123456789abcdef0123456789abcdef"


def text(effect: str, name: str = "shop", more: str = "", version: str = "1") -> str:
    return f"{{policy: {name}, version: {version}, {more} rules: [{{id: r, effect: {effect}, tool: pay}}]}}"


def effects(policies: DeploymentPolicies) -> list[str]:
    return [layer.rules[0].effect for layer in policies.layers]


def looked(policies: DeploymentPolicies) -> list[str]:
    """After two looks: a change has to come to rest."""
    policies.look()
    policies.look()
    return effects(policies)


def test_a_change_is_taken_up_once_it_is_at_rest(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))
    policies = DeploymentPolicies(source_of(file))
    assert effects(policies) == looked(policies) == ["allow"]
    file.write_text(text("deny", version="2"))
    policies.look()
    assert effects(policies) == ["allow"]  # it might still be being written
    policies.look()
    assert effects(policies) == ["deny"]
    (layer,) = policies.report()["layers"]
    assert (layer["policy"], layer["version"], len(layer["digest"])) == ("shop", "2", 64)
    assert policies.source == source_of(file)
    other = tmp_path / "other"
    other.write_text(text("ask"))
    os.utime(other, (1, 1))
    other.rename(file)  # as careful editors do; its time is older than that of the file it replaces
    assert looked(policies) == ["ask"]


def test_a_file_that_goes_on_changing_is_not_read_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))
    policies = DeploymentPolicies(source_of(file))
    looked(policies)
    for length in range(5, 60, 5):  # what is there at first is a policy without the rule that denies
        file.write_text(text("deny") + "\n" * length)
        policies.look()
        assert effects(policies) == ["allow"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("rules: [", "it is no YAML"),
        (text("alow"), "'alow' is no effect"),
        (None, "No such file or directory"),
        ("folder", "there is no policy in this folder"),
    ],
)
def test_what_cannot_be_used_changes_nothing_and_says_so(tmp_path: Path, broken: str | None, words: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("deny"))
    policies = DeploymentPolicies(source_of(file))
    looked(policies)
    file.unlink()
    if broken == "folder":
        file.mkdir()
    elif broken is not None:
        file.write_text(broken)
    assert looked(policies) == ["deny"]
    assert words in policies.problem
    assert str(file) in policies.problem
    assert "the policies from before are still in force" in policies.report()["problem"]
    with pytest.raises(PoliciesUnusable, match=words.replace("(", "\\(")):
        read_policies(file)
    if broken == "folder":
        file.rmdir()
    file.write_text(text("ask"))
    assert looked(policies) == ["ask"]
    assert policies.problem == ""


def test_one_that_starts_anew_beside_a_broken_file_goes_on_with_what_was_last_in_force(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text("allow"))
    source = source_of(file)
    file.write_text(text("deny"))
    policies = DeploymentPolicies(pickle.loads(pickle.dumps(source)))
    assert effects(policies) == ["deny"]  # the file counts, not what was handed in
    file.write_text("no policy")
    again = DeploymentPolicies(policies.source)
    assert effects(again) == ["deny"]
    assert "no policy" in again.problem


def test_a_folder_holds_a_file_for_each_layer(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("allow", "shop", "layer: graph, graph: refund,"))
    (tmp_path / "b.yml").write_text(text("ask", "all"))
    (tmp_path / "c.JSON").write_text(text("deny", "org", "layer: organisation,"))
    (tmp_path / "notes.txt").write_text("no policy")
    (tmp_path / ".b.yml.swp").write_text("no policy")
    policies = DeploymentPolicies(source_of(tmp_path))
    assert [layer.name for layer in policies.layers] == ["org", "all", "shop"]
    (tmp_path / "c.JSON").unlink()
    looked(policies)
    assert [layer.name for layer in policies.layers] == ["all", "shop"]
    (tmp_path / "d.yaml").write_text(text("deny", "all"))
    looked(policies)
    assert [layer.name for layer in policies.layers] == ["all", "shop"]
    assert "2 policies are named 'all'" in policies.problem


def test_without_a_path_runs_bring_their_own() -> None:
    policies = DeploymentPolicies(source_of(None))
    assert looked(policies) == []
    assert policies.report() == {"path": "", "layers": [], "problem": ""}
