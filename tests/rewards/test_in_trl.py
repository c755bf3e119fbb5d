"""Rewards inside TRL's own trainer: one step of a tiny model."""

from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from sleep_trl.rewards import guard, imitation_reward, resolve
from tests.tiny import tiny_model, tiny_tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_reward" / "my_reward.py"


async def half(completions, **columns):
    return [0.5] * len(completions)


def broken(completions, **columns):
    raise KeyError(completions[0])


def test_one_step_of_grpo(tmp_path) -> None:
    rows = {
        "prompt": ["the cat of Mira", "it eats"],
        "reference": ["is called Tolu", ""],
        "reference_ids": [[8, 9, 10], None],
        "part": ["memory", "general"],
    }
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    tokenizer = tiny_tokenizer()
    rewards = [
        imitation_reward,  # unguarded, as in TRL's own script
        resolve("imitation", gamma=0.5, eos_token_ids=tokenizer.eos_token_id),
        resolve({"name": f"{EXAMPLE}:brevity", "timeout_s": 30}),
        guard(half, timeout_s=30),
        guard(broken, on_error="abstain"),
    ]
    trainer = GRPOTrainer(
        tiny_model(),
        reward_funcs=rewards,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert logged["rewards/half/mean"] == pytest.approx(0.5)
    assert logged["rewards/broken/abstained"] == 1.0
    assert logged["rewards/brevity/mean"] == pytest.approx(1.0)  # 4 tokens, where 7 are allowed
    assert 0 <= logged["rewards/imitation_reward/mean"] <= 1
    r_abs, r_sem = logged["rewards/imitation/r_abs"], logged["rewards/imitation/r_sem"]
    assert logged["rewards/imitation/mean"] == pytest.approx((r_abs + r_sem) / 2)
