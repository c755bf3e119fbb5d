"""`make demo`, as a user calls it again: real nights of the quickstart, made short."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = (
    "--seeding.steps 1 --seeding.prompts_per_step 2 --dataset.samples_per_window 1 --dataset.general_samples 8 "
    "--evaluation.max_questions 4 --no-report --dataset.window 60 --dataset.max_new_tokens 16"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
    pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "accelerate").exists(), reason="make runs what is in .venv"),
]


def demo(out: Path, nights: int) -> str:
    command = ["make", "-o", ".venv/.installed", "demo", f"NIGHTS={nights}", f"OUT={out}", f"OPTIONS={SHORT}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_demo_can_be_called_again_with_more_nights_and_after_a_stop(tmp_path):
    assert "is finished" not in demo(tmp_path, 1)
    second = demo(tmp_path, 2)
    assert "night-001 is finished" in second and "Recall after each of 2 nights" in second
    results = tmp_path / "night-002" / "results.json"
    results.unlink()  # as after a stop just before the end
    third = demo(tmp_path, 2)
    assert "night-001 is finished" in third and "night-002 is finished" not in third
    assert results.exists()
