"""Has a Redis that has just started write its append-only file anew, before anything else is written to it.

A server that is killed may leave half a transaction at the end of that file. At the next start Redis (7.0.15 at least)
cuts off the command that is torn and not the transaction's commands before it: they stay, without their EXEC, what is
written afterwards goes behind them, and at the start after that they are executed, with the first transaction behind
them. A commit's event and its first counter would be there twice. A file that was written anew has no such rest: the
server begins another one for what comes while it does. Should it be killed before it is done, or find no room for that,
it refuses its next start ("the truncated file is not the last file"), but has cut off the rest in doing so, and nothing
else: it starts at the one after that.
"""

import asyncio

import hiredis

from understudy.cluster.stores.redis_link import Link, pack

POLL_S = 0.02
PATIENCE_S = 2.0
"""Of one who connects; whoever wants the connection says how often it is tried again."""


async def begin_anew(link: Link) -> None:
    """Once in each life of a server, whoever comes first; where it is not allowed (a managed server), nothing. Raises
    OSError: there is no answer, the server still reads its file, or it cannot begin another one now."""
    give_up_at = link.loop.time() + PATIENCE_S
    while True:
        info = await _info(link)
        if info.get("loading") == "1":
            raise ConnectionError("LOADING Redis is loading the dataset in memory")
        if info.get("aof_enabled") != "1" or info.get("aof_rewrites", "1") != "0":
            return
        if info.get("aof_rewrite_in_progress") == "1":  # what comes now is in another file already
            return
        if info.get("aof_rewrite_scheduled") != "1":
            [answer] = await link.request(pack("BGREWRITEAOF"), 1)
            if "Can't execute" in str(answer):
                raise ConnectionError(f"{answer} It has to write its append-only file anew first: is its disk full?")
            if "scheduled" not in str(answer):  # it has begun, somebody else was faster, or it is not allowed
                return
        if link.loop.time() > give_up_at:
            raise ConnectionError(
                "it takes a snapshot (BGSAVE, or for a replica), and can write its append-only file anew only then"
            )
        await asyncio.sleep(POLL_S)


async def _info(link: Link) -> dict[str, str]:
    [answer] = await link.request(pack("INFO", "persistence"), 1)
    return {} if isinstance(answer, hiredis.ReplyError) else pairs_of_info(answer)


def pairs_of_info(text: str) -> dict[str, str]:
    """What INFO answers, by name."""
    lines = (line for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return dict(line.split(":", 1) for line in lines)
