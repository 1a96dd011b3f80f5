"""The deployment's secrets: a file that only its owner reads, read where tools are called, and nowhere else.

    github:                              # the name that a rule grants: secrets: [github]
      value: ghp_...                     # or file: /run/secrets/github, or env: NAME (of the sandbox actor's process)
      hosts: ["api.github.com:443"]      # the proxy puts it into requests for these, and no tool sees it
      header: Authorization              # default
      template: "Bearer {value}"         # default
    signing:
      file: /run/secrets/signing         # without hosts: the tool gets it by understudy.secret("signing")

YAML, TOML or JSON, by its ending. It is read again when it changes. A host gets it over TLS, with a certificate that is
good for its name; `http://127.0.0.1:8080` says that it may go there in the clear. A value crosses no process border but
the private pipe of the one call that it is for.
"""

import base64
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from understudy.actors.sandbox.egress.injection import AUTHORIZATION, Injection
from understudy.actors.secret_traces import SHORTEST
from understudy.policies.hosts import HostPattern, NotCanonical, read_host_pattern
from understudy.policies.reading import is_name
from understudy.policies.strict_yaml import Unreadable
from understudy.policies.strict_yaml import read as read_yaml

SETTING: Final = "UNDERSTUDY_SECRETS"
_KEYS: Final = frozenset(("value", "file", "env", "hosts", "header", "template"))
_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,99}")
_SENDABLE: Final = re.compile(r"[\t -~]+")
BYTES_MAX: Final = 1024 * 1024


class SecretsUnusable(Exception):
    """The file, or a secret in it, cannot be used. Says which, and what to change; never a value."""


@dataclass(frozen=True)
class Secret:
    """One of the file. Where its value is, is known; the value is asked for when it is needed."""

    name: str
    source: tuple[str, str] = field(repr=False)
    hosts: tuple[tuple[HostPattern, bool], ...] = ()
    """Each with whether it is spoken to over TLS."""
    header: str = AUTHORIZATION
    template: str = "Bearer {value}"

    def value(self) -> str:
        """Raises SecretsUnusable."""
        kind, where = self.source
        if kind == "value":
            found = where
        elif kind == "file":
            found = _private(Path(where), f"the file of the secret {self.name!r}").removesuffix("\n")
        else:
            found = os.environ.get(where, "")
        if len(found) < SHORTEST:
            raise SecretsUnusable(
                f"the secret {self.name!r} has {len(found)} characters (from its {kind}); give it {SHORTEST} at least"
            )
        if self.hosts and not _SENDABLE.fullmatch(found):
            raise SecretsUnusable(f"the secret {self.name!r} holds what no header can carry: only ASCII, on one line")
        return found

    def injections(self) -> Sequence[Injection]:
        """Raises SecretsUnusable."""
        if not self.hosts:
            return []
        value = self.value()
        line = self.template.replace("{value}", value)
        hidden = (value, *_password(line))
        return [Injection(self.name, host, self.header, line, tls, hidden) for host, tls in self.hosts]


