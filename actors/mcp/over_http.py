"""To an MCP server over HTTP: through the proxy of the call, which judges each request and puts the secrets in.

Imported inside the sandbox, and there only for servers at a url: httpx2 is the SDK's own, and takes a while to import.
"""

import os
import socket
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from understudy.actors.mcp.lost import is_lost
from understudy.actors.reconciled import EndUnknown
from understudy.actors.sandbox.egress.listener import ENVIRONMENT
from understudy.actors.sandbox.egress.told import HEADER, REFUSED, UNREACHABLE

PROXY = ENVIRONMENT["HTTP_PROXY"]
WAIT_S = 30.0
"""For a connection to the proxy. An answer may take as long as the call may: its wall clock ends both."""
WORDS_MAX = 500
_FOR_A_STATUS = ("Server returned an error response", "Not Found", "Session terminated")
"""What the SDK says in place of an answer that is none of the protocol."""


class NotGranted(Exception):
    """The policy lets this call reach no such place."""


class Unreachable(Exception):
    """The server was not reached, so it was not asked."""


class ServerRefused(Exception):
    """The server wants nothing of the request: no token, for one, or a wrong one."""


class ServerLost(EndUnknown):
    """The server has the call, and will never answer."""


class OverHttp(httpx2.AsyncBaseTransport):
    """The way, and the transport that the SDK's requests take. It notes the first thing that went wrong with a POST:
    the SDK only tells of a bad answer, or of a connection that was closed."""

    def __init__(self, server: dict[str, Any], tool: str) -> None:
        self.calling = False
        self._name, self._url, self._mode = server["name"], server["url"], server["mode"]
        self._tool = tool
        self._status = 0
        """Of the last answer to a POST."""
        self._wrong: dict[bool, Exception] = {}
        """By `calling`: what went wrong while there was no call says nothing about one."""
        self._proxied = os.environ.get("HTTP_PROXY") == PROXY
        if not self._proxied:
            _refuse_without_network(self._name, self._url)
        self._inner = httpx2.AsyncHTTPTransport(proxy=PROXY if self._proxied else _proxy_of_this_machine(self._url))

    def client(self) -> Any:
        http = httpx2.AsyncClient(transport=self, timeout=httpx2.Timeout(WAIT_S, read=None))
        return Client(streamable_http_client(self._url, http_client=http), mode=self._mode, cache=None)

    def reason(self, error: BaseException) -> BaseException:
        wrong = self._wrong.get(self.calling)
        if wrong is not None and (error is wrong or isinstance(error, MCPError)):
            return wrong
        if is_lost(error) or isinstance(error, httpx2.TransportError):
            return self._lost("its answer ended before it was whole")
        if isinstance(error, MCPError) and error.message in _FOR_A_STATUS and self._status >= 400:
            said = f"it, or what stands before it, answered with status {self._status}"
            if self._status >= 500:
                return self._lost(said)
            return ServerRefused(f"MCP server {self._name!r} at {self._url} refused the request: {said}")
        return error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await self._inner.handle_async_request(self._through(request))
        except httpx2.ConnectError as error:
            raise self._noted(request, self._unreachable(str(error))) from None
        except httpx2.TransportError as error:
            raise self._noted(request, self._lost(str(error) or type(error).__name__)) from None
        said = response.headers.get(HEADER)
        if said is not None:
            words = (await response.aread()).decode(errors="replace").strip()[:WORDS_MAX]
            if said == REFUSED:
                raise self._noted(request, NotGranted(f"MCP server {self._name!r} is not reached: {words}"))
            wrong = self._unreachable(words) if said == UNREACHABLE else self._lost(words)
            raise self._noted(request, wrong)
        if request.method == "POST":
            self._status = response.status_code
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _through(self, request: httpx2.Request) -> httpx2.Request:
        """What goes to a proxy. To one that is ours, TLS is the proxy's to speak: only then can it put secrets in."""
        if not self._proxied or request.url.scheme != "https":
            return request
        url = request.url.copy_with(scheme="http", port=request.url.port or 443)
        others = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
        headers = [(b"Host", url.netloc), *others]
        stream, extensions = request.stream, request.extensions
        return httpx2.Request(request.method, url, headers=headers, stream=stream, extensions=extensions)

    def _noted(self, request: httpx2.Request, wrong: Exception) -> Exception:
        """Other requests are the SDK's own affair: it listens for news, or says goodbye."""
        if request.method == "POST":
            self._wrong.setdefault(self.calling, wrong)
        return wrong

    def _unreachable(self, why: str) -> Exception:
        return Unreachable(f"MCP server {self._name!r} at {self._url} cannot be reached, so it was not asked: {why}")

    def _lost(self, why: str) -> Exception:
        there = f"MCP server {self._name!r} at {self._url}"
        if not self.calling:
            return Unreachable(f"{there} gave no list of its tools: {why}")
        return ServerLost(f"{there} was lost while it had the call of {self._tool!r}: {why}")


def _proxy_of_this_machine(url: str) -> str | None:
    """Without walls (`run_inline`): as for any other client."""
    place = httpx2.URL(url)
    return None if proxy_bypass(place.host) else getproxies().get(place.scheme)


def _refuse_without_network(name: str, url: str) -> None:
    """Behind walls without a way out, no connection can even be tried. Raises NotGranted."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except PermissionError:
        place = httpx2.URL(url)
        port = place.port or (443 if place.scheme == "https" else 80)
        raise NotGranted(
            f"MCP server {name!r} is at {url}, and the policy's rule for this call grants no network; let it say "
            f'network: ["{place.host}:{port}"]'
        ) from None
