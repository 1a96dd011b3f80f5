"""Whether the user of a Redis may do all that our scripts do: asked once when the store is opened.

Redis looks at a user's rights (ACLs) command by command, also inside a script, and undoes nothing of one that it stops
in the middle: a run would be there without its place in the queue. The likeliest to be missing is the channel: since
Redis 7.0 a new user has none unless it is given some.
"""

import re

from understudy.actors.errors import CallerError
from understudy.cluster.stores.redis_client import RedisClient
from understudy.cluster.stores.redis_codec import BEATS
from understudy.cluster.stores.redis_scripts import CHANNEL, SCRIPTS

_CALLED = re.compile(r"redis\.call\('([A-Z]+)'")
_NAMED_ELSEWHERE = {"HINCRBYFLOAT", "ZRANGEBYLEX", "ZREVRANGEBYLEX"}
COMMANDS = sorted(_NAMED_ELSEWHERE.union(*(_CALLED.findall(script.source) for script in SCRIPTS.values())))
"""What the scripts execute."""
_ON_CHANNEL = {"PUBLISH", "SUBSCRIBE"}


async def check_rights(redis: RedisClient) -> None:
    """Raises CallerError, with what is missing and the command that gives it."""
    asked: list[str | int] = []
    for name in ("SUBSCRIBE", *COMMANDS):
        words = [CHANNEL] if name in _ON_CHANNEL else [BEATS, BEATS, BEATS]  # of SET, Redis finds no key in fewer
        asked += [1 + len(words), name, *words]
    for where, [denied] in (await redis.ask_each(SCRIPTS["denied"].call([], asked))).items():
        if denied:
            user = redis.address.username or "default"
            rights = [f"+{name.lower()}" for name in denied]
            if not _ON_CHANNEL.isdisjoint(denied):
                rights.append(f"'&{CHANNEL}'")
            if set(COMMANDS) - _ON_CHANNEL <= set(denied):  # it may be about the key
                rights.append("'~u:*'")
            raise CallerError(
                f"Redis at {where} denies user {user!r} what the store needs, {', '.join(denied)}; give it: "
                f"`redis-cli ACL SETUSER {user} {' '.join(rights)}`"
            )
