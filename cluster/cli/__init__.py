"""The command line: every command is a short coroutine that reads or writes the store, and prints one thing.

command   what all commands share: --store and its kin, errors in one line, exit status
screen    what others wrote, made harmless for a terminal
view      records as JSON documents and as text for eighty columns
reading   ps, show, events, history                       (these never start Ray)
running   run, resume, approve, deny, cancel
forking   effects, fork
sending   send, retry
live      a followed run on a screen
running   run, resume, approve, deny, cancel, fork
preflight preflight
machine   up, down, status, doctor, metrics
policy    policy check, policy explain, policy schema
grants    grants, revoke
budgets   budgets
audit     audit verify, audit head, audit show, audit prune
store     store info, store migrate
environments  environments build, environments list, environments clean
mcp       mcp list, mcp show, mcp diff, mcp accept
crashtest crashtest
demo      the demo
"""

from understudy.cluster.cli.command import app


def main() -> None:
    """The console script `understudy`."""
    from understudy.cluster.cli import (  # noqa: F401, I001 (the order of --help)
        reading,
        running,
        forking,
        files,
        sending,
        grants,
        budgets,
        preflight,
        machine,
        policy,
        audit,
        store,
        mcp,
        environments,
        crashtest,
        demo,
    )

    app(prog_name="understudy")
