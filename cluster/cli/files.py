"""The command that looks at the files of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.actors.errors import CallerError
from understudy.actors.files import Files, bytes_of
from understudy.cluster.cli.command import (
    Here,
    Json,
    RunId,
    WrongUsage,
    command,
    find_checkpoint,
    find_run,
    print_json,
    say,
    stdout,
)
from understudy.cluster.cli.reading import PANEL
from understudy.cluster.cli.screen import write_out
from understudy.cluster.cli.view import counted, plain_table


@command(panel=PANEL)
async def files(
    here: Here,
    run: RunId,
    at: Annotated[str, typer.Option(metavar="CHECKPOINT", help="As of then; default: the newest.")] = "",
    get: Annotated[str, typer.Option(metavar="PATH", help="Print this one.")] = "",
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write all of them to a new folder.")] = None,
    as_json: Json = False,
) -> None:
    """List the files of a run's workspace, or fetch them.

    Examples:
    [bold]understudy files r3f-0c81[/]
    [bold]understudy files r3f-0c81 --get report.md[/]
    """
    if to is not None and to.exists():
        raise WrongUsage(f"--to {str(to)!r} is there already; name a folder that is not")
    async with here.store() as store:
        looked_at = await find_run(store, run)
        found = await looked_at.workspace(await find_checkpoint(here, looked_at, at) if at else "")
    if get:
        write_out(bytes_of(found, get))
    elif to is not None:
        try:
            _write(found, to)
        except OSError as error:
            raise CallerError(f"--to {str(to)!r} cannot be written: {error}; name another folder") from None
        say(f"{counted(len(found), 'file')} in {to}", "dim")
    elif as_json:
        print_json([_document(found, path) for path in sorted(found)])
    elif not found:
        say("it has no files", "dim")
    else:
        table = plain_table("BYTES", "PATH")
        for path in sorted(found):
            table.add_row(*_row(found, path))
        stdout().print(table)


def _write(files: Files, folder: Path) -> None:
    """Links last: what is written before them goes through none."""
    folder.mkdir(parents=True)
    for path, item in sorted(files.items(), key=lambda each: each[1]["kind"] == "link"):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        match item["kind"]:
            case "folder":
                place.mkdir(exist_ok=True)
            case "link":
                place.symlink_to(item["target"])
            case _:
                place.write_bytes(bytes_of(files, path))
                if item["x"]:
                    place.chmod(place.stat().st_mode | 0o111)


def _document(files: Files, path: str) -> dict[str, Any]:
    item = files[path]
    match item["kind"]:
        case "folder":
            return {"path": path, "kind": "folder"}
        case "link":
            return {"path": path, "kind": "link", "target": item["target"]}
    return {"path": path, "kind": "file", "bytes": len(bytes_of(files, path)), "executable": item["x"]}


def _row(files: Files, path: str) -> tuple[str, str]:
    item = files[path]
    match item["kind"]:
        case "folder":
            return "", f"{path}/"
        case "link":
            return "", f"{path} -> {item['target']}"
    return str(len(bytes_of(files, path))), path + ("*" if item["x"] else "")
