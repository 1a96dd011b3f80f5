"""A process that has settled goes on as before; what its forks write is their own, and its file is written to no more.

In a process of its own: it is for good.
"""

import json
import subprocess
import sys

SETTLING = """
import gc, json, os, sys
import asyncio, pydantic
from understudy.actors.sandbox import settle

class Note(pydantic.BaseModel):
    text: str
    parts: dict[str, list[int]]

def own_kib():
    with open("/proc/self/smaps_rollup") as rows:
        return next(int(row.split()[1]) for row in rows if row.startswith("Anonymous:"))

def both():
    return sum(1 for each in settle.pieces() if "w" in each.rights and "x" in each.rights)

kept = {str(number): [number] * 10 for number in range(50_000)}
before, pieces_before, both_before = own_kib(), len(list(settle.pieces())), both()
settle.settle()
after, pieces_after = own_kib(), len(list(settle.pieces()))
mapped = [each for each in settle.pieces() if "understudy-memory" in each.name]

told_in, told_out = os.pipe()
if os.fork() == 0:
    kept["7"].append("the child's")
    try:
        place = f"{mapped[0].start:x}-{mapped[0].end:x}"
        with open(f"/proc/self/map_files/{place}", "r+b", buffering=0) as file:
            file.write(b"x")
        said = "written"
    except OSError as error:
        said = error.strerror
    os.write(told_out, said.encode())
    os._exit(0)
os.wait()

async def later():
    await asyncio.sleep(0)
    return Note.model_validate_json(Note(text="a", parts=kept).model_dump_json()).parts == kept

import decimal, email.message, statistics  # memory that it asks for afterwards
right = asyncio.run(later()) and gc.collect() >= 0 and str(decimal.Decimal("1.10")) == "1.10"
print(json.dumps({
    "own": [before, after], "pieces": [pieces_before, pieces_after], "new both": both() - both_before,
    "mapped": len(mapped), "child": os.read(told_in, 99).decode(), "right": right, "kept": kept["7"] == [7] * 10,
}))
"""


def test_a_process_that_has_settled_goes_on_and_its_forks_share_its_memory() -> None:
    line = [sys.executable, "-c", SETTLING]
    told = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, timeout=60).stdout)
    assert told["right"]
    assert told["kept"], "a fork has written to it"
    before, after = told["own"]
    assert after < before / 4
    before, after = told["pieces"]
    assert after < before * 0.8
    assert told["new both"] == 0, "memory that can be written and executed"
    assert told["mapped"] >= 2
    assert told["child"] == "Operation not permitted"
