"""Take the pictures of a report that the documentation shows, in light, in dark and on a phone.

    make demo MODEL=smollm2
    python scripts/screenshots.py runs/demo-smollm2/night-001/report.html

Those in the repository are of the night that `benchmarks/README.md` describes, with other notes. Needs what
`make test-browser` installs. They are written as docs/report_*.png.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1100, "height": 690}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 690}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}


def take(report: Path, folder: Path) -> list[Path]:
    """Take a picture of the top of a report in each look, and return the files.

    Raises:
        `RuntimeError`: if there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise RuntimeError("Found no Chromium. Install it (Debian: apt install chromium), or set CHROMIUM to its path.")
    files = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        for name, look in LOOKS.items():
            page = browser.new_page(**look)
            page.goto(report.resolve().as_uri())
            files.append(folder / f"report_{name}.png")
            page.screenshot(path=files[-1])
        browser.close()
    return files


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    for file in take(Path(sys.argv[1]), DOCS):
        print(f"{file} ({file.stat().st_size // 1024} KiB)")
