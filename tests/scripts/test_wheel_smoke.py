"""A clone without symbolic links (Windows) imports all the same. `make wheel` builds from such a copy."""

import os
import subprocess
import sys
from pathlib import Path

from tests.scripts.loading import load_script

smoke = load_script("wheel_smoke")
NAMES = ["sleep_trl.rewards.errors", "sleep_trl.launch.checks", "sleep_trl.night.run"]  # of none a package loads TRL
FIND = """
import sys
from importlib.util import find_spec
for name in sys.argv[1:]:
    print(name, find_spec(name).origin)
"""


def test_links_become_text_and_every_package_is_found(tmp_path):
    clone = tmp_path / "clone"
    smoke.copy_sources(clone)
    assert (clone / "sleep_trl" / "trainers").read_text() == "../trainers"
    assert not (clone / ".git").exists() and (clone / "sleep_trl" / "runs" / "ledger.py").is_file()
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    done = subprocess.run(
        [sys.executable, "-c", FIND, *NAMES], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    origins = dict(line.split() for line in done.stdout.splitlines())
    assert Path(origins["sleep_trl.rewards.errors"]) == clone / "rewards" / "errors.py"
    assert Path(origins["sleep_trl.launch.checks"]) == clone / "launch" / "checks.py"
    assert Path(origins["sleep_trl.night.run"]) == clone / "sleep_trl" / "night" / "run.py"


def test_the_wheel_has_to_hold_linked_packages_and_the_quickstart():
    files = smoke.source_files()
    assert {"trainers/options.py", "launch/accelerate/ddp.yaml", "doctor/constraints.txt"} <= files
    assert {"data/shipped/quickstart/config.yaml", "data/shipped/quickstart/model/model.safetensors"} <= files
    assert len([path for path in files if path.endswith("trainers/options.py")]) == 1
