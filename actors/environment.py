"""The packages that a tool wants to find in its sandbox, declared beside it; `sandbox/environments.py` has the rest.

Pure, but for the file that `of_file` reads. What is declared says what is wanted, not from where: where packages come
from is the business of whoever builds the environment. Pin them (`left-pad==1.0`), and what they need as well: only
then is it the same on every machine.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from understudy.actors.errors import CallerError

PACKAGES_MAX: Final = 1000
LINE_CHARS_MAX: Final = 2000


@dataclass(frozen=True)
class Environment:
    """`Environment(packages=["left-pad==1.0"])`, `Environment.of_file("requirements.txt")`, `Environment(venv=...)`"""

    packages: Sequence[str] = ()
    """As pip reads them; with `--hash=sha256:...` behind, if they have it."""
    venv: str = ""
    """Instead of packages: an existing virtual environment, the same path on each machine, made with the interpreter of
    the workers. It is shown to the tool as it is; nothing verifies what is in it."""

    def __post_init__(self) -> None:
        if isinstance(self.packages, str):
            raise CallerError(f"packages={self.packages!r} is a text; give a list of them")
        object.__setattr__(self, "packages", tuple(self.packages))
        if bool(self.packages) == bool(self.venv):
            raise CallerError("an environment wants packages, or the path of a venv, one of them")
        if self.venv and (not os.path.isabs(self.venv) or os.path.normpath(self.venv) != self.venv):
            raise CallerError(f"venv={self.venv!r} is not absolute and plain; give {os.path.abspath(self.venv)!r}")
        if len(self.packages) > PACKAGES_MAX:
            raise CallerError(f"an environment of {len(self.packages)} packages; {PACKAGES_MAX} are the most")
        for line in self.packages:
            wrong = not isinstance(line, str) or not line.strip() or not line.isprintable()
            if wrong or line.lstrip().startswith("-") or len(line) > LINE_CHARS_MAX:
                raise CallerError(f"{str(line)[:80]!r} is no package as pip reads it, like 'left-pad==1.0'")

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> "Environment":
        """Of a file of requirements: one package a line, comments, and lines that go on behind a backslash.

        Raises CallerError: it cannot be read, or holds an option of pip's.
        """
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read().replace("\\\n", " ")
        except (OSError, UnicodeDecodeError) as error:
            raise CallerError(f"the file of requirements {os.fspath(path)!r} cannot be read: {error}") from None
        lines = [" ".join(line.split(" #")[0].split()) for line in text.splitlines()]
        return cls(packages=[line for line in lines if line and not line.startswith("#")])

    @property
    def text(self) -> str:
        """As it travels with the tool's code, and as an approval of a call is bound to it."""
        said = {"venv": self.venv} if self.venv else {"packages": list(self.packages)}
        return json.dumps(said, separators=(",", ":"))

    @staticmethod
    def read(text: str) -> "Environment":
        """Raises CallerError."""
        try:
            return Environment(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CallerError(f"{text[:80]!r} describes no environment: {error}") from None

    def key(self, interpreter: str) -> str:
        """Names what is built of it, for an interpreter (`cpython-311-x86_64`)."""
        return hashlib.sha256(f"{interpreter}\n{self.text}".encode()).hexdigest()[:32]

    def __str__(self) -> str:
        shown = ", ".join(self.packages[:5]) + (", ..." if len(self.packages) > 5 else "")
        return self.venv or shown
