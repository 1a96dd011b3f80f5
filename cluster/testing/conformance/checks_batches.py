"""Checks: several commits in one call, in order, each whole or not at all."""

import pytest

from understudy.actors.errors import Fenced
from understudy.actors.records import Commit, RunRecord
from understudy.actors.store import Store
from understudy.cluster.testing.conformance.suite import (
    T,
    World,
    checkpoint,
    commit_of,
    event,
    owned,
    question,
    receipt_of,
)

OK = 'checkpoint_commits_total{result="ok"}'
DUPLICATE = 'checkpoint_commits_total{result="duplicate"}'
FENCED = 'fence_rejections_total{op="commit"}'


def line_of(run: RunRecord, count: int, **last: object) -> list[Commit]:
    """Supersteps one after another, each with an event and a counter; the last one changed."""
    commits, parent = [], run.head
    for seq in range(run.seq + 1, run.seq + count + 1):
        changes: dict[str, object] = {
            "checkpoint": checkpoint(f"c{seq}", parent, seq, snapshot=seq == 1, body=f"[{seq}]"),
            "events": (event("node_finished", step=seq),),
            "counters": {"steps": 1.0},
        }
        parent = f"c{seq}"
        commits.append(commit_of(run, seq=seq, at=T + seq, step=seq, **changes))
    commits[-1] = commit_of(run, **{**vars(commits[-1]), **last})
    return commits


async def steps(store: Store, run: RunRecord) -> list[int]:
    """Those that are stored, by the chain, which has to be that of the log and of the counters as well."""
    loaded = await store.load(run.run_id)
    found = [row.step for row in loaded.chain]
    assert found == [e.data["step"] for e in await store.events(run.run_id) if e.kind == "node_finished"]
    counters = await store.counters()
    assert counters.get("steps", 0.0) == counters.get(OK, 0.0) == loaded.run.seq == len(found)
    return found


async def check_commits_of_one_call_are_applied_in_order(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    commits = line_of(run, 4, status="succeeded", result='{"r": 1}')
    done = await store.commit(*commits)
    assert (done.duplicate, done.cancel_asked) == (False, False)
    assert await steps(store, run) == [1, 2, 3, 4]
    after = await (await world.open()).run(run.run_id)
    assert (after.status, after.seq, after.step, after.head, after.result) == ("succeeded", 4, 4, "c4", '{"r": 1}')
    assert after.updated_at == T + 4
    assert [row.checkpoint_id for row in await store.history("thread")] == ["c4", "c3", "c2", "c1"]


async def check_the_answer_of_several_is_the_last_ones(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.cancel(run.run_id, T)
    assert (await store.commit(*line_of(run, 2))).cancel_asked
    run = await store.run(run.run_id)
    done = await store.commit(commit_of(run, writes={"a": "1"}), commit_of(run, seq=4, writes={"b": "2"}))
    assert (done.duplicate, done.cancel_asked) == (False, True)
    assert (await store.load(run.run_id)).writes == {"a": "1", "b": "2"}


async def check_several_commits_sent_again_are_duplicates(world: World) -> None:
    """The reply was lost: the client sends the whole call again, and once more."""
    store = await world.open()
    run = await owned(store)
    commits = line_of(run, 3)
    await store.commit(*commits)
    before = await store.load(run.run_id)
    for times in (1, 2):
        assert (await store.commit(*commits)).duplicate
        assert await store.load(run.run_id) == before
        assert (await store.counters())[DUPLICATE] == 3.0 * times
    assert await steps(store, run) == [1, 2, 3]
    ending = line_of(before.run, 2, status="succeeded")
    await store.commit(*ending)
    assert (await store.commit(*ending)).duplicate  # also after the status that it brought
    assert FENCED not in await store.counters()


async def check_several_commits_of_which_some_were_applied(world: World) -> None:
    """The connection broke, or the store crashed, between two of them: the call goes on where it stood."""
    store = await world.open()
    run = await owned(store)
    commits = line_of(run, 4, status="waiting", interrupts=(question("i1"),))
    await store.commit(*commits[:2])
    done = await store.commit(*commits)
    assert not done.duplicate
    assert await steps(store, run) == [1, 2, 3, 4]
    after = await store.run(run.run_id)
    assert (after.status, after.interrupts, after.seq) == ("waiting", (question("i1"),), 4)
    assert (await store.counters())[DUPLICATE] == 2.0


async def check_a_stale_owner_commits_none_of_several(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.requeue(run.run_id, 1, T + 1, 0.0, [], {})
    new = await store.claim(run.run_id, "two", 30, T + 1)
    with pytest.raises(Fenced):
        await store.commit(*line_of(run, 3))
    assert await steps(store, run) == []
    assert (await store.counters())[FENCED] == 1.0  # one refusal: those behind it were not looked at
    await store.commit(*line_of(new, 2))
    with pytest.raises(Fenced):
        await store.commit(*line_of(run, 3))
    assert await steps(store, run) == [1, 2]
    assert (await store.counters())[FENCED] == 2.0


async def check_what_follows_a_refused_commit_is_not_applied(world: World) -> None:
    """The first is applied and gives the run away; the second comes too late; the third is not looked at."""
    store = await world.open()
    run = await owned(store)
    first, second, third = line_of(run, 3)
    first = commit_of(run, **{**vars(first), "status": "waiting", "interrupts": (question("i1"),)})
    with pytest.raises(Fenced):
        await store.commit(first, second, third)
    assert await steps(store, run) == [1]
    assert (await store.run(run.run_id)).status == "waiting"
    assert (await store.counters())[FENCED] == 1.0


async def check_a_gap_between_several_ends_them(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    first, _, third = line_of(run, 3)
    with pytest.raises(AssertionError, match="does not follow"):
        await store.commit(first, third)
    assert await steps(store, run) == [1]
    assert FENCED not in await store.counters()


async def check_what_several_commits_clear_between_them(world: World) -> None:
    """Writes before a checkpoint go with it, those behind it stay; messages are taken; effects stand on the head."""
    store = await world.open()
    run = await owned(store)
    for n in (1, 2, 3):
        await store.send(run.run_id, f"m{n}", "1", T)
    await store.begin(receipt_of(run), 1, [], {}, T)
    await store.commit(
        commit_of(run, writes={"t1": "[1]"}, taken=(1,)),
        commit_of(run, seq=2, step=1, checkpoint=checkpoint("c1", snapshot=True)),
        commit_of(run, seq=3, step=1, writes={"t2": "[2]"}, taken=(3,)),
    )
    loaded = await store.load(run.run_id)
    assert (loaded.writes, [m.n for m in loaded.messages], loaded.receipts) == ({"t2": "[2]"}, [2], {})
    assert [receipt.key for receipt in await store.receipts(run.run_id)] == ["k1"]


async def check_a_long_call_of_commits(world: World) -> None:
    store = await world.open()
    run = await owned(store)
    await store.commit(*line_of(run, 300))
    after = await store.run(run.run_id)
    assert (after.seq, after.head) == (300, "c300")
    assert await steps(store, run) == list(range(1, 301))
