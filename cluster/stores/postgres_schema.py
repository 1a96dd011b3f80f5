"""The schema of a Postgres store: made, or brought up to date, by whoever opens the database first."""

from understudy.actors.errors import CallerError
from understudy.cluster.stores.postgres_client import Connection
from understudy.cluster.stores.statements import script, statements

SQL = statements("postgres_reads.sql")
SCHEMA_VERSION = 9
UPGRADES = {version: f"postgres_{version + 1}.sql" for version in range(1, SCHEMA_VERSION)}
"""From which version to the next, by which script."""
SCHEMA_LOCK = 0x756E6472


async def prepare(connection: Connection, where: str) -> None:
    """Make what is missing, in one transaction; the others wait for it. Raises CallerError: not UTF8, or newer."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise CallerError(f"{where} keeps text as {encoding}; understudy needs a UTF8 database")
    version = await _version(connection)
    if not version or version in UPGRADES:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
            version = await _make_or_upgrade(connection)
    if version != SCHEMA_VERSION:
        raise CallerError(
            f"{where} has schema version {version}, this understudy knows {SCHEMA_VERSION}; "
            f"upgrade understudy, or use another database"
        )


async def _make_or_upgrade(connection: Connection) -> int:
    version = await _version(connection)
    if version and version not in UPGRADES:
        return version  # somebody was faster
    if not version:
        await connection.execute(script("postgres.sql").encode())
        await connection.execute("INSERT INTO meta (version) VALUES (%s)", [SCHEMA_VERSION])
    else:
        await connection.execute(script("postgres_upgrade.sql").encode())
    while version in UPGRADES:
        await connection.execute(script(UPGRADES[version]).encode())
        version += 1
    await connection.execute("UPDATE meta SET version = %s", [SCHEMA_VERSION])
    for verbs in ("postgres_verbs.sql", "postgres_moves.sql", "postgres_documents.sql"):
        await connection.execute(script(verbs).encode())
    return SCHEMA_VERSION


async def _version(connection: Connection) -> int:
    """Of the schema; 0 if there is none."""
    # Not to_regclass: it answers from a cache, which may not know yet what was made while we waited for the lock.
    cursor = await connection.execute(SQL["has_schema"].encode())
    if not await cursor.fetchone():
        return 0
    cursor = await connection.execute(SQL["version"].encode())
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
