"""The base class of both trainers: checkpoints that hold the experts and not the frozen base, and a loss's scale."""

from __future__ import annotations

import gc
import os
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from trl import GRPOConfig, GRPOTrainer

from sleep_trl.distributed.zero3 import is_sharded, shard_everything, takes_part_in_saving, withdraw
from sleep_trl.memory import Memory, load_experts, save_memory
from sleep_trl.memory.storage import HOW_TO_STAY_FINITE, check_finite
from sleep_trl.models.checkpointing import is_checkpointing, stop_checkpointing
from sleep_trl.runs import checksums
from sleep_trl.runs.folder import AdapterFolder

from .trl_private import get_config_model_id

PAPER = {
    "title": "Language Models Need Sleep: Learning to Self-Modify and Consolidate Memories",
    "id": "2606.03979",
    "citation": textwrap.dedent("""\
        @article{behrouz2026sleep,
            title        = {{Language Models Need Sleep: Learning to Self-Modify and Consolidate Memories}},
            author       = {Ali Behrouz and Farnoosh Hashemi and Javanmard and Vahab Mirrokni},
            year         = 2026,
            eprint       = {arXiv:2606.03979},
        }"""),
}
"""In the model cards that TRL writes. The names are those of CITATION.cff."""


class StopIfNotFinite(TrainerCallback):
    """Stops training at the step after which the expert is not finite. Sharded weights are checked when saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        memory = None if model is None else Memory.of(model)
        if memory is None or memory.learning is None or is_sharded(model):
            return
        check_finite(
            dict(memory.expert_parameters(memory.learning)),
            f"Training became unstable in step {state.global_step}",
            HOW_TO_STAY_FINITE,
        )


class ExpertCheckpoints(GRPOTrainer):
    """A [`~trl.GRPOTrainer`] whose checkpoints hold only the experts if nothing else is trained. Other models are saved
    and loaded as in TRL.

    Under DeepSpeed each process writes its part of the optimizer (`optimizer-00001-of-00002.safetensors` and so on) and
    none writes the frozen base. Such a checkpoint must be resumed by as many processes as wrote it.
    """

    _paper = PAPER

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *others: Any,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, str):
            withdraw(model)
        self._was_checkpointing = not isinstance(model, str) and is_checkpointing(model)
        if args is not None and args.deepspeed_plugin:
            shard_everything(args.deepspeed_plugin)
        super().__init__(model, reward_funcs, args, *others, **kwargs)
        self.add_callback(StopIfNotFinite())

    def release(self) -> None:
        """Release the model, so that another trainer can train it. This trainer cannot be used afterwards."""
        self.accelerator.free_memory()
        for owner in (self, self.callback_handler):
            owner.optimizer = owner.lr_scheduler = None
        self.model_wrapped, self.deepspeed = self.model, None
        if is_checkpointing(self.model) and not self._was_checkpointing:  # TRL leaves it on
            stop_checkpointing(self.model)
        gc.collect()

    def _memory(self) -> Memory | None:
        """The model's memory, if nothing but its learning expert is trained: then checkpoints hold experts alone."""
        model = self.accelerator.unwrap_model(self.model)
        if (memory := Memory.of(model)) is None:
            return None
        learning = () if memory.learning is None else memory.expert_parameters(memory.learning)
        own = {id(parameter) for _, parameter in learning}
        is_all = all(id(parameter) in own for parameter in model.parameters() if parameter.requires_grad)
        return memory if is_all else None

    def _loss_scale(self) -> float:
        """Return the factor for a loss that is a sum over this process's micro-batch, with weights that are normalized
        over the whole generation batch.

        The factor undoes the averaging of gradients over processes and over the micro-batches of an optimizer step; a
        generation batch may span several steps.
        """
        processes = float(self.accelerator.num_processes)
        if not self.model.training:
            return processes
        return processes * self.args.steps_per_generation / self.current_gradient_accumulation_steps

    # -- saving ---------------------------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card. What is not on the Hub is named by its folder, where TRL writes `None`."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            folder, base = Path(self.args.output_dir), Path(get_config_model_id(self.model.config))
            text = (folder / "README.md").read_text(encoding="utf-8")
            text = text.replace("[None](https://huggingface.co/None)", f"`{base.name}`")
            (folder / "README.md").write_text(text.replace('model="None"', f'model="{folder.name}"'), encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._memory() is None or not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        if takes_part_in_saving(self.accelerator.unwrap_model(self.model)):
            self._save(output_dir)  # the Trainer would gather the whole model on the first process
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        memory = self._memory()
        if memory is None:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir)
        save_memory(memory, folder)
        if self.args.should_save:
            self.processing_class.save_pretrained(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._memory() is not None and self.is_world_process_zero():  # the Trainer copies only files that it knows
            experts = AdapterFolder(Path(checkpoint_folder))
            for file in (experts.experts, experts.description):  # last, what says that the others are there
                partial = Path(self.args.output_dir, f"{file.name}.partial")
                shutil.copy(file, partial)
                checksums.replace(partial, partial.with_name(file.name), is_checked=True)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._memory() is None or not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        os.makedirs(output_dir, exist_ok=True)  # the first process may not have made it yet
        save_file(dict(_optimizer_tensors(self.model_wrapped.optimizer)), self._part_of_optimizer(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the first process writes the last file, once the others are complete

    def _part_of_optimizer(self, folder: str) -> Path:
        processes = self.args.world_size
        return Path(folder, f"optimizer-{self.args.process_index + 1:05}-of-{processes:05}.safetensors")

    # -- loading --------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        memory = self._memory()
        if memory is None or not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if not (part := self._part_of_optimizer(resume_from_checkpoint)).is_file():
            raise ValueError(
                f"{part} does not exist: each process resumes with the part of the optimizer that it wrote. Launch "
                f"as many processes as wrote {resume_from_checkpoint}."
            )
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_experts(memory, Path(resume_from_checkpoint))
        _load_optimizer_tensors(self.model_wrapped.optimizer, load_file(part))
        self._load_optimizer_and_scheduler(resume_from_checkpoint)  # the scheduler alone
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        memory = self._memory()
        if memory is None or not AdapterFolder(Path(resume_from_checkpoint)).description.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_experts(memory, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        memory = self._memory()
        if memory is None:
            super()._load_best_model()
        else:
            load_experts(memory, Path(self.state.best_model_checkpoint))


def _flat_weights(optimizer: Any) -> list[torch.Tensor]:
    """Return this process's part of the trained weights, as DeepSpeed's optimizer holds them: float32 and flat."""
    sharded = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3; the other is ZeRO-1 and 2
    return sharded or optimizer.single_partition_of_fp32_groups


def _optimizer_tensors(optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for group, weights in enumerate(_flat_weights(optimizer)):
        yield f"{group}.weights", weights.detach()
        for name, value in optimizer.optimizer.state[weights].items():
            yield f"{group}.{name}", torch.as_tensor(value)


def _load_optimizer_tensors(optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    for group, weights in enumerate(_flat_weights(optimizer)):
        weights.data.copy_(tensors.pop(f"{group}.weights"))
    for place, value in tensors.items():
        index, name = place.split(".")
        weights = _flat_weights(optimizer)[int(index)]
        optimizer.optimizer.state[weights][name] = value if name == "step" else value.to(weights.device)
