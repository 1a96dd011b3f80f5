"""Runs inside the sandbox: bounds itself, finds the one function that is wanted, calls it, and writes what it returned.

Run as `python -I -S runner.py REPLY_FD [OUTLET_FD PORT]`, or by a zygote that is warm; with the standard library alone,
until the tool itself imports more: every import is paid by every call. Nothing here is trusted by the host: from the
moment the tool is loaded, this process is the tool's.
"""

import contextlib
import errno
import io
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

STARTED = b"started\n"
ADDRESS_SPACE_HEADROOM = 512 * 1024 * 1024
"""Over the memory limit. Address space is not memory (thread stacks, arenas, numpy's buffers are reserved, not used);
this bounds what one process can grab between two looks of the watchdog."""
CHAINED_MAX = 10
"""Errors behind an error that are looked at: clients raise one of their own for that of the system."""
UNREACHED = (errno.ENETUNREACH, errno.EHOSTUNREACH)
NO_NETWORK = 'the policy\'s rule for this call grants no network; if it may reach one, say network: ["HOST:PORT"] in it'
WAY_OUT = "the only way out is the proxy that HTTP_PROXY names; what does not ask that one reaches nothing"
NICENESS = 5
"""Of tools, at least: they may compute as much as they like, and whoever renews leases and looks for deaths beside them
is on time. Higher, and beside busy programs of others a call would take seconds: 15 is 3% of a usual share."""
LONGEST_MESSAGE = 2000
LONGEST_TRACE = 16_000
"""Characters of a traceback; of a longer one, only the last calls are told."""
CHUNK_BYTES = 1 << 16
"""What a pipe holds."""

_JSON_TYPES: tuple[Any, ...] = (str, int, float, bool, list, dict, None, type(None), Any)
_UNIONS = (Union, type(int | str))
_JSON_NAMES = frozenset({"str", "int", "float", "bool", "list", "dict", "None", "Any", "dict[str, Any]", "list[Any]"})


def main() -> None:
    reply = int(sys.argv[1])
    if len(sys.argv) > 2:
        hand_out_listener(int(sys.argv[2]), int(sys.argv[3]))
    os.closerange(3, reply)  # what bubblewrap was started with is not the tool's
    os.closerange(reply + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(reply, False)  # programs that the tool starts have no business with it
    open_streams()
    serve(reply)


def hand_out_listener(outlet: int, port: int) -> None:
    """Listen on this network's loopback, for the proxy outside to accept; nobody in here can. No tool is here yet."""
    import socket

    with socket.socket(fileno=outlet) as out, socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        socket.send_fds(out, [b"listener"], [listener.fileno()])


def open_streams() -> None:
    """What is printed goes to 1 and 2. A zygote does this for all its runners: to each it would be seventy pages."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(Unbuffered(fd, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True)
        for each in (name, f"__{name}__"):
            setattr(sys, each, stream)


def serve(reply: int, end: Callable[[], None] = lambda: os._exit(0)) -> None:
    """Read the one request, perform it, answer, and end; how, may be said."""
    # What can be done before there is a request is done then: a zygote's runner waits here.
    null = os.open("/dev/null", os.O_RDWR)
    # What it looks at is this process's own then, and not copied while somebody waits.
    _flush()
    _write_all(null, _read_all(null) or STARTED)
    give_way(0)
    request = take_up(_read_all(0))
    os.dup2(null, 0)
    os.close(null)
    if request["secrets"]:
        from understudy.actors.secret import entrust

        entrust(*request["secrets"])
    give_way()
    _write_all(reply, STARTED)
    answering = os.getpid()
    answer = perform(request)
    _flush()
    if os.getpid() != answering:  # a child that came back from the tool's fork: it ends, and does not answer for it
        os._exit(0)
    _write_all(reply, answer)
    os.close(reply)  # the end is quicker seen here than by the process's death
    end()  # the call is over when the function has returned: no exit hooks, no waiting for threads


def give_way(niceness: int = NICENESS) -> None:
    """Nobody in here can take it back."""
    here = os.getpriority(os.PRIO_PROCESS, 0)
    if here < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def take_up(text: bytes) -> dict[str, Any]:
    """The request, with this process bounded and set up as it says."""
    request: dict[str, Any] = json.loads(text)
    bound(request["limits"])
    sys.path[:] = request["import_paths"]
    sys.executable = request["python"]
    if equipped := request.get("environment_of"):
        sys.prefix = sys.exec_prefix = equipped["prefix"]
        sys.meta_path.append(Lent(equipped))
    os.environ["UNDERSTUDY_EFFECT_KEY"] = request["key"]
    os.environ.update(request["environment"])
    return request


class Unbuffered(io.FileIO):
    """What a tool prints is out at once: whatever ends it, and when, nothing of that is still in here."""

    def write(self, data: Any) -> int:
        """All of it: of a large text, a signal may come in between."""
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            view = view[super().write(view) :]
        return size


class Lent:
    """Finds, of the worker's packages, the few that a tool with an environment of its own is lent; after its own."""

    def __init__(self, lent: dict[str, Any]) -> None:
        self.names, self.paths = frozenset(lent["names"]), lent["paths"]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.names:  # what lies in a package is found by the package's own path
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, self.paths)


