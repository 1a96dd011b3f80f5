"""The engine driven by hand (`Stage`), with tools that really are in sandboxes of tier cold."""

from typing import Any

from support.stage import HeldSandboxes, Stage
from understudy.actors.by_value import tool_code
from understudy.actors.calls import Order
from understudy.actors.outcome import Outcome, ToolCode
from understudy.actors.sandbox.bubblewrap import BubblewrapBackend
from understudy.actors.tool import Tool
from understudy.policies.profile import Profile


class Walled(HeldSandboxes):
    """`profile`: what every call may see and use."""

    profile = Profile()

    def code_of(self, tool: Tool[Any, Any]) -> ToolCode:
        code: ToolCode = tool.__dict__.get("_shipped") or tool_code(tool)
        return code

    async def _called(self, order: Order) -> Outcome:
        self.calls.append((order.call.tool, order.call.args))
        return await BubblewrapBackend().execute(order.call, self.profile)


def walled(stage: Stage, profile: Profile) -> Stage:
    """The same stage, with walls."""
    sandboxes = Walled(stage.store)
    sandboxes.profile = profile
    stage.sandboxes = sandboxes
    return stage
