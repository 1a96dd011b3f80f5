"""The exporter serves the metrics of a store over HTTP, on loopback, whatever becomes of the store.

When the store is away, the answer is `understudy_store_up 0`, and it comes before the scraper gives up.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as ResultTimeout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client.core import Metric

from understudy.actors.errors import CallerError, StoreUnavailable
from understudy.actors.open import OpenStore
from understudy.actors.store import Store
from understudy.cluster.metrics import encode, read_metrics, store_away

log = logging.getLogger(__name__)

STORE_TIMEOUT_S = 2.0
"""A store that has not answered a scrape after this long is away."""


class Exporter:
    """`/metrics` and `/healthz` on loopback, in threads of its own, with a store connection of its own."""

    def __init__(self, open_store: OpenStore, port: int = 0, clock: Callable[[], float] = time.time) -> None:
        self._open_store = open_store
        self._clock = clock
        self._port = port
        self._store: Store | None = None
        self._reading = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        """Serve; the URL of the metrics. Raises CallerError if the port is taken."""
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        except OSError as error:
            raise CallerError(
                f"metrics port {self._port} of 127.0.0.1 cannot be used: {error.strerror}; choose another one with "
                f"UNDERSTUDY_METRICS_PORT, or 0 for any free one"
            ) from None
        self._server.daemon_threads = True
        threading.Thread(target=self._loop.run_forever, name="metrics-store", daemon=True).start()
        threading.Thread(target=self._server.serve_forever, name="metrics-http", daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/metrics"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(STORE_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)

    def scrape(self, patience_s: float = STORE_TIMEOUT_S) -> list[Metric]:
        """What the store says now, or that it is away. Called from any thread."""
        reading = asyncio.run_coroutine_threadsafe(self._read(patience_s), self._loop)
        try:
            # Twice bounded: a store that blocks the loop itself would not let the inner limit pass.
            return reading.result(patience_s + 0.25)
        except ResultTimeout:
            reading.cancel()
            log.warning("the store did not answer within %s s", patience_s)
        except (StoreUnavailable, CallerError) as error:
            log.warning("the store is away: %s", error)
        except Exception:
            log.exception("the store cannot be read")
        return store_away()

    async def _read(self, patience_s: float) -> list[Metric]:
        async with asyncio.timeout(patience_s):
            async with self._reading:
                try:
                    self._store = self._store or await self._open_store()
                    return await read_metrics(self._store, self._clock())
                except BaseException:
                    # Whatever state the connection is in: the next scrape starts with a new one.
                    self._store, broken = None, self._store
                    if broken is not None:
                        self._closing = self._loop.create_task(_close(broken))
                    raise

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    metrics = exporter.scrape(patience_of(self.headers.get("X-Prometheus-Scrape-Timeout-Seconds")))
                    body, content_type = encode(metrics, self.headers.get("Accept", ""))
                    self._answer(200, body, content_type)
                elif path == "/healthz":
                    self._answer(200, b"ok\n", "text/plain; charset=utf-8")
                else:
                    self._answer(404, b"there are /metrics and /healthz\n", "text/plain; charset=utf-8")

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        return Handler


def patience_of(scrape_timeout: str | None) -> float:
    """How long the store may take: the scraper says how long it waits, and has to be told in time that it is away."""
    try:
        return min(STORE_TIMEOUT_S, max(0.1, 0.6 * float(scrape_timeout or "inf")))
    except ValueError:
        return STORE_TIMEOUT_S


async def _close(store: Store) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(store.close(), STORE_TIMEOUT_S)
