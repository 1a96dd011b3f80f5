"""A fork knows which effects of its origin lie beyond the fork point, and repeats none of them without being asked.

The list travels in the fork's input, so that it needs nothing of the origin to be asked about; only to reuse an outcome
the origin's receipt has to be there still. Law 7: approvals are not on it. What a person allowed the origin, nobody
has allowed the fork.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

from understudy.actors.effects import is_effect, step_of
from understudy.actors.records import Receipt, Standing

Mode = Literal["ask", "reuse", "repeat", "refuse"]
MODES: tuple[Mode, ...] = ("ask", "reuse", "repeat", "refuse")


@dataclass(frozen=True)
class Beyond:
    """An effect of the origin that lies beyond the fork point."""

    place: str
    """Where it stands, step/task/node/name/index: the same in origin and fork."""
    name: str
    """The tool's name; `effect:` and a name for what a node performed itself (`ctx.effect`)."""
    digest: str
    standing: Standing
    """How it stood when the fork was made."""
    call: str
    """What was asked for, in words; empty if the origin's event log does not tell."""
    run_id: str
    """With `key` and `checkpoint_id`: where its receipt is."""
    key: str
    checkpoint_id: str

    def would(self, mode: Mode) -> str:
        """What a fork does when it comes to this place and asks for the same thing, in words."""
        match mode:
            case "repeat":
                return "is done again, if the policy allows it"
            case "refuse":
                return "is refused, and the node is told so"
            case "reuse" if self.standing in ("done", "failed"):
                return "is not done again: the origin's outcome answers"
            case _:
                return "is asked about first: repeat, reuse or refuse"


@dataclass(frozen=True)
class Fork:
    """What a fork carries of its origin."""

    mode: Mode
    effects: Mapping[str, Beyond]
    """By place."""

    def of_origin(self, place: str, digest: str) -> Beyond | None:
        """What the origin did that a call in the fork may repeat: this very call in its place, or elsewhere (the fork
        may come to it on another way), or else another call in this place."""
        here = self.effects.get(place)
        if here is not None and here.digest == digest:
            return here
        return next((told for told in self.effects.values() if told.digest == digest), here)


def beyond_point(
    receipts: Iterable[Receipt], calls: Mapping[str, str], inherited: Fork | None, step: int
) -> list[Beyond]:
    """The effects beyond the end of superstep `step`, in the order of their steps.

    Args:
        receipts: those of the origin, oldest first; the last one of a place is how it stands.
        calls: what was asked for, by digest.
        inherited: what the origin itself, a fork, has not come to yet.
    Those that were refused are left out: nothing has happened there.
    """
    found = {place: told for place, told in (inherited.effects if inherited else {}).items() if step_of(place) > step}
    for receipt in receipts:
        if step_of(receipt.place) <= step or not is_effect(receipt.tool):
            continue
        found.pop(receipt.place, None)
        if receipt.state == "done" and json.loads(receipt.outcome)["kind"] == "denied":
            continue
        found[receipt.place] = Beyond(
            place=receipt.place,
            name=receipt.tool,
            digest=receipt.digest,
            standing=receipt.standing,
            call=calls.get(receipt.digest, ""),
            run_id=receipt.run_id,
            key=receipt.key,
            checkpoint_id=receipt.checkpoint_id,
        )
    return sorted(found.values(), key=lambda told: step_of(told.place))


def carrying(run_input: str, mode: Mode, effects: Iterable[Beyond]) -> str:
    """The input of a fork: the origin's, and what lies beyond."""
    given = json.loads(run_input)
    given["beyond"] = {"mode": mode, "effects": [asdict(told) for told in effects]}
    return json.dumps(given, ensure_ascii=False)


@lru_cache(maxsize=256)
def fork_of(run_input: str) -> Fork | None:
    """What a run carries of its origin; None if it is no fork."""
    if '"beyond"' not in run_input:
        return None
    told = json.loads(run_input).get("beyond")
    if told is None:
        return None
    return Fork(told["mode"], {effect["place"]: Beyond(**effect) for effect in told["effects"]})
