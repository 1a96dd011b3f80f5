"""The Lua scripts of the Redis store, read from the files beside this one.

A script is the first line of its file (its flags for Redis), then constants and the shared pieces, then the rest.
"""

from pathlib import Path

from understudy.actors.events import sample
from understudy.actors.refusals import CRASHES_MAX
from understudy.actors.store import CHUNKS_MAX, MAILBOX_MAX
from understudy.cluster.stores.redis_link import Script

CHANNEL = "understudy:work"
"""Where scripts publish that something has become ready."""

_FENCED = ("begin", "cancel", "commit", "create", "renew", "requeue", "send")


def _read() -> dict[str, Script]:
    constants = {
        "CHANNEL": CHANNEL,
        "COMMIT_OK": sample("checkpoint_commits_total", result="ok"),
        "COMMIT_DUPLICATE": sample("checkpoint_commits_total", result="duplicate"),
        **{f"FENCED_{op.upper()}": sample("fence_rejections_total", op=op) for op in _FENCED},
    }
    lines = [f"local {name} = '{value}'\n" for name, value in constants.items()]
    folder = Path(__file__).parent
    limits = {"CRASHES_MAX": CRASHES_MAX, "CHUNKS_MAX": CHUNKS_MAX, "MAILBOX_MAX": MAILBOX_MAX}
    lines += [f"local {name} = {value}\n" for name, value in limits.items()]
    header = "".join([*lines, (folder / "_shared.lua").read_text()])
    scripts = {}
    for file in sorted(folder.glob("[a-z]*.lua")):
        flags, _, rest = file.read_text().partition("\n")
        scripts[file.stem] = Script.of(file.stem, f"{flags}\n{header}{rest}")
    return scripts


SCRIPTS = _read()
