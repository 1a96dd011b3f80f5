"""What this very interpreter needs in order to start again inside a sandbox: its folders and its import path.

A tool must find the packages that the worker has, and nothing else of the machine. So the folders of the interpreter,
of installed packages and of understudy itself are shown, read-only; a project's own folder is not, even when it is on
the import path (it is where .env files live): code from there travels by value.
"""

import dataclasses
import os
import struct
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

from understudy.actors.outcome import ToolCall
from understudy.actors.sandbox.backend import IsolationUnavailable
from understudy.actors.sandbox.environments import site_packages, stdlib

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Runtime:
    """Folders as (real path, place inside): the same place, and also each alias that Python knows it by."""

    python: str
    prefix: str
    folders: tuple[tuple[str, str], ...]
    import_paths: tuple[str, ...]
    runner: str
    launcher: str
    zygote: str
    keeper: str
    inside: str
    environment: str = ""
    """Folder of the tool's own environment; empty: it finds the packages of the worker."""
    programs: str = ""
    """Folder of the environment whose programs come first; empty: the worker's."""
    lent_paths: tuple[str, ...] = ()
    """With an environment: where the few packages are that it is lent (`environments.LENT_NAMES`)."""

    @property
    def first_prefix(self) -> str:
        """The folder whose programs come first."""
        return self.programs or self.prefix

    @property
    def seen_python(self) -> str:
        """What the tool takes for its interpreter. Never started outside: an environment is not ours."""
        return f"{self.environment}/bin/python" if self.environment else self.python


def this_runtime() -> Runtime:
    """The runtime of the calling process. Raises IsolationUnavailable where it cannot be shown without showing all."""
    return _runtime(sys.prefix, tuple(sys.path))


def runtime_of(call: ToolCall) -> Runtime:
    """The runtime of the calling process; with the environment of the tool, if it has one, in the place of packages."""
    if not call.environment:
        return this_runtime()
    return _with_environment(this_runtime(), call.environment, call.code.beside)


@cache
def _with_environment(runtime: Runtime, folder: str, beside: bool) -> Runtime:
    """`beside`: only the programs that the tool starts are to find it."""
    own = [path for path in runtime.import_paths if _lies_in(path, [stdlib()]) and not _holds_packages(path)]
    shown = tuple((path, path) for path in (f"{folder}/bin", f"{folder}/lib", f"{folder}/pyvenv.cfg"))
    folders = runtime.folders + tuple(each for each in shown if each not in runtime.folders)
    if beside:
        return dataclasses.replace(runtime, folders=folders, programs=folder)
    return dataclasses.replace(
        runtime,
        folders=folders,
        programs=folder,
        import_paths=(*own, site_packages(folder)),
        environment=folder,
        lent_paths=tuple(path for path in runtime.import_paths if path not in own),
    )


def _holds_packages(path: str) -> bool:
    return os.path.basename(path) in _PACKAGE_FOLDERS


@cache
def _runtime(prefix: str, import_path: tuple[str, ...]) -> Runtime:
    here = Path(__file__).resolve().parent
    package = here.parents[1]  # understudy, or the folder whose folders the package links to
    link = Path(sys.modules["understudy"].__path__[0])
    own = [str(link), *(str((link / room).resolve()) for room in ("actors", "policies", "cluster"))]
    own = [path for path in own if os.path.isdir(path)] or [str(package)]
    prefixes = [prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    prefixes.append(str(Path(os.path.realpath(sys.executable)).parents[1]))  # where aliases of prefixes lead to
    packages = [path for path in import_path if _holds_packages(path) and os.path.isdir(path)]
    folders = _folders([*prefixes, *packages, *own])
    shown = [place for _, place in folders] + ["/usr"]
    imports = [
        path for path in import_path if path and os.path.exists(path) and _lies_in(os.path.realpath(path), shown)
    ]
    return Runtime(
        python=sys.executable,
        prefix=prefix,
        folders=folders,
        # Last, as an editable installation would have it.
        import_paths=tuple(dict.fromkeys([*imports, str(link.parent)])),
        runner=_compiled(here / "runner.py"),
        launcher=_compiled(here / "launcher.py"),
        zygote=_compiled(here / "zygote_inside.py"),
        keeper=_compiled(here / "keeper.py"),
        inside=_compiled(here / "gvisor_inside.py"),
    )


def _compiled(source: Path) -> str:
    """The script as Python has compiled it, if that is up to date and for everybody to read: 2 to 4 ms a script."""
    cached = Path(cache_from_source(str(source)))
    try:
        status, header = source.stat(), cached.read_bytes()[:16]
        readable = cached.stat().st_mode & 0o004
    except OSError:
        return str(source)
    fresh = MAGIC_NUMBER + struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    return str(cached) if readable and header == fresh else str(source)


def _folders(wanted: list[str]) -> tuple[tuple[str, str], ...]:
    places: dict[str, str] = {}
    for path in wanted:
        real = os.path.realpath(path)
        if real in ("/", os.path.expanduser("~"), "/tmp", "/home") and not _lies_in(real, ["/usr"]):
            raise IsolationUnavailable(
                f"Python's folder {path!r} is {real!r}, and cannot be shown to a tool without all that lies in it",
                "run workers from an interpreter or virtual environment with a folder of its own",
            )
        places[real] = real
        places[os.path.normpath(path)] = real
    # Parents first; what lies in a folder that is shown already needs no place of its own.
    kept: list[tuple[str, str]] = []
    for place, real in sorted(places.items()):
        if not _lies_in(place, ["/usr", *(other for _, other in kept)]):
            kept.append((real, place))
    return tuple(kept)


def _lies_in(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)
