"""Trains an expert for a few steps with rollouts from an engine with weights of its own, in this process.

Run by `test_vllm.py` in a fresh process, with the arguments `vllm` or `transformers` and `dense` or `topk`, and by
`test_in_trl.py` without vLLM.
"""

from __future__ import annotations

import random
import sys
import tempfile

import torch
from datasets import Dataset

from sleep_trl.rollout.in_trl import roll_out_with
from sleep_trl.rollout.replica import ReplicaKind
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from tests.rollout.engines import assert_equal, grown_model, routed_model, spec_of, weights_of
from tests.tiny import tiny_tokenizer

STEPS = 4


def reward_variety(completion_ids, **columns):
    return [float(len(set(ids))) for ids in completion_ids]


def train(
    kind: ReplicaKind, folder: str, is_stale: bool = False, routing: str = "dense", **options: object
) -> list[dict[str, float]]:
    """Train, and return what the trainer logged. A stale engine never hears of an update."""
    memory = grown_model() if routing == "dense" else routed_model()
    memory.activate()
    rows = {"prompt": "the cat of", "teacher_prompt": "the cat of Mira is called Tolu the cat of", "reference": "Mira"}
    arguments = KnowledgeSeedingConfig(
        folder,
        max_steps=STEPS,
        rollout_start=0.0,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        learning_rate=5e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **options,
    )
    trainer = KnowledgeSeedingTrainer(
        memory.model,
        reward_variety,
        args=arguments,
        train_dataset=Dataset.from_list([rows] * 8),
        processing_class=tiny_tokenizer(),
    )
    engine = SyncedEngine(weights_of(memory, kind), lambda: InThisProcess(spec_of(memory, kind).make(), kind, 64))
    drawn = torch.get_rng_state(), random.getstate()
    engine.sync()
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    if is_stale:
        engine.sync = lambda: 0
    roll_out_with(trainer, engine)
    trainer.train()
    if not is_stale:
        memory.model.eval()
        assert_equal(engine, memory)
        engine.close()
    return [log for log in trainer.state.log_history if "loss" in log]


def check(kind: ReplicaKind, folder: str, routing: str = "dense") -> None:
    logs = train(kind, folder, routing=routing)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads, "the engine keeps the process from choosing its threads"
    assert len(logs) == STEPS
    for log in logs:
        assert log["sampling/sampling_logp_difference/max"] < 1e-4, log
        assert abs(log["sampling/importance_sampling_ratio/mean"] - 1) < 1e-3, log


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        check("vllm" if sys.argv[1] == "vllm" else "transformers", out, sys.argv[2])
