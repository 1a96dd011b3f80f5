"""What all commands share: where the store is, errors as one line that says what to do, and the exit status.

0 done, 1 failed, 2 wrong usage, 130 left with Ctrl-C. A document goes to stdout, everything else to stderr.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from understudy.actors.errors import CallerError, NotFound, UnderstudyError
from understudy.cluster.cli.screen import Screen, json_line

if TYPE_CHECKING:
    from understudy.actors.audit_log import AuditLog
    from understudy.actors.store import Store
    from understudy.cluster.client import Run
    from understudy.cluster.settings import Settings

COMPLETED_MAX = 200
"""Newest runs whose ids a shell is offered."""
PREFIX_SCAN_MAX = 20_000
"""Newest runs among which a shortened id is looked for."""


class _PlainHelp:
    """Switches, as `--help`, without a word on their type."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class Group(_PlainHelp, TyperGroup):
    """Several commands under one word."""


class _Command(_PlainHelp, TyperCommand):
    """One command."""


app = typer.Typer(
    name="understudy",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Durable, supervised agents: a run that loses its process goes on in another one, where it stood.",
    epilog="A first look:  [bold]understudy up[/]  ·  [bold]understudy run flows:graph --input '{}'[/]  ·  "
    "[bold]understudy ps[/]  ·  [bold]understudy demo[/]",
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="sqlite:///path, redis://... or postgresql://...; default: UNDERSTUDY_STORE, else SQLite in the state "
        "folder.",
        rich_help_panel="Where",
        show_default=False,
    ),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Folder of the embedded store, the secret and the daemon; default: UNDERSTUDY_STATE_DIR.",
        rich_help_panel="Where",
        show_default=False,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", metavar="", help="Show the traceback of an error.", rich_help_panel="Where", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON document.")]


def run_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """For a shell that completes a word: ids of the newest runs. It says nothing of what goes wrong."""
    from understudy.cluster.settings import read_settings
    from understudy.cluster.stores import is_at_hand, open_store

    above = ctx.find_root().params  # where the options may stand, too

    async def found() -> list[str]:
        named = {name: ctx.params.get(name) or above.get(name) for name in ("store", "state_dir")}
        settings = read_settings(named)
        if not is_at_hand(settings.store_url):
            return []
        store = await open_store(settings.store_url, allow_volatile=settings.allow_volatile, within_s=1.0)
        try:
            return [record.run_id for record in await store.runs(limit=COMPLETED_MAX)]
        finally:
            await store.close()

    try:
        return [run_id for run_id in asyncio.run(found()) if run_id.startswith(incomplete)]
    except Exception:
        return []


RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Id of a run, or the beginning of one.", show_default=False, autocompletion=run_ids
    ),
]


class WrongUsage(CallerError):
    """What was typed cannot be meant; exit status 2."""


def stdout() -> Screen:
    """For documents and tables. Made anew, so that whoever replaced sys.stdout is respected."""
    return Screen(sys.stdout)


def stderr() -> Screen:
    """For progress, hints and errors."""
    return Screen(sys.stderr)


STORE_WITHIN_S = 3.0
"""Somebody waits: a server that does not answer by then is told of, and the command can be given again."""


@dataclass(frozen=True)
class Here:
    """Where a command acts: its settings, and how to repeat them in a command that is printed."""

    settings: "Settings"
    flags: str = ""

    @contextlib.asynccontextmanager
    async def store(self, *, make: bool = False) -> "AsyncIterator[Store]":
        """The store, without anyone to serve it. Raises CallerError where one is named that is not there, unless it is
        to be made: a path that was mistyped would look like a store in which there is nothing."""
        from understudy.cluster.stores import file_of, open_store

        settings = self.settings
        path = file_of(settings.store) if settings.store else None
        if path is not None and not make and not path.exists():
            from understudy.cluster.daemon import running_daemon

            daemon = running_daemon(settings)
            hint = f" (the daemon that is up serves {daemon.store})" if daemon else ""
            raise CallerError(
                f"there is no store at {path}; --store or UNDERSTUDY_STORE names the one that you mean{hint}, and "
                f"`understudy up` and `understudy run` make one"
            )
        store = await open_store(settings.store_url, allow_volatile=settings.allow_volatile, within_s=STORE_WITHIN_S)
        try:
            yield store
        finally:
            await store.close()

    def pen(self, store: "Store") -> "AuditLog":
        """Writes into the audit log what is done with this command."""
        from understudy.cluster.auditing import pen

        return pen(store, self.settings)

    def audited(self, run: "Run") -> "Run":
        """The run, whose answers go into the audit log before they count."""
        from understudy.cluster.auditing import pen

        run.audit = pen(run.store, self.settings)
        return run

    def command(self, *words: str) -> str:
        """A command to be typed literally."""
        return shlex.join(["understudy", *words]) + self.flags


async def find_run(store: "Store", text: str) -> "Run":
    """The run whose id begins with `text`. Raises NotFound, WrongUsage if there are several."""
    from understudy.cluster.client import Run

    try:
        return Run(store, (await store.run(text)).run_id)
    except NotFound:
        records = await store.runs(limit=PREFIX_SCAN_MAX) if text else []
    found = [record.run_id for record in records if record.run_id.startswith(text)]
    if not found:
        raise NotFound(f"there is no run {text!r} in this store; `understudy ps` lists those that there are")
    if len(found) > 1:
        raise WrongUsage(f"{len(found)} runs begin with {text!r}: {', '.join(found[:5])}; give more of the id")
    return Run(store, found[0])


