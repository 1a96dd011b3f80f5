"""Tools that run what somebody else wrote: a command line (`shell`), or Python code of a model (`python`).

What they ran has gone wrong as often as not, and that is an answer, not an error: the exit status, the traceback. The
functions here run inside the sandbox, found there by reference; with the standard library alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from understudy.actors.tool import Tool

if TYPE_CHECKING:
    from understudy.actors.environment import Environment

KEPT_BYTES = 256 * 1024
"""Of each of stdout and stderr, and of what code prints: the tail. `output_bytes` bounds it, too."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    """Its exit status; negative: the signal that ended it."""
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Executed:
    """What a piece of Python has done."""

    printed: str
    value: Any = None
    """Of the variable `result`, else of the last expression; None if it is not JSON, see `shown`."""
    shown: str = ""
    """Its repr, where it is not JSON."""
    error: str = ""
    """The traceback, from the code's own frames on; empty if it went well."""


def shell(name: str = "shell", environment: "Environment | None" = None) -> Tool[..., Ran]:
    """A tool that runs a command: `await ctx.call(sh, command="ls -l")`, or without a shell `command=["ls", "-l"]`.

    Args of a call: `command`; `check=True` makes an exit status other than 0 an error of the call.
    Returns (awaited): a `Ran`. What it printed up to then is in the outcome where a limit ended it.
    Policies parse the command (`policies.argv`); it gets a sandbox of the tier `cold` at least, and the run's
    workspace as working folder, if a rule grants that. `environment`: its programs come first, and `python` is its.
    """
    return Tool(run_command, name, False, None, ("command",), "write", "cold", environment)


def python(name: str = "python", environment: "Environment | None" = None) -> Tool[..., Executed]:
    """A tool that executes code: `await ctx.call(py, code="print(x + 1)", inputs={"x": 1})`.

    Args of a call: `code`; `inputs`, JSON values that are variables in it.
    Returns (awaited): an `Executed`. An exception of the code is an answer; a limit is an outcome of its own.
    The tier is the policy's, by default `zygote`: fresh namespaces for each call. It has the run's workspace as working
    folder, if a rule grants that. `environment`: the packages that the code finds, see `tool`.
    """
    return Tool(run_code, name, False, None, (), "write", None, environment)


def run_command(command: Any, check: bool = False) -> Ran:
    """Run a command line, or a list of words without a shell."""
    import subprocess
    import threading

    words = isinstance(command, list) and command and all(isinstance(word, str) for word in command)
    if not words and not isinstance(command, str):
        raise TypeError(f"command is {command!r:.80}; give a command line, or a list of words")
    line = command if words else ["/bin/sh", "-c", command]
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kept = bytearray(), bytearray()
    readers = [
        threading.Thread(target=_copy, args=(source, into, fd), daemon=True)
        for source, into, fd in ((process.stdout, kept[0], 1), (process.stderr, kept[1], 2))
    ]
    for reader in readers:
        reader.start()
    status = process.wait()
    for reader in readers:
        reader.join(1.0)  # something that it left running may hold the pipe
    stdout, stderr = (bytes(each).decode(errors="replace") for each in kept)
    if check and status:
        last = (stderr.strip() or stdout.strip())[-500:]
        raise RuntimeError(f"the command ended with exit status {status}: {last}")
    # As JSON has it: a dataclass would be written through pydantic, which takes as long to load as the command to run.
    return cast(Ran, {"status": status, "stdout": stdout, "stderr": stderr})


def _copy(source: Any, kept: bytearray, fd: int) -> None:
    """To where the tool prints as well, so that it is known if a limit ends the call."""
    import os

    while data := source.read1(65536):
        kept += data
        del kept[:-KEPT_BYTES]
        os.write(fd, data)


def run_code(code: str, inputs: Any = None) -> Executed:
    """Execute Python code with some variables."""
    import contextlib
    import io
    import json

    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"inputs is {inputs!r:.80}; give variables by name")
    variables: dict[str, Any] = {"__name__": "__main__", **(inputs or {})}
    printed = io.StringIO()
    error, value = "", None
    with contextlib.redirect_stdout(cast(Any, _Tee(printed))):
        try:
            value = _value_of(code, variables)
        except MemoryError:
            raise
        except BaseException as raised:
            error = _trimmed(raised)
    shown = ""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        shown, value = repr(value)[:2000], None
    text = printed.getvalue()[-KEPT_BYTES:]
    return cast(Executed, {"printed": text, "value": value, "shown": shown, "error": error})


def _value_of(code: str, variables: dict[str, Any]) -> Any:
    """Of `result`, else of the last expression."""
    import ast
    import linecache

    linecache.cache["<code>"] = (len(code), None, code.splitlines(keepends=True), "<code>")
    tree = ast.parse(code, "<code>")
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(cast(ast.Expr, tree.body.pop()).value)
    exec(compile(tree, "<code>", "exec"), variables)
    found = eval(compile(last, "<code>", "eval"), variables) if last is not None else None
    return variables.get("result", found)


def _trimmed(error: BaseException) -> str:
    """The traceback from the first frame of the code on."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != "<code>":
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))[-KEPT_BYTES:]


class _Tee:
    """Writes to what is kept and to where the tool prints."""

    def __init__(self, kept: Any) -> None:
        import sys

        self._kept, self._printed = kept, sys.stdout

    def write(self, text: str) -> int:
        self._kept.write(text)
        return self._printed.write(text)

    def flush(self) -> None:
        self._printed.flush()
