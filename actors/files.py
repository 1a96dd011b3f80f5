"""A workspace is the files of a run: a value like any other state, in the checkpoint, and never a folder that stays.

It lives in a channel that no model shows, as items by path; what a call changed is a list of new items and, in the
place of one that is gone, an array with its path (the form of `messages`, see values.py). So it moves with the step,
a fork or a recovery sees the files of that moment, only what changed is stored, and whatever deletes a checkpoint
deletes its files (laws 2 and 8). The price is that a workspace is bounded: it is for the files that an agent works on.

Pure. What comes here from a sandbox is the word of untrusted code: nothing of it is believed before `checked`.
"""

import base64
import binascii
import itertools
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, get_args

from understudy.actors.errors import CallerError, InvalidWrite
from understudy.actors.outcome import Outcome, ToolCall
from understudy.actors.values import compact

CHANNEL: Final = "@files"
"""No field of a model has such a name."""
FILES_MAX: Final = 2000
BYTES_MAX: Final = 8 * 1024 * 1024
"""Of all files together: they travel with each call, and a snapshot of the state holds them."""
PATH_BYTES_MAX: Final = 512
DEPTH_MAX: Final = 32

Kind = Literal["file", "link", "folder"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Item = Mapping[str, Any]
"""One path: `id` (the path), `kind`, and of a file `data` (base64) and `x` (may be executed), of a link its `target`.
Folders are listed where nothing is in them."""
Files = Mapping[str, Item]
"""By path."""
Given = Mapping[str, bytes | str | Item]
"""What somebody hands in, by path: what is in a file, or an item."""
Change = Sequence[Any]
"""Items, and `[path]` for what is gone."""


class BadFiles(CallerError):
    """Files that cannot be a workspace: the sentence says which, and why."""


def read(text: str) -> dict[str, Item]:
    """What the channel holds."""
    return {item["id"]: item for item in json.loads(text)} if text else {}


def without_files(texts: Mapping[str, str]) -> dict[str, str]:
    """Of the text of channels, or of writes to them, what the graph's model knows of."""
    return {name: text for name, text in texts.items() if name != CHANNEL}


def text_of(files: Files) -> str:
    return compact(list(files.values()))


def checked(change: Any) -> list[Any]:
    """A change of whatever origin, as it may be applied. Raises BadFiles."""
    if not isinstance(change, list):
        raise BadFiles("its list of changed files is none")
    if len(change) > 2 * FILES_MAX:
        raise BadFiles(f"it tells of {len(change)} changed files; a workspace has {FILES_MAX} at most")
    found: dict[str, Any] = {}
    for each in change:
        item: Any = each
        match each:
            case [str(path)]:
                item = [path]
            case {"id": str(path), "kind": "file", "data": str(data), "x": bool(x), **rest} if not rest:
                item = {"id": path, "kind": "file", "data": _base64(path, data), "x": x}
            case {"id": str(path), "kind": "link", "target": str(target), **rest} if not rest:
                item = {"id": path, "kind": "link", "target": _target(path, target)}
            case {"id": str(path), "kind": "folder", **rest} if not rest:
                item = {"id": path, "kind": "folder"}
            case _:
                raise BadFiles("a changed file is neither an item nor a path that is gone")
        if checked_path(path) in found:
            raise BadFiles(f"it tells twice of {path!r}")
        found[path] = item
    return list(found.values())


def checked_path(path: str) -> str:
    """A path that lies in the workspace and says so in one way only. Raises BadFiles."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or not path.isprintable():
        raise BadFiles(f"{path[:80]!r} is no path in a workspace; give a relative one without '.', '..' and '//'")
    if len(parts) > DEPTH_MAX or len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        raise BadFiles(f"{path[:80]!r}... is longer than {PATH_BYTES_MAX} bytes, or deeper than {DEPTH_MAX} folders")
    return path


def _base64(path: str, data: str) -> str:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadFiles(f"what it tells of {path[:80]!r} is not base64") from None
    return base64.b64encode(raw).decode()  # of several spellings, one


def _target(path: str, target: str) -> str:
    """Where a link leads: inside. Raises BadFiles."""
    ahead = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not target or target.startswith("/") or ahead == ".." or ahead.startswith("../") or not target.isprintable():
        raise BadFiles(f"the link {path[:80]!r} leads out of the workspace, to {target[:80]!r}")
    # What it leads through may be a link itself, so that '..' behind a name means something else than it says.
    if ".." in list(itertools.dropwhile(lambda part: part == "..", target.split("/"))):
        raise BadFiles(f"the link {path[:80]!r} has a '..' behind a name: {target[:80]!r}")
    if len(target.encode(errors="replace")) > PATH_BYTES_MAX:
        raise BadFiles(f"the link {path[:80]!r} leads to a path of more than {PATH_BYTES_MAX} bytes")
    return target


def applied(files: Files, change: Change) -> dict[str, Item]:
    """The files after a change that was checked. Raises BadFiles: they are no tree, or too many, or too large."""
    after = dict(files)
    for each in change:
        if isinstance(each, list):
            after.pop(each[0], None)
        else:
            after[each["id"]] = each
    above = {folder for path in after for folder in _folders(path)}
    for path in above & after.keys():
        if after[path]["kind"] != "folder":
            raise BadFiles(f"{path!r} is a {after[path]['kind']}, and a folder with files in it")
        del after[path]  # it is listed by what is in it
    _bounded(after)
    return after


def _bounded(files: Files) -> None:
    size = size_of(files)
    if len(files) > FILES_MAX:
        raise BadFiles(
            f"the workspace would have {len(files)} files; the limit is {FILES_MAX}: remove some, or pack them"
        )
    if size > BYTES_MAX:
        raise BadFiles(f"the workspace would have {size} bytes; the limit is {BYTES_MAX}: remove what is not needed")


def size_of(files: Files) -> int:
    """Bytes of all files."""
    return sum(len(item["data"]) * 3 // 4 for item in files.values() if item["kind"] == "file")


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def change_between(before: Files, after: Files) -> list[Any]:
    """What leads from one to the other."""
    gone: list[Any] = [[path] for path in before if path not in after]
    return gone + [item for path, item in after.items() if before.get(path) != item]


def together(before: Files, changes: Sequence[tuple[str, Change]]) -> list[Any]:
    """The changes of parallel nodes as one: by path, and a deletion is a change as any other.

    Args:
        changes: of each node, by its name.
    Raises InvalidWrite where two of them changed one path in different ways; it names both.
    """
    found: dict[str, tuple[str, Any]] = {}
    for node, change in changes:
        for each in change:
            path = each[0] if isinstance(each, list) else each["id"]
            other = found.get(path)
            if other is not None and other[1] != each:
                raise InvalidWrite(
                    f"nodes {other[0]!r} and {node!r} of one superstep changed {path!r} of the workspace in different "
                    f"ways; let one come after the other, or give each a folder of its own"
                )
            found[path] = (node, each)
    for path, (node, each) in found.items():
        above = next((f for f in _folders(path) if f in found and not isinstance(found[f][1], list)), None)
        if above is not None and not isinstance(each, list) and found[above][1]["kind"] != "folder":
            raise InvalidWrite(
                f"nodes {found[above][0]!r} and {node!r} of one superstep made {above!r} of the workspace a file and a "
                f"folder (with {path!r}); give each a folder of its own"
            )
    merged = [each for _node, each in found.values()]
    try:
        return change_between(before, applied(before, merged))
    except BadFiles as error:
        raise InvalidWrite(f"the files that nodes {', '.join(sorted({n for n, _ in changes}))} left: {error}") from None


def given(files: Given) -> list[Any]:
    """Files that somebody hands in. Raises BadFiles."""
    items = [
        each if isinstance(each, Mapping) else item_of(path, each.encode() if isinstance(each, str) else each)
        for path, each in files.items()
    ]
    return list(applied({}, checked(items)).values())


def item_of(path: str, data: bytes, *, executable: bool = False) -> dict[str, Any]:
    return {"id": path, "kind": "file", "data": base64.b64encode(data).decode(), "x": executable}


def bytes_of(files: Files, path: str) -> bytes:
    """What a file holds; a link in the workspace is followed once. Raises BadFiles."""
    item = files.get(path)
    if item is not None and item["kind"] == "link":
        item = files.get(posixpath.normpath(posixpath.join(posixpath.dirname(path), item["target"])))
    if item is None or item["kind"] != "file":
        near: Iterable[str] = sorted(files)[:10]
        raise BadFiles(f"the workspace has no file {path!r}; it has {', '.join(near) or 'none'}")
    return base64.b64decode(item["data"])


def left_by(call: ToolCall, outcome: Outcome) -> Outcome:
    """The outcome of a call, with what it left in the workspace: all of it, or nothing if the call did not go well."""
    if outcome.files is None:
        return outcome
    if outcome.kind != "ok" or not call.keeps or call.files is None:
        return replace(outcome, files=None)
    try:
        applied(read(call.files), outcome.files)
    except BadFiles as error:
        error_text = f"the workspace was left as it was: {error}"
        return replace(outcome, kind="error", value=None, error=error_text, error_type="BadFiles", files=None)
    return outcome
