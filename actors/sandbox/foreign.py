"""Inside a zygote for calls that have an environment: what may be loaded before, so that a call finds what it would.

What an environment holds is as foreign as a tool, and is executed by calls alone: the zygote, which others share, only
looks at its names. What understudy lends to all (`environments.LENT_NAMES`) may be loaded here, unless a call would
find any of it in the environment itself: then nothing of that is.
"""

import os
import sys
from collections.abc import Collection, Sequence
from typing import Any


class Foreign:
    """From when this is made until `leave`, nothing is found but Python's own, and what is lent."""

    def __init__(self, packages: str, lent: Collection[str], finder: Any) -> None:
        """`packages`: the folder of the environment's. `finder`: of what is lent; it is in use already."""
        self._packages, self._lent, self._finder = packages, lent, finder
        self._unfound: set[str] = set()
        self.has_own = self._has(lent) or self._extends_pydantic()
        """Whether it has something of what would be lent."""
        sys.meta_path.append(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Nothing: this notes what no other finder has found."""
        if path is None:
            self._unfound.add(name)

    def harmless(self, names: Sequence[str]) -> list[str]:
        """Of modules, those that are loaded here."""
        return [name for name in names if not self.has_own or name.partition(".")[0] not in self._lent]

    def leave(self) -> None:
        """Once all is loaded. Exits if a call would not have found the same."""
        sys.meta_path.remove(self)
        sys.meta_path.remove(self._finder)  # each call brings its own
        if self._has(self._unfound):
            sys.exit(f"the environment has some of {sorted(self._unfound)}, and what is loaded here asks for it")
        if self.has_own:  # what this very zygote is made of
            for module in [each for each in sys.modules if each.partition(".")[0] in self._lent]:
                del sys.modules[module]

    def _has(self, names: Collection[str]) -> bool:
        return not {entry.partition(".")[0] for entry in os.listdir(self._packages)}.isdisjoint(names)

    def _extends_pydantic(self) -> bool:
        """pydantic looks for that once in a process."""
        for entry in os.listdir(self._packages):
            told = f"{self._packages}/{entry}/entry_points.txt"
            if os.path.isfile(told):
                with open(told, encoding="utf-8", errors="replace") as file:
                    if "[pydantic]" in file.read().replace(" ", ""):
                        return True
        return False
