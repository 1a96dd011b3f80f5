"""Settings are read once, here: from arguments, then UNDERSTUDY_* variables, then understudy.toml, then defaults.

`understudy.toml` is looked for in the current folder, then in the state folder. All else is handed its settings.
"""

import difflib
import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from understudy.actors.errors import CallerError

PREFIX = "UNDERSTUDY_"
FILE = "understudy.toml"


def default_state_dir() -> Path:
    """The user's state folder: $XDG_STATE_HOME/understudy, or ~/.local/state/understudy."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "understudy"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _listed(value: Any) -> Any:
    """Names with commas between them, as a variable has them."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class Settings(BaseModel):
    """Every field: meaning, unit, default. A field `run_actors` is set by UNDERSTUDY_RUN_ACTORS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Field(default_factory=default_state_dir)
    """Folder of the embedded store, the secret, the daemon's log. Default: the user's state folder."""
    store: str = ""
    """sqlite:///PATH, redis://... (of a cluster any node, or several: host:port,host:port), postgresql://...; default:
    SQLite in the state folder."""
    allow_volatile: bool = False
    """Accept a Redis that would lose data. Default: no."""
    secret_file: Path | None = None
    """Key that signs code, policies and grants; made on first use. Default: `secret` in the state folder."""
    secrets: Path | None = None
    """File of the secrets that rules may grant to tools (see actors/secret_file.py); YAML, TOML or JSON, mode 0600. It
    is read again when it changes. Default: none."""
    policy: Path | None = None
    """Policy file, or folder of one for each layer, that bounds every run of this deployment. It is taken up again when
    it changes. Default: none, runs bring their own."""
    ray_address: str = ""
    """An existing Ray cluster to run on, e.g. `10.0.0.5:6379` or `auto`. Default: start one on this machine."""
    run_actors: int = Field(default_factory=lambda: max(4, 2 * _cores()), ge=1, le=10_000)
    """Most run actors at once. Default: two a core, at least 4."""
    spare_actors: int = Field(default=1, ge=0, le=1000)
    """Idle run actors kept warm to take over. Default: 1."""
    runs_per_actor: int = Field(default=1, ge=1, le=10_000)
    """Runs that share an actor: 1 isolates crashes, more is denser. Default: 1."""
    sandbox_actors: int = Field(default=1, ge=1, le=1000)
    """Sandbox actors. Default: 1."""
    calls_per_sandbox: int = Field(default_factory=lambda: max(2, _cores()), ge=1, le=1000)
    """Tool calls that one sandbox actor executes at once. Default: one a core, at least 2."""
    preload: Annotated[tuple[ModuleName, ...], BeforeValidator(_listed)] = ()
    """Modules that tools import, `httpx,pandas`: sandboxes of tier zygote have them loaded before there is a call. They
    are trusted as understudy is, and what they hold counts for each call's memory; `doctor` says which cannot be.
    Tools with an environment of their own find none of them. Default: none; pydantic is loaded in any case."""
    lease_s: float = Field(default=10.0, ge=1.0, le=600.0)
    """Seconds without a sign after which a run is taken from its actor. Default: 10."""
    hang_after_s: float = Field(default=30.0, ge=1.0, le=3600.0)
    """Seconds without progress of an actor's event loop after which it stops renewing its leases. Default: 30."""
    cancel_within_s: float = Field(default=15.0, ge=1.0, le=3600.0)
    """Seconds after which an actor that does not let go of a cancelled run is ended. Default: 15."""
    restart_intensity: int = Field(default=5, ge=0, le=19)
    """Crashes of a run within the period that are restarted; one more, and it is quarantined. Default: 5."""
    restart_period_s: float = Field(default=60.0, gt=0)
    """Seconds of the restart period. Default: 60."""
    audit_keep_days: int = Field(default=0, ge=0, le=100_000)
    """Days after which `understudy up` takes entries out of the audit log, and leaves a signed note, as `audit prune`
    does. 0: never. Default: 0."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Loopback port of the Prometheus exporter of `understudy up`; 0: any free one. Default: 0."""

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite://{(self.state_dir / 'understudy.db').absolute()}"

    @property
    def environments(self) -> Path:
        """Folder of the environments of tools, as `understudy environments build` makes them."""
        return (self.state_dir / "environments").absolute()

    @property
    def secret_path(self) -> Path:
        return self.secret_file or self.state_dir / "secret"

    def secret(self) -> bytes:
        """The deployment's key; made with mode 0600 on first use."""
        path = self.secret_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Written whole under another name and linked: two first users at once agree on one key.
            draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            if not path.exists():
                draft.touch(mode=0o600)
                draft.write_text(secrets.token_hex(32))
                try:
                    os.link(draft, path)
                except FileExistsError:
                    pass
                finally:
                    draft.unlink()
            key = path.read_text().strip().encode()
        except OSError as error:
            raise CallerError(f"the secret file {path} cannot be used: {error}; set UNDERSTUDY_SECRET_FILE") from None
        if len(key) < 32:
            raise CallerError(f"the secret file {path} holds {len(key)} characters; it has to hold at least 32")
        return key


def mistyped(environ: Mapping[str, str]) -> list[str]:
    """A line about each variable that is no setting, and close to one."""
    names, lines = [name.upper() for name in Settings.model_fields], []
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in names and (near := difflib.get_close_matches(name, names, n=1)):
            lines.append(f"{variable} is no setting, and changes nothing; did you mean {PREFIX}{near[0]}?")
    return lines


def read_settings(overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process.

    Args:
        overrides: fields given as arguments; None values are ignored.
        environ: instead of os.environ.
    Raises CallerError that names the variable or the file, the value and what is wrong.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    state_dir = Path(environ.get(f"{PREFIX}STATE_DIR") or default_state_dir())
    for path in (state_dir / FILE, Path(FILE)):
        if path.is_file():
            try:
                found = tomllib.loads(path.read_text())
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise CallerError(f"{path} cannot be read: {error}") from None
            values |= found
            origin |= dict.fromkeys(found, str(path))
    for name in Settings.model_fields:
        if value := environ.get(PREFIX + name.upper()):
            values[name] = value
            origin[name] = PREFIX + name.upper()
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name] = value
            origin[name] = f"--{name.replace('_', '-')}"
    try:
        return Settings(**values)
    except ValidationError as error:
        parts = []
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            if item["type"] == "extra_forbidden":
                parts.append(
                    f"{origin.get(name, name)}: there is no setting {name!r}; there are "
                    f"{', '.join(Settings.model_fields)}"
                )
            else:
                parts.append(f"{origin.get(name, name)}: {name} = {item['input']!r}: {item['msg']}")
        raise CallerError("; ".join(parts)) from None
