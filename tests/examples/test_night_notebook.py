"""The notebook runs from the top, and what it prints is what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_its_cells_run(tmp_path):
    notebook = json.loads((ROOT / "examples" / "night.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)  # outputs would go stale
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join("".join(cell["source"]) for cell in cells)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recalled = re.findall(r"^(with\w* the \w+): +(\d) of 6$", done.stdout, re.MULTILINE)
    before, with_text, after, with_expert, without_expert = (int(count) for _, count in recalled)
    assert (before, with_text, without_expert) == (0, 6, 0)
    assert after == with_expert >= 5
