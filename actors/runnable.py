"""The graph that users build: what graph.py makes, and a way to run it in this process.

Apart from graph.py, so that the engine, which inline.py drives, may know graphs without knowing how they are run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from understudy.actors import graph

if TYPE_CHECKING:
    from understudy.actors.calls import PolicyPort
    from understudy.actors.inline import Answers, Clock
    from understudy.actors.open import OpenStore
    from understudy.actors.store import Store
    from understudy.policies.permission import Policy


class Graph(graph.Graph):
    __doc__ = graph.Graph.__doc__

    def run_inline(
        self,
        input: "BaseModel | Mapping[str, Any] | None" = None,
        *,
        store: "Store | OpenStore | None" = None,
        policy: "Policy | str | PolicyPort | None" = None,
        key: str = "",
        thread: str = "",
        answers: "Answers | None" = None,
        messages: Sequence[Any] = (),
        tools: "Mapping[str, Callable[..., Any]] | None" = None,
        clock: "Clock | None" = None,
        labels: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
    ) -> Any:
        """Run the graph to its end in this process, without Ray: for unit tests and notebooks (also where a loop runs).

        Same engine, same stores; but no isolation: tools are called as plain functions of this process.

        Args:
            input: the first state, or, on a thread that has one, a write to it.
            store: a store, or a function that opens one (`lambda: open_store("sqlite:///runs.db")`), which nobody
                else serves; default, one in memory, gone at the end. A store that is held by another event loop cannot
                be used here; give the function.
            policy: rules (Policy, or the text of a policy file) to judge tool calls by; default: yes to all.
            key, thread, labels, files: as in `Cluster.start`. The same key on the same store goes on with the same run,
                also in a new process after this one was killed; a child's graph that is in no module is found there
                if a node of its parent names it.
            answers: by interrupt id, node or tool name; or a function of the Interrupt that returns the answer. None is
                no answer. An approval is answered with True or False.
            messages: put into the run's mailbox before it begins.
            tools: functions to call in the place of tools, by the tool's name.
            secrets: what tools get by `understudy.secret(NAME)`, by name.
            clock: default, this machine's: `ctx.sleep` takes its time. With `SteppedClock()` it takes none; one
                that goes on with a run begins no earlier than the run was left.
        Returns the final state, as the graph's model.
        Raises RunFailed (failed, cancelled); AnswerNeeded (a question that `answers` does not answer, and that has no
        deadline); CallerError: the input does not fit, the store is served by a cluster, nothing can end a wait.
        """
        from understudy.actors.inline import run_inline  # what it needs is not pure; a graph is

        return run_inline(
            self,
            input,
            store=store,
            policy=policy,
            key=key,
            thread=thread,
            answers=answers,
            messages=messages,
            tools=tools,
            clock=clock,
            labels=labels,
            secrets=secrets,
            files=files,
        )

    async def run_inline_async(self, input: "BaseModel | Mapping[str, Any] | None" = None, **how: Any) -> Any:
        """`run_inline`, to be awaited; takes the same arguments."""
        from understudy.actors.inline import run_inline_async

        return await run_inline_async(self, input, **how)
