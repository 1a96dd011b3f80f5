"""A graph is what a user builds: nodes, edges, branches over a typed state; `plan()` validates and freezes it.

Nodes are ordinary functions, `async def` or `def`, of the state, of the state and the context, or of nothing. They
return what they write: a dict by channel, an instance of the state model (its set fields), a `Command`, or None.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self, TypeVar

from pydantic import BaseModel

from understudy.actors.channels import adapter_of, channels_of
from understudy.actors.errors import CallerError, GraphError
from understudy.actors.names import check_name
from understudy.actors.plan import END, START, Branch, Join, Migration, Node, Plan, Target, is_async
from understudy.policies.retention import All, Keep
from understudy.policies.retry import Retry

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Graph:
    """What a user builds.

    Args:
        name: names the graph in events, metrics and the command line.
        state: a pydantic model; each field is a channel (see channels.py for reducers).
        version: the version of the code, kept with every run.
        step_limit: supersteps after which a run is ended as failed; a guard against loops without end.
        retain_s: seconds that a thread is kept after its last run ended; negative: for ever. Default 7 days.
        keep: which checkpoints of a thread are kept until then: `All()`, `Last(100)`, `Age(timedelta(days=1))`. What an
            unfinished run stands on always is.
    """

    name: str
    state: type[BaseModel]
    version: str = "1"
    step_limit: int = 1000
    retain_s: float = 7 * 86400.0
    keep: Keep = field(default_factory=All)
    _nodes: dict[str, Node] = field(default_factory=dict, repr=False)
    _edges: list[tuple[tuple[str, ...], str]] = field(default_factory=list, repr=False)
    _branches: list[Branch] = field(default_factory=list, repr=False)
    _migrations: list[Migration] = field(default_factory=list, repr=False)
    _plan: Plan | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("version", self.version)):
            if not isinstance(value, str) or not value:
                raise GraphError(f"the {what} of a graph is {value!r}; give a text, e.g. {str(value) or 'refund'!r}")
        if not isinstance(self.state, type) or not issubclass(self.state, BaseModel):
            raise GraphError(
                f"graph {self.name!r}: its state is {self.state!r}; give a pydantic model, one field a channel"
            )

    def node(
        self,
        fn: F | None = None,
        *,
        name: str = "",
        goto: Iterable[Target] = (),
        retry: Retry | None = None,
        timeout: timedelta | None = None,
        fallback: Target = "",
    ) -> Any:
        """Add a function as a node; as a decorator, with or without arguments.

        Args:
            name: its name; default, the function's.
            goto: the nodes (and END) that its Commands may lead to. Needed if it returns Commands with a `goto`.
            retry: when it is tried again after an exception; calls that went well are not made again. Default: never.
            timeout: how long one try may take; it then fails with a TimeoutError. A `def` node cannot be stopped: its
                thread is left behind, and what it asks of the context from then on is refused.
            fallback: the node that comes, in the place of those that follow, once this one is given up. It is given a
                `Failure` if its first parameter is annotated so, else the state. Default: the run fails.
        Raises GraphError: the name is taken, or a parameter is not understood.
        """
        if fn is None:
            return lambda inner: self.node(inner, name=name, goto=goto, retry=retry, timeout=timeout, fallback=fallback)
        node = replace(
            _node(name or fn.__name__, fn, self.state, tuple(_name(target) for target in goto)),
            retry=_retry(name or fn.__name__, retry),
            timeout_s=_seconds(name or fn.__name__, timeout),
            fallback=_name(fallback) if fallback else "",
        )
        if node.name in self._nodes:
            raise GraphError(f"graph {self.name!r} has a node {node.name!r} already; give this one another name=")
        if node.name in (START, END):
            raise GraphError(f"{node.name!r} is reserved; give the node another name=")
        self._nodes[node.name] = node
        self._plan = None
        return fn

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes so far, by name."""
        return self._nodes

    def edge(self, source: Target | Sequence[Target], target: Target) -> Self:
        """After `source` (or after all of several sources) comes `target`."""
        sources = [source] if isinstance(source, str) or callable(source) else list(source)
        self._edges.append((tuple(_name(item) for item in sources), _name(target)))
        self._plan = None
        return self

    def branch(self, source: Target, choose: Callable[[Any], Any], targets: Iterable[Target]) -> Self:
        """After `source`, `choose(state)` says what comes: one of `targets`, a Send to one, or a list of those."""
        if not callable(choose):
            raise GraphError(
                f"the branch after {_name(source)!r} is chosen by {choose!r}; give a function of the state"
            )
        self._branches.append(Branch(_name(source), choose, tuple(_name(target) for target in targets)))
        self._plan = None
        return self

    def migrate(self, *, from_: str, to: str = "") -> Callable[[F], F]:
        """Declare how the state of an older version becomes that of a newer one; a decorator.

        The function is given the stored channels as a dict of JSON values, and returns the dict for the newer version:
        all channels, as JSON values or as objects of their types. Runs that stand in a checkpoint of the older version,
        with a state model that differs, go through it (and those after it) before they go on.

        Args:
            from_: the version whose checkpoints it takes.
            to: the version that it makes; default, the `from_` of the migration that is declared next, or the
                graph's version after the last.

            @graph.migrate(from_="1")
            def split_name(old):
                first, _, last = old.pop("name").partition(" ")
                return {**old, "first": first, "last": last}
        """

        def add(fn: F) -> F:
            self._migrations.append(Migration(from_, to, fn))
            self._plan = None
            return fn

        return add

    def plan(self) -> Plan:
        """Validate and freeze. Raises GraphError that lists everything that is wrong, with remedies."""
        if self._plan is None:
            problems = _problems(self)
            if problems:
                raise GraphError(f"graph {self.name!r} cannot run: " + "; ".join(problems))
            edges: dict[str, list[str]] = {}
            for sources, target in self._edges:
                if len(sources) == 1:
                    edges.setdefault(sources[0], []).append(target)
            self._plan = Plan(
                name=self.name,
                version=self.version,
                state=self.state,
                channels=channels_of(self.state),
                nodes=dict(self._nodes),
                edges={source: tuple(dict.fromkeys(targets)) for source, targets in edges.items()},
                branches=tuple(self._branches),
                joins=tuple(Join(sources, target) for sources, target in self._edges if len(sources) > 1),
                step_limit=self.step_limit,
                retain_s=self.retain_s,
                keep=self.keep,
                migrations=_migrations(self),
            )
        return self._plan


