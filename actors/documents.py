"""A document is a small named thing that many may want to change: whoever changes it says which version they read.

Compare-and-set is all there is: the first of several writers goes through, the others are told what there is now, look
again, and decide anew. What a document means is its shelf's business. Pure.
"""

from dataclasses import dataclass
from typing import Any

from understudy.actors.errors import CallerError, Conflict

DOCUMENT_BYTES_MAX = 256 * 1024
NAME_BYTES_MAX = 512


@dataclass(frozen=True)
class Document:
    name: str
    version: int
    """1 when it was created, one more with each write."""
    data: bytes


class Overtaken(Conflict):
    """Somebody else has written the document meanwhile; look at what it is now (`found`), and decide again."""

    def __init__(self, shelf: str, name: str, over: int, found: Document | None) -> None:
        there = f"is at version {found.version}" if found else "is not there"
        super().__init__(
            f"document {name!r} of shelf {shelf!r} {there}, not at version {over}; read it again and decide anew"
        )
        self.shelf = shelf
        self.name = name
        self.over = over
        self.found = found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shelf, self.name, self.over, self.found)


def check_document(shelf: str, name: str, data: bytes = b"") -> None:
    """Raises CallerError: no name, or one that some store could not keep; too many bytes (law 8)."""
    for what, text in (("shelf", shelf), ("name", name)):
        size = len(text.encode(errors="replace"))
        clean = "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
        if not 0 < size <= NAME_BYTES_MAX or not clean:
            raise CallerError(
                f"document {name[:80]!r} of shelf {shelf[:80]!r}: its {what} has {size} bytes; "
                f"give it 1 to {NAME_BYTES_MAX}, as UTF-8 text without NUL"
            )
    if len(data) > DOCUMENT_BYTES_MAX:
        raise CallerError(
            f"document {name!r} of shelf {shelf!r} has {len(data)} bytes, the limit is {DOCUMENT_BYTES_MAX}; "
            f"divide it, or keep the data as a blob and its digest here"
        )


def is_to_be_written(shelf: str, name: str, found: Document | None, data: bytes, over: int) -> bool:
    """False: this very write has been made, and its reply was lost. Raises Overtaken."""
    version = found.version if found else 0
    if version == over:
        return True
    if found and version == over + 1 and found.data == data:
        return False
    raise Overtaken(shelf, name, over, found)


def is_to_be_erased(shelf: str, name: str, found: Document | None, over: int) -> bool:
    """False: it is gone already. Raises Overtaken."""
    if found and found.version != over:
        raise Overtaken(shelf, name, over, found)
    return found is not None


class MemoryDocuments:
    """Documents in plain dicts; a part of `MemoryStore`."""

    def __init__(self) -> None:
        self._shelves: dict[str, dict[str, Document]] = {}

    async def write_document(self, shelf: str, name: str, data: bytes, over: int) -> int:
        check_document(shelf, name, data)
        if is_to_be_written(shelf, name, await self.read_document(shelf, name), data, over):
            self._shelves.setdefault(shelf, {})[name] = Document(name, over + 1, data)
        return over + 1

    async def read_document(self, shelf: str, name: str) -> Document | None:
        return self._shelves.get(shelf, {}).get(name)

    async def documents(self, shelf: str, after: str = "", limit: int = 100, *, last: bool = False) -> list[Document]:
        documents = self._shelves.get(shelf, {})
        names = sorted((name for name in documents if name.encode() > after.encode()), key=str.encode)
        return [documents[name] for name in (names[-limit:] if last else names[:limit])]

    async def erase_document(self, shelf: str, name: str, over: int) -> None:
        if is_to_be_erased(shelf, name, await self.read_document(shelf, name), over):
            del self._shelves[shelf][name]
            if not self._shelves[shelf]:
                del self._shelves[shelf]

    async def shelves(self) -> dict[str, int]:
        return {shelf: len(self._shelves[shelf]) for shelf in sorted(self._shelves, key=str.encode)}

    async def adopt_document(self, shelf: str, document: Document) -> bool:
        if document.name in self._shelves.get(shelf, {}):
            return False
        self._shelves.setdefault(shelf, {})[document.name] = document
        return True
