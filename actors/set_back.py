"""A clock that is set back makes the past lie ahead: what was due is not, and a lease that nobody keeps runs on.

Times in a store are those of clocks on the wall, as several machines have to agree on them. So a supervisor looks, by a
clock that only grows, whether its own was set back. Then it takes what was due by the old time for due, once; and a
lease that was given in the old time counts as passed once its owner has let the time go by in which it would have
renewed it. (The other way round, see policies/grace.)
"""

from understudy.actors.records import RunRecord
from understudy.actors.store import Store

NOTICED_S = 1.0
"""Clocks are slewed by less all the time."""
UNKEPT_S = 30.0
"""Owners renew once a second; those of `run_inline`, which may use the same store, every 15."""
LOOK_MAX = 10_000
RUNS_MAX = 100_000


class SetBack:
    """What a supervisor remembers of the time before its clock was set back.

    `wall`: seconds since the epoch, as the clock says; `now`: any clock that only grows.
    """

    def __init__(self, lease_s: float, backoff_max_s: float) -> None:
        self._lease_s = lease_s
        self._backoff_max_s = backoff_max_s
        self._ahead: float | None = None
        """How far the wall's clock was ahead of the other."""
        self._until = 0.0
        """By the old time, if nobody has looked at the store since."""
        self.late: dict[str, float] = {}
        """Runs that were due by the old time, and a time at which they may be claimed."""
        self._leases: dict[tuple[str, int], tuple[float, float]] = {}
        """Leases that were given in the old time, by run id and epoch; and when they count as passed."""

    def looks(self, wall: float, now: float) -> float:
        """To be called at each turn: by how many seconds the clock was set back since the last one; 0: it was not."""
        ahead = wall - now
        if self._ahead is None or ahead > self._ahead:
            self._ahead = ahead
        back = self._ahead - ahead
        if back < NOTICED_S:
            return 0.0
        self._until, self._ahead = max(self._until, wall + back), ahead
        return back

    async def gather(self, store: Store, wall: float, now: float) -> None:
        """Once after each time that it was: what was due, or would have been after its restart's backoff, and which
        leases the old time has left."""
        if not self._until:
            return
        until = self._until + self._backoff_max_s
        ready = (await store.due(until, LOOK_MAX)).ready
        running = await store.runs("running", RUNS_MAX)
        self.late |= dict.fromkeys(ready, until)
        for run in running:
            self.keep(run, wall, now)
        self._until = 0.0

    def keep(self, run: RunRecord, wall: float, now: float) -> None:
        """Watch the lease of a run, if it is of the old time."""
        if run.lease_until > wall + self._lease_s:
            self._leases[run.run_id, run.epoch] = (run.lease_until, now + UNKEPT_S)

    async def unkept(self, store: Store, now: float) -> list[tuple[str, int]]:
        """Runs, with their epochs, whose owner has not renewed a lease of the old time, in all the time that there
        was."""
        over = [lease for lease, (_, at) in self._leases.items() if at <= now]
        found = []
        if over:
            running = {(run.run_id, run.epoch): run.lease_until for run in await store.runs("running", RUNS_MAX)}
            for lease in over:
                until, _ = self._leases.pop(lease)
                if running.get(lease) == until:
                    found.append(lease)
        return found
