"""Has a Redis that has just started write its append-only file anew, before anything else is written to it.

A server that is killed may leave half a transaction at the end of that file. At the next start Redis (7.0.15 at least)
cuts off the command that is torn and not the transaction's commands before it: they stay, without their EXEC, what is
written afterwards goes behind them, and at the start after that they are executed, with the first transaction behind
them. A commit's event and its first counter would be there twice. A file that was written anew has no such rest: the
server begins another one for what comes while it does.
"""

import asyncio

import hiredis

from understudy.cluster.stores.redis_link import Link, pack

POLL_S = 0.02


async def begin_anew(link: Link) -> None:
    """Once in each life of a server, whoever comes first; where it is not allowed (a managed server), nothing. Raises
    OSError: there is no answer, or the server still reads its file."""
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
            if isinstance(answer, hiredis.ReplyError) and "in progress" not in str(answer):
                return
            if "scheduled" not in str(answer):
                return
        await asyncio.sleep(POLL_S)  # it takes a snapshot; then it begins


async def _info(link: Link) -> dict[str, str]:
    [answer] = await link.request(pack("INFO", "persistence"), 1)
    return {} if isinstance(answer, hiredis.ReplyError) else pairs_of_info(answer)


def pairs_of_info(text: str) -> dict[str, str]:
    """What INFO answers, by name."""
    lines = (line for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return dict(line.split(":", 1) for line in lines)
