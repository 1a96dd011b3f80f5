"""A graph whose tools use a secret both ways and let it out in every way that a tool can."""

import base64
import urllib.request
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from understudy import END, START, Context, Graph, ToolError, secret, tool

POLICY = """
policy: secretive
version: 1
rules:
  - {id: web, effect: allow, tool: asks, network: ["127.0.0.1:%d"], secrets: [planted_web], tier: %s}
  - {id: own, effect: allow, tool: lets_out, secrets: [planted_own], tier: %s}
  - {id: missing, effect: allow, tool: misses, secrets: [nobody_has_it]}
"""


class State(BaseModel):
    port: int
    said: list[Any] = []


@tool
def asks(port: int) -> str:
    """The server answers with what it was asked: so the secret comes back."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        text: str = answer.read().decode()
    print("the server heard", text)
    try:
        urllib.request.urlopen("http://127.0.0.1:1/", timeout=10)
    except OSError as error:
        print(error)
    return text


@tool
def lets_out(how: str) -> Any:
    value = secret("planted_own")
    with open("/tmp/note", "w") as note:
        note.write(value)
    print(value, base64.b64encode(f"user:{value}".encode()).decode())
    if how == "raise":
        raise ValueError(f"not accepted: {value}")
    return {"plain": value, "quoted": quote(value), value: [f"Bearer {value}"]}


@tool
def misses() -> None:
    pass


secretive = Graph("secretive", State)


@secretive.node
async def both(state: State, ctx: Context) -> dict[str, Any]:
    said: list[Any] = [await ctx.call(asks, port=state.port), await ctx.call(lets_out, how="return")]
    for failing, how in ((lets_out, {"how": "raise"}), (misses, {})):
        try:
            await ctx.call(failing, **how)
        except ToolError as error:
            said.append(str(error))
    return {"said": said}


secretive.edge(START, "both").edge("both", END)