def _retry(node: str, retry: object) -> Retry | None:
    if retry is not None and not isinstance(retry, Retry):
        raise GraphError(f"node {node!r}: retry is {retry!r}; write e.g. retry=Retry(attempts=3)")
    return retry


def _seconds(node: str, timeout: object) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, timedelta) or timeout <= timedelta(0):
        raise GraphError(f"node {node!r}: timeout is {timeout!r}; write e.g. timeout=timedelta(seconds=30)")
    return timeout.total_seconds()


def _name(target: Target) -> str:
    if isinstance(target, str):
        return target
    name = getattr(target, "__name__", None)
    if name is None:
        raise GraphError(f"{target!r} is no node; name it, or give the function that is one")
    return str(name)


def _node(name: str, fn: Callable[..., Any], state: type[BaseModel], goto: tuple[str, ...]) -> Node:
    try:
        parameters = list(inspect.signature(fn, eval_str=True).parameters.values())
    except (NameError, TypeError):  # annotations that exist for the type checker only
        parameters = list(inspect.signature(fn).parameters.values())
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    context = next((p for p in needed if _is_context(p)), None)
    required = [p for p in needed if p.default is p.empty]
    if context is None and len(required) == 2:
        context = required[1]
    rest = [p for p in required if p is not context]
    if len(rest) > 1:
        raise GraphError(
            f"node {name!r} takes {', '.join(p.name for p in rest)}; a node takes the state and, if it wants, the "
            f"context: def {name}(state, ctx)"
        )
    annotation: Any = rest[0].annotation if rest else Any
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        annotation = Any
    return Node(
        name=name,
        fn=fn,
        takes_state=bool(rest),
        context_name=context.name if context else "",
        is_async=is_async(fn),
        arg_adapter=adapter_of(annotation, state),
        takes_model=annotation is Any or annotation is state,
        goto=goto,
    )


