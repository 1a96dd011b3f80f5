"""The commit of a superstep after which the run goes on, as nearly all are: by the shortest way that Postgres has."""

from understudy.actors.events import sample
from understudy.actors.records import Commit
from understudy.cluster.stores.postgres_wire import Connection, Prepared, number, numbers, texts
from understudy.cluster.stores.rows import summed, to_json

COMMITTED = {sample("checkpoint_commits_total", result="ok"): 1.0}
STEP = Prepared("understudy_step", f"SELECT run_step({', '.join(f'${n}' for n in range(1, 17))})")
FORMATS = [int(letter == "b") for letter in "b----bb--bbb-bb-"]


async def take_step(connection: Connection, commit: Commit) -> bool | None:
    """Whether somebody asked to cancel the run; None if nothing was changed, and `run_commit` is to be asked why."""
    new = commit.checkpoint
    assert new is not None
    counters = summed(commit.counters, COMMITTED)
    values = [
        commit.run_id.encode(),
        b"%d" % commit.epoch,
        b"%d" % commit.seq,
        number(commit.at),
        b"%d" % commit.step,
        new.checkpoint_id.encode(),
        new.parent.encode(),
        b"%d" % new.step,
        b"t" if new.snapshot else b"f",
        new.since.encode(),
        new.body.encode(),
        texts([event.kind for event in commit.events]),
        numbers([event.at for event in commit.events]),
        texts([to_json(dict(event.data)) for event in commit.events]),
        texts([name for name, _ in counters]),
        numbers([amount for _, amount in counters]),
    ]
    asked = (await STEP.ask(connection, values, FORMATS)).get_value(0, 0)
    return None if asked is None else asked == b"t"
