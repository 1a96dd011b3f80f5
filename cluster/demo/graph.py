"""The audit of one installed distribution, as a graph: what the demo runs some fifty times at once.

    metadata -> (startup) -> verify (again until all files are through) -> parse (likewise)
             -> probe, once for each module, side by side -> score -> (ask a person) -> record -> summary

Nothing here handles a crash. A node that is killed runs again from its checkpoint; the tool calls that it had finished
are answered by their receipts, so the row that `record` writes is written once.
"""

from typing import Any

from pydantic import BaseModel

from understudy.actors.context import Context
from understudy.actors.errors import ToolDenied
from understudy.actors.graph import Graph
from understudy.actors.outcome import Outcome
from understudy.actors.plan import END, START, Send
from understudy.actors.tool import Tool
from understudy.cluster.demo import scoring
from understudy.cluster.demo.audit import ASK_FROM, Approval, Audit, Findings, Imported, Metadata
from understudy.cluster.demo.environment import Found
from understudy.cluster.demo.tools import (
    append_ledger,
    parse_sources,
    probe_import,
    read_metadata,
    read_startup,
    verify_files,
)

graph = Graph("audit", Audit, version="1")


class Target(BaseModel):
    """One module to import."""

    module: str
    site: str
    environment: str


def audit_of(found: Found, environment: str, ledger: str, ask_from: int = ASK_FROM) -> Audit:
    """The input of a run.

    Args:
        environment, ledger: the paths that policy.yaml was given as variables.
        ask_from: the score from which on a person is asked.
    """
    return Audit(
        distribution=found.name,
        version=found.version,
        site=found.site,
        info=found.info,
        environment=environment,
        ledger=ledger,
        ask_from=ask_from,
    )


@graph.node
async def metadata(state: Audit, ctx: Context) -> dict[str, Any]:
    """What does it say about itself, and which files and modules has it?"""
    return {"metadata": Metadata.model_validate(await ctx.call(read_metadata, info=state.info))}


@graph.node
async def startup(state: Audit, ctx: Context) -> dict[str, Any]:
    """What does it do at every start of Python, without being imported?"""
    return {"startup": await ctx.call(read_startup, info=state.info, paths=state.metadata.startup)}


@graph.node
async def verify(state: Audit, ctx: Context) -> dict[str, Any]:
    """Are the files still those that were installed? One batch."""
    outcome = await ctx.outcome(
        verify_files, info=state.info, environment=state.environment, start=state.verified_to or 0
    )
    if not _went_well(outcome, verify_files):
        return {"verified_to": None, "faults": _not_ended("verify", outcome)}
    batch = outcome.value
    return {
        "verified_to": batch["next"],
        "checked": batch["checked"],
        "checked_bytes": batch["bytes"],
        "faults": Findings.model_validate(batch),
    }


@graph.node
async def parse(state: Audit, ctx: Context) -> dict[str, Any]:
    """What does its source say it will do? One batch."""
    outcome = await ctx.outcome(parse_sources, info=state.info, start=state.parsed_to or 0)
    if not _went_well(outcome, parse_sources):
        return {"parsed_to": None, "faults": _not_ended("parse", outcome)}
    batch = outcome.value
    return {
        "parsed_to": batch["next"],
        "parsed": batch["files"],
        "skipped": batch["skipped"],
        "lines": batch["lines"],
        "code": Findings.model_validate(batch),
    }


@graph.node
async def probe(target: Target, ctx: Context) -> dict[str, Any]:
    """What happens when it is imported? However the sandbox has to end that, it is an answer."""
    outcome = await ctx.outcome(probe_import, module=target.module, site=target.site, environment=target.environment)
    _went_well(outcome, probe_import)
    return {"imports": [Imported.of(target.module, outcome)]}


@graph.node
def score(state: Audit) -> dict[str, Any]:
    """How much of that is worth a look?"""
    reasons = scoring.reasons_of(state)
    return {"reasons": reasons, "score": scoring.score_of(reasons)}


@graph.node
async def ask(state: Audit, ctx: Context) -> dict[str, Any]:
    """Is it to be kept? The run sleeps, and holds no actor, until somebody answers."""
    answer = await ctx.interrupt(
        {
            "question": f"keep {state.distribution} {state.version}, with a score of {state.score}?",
            "distribution": state.distribution,
            "version": state.version,
            "score": state.score,
            "reasons": [reason.text for reason in state.reasons[:5]],
            "answer": {"approve": True, "note": "why"},
        }
    )
    return {"approval": Approval.read(answer)}


@graph.node
async def record(state: Audit, ctx: Context) -> dict[str, Any]:
    """The one node with a side effect: a row in the ledger, outside of the store."""
    verdict = scoring.verdict_of(state)
    row = {
        "distribution": state.distribution,
        "version": state.version,
        "score": state.score,
        "verdict": verdict,
        "run": ctx.run_id,
    }
    written = await ctx.call(append_ledger, path=state.ledger, row=row)
    return {"verdict": verdict, "key": written["key"]}


@graph.node
def summary(state: Audit) -> dict[str, Any]:
    """One sentence for the one who reads `understudy show`."""
    faults = state.faults.of("missing", "altered", "unlisted")
    failed = [imported.module for imported in state.imports if imported.ended != "ok"]
    parts = [
        f"{state.distribution} {state.version}: {state.verdict}, score {state.score}",
        f"{state.checked} files compared, {faults or 'no'} at fault",
        f"{len(state.imports)} modules imported" + (f", not well: {', '.join(failed)}" if failed else ""),
    ]
    return {"summary": "; ".join(parts)}


def after_metadata(state: Audit) -> str:
    return "startup" if state.metadata.startup else "verify"


def after_verify(state: Audit) -> str:
    return "verify" if state.verified_to is not None else "parse"


def after_parse(state: Audit) -> str | list[Send]:
    """Again; or one `probe` for each module, all in one superstep; or on, where there is nothing to import."""
    if state.parsed_to is not None:
        return "parse"
    targets = [Target(module=name, site=state.site, environment=state.environment) for name in state.metadata.modules]
    return [Send("probe", target) for target in targets] or "score"


def after_score(state: Audit) -> str:
    return "ask" if state.score >= state.ask_from else "record"


def _went_well(outcome: Outcome, tool: Tool[..., Any]) -> bool:
    """A call that ended badly says something about the distribution; a refusal says something about the policy."""
    if outcome.kind == "denied":
        raise ToolDenied(tool.name, outcome)
    return outcome.kind == "ok"


def _not_ended(what: str, outcome: Outcome) -> Findings:
    example = {"kind": "ended", "what": f"{what}: {outcome.kind}: {outcome.error}"[:300]}
    return Findings(counts={"ended": 1}, examples=[example])


graph.edge(START, "metadata")
graph.branch("metadata", after_metadata, ["startup", "verify"])
graph.edge("startup", "verify")
graph.branch("verify", after_verify, ["verify", "parse"])
graph.branch("parse", after_parse, ["parse", "probe", "score"])
graph.edge("probe", "score")
graph.branch("score", after_score, ["ask", "record"])
graph.edge("ask", "record")
graph.edge("record", "summary")
graph.edge("summary", END)
