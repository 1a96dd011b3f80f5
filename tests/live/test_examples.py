"""The examples do what their README says, as somebody runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_untrusted_code_does_its_job_and_nothing_else(tmp_path: Path) -> None:
    environment = {**os.environ, "UNDERSTUDY_STATE_DIR": str(tmp_path), "API_TOKEN": "not-for-tools"}
    command = [sys.executable, str(EXAMPLES / "untrusted_code" / "main.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150, check=False)
    assert ran.returncode == 0, ran.stderr
    said, tried = ran.stdout, ran.stdout.partition("what else it tried:")[2].partition("its audit trail:")[0]
    assert r"the code answered 18, and left b'apples,3\npears,4\nquinces,11\n'" in said
    assert len(tried.strip().splitlines()) == 6
    assert "it worked" not in tried
    assert "not-for-tools" not in said
    trail = [line.split() for line in said.partition("its audit trail:")[2].splitlines() if " " in line]
    kinds = [words[1] for words in trail if words[1] in ("decision", "grant_used", "connection")]
    assert kinds == ["decision", "grant_used", "connection", "connection", "connection"]
    assert sum("decision=deny" in words for words in trail) == 2
    assert "log of 5 entries is whole" in said
