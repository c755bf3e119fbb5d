"""`make demo`: which model and settings it runs, and real nights of the quickstart, made short and called again."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sleep_trl.config.command_line import parse

ROOT = Path(__file__).parents[2]
SHORT = (
    "--seeding.steps 1 --seeding.prompts_per_step 2 --dataset.samples_per_window 1 --dataset.general_samples 8 "
    "--evaluation.max_questions 4 --no-report --dataset.window 60 --dataset.max_new_tokens 16"
)

pytestmark = [
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
    pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "accelerate").exists(), reason="make runs what is in .venv"),
]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-o", ".venv/.installed", "-o", ".venv/.installed-smollm2", "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def demo(out: Path, nights: int) -> str:
    done = make(f"NIGHTS={nights}", f"OUT={out}", f"OPTIONS={SHORT}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_tiny_model_is_what_the_demo_runs_unless_another_is_named():
    tiny, real = make("-n").stdout, make("-n", "MODEL=smollm2", "NIGHTS=2").stdout
    assert "--config examples/quickstart/config.yaml" in tiny and "--output_dir runs/demo " in tiny
    assert "--config examples/almanac/smollm2.yaml" in real and "--output_dir runs/demo-smollm2 " in real
    assert "head -n 12 examples/almanac/notes_choose.jsonl > runs/demo-smollm2.jsonl" in real
    nights = "--nights runs/demo-smollm2.jsonl --nights examples/almanac/notes_second_night.jsonl"
    assert nights in real and "almanac" not in tiny


def test_a_model_without_a_demo_is_refused():
    done = make("MODEL=gpt2")
    assert done.returncode == 2 and "MODEL=gpt2: there is a demo for tiny and for smollm2" in done.stderr


def test_the_real_model_runs_with_the_products_defaults():
    config = parse(["--config", str(ROOT / "examples" / "almanac" / "smollm2.yaml")])
    assert config.model_fields_set == {"model", "memories", "output_dir"}
    assert (ROOT / config.memories).is_file()
    assert f"SMOLLM2 := {config.model}\n" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.slow
def test_the_demo_can_be_called_again_with_more_nights_and_after_a_stop(tmp_path):
    assert "is finished" not in demo(tmp_path, 1)
    second = demo(tmp_path, 2)
    assert "night-001 is finished" in second and "Recall after each of 2 nights" in second
    results = tmp_path / "night-002" / "results.json"
    results.unlink()  # as after a stop just before the end
    third = demo(tmp_path, 2)
    assert "night-001 is finished" in third and "night-002 is finished" not in third
    assert results.exists()