async def find_checkpoint(here: Here, run: "Run", text: str) -> str:
    """The checkpoint of the run's thread whose id begins with `text`. Raises CallerError if there is not just one."""
    found = [row.checkpoint_id for row in await run.history() if row.checkpoint_id.startswith(text)]
    if len(found) != 1:
        problem = "several checkpoints begin" if found else "no checkpoint begins"
        raise CallerError(f"{problem} with {text!r}; {here.command('history', run.run_id)} lists them")
    return found[0]


def parse_json(text: str, what: str, example: Any = None) -> Any:
    """Raises WrongUsage that shows how to quote: the text itself, or an example of what is wanted instead."""
    try:
        return json.loads(text)
    except RecursionError:
        raise WrongUsage(f"{what} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        hint = f"; a text is written {shlex.quote(json.dumps(text))}" if _is_word(text) else ""
        if example is not None:
            hint = f"; write e.g. {shlex.quote(json.dumps(example))}"
        raise WrongUsage(f"{what} is not JSON: {error}{hint}") from None


def _is_word(text: str) -> bool:
    return bool(text) and text[0] not in '{["'


def parse_pairs(pairs: list[str], option: str) -> dict[str, str]:
    """`k=v` as given with a repeated option. Raises WrongUsage."""
    parsed = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name:
            raise WrongUsage(f"{option} {pair!r} has to be NAME=VALUE")
        parsed[name] = value
    return parsed


def print_json(document: Any) -> None:
    """One document on stdout."""
    sys.stdout.write(json_line(document, 2) + "\n")


def print_line(text: str) -> None:
    """One line on stdout, whole."""
    stdout().print(text, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line for the person, on stderr."""
    stderr().print(Text(text, style=style), soft_wrap=True)


# --- one command ---------------------------------------------------------------------------------------------------

Body = Callable[..., Coroutine[Any, Any, int | None]]


def command(group: typer.Typer = app, name: str | None = None, panel: str = "Commands") -> Callable[[Body], Body]:
    """Make a coroutine `fn(here, ...)` a command: its arguments after `here` are those of the command line."""

    def register(fn: Body) -> Body:
        @functools.wraps(fn)
        def run(ctx: typer.Context, **values: Any) -> None:
            given = {key: values.pop(key) for key in ("store", "state_dir", "debug")}
            asked = {key: value or (ctx.obj or {}).get(key) for key, value in given.items()}
            sys.exit(perform(fn, asked, values))

        own = list(inspect.signature(fn, eval_str=True).parameters.values())[1:]
        run.__signature__ = inspect.Signature([*own, *_SHARED])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *_SHARED]}
        told = _paragraphs(fn.__doc__ or "")
        group.command(name or fn.__name__, cls=_Command, rich_help_panel=panel, help=told)(run)
        return fn

    return register


def _paragraphs(text: str) -> str:
    """A docstring whose paragraphs fill the width that there is; examples keep their lines."""
    found = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("Example") else " ".join(part.split()) for part in found)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_SHARED = (
    inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context),
    inspect.Parameter("store", _KEYWORD, annotation=StoreOption, default=None),
    inspect.Parameter("state_dir", _KEYWORD, annotation=StateDirOption, default=None),
    inspect.Parameter("debug", _KEYWORD, annotation=DebugOption, default=False),
)


def perform(fn: Body, asked: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Run a command's body; its exit status. Errors become one line on stderr."""
    try:
        _check_text(values)
        return asyncio.run(fn(_here(asked), **values)) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `understudy ps | head`
        sys.stdout = None  # or the interpreter complains when it flushes at exit
        return 0
    except UnderstudyError as error:
        if asked["debug"]:
            stderr().print_exception()
        say_error(str(error))
        return 2 if isinstance(error, WrongUsage) else 1
    except Exception as error:
        if asked["debug"]:
            stderr().print_exception()
            return 1
        say_error(f"{type(error).__name__}: {error}")
        say("This is a bug of ours, or of a module that was loaded; --debug shows where.", "dim")
        return 1


def _check_text(values: Mapping[str, Any]) -> None:
    """Raises WrongUsage. What was typed may be any bytes; what is kept and compared is text."""
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.encode(errors="ignore").decode() != text:
                raise WrongUsage(f"{name.rstrip('_')} {text!r} is not UTF-8; other bytes belong in a file")


def say_error(text: str) -> None:
    """`error: ...` in red."""
    line = Text("error: ", style="bold red")
    line.append(text, style="red")
    stderr().print(line, soft_wrap=True)


def _here(asked: Mapping[str, Any]) -> Here:
    from understudy.cluster.settings import mistyped, read_settings

    for line in mistyped(os.environ):
        say(line, "yellow")
    store, state_dir = asked["store"], asked["state_dir"]
    flags = f" --state-dir {shlex.quote(str(state_dir))}" if state_dir else ""
    if store:  # a password is not repeated on the screen
        flags += ' --store "$UNDERSTUDY_STORE"' if "@" in store else f" --store {shlex.quote(store)}"
    return Here(read_settings({"store": store, "state_dir": state_dir}), flags)


def _show_version(value: bool) -> None:
    if value:
        from understudy.cluster.version import __version__

        sys.stdout.write(f"understudy {__version__}\n")
        raise typer.Exit


@app.callback()
def _top(
    ctx: typer.Context,
    store: StoreOption = None,
    state_dir: StateDirOption = None,
    debug: DebugOption = False,
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    ctx.obj = {"store": store, "state_dir": state_dir, "debug": debug}