def bound(limits: dict[str, Any]) -> None:
    """Limits that the kernel keeps. Set here, inside the user namespace: there they count this sandbox alone."""
    cpu = max(1, round(limits["cpu_s"]))
    # One process more: bubblewrap's own, which reaps orphans.
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, *[limits["memory_bytes"] + ADDRESS_SPACE_HEADROOM] * 2),
        (resource.RLIMIT_NPROC, *[limits["processes"] + 1] * 2),
        (resource.RLIMIT_NOFILE, *[limits["open_files"]] * 2),
        (resource.RLIMIT_FSIZE, *[limits["disk_bytes"]] * 2),
        # No core has so little. Where core_pattern names a program, which reads cores as root on the host, the kernel
        # takes notice of no other limit, 0 included.
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
        (resource.RLIMIT_NICE, 0, 0),
    ):
        now = resource.getrlimit(what)
        if now[1] != resource.RLIM_INFINITY:
            soft, hard = min(soft, now[1]), min(hard, now[1])
        if now != (soft, hard):  # gVisor refuses to set what it does not know, also to what it is
            resource.setrlimit(what, (soft, hard))


def perform(request: dict[str, Any]) -> bytes:
    """The call, and its end as the JSON that `reply.py` reads."""
    try:
        workspace = request.get("workspace")
        home = os.getcwd()
        if workspace:
            enter(workspace, home)
        function = find(request["ref"], request["blob"])
        value = function(**validated(function, request["args"]))
        if hasattr(value, "__await__"):
            import asyncio

            value = asyncio.run(_awaited(value))
    except BaseException as error:
        ended = told_of_error(error)
    else:
        try:
            text = to_json(value)
            files = told_of(workspace, home) if workspace and workspace["keeps"] else b""
        except BaseException as error:
            ended = told_of_error(error, "what the tool returned is no JSON: ")
        else:
            ended = {}
    if ended:  # the error is gone by now, and with it what the tool's frames have held
        return _answer(**ended)
    if len(text) > request["limits"]["output_bytes"]:
        return _answer("output_too_large", size=len(text))
    return b'{"kind":"ok","peak":%d,"value":%s%s}' % (_peak(), text, files)


def enter(workspace: dict[str, Any], home: str) -> None:
    """The files of the run are where the tool starts."""
    from understudy.actors.sandbox import unpack

    unpack.lay_out(workspace["files"], f"{home}/{unpack.FOLDER}")
    os.chdir(f"{home}/{unpack.FOLDER}")


def told_of(workspace: dict[str, Any], home: str) -> bytes:
    """What has changed there, as the end of an answer."""
    from understudy.actors.sandbox import unpack

    most = workspace["files_max"], workspace["bytes_max"]
    return b',"files":' + to_json(unpack.changed(workspace["files"], f"{home}/{unpack.FOLDER}", *most))


