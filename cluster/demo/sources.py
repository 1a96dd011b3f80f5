"""What Python source says it will do, without running it: dynamic code, processes, sockets, things that are hidden.

Every file is parsed, which finds syntax errors; only a file that contains one of the words is walked, for a walk costs
as much again as the parse. Runs inside the sandbox: standard library only.
"""

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_MAX_BYTES = 1024 * 1024
"""Longer files are counted as skipped: parsing takes about a hundred bytes of memory for each byte of source."""
EXAMPLES_MAX = 5
"""Places that one batch names for each kind of finding; all of them are counted."""
LINE_MAX = 2000
LITERAL_MIN = 400
"""Characters of a string literal without a blank from which on its entropy is looked at."""
ENTROPY_MIN = 4.8
"""Bits for each character: base64 of random bytes has 6, hexadecimal 4, words and paths about 4."""

WORDS = (
    *(b"__import__", b"builtins", b"subprocess", b"socket", b"ctypes", b"import pty", b"from os import", b".system("),
    *(b".popen(", b".execv", b".execl", b".spawn", b".posix_spawn", b".fork"),
)
CALLED = re.compile(rb"(?:eval|exec|compile)(?<![.\w]eval)(?<![.\w]exec)(?<![.\w]compile)\s*\(")
"""The look back comes last, so that the search can skip to the first letters: four seconds less for 65 MB."""
LITERAL = re.compile(rf"""(['"])([A-Za-z0-9+/=_\-\\]{{{LITERAL_MIN},}})\1""")

BUILTINS = {"eval": "eval", "exec": "exec", "compile": "compile", "__import__": "import"}
CALLS = {
    "os.system": "process",
    "os.popen": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.posix_spawnp": "process",
    **{f"subprocess.{name}": "process" for name in ("run", "call", "check_call", "check_output", "Popen", "getoutput")},
    "pty.spawn": "process",
    "asyncio.create_subprocess_exec": "process",
    "asyncio.create_subprocess_shell": "process",
    "socket.socket": "socket",
    "socket.create_connection": "socket",
    "socket.create_server": "socket",
    "ctypes.CDLL": "ctypes",
    "ctypes.PyDLL": "ctypes",
    "ctypes.cdll.LoadLibrary": "ctypes",
    "ctypes.memmove": "ctypes",
    "ctypes.string_at": "ctypes",
}
PREFIXES = {"os.exec": "process", "os.spawn": "process"}
DECODERS = ("b64decode", "b32decode", "b85decode", "a85decode", "unhexlify", "fromhex", "decompress", "rot13")
LOADERS = ("marshal.loads", "marshal.load")


def scan_batch(site: Path, files: list[str], start: int, files_max: int, budget_s: float) -> dict[str, Any]:
    """Read the files from `start` on, until `files_max` or `budget_s` is used up.

    Returns: next (where to go on; None at the end), files, lines, skipped, counts and examples by kind of finding:
    `eval`, `exec`, `compile`, `import`, `process`, `socket`, `ctypes`, `hidden` (decoded and then executed), `literal`
    (long and of high entropy), `line` (very long), `syntax`.
    """
    import gc
    import time

    gc.disable()  # trees have no cycles, and looking for some in half a million new nodes is a third of the time
    began = time.monotonic()
    counts: Counter[str] = Counter()
    examples: list[dict[str, str]] = []
    read = lines = skipped = 0
    position = start
    for position, name in enumerate(files[start:], start + 1):
        source = _read(site / name)
        if source is None:
            skipped += 1
        else:
            read += 1
            lines += source.count(b"\n")
            for kind, line, text in scan(source):
                counts[kind] += 1
                if counts[kind] <= EXAMPLES_MAX:
                    examples.append({"kind": kind, "where": f"{name}:{line}"[:300], "text": text[:120]})
        if position - start >= files_max or time.monotonic() - began >= budget_s:
            break
    gc.enable()
    following = None if position >= len(files) else position
    return {
        "next": following,
        "files": read,
        "lines": lines,
        "skipped": skipped,
        "counts": dict(counts),
        "examples": examples,
    }


def _read(path: Path) -> bytes | None:
    """The source; None where it is too long, or not there (which the hashes tell)."""
    try:
        with path.open("rb") as file:
            source = file.read(FILE_MAX_BYTES + 1)
    except OSError:
        return None
    return None if len(source) > FILE_MAX_BYTES else source


def scan(source: bytes) -> Iterator[tuple[str, int, str]]:
    """The findings in one file: (kind, line, text)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield "syntax", getattr(error, "lineno", None) or 1, f"{type(error).__name__}: {error}"
        return
    if len(source) > LITERAL_MIN:
        yield from _long(source)
    if any(word in source for word in WORDS) or CALLED.search(source):
        yield from _calls(tree)


def _long(source: bytes) -> Iterator[tuple[str, int, str]]:
    """Lines that nobody has written by hand, and literals that look like packed data."""
    if len(max(source.splitlines(), key=len, default=b"")) < LITERAL_MIN:
        return
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) < LITERAL_MIN:
            continue
        text = line.decode("utf-8", "replace")
        if len(line) > LINE_MAX:
            yield "line", number, f"{len(line)} bytes: {text[:60]}..."
        for match in LITERAL.finditer(text):
            if entropy(match[2]) >= ENTROPY_MIN:
                yield "literal", number, f"{len(match[2])} characters: {match[2][:40]}..."


def entropy(text: str) -> float:
    """Bits for each character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _calls(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    nodes = list(ast.walk(tree))
    names = _imported(nodes)
    for node in nodes:
        if isinstance(node, ast.Call):
            called = _dotted(node.func, names)
            kind = _kind(called)
            if kind in ("eval", "exec", "compile") and _decodes(node, names):
                yield "hidden", node.lineno, _line(node)
            elif kind:
                yield kind, node.lineno, _line(node)


def _imported(nodes: list[ast.AST]) -> dict[str, str]:
    """What the names in a file stand for: `sp` for `subprocess`, `system` for `os.system`."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`os.system` for whatever stands for it in this file; empty for what is computed."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def _kind(called: str) -> str:
    if called.removeprefix("builtins.") in BUILTINS:
        return BUILTINS[called.removeprefix("builtins.")]
    if called in CALLS:
        return CALLS[called]
    return next((kind for prefix, kind in PREFIXES.items() if called.startswith(prefix)), "")


def _decodes(node: ast.Call, names: dict[str, str]) -> bool:
    """The code that is executed comes out of a decoder in the same expression."""
    for argument in node.args:
        for inner in ast.walk(argument):
            if isinstance(inner, ast.Call):
                called = _dotted(inner.func, names)
                attribute = inner.func.attr if isinstance(inner.func, ast.Attribute) else called
                if attribute.rsplit(".", 1)[-1] in DECODERS or called in LOADERS:
                    return True
    return False


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())
