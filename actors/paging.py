"""All that a store has of a kind, page by page: nobody holds it all at once."""

from collections.abc import AsyncIterator

from understudy.actors.documents import Document
from understudy.actors.store import Store

THREADS_AT_ONCE = 1000
DOCUMENTS_AT_ONCE = 50
"""A document is 256 KiB at most."""


async def each_thread(store: Store) -> AsyncIterator[str]:
    """Ids, in order."""
    page: list[str] = []
    while page := await store.threads(page[-1] if page else "", THREADS_AT_ONCE):
        for thread_id in page:
            yield thread_id


async def each_document(store: Store, shelf: str, after: str = "") -> AsyncIterator[Document]:
    """Those of a shelf behind a name, in order."""
    while page := await store.documents(shelf, after, DOCUMENTS_AT_ONCE):
        for document in page:
            yield document
        if len(page) < DOCUMENTS_AT_ONCE:
            return
        after = page[-1].name