def find(ref: str, blob: str) -> Callable[..., Any]:
    """The plain function: what a `@tool` object holds, where it is one."""
    if blob:
        import base64
        import pickle

        found = pickle.loads(base64.b64decode(blob))
    else:
        import importlib

        module, _, path = ref.partition(":")
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    function: Callable[..., Any] = getattr(found, "fn", found)
    return function


def validated(function: Callable[..., Any], args: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the annotations say. pydantic is asked only about types that JSON does not have: loaded by a
    zygote already it takes a millisecond, else 60."""
    annotations = getattr(function, "__annotations__", {})
    if all(_is_json(annotations[name]) for name in args if name in annotations):
        return args
    import typing

    from pydantic import TypeAdapter

    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # of a type that only type checkers import; the caller's side has checked what it could
        return args
    return {
        name: TypeAdapter(hints[name]).validate_json(json.dumps(value)) if name in hints else value
        for name, value in args.items()
    }


def _is_json(annotation: Any) -> bool:
    """Whether JSON has all values of a type: as the caller's side has checked them, so they arrive."""
    if isinstance(annotation, str):
        return annotation in _JSON_NAMES
    if any(annotation is t for t in _JSON_TYPES):
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return inner[0] is str and _is_json(inner[1])
    if origin is Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in inner)
    return (origin is list or origin in _UNIONS) and all(map(_is_json, inner))


def to_json(value: Any) -> bytes:
    """Strict JSON (no NaN), in ASCII. Models, dataclasses, dates and the like through pydantic."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_jsonable).encode()


def _jsonable(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


async def _awaited(value: Any) -> Any:
    return await value


def told_of_error(error: BaseException, prefix: str = "") -> dict[str, Any]:
    """What an answer says of it. Whatever its class has been made to do, this raises nothing."""
    text = _said(lambda: str(error), "(its message cannot be shown)")
    told: dict[str, Any] = {"kind": "error", "trace": _said(lambda: _trace(error), "(its traceback cannot be shown)")}
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return {**told, "kind": "out_of_memory"}
    if _said(lambda: str(getattr(error, "leaves_unknown", False)), "") == "True":
        told["kind"] = "unknown"
    if isinstance(error, RuntimeError) and text == "can't start new thread":
        number = errno.EAGAIN
    if type(number) is int:
        told["errno"] = number
    name = _said(lambda: type(error).__name__, "")
    text = prefix + text
    if _said(lambda: str(_reached_nothing(error)), "") == "True" and len(text) < LONGEST_MESSAGE:
        text += f"; {WAY_OUT if os.environ.get('HTTP_PROXY') else NO_NETWORK}"
    return {**told, "error": text[:LONGEST_MESSAGE], "error_type": name[:200]}


def _reached_nothing(error: BaseException | None) -> bool:
    """Whether it comes of a name that led nowhere, or of an address to which there is no way: such are all in here."""
    for _ in range(CHAINED_MAX):
        if isinstance(error, OSError) and (type(error).__name__ == "gaierror" or error.errno in UNREACHED):
            return True
        error = None if error is None else error.__cause__ or error.__context__
    return False


def _said(say: Callable[[], str], otherwise: str) -> str:
    """Text that can be written anywhere: no half characters."""
    try:
        return str.encode(say(), errors="backslashreplace").decode()
    except BaseException:
        return otherwise


def _trace(error: BaseException) -> str:
    """Of a long one, no part that holds values: a secret that was cut in two would be recognised by nobody."""
    import traceback

    text = "".join(traceback.format_exception(error))
    if len(text) > LONGEST_TRACE:
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-20))[-LONGEST_TRACE:]
        text = f"Traceback (the last calls of it):\n{frames}{type(error).__name__}: (too long to be shown here)\n"
    return text


def _answer(kind: str, **more: Any) -> bytes:
    return json.dumps({"kind": kind, "peak": _peak(), **more}).encode()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the tool closed it, or put anything in its place
            stream.flush()


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()
