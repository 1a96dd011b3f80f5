"""The policies that bound every run of a deployment: a file, or a folder of them, taken up again when they change.

A folder holds one file for each layer: of the organisation, of the deployment, and of graphs; each says in itself which
it is. A change counts once it has been the same for two looks, so that a file that is just being written is not read.
What cannot be used changes nothing: the policies from before go on, and `problem` says why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.policies.policy_file import PolicyError, canonical, from_canonical, load_policy
from understudy.policies.rule import LAYERS, Policy

LOOK_EVERY_S = 0.5
SUFFIXES = (".yaml", ".yml", ".json")

Stamp = tuple[tuple[str, int, int, int, int], ...]


class PoliciesUnusable(Exception):
    """The deployment's policies cannot be used. Says which file, and everything that is wrong in it."""


@dataclass(frozen=True)
class PolicySource:
    """Where the policies are, and what they said when they could last be used. Crosses processes."""

    path: str = ""
    """File or folder; empty: there is none, and runs bring their own."""
    texts: tuple[str, ...] = ()
    """Canonical."""


def read_policies(path: Path) -> tuple[Policy, ...]:
    """All layers, the organisation's first. Raises PoliciesUnusable."""
    policies: list[Policy] = []
    problems: list[str] = []
    for file in _files(path):
        try:
            policies.append(load_policy(file.read_text(), source=str(file)))
        except OSError as error:
            problems.append(f"{file}: it cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            problems.append(f"{file}: it is no text ({error.reason})")
        except PolicyError as error:
            problems.append(str(error))
    names = [policy.name for policy in policies]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{path}: {names.count(name)} policies are named {name!r}; give each its own name")
    if problems:
        raise PoliciesUnusable("\n".join(problems))
    return tuple(sorted(policies, key=lambda policy: (LAYERS.index(policy.layer), policy.name)))


def source_of(path: Path | None) -> PolicySource:
    """The policies at a path, ready to be sent to another process. Raises PoliciesUnusable."""
    if path is None:
        return PolicySource()
    return PolicySource(str(path.absolute()), tuple(canonical(policy) for policy in read_policies(path)))


class DeploymentPolicies:
    """The policies in force. `look` is for a thread: a large file takes a while to read."""

    def __init__(self, source: PolicySource) -> None:
        self.source = source
        self.layers = tuple(from_canonical(text) for text in source.texts)
        self.problem = ""
        """Why what is at the path now is not in force; empty: it is."""
        self._taken: Stamp | None = None
        self._seen: Stamp | None = None
        if source.path:
            self._take_up()

    def look(self) -> None:
        """Take up what has changed, once it has come to rest."""
        if not self.source.path:
            return
        try:
            stamp = _stamp(Path(self.source.path))
        except (OSError, PoliciesUnusable) as error:
            self._taken, self.problem = None, _kept(str(error))
            return
        if stamp != self._taken and stamp == self._seen:
            self._take_up()
            self._taken = stamp
        self._seen = stamp

    def _take_up(self) -> None:
        try:
            layers = read_policies(Path(self.source.path))
        except PoliciesUnusable as error:
            self.problem = _kept(str(error))
            return
        self.layers, self.problem = layers, ""
        self.source = PolicySource(self.source.path, tuple(canonical(layer) for layer in layers))

    def report(self) -> dict[str, Any]:
        """JSON values for `status`."""
        return {"path": self.source.path, "layers": [layer.told() for layer in self.layers], "problem": self.problem}


def _kept(problem: str) -> str:
    return f"{problem}\nthe policies from before are still in force; `understudy policy check` tries new ones"


def _files(path: Path) -> list[Path]:
    """Raises PoliciesUnusable."""
    try:
        if not path.is_dir():
            return [path]
        files = sorted(
            each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")
        )
    except OSError as error:
        raise PoliciesUnusable(f"{path}: it cannot be read: {error.strerror}") from None
    if not files:
        raise PoliciesUnusable(f"{path}: there is no policy in this folder; put one there, named *.yaml or *.json")
    return files


def _stamp(path: Path) -> Stamp:
    """What changes whenever a file is written, exchanged, added or removed. Raises OSError, PoliciesUnusable."""
    found = [(str(file), file.stat()) for file in _files(path)]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)
