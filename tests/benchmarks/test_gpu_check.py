"""`gpu_check.py` on small shapes on the CPU: every part runs, and what it checks holds."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

gpu_check = importlib.import_module("gpu_check")
PARTS = [name for name in gpu_check.PARTS if name != "ray_engines" or find_spec("ray")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for a machine without a GPU")
def test_every_part_passes_on_small_shapes(tmp_path) -> None:
    command = [sys.executable, "benchmarks/gpu_check.py", "--tiny", "--json", "--out", str(tmp_path), "--only", *PARTS]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    [line] = finished.stdout.splitlines()
    found = json.loads(line)["parts"]
    assert list(found) == PARTS and all(figures.get("passed", True) for figures in found.values())
    lines = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text("utf-8").splitlines()]
    assert [row.pop("part") for row in lines] == PARTS and lines == list(found.values())
    assert found["kernels"]["relative_error_of_gradients"] < 1e-5  # in float32
    assert found["seeding_0_6b"]["grpo_seconds_a_step"] > 0


def test_an_error_and_a_late_part_are_recorded_and_the_check_goes_on(tmp_path, monkeypatch) -> None:
    def fail(scale) -> dict:
        raise RuntimeError("no such kernel")

    def hang(scale) -> dict:
        while True:
            pass

    scale = gpu_check.Scale("cpu", False, tmp_path)
    monkeypatch.setitem(gpu_check.PARTS, "kernels", gpu_check.Part(fail, 30))
    assert gpu_check.run_part("kernels", scale)["error"] == "RuntimeError: no such kernel"
    monkeypatch.setitem(gpu_check.PARTS, "kernels", gpu_check.Part(hang, 1))
    late = gpu_check.run_part("kernels", scale)
    assert late["error"] == "not done in 1 s" and late["passed"] is False and late["wall_seconds"] < 20


def test_without_a_gpu_it_says_how_to_run(tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("is for a machine without a GPU")
    command = [sys.executable, "benchmarks/gpu_check.py", "--out", str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 1 and "--tiny" in finished.stderr and not (tmp_path / "out").exists()


def test_too_little_memory_is_a_result(tmp_path) -> None:
    scale, figures = gpu_check.Scale("cpu", True, tmp_path), {}
    with gpu_check.parts.catching_out_of_memory(scale, figures, "window_512"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96 GiB.")
    assert figures == {"window_512_out_of_memory": "CUDA out of memory"}
