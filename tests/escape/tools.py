"""Ordinary tools, as users write them, carried into a sandbox by value."""

import asyncio
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from understudy.actors.tool import tool


@tool
def decorated(a: int, b: int) -> int:
    return a + b


async def waits(a: int) -> int:
    await asyncio.sleep(0)
    return a + 1


class Order(BaseModel):
    id: str
    amount: Decimal
    paid: bool = False


def pays(order: Order) -> Order:
    return order.model_copy(update={"paid": True})


@dataclass
class Count:
    day: date
    distinct: int


def counts(day: date, more: set[str]) -> Count:
    return Count(day + timedelta(days=1), len(more))


def echoes(value: Any) -> Any:
    return value


def measures(value: str) -> int:
    return len(value)


def contents(path: str) -> str:
    return Path(path).read_text()


def append_line(path: str, line: str) -> int:
    with open(path, "a+") as file:
        file.write(line + "\n")
        file.seek(0)
        return len(file.readlines())


def fails() -> None:
    print("on stdout")
    print("on stderr", file=sys.stderr)
    raise KeyError("no such order")
