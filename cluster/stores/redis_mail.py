"""Messages and streams in Redis: a mailbox is a sorted set by number, a stream a list whose last chunks are kept."""

from collections.abc import Sequence

from understudy.actors.records import Chunk
from understudy.actors.refusals import fenced, mailbox_full, no_mailbox, no_run
from understudy.cluster.stores.redis_base import RedisBase
from understudy.cluster.stores.redis_codec import Keys, chunk_text, counted, message_text, read_chunk, to_json


class RedisMail(RedisBase):
    async def send(self, run_id: str, message_id: str, body: str, now: float, parent_epoch: int = 0) -> int:
        keys = Keys.of_run(run_id)
        parent = (await self._home_of(run_id)).parent if parent_epoch else ""
        event = to_json({"kind": "message", "at": now, "data": {"message_id": message_id, "n": 0}})
        tag, *told = await self._call(
            "send",
            [*keys.run("run", "events", "answers", "messages", "sent"), *keys.place(), *keys.parents(parent)[:1]],
            [
                run_id,
                message_id,
                repr(now),
                message_text(message_id, body, now),
                event.removesuffix("0}}"),
                parent_epoch,
            ],
        )
        if tag == "missing":
            raise no_run(run_id)
        if tag == "fenced":
            raise fenced(run_id, parent_epoch, "send")
        if tag == "final":
            raise no_mailbox(self._record(run_id, told))
        if tag == "full":
            raise mailbox_full(run_id, int(told[0]))
        return int(told[0])

    async def stream(self, run_id: str, epoch: int, chunks: Sequence[Chunk]) -> None:
        keys = Keys.of_run(run_id)
        texts = counted([chunk_text(chunk) for chunk in chunks])
        [tag] = await self._call("stream", keys.run("run", "chunks"), [epoch, *texts])
        if tag == "fenced":
            raise fenced(run_id, epoch, "stream")

    async def chunks(self, run_id: str, after: int = 0, limit: int = 1000) -> list[Chunk]:
        keys = Keys.of_run(run_id)
        tag, *told = await self._call("chunks", keys.run("run", "chunks"), [max(0, after), max(1, limit)])
        if tag == "missing":
            raise no_run(run_id)
        return [read_chunk(text, n) for n, text in enumerate(told[1][: max(0, limit)], told[0] + 1)]
