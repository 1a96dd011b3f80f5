"""Run it: a data server on loopback, an embedded cluster, one run, and what the audit log says of it.

.venv/bin/python examples/untrusted_code/main.py
"""

import asyncio
import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from understudy import connect
from understudy.cluster.auditing import entries_of, verify
from understudy.cluster.settings import read_settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from flow import Work, graph  # noqa: E402  as from a folder of one's own

SHOWN = ("decision", "tool", "rule", "host", "port", "outcome", "reason", "sent_bytes", "received_bytes")
PRICES = {"apples": 3, "pears": 4, "quinces": 11}


class Prices(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(PRICES).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Says nothing."""


async def run(source: str, folder: Path) -> int:
    policy = folder / "policy.yaml"
    policy.write_text((HERE / "policy.yaml").read_text().replace("${source}", source))
    settings = read_settings({"store": f"sqlite://{folder}/runs.db", "state_dir": folder / "state"})
    async with connect(policy=policy, settings=settings) as cluster:
        files = {"report.py": (HERE / "report.py").read_text()}
        started = await cluster.start(graph, Work(source=source), files=files)
        work = await started.result()
        if work.error:
            print(work.error)
            return 1
        print(f"the code answered {work.value['total']}, and left {(await started.files())['report.csv']!r}")
        print("\nwhat else it tried:")
        for what, came_of_it in work.value["mischief"].items():
            print(f"  {what:<38} {came_of_it}")
        print("\nits audit trail:")
        async for place, entry in entries_of(cluster.store, started.run_id):
            told = " ".join(f"{name}={entry[name]}" for name in SHOWN if entry.get(name) not in (None, ""))
            print(f"  {place:<5} {entry['kind']:<11} {told}")
        verified = await verify(cluster.store, settings.secret())
        print(f"\nthe log of {verified.entries} entries is {verified.fault or 'whole'}")
        return 0 if verified.fault is None else 1


def main() -> int:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prices)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(run(f"127.0.0.1:{server.server_port}", Path(folder)))
    finally:
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
