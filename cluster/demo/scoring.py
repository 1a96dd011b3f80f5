"""What findings are worth: 0 (nothing to see) to 100, with a reason for every point.

The weights are set so that a plain environment has a handful to ask a person about, and the signs of an attack (altered
files, hidden code, an import that talks to the network) are enough by themselves.
"""

from collections.abc import Iterator

from understudy.cluster.demo.audit import SUSPICIOUS_FROM, Audit, Imported, Reason, Verdict

SECRETS = (
    "/.ssh",
    "/.aws",
    "/.netrc",
    "/.pypirc",
    "/.git-credentials",
    "/.kube",
    "/.docker",
    "/etc/shadow",
    "/environ",
)
MEMORY_MB = 512


def reasons_of(audit: Audit) -> list[Reason]:
    """Everything that speaks against a distribution, the heaviest first."""
    found = [*_files(audit), *_startup(audit), *_code(audit)]
    for imported in audit.imports:
        found += _import(imported)
    return sorted((reason for reason in found if reason.points > 0), key=lambda reason: -reason.points)


def score_of(reasons: list[Reason]) -> int:
    return min(100, sum(reason.points for reason in reasons))


def verdict_of(audit: Audit) -> Verdict:
    """A person's word where there is one. A score that nobody was asked about is clean or suspicious."""
    if audit.approval is not None:
        return "approved" if audit.approval.approve else "rejected"
    return "suspicious" if audit.score >= min(SUSPICIOUS_FROM, audit.ask_from) else "clean"


def _files(audit: Audit) -> Iterator[Reason]:
    faults = audit.faults
    if n := faults["altered"]:
        yield Reason(points=min(60, 35 + 5 * n), text=f"{_files_of(n)} altered since the installation")
    if n := faults["missing"]:
        yield Reason(points=min(30, 10 + 2 * n), text=f"{_files_of(n)} missing")
    if n := faults["unlisted"]:
        yield Reason(points=min(20, 5 + n), text=f"{_files_of(n)} in its packages that RECORD does not list")
    if faults["unrecorded"]:
        yield Reason(points=10, text="no RECORD, so nothing to compare its files with")
    if n := faults.of("unreadable", "unhashed", "outside"):
        yield Reason(points=5, text=f"{_files_of(n)} could not be compared")
    if faults["ended"]:
        yield Reason(points=15, text="a look at its files did not come to an end")


def _startup(audit: Audit) -> Iterator[Reason]:
    if n := len(audit.startup):
        yield Reason(points=15, text=f"{_count(n, 'line')} that every start of Python executes")


def _code(audit: Audit) -> Iterator[Reason]:
    code = audit.code
    if n := code["hidden"]:
        yield Reason(points=min(60, 30 + 10 * n), text=f"code that is decoded and executed, {_places(n)}")
    if n := code["literal"]:
        yield Reason(points=min(20, 5 + 2 * n), text=f"long literals that look like packed data, {_places(n)}")
    if n := code.of("eval", "exec", "compile", "import"):
        density = 10_000 * n / max(audit.lines, 1000)
        yield Reason(points=min(15, round(2 + density)), text=f"eval, exec, compile or __import__, {_places(n)}")
    if n := code["process"]:
        yield Reason(points=min(10, 2 + n // 4), text=f"starts other programs, {_places(n)}")
    if n := code["socket"]:
        yield Reason(points=min(8, 3 + n // 4), text=f"opens sockets, {_places(n)}")
    if n := code["ctypes"]:
        yield Reason(points=min(8, 3 + n // 4), text=f"calls native code through ctypes, {_places(n)}")
    if n := code["line"]:
        yield Reason(points=min(5, 1 + n // 4), text=f"{_count(n, 'line')} that nobody has written by hand")
    if n := code["syntax"]:
        yield Reason(points=min(5, 1 + n), text=f"{_files_of(n)} that this Python cannot read")


def _import(imported: Imported) -> Iterator[Reason]:
    who = f"import {imported.module}"
    if done := imported.did("network"):
        yield Reason(points=45, text=f"{who} uses the network: {done[0]}")
    elif done := imported.did("socket"):
        yield Reason(points=15, text=f"{who} makes a socket: {done[0]}")
    if done := imported.did("process"):
        yield Reason(points=35, text=f"{who} starts a process: {done[0]}")
    if done := imported.did("write"):
        yield Reason(points=25, text=f"{who} changes files: {done[0]}")
    if done := [path for path in imported.did("read") if any(secret in path for secret in SECRETS)]:
        yield Reason(points=45, text=f"{who} looks for secrets: {done[0]}")
    elif done := imported.did("read"):
        yield Reason(points=3, text=f"{who} reads outside of the environment: {done[0]}")
    if done := imported.did("library"):
        yield Reason(points=4, text=f"{who} loads a library: {done[0]}")
    if imported.ended == "error":
        yield Reason(points=3, text=f"{who} fails: {imported.error}")
    elif imported.ended != "ok":
        yield Reason(points=25, text=f"{who} ended with {imported.ended}: {imported.error}")
    if imported.memory_mb > MEMORY_MB:
        yield Reason(points=5, text=f"{who} takes {imported.memory_mb:.0f} MB")


def _files_of(n: int) -> str:
    return _count(n, "file")


def _places(n: int) -> str:
    return "in " + _count(n, "place")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
