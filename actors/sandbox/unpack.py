"""Runs inside the sandbox: lays the files of a workspace out before a call, and tells after it which have changed.

Without an import of ours: it is loaded beside the runner, by each call that has a workspace. Nothing it says is
believed outside (see `files.checked`), for the tool has the same process.
"""

import base64
import os
import stat
from typing import Any

FOLDER = "workspace"


class TooLarge(Exception):
    """The sentence that says what there is too much of."""


def lay_out(items: list[dict[str, Any]], folder: str) -> None:
    """Make the files, and go there."""
    os.makedirs(folder, 0o755, exist_ok=True)
    for item in items:
        place = f"{folder}/{item['id']}"
        os.makedirs(place if item["kind"] == "folder" else os.path.dirname(place), 0o755, exist_ok=True)
        if item["kind"] == "link":
            os.symlink(item["target"], place)
        elif item["kind"] == "file":
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(place, flags, 0o755 if item["x"] else 0o644), "wb") as file:
                file.write(base64.b64decode(item["data"]))


def changed(items: list[dict[str, Any]], folder: str, files_max: int, bytes_max: int) -> list[Any]:
    """New items, and `[path]` for what is gone. Raises TooLarge, OSError."""
    before = {item["id"]: item for item in items}
    after = collect(folder, files_max, bytes_max)
    gone: list[Any] = [[path] for path in before if path not in after]
    return gone + [item for path, item in after.items() if before.get(path) != item]


def collect(folder: str, files_max: int, bytes_max: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    left = bytes_max
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        names = os.listdir(f"{folder}/{inner}")
        if inner and not names:
            found[inner[:-1]] = {"id": inner[:-1], "kind": "folder"}
        for name in names:
            path = inner + name
            kind = os.lstat(f"{folder}/{path}").st_mode
            if stat.S_ISDIR(kind):
                waiting.append(f"{path}/")
            elif stat.S_ISLNK(kind):
                found[path] = {"id": path, "kind": "link", "target": os.readlink(f"{folder}/{path}")}
            elif stat.S_ISREG(kind):
                data = content(f"{folder}/{path}", left)
                left -= len(data)
                text = base64.b64encode(data).decode()
                found[path] = {"id": path, "kind": "file", "data": text, "x": bool(kind & 0o100)}
            else:
                raise TooLarge(f"{path!r} in the workspace is neither a file, a folder nor a link; remove it")
        if len(found) + len(waiting) > files_max:
            raise TooLarge(f"the workspace has more than {files_max} files; remove some, or pack them")
    return found


def content(path: str, most: int) -> bytes:
    # Not blocking: a pipe may have taken the file's place since it was looked at.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise TooLarge(f"the workspace has more bytes than it may hold (at {path!r}); remove what is not needed")
    return data
