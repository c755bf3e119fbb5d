"""What both trainers share: checkpoints that hold the experts and not the frozen base, and the scale of a loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn
from trl import GRPOTrainer

from sleep_trl.memory import Memory, load_experts, save_memory


class ExpertCheckpoints(GRPOTrainer):
    """A [`~trl.GRPOTrainer`] whose checkpoints hold the experts alone, where the model has a memory; other models are
    saved and loaded as TRL does."""

    def _memory(self) -> Memory | None:
        return Memory.of(self.accelerator.unwrap_model(self.model))

    def _share_of_step(self) -> float:
        """Return what a sum over this process's micro-batch, weighed over the whole generation batch, has to be times.

        Gradients are averaged over processes, and over the micro-batches of a step, of which a generation batch may
        fill several.
        """
        processes = float(self.accelerator.num_processes)
        if not self.model.training:
            return processes
        return processes * self.args.steps_per_generation / self.current_gradient_accumulation_steps

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        memory = self._memory()
        if memory is None:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir)
        save_memory(memory, folder)
        self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        memory = self._memory()
        if memory is None or not os.path.exists(os.path.join(resume_from_checkpoint, "memory.json")):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_experts(memory, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        memory = self._memory()
        if memory is None:
            super()._load_best_model()
        else:
            load_experts(memory, Path(self.state.best_model_checkpoint))
