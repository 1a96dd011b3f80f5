"""The stores: one protocol (`understudy.actors.store`), one conformance suite, several places to keep things."""

from pathlib import Path

from understudy.actors.errors import CallerError
from understudy.actors.store import OPENING_S, Store

CHOICES = "sqlite:///path, redis://, rediss://, valkey://, valkeys://, unix://, postgresql://, or memory:// for tests"


async def open_store(url: str, *, allow_volatile: bool = False, within_s: float = OPENING_S) -> Store:
    """The store that a URL names, ready to use. Backends are imported here, so that nobody pays for another's driver.

    `allow_volatile` accepts a Redis that would lose data as it is set up. A server has `within_s` seconds to answer:
    one that starts again is waited for, and the URL may be wrong. Raises CallerError, UnsafeStore, StoreUnavailable.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    match scheme:
        case "memory":
            from understudy.actors.memory import MemoryStore

            return MemoryStore()
        case "sqlite":
            from understudy.cluster.stores.sqlite import SqliteStore

            return await SqliteStore.open(url)
        case "redis" | "rediss" | "valkey" | "valkeys" | "unix":
            from understudy.cluster.stores.redis import RedisStore

            return await RedisStore.open(url, allow_volatile=allow_volatile, within_s=within_s)
        case "postgresql" | "postgres":
            from understudy.cluster.stores.postgres import PostgresStore

            return await PostgresStore.open(url, within_s)
    raise CallerError(f"store {_hidden(url)!r} is not known; it is one of {CHOICES}")


def file_of(url: str) -> Path | None:
    """Where a store in a file is, or would be made by being opened; None: it is in none. Raises CallerError."""
    if not url.startswith("sqlite://"):
        return None
    from understudy.cluster.stores.sqlite_file import parsed

    return parsed(url)[0]


def is_at_hand(url: str) -> bool:
    """Whether there is a store to look into. Raises CallerError."""
    path = file_of(url)
    return path.exists() if path else not url.startswith("memory:")


def _hidden(url: str) -> str:
    """A URL that may hold a password, for a message."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if found and "@" in rest else url
