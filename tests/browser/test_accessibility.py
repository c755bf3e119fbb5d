"""Report and documentation under axe-core, in light and dark, on a desk and on a phone, and by keyboard alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Tab
from tests.browser.test_report import WIDER, finished_chain, hostile
from tests.docs.test_site import pytestmark as needs_docs
from tests.docs.test_site import site

pytestmark = pytest.mark.browser

LOOKS = [("desk", "light"), ("desk", "dark"), ("phone", "light"), ("phone", "dark")]
PAGES = ("index", "quickstart", "concepts", "configuration", "api", "chains", "faults", "serving")
MOST_TABS = 60  # presses of Tab
AT = """() => { const at = document.activeElement, box = at.getBoundingClientRect(), style = getComputedStyle(at);
  return {what: at.tagName + " " + (at.textContent || at.getAttribute("aria-label") || "").trim().slice(0, 30),
    isSeen: box.width > 0 && box.height > 0, isMarked: style.outlineStyle !== "none" || style.boxShadow !== "none"} }"""
__all__ = ["finished_chain", "hostile", "site"]  # fixtures


def serious(tab: Tab) -> list[str]:
    """Return what axe-core finds serious or critical on a page, with the first element of each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core: run make test-browser")
    found = axe.Axe().run(tab.page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']}: {each['help']}; {len(each['nodes'])} times, such as {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
@pytest.mark.parametrize("which", ["finished_chain", "hostile"])
def test_the_report_has_no_serious_fault(
    which: str, size: str, scheme: str, request: pytest.FixtureRequest, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(request.getfixturevalue(which).as_uri(), size, color_scheme=scheme)
    tab.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert serious(tab) == []


@needs_docs
@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_documentation_has_no_serious_fault(
    size: str, scheme: str, site: Path, open_tab: Callable[..., Tab]
) -> None:
    found: dict[str, Any] = {}
    for name in PAGES:
        tab = open_tab((site / f"{name}.html").as_uri(), size, color_scheme=scheme)
        found[name] = serious(tab) + (["wider than the window"] if tab.page.evaluate(WIDER) > 0 else [])
        tab.page.context.close()
    assert found == {name: [] for name in PAGES}


def test_the_report_is_used_by_keyboard(finished_chain: Path, open_tab: Callable[..., Tab]) -> None:
    """Each stop of Tab is seen and marked, and there is no trap: the last one is followed by the first again."""
    page = open_tab(finished_chain.as_uri()).page
    stops = []
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(AT))
        if stops[-1]["what"].startswith("BODY"):
            break
    *reached, last = stops
    assert last["what"].startswith("BODY"), "Tab does not leave the page"
    assert [stop for stop in reached if not (stop["isSeen"] and stop["isMarked"])] == []
    kinds = {stop["what"].split()[0] for stop in reached}
    assert {"SELECT", "SUMMARY"} <= kinds