def _is_context(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    label = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return label in ("Context", "BlockingContext") or parameter.name in ("ctx", "context")


def _name_problems(graph: Graph) -> Iterable[str]:
    """Names that not every store can hold. One of a node would be met in the middle of a run, by every owner anew."""
    names = [("its name", graph.name), ("its version", graph.version)]
    for what, name in [*names, *(("the name of a node,", name) for name in graph._nodes)]:
        try:
            check_name(what, name)
        except CallerError as error:
            yield str(error)


def _migrations(graph: Graph) -> dict[str, Migration]:
    """The migrations of a graph by their start, each with its end."""
    ends = [*(later.from_ for later in graph._migrations[1:]), graph.version]
    return {m.from_: replace(m, to=m.to or end) for m, end in zip(graph._migrations, ends, strict=False)}


def _migration_problems(graph: Graph) -> list[str]:
    problems = []
    starts = [migration.from_ for migration in graph._migrations]
    for start in dict.fromkeys(starts):
        if starts.count(start) > 1:
            problems.append(f"it has {starts.count(start)} migrations from version {start!r}; keep one")
        if start == graph.version:
            problems.append(f"it migrates from version {start!r}, which is its own; raise version=")
    known = _migrations(graph)
    for start in known:
        seen, version = {start}, known[start].to
        while version != graph.version:
            if version not in known or version in seen:
                problems.append(
                    f"its migrations from version {start!r} lead to {version!r} and not to {graph.version!r}; declare "
                    f"one from {version!r}, or give to="
                )
                break
            seen.add(version)
            version = known[version].to
    return problems


def _problems(graph: Graph) -> list[str]:
    """Everything wrong with a graph, each as one clause with its remedy."""
    problems: list[str] = [*_name_problems(graph), *_migration_problems(graph)]
    if not isinstance(graph.keep, Keep):
        problems.append(f"keep is {graph.keep!r}; give All(), Last(100) or Age(timedelta(days=1))")
    if not graph._nodes:
        return ["it has no nodes; add one with @graph.node"]
    onward: dict[str, set[str]] = {name: set(node.goto) for name, node in graph._nodes.items()}
    onward[START] = set()
    links = [(s, t) for sources, t in graph._edges for s in sources]
    links += [(branch.source, target) for branch in graph._branches for target in branch.targets]
    links += [(name, target) for name, node in graph._nodes.items() for target in node.goto]
    links += [(name, node.fallback) for name, node in graph._nodes.items() if node.fallback]
    for source, target in links:
        for name, reserved in ((source, START), (target, END)):
            if name != reserved and name not in graph._nodes:
                problems.append(_unknown(name, graph))
        onward.setdefault(source, set()).add(target)
    if problems:
        return list(dict.fromkeys(problems))
    if not onward[START]:
        problems.append(f"nothing follows START; add graph.edge(START, {next(iter(graph._nodes))!r})")
    reached = _reach({START}, onward)
    problems += [
        f"node {name!r} is never reached; add an edge to it, or remove it"
        for name in graph._nodes
        if name not in reached and onward[START]
    ]
    backward: dict[str, set[str]] = {}
    for source, targets in onward.items():
        for target in targets:
            backward.setdefault(target, set()).add(source)
    ending = _reach({END}, backward)
    stuck = [name for name in graph._nodes if name in reached and name not in ending]
    # Where nothing follows at all is where the edge is missing; what merely leads there is cured with it.
    problems += [
        f"there is no way to END from {name!r}; add graph.edge({name!r}, END), or goto= if it returns a Command"
        for name in [name for name in stuck if not onward[name]] or stuck
    ]
    return problems


def _unknown(name: str, graph: Graph) -> str:
    if name == START:
        return "START cannot be gone to; name a node"
    if name == END:
        return "nothing comes after END; remove that edge"
    close = difflib.get_close_matches(name, graph._nodes, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(graph._nodes))}"
    return f"there is no node {name!r}; {hint}"


def _reach(start: set[str], onward: Mapping[str, set[str]]) -> set[str]:
    seen, todo = set(start), list(start)
    while todo:
        for target in onward.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen
