"""Whether a path leads where its name says, as far as rules have judged it: a link can fool a name.

Rules judge names (`under`), on whatever machine the policy actor is. Here is the machine with the files: each `under`
that was judged has to hold, or not, of the place that the path leads to as of its name. A tool that writes beside can
exchange a link later, so this is for the honest tool with an argument from anywhere; the wall is the profile.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.policies.condition import value_at
from understudy.policies.operators import normal_path, show
from understudy.policies.profile import Profile, covers


def leads_elsewhere(judged: Sequence[tuple[str, Sequence[str]]], args: Mapping[str, Any], profile: Profile) -> str:
    """What is wrong with a path among the arguments, in words; empty: nothing. It asks the disk.

    Args:
        judged: by argument, folders that rules have asked about.
        profile: a path that the call does not see leads nowhere.
    """
    for field, folders in judged:
        name = value_at(args, field)
        if not isinstance(name, str) or not name.startswith("/") or "\0" in name:
            continue
        plain, place = normal_path(name), os.path.realpath(name)  # `..` behind a link is another folder's
        seen = any(covers([*profile.read, *profile.write], each) for each in (plain, place))
        if seen and covers(folders, place) != covers(folders, plain):
            return f"argument {field!r} is {show(name)}, and a link there leads to {show(place)}; name that place"
    return ""
