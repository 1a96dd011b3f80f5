"""Law 8: a superstep costs what it writes, not what there is. Counted, not timed: bytes copied and items decoded."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from support.stepping import Stepping, loop_of
from understudy import append, merge, messages, union
from understudy.actors import values
from understudy.actors.channels import Channel


class Message(BaseModel):
    id: str
    text: str = "m" * 500


class Long(BaseModel):
    log: Annotated[list[str], append] = []
    seen: Annotated[set[str], union] = set()
    by_name: Annotated[dict[str, str], merge] = {}
    chat: Annotated[list[Message], messages] = []
    count: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each text that was put together out of pieces, or decoded."""
    sizes: list[int] = []

    def noting_fold(op: values.Op, writes: Any) -> str:
        text = folded(op, writes)
        sizes.append(len(text))
        return text

    def noting_grown(self: values.Grown) -> str:
        text = fold(self)
        sizes.append(len(text))
        return text

    def noting_decode(self: Channel, text: str) -> Any:
        sizes.append(len(text))
        return decode(self, text)

    folded, fold, decode = values.folded, values.Grown._fold, Channel.decode
    monkeypatch.setattr(values, "folded", noting_fold)
    monkeypatch.setattr(values.Grown, "_fold", noting_grown)
    monkeypatch.setattr(Channel, "decode", noting_decode)
    return sizes


def test_a_step_costs_the_same_at_the_ten_thousandth_message(work: list[int]) -> None:
    stepping = Stepping(loop_of(Long, "say"))
    costs: list[int] = []
    for n in range(10_000):
        before = len(work)
        assert stepping.state().count == n, "a node, and the branch behind it, that look at a counter"
        text = f"{n}".ljust(100, ".")
        stepping.step(
            {
                "say": {
                    "log": [text],
                    "seen": {text},
                    "by_name": {text: text},
                    "chat": [Message(id=text)],
                    "count": n + 1,
                }
            }
        )
        costs.append(0 if stepping.rows[-1].snapshot else sum(work[before:]))
    assert max(costs[100:200]) <= max(costs[-100:]) <= max(costs[100:200]) + 20, "a longer counter, and nothing else"
    snapshots = [len(row.body) for row in stepping.rows if row.snapshot]
    deltas = sum(len(row.body) for row in stepping.rows if not row.snapshot)
    assert len(snapshots) <= 16
    assert sum(snapshots) <= 2 * deltas
    whole = stepping.restored()
    assert (len(whole.log), len(whole.seen), len(whole.by_name), len(whole.chat)) == (10_000,) * 4
