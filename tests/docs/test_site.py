"""The site of the documentation builds, and a warning is an error. It needs what `make docs` installs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sleep_trl.config.command_line import options
from tests.docs.test_pages import ROOT

OWN = ROOT / ".venv-docs" / "bin" / "python"
PYTHON = sys.executable if find_spec("mkdocstrings_handlers") and find_spec("material") else str(OWN)

pytestmark = pytest.mark.skipif(
    str(OWN) == PYTHON and not OWN.exists(),
    reason="needs mkdocs-material and mkdocstrings: run `make docs` once, or pip install 'sleep-trl[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(folder: Path, added: str = "") -> subprocess.CompletedProcess[str]:
    """Build the site, with a line added to a page. Not with --quiet, which takes warnings for nothing."""
    subprocess.run([PYTHON, "scripts/docs_pages.py"], cwd=ROOT, check=True)
    with (ROOT / "build" / "docs" / "wake.md").open("a") as page:
        page.write(added)
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [PYTHON, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_option_is_in_the_reference(site: Path) -> None:
    page = (site / "configuration.html").read_text("utf-8")
    assert [name for name, _ in options() if f'id="{name.replace(".", "-")}"' not in page] == []


def test_docstrings_are_shown_without_the_marks_of_their_form(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "api.html").read_text("utf-8"))
    assert "Add a pool of inactive low-rank experts to every MLP" in text
    assert "*optional*" not in text and "[`" not in text


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    assert (site / "files" / "examples" / "extend_sft.py").read_bytes() == (
        ROOT / "examples" / "extend_sft.py"
    ).read_bytes()
    assert (site / "night.svg").exists()


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    done = build(tmp_path / "site", "\nSee [how to](howto.md#gone).\n")
    assert done.returncode != 0 and "'#gone'" in done.stderr
