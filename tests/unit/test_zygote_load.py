"""Modules that every call finds loaded: what one does when it is imported ends no zygote, and changes no call."""

import json
import os
import subprocess
import sys
from pathlib import Path

MODULES = {
    "ends_well": "print('hello')",
    "leaves": "import os; os._exit(0)",
    "raises": "raise SystemExit(3)",
    "hangs": "import time; time.sleep(600)",
    "forks": "import os, time\nif os.fork() == 0:\n    time.sleep(600); os._exit(0)",
    "times": "import signal; signal.alarm(600)",
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "signals": """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.umask(0)
""",
}
LOADING = """
import json, os, signal, sys
from understudy.actors.sandbox import zygote_inside
zygote_inside.LOAD_S = 2.0
def these():
    now = os.umask(0o22)
    os.umask(now)
    return [str(signal.getsignal(n)) for n in (15, 13)], list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), now
before = these()
refused = {name: zygote_inside.load(name) for name in sys.argv[1:]}
loaded = [name for name in sys.argv[1:] if name in sys.modules]
print(json.dumps([refused, loaded, before == these(), len(os.listdir("/proc/self/task"))]))
"""


def test_a_module_that_does_more_than_to_be_imported_is_refused_or_undone(tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = f"{tmp_path}:{Path(__file__).parents[2] / 'src'}"
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *MODULES],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, loaded, unchanged, threads = json.loads(done.stdout.splitlines()[-1])
    assert refused == {
        "ends_well": "",
        "leaves": "it ended the process that imported it (status 0)",
        "raises": "SystemExit: 3",
        "hangs": "it took longer than 2 s",
        "forks": "it starts a process when it is imported",
        "times": "it sets a timer when it is imported",
        "threads": "it starts 1 thread when it is imported",
        "signals": "",
    }
    assert (loaded, unchanged, threads) == (["ends_well", "signals"], True, 1)
