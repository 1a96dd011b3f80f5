"""What is installed in a Python environment: one `Found` for each distribution, whoever installed it.

Reads folders and metadata only; no code of the environment is imported, for that is what the sandbox is there for.
"""

import re
import site
import sys
from dataclasses import dataclass
from pathlib import Path

from understudy.actors.errors import CallerError
from understudy.cluster.demo.files import read_headers

# Virtual environments and prefixes; the last two are Debian's.
SITES = (
    "lib/python3*/site-packages",
    "lib64/python3*/site-packages",
    "lib/python3*/dist-packages",
    "local/lib/python3*/dist-packages",
)


@dataclass(frozen=True)
class Found:
    """One installed distribution."""

    name: str
    version: str
    site: str
    """The site-packages folder that it is installed in."""
    info: str
    """Its `.dist-info` or `.egg-info`: what the tools are given, as names are ambiguous and paths are not."""


def prefix_of(environment: Path | None) -> Path:
    """The folder that holds all of an environment; of the running one by default."""
    return Path(environment or sys.prefix).resolve()


def sites_of(environment: Path | None) -> list[Path]:
    """The site-packages folders of an environment. Raises CallerError if it has none."""
    prefix = prefix_of(environment)
    if environment is None:
        candidates = [Path(path) for path in site.getsitepackages()]
    else:
        candidates = [path for pattern in SITES for path in sorted(prefix.glob(pattern))]
    found = dict.fromkeys(path.resolve() for path in candidates if path.is_dir())
    inside = [path for path in found if path.is_relative_to(prefix)]
    if not inside:
        raise CallerError(
            f"{prefix} is no Python environment (it has no lib/python3*/site-packages); name the folder of a virtual "
            f"environment, e.g. --environment .venv"
        )
    return inside


def distributions(environment: Path | None = None) -> list[Found]:
    """All distributions of an environment, editable installs included, by name. Raises CallerError.

    Where two folders hold one of the same name, the first counts, as it does for `import`.
    """
    found: dict[str, Found] = {}
    for folder in sites_of(environment):
        for info in sorted(folder.iterdir()):
            # pip renames what it could not delete to "~ame"; it is no longer installed.
            if info.suffix not in (".dist-info", ".egg-info") or info.name.startswith("~"):
                continue
            headers = read_headers(info)
            name, version = headers.get("name", [""])[0], headers.get("version", [""])[0]
            if name:
                found.setdefault(normalised(name), Found(name, version, str(folder), str(info)))
    return [found[name] for name in sorted(found)]


def normalised(name: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def variables(environment: Path | None, ledger: Path) -> dict[str, str]:
    """The values of the `${...}` in policy.yaml, all absolute paths without symbolic links. Raises CallerError."""
    prefix, site = prefix_of(environment), sites_of(environment)[0]
    return {
        "environment": str(prefix),
        "visible": str(_grantable(prefix, site)),
        "interpreter": str(_grantable(_base_of(prefix), _grantable(prefix, site))),
        "ledger": str(ledger.resolve()),
    }


def _grantable(path: Path, otherwise: Path) -> Path:
    """All of /usr is in every sandbox, and too much to be granted: something in it that does no harm stands for it."""
    return otherwise if path == Path("/usr") else path


def _base_of(prefix: Path) -> Path:
    """The folder of the interpreter that a virtual environment is based on; any other environment has its own."""
    try:
        text = (prefix / "pyvenv.cfg").read_text(errors="replace")
    except OSError:
        return prefix
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home" and value.strip():
            return Path(value.strip()).resolve().parent
    return prefix
