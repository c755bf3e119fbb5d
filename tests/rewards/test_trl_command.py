"""`trl grpo --reward_funcs sleep_trl.rewards.imitation_reward`: TRL's own command with the reward by its path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import write_model

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_imitation_reward_in_trl_grpo(tmp_path) -> None:
    model, data = write_model(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": "the cat of Mira", "reference": "is called Tolu"}, {"prompt": "it eats", "reference": "hats"}]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "model_name_or_path": model,
        "dtype": "float32",
        "dataset_name": data,
        "reward_funcs": "sleep_trl.rewards.imitation_reward",
        "output_dir": tmp_path / "out",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": "true",
        "bf16": "false",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "trl.cli.main", "grpo", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rewards/imitation_reward/mean" in done.stdout and (tmp_path / "out" / "model.safetensors").is_file()
