"""Import one module, and write down what that did: files, network, processes, time, memory.

A script, executed by the interpreter of the audited environment (Python 3.8 or newer, standard library only):

    python -I -B probe.py DESCRIPTOR SITE MODULE

It listens with an audit hook and writes a JSON line for everything noteworthy to the descriptor *while it happens*, so
that an import which crashes, exits or hangs leaves behind what it did until then. The last line says how it ended.
A module that knows about the hook can get around it. It is a witness, not a wall; the sandbox is the wall.
"""

import importlib
import json
import os
import sys
import time

NOTES_MAX = 100
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

KINDS = {
    "os.system": "process",
    "os.exec": "process",
    "os.fork": "process",
    "os.forkpty": "process",
    "os.posix_spawn": "process",
    "os.spawn": "process",
    "pty.spawn": "process",
    "subprocess.Popen": "process",
    "ctypes.dlopen": "library",
    "os.remove": "write",
    "os.rename": "write",
    "os.mkdir": "write",
    "os.rmdir": "write",
    "os.chmod": "write",
    "os.chown": "write",
    "os.link": "write",
    "os.symlink": "write",
    "os.truncate": "write",
    "os.kill": "process",
}
# Making a socket is a finding of its own: where the sandbox allows none, an import gets no further than that.
SOCKETS = {
    "socket.__new__": "socket",
    "socket.bind": "socket",
    "socket.connect": "network",
    "socket.sendto": "network",
    "socket.sendmsg": "network",
    "socket.getaddrinfo": "network",
    "socket.gethostbyname": "network",
    "socket.gethostbyaddr": "network",
}
STANDARD = getattr(sys, "stdlib_module_names", sys.builtin_module_names)


def main(descriptor: int, site: str, module: str) -> None:
    if site not in sys.path:
        sys.path.insert(0, site)
    listening = True
    seen: set = set()  # type: ignore[type-arg]
    places = _known_places(site)

    def note(kind: str, what: str) -> None:
        line = json.dumps({"kind": kind, "what": what[:200], "by": _culprit(module)})
        if line not in seen and len(seen) < NOTES_MAX:
            seen.add(line)
            os.write(descriptor, line.encode() + b"\n")

    def hook(event: str, args: tuple) -> None:  # type: ignore[type-arg]
        nonlocal listening
        if not listening:
            return
        listening = False  # what is opened on behalf of the note is no finding
        try:
            if event == "open":
                _opened(args, places, note)
            elif event in KINDS and args != (None,):  # dlopen(None) is `import ctypes`, which loads nothing
                note(KINDS[event], _words(event, args))
            elif event in SOCKETS:
                # The first argument of the methods is the socket itself, which says nothing.
                note(SOCKETS[event], _words(event, args if "get" in event else args[1:]))
        finally:
            listening = True

    before, memory = set(sys.modules), _peak_memory()
    sys.addaudithook(hook)
    began = time.perf_counter()
    error = ""
    try:
        importlib.import_module(module)
    except BaseException as raised:  # SystemExit too: that is how some modules say that they cannot be imported
        error = type(raised).__name__ + ": " + str(raised)
    ms = (time.perf_counter() - began) * 1000
    listening = False
    end = {
        "kind": "end",
        "error": error[:300],
        "ms": round(ms, 1),
        "memory_mb": round(max(0, _peak_memory() - memory) / 1024, 1),
        "imports": _others(set(sys.modules) - before, module),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    os.write(descriptor, json.dumps(end).encode() + b"\n")
    os._exit(0)  # no exit handlers, no waiting for threads: the import was the question


def _opened(args: tuple, places: list, note) -> None:  # type: ignore[no-untyped-def,type-arg]
    path, _, flags = (*args, None, None, None)[:3]
    if not isinstance(path, (str, bytes)):
        return  # a descriptor that is open already
    path = os.path.abspath(os.fsdecode(path))
    if isinstance(flags, int) and flags & WRITING:
        if path != os.devnull:
            note("write", path)
    elif not any(path == place or path.startswith(place + os.sep) for place in places):
        note("read", path)


def _culprit(module: str) -> str:
    """The top-level name of the code that did it: the innermost frame that is not ours or the standard library's."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if name and name != "__main__" and name not in STANDARD:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return module.split(".")[0]


def _known_places(site: str) -> list:  # type: ignore[type-arg]
    """Where Python code is expected to read: the standard library, the environment, the folders on the path."""
    places = [site, os.path.dirname(os.__file__), sys.prefix, os.devnull, "/dev/urandom", *sys.path]
    return sorted({form for place in places if place for form in (os.path.abspath(place), os.path.realpath(place))})


def _others(loaded: set, module: str) -> list:  # type: ignore[type-arg]
    """Other distributions' top-level modules that came along."""
    names = {name.split(".")[0] for name in loaded} - {module.split(".")[0]}
    return sorted(name for name in names if name not in STANDARD and name.isidentifier())[:50]


def _words(event: str, args: tuple) -> str:  # type: ignore[type-arg]
    shown = [repr(item)[:80] for item in args if item is not None]
    return event + "(" + ", ".join(shown) + ")"


def _peak_memory() -> int:
    """KiB. VmHWM, not ru_maxrss: that one is inherited from the process that started this one."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
