"""Whether a Redis keeps what it is given: asked once when the store is opened, told by `doctor`.

A store that evicts or forgets would break every law at once, so a Redis that is set up as a cache is refused, with the
setting, its value and the command that mends it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from understudy.actors.errors import CallerError, UnsafeStore
from understudy.cluster.stores.redis_anew import pairs_of_info
from understudy.cluster.stores.redis_client import RedisClient
from understudy.cluster.stores.redis_link import pack

VERSION_MIN = (7, 0)


@dataclass(frozen=True)
class RedisInfo:
    """What INFO tells, and CONFIG where it is allowed (managed servers often hide it)."""

    where: str
    info: Mapping[str, str]
    appendfsync: str

    @property
    def version(self) -> tuple[int, ...]:
        # Valkey tells the Redis version that it is compatible with here, and its own as valkey_version.
        return tuple(int(part) for part in self.info.get("redis_version", "0").split(".")[:2] if part.isdigit())

    @property
    def durable(self) -> bool:
        return self.info.get("aof_enabled") == "1" and self.info.get("aof_last_write_status") == "ok"

    def detail(self) -> dict[str, str]:
        info = self.info
        detail = {
            "version": info.get("valkey_version") or info.get("redis_version", "unknown"),
            "appendonly": "yes" if info.get("aof_enabled") == "1" else "no",
            "appendfsync": self.appendfsync,
            "aof_last_write_status": info.get("aof_last_write_status", "unknown"),
            "maxmemory_policy": info.get("maxmemory_policy", "unknown"),
            "maxmemory_bytes": info.get("maxmemory", "unknown"),
            "used_memory_bytes": info.get("used_memory", "unknown"),
            "role": info.get("role", "unknown"),
        }
        if info.get("aof_enabled") == "1" and info.get("aof_rewrites") == "0":  # since it was asked to, see redis_anew
            detail["note"] = (
                "its user may not have it write its append-only file anew (BGREWRITEAOF), so of a transaction that a "
                "crash tears it may execute a part later; allow it (ACL SETUSER ... +bgrewriteaof)"
            )
        return detail


async def read_info(redis: RedisClient) -> list[RedisInfo]:
    """Of the server, or of every node of a cluster that has keys; finds the nodes, if it is one."""
    await redis.ask_each(pack("PING"))  # waits while it reads its file: INFO answers, and says that there is none
    texts = await redis.ask_each(pack("INFO"))
    if redis.slots is None and any(pairs_of_info(text).get("cluster_enabled") == "1" for [text] in texts.values()):
        await redis.find_nodes()
        await redis.ask_each(pack("PING"))
        texts = await redis.ask_each(pack("INFO"))
    try:
        policies = await redis.ask_each(pack("CONFIG", "GET", "appendfsync"))
    except (CallerError, AssertionError):  # denied, or an unknown command: a managed server
        policies = {}
    found = []
    for where, [text] in texts.items():
        [flat] = policies.get(where, [[]])
        found.append(RedisInfo(where, pairs_of_info(text), flat[1] if len(flat) > 1 else "unknown"))
    return found


def check_safety(found: RedisInfo, allow_volatile: bool) -> None:
    """Raise UnsafeStore unless data is safe here. Too old a version or a read-only replica never is allowed."""
    info, where = found.info, f"Redis at {found.where}"
    if found.version < VERSION_MIN:
        raise UnsafeStore(
            f"{where} has version {info.get('redis_version')}; scripts with flags need 7.0 or newer, or any Valkey"
        )
    if info.get("role") == "slave" and info.get("slave_read_only", "1") == "1":
        raise UnsafeStore(
            f"{where} is a read-only replica of {info.get('master_host')}:{info.get('master_port')}; "
            f"give the URL of the primary"
        )
    if allow_volatile:
        return
    if info.get("aof_enabled") != "1":
        raise UnsafeStore(
            f"{where} has appendonly no, so runs would be lost when it restarts; set it: `redis-cli CONFIG SET "
            f"appendonly yes`, and `appendonly yes` in redis.conf (if the server is durable without, or the data may "
            f"be lost: allow_volatile)"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        raise UnsafeStore(
            f"{where} has maxmemory-policy {policy} with maxmemory {info['maxmemory']}, so it would silently drop "
            f"runs; set it: `redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in redis.conf"
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        raise UnsafeStore(
            f"{where} has aof_last_write_status {info['aof_last_write_status']}: it could not write its append-only "
            f"file; free space on its disk (see its log), then `redis-cli INFO persistence` shows `ok`"
        )
