"""The files of one distribution: which ones there should be, which there are, and whether they are still the same.

Runs inside the sandbox: standard library only, and heavy imports inside the functions that need them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

EXAMPLES_MAX = 20
"""Paths that one batch names for each kind of fault; all of them are counted."""
HASHES = frozenset({"sha256", "sha384", "sha512", "sha224", "sha1", "md5"})
NATIVE = (".so", ".pyd", ".dylib")
METADATA_MAX_BYTES = 1024 * 1024


class Entry(NamedTuple):
    """A line of RECORD."""

    path: str
    """Relative to the site-packages folder, as it is written there."""
    digest: str
    """`sha256=...`, or empty where RECORD has none (RECORD itself, generated .pyc)."""
    size: int
    """Bytes, or -1 where RECORD does not say."""


def read_headers(info: Path) -> dict[str, list[str]]:
    """The headers of METADATA (or PKG-INFO), by lower-case name; empty if it cannot be read.

    By hand: the email package takes 15 ms to import, and the body, often a long README, is of no interest.
    """
    files = [info / "METADATA", info / "PKG-INFO"] if info.is_dir() else [info]
    text = next((text for file in files if (text := _text(file))), "")
    headers: dict[str, list[str]] = {}
    last = ""
    for line in text.split("\n\n", 1)[0].splitlines():
        if line[:1].isspace() and last:
            headers[last][-1] += "\n" + line.strip()
            continue
        name, colon, value = line.partition(":")
        if colon:
            last = name.strip().lower()
            headers.setdefault(last, []).append(value.strip())
    return headers


def read_record(info: Path) -> list[Entry] | None:
    """The lines of RECORD; None where there is none (Debian removes it, old eggs never had one)."""
    import csv

    text = _text(info / "RECORD", limit=64 * METADATA_MAX_BYTES) if info.is_dir() else ""
    if not text:
        return None
    entries = []
    for row in csv.reader(text.splitlines()):
        if row:
            path, digest, size = [*row, "", ""][:3]
            entries.append(Entry(path, digest, int(size) if size.isdigit() else -1))
    return entries


def list_files(info: Path) -> list[Entry]:
    """RECORD, or else whatever is found under the top-level names of the distribution."""
    entries = read_record(info)
    if entries is not None:
        return entries
    found = []
    for name in top_level_names(info):
        for path in (info.parent / name, info.parent / f"{name}.py"):
            if path.is_dir():
                found += [str(file.relative_to(info.parent)) for file in _walk(path)]
            elif path.is_file():
                found.append(path.name)
    return [Entry(path, "", -1) for path in sorted(found)]


def top_level_names(info: Path) -> list[str]:
    """The names in top_level.txt, which setuptools writes; else the distribution's own name."""
    names = _text(info / "top_level.txt").split() if info.is_dir() else []
    own = info.name.split("-")[0].removesuffix(".egg")
    return [name for name in names or [own] if "/" not in name and not name.startswith(".")]


def modules_of(info: Path, entries: list[Entry]) -> list[str]:
    """What of a distribution can be imported at the top: `attr`, `yaml`, or `google.protobuf` under a namespace."""
    files = [entry.path.split("/") for entry in entries if entry.path.endswith((".py", *NATIVE))]
    files = [parts for parts in files if ".." not in parts and "" not in parts and "__pycache__" not in parts]
    packages = {tuple(parts[:-1]) for parts in files if parts[-1].split(".")[0] == "__init__" and len(parts) > 1}
    found = set()
    for parts in files:
        outer = next((parts[:depth] for depth in range(1, len(parts)) if tuple(parts[:depth]) in packages), None)
        if outer is not None:
            found.add(".".join(outer))
        elif len(parts) == 1:
            found.add(parts[0].split(".")[0])
    if not found:  # an editable install lists its .pth and no more
        found = {name for name in top_level_names(info) if _text(info / "top_level.txt")}
    return sorted(name for name in found if all(part.isidentifier() for part in name.split(".")))


def verify_batch(info: Path, environment: Path, start: int, files_max: int, budget_s: float) -> dict[str, Any]:
    """Compare the files from `start` on with RECORD, until `files_max` or `budget_s` is used up.

    Returns: next (where to go on; None at the end), checked, bytes, counts and examples by kind of fault: `missing`,
    `altered`, `outside` (of the environment, so not looked at), `unlisted` (found with the last batch).
    """
    import time

    began = time.monotonic()
    entries = read_record(info)
    faults = Faults()
    if entries is None:
        faults.note("unrecorded", "there is no RECORD, so nothing to compare with")
        return {"next": None, "checked": 0, "bytes": 0, **faults.value()}
    checked = total = 0
    position = start
    for position, entry in enumerate(entries[start:], start + 1):
        if entry.digest:
            checked += 1
            total += _verify(info.parent, environment, entry, faults)
        if position - start >= files_max or time.monotonic() - began >= budget_s:
            break
    ended = position >= len(entries)
    if ended:
        for path in unlisted(info, entries):
            faults.note("unlisted", path)
    return {"next": None if ended else position, "checked": checked, "bytes": total, **faults.value()}


def _verify(site: Path, environment: Path, entry: Entry, faults: "Faults") -> int:
    """Note what is wrong with one file. Returns the bytes that were read."""
    import base64
    import hashlib

    algorithm, _, expected = entry.digest.partition("=")
    path = Path(os.path.normpath(site / entry.path))
    if not path.is_relative_to(environment):
        faults.note("outside", entry.path)
        return 0
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if entry.size not in (-1, size):
                faults.note("altered", f"{entry.path} ({size} bytes, not {entry.size})")
                return 0
            if algorithm not in HASHES:
                faults.note("unhashed", f"{entry.path} ({algorithm})")
                return 0
            digest = hashlib.file_digest(file, algorithm).digest()
    except FileNotFoundError:
        faults.note("missing", entry.path)
        return 0
    except OSError as error:
        faults.note("unreadable", f"{entry.path} ({error.strerror})")
        return 0
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected.rstrip("="):
        faults.note("altered", entry.path)
    return size


def unlisted(info: Path, entries: list[Entry]) -> list[str]:
    """Files in the distribution's own packages that RECORD does not know; bytecode is generated and does not count."""
    listed = {entry.path for entry in entries}
    found = []
    for module in modules_of(info, entries):
        folder = info.parent.joinpath(*module.split("."))
        if any(path.startswith(f"{folder.relative_to(info.parent)}/") for path in listed):
            found += [path for file in _walk(folder) if (path := str(file.relative_to(info.parent))) not in listed]
    return [path for path in found if not path.endswith((".pyc", ".pyo"))]


class Faults:
    """Counts of faults by kind, and the first examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: list[dict[str, str]] = []

    def note(self, kind: str, what: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= EXAMPLES_MAX:
            self._examples.append({"kind": kind, "what": what[:300]})

    def value(self) -> dict[str, Any]:
        return {"counts": self._counts, "examples": self._examples}


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            yield Path(where, name)


def _text(file: Path, limit: int = METADATA_MAX_BYTES) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return lines.read(limit)
    except OSError:
        return ""
