"""What `from sleep_trl import ...` offers, and how little `import sleep_trl` costs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sleep_trl

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "pydantic"}


@pytest.mark.parametrize("name", sleep_trl.__all__)
def test_every_exported_name_is_the_object_of_its_module(name):
    home = "memory" if name in ("MemorySpec", "attach", "load_memory") else "trainers"
    assert getattr(sleep_trl, name) is getattr(import_module(f"sleep_trl.{home}"), name)
    assert name in dir(sleep_trl)


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
