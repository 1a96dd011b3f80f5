"""A tool is a function that acts on the world; it runs in a sandbox, under a grant, and never in a run actor (law 7).

Arguments and results cross as JSON, validated through the function's annotations on both sides. pydantic and inspect
are imported only where they are used: this module is imported inside every sandbox, and each import is paid by every
call.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from understudy.actors.errors import CallerError

if TYPE_CHECKING:
    import inspect

    from pydantic import TypeAdapter

    from understudy.actors.environment import Environment
    from understudy.policies.profile import Tier, Workspace

P = ParamSpec("P")
R = TypeVar("R")


class Tool(Generic[P, R]):
    """A function with a name that policies know. Calling it calls the plain function (for unit tests)."""

    resolves = False
    """It is declared by name only, and has to be looked up (`resolve`) before it is called: see `mcp/server.py`."""
    environment: "Environment | None" = None
    """The packages that it finds, read-only, in the place of the worker's."""
    refused = ""
    """Why it is not to be called, whatever a policy says."""

    def __init__(
        self,
        fn: Callable[P, R],
        name: str,
        idempotent: bool,
        reconcile: Callable[P, Any] | None = None,
        shell: tuple[str, ...] = (),
        workspace: "Workspace" = "none",
        tier: "Tier | None" = None,
        environment: "Environment | None" = None,
    ) -> None:
        self.fn = fn
        self.name = name
        self.idempotent = idempotent
        """A call whose end is not known may be made again under the same key (law 4)."""
        self.reconcile = reconcile
        """Asks the outside how a call ended. With neither of the two, a person is asked."""
        self.shell = shell
        """Arguments that a shell will read."""
        self.workspace = workspace
        """What it has to do with the files of the run, where the policy lets it."""
        self.tier = tier
        """The weakest isolation that will do, whatever the policy says; None: what the policy says."""
        self.environment = environment
        self.judged_as = name
        """What policies know it by."""
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__module__ = fn.__module__
        self.__qualname__ = fn.__qualname__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    @cached_property
    def version(self) -> str:
        """Digest of the function's source (or code, where there is no source): an approval is bound to it."""
        import inspect

        try:
            text = inspect.getsource(self.fn).encode()
        except Exception:  # none is there; or the file has become another one, whose lines are nothing
            code = self.fn.__code__
            text = code.co_code + repr((code.co_consts, code.co_names)).encode()
        if self.environment:
            text += self.environment.text.encode()
        return hashlib.sha256(text).hexdigest()[:16]

    @cached_property
    def reconciler(self) -> "Tool[P, Any] | None":
        """What asks the outside, as a tool of its own: it runs in a sandbox, too."""
        if self.reconcile is None:
            return None
        named = f"{self.name}#reconcile"
        reconciler = Tool(self.reconcile, named, idempotent=True, shell=self.shell, environment=self.environment)
        reconciler.judged_as = self.name  # who may make the call may ask how it ended
        return reconciler

    @cached_property
    def _signature(self) -> "inspect.Signature":
        import inspect

        try:
            return inspect.signature(self.fn, eval_str=True)
        except NameError:
            return inspect.signature(self.fn)

    @cached_property
    def _adapters(self) -> "Mapping[str, TypeAdapter[Any]]":
        from pydantic import TypeAdapter

        return {name: TypeAdapter(_annotation(p.annotation)) for name, p in self._signature.parameters.items()}

    @cached_property
    def _returns(self) -> "TypeAdapter[Any]":
        from pydantic import TypeAdapter

        return TypeAdapter(_annotation(self._signature.return_annotation))

    def encode(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as JSON values. Raises CallerError that names the tool, the argument and what is wrong."""
        try:
            bound = self._signature.bind(**given)
        except TypeError as error:
            raise CallerError(f"tool {self.name!r}: {error}; it takes {self._signature}") from None
        bound.apply_defaults()  # a policy judges the whole call: a default amount is an amount
        encoded: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            items = value if kind is kind.VAR_KEYWORD else {name: value}
            for key, item in items.items():
                adapter = self._adapters[name]
                try:
                    encoded[key] = adapter.dump_python(adapter.validate_python(item), mode="json")
                except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
                    # Without the value: no policy was asked yet whether it may be shown (`redact`).
                    said = f"what is given (a {type(item).__name__}) does not fit: {_reason(error)}"
                    raise CallerError(f"tool {self.name!r}, argument {key!r}: {said}") from None
        try:
            json.dumps(encoded, allow_nan=False, ensure_ascii=False).encode()
        except ValueError:  # it could be shown to no person as JSON, and no store could hold it
            raise CallerError(
                f"tool {self.name!r}: its arguments hold NaN, an infinity or half of a character, which JSON does not "
                f"have; give a number, None or other text"
            ) from None
        return encoded

    def decode(self, value: Any) -> R:
        """The result as the function's annotation says. It comes from untrusted code: it is checked.

        Raises CallerError if it is something else.
        """
        try:
            result: R = self._returns.validate_json(json.dumps(value))
        except ValueError as error:
            raise CallerError(f"tool {self.name!r} answered {str(value)[:80]!r}: {_reason(error)}") from None
        return result


def _annotation(annotation: Any) -> Any:
    import inspect

    return Any if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation


def _reason(error: Exception) -> str:
    """What pydantic found wrong, on one line: `lines.0.qty: Input should be a valid integer`."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    found = error.errors(include_url=False, include_context=False, include_input=False)[:3]
    return "; ".join(": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"]))) for item in found)


