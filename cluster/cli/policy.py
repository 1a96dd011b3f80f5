"""Commands about policies: check a file, and explain what it says to one call."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import CallerError
from understudy.cluster.cli.command import (
    Here,
    Json,
    WrongUsage,
    app,
    command,
    parse_json,
    parse_pairs,
    print_json,
    stdout,
)
from understudy.cluster.cli.view import plain_table

if TYPE_CHECKING:
    from understudy.policies.permission import Allow, Ask, Deny, Policy

policies = typer.Typer(no_args_is_help=True, help="Check a policy file; explain its word on a call.")
app.add_typer(policies, name="policy", rich_help_panel="This machine")

Var = Annotated[list[str] | None, typer.Option("--var", metavar="K=V", help="A variable of the file; repeatable.")]
COLOURS: Mapping[str, str] = {"allow": "green", "ask": "yellow", "deny": "red"}


def read_policy(path: Path, variables: Mapping[str, str]) -> "Policy":
    """Raises CallerError with everything that is wrong in the file."""
    from understudy.policies.policy_file import PolicyError, load_policy

    try:
        return load_policy(path.read_text(), source=str(path), variables=variables)
    except OSError as error:
        raise CallerError(f"policy {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CallerError(f"policy {path} cannot be read: it is no text ({error.reason})") from None
    except PolicyError as error:
        raise CallerError(str(error)) from None


@command(policies)
async def check(
    here: Here,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    var: Var = None,
    as_json: Json = False,
) -> None:
    """Say everything that is wrong with a policy file; or that nothing is.

    Example:
    [bold]understudy policy check policy.yaml --var environment=/srv/app[/]
    """
    policy = read_policy(file, parse_pairs(var or [], "--var"))
    if as_json:
        rules = [{"id": rule.id, "effect": rule.effect, "tools": list(rule.tools)} for rule in policy.rules]
        print_json({"policy": policy.name, "version": policy.version, "digest": policy.digest, "rules": rules})
        return
    screen = stdout()
    screen.print(Text(f"{file}: good", "green").append(f"  policy {policy.name!r}, version {policy.version}", ""))
    table = plain_table("RULE", "EFFECT", "TOOLS")
    for rule in policy.rules:
        table.add_row(rule.id, Text(rule.effect, COLOURS[rule.effect]), ", ".join(rule.tools))
    screen.print(table)


@command(policies)
async def explain(
    here: Here,
    tool: Annotated[str, typer.Option(metavar="T", help="Name of the tool.")],
    args: Annotated[str, typer.Option(metavar="JSON", help="Arguments of the call.")] = "{}",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run's policy; default: only the deployment's.")
    ] = None,
    graph: Annotated[str, typer.Option(metavar="G", help="Name of the graph that would call.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label of the run; repeatable.")] = None,
    var: Var = None,
    as_json: Json = False,
) -> None:
    """What would be decided on a call, and what each rule says to it. Nothing is executed.

    Example:
    [bold]understudy policy explain --tool pay --args '{"amount": 120}' --policy policy.yaml[/]
    """
    from understudy.policies.permission import Request, decide
    from understudy.policies.permission import explain as steps_of

    values = parse_json(args, "--args", {"amount": 120})
    if not isinstance(values, dict):
        raise WrongUsage("--args has to be a JSON object, one member per argument")
    variables = parse_pairs(var or [], "--var")
    files = [file for file in (here.settings.policy, policy) if file is not None]
    if not files:
        raise WrongUsage("there is no policy; name one with --policy FILE, or set UNDERSTUDY_POLICY")
    layers = [read_policy(file, variables) for file in files]
    request = Request(
        tool=tool, args=values, run_id="", graph=graph, digest="", labels=parse_pairs(label or [], "--label")
    )
    decision, steps = decide(layers, request), steps_of(layers, request)
    document = _document(decision)
    if as_json:
        print_json({**document, "steps": [asdict(step) for step in steps]})
        return
    screen = stdout()
    word = document["decision"]
    text = Text(word, f"bold {COLOURS[word]}").append(f"  {document['reason']}" if document["reason"] else "", "")
    screen.print(text, soft_wrap=True)
    if word != "deny":
        screen.print(Text(_profile_line(document["profile"]), "dim"), soft_wrap=True)
    for step in steps:
        mark = Text("  fits  " if step.matched else "        ", COLOURS[step.effect])
        screen.print(mark.append(f"{step.effect:<6}{step.policy}/{step.rule}: ", "").append(step.why, "dim"))


def _document(decision: "Allow | Ask | Deny") -> dict[str, Any]:
    word = type(decision).__name__.lower()
    reason = getattr(decision, "reason", "") or f"rule {decision.rule!r} of policy {decision.policy!r}"
    document: dict[str, Any] = {
        "decision": word,
        "rule": decision.rule,
        "policy": decision.policy,
        "reason": reason,
    }
    profile = getattr(decision, "profile", None)
    return {**document, "profile": asdict(profile)} if profile is not None else document


def _profile_line(profile: dict[str, Any]) -> str:
    limits = profile["limits"]
    return (
        f"  sees {', '.join(profile['read']) or 'no files'}; writes {', '.join(profile['write']) or 'none'}; "
        f"{limits['wall_s']:g} s, {limits['memory_bytes'] // 2**20} MiB, {limits['processes']} processes"
    )
