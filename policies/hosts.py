"""Hosts and URLs in one spelling each; whatever two programs could read differently is refused.

`http://127.1/`, `http://0x7f000001/`, `http://good.example@evil.example/`, `http://good.example\\@evil.example/`
lead where no reader of a rule expects. So: names are lower-case ASCII (others in their `xn--` form), an address is
written as addresses are, and nothing may be hidden in a URL. What a name leads to is the business of the proxy that
connects.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "ssh": 22, "git": 9418}
"""Ports that a scheme means when a URL names none."""
TEXT_MAX = 4096
"""Characters of a URL; a longer one is not read."""


class NotCanonical(ValueError):
    """Text that is no host or URL in the one spelling that is read. Says why."""


@dataclass(frozen=True)
class Target:
    """Where a URL, or `host:port`, leads."""

    host: str
    """In its one spelling; addresses without brackets."""
    port: int | None
    """None: not said, and not meant by a scheme."""
    address: Address | None = None
    """If the host is one."""
    scheme: str = ""
    path: str = ""
    """With `..` resolved; empty without a scheme."""

    @property
    def place(self) -> str:
        """As a pattern for nothing else is written: `example.org:443`, `[::1]:80`."""
        host = _bracketed(self.host)
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True)
class HostPattern:
    """`example.org`, `*.example.org` (what is below it), `*`, `10.0.0.0/8`, `[::1]`; each may end with `:443`."""

    name: str
    """Empty: an address range."""
    below: bool
    range: IPv4Network | IPv6Network | None
    port: int | None

    def fits(self, target: Target) -> bool | None:
        """None: it depends on a port that was not said."""
        if self.range is not None:
            if target.address is None or target.address.version != self.range.version:
                return False
            found = target.address in self.range
        elif self.below:
            found = not self.name or (target.address is None and target.host.endswith(f".{self.name}"))
        else:
            found = target.host == self.name
        if not found or self.port is None:
            return found
        return None if target.port is None else target.port == self.port

    def covers(self, other: "HostPattern") -> bool:
        """Whether whatever fits the other fits this one, too."""
        if self.port is not None and self.port != other.port:
            return False
        if self.below and not self.name:
            return True
        if self.range is not None:
            mine, theirs = self.range, other.range
            if isinstance(mine, IPv4Network) and isinstance(theirs, IPv4Network):
                return theirs.subnet_of(mine)
            if isinstance(mine, IPv6Network) and isinstance(theirs, IPv6Network):
                return theirs.subnet_of(mine)
            address = None if theirs is not None or other.below else _host(_bracketed(other.name))[1]
            return address is not None and address in mine
        if other.range is not None:
            return False
        if self.below:
            return other.name.endswith(f".{self.name}") or (other.below and other.name == self.name)
        return not other.below and other.name == self.name

    def __str__(self) -> str:
        name = str(self.range) if self.range is not None else _bracketed(self.name)
        if self.below:
            name = f"*.{name}" if name else "*"
        return name if self.port is None else f"{name}:{self.port}"


@dataclass(frozen=True)
class UrlPattern:
    """A scheme, a host and a path: what lies at the path, or below it."""

    scheme: str
    host: HostPattern
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"

    def fits(self, target: Target) -> bool | None:
        if target.scheme != self.scheme:
            return False
        below = self.path if self.path.endswith("/") else f"{self.path}/"
        if target.path != self.path and not target.path.startswith(below):
            return False
        return self.host.fits(target)


def read_target(text: str) -> Target:
    """A URL, or `host`, or `host:port`. Raises NotCanonical."""
    _visible(text)
    return _url(text) if "://" in text else _authority(text, None)


def read_url(text: str) -> Target:
    """Raises NotCanonical, also where the scheme is missing."""
    _visible(text)
    if "://" not in text:
        raise NotCanonical("it has no scheme, as in https://")
    return _url(text)


def read_host_pattern(text: str) -> HostPattern:
    """Raises NotCanonical."""
    _visible(text)
    return _host_pattern(text)


def read_url_pattern(text: str) -> UrlPattern:
    """`https://*.example.org/v1`. Raises NotCanonical."""
    _visible(text)
    scheme, found, rest = text.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        raise NotCanonical("it has no scheme, as in https://")
    authority, slash, path = rest.partition("/")
    if any(sign in rest for sign in "?#"):
        raise NotCanonical("a pattern ends with its path, before '?' and '#'")
    host = _host_pattern(authority)
    if host.port is None:
        host = HostPattern(host.name, host.below, host.range, PORTS.get(scheme.lower()))
    return UrlPattern(scheme.lower(), host, _path(slash + path))


def covers_host(patterns: Sequence[str], pattern: str) -> bool:
    """Whether one of the patterns covers another; all as `HostPattern` spells them."""
    wanted = read_host_pattern(pattern)
    return any(read_host_pattern(each).covers(wanted) for each in patterns)


# --- parts ---------------------------------------------------------------------------------------------------------

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}|0")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")


def _visible(text: str) -> None:
    if len(text) > TEXT_MAX:
        raise NotCanonical(f"it has {len(text)} characters, and {TEXT_MAX} are the most that is read")
    for letter in text:
        if not "!" <= letter <= "~" or letter in '\\"<>^`{|}':
            raise NotCanonical(f"it holds {letter!a}, which programs read differently; write names as xn--")


def _url(text: str) -> Target:
    scheme, _, rest = text.partition("://")
    if not _SCHEME.fullmatch(scheme):
        raise NotCanonical(f"{scheme[:40]!r} is no scheme")
    scheme = scheme.lower()
    end = min((rest.find(sign) for sign in "/?#" if sign in rest), default=len(rest))
    found = _authority(rest[:end], PORTS.get(scheme))
    path = re.split("[?#]", rest[end:], maxsplit=1)[0]
    return Target(found.host, found.port, found.address, scheme, _path(path))


def _authority(text: str, default: int | None) -> Target:
    host, port = _host_and_port(text)
    name, address = _host(host)
    return Target(name, default if port is None else port, address)


def _host_and_port(text: str) -> tuple[str, int | None]:
    if "@" in text:
        raise NotCanonical("it holds '@': what stands before it is a user, and looks like a host")
    if text.startswith("["):
        host, closed, rest = text.partition("]")
        if not closed or rest[:1] not in ("", ":"):
            raise NotCanonical("an IPv6 address is written [::1] or [::1]:443")
        host, port = f"{host}]", rest[1:] if rest else None
    else:
        host, colon, after = text.partition(":")
        port = after if colon else None
    if port is None:
        return host, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise NotCanonical(f"{port[:40]!r} is no port; write a number from 0 to 65535")
    return host, int(port)


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _host(text: str) -> tuple[str, Address | None]:
    if text.startswith("["):
        try:
            if "%" in text:
                raise ValueError("a zone")
            six = IPv6Address(text[1:-1])
        except ValueError:
            raise NotCanonical(f"{text[:60]!r} is no IPv6 address without a zone") from None
        address: Address = six.ipv4_mapped or six  # ::ffff:10.0.0.1 leads to 10.0.0.1
        return str(address), address
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise NotCanonical(f"{text[:60]!r} is no host name")
    if not _NUMBER.fullmatch(labels[-1]):
        return name, None
    try:
        four = IPv4Address(name)
    except ValueError:
        raise NotCanonical(f"{text[:60]!r} is an address in an odd spelling; write four numbers") from None
    return str(four), four


def _host_pattern(text: str) -> HostPattern:
    if "/" in text:
        try:
            return HostPattern("", False, ip_network(text), None)
        except ValueError as error:
            raise NotCanonical(f"{text[:60]!r} is no range of addresses ({error}); write e.g. 10.0.0.0/8") from None
    host, port = _host_and_port(text)
    if host == "*":
        return HostPattern("", True, None, port)
    below = host.startswith("*.")
    name, address = _host(host[2:] if below else host)
    if below and address is not None:
        raise NotCanonical(f"{text[:60]!r}: nothing is below an address; write a range, e.g. 10.0.0.0/8")
    return HostPattern(name, below, None, port)


def _path(text: str) -> str:
    """Absolute, with `.` and `..` resolved and needless escapes undone. Raises NotCanonical."""
    parts: list[str] = []
    plain = _ESCAPE.sub(_unescaped, text)
    split = plain.split("/")[1:]
    if ".." in split and "" in split[:-1]:
        raise NotCanonical("its path has both '//' and '..', which servers resolve differently")
    for part in split:
        if part.startswith((".;", "..;")):
            raise NotCanonical(f"its path holds {part[:40]!r}, which some servers read as '..'")
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    if plain.rpartition("/")[2] in (".", "..") and parts and parts[-1]:
        parts.append("")
    return "/" + "/".join(parts)


def _unescaped(found: re.Match[str]) -> str:
    if found[1] is None:
        raise NotCanonical("it holds a '%' that escapes nothing")
    letter = chr(int(found[1], 16))
    if letter in "/\\%\0":
        raise NotCanonical(f"it escapes {letter!r} as {found[0]}, which servers read differently")
    return letter if _UNRESERVED.fullmatch(letter) else found[0].upper()
