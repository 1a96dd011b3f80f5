"""What the tests of the store in Postgres share."""

import asyncio
from collections.abc import Awaitable, Callable

from understudy.cluster.stores.postgres import PostgresStore


def using(url: str, check: Callable[[PostgresStore], Awaitable[None]]) -> None:
    async def go() -> None:
        store = await PostgresStore.open(url)
        try:
            await check(store)
        finally:
            await store.close()

    asyncio.run(go())


async def one(store: PostgresStore, statement: str) -> int:
    """The number that a statement answers."""
    found = await store.connections.run(lambda connection: connection.execute(statement.encode()))
    row = await found.fetchone()
    assert row is not None
    return int(row[0])
