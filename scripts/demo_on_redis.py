#!/usr/bin/env python3
"""Run `understudy demo` on a Redis of its own, and stop that very Redis when the demo ends, however it ends.

The Redis is set as production should be: every write is on disk before it is acknowledged, nothing is evicted.
It listens on loopback only. The exit status is the demo's.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_TIMEOUT_S = 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="understudy-demo-redis-") as directory:
        port = free_port()
        # fmt: off
        command = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory, "--logfile", "redis.log",
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction",
        ]
        # fmt: on
        # Its own session, so that Ctrl-C reaches the demo and not the store under it; pdeathsig, so that it does not
        # survive a kill -9 of this script.
        server = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], start_new_session=True)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    log = Path(directory, "redis.log")
                    sys.exit(f"redis-server did not start: {log.read_text() if log.exists() else 'no log'}")
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


def main() -> int:
    with redis_server() as url:
        understudy = Path(__file__).parent.parent / ".venv/bin/understudy"
        command = [understudy, "demo", "--store", url, *sys.argv[1:]]
        demo = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command])
        # Ctrl-C goes to the demo too (one terminal, one process group): let it end in its own way. A TERM is passed on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(demo.pid, number))
        status = demo.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
