"""The example of docs/dreaming.md runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_runs_with_few_imports(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dreaming.md").read_text("utf-8"), re.DOTALL)
    imported = re.findall(r"^from sleep_trl\S* import (.*)$", code, re.MULTILINE)
    assert sum(len(names.split(",")) for names in imported) <= 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("examples/", f"{ROOT}/examples/")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    dreams = [line for line in done.stdout.splitlines() if re.match(r"[01] (top|random|)", line)]
    assert len(dreams) >= 16  # two rounds of eight
