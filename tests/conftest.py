"""What several test files share."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import sync_playwright

os.environ["OMP_NUM_THREADS"] = "1"  # of torch, here and in whatever is started: another worker has the other core

BROWSERS = ("chromium", "google-chrome", "chromium-browser")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    "`once(name, make)` is a folder that `make(folder)` has filled, and what it returned: by the worker that comes first."
    def share(name, make):
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                folder.mkdir()
                (folder / "said.txt").write_text(make(folder))
        return folder, (folder / "said.txt").read_text()
    return share


@pytest.fixture(scope="module")
def browser():
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if installed is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: install one, or run `playwright install chromium`")
        found = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield found
        found.close()
