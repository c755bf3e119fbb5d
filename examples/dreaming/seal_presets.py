"""How SEAL trains its adapters, so that its experiments can be repeated.

SEAL is *Self-Adapting Language Models* (arXiv 2506.10943); the values are those of its authors' repository,
`Continual-Intelligence/SEAL` at commit 4cb1e7d. It uses transformers' `Trainer`, whose defaults apply: AdamW without
weight decay, a linear schedule, gradients clipped to norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sleep_trl.batched_lora import LoraJob, LoraSpec, LoraTraining


@dataclass(frozen=True)
class Preset:
    """Size and training of an adapter, with epochs instead of steps."""

    spec: LoraSpec
    training: LoraTraining
    epochs: int

    def job(
        self,
        id: str,
        sequences: Sequence[tuple[int, ...]],
        counted: Sequence[tuple[bool, ...]] | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
    ) -> LoraJob:
        """Return a job with the number of steps that its epochs take."""
        steps = (self.epochs if epochs is None else epochs) * math.ceil(len(sequences) / self.training.batch_size)
        return LoraJob(id, tuple(sequences), tuple(counted) if counted else None, steps, learning_rate)


_ATTENTION = ("q_proj", "v_proj")  # PEFT's default for Qwen and Llama, which SEAL keeps

SEAL_SQUAD = Preset(
    LoraSpec(32, 64.0, _ATTENTION),
    LoraTraining(learning_rate=1e-3, schedule="linear", batch_size=1, max_grad_norm=1.0),
    epochs=10,
)
"""One passage at a time (`scripts/query_server.sh`)."""

SEAL_SQUAD_MANY = Preset(
    LoraSpec(32, 64.0, _ATTENTION),
    LoraTraining(learning_rate=1e-3, schedule="linear", batch_size=8, max_grad_norm=1.0),
    epochs=3,
)
"""Many passages in one adapter (`scripts/CPT.sh`: batches of 4, accumulated twice)."""

SEAL_ARC = Preset(
    LoraSpec(128, 16.0, (*_ATTENTION, "gate_proj", "up_proj", "down_proj")),
    LoraTraining(schedule="cosine", warmup_steps=11, batch_size=2, max_grad_norm=1.0),
    epochs=1,
)
"""A few-shot task (`few-shot/self-edit.py`); the dream itself sets the learning rate and the number of epochs."""
