"""Builds the environment of a tool: a venv with its packages, made aside, digested, and renamed to its place.

It runs when somebody says so (`understudy environments build`), never in a call. pip takes wheels only, unless it is
told otherwise: to build a package from its source is to execute it, here, and not in a sandbox.
"""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from understudy.actors.environment import Environment
from understudy.actors.sandbox.environments import (
    BUILDING,
    MANIFEST,
    Environments,
    EnvironmentUnusable,
    interpreter,
    remove,
    site_packages,
    tree_digest,
)

SCRIPT_BYTES_MAX: Final = 1 << 20
SAID_LINES: Final = 5
WHEELS_ONLY: Final = ("--only-binary", ":all:")


def build(
    environments: Environments, wanted: Environment, pip: Sequence[str] = (), sources: bool = False
) -> tuple[str, bool]:
    """Its key, and whether it was built now. Two who build the same wait for each other.

    Args:
        pip: more options for `pip install`, as `--no-index`, `--find-links DIR`.
        sources: also build packages from source, which executes them.
    Raises EnvironmentUnusable: it cannot be built.
    """
    if wanted.venv:
        with environments.lent(wanted):
            return wanted.venv, False
    key = wanted.key(interpreter())
    final = f"{environments.folder}/{key}"
    with environments.locked(key, fcntl.LOCK_EX) as lock:
        _remove_drafts(environments, key)
        if os.path.isdir(final):
            try:
                environments.verify(key, wanted)
                return key, False
            except EnvironmentUnusable:
                environments.take_away(key)
        draft = tempfile.mkdtemp(prefix=f"{BUILDING}{key}-", dir=environments.folder)
        try:
            _install(draft, wanted, [*pip, *([] if sources else WHEELS_ONLY)])
            _finish(draft, final, wanted)
            os.rename(draft, final)
        except BaseException:
            remove(draft)
            raise
        os.utime(lock)
    return key, True


def _remove_drafts(environments: Environments, key: str) -> None:
    """Of builders that died: with the lock, there is no other."""
    for name in os.listdir(environments.folder):
        if name.startswith(f"{BUILDING}{key}-"):
            remove(f"{environments.folder}/{name}")


def _install(draft: str, wanted: Environment, pip: Sequence[str]) -> None:
    has_pip = importlib.util.find_spec("pip") is not None
    _run([sys.executable, "-m", "venv", "--symlinks", *(["--without-pip"] if has_pip else []), draft], wanted)
    inner = f"{draft}/bin/python"
    # Ours works on the new one from outside; where we have none, venv has put one in.
    start = [sys.executable, "-m", "pip", "--python", inner] if has_pip else [inner, "-m", "pip"]
    asked = f"{draft}/requirements.txt"
    with open(asked, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in wanted.packages))
    options = ["--disable-pip-version-check", "--no-input", "--quiet", *pip]
    _run([*start, "install", *options, "--requirement", asked], wanted)


def _run(line: list[str], wanted: Environment) -> None:
    # Not under our session's standard input, and without what would lead the new interpreter to our packages.
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=clean, check=False)
    if ran.returncode:
        said = " / ".join((ran.stderr.strip() or ran.stdout.strip()).splitlines()[-SAID_LINES:])
        raise EnvironmentUnusable(f"the environment ({wanted}) cannot be built: {said or f'status {ran.returncode}'}")


def _finish(draft: str, final: str, wanted: Environment) -> None:
    """Scripts say where they will be; all is for everybody to read, and for nobody to write; what it is, is noted."""
    for name in os.listdir(f"{draft}/bin"):
        path = f"{draft}/bin/{name}"
        if os.path.islink(path) or os.path.getsize(path) > SCRIPT_BYTES_MAX:
            continue
        with open(path, "rb+") as file:
            data = file.read()
            if draft.encode() in data:
                file.seek(0)
                file.truncate()
                file.write(data.replace(draft.encode(), final.encode()))
    for root, folders, files in os.walk(draft):
        for name in [*folders, *files]:
            path = f"{root}/{name}"
            if not os.path.islink(path):
                mode = os.stat(path).st_mode
                os.chmod(path, 0o755 if os.path.isdir(path) else 0o555 if mode & 0o100 else 0o444)
    os.chmod(draft, 0o755)
    installed = sorted(
        name.removesuffix(".dist-info").replace("-", " ")
        for name in os.listdir(site_packages(draft))
        if name.endswith(".dist-info")
    )
    told = {
        "packages": list(wanted.packages),
        "interpreter": interpreter(),
        "installed": installed,
        "tree": tree_digest(draft),
        "built_at": round(time.time(), 3),
    }
    with open(f"{draft}/{MANIFEST}", "w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
    os.chmod(f"{draft}/{MANIFEST}", 0o444)
