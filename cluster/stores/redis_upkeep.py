"""What is around the runs in Redis: blobs, signs of life, and law 8: everything that is written has its end here."""

import itertools
from collections.abc import Sequence

from understudy.actors.records import FINAL
from understudy.actors.refusals import MEMBER_SILENT_S, no_blob, thread_in_use
from understudy.actors.store import BLOB_KEPT_S
from understudy.cluster.stores.redis_base import RedisBase
from understudy.cluster.stores.redis_codec import BEATS, RUN_KEYS, THREAD_KEYS, Keys, all_shared, pairs
from understudy.cluster.stores.redis_link import Arg, pack
from understudy.cluster.stores.redis_scripts import SCRIPTS


class RedisUpkeep(RedisBase):
    # --- blobs ---

    async def put_blob(self, digest: str, data: bytes, now: float) -> None:
        keys = Keys.of_blob(digest)
        await self._call("put_blob", keys.shared(f"blob:{digest}", "blobs"), [digest, data, repr(now)])

    async def get_blob(self, digest: str) -> bytes:
        [data] = await self._redis.ask(pack("GET", *Keys.of_blob(digest).shared(f"blob:{digest}")), text=False)
        if data is None:
            raise no_blob(digest)
        assert isinstance(data, bytes)
        return data

    async def blobs(self) -> list[str]:
        answers = await self._redis.ask(*(pack("ZRANGE", name, 0, -1) for name in all_shared("blobs")))
        return sorted(itertools.chain(*answers))

    async def _sweep_blobs(self, put_by: float) -> None:
        """One that is put again meanwhile, and named by a run after that, is found to be younger by the script."""
        answers = await self._redis.ask(
            *(pack("ZRANGEBYSCORE", name, "-inf", repr(put_by)) for name in all_shared("blobs"))
        )
        old = list(itertools.chain(*answers))
        if not old:
            return
        named = await self._redis.ask(*(pack("HMGET", name, *old) for name in all_shared("named")))
        unnamed = [digest for digest, *counts in zip(old, *named, strict=True) if not any(counts)]
        drops = [
            SCRIPTS["drop_blob"].call(Keys.of_blob(digest).shared(f"blob:{digest}", "blobs"), [digest, repr(put_by)])
            for digest in unnamed
        ]
        if drops:
            await self._redis.ask(*drops)

    # --- signs of life ---

    async def beat(self, member: str, data: str, now: float) -> None:
        await self._redis.ask(pack("HSET", BEATS, member, f"{now!r}\n{data}"))

    async def beats(self) -> dict[str, tuple[float, str]]:
        [flat] = await self._redis.ask(pack("HGETALL", BEATS))
        split = {member: text.split("\n", 1) for member, text in pairs(flat)}
        return {member: (float(at), data) for member, (at, data) in split.items()}

    # --- ends ---

    async def sweep(self, now: float) -> int:
        silent = [member for member, (at, _) in (await self.beats()).items() if at < now - MEMBER_SILENT_S]
        if silent:
            await self._redis.ask(pack("HDEL", BEATS, *silent))
        expired = await self._redis.ask(
            *(pack("ZRANGEBYSCORE", name, "-inf", repr(now)) for name in all_shared("expiry"))
        )
        deleted = 0
        for thread_id in itertools.chain(*expired):
            deleted += (await self._delete(thread_id, repr(now)))[0] == "deleted"
        await self._sweep_blobs(now - BLOB_KEPT_S)
        return deleted

    async def prune(self, thread_id: str, checkpoint_ids: Sequence[str]) -> int:
        keys = Keys.of_thread(thread_id)
        while True:
            run_ids = await self._runs_on(keys)
            names = keys.thread("runs", "checkpoints", "history") + keys.shared("heads")
            for run_id in run_ids:
                names += Keys.of_run(run_id).run("run", "receipts", "effects")
            args: list[Arg] = [thread_id, len(checkpoint_ids), *checkpoint_ids, *run_ids]
            pruned = int(await self._call("prune", names, args))
            if pruned >= 0:
                return pruned

    async def delete_thread(self, thread_id: str) -> None:
        tag, *told = await self._delete(thread_id, "")
        if tag == "unfinished":
            raise thread_in_use(thread_id, told[0])

    async def _delete(self, thread_id: str, expired_by: str) -> list[str]:
        keys = Keys.of_thread(thread_id)
        while True:
            run_ids = await self._runs_on(keys)
            names = keys.thread(*THREAD_KEYS) + keys.shared("heads", "expiry", "threads", "named")
            names += keys.index("all", *sorted(FINAL))
            for run_id in run_ids:
                names += Keys.of_run(run_id).run(*RUN_KEYS)
                self._homes.pop(run_id, None)
            args: list[Arg] = [thread_id, expired_by, len(RUN_KEYS), *run_ids]
            told: list[str] = await self._call("delete", names, args)
            if told[0] != "changed":
                return told
