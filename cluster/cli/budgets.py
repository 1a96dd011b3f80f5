"""The command about what runs, threads and tenants have spent, and may still spend."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from understudy.cluster.cli.command import (
    Here,
    Json,
    WrongUsage,
    command,
    find_run,
    parse_pairs,
    print_json,
    say,
    stdout,
)
from understudy.cluster.cli.view import counted, plain_table

if TYPE_CHECKING:
    from understudy.policies.budget import Account, Amounts

PANEL = "Start and steer runs"


@command(panel=PANEL)
async def budgets(
    here: Here,
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ACCOUNT", help="Only what this run's calls are paid from, or one account, by its whole name."
        ),
    ] = "",
    more: Annotated[
        list[str] | None,
        typer.Option("--raise", metavar="UNIT=AMOUNT", help="Add so much to the account's limit; repeatable."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--reset", metavar="", help="Begin the account anew, as if nothing had been spent.")
    ] = False,
    note: Annotated[str, typer.Option(help="Why; the audit log has it.")] = "",
    by: Annotated[str, typer.Option("--by", metavar="WHO", help="Who; default: who is logged in.")] = "",
    as_json: Json = False,
) -> None:
    """Show what is spent and held of each budget, and what its limit is; raise it, or begin it anew.

    An account is one budget of one run, thread or tenant, in one window of time; it begins with the first call that it
    pays for, or is too small for. Calls that ask whether to go beyond it are judged again once it is raised.

    Examples:
    [bold]understudy budgets r3f-0c81[/]
    [bold]understudy budgets --raise money=5 tenant/acme/deployment/shop/daily/2026-01-31[/]
    """
    from understudy.cluster.budgets import account_data, account_of, accounts_of, raise_limits, reset

    if (more or anew) and "/" not in what:
        raise WrongUsage("name one account, as `understudy budgets` lists it, to raise or reset it")
    if more and anew:
        raise WrongUsage("an account is raised or begun anew, not both; leave --raise or --reset out")
    asked: list[str] = []
    async with here.store() as store:
        if anew:
            asked = await reset(store, here.settings, what, by=by, note=note)
        elif more:
            asked = await raise_limits(store, here.settings, what, _amounts(more), by=by, note=note)
        is_account = "/" in what
        if is_account and not anew:
            await account_of(store, what)
        run_id = (await find_run(store, what)).run_id if what and not is_account else ""
        found = [each for each in await accounts_of(store, run_id) if not is_account or each[0] == what]
    if as_json:
        print_json([account_data(name, account) for name, account in found])
        return
    if anew:
        say(f"account {what} begins anew with the next call", "dim")
    elif not found:
        say("nothing has been paid from a budget yet", "dim")
    else:
        _show(found)
    if asked:
        runs = ", ".join(sorted(set(asked))[:5]) + (", ..." if len(set(asked)) > 5 else "")
        say(f"{counted(len(asked), 'question')} about it withdrawn, and judged anew: {runs}", "dim")


def _amounts(pairs: list[str]) -> "Amounts":
    from understudy.policies.budget_reader import KINDS
    from understudy.policies.reading import Reader

    reader = Reader("--raise", None)
    given = parse_pairs(pairs, "--raise")
    for unit in sorted(given.keys() - KINDS.keys()):
        raise WrongUsage(f"--raise {unit}={given[unit]}: there is no {unit!r}; there are {', '.join(KINDS)}")
    found = {unit: reader.quantity(unit, given[unit], kind) for unit, kind in KINDS.items() if unit in given}
    if reader.problems:
        raise WrongUsage("; ".join(map(str, reader.problems)))
    return found


def _show(found: "list[tuple[str, Account]]") -> None:
    from understudy.cluster.budgets import amounts_of, is_counted
    from understudy.policies.budget import UNITS

    table = plain_table("ACCOUNT", "UNIT", "SPENT", "HELD", "LIMIT", "LEFT", "THEN", yields="ACCOUNT", fold=True)
    for name, account in found:
        for place, unit in enumerate(unit for unit in UNITS if is_counted(account, unit)):
            amounts = amounts_of(account, unit)
            limited = amounts["limit"] is not None
            left = Text(amounts["left"] or "-", "red" if limited and (account.left(unit) or 0) <= 0 else "")
            then = account.at_limit if limited else ""
            shown = (amounts["spent"] or "", amounts["held"] or "", amounts["limit"] or "-")
            table.add_row("" if place else name, unit, *shown, left, then)
    stdout().print(table)
    for name, account in found:
        if account.title.scope == "tenant" and not account.title.of:
            say(f"{name} is that of {account.title.whose}, all of them together", "dim")
