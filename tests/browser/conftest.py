"""A real Chromium, driven by Playwright. If either is missing, the tests are skipped with the reason."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120_000  # milliseconds; the machine may be busy
SIZES: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}


@dataclass
class Tab:
    """A page in the browser, with its errors and requests.

    Args:
        page (`playwright.sync_api.Page`): the page.
        errors (`list[str]`): errors and warnings on the console, uncaught errors, dialogs.
        requests (`list[str]`): every URL that the page loaded or tried to load.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._dismiss)

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _dismiss(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture(scope="module")  # Playwright's event loop runs until it is closed, and other tests have their own
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[browser]'")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium), or set CHROMIUM=/path/to/it")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def open_it(address: str, size: str = "desk", **options: Any) -> Tab:
        contexts.append(browser.new_context(**SIZES[size] | options))
        contexts[-1].set_default_timeout(PATIENCE)
        tab = Tab(contexts[-1].new_page())
        tab.page.goto(address)
        return tab

    yield open_it
    for context in contexts:
        context.close()
