"""From a run's configuration to a trainer: the one place where pydantic becomes TRL."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from sleep_trl.config import RunConfig
from sleep_trl.distributed.progress import StepBar, echo
from sleep_trl.distributed.zero3 import sharding
from sleep_trl.memory.storage import read_description
from sleep_trl.models.inspection import read_header
from sleep_trl.rewards import GuardedReward, resolve
from sleep_trl.rollout import Engine, plain_generation
from sleep_trl.rollout.in_trl import roll_out_with
from sleep_trl.rollout.synced import SyncedEngine
from sleep_trl.runs.files import read_json

from .config import KnowledgeSeedingConfig
from .trainer import KnowledgeSeedingTrainer


def seeding_arguments(config: RunConfig, folder: Path) -> KnowledgeSeedingConfig:
    """Translate a run's configuration into the trainer's arguments.

    Raises:
        `ValueError`: if the rollouts of a step cannot be shared out over the processes.
    """
    seeding = config.seeding
    batches = seeding.batches(PartialState().num_processes)
    return KnowledgeSeedingConfig(
        output_dir=str(folder),
        **{
            "alpha": seeding.alpha,
            "lmbda": seeding.lmbda,
            "divergence_beta": seeding.divergence_beta,
            "gamma": seeding.gamma,
            "z0": seeding.z0,
            "replay_weight": seeding.replay_weight,
            "drift_weight": seeding.drift_weight,
            "expert_dropout": seeding.expert_dropout,
            "reference_passes": seeding.reference_passes,
            "max_steps": seeding.steps,
            "learning_rate": seeding.learning_rate,
            "lr_scheduler_type": seeding.lr_scheduler_type,
            "warmup_steps": seeding.warmup_steps,
            "max_grad_norm": seeding.max_grad_norm,
            "num_generations": seeding.num_generations,
            "max_completion_length": seeding.max_completion_length,
            "per_device_train_batch_size": batches.per_device,
            "gradient_accumulation_steps": batches.accumulation,
            "gradient_checkpointing": seeding.gradient_checkpointing,
            "logging_steps": seeding.logging_steps,
            "save_steps": seeding.save_steps,
            "save_total_limit": 2,
            "reward_weights": [reward.weight for reward in config.rewards],
            "shuffle_dataset": False,  # the rows come in training order
            "seed": config.seed,
            "bf16": False,  # the base has its dtype, experts are float32: nothing is left to autocast
            "use_cpu": not torch.cuda.is_available(),
            "report_to": "none",
            "disable_tqdm": True,  # the night has its own bar
            **seeding.extra,
        },
    )


def load_rewards(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[GuardedReward]:
    """Resolve the run's rewards and load what they need, whole on each process."""
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    defaults = {"gamma": config.seeding.gamma, "z0": config.seeding.z0, "eos_token_ids": eos}
    rewards = [resolve(reward, **defaults) for reward in config.rewards]
    with sharding(None):
        for reward in rewards:
            reward.load()
    return rewards


def make_trainer(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    folder: Path,
    **kwargs: Any,
) -> KnowledgeSeedingTrainer:
    """Make the trainer of a night; `kwargs` go to it unchanged."""
    rewards = load_rewards(config, tokenizer)
    trainer = KnowledgeSeedingTrainer(
        model,
        rewards,
        args=seeding_arguments(config, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[StepBar("Seeding the new expert")],
        **kwargs,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def seed_expert(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    folder: Path,
    engine: Engine,
    teachers: Sequence[PreTrainedModel] = (),
) -> list[dict[str, Any]]:
    """Train the expert that is learning, from the last whole checkpoint in `folder` if there is one. An engine with
    weights of its own draws the rollouts; otherwise TRL does. `teachers` teach the memories in the model's place.

    Returns:
        `list[dict]`: the trainer's log history.
    """
    trainer = make_trainer(config, model, tokenizer, rows, folder, teacher_model=teachers or None)
    if isinstance(engine, SyncedEngine):
        roll_out_with(trainer, engine)
    if PartialState().is_main_process:
        remove_half_written(folder)
    PartialState().wait_for_everyone()
    with plain_generation(model):
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    history: list[dict[str, Any]] = trainer.state.log_history
    trainer.release()
    return history


def remove_half_written(folder: Path) -> None:
    """Remove checkpoints that an interruption left half written, from the newest back to the first whole one."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        if is_whole(Path(last)):
            return
        echo(f"[yellow]{last} was left half written by an interruption and is removed[/]")
        shutil.rmtree(last)


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was written to its end: the Trainer writes in place, `trainer_state.json` last."""
    try:
        read_json(checkpoint / TRAINER_STATE_NAME)
        for part in (checkpoint / "experts.safetensors", *checkpoint.glob("optimizer-*.safetensors")):
            read_header(part)
        read_description(checkpoint)
    except ValueError:
        return False
    pickled = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth")]
    return all(is_zipfile(path) for path in pickled)  # torch.save writes ZIP, with the table of contents at its end
