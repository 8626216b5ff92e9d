"""What several test files share."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "google-chrome", "chromium-browser")


@pytest.fixture(scope="module")
def browser():
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if installed is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: install one, or run `playwright install chromium`")
        found = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield found
        found.close()
