"""From a run's configuration to a night's dreams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from sleep_trl.config import RunConfig
from sleep_trl.data.prompts import Prompter
from sleep_trl.data.samples import Sample
from sleep_trl.distributed.progress import StepBar
from sleep_trl.dreams import DreamEvaluator, InnerLoop, LoraSpec, Questions, SignificanceTest, Workers
from sleep_trl.dreams.gradients import Text, reference_gradient
from sleep_trl.rewards import resolve
from sleep_trl.rollout import TransformersEngine, plain_generation

from .config import DreamingConfig
from .trainer import DreamingTrainer

MOST_REFERENCES = 64  # samples of the memory whose gradient dreams are compared with


def dreaming_arguments(config: RunConfig, tasks: int, folder: Path) -> DreamingConfig:
    """Translate a run's configuration into the trainer's arguments.

    Args:
        config (`RunConfig`):
            The run.
        tasks (`int`):
            Tasks of a round, a multiple of the number of processes.
        folder (`Path`):
            Where the trainer may write.
    """
    dream, processes = config.dream, PartialState().num_processes
    dreams = tasks * dream.dreams_per_task
    per_device = max(n for n in range(1, dream.batch_size + 1) if dreams // processes % n == 0)
    arguments: dict[str, Any] = {
        "improvement": dream.improvement,
        "rounds": dream.rounds,
        "em_epochs": dream.em_epochs,
        "selection": dream.selection,
        "top_k": dream.top_k,
        "random_k": dream.random_k,
        "random_expert": dream.random_expert,
        "num_generations": dream.dreams_per_task,
        "max_completion_length": dream.max_new_tokens,
        "per_device_train_batch_size": per_device,
        "learning_rate": dream.learning_rate,
        "lr_scheduler_type": "constant",
        "reward_weights": [reward.weight for reward in dream.rewards],
        "chat_template_kwargs": config.chat_template_kwargs,
        "logging_steps": 1,
        "seed": config.seed,
        "bf16": False,  # as in seeding
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",  # a round that was interrupted is dreamt again
        "report_to": "none",
        "disable_tqdm": True,
    }
    if dream.improvement == "grpo":  # as many batches as ReST-EM has
        arguments |= {"generation_batch_size": dreams, "num_train_epochs": dream.rounds}
        arguments |= {"num_iterations": dream.em_epochs}
    return DreamingConfig(str(folder), **arguments)


def dream(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    samples: list[Sample],
    folder: Path,
) -> list[dict[str, Any]]:
    """LoraJob about tasks and train the expert that is learning to do it better.

    Args:
        rows (`list[dict]`):
            The tasks, see `sleep_trl.night.dream_tasks.Dreamer`. With several processes, what does not share out
            evenly are left out.
        samples (`list[Sample]`):
            What was consolidated before, for selection by alignment.
        folder (`Path`):
            Where the trainer may write.

    Returns:
        `list[dict]`: a record of each dream, of all processes.
    """
    rows = rows[: len(rows) - len(rows) % PartialState().num_processes]
    options, prompter = config.dream, Prompter(tokenizer, config.chat_template_kwargs)
    rewards = [resolve(reward) for reward in options.rewards]
    for reward in rewards:
        reward.load()
    taught = [s for s in samples if s.part == "memory"]
    texts = [Text.behind(s.prompt_ids, s.reference_ids) for s in taught[:: 1 + len(taught) // MOST_REFERENCES]]

    workers = None
    if options.workers:
        address = config.rollout.ray_address
        workers = Workers(address, count=options.workers if address is None else None, gpus=options.gpus_per_worker)

    def evaluator(trainer: DreamingTrainer) -> DreamEvaluator:
        return DreamEvaluator(
            TransformersEngine(model, tokenizer, config.evaluation.batch_size),
            Questions(prompter, config.evaluation.metric, config.evaluation.max_new_tokens),
            LoraSpec(options.lora_rank, options.lora_alpha),
            InnerLoop(options.lora_steps, options.lora_learning_rate, seed=config.seed),
            SignificanceTest(options.test, options.confidence, options.repeats),
            options.chunk,
            workers,
        )

    trainer = DreamingTrainer(
        model,
        evaluator,
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
    records: list[dict[str, Any]] = gather_object(trainer.trials)
    return records
