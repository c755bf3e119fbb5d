"""What `from sleep_trl import ...` offers, and how little `import sleep_trl` costs."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import sleep_trl
from sleep_trl.config.command_line import version

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "pydantic"}


@pytest.mark.parametrize("name", [name for name in sleep_trl.__all__ if name != "__version__"])
def test_every_exported_name_is_the_object_of_its_module(name):
    home = {"Config": "trainers", "Trainer": "trainers", "Callback": "launch.sleep_callback"}.get(
        re.split(r"(?=[A-Z])", name)[-1], "memory"
    )
    assert getattr(sleep_trl, name) is getattr(import_module(f"sleep_trl.{home}"), name)
    assert name in dir(sleep_trl)


def test_the_calls_that_keep_an_expert_are_exported():
    """What `attach` begins: `Memory.of(model)`, `save_memory`, and `fold` into an ordinary checkpoint."""
    assert {"Memory", "save_memory", "load_memory", "fold"} <= set(sleep_trl.__all__)


def test_the_version_is_that_of_changelog_and_citation():
    assert version() == f"sleep-trl {sleep_trl.__version__}"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == sleep_trl.__version__
    history = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", history, re.MULTILINE)
    assert released[0] == sleep_trl.__version__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sleep_trl' has no attribute 'DreamTrainer'"):
        _ = sleep_trl.DreamTrainer
    with pytest.raises(ImportError, match="cannot import name 'DreamTrainer'"):
        exec("from sleep_trl import DreamTrainer")


def test_the_import_of_the_package_is_fast_and_light():
    code = "import time, sys; t = time.perf_counter(); import sleep_trl; print(time.perf_counter() - t, *sys.modules)"
    times = []
    for _ in range(3):  # the fastest of three: the machine may be busy
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, *loaded = done.stdout.split()
        assert not HEAVY.intersection(loaded)
        times.append(float(seconds))
    assert min(times) < 0.1
