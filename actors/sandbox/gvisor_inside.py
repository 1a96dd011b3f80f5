"""Runs inside a gVisor container, as its first process: stands the inner walls up, starts the runner, hands on what it
answers, and ends when it has; with it ends all else in there.

gVisor's own kernel answers what a tool asks. The same filter as in every other tier stands before it all the same: a
tool is refused the same things in each, and less of that kernel can be attacked.

Run as `python -I -S -B gvisor_inside.py ORDERS`, which `orders` in `gvisor.py` writes; the request is at 0, the answer
goes to 1, what is printed to 2: those three are all that every version of runsc passes on.
"""

import json
import os
import select
import signal
import sys
from typing import Any

REPLY = 3
CHUNK_BYTES = 1 << 16
ENDS_WITHIN_S = 0.1
"""From when nobody can answer any more."""


def main() -> None:
    orders: dict[str, Any] = json.loads(sys.argv[1])
    sys.path[:] = orders["import_paths"]
    answer = os.dup(1)
    os.dup2(2, 1)
    from understudy.actors.sandbox import runner
    from understudy.actors.sandbox.confine import PR_SET_DUMPABLE, filter_system_calls, prctl

    prctl(PR_SET_DUMPABLE, 0)
    filter_system_calls(bytes.fromhex(orders["filter"]))
    ended, say_ended = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(say_ended)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reply, far = os.pipe()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(far, REPLY, inheritable=False)
        os.closerange(REPLY + 1, os.sysconf("SC_OPEN_MAX"))
        sys.argv[:] = ["runner.py", str(REPLY)]
        sys.modules["__main__"] = runner
        runner.open_streams()
        runner.serve(REPLY)
    for fd in (0, 1, 2, far):
        os.close(fd)
    os._exit(overseen(child, reply, answer, ended))


def overseen(child: int, reply: int, answer: int, ended: int) -> int:
    """Hand on what comes until nobody can answer any more, or the runner has ended. What the runner ended with: its
    exit status, or 128 and the signal's number; 0 if it has not."""
    code = -1
    while code < 0:
        ready, _, _ = select.select([reply, ended], [], [])
        if ended in ready:
            os.read(ended, CHUNK_BYTES)
            code = reaped(child)
        if reply in ready and code < 0 and not handed_on(reply, answer):  # it has answered, or it just ends
            select.select([ended], [], [], ENDS_WITHIN_S)
            return max(reaped(child), 0)
    os.set_blocking(reply, False)
    while handed_on(reply, answer):
        pass
    return code


def handed_on(reply: int, answer: int) -> bool:
    try:
        view = memoryview(os.read(reply, CHUNK_BYTES))
    except BlockingIOError:
        return False
    more = len(view) > 0
    while view:
        view = view[os.write(answer, view) :]
    return more


def reaped(child: int) -> int:
    """How the runner has ended; -1 while it has not. Others are reaped, and that is all."""
    code = -1
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
