"""From a run's configuration to the dreams of a night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from sleep_trl.config import RunConfig
from sleep_trl.data.samples import Sample
from sleep_trl.distributed.progress import StepBar, echo
from sleep_trl.dreams.gradients import Text, reference_gradient
from sleep_trl.report.words import silent_rewards
from sleep_trl.rewards import resolve
from sleep_trl.rollout import plain_generation

from ..options import shared_options, with_present_names
from .config import DreamingConfig
from .trainer import DreamingTrainer

MAX_REFERENCES = 64  # samples of the memories whose gradient dreams are compared with


def dreaming_arguments(config: RunConfig, tasks: int, folder: str | Path) -> DreamingConfig:
    """Translate a run's configuration into the trainer's arguments.

    Args:
        config (`RunConfig`):
            The run.
        tasks (`int`):
            Tasks of a round, a multiple of the number of processes.
        folder (`str` or `Path`):
            Where the trainer may write.
    """
    dream, evaluation, processes = config.dream, config.evaluation, PartialState().num_processes
    dreams = tasks * dream.dreams_per_task
    per_device = max(n for n in range(1, dream.batch_size + 1) if dreams // processes % n == 0)
    arguments: dict[str, Any] = {
        **shared_options(dream, DreamingConfig, {"top_k": "select_top_k", "random_k": "select_random_k"}),
        "measure": "questions" if dream.measure == "quiz" else dream.measure,  # the quiz comes with the tasks
        "judge": None if dream.judge is None else dream.judge.model_dump(),
        "metric": evaluation.metric,
        "max_answer_length": evaluation.max_new_tokens,
        "trial_batch_size": evaluation.batch_size,
        "ray_address": config.rollout.ray_address,
        "num_generations": dream.dreams_per_task,
        "max_completion_length": dream.max_new_tokens,
        "per_device_train_batch_size": per_device,
        "lr_scheduler_type": "constant",
        "reward_weights": [reward.weight for reward in dream.rewards],
        "chat_template_kwargs": config.chat_template_kwargs,
        "logging_steps": 1,
        "seed": config.seed,
        "bf16": False,  # as in seeding
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",  # an interrupted round is dreamed again
        "report_to": "none",
        "router_aux_loss_coef": 0.0,  # as in Knowledge Seeding
        "disable_tqdm": True,
    }
    if dream.improvement == "grpo":  # as many batches as ReST-EM has
        arguments |= {"generation_batch_size": dreams, "num_train_epochs": dream.rounds}
        arguments |= {"num_iterations": dream.em_epochs}
    return DreamingConfig(str(folder), **with_present_names(arguments, DreamingConfig))


def dream(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    samples: list[Sample],
    folder: str | Path,
) -> list[dict[str, Any]]:
    """Dream about tasks, and train the learning expert to dream better.

    Args:
        config (`RunConfig`):
            The run.
        model (`PreTrainedModel`):
            The model, with a memory one of whose experts is learning.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        rows (`list[dict]`):
            The tasks, see `sleep_trl.night.dream_tasks.Dreamer`. Tasks that cannot be divided evenly among the
            processes are left out.
        samples (`list[Sample]`):
            What the night has consolidated, for selection by alignment.
        folder (`str` or `Path`):
            Where the trainer may write.

    Returns:
        `list[dict]`: a record of each dream, from all processes.
    """
    rows = rows[: len(rows) - len(rows) % PartialState().num_processes]
    rewards = [resolve(reward) for reward in config.dream.rewards]
    for reward in rewards:
        reward.load()
    learned = [s for s in samples if s.part == "memory"]
    texts = [Text.behind(s.prompt_ids, s.reference_ids) for s in learned[:: 1 + len(learned) // MAX_REFERENCES]]
    trainer = DreamingTrainer(
        model,
        rewards,
        args=dreaming_arguments(config, len(rows), folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[StepBar("Dreaming")],
        reference=lambda: reference_gradient(model, texts),
    )
    trainer.remove_callback(PrinterCallback)
    with plain_generation(model):
        trainer.train()
    for line in silent_rewards(trainer.state.log_history, few=0):  # most dreams are not tried, and have no reward
        echo(line, style="yellow")
    records: list[dict[str, Any]] = gather_object(trainer.trials)
    trainer.release()
    return records
