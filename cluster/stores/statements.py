"""SQL lives in .sql files, each statement under a line `-- name: it`; this reads them, once.

The comments above a statement say which law it keeps. A name that is not there is a KeyError in the first test.
"""

import re
import sqlite3
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def script(file: str) -> str:
    """A whole .sql file of this folder."""
    return files("understudy.cluster.stores").joinpath(file).read_text(encoding="utf-8")


@cache
def statements(file: str) -> Mapping[str, str]:
    """The statements of a .sql file of this folder, by name."""
    _head, *parts = NAME.split(script(file))
    named = dict(zip(parts[::2], (text.strip().removesuffix(";") for text in parts[1::2]), strict=True))
    assert len(named) == len(parts) // 2, f"a name stands twice in {file}"
    return named


def split(text: str) -> list[str]:
    """The statements of a script for SQLite; its own `executescript` would commit the transaction first."""
    found, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found
