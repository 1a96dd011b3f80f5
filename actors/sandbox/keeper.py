"""Keeps one call that has no namespaces: starts the tool's process behind rules, and ends all that comes of it.

It runs on the host, as nobody. It adopts whatever the tool orphans (a subreaper), and is not bound by the tool's rules,
so it can end all of it; the tool can neither see, trace nor signal it. It ends everything when the tool's process has
ended, and when the worker has let go of the lifeline, which a worker that is killed does, too. Should it be killed
itself, the tool's process dies with it, and what that had orphaned is found by its mark (`marks.py`).

Run as `python -I -S -B keeper.py ORDERS_FD LIFELINE_FD STATUS_FD REPLY_FD`; the request is at 0, what is printed goes
to 1 and 2. `orders` in `landlock.py` writes the orders.
"""

import json
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

REPLY = 3


def main() -> None:
    orders, lifeline, status, reply = (int(word) for word in sys.argv[1:5])
    wanted = json.loads(os.read(orders, 1 << 20))
    os.close(orders)
    sys.path[:] = wanted["import_paths"]
    os.environ.clear()
    os.environ.update(wanted["environment"])
    from understudy.actors.sandbox import runner
    from understudy.actors.sandbox.confine import PR_SET_CHILD_SUBREAPER, prctl
    from understudy.actors.sandbox.marks import wear

    wear(wanted["mark"])
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        confine(wanted, reply)
        os.write(status, b"here\n")
        os.close(status)
        sys.argv[:] = ["runner.py", str(REPLY)]
        sys.modules["__main__"] = runner
        runner.open_streams()
        runner.serve(REPLY)
    for fd in (0, 1, 2, reply):
        os.close(fd)
    pidfd = os.pidfd_open(child)
    select.select([pidfd, lifeline], [], [])
    code = sweep(child, wanted["mark"])
    os.write(status, b"%d\n" % (code if code >= 0 else 128 - code))
    os._exit(0)


def confine(wanted: dict[str, Any], reply: int) -> None:
    """Bind this process, which is about to load a tool. The status stays open, to say that it is done."""
    from understudy.actors.sandbox.confine import PR_SET_PDEATHSIG, drop_capabilities, filter_system_calls, prctl
    from understudy.actors.sandbox.rules import restrict
    from understudy.actors.sandbox.runner import give_way

    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    status = int(sys.argv[3])
    os.dup2(reply, REPLY, inheritable=False) if reply != REPLY else os.set_inheritable(reply, False)
    os.closerange(REPLY + 1, status)
    os.closerange(status + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir(wanted["folder"])
    give_way()  # under the filter, it could not
    restrict(wanted["abi"], wanted["read"], wanted["write"])
    drop_capabilities()
    filter_system_calls(bytes.fromhex(wanted["filter"]))


def sweep(child: int, mark: int) -> int:
    """End and reap all below this process; how the child has ended."""
    from understudy.actors.sandbox.marks import send

    code = -signal.SIGKILL
    while True:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: what is stopped starts nothing
            for pid in below(os.getpid()):
                with suppress(OSError):
                    send(pid, number, lambda worn: worn == mark)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return code
        select.select([], [], [], 0.001)


def below(pid: int) -> list[int]:
    """All living descendants."""
    found, waiting = [], [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                found += children
                waiting += children
    return found


if __name__ == "__main__":
    main()
