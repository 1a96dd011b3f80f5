"""What one audit knows: the state of its run, a field for each channel, and the values in them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel

from understudy.actors.outcome import Outcome
from understudy.actors.reducers import add, append

Verdict = Literal["clean", "suspicious", "approved", "rejected"]
"""`suspicious`: not high enough to ask about, too high to be called clean. The last two are a person's."""
SUSPICIOUS_FROM = 15
ASK_FROM = 30
EXAMPLES_MAX = 40


class Metadata(BaseModel):
    """What the distribution says about itself, and what it has installed. See tools.read_metadata."""

    summary: str = ""
    licence: str = ""
    requires: list[str] = []
    requires_python: str = ""
    entry_points: list[str] = []
    editable: bool = False
    files: int = 0
    natives: int = 0
    sources: int = 0
    startup: list[str] = []
    modules: list[str] = []
    not_imported: list[str] = []


class Findings(BaseModel):
    """How many of each kind, and some examples."""

    counts: dict[str, int] = {}
    examples: list[dict[str, str]] = []

    def __getitem__(self, kind: str) -> int:
        return self.counts.get(kind, 0)

    def of(self, *kinds: str) -> int:
        return sum(self[kind] for kind in kinds)


def merged(old: Findings, new: Findings) -> Findings:
    """Reducer: counts add up; of the examples the first stay, so that the state stays small."""
    counts = {kind: old[kind] + new[kind] for kind in {**old.counts, **new.counts}}
    return Findings(counts=counts, examples=[*old.examples, *new.examples][:EXAMPLES_MAX])


class Imported(BaseModel):
    """What the import of one module did, in the sandbox."""

    module: str
    ended: str
    """`ok`, `error`, `timeout`, `exit`, a signal, or how the sandbox ended the call: `out_of_memory`, `killed`, ..."""
    error: str = ""
    notes: list[dict[str, str]] = []
    imports: list[str] = []
    ms: float = 0.0
    memory_mb: float = 0.0

    @staticmethod
    def of(module: str, outcome: Outcome) -> "Imported":
        """A call that did not end well is a finding about the module, not a failure of the audit."""
        if outcome.kind == "ok":
            return Imported.model_validate({**outcome.value, "module": module})
        memory_mb = round(outcome.peak_memory_bytes / 1024**2, 1)
        return Imported(module=module, ended=outcome.kind, error=outcome.error[:300], memory_mb=memory_mb)

    def did(self, kind: str) -> list[str]:
        """What the module itself did of a kind, not what it imported."""
        own = self.module.split(".")[0]
        return [note["what"] for note in self.notes if note.get("kind") == kind and note.get("by") == own]


class Reason(BaseModel):
    """Why a distribution has some of its points."""

    points: int
    text: str


class Approval(BaseModel):
    """What a person answered."""

    approve: bool
    note: str = ""
    by: str = "a person"

    @staticmethod
    def read(answer: Any) -> "Approval":
        """From whatever JSON was given as the answer; what is not clearly a yes is a no."""
        if isinstance(answer, dict):
            by, note = str(answer.get("by") or "a person"), str(answer.get("note") or "")
            return Approval(approve=answer.get("approve") is True, note=note[:500], by=by[:80])
        return Approval(approve=answer is True)


class Audit(BaseModel):
    """The state of one audit. The first six are its input."""

    distribution: str
    version: str
    site: str
    info: str
    environment: str
    ledger: str
    ask_from: int = ASK_FROM

    metadata: Metadata = Metadata()
    startup: list[str] = []
    verified_to: int | None = 0
    """How far `verify` has come in RECORD; None when it is through. Likewise `parsed_to`."""
    parsed_to: int | None = 0
    checked: Annotated[int, add] = 0
    checked_bytes: Annotated[int, add] = 0
    parsed: Annotated[int, add] = 0
    skipped: Annotated[int, add] = 0
    lines: Annotated[int, add] = 0
    faults: Annotated[Findings, merged] = Findings()
    code: Annotated[Findings, merged] = Findings()
    imports: Annotated[list[Imported], append] = []

    score: int = 0
    reasons: list[Reason] = []
    approval: Approval | None = None
    verdict: Verdict | None = None
    key: str = ""
    """The effect key of the call that wrote the ledger row."""
    summary: str = ""
