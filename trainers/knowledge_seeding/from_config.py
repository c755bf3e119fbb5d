"""From a run's configuration to the trainer of its night."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from sleep_trl.config import RunConfig, first_rollout_step
from sleep_trl.distributed.progress import StepBar, echo
from sleep_trl.distributed.zero3 import sharding
from sleep_trl.memory.storage import read_description
from sleep_trl.models.inspection import read_header
from sleep_trl.rewards import GuardedReward, resolve
from sleep_trl.rollout import Engine, plain_generation
from sleep_trl.rollout.in_trl import roll_out_with
from sleep_trl.rollout.stopping import end_tokens
from sleep_trl.rollout.synced import SyncedEngine
from sleep_trl.runs.checksums import check_folder, record_folder
from sleep_trl.runs.files import read_json
from sleep_trl.runs.folder import AdapterFolder, RunFolder

from ..options import shared_options, with_present_names
from ..trackers import log_figures, one_run
from .config import KnowledgeSeedingConfig
from .trainer import KnowledgeSeedingTrainer


def seeding_arguments(config: RunConfig, folder: str | Path) -> KnowledgeSeedingConfig:
    """Translate a run's configuration into the trainer's arguments.

    Raises:
        `ValueError`: if the rollouts of a step cannot be divided evenly among the processes.
    """
    seeding = config.seeding
    batches = seeding.batches(PartialState().num_processes)
    arguments = {
        **shared_options(seeding, KnowledgeSeedingConfig),
        "max_steps": seeding.steps,
        "per_device_train_batch_size": batches.per_device,
        "gradient_accumulation_steps": batches.accumulation,
        "save_total_limit": 2,
        "reward_weights": [reward.weight for reward in config.rewards],
        "shuffle_dataset": False,  # the rows come in training order
        "seed": config.seed,
        "bf16": False,  # the base keeps its dtype and experts are float32: nothing is left to autocast
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "router_aux_loss_coef": 0.0,  # the routers of a mixture of experts are frozen, and some models have none
        "disable_tqdm": True,  # the night has its own progress bar
        **seeding.extra,
    }
    return KnowledgeSeedingConfig(str(folder), **with_present_names(arguments, KnowledgeSeedingConfig))


class RecordCheckpoints(TrainerCallback):
    """Records the hashes of a checkpoint's files once all processes have written theirs."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            record_folder(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))


class RolloutsBegin(TrainerCallback):
    """Says when rollouts begin, since the loss then has further terms and jumps."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        assert isinstance(args, KnowledgeSeedingConfig)
        alpha, lmbda = args.alpha, args.lmbda
        first = first_rollout_step(alpha, lmbda, args.rollout_start, state.max_steps)
        if state.global_step == first > 0:
            weights = {"GRPO's loss": 1 - alpha, "the divergence from the teacher on rollouts": alpha * lmbda}
            terms = [f"{term} (weight {weight:g})" for term, weight in weights.items() if weight]
            echo(
                f"Rollouts begin: the loss now includes {' and '.join(terms)}, and cannot be compared with that before"
            )


def load_rewards(config: RunConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[GuardedReward]:
    """Resolve the run's rewards and load what they need, unsharded on each process."""
    ends = end_tokens(model, tokenizer)
    defaults: dict[str, Any] = {"gamma": config.seeding.gamma, "z0": config.seeding.z0, "eos_token_ids": ends}
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
    folder: str | Path,
    **kwargs: Any,
) -> KnowledgeSeedingTrainer:
    """Make the trainer of a night; `kwargs` go to it unchanged."""
    rewards = load_rewards(config, model, tokenizer)
    arguments = seeding_arguments(config, folder)
    with one_run(arguments, config.output_dir):
        trainer = KnowledgeSeedingTrainer(
            model,
            rewards,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[StepBar("Seeding the new expert"), RecordCheckpoints(), RolloutsBegin()],
            **kwargs,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def seed_expert(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    folder: str | Path,
    engine: Engine,
    teachers: Sequence[PreTrainedModel] = (),
) -> list[dict[str, Any]]:
    """Train the learning expert, from the last complete checkpoint in `folder` if there is one.

    Rollouts come from the engine if it has weights of its own, otherwise from TRL. `teachers`, if any, teach the
    memories instead of the model itself.

    Returns:
        `list[dict]`: the trainer's log history.
    """
    trainer = make_trainer(config, model, tokenizer, rows, folder, teacher_model=teachers or None)
    if isinstance(engine, SyncedEngine):
        roll_out_with(trainer, engine)
    if PartialState().is_main_process:
        remove_incomplete(folder)
    PartialState().wait_for_everyone()
    with plain_generation(model), one_run(trainer.args, config.output_dir):
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    history: list[dict[str, Any]] = trainer.state.log_history
    trainer.release()
    return history


def track(config: RunConfig, results: dict[str, Any]) -> None:
    """Send the figures of a night to the trackers that `report_to` in `seeding.extra` names."""
    if config.seeding.extra.get("report_to", "none") != "none":
        steps = results["history"][-1].get("step", 0) if results["history"] else 0
        seeding = config.seeding.model_copy(update={"steps": max(1, steps)})
        config = config.model_copy(update={"seeding": seeding})
        log_figures(seeding_arguments(config, RunFolder(config.output_dir).checkpoints), config.output_dir, results)


def remove_incomplete(folder: str | Path) -> None:
    """Remove incomplete and damaged checkpoints, from the newest back to the last whole one."""
    while (last := _last_checkpoint(folder)) is not None and not is_complete(last):
        echo(f"Removing {last}: an interruption left it incomplete, or it is damaged", style="yellow")
        shutil.rmtree(last)


def _last_checkpoint(folder: str | Path) -> str | None:
    return get_last_checkpoint(str(folder)) if Path(folder).is_dir() else None


def is_complete(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint was written to its end, and is still that. The Trainer writes in place,
    `trainer_state.json` last."""
    checkpoint = Path(checkpoint)
    try:
        read_json(checkpoint / TRAINER_STATE_NAME)
        for part in (AdapterFolder(checkpoint).experts, *checkpoint.glob("optimizer-*.safetensors")):
            read_header(part)
        read_description(checkpoint)
        check_folder(checkpoint)
    except ValueError:
        return False
    pickled = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth")]
    return all(is_zipfile(path) for path in pickled)  # torch.save writes ZIP, with the table of contents at its end
