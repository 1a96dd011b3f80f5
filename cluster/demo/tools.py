"""What the audit does to the world: six tools, each a function that runs in a sandbox of its own and ends with it.

Five of them read, and may be made again when nobody knows how they ended. One writes a line that must be there exactly
once, and does nothing about that itself: it is the runtime's receipts that have to hold.

Every call imports this module in a fresh interpreter, so it needs the standard library alone, and little of that.
"""

import json
import os
from pathlib import Path
from typing import Any

from understudy.actors.tool import tool
from understudy.cluster.demo import files

MODULES_MAX = 12
"""Modules of one distribution that are imported; the rest is named as not imported."""
LIST_MAX = 200
"""Entries of any list in an answer: answers are part of a run's state, and that is kept small."""
NOTES_MAX_BYTES = 64 * 1024


@tool(idempotent=True)
def read_metadata(info: str) -> dict[str, Any]:
    """Read what a distribution says about itself, and count what it has installed.

    Args:
        info: its `.dist-info` or `.egg-info`.
    """
    folder = Path(info)
    headers = files.read_headers(folder)
    entries = files.list_files(folder)
    modules = files.modules_of(folder, entries)
    return {
        "name": headers.get("name", [""])[0],
        "version": headers.get("version", [""])[0],
        "summary": headers.get("summary", [""])[0][:200],
        "licence": _licence(headers),
        "requires": [line[:200] for line in headers.get("requires-dist", []) if "extra ==" not in line][:LIST_MAX],
        "requires_python": headers.get("requires-python", [""])[0][:80],
        "entry_points": _entry_points(folder)[:LIST_MAX],
        "editable": _is_editable(folder),
        "files": len(entries),
        "natives": sum(entry.path.endswith(files.NATIVE) for entry in entries),
        "sources": sum(entry.path.endswith(".py") for entry in entries),
        "startup": [entry.path for entry in entries if entry.path.endswith(".pth")][:LIST_MAX],
        "modules": modules[:MODULES_MAX],
        "not_imported": modules[MODULES_MAX:][:LIST_MAX],
    }


def _licence(headers: dict[str, list[str]]) -> str:
    classified = [line for line in headers.get("classifier", []) if line.startswith("License ::")]
    for given in (headers.get("license-expression"), headers.get("license"), classified):
        text = (given or [""])[0].split("\n")[0].rpartition(" :: ")[2].strip()
        if text and text != "UNKNOWN":
            return text[:80]
    return ""


def _entry_points(info: Path) -> list[str]:
    """`group: name = module:attribute`, a line for each."""
    group, found = "", []
    for line in _text(info / "entry_points.txt").splitlines():
        line = line.strip()
        if line.startswith("["):
            group = line.strip("[]")
        elif "=" in line and not line.startswith(("#", ";")):
            found.append(f"{group}: {line}"[:200])
    return found


def _is_editable(info: Path) -> bool:
    try:
        return bool(json.loads(_text(info / "direct_url.json"))["dir_info"]["editable"])
    except (ValueError, KeyError, TypeError):
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[: files.METADATA_MAX_BYTES]
    except OSError:
        return ""


@tool(idempotent=True)
def read_startup(info: str, paths: list[str]) -> list[str]:
    """The lines of `.pth` files that every start of the interpreter executes.

    Args:
        info: the distribution's `.dist-info`; paths are relative to the folder around it.
    """
    found = []
    for path in paths:
        for line in _text(Path(info).parent / path).splitlines():
            if line.startswith(("import ", "import\t")):
                found.append(f"{path}: {line}"[:300])
    return found[:LIST_MAX]


@tool(idempotent=True)
def verify_files(
    info: str, environment: str, start: int = 0, files_max: int = 1000, budget_s: float = 2.0
) -> dict[str, Any]:
    """Compare a batch of files with the hashes and sizes in RECORD. See files.verify_batch.

    Args:
        start: where the last batch ended.
    """
    return files.verify_batch(Path(info), Path(environment), start, files_max, budget_s)


@tool(idempotent=True)
def parse_sources(info: str, start: int = 0, files_max: int = 400, budget_s: float = 2.0) -> dict[str, Any]:
    """Parse a batch of a distribution's modules, and look for what code should not hide. See sources.scan_batch.

    Args:
        start: where the last batch ended.
    """
    from understudy.cluster.demo import sources

    names = [entry.path for entry in files.list_files(Path(info)) if entry.path.endswith(".py")]
    return sources.scan_batch(Path(info).parent, names, start, files_max, budget_s)


@tool(idempotent=True)
def probe_import(module: str, site: str, environment: str, timeout_s: float = 15.0) -> dict[str, Any]:
    """Import a module with the environment's own interpreter, in a process of its own, and say what that did.

    Returns: notes (kind: `network`, `socket`, `process`, `write`, `read`, `library`; what; by which top-level module),
    ended (`ok`, `error`, `timeout`, `exit` or the name of a signal), error, ms, memory_mb, imports (other top-level
    modules that came along), python (the version).
    """
    import subprocess
    import sys
    import tempfile

    script = str(Path(__file__).with_name("probe.py"))
    python = next((str(p) for name in ("python", "python3") if (p := Path(environment, "bin", name)).exists()), "")
    with tempfile.TemporaryFile() as notes:
        command = [python or sys.executable, "-I", "-B", script, str(notes.fileno()), site, module]
        quiet = subprocess.DEVNULL
        try:
            status: int | None = subprocess.run(
                command, pass_fds=[notes.fileno()], stdin=quiet, stdout=quiet, stderr=quiet, timeout=timeout_s
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
        notes.seek(0)
        return _probed(notes.read(NOTES_MAX_BYTES), status)


def _probed(notes: bytes, status: int | None) -> dict[str, Any]:
    """The notes of a probe as a value. The module could write there too: nothing in them is taken on trust."""
    import signal

    found: list[dict[str, str]] = []
    end: dict[str, Any] = {}
    for line in notes.splitlines():
        try:
            note = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(note, dict) and note.get("kind") == "end":
            end = note
        elif isinstance(note, dict):
            found.append({key: str(note.get(key, ""))[:200] for key in ("kind", "what", "by")})
    if status is None:
        ended, error = "timeout", "the import had not ended when its time was up"
    elif status < 0:
        ended = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        error = f"the import ended its process with {ended}"
    elif not end:
        ended, error = "exit", f"the import left its process with exit status {status}"
    else:
        error = str(end.get("error", ""))
        ended = "error" if error else "ok"
    return {
        "ended": ended,
        "error": error[:300],
        "notes": found[:LIST_MAX],
        "ms": _number(end.get("ms")),
        "memory_mb": _number(end.get("memory_mb")),
        "imports": [str(name)[:80] for name in end.get("imports", [])][:LIST_MAX],
        "python": str(end.get("python", ""))[:20],
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


@tool
def append_ledger(path: str, row: dict[str, Any]) -> dict[str, Any]:
    """Append one line to the ledger, durably, with the name of this very call in it.

    It does not look whether the line is there already. Called twice it writes twice, which is what the check is for.
    """
    key = os.environ.get("UNDERSTUDY_EFFECT_KEY", "")
    line = json.dumps({**row, "key": key}, ensure_ascii=False).encode() + b"\n"
    # One write with O_APPEND: lines of calls that run at once cannot mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        written = os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise OSError(f"{path} took {written} of {len(line)} bytes; is the disk full?")
    return {"key": key, "bytes": written}
