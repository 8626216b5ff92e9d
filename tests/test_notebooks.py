"""Every notebook runs from top to bottom at smoke size, each in its own process: `nbdev_test` with a visible count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_]*.ipynb"))
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb
passed, _ = test_nb(Path(sys.argv[1]), skip_flags=["notest"])
sys.exit(not passed)
"""


def test_there_are_notebooks():
    assert NOTEBOOKS, "nbs/ holds no notebook"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    env = {**os.environ, "IN_TEST": "1"}  # they choose the smoke preset
    command = [sys.executable, "-c", RUN, str(path)]
    try:
        done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{path.name} took more than 300 s: its cells must run at smoke size under test", pytrace=False)
    if done.returncode:
        pytest.fail(f"{path.name}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}", pytrace=False)
