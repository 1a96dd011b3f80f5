"""Commands about policies: check a file, explain what policies say to one call, and print the schema of a file."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from understudy.actors.errors import CallerError, UnderstudyError
from understudy.cluster.cli.command import (
    Group,
    Here,
    Json,
    WrongUsage,
    app,
    command,
    find_run,
    parse_json,
    parse_pairs,
    print_json,
    say,
    stdout,
)
from understudy.cluster.cli.view import plain_table

if TYPE_CHECKING:
    from understudy.actors.records import RunRecord
    from understudy.cluster.draws import Draw
    from understudy.policies.budget import Budget
    from understudy.policies.permission import Allow, Ask, Deny, Policy, Request

policies = typer.Typer(
    cls=Group, no_args_is_help=True, help="Check a policy file; explain its word on a call; print its schema."
)
app.add_typer(policies, name="policy", rich_help_panel="This machine")

Var = Annotated[list[str] | None, typer.Option("--var", metavar="K=V", help="A variable of the file; repeatable.")]
COLOURS: Mapping[str, str] = {"allow": "green", "ask": "yellow", "deny": "red"}


def read_policy(path: Path, variables: Mapping[str, str]) -> "Policy":
    """Raises CallerError with everything that is wrong in the file."""
    from understudy.policies.policy_file import PolicyError, load_policy

    try:
        return load_policy(_text_of(path), source=str(path), variables=variables)
    except PolicyError as error:
        raise CallerError(str(error)) from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except IsADirectoryError:
        raise CallerError(f"policy {path} is a folder; name one of the files in it") from None
    except OSError as error:
        raise CallerError(f"policy {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CallerError(f"policy {path} cannot be read: it is no text ({error.reason})") from None


@command(policies)
async def check(
    here: Here,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    var: Var = None,
    as_json: Json = False,
) -> int:
    """Say everything that is wrong with a policy file, examples that turn out otherwise included; or that nothing is.

    Exit status 1 if something is wrong.

    Example:
    [bold]understudy policy check policy.yaml --var environment=/srv/app[/]
    """
    from understudy.policies.budget_reader import budget_data
    from understudy.policies.policy_file import PolicyError, load_policy

    variables = parse_pairs(var or [], "--var")
    if as_json:
        try:
            policy = load_policy(_text_of(file), source=str(file), variables=variables)
        except PolicyError as error:
            print_json({"good": False, "problems": [asdict(problem) for problem in error.problems]})
            return 1
        rules = [{"id": rule.id, "effect": rule.effect, "tools": list(rule.tools)} for rule in policy.rules]
        counted = [budget_data(budget) for budget in policy.budgets]
        print_json({"good": True, **policy.told(), "rules": rules, "budgets": counted, "problems": []})
        return 0
    policy = read_policy(file, variables)
    screen = stdout()
    screen.print(Text(f"{file}: good", "green").append(f"  policy {policy.name!r}, version {policy.version}", ""))
    table = plain_table("RULE", "EFFECT", "TOOLS")
    for rule in policy.rules:
        table.add_row(rule.id, Text(rule.effect, COLOURS[rule.effect]), ", ".join(rule.tools))
    screen.print(table)
    for budget in policy.budgets:
        screen.print(Text(f"budget {budget.id}: {_budget_words(budget)}"), soft_wrap=True)
    return 0


def _budget_words(budget: "Budget") -> str:
    each = f"each {budget.scope}"
    if budget.scope == "tenant":  # runs without it have one account together
        each = f"each tenant (label {budget.label!r} of the run; those without it together)"
    return f"{each} {budget.spoken_limits}, then {budget.at_limit}"


@command(policies)
async def schema(here: Here) -> None:
    """Print the JSON schema of a policy file, for editors and for programs that write policies.

    Example:
    [bold]understudy policy schema > policy.schema.json[/]
    """
    from understudy.policies import schema as published

    sys.stdout.write(published.text())


@command(policies)
async def explain(
    here: Here,
    tool: Annotated[str, typer.Option(metavar="T", help="Name of the tool.")],
    args: Annotated[str, typer.Option(metavar="JSON", help="Arguments of the call.")] = "{}",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run's policy; default: only the deployment's.")
    ] = None,
    graph: Annotated[str, typer.Option(metavar="G", help="Name of the graph that would call.")] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", "--labels", metavar="K=V", help="A label of the run; repeatable.")
    ] = None,
    at: Annotated[str, typer.Option(metavar="TIME", help="When, e.g. 2026-01-31T10:00:00+01:00; default: now.")] = "",
    after: Annotated[
        list[str] | None, typer.Option(metavar="TOOL", help="A tool that the run has called before; repeatable.")
    ] = None,
    mark: Annotated[
        list[str] | None, typer.Option(metavar="M", help="A mark that a call before has left; repeatable.")
    ] = None,
    run: Annotated[
        str, typer.Option(metavar="RUN", help="The run that would call: its graph, labels and accounts count.")
    ] = "",
    var: Var = None,
    as_json: Json = False,
) -> None:
    """What would be decided on a call, by which rule, what each rule says to it, and which budgets it is paid from.

    Nothing is executed, and nothing is spent. What is left of a budget is told where it is known whose it is: by the
    labels of a tenant, or by [bold]--run[/].

    Examples:
    [bold]understudy policy explain --tool pay --args '{"amount": 120}' --policy policy.yaml[/]
    [bold]understudy policy explain --tool pay --policy policy.yaml --run r3f-0c81[/]
    """
    from understudy.actors.policy_source import PoliciesUnusable, read_policies
    from understudy.policies.history import History, Past
    from understudy.policies.permission import Request, decide
    from understudy.policies.permission import explain as steps_of

    values = parse_json(args, "--args", {"amount": 120})
    if not isinstance(values, dict):
        raise WrongUsage("--args has to be a JSON object, one member per argument")
    if here.settings.policy is None and policy is None:
        raise WrongUsage("there is no policy; name one with --policy FILE, or set UNDERSTUDY_POLICY")
    try:
        layers = [*read_policies(here.settings.policy)] if here.settings.policy is not None else []
    except PoliciesUnusable as error:
        raise CallerError(str(error)) from None
    if policy is not None:
        layers.append(read_policy(policy, parse_pairs(var or [], "--var")))
    now = _moment(at)
    labels = parse_pairs(label or [], "--label")
    caller = await _caller(here, run) if run else None
    if caller is not None:
        graph, labels = graph or caller.graph, {**caller.labels, **labels}
    request = Request(tool=tool, args=values, run_id="", graph=graph, digest="", labels=labels)
    history = History(Past(frozenset(after or ()), frozenset(mark or ())))
    decision, steps = decide(layers, request, now, history), steps_of(layers, request, now, history)
    document = _document(decision)
    named = [("run" if policy is not None and layer is layers[-1] else layer.layer, layer) for layer in layers]
    draws = await _draws(here, named, request, decision, caller, now)
    if as_json:
        told = [layer.told() for layer in layers]
        drawn = [draw.data() for draw in draws]
        print_json({**document, "policies": told, "steps": [asdict(step) for step in steps], "budgets": drawn})
        return
    screen = stdout()
    word = document["decision"]
    text = Text(word, f"bold {COLOURS[word]}").append(f"  {document['reason']}" if document["reason"] else "", "")
    screen.print(text, soft_wrap=True)
    if word != "deny":
        screen.print(Text(_profile_line(document["profile"]), "dim"), soft_wrap=True)
    for step in steps:
        mark_of = "decides " if step.decided else "fits    " if step.matched else "        "
        line = Text(f"  {mark_of}", COLOURS[step.effect]).append(f"{step.effect:<6}{step.policy}/{step.rule}: ", "")
        screen.print(line.append(step.why, "dim"), soft_wrap=True)
    for draw in draws:
        line = Text("  is paid ", "yellow" if draw.short else "").append(f"from budget {draw.budget.id}: ", "")
        screen.print(line.append(draw.words(), "dim"), soft_wrap=True)


async def _caller(here: Here, run: str) -> "RunRecord":
    async with here.store() as store:
        return await (await find_run(store, run)).record()


async def _draws(
    here: Here,
    layers: "Sequence[tuple[str, Policy]]",
    request: "Request",
    decision: "Allow | Ask | Deny",
    caller: "RunRecord | None",
    now: float,
) -> "list[Draw]":
    """The budgets that the call would be paid from; what is left of them, as far as a store is at hand that knows."""
    from understudy.cluster.draws import draws_of
    from understudy.cluster.stores import is_at_hand
    from understudy.policies.permission import Deny

    if isinstance(decision, Deny):
        return []
    draws = draws_of(layers, request, decision, caller)
    if not draws or not is_at_hand(here.settings.store_url):
        return draws
    try:
        async with here.store() as store:
            return [await draw.looked_up(store, now) for draw in draws]
    except UnderstudyError as error:
        say(f"what is left of the budgets cannot be told: {error}", "yellow")
        return draws


def _moment(text: str) -> float:
    """Seconds since the epoch; of now, if nothing is given. Raises WrongUsage."""
    if not text:
        return time.time()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(f"--at {text!r} is no time; write e.g. 2026-01-31T10:00:00+01:00") from None
    if found.tzinfo is None:
        raise WrongUsage(f"--at {text!r} has no offset, so nobody knows when that is; write e.g. {text}+00:00")
    return found.timestamp()


def _document(decision: "Allow | Ask | Deny") -> dict[str, Any]:
    reason = getattr(decision, "reason", "") or f"rule {decision.rule!r} of policy {decision.policy!r}"
    return {"decision": type(decision).__name__.lower(), **asdict(decision), "reason": reason}


def _profile_line(profile: dict[str, Any]) -> str:
    limits = profile["limits"]
    return (
        f"  sees {', '.join(profile['read']) or 'no files'}; writes {', '.join(profile['write']) or 'none'}; "
        f"{limits['wall_s']:g} s, {limits['memory_bytes'] // 2**20} MiB, {limits['processes']} processes; "
        f"isolation {profile['tier']} at least"
    )