@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str = "",
    idempotent: bool = False,
    reconcile: Callable[..., Any] | None = None,
    shell: str | Sequence[str] = (),
    workspace: "Workspace" = "none",
    environment: "Environment | None" = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str = "",
    idempotent: bool = False,
    reconcile: Callable[..., Any] | None = None,
    shell: str | Sequence[str] = (),
    workspace: "Workspace" = "none",
    environment: "Environment | None" = None,
) -> Any:
    """Declare a function as a tool, as a decorator with or without arguments.

    The name of a call, its effect key, is in the environment as UNDERSTUDY_EFFECT_KEY. It stays the same when the call
    is made again because nobody knows how it ended: hand it to the other side, so that it can tell the two apart. A
    tool that asked for something and got no answer raises `EndUnknown`: then it is as if its sandbox had died.

    Args:
        name: what policies call it; default, the function's name.
        idempotent: calling it twice with the same key is the same as once, so that a call whose end is not known
            (its sandbox died) is made again.
        reconcile: a function of the same arguments that looks how a call whose end is not known has ended. It runs in
            a sandbox of its own, under the policy's decision on the same call, with the same key; it returns
            {"done": value} or "never happened" (or Done(value), NeverHappened()). If it raises, or tells anything
            else, a person is asked, as without it.
        shell: the argument, or arguments, that a shell will read. A call is asked about, however the policy allows
            it, unless each of them is a plain command line (see `policies.argv`).
        workspace: "read" or "write": its working folder has the files of the run, if the policy grants it; with
            "write", what it leaves there is what the next call finds, once this one has gone well. They are part of
            the checkpoints. What a call has left is lost if nobody knows how it ended: where a person or `reconcile`
            gives its value, the files stay as they were before it; "retry", or `idempotent`, makes them again.
        environment: the packages that it finds in the place of the worker's, `Environment(packages=["left-pad==1.0"])`.
            They are built before (`understudy environments build MODULE`), and shown to it read-only, in a sandbox of
            the tier `zygote` at least. Import them inside the function: the worker need not have them. Without
            sandboxes (`run_inline`) there is no environment.
    """
    if workspace not in ("none", "read", "write"):
        raise CallerError(f"workspace={workspace!r} is none of none, read, write")
    if fn is None:
        lines = (shell,) if isinstance(shell, str) else tuple(shell)
        how: Any = (idempotent, reconcile, lines, workspace, None, environment)
        return lambda inner: Tool(inner, name or _name_of(inner), *how)
    return Tool(fn, _name_of(fn), False)


def _name_of(fn: Any) -> str:
    name = getattr(fn, "__name__", "")
    if not callable(fn) or not name:
        raise CallerError(f"a tool is made of a function, not of {fn!r:.80}; write @tool above a def")
    return str(name)
