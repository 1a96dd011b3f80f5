"""Documents in Redis: a shelf is one hash with an index of its names, in one partition, and each verb is one script."""

import itertools

from understudy.actors.documents import Document, Overtaken, check_document
from understudy.cluster.stores.redis_base import RedisBase
from understudy.cluster.stores.redis_codec import Keys, all_shared
from understudy.cluster.stores.redis_link import Arg, pack
from understudy.cluster.stores.redis_scripts import SCRIPTS


class RedisDocuments(RedisBase):
    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        check_document(shelf, name, data)
        await self._decided("write_document", shelf, name, over, data)
        return over + 1

    async def read_document(self, shelf: str, name: str) -> Document | None:
        [kept] = await self._redis.ask(pack("HGET", _keys(shelf)[0], name), text=False)
        return _document(name, kept)

    async def documents(self, shelf: str, after: str = "", limit: int = 100, *, last: bool = False) -> list[Document]:
        start = f"({after}" if after else "-"
        args: list[Arg] = ["ZREVRANGEBYLEX", "+", start, limit] if last else ["ZRANGEBYLEX", start, "+", limit]
        call = SCRIPTS["documents"].call(_keys(shelf)[:2], args)
        [flat] = await self._redis.ask(call, text=False)
        found = [_document(name.decode(), kept) for name, kept in zip(flat[::2], flat[1::2], strict=True)]
        documents = [document for document in found if document]
        return documents[::-1] if last else documents

    async def erase_document(self, shelf: str, name: str, over: int) -> None:
        await self._decided("erase_document", shelf, name, over)

    async def shelves(self) -> dict[str, int]:
        answers = await self._redis.ask(*(pack("SMEMBERS", name) for name in all_shared("document-shelves")))
        shelves = sorted(itertools.chain(*answers), key=str.encode)
        sizes = await self._redis.ask(*(pack("HLEN", _keys(shelf)[0]) for shelf in shelves)) if shelves else []
        return {shelf: size for shelf, size in zip(shelves, sizes, strict=True) if size}

    async def adopt_document(self, shelf: str, document: Document) -> bool:
        kept = b"%d\n%b" % (document.version, document.data)
        return bool(await self._call("adopt_document", _keys(shelf), [shelf, document.name, kept]))

    async def _decided(self, script: str, shelf: str, name: str, over: int, *data: bytes) -> None:
        call = SCRIPTS[script].call(_keys(shelf), [shelf, name, over, *data])
        [[tag, *found]] = await self._redis.ask(call, text=False)
        if tag != b"ok":
            raise Overtaken(shelf, name, over, _document(name, found[0]))


def _keys(shelf: str) -> list[str]:
    return Keys.of_blob(shelf).shared(f"documents:{shelf}", f"document-names:{shelf}", "document-shelves")


def _document(name: str, kept: bytes | None) -> Document | None:
    if kept is None:
        return None
    version, _, data = kept.partition(b"\n")
    return Document(name, int(version), data)
