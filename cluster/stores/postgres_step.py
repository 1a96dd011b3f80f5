"""The commit of a superstep after which the run goes on, as nearly all are: by the shortest way that Postgres has."""

from psycopg import errors

from understudy.actors.records import Commit
from understudy.cluster.stores.postgres_wire import Line, Prepared, Value, number
from understudy.cluster.stores.rows import COMMITTED, step_counters, to_json

STEP = Prepared("understudy_step", f"SELECT run_step({', '.join(f'${n}' for n in range(1, 19))})")
FORMATS = [int(letter == "b") for letter in "b----bb--bbb-bb-bb"]
"""Of its values: b for a text."""
[COMMIT] = COMMITTED
NAME_MAX_BYTES = 1000
"""Of a counter that is only marked. A longer one may fit no index, and whoever adds up the marks could not go on."""


def step_values(commit: Commit) -> list[Value] | None:
    """What `run_step` takes of a commit; None if it is not for it."""
    counted = dict(step_counters(commit) or ())
    if counted.pop(COMMIT, 0.0) != 1.0 or list(counted.values()) != [1.0]:
        return None
    [name] = [name.encode() for name in counted]
    if len(name) > NAME_MAX_BYTES:
        return None
    (first, second), new = commit.events, commit.checkpoint
    assert new is not None
    return [
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
        first.kind.encode(),
        number(first.at),
        to_json(dict(first.data)).encode(),
        second.kind.encode(),
        number(second.at),
        to_json(dict(second.data)).encode(),
        name,
    ]


async def take_step(line: Line, values: list[Value]) -> bool | None:
    """Whether somebody asked to cancel the run; None if nothing was changed, and `run_commit` is to be asked why."""
    try:
        asked = (await line.ask(STEP, values, FORMATS)).get_value(0, 0)
    except errors.UniqueViolation:  # of the events: another verb was faster, see run_step
        return None
    return None if asked is None else asked == b"t"
