"""Documents in SQLite: look and write in one transaction, so the version that was compared is the one replaced."""

from collections.abc import Callable
from sqlite3 import Connection, Row
from typing import Any

from understudy.actors.documents import Document, check_document, is_to_be_erased, is_to_be_written
from understudy.cluster.stores.sqlite_base import do, one, rows


def write(db: Connection, shelf: str, name: str, data: bytes, over: int) -> int:
    if is_to_be_written(shelf, name, read(db, shelf, name), data, over):
        do(db, "set_document", shelf, name, over + 1, data)
    return over + 1


def read(db: Connection, shelf: str, name: str) -> Document | None:
    row = one(db, "document", shelf, name)
    return _document(row) if row else None


def some(db: Connection, shelf: str, after: str, limit: int, last: bool) -> list[Document]:
    found = [_document(row) for row in rows(db, "last_documents" if last else "documents", shelf, after, limit)]
    return found[::-1] if last else found


def erase(db: Connection, shelf: str, name: str, over: int) -> None:
    if is_to_be_erased(shelf, name, read(db, shelf, name), over):
        do(db, "erase_document", shelf, name)


def shelves(db: Connection) -> dict[str, int]:
    return {row["shelf"]: row["documents"] for row in rows(db, "shelves")}


def adopt(db: Connection, shelf: str, document: Document) -> bool:
    if read(db, shelf, document.name):
        return False
    do(db, "set_document", shelf, document.name, document.version, document.data)
    return True


def _document(row: Row) -> Document:
    data = row["data"]  # text, if somebody has changed it by hand; whoever reads it judges what it says
    return Document(row["name"], row["version"], data.encode() if isinstance(data, str) else bytes(data))


class SqliteDocuments:
    """A part of `SqliteStore`, which has the ways to the file."""

    _write: Callable[..., Any]
    _read: Callable[..., Any]

    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        check_document(shelf, name, data)
        version: int = await self._write(write, shelf, name, data, over)
        return version

    async def read_document(self, shelf: str, name: str) -> Document | None:
        document: Document | None = await self._read(read, shelf, name)
        return document

    async def documents(self, shelf: str, after: str = "", limit: int = 100, *, last: bool = False) -> list[Document]:
        found: list[Document] = await self._read(some, shelf, after, limit, last)
        return found

    async def erase_document(self, shelf: str, name: str, over: int) -> None:
        await self._write(erase, shelf, name, over)

    async def shelves(self) -> dict[str, int]:
        found: dict[str, int] = await self._read(shelves)
        return found

    async def adopt_document(self, shelf: str, document: Document) -> bool:
        adopted: bool = await self._write(adopt, shelf, document)
        return adopted
