"""Documents in Postgres: one statement each, which the row itself decides (see postgres_documents.sql)."""

from collections.abc import Awaitable, Callable
from typing import Any

from understudy.actors.documents import Document, Overtaken, check_document


class PostgresDocuments:
    """A part of `PostgresStore`, which has the ways to the database."""

    _one: Callable[..., Awaitable[tuple[Any, ...]]]
    _rows: Callable[..., Awaitable[list[tuple[Any, ...]]]]

    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        check_document(shelf, name, data)
        self._refuse(shelf, name, over, *await self._one("document_write", shelf, name, data, over))
        return over + 1

    async def read_document(self, shelf: str, name: str) -> Document | None:
        rows = await self._rows("document", shelf=shelf, document=name)
        return _document(*rows[0]) if rows else None

    async def documents(self, shelf: str, after: str = "", limit: int = 100, *, last: bool = False) -> list[Document]:
        rows = await self._rows("last_documents" if last else "documents", shelf=shelf, after=after, limit=limit)
        return [_document(*row) for row in rows]

    async def erase_document(self, shelf: str, name: str, over: int) -> None:
        self._refuse(shelf, name, over, *await self._one("document_erase", shelf, name, over))

    async def shelves(self) -> dict[str, int]:
        return dict(await self._rows("shelves"))

    async def adopt_document(self, shelf: str, document: Document) -> bool:
        return bool(
            await self._rows(
                "adopt_document", shelf=shelf, document=document.name, version=document.version, data=document.data
            )
        )

    def _refuse(self, shelf: str, name: str, over: int, outcome: str, version: int | None, data: bytes | None) -> None:
        if outcome == "overtaken":
            found = None if version is None or data is None else _document(name, version, data)
            raise Overtaken(shelf, name, over, found)


def _document(name: str, version: int, data: bytes) -> Document:
    return Document(name, version, bytes(data))
