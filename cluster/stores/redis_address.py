"""Where Redis is, read from the URL of a store."""

import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from understudy.actors.errors import CallerError


class Node(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """Where Redis is, read from a URL: redis://, rediss:// (TLS) or unix://.

    Of a Redis Cluster any node will do, the others are found from it; several may be named, for the time when one of
    them is down: redis://host:port,host:port.
    """

    nodes: tuple[Node, ...]
    """Where to begin; empty for a socket."""
    path: str
    db: int
    username: str
    password: str
    tls: ssl.SSLContext | None

    @classmethod
    def of_url(cls, url: str) -> "Address":
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
            raise CallerError(f"store URL {_without_secrets(url)!r}: expected redis://, rediss:// (TLS) or unix://")
        is_unix = parts.scheme == "unix"
        database = query.get("db", "") if is_unix else parts.path.strip("/") or query.get("db", "")
        if not (database or "0").isdigit():
            raise CallerError(f"store URL {_without_secrets(url)!r}: {database!r} is no database number, e.g. /0")
        try:
            nodes = () if is_unix else _nodes(parts.netloc.rpartition("@")[2])
        except ValueError as error:
            raise CallerError(f"store URL {_without_secrets(url)!r}: {error}") from None
        return cls(
            nodes=nodes,
            path=parts.path if is_unix else "",
            db=int(database or 0),
            username=urllib.parse.unquote(parts.username or ""),
            password=urllib.parse.unquote(parts.password or ""),
            tls=_tls(query) if parts.scheme in ("rediss", "valkeys") else None,
        )

    @property
    def where(self) -> str:
        """The URL without credentials."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        return f"{'rediss' if self.tls else 'redis'}://{','.join(map(str, self.nodes))}/{self.db}"

    def at(self, node: Node) -> "Address":
        """The same for one node."""
        return replace(self, nodes=(node,))


def _nodes(netloc: str) -> tuple[Node, ...]:
    nodes = []
    for text in netloc.split(","):
        parts = urllib.parse.urlsplit(f"//{text}")
        nodes.append(Node(parts.hostname or "localhost", parts.port or 6379))
    return tuple(nodes)


def _tls(query: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