class SecretFile:
    """The file as it is now. `path`: None where the deployment has none."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._found: Mapping[str, Secret] = {}

    def secrets(self) -> Mapping[str, Secret]:
        """All, by name. Raises SecretsUnusable."""
        if self._path is None:
            return {}
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise SecretsUnusable(f"{SETTING} names {self._path}, which cannot be read: {error.strerror}") from None
        seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if seen != self._seen:
            self._found, self._seen = read_secrets(Path(self._path)), seen
        return self._found

    def named(self, names: Sequence[str]) -> list[Secret]:
        """Those that a grant names. Raises SecretsUnusable that says which is missing."""
        there = self.secrets() if names else {}
        for name in names:
            if name not in there:
                there_is = f"{self._path} has {', '.join(sorted(there)) or 'none'}"
                raise SecretsUnusable(
                    f"the grant names the secret {name!r}, which this deployment does not have "
                    f"({there_is if self._path else f'{SETTING} is unset'}); add it to the file that {SETTING} names, "
                    "or take it out of the rule"
                )
        return [there[name] for name in names]


def read_secrets(path: Path) -> Mapping[str, Secret]:
    """Raises SecretsUnusable."""
    text = _private(path, f"the secrets' file {path}")
    try:
        data = tomllib.loads(text) if path.suffix == ".toml" else read_yaml(text)
    except tomllib.TOMLDecodeError:
        raise SecretsUnusable(f"{path} is no TOML") from None  # the parser's words may quote a value
    except Unreadable:
        raise SecretsUnusable(f"{path} is no YAML or JSON that can be read in one way") from None
    if not isinstance(data, dict):
        raise SecretsUnusable(f"{path} holds no names; write e.g. 'github: {{value: ...}}'")
    return {str(name): _secret(path, str(name), raw) for name, raw in data.items()}


def _secret(path: Path, name: str, raw: Any) -> Secret:
    def wrong(words: str) -> SecretsUnusable:
        return SecretsUnusable(f"{path}: the secret {name!r} {words}")

    if not is_name(name):
        raise wrong("has a name that no rule can grant; use letters, digits, '_', '-' and '.'")
    if not isinstance(raw, dict) or not set(raw) <= _KEYS or not all(isinstance(key, str) for key in raw):
        raise wrong(f"is no mapping of {', '.join(sorted(_KEYS))}")
    sources = [(key, raw[key]) for key in ("value", "file", "env") if key in raw]
    if len(sources) != 1 or not isinstance(sources[0][1], str):
        raise wrong("needs one of value, file and env, and as text (in quotes)")
    header, template = raw.get("header", AUTHORIZATION), raw.get("template", "Bearer {value}")
    if not isinstance(header, str) or not _HEADER.fullmatch(header) or header.lower() in ("host", "connection"):
        raise wrong("has a header that cannot be sent")
    if not isinstance(template, str) or "{value}" not in template or not _SENDABLE.fullmatch(template):
        raise wrong("has a template without {value}")
    hosts = raw.get("hosts", [])
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise wrong('has hosts that are no list; write e.g. ["api.example.org:443"]')
    try:
        places = tuple(_host(host) for host in hosts)
    except NotCanonical as error:
        raise wrong(f"has a host that is none: {error}") from None
    return Secret(name, sources[0], places, header, template)


def _password(line: str) -> tuple[str, ...]:
    """What a server makes of an Authorization that is basic: it may show that, and not what it was made of."""
    scheme, _, packed = line.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        password = base64.b64decode(packed, validate=True).decode().partition(":")[2]
    except ValueError:
        return ()
    return (password,) if len(password) >= SHORTEST else ()


def _host(text: str) -> tuple[HostPattern, bool]:
    scheme, found, rest = text.partition("://")
    if found and scheme not in ("http", "https"):
        raise NotCanonical(f"{scheme[:40]!r} is neither http nor https")
    pattern = read_host_pattern(rest if found else text)
    if (pattern.below and not pattern.name) or pattern.range is not None:
        raise NotCanonical("a secret goes to hosts that are named")
    tls = scheme != "http" or not found
    return HostPattern(pattern.name, pattern.below, None, pattern.port or (443 if tls else 80)), tls


def _private(path: Path, what: str) -> str:
    """The text of a file that nobody but its owner can read. Raises SecretsUnusable."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretsUnusable(f"{what} is no file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise SecretsUnusable(f"{what} can be read by others (mode {mode:04o}); chmod 600 {path}")
            data = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise SecretsUnusable(f"{what} cannot be read: {error.strerror}") from None
    try:
        return data.decode() if len(data) <= BYTES_MAX else ""
    except UnicodeDecodeError:
        raise SecretsUnusable(f"{what} is no text in UTF-8") from None
