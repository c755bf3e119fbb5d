"""How others learn a dream, so that their experiments can be repeated.

SEAL is *Self-Adapting Language Models* (arXiv 2506.10943); its values are those of its authors' repository,
`Continual-Intelligence/SEAL` at commit 4cb1e7d. It trains with transformers' `Trainer`, whose defaults stand here too:
AdamW without decay, a linear schedule, gradients of at most norm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..batched_lora.adapters import LoraSpec
from ..batched_lora.batches import LoraJob
from ..batched_lora.inner_loop import InnerLoop


@dataclass(frozen=True)
class Preset:
    """An adapter's size and training, counted in passes over a dream's sequences instead of steps."""

    spec: LoraSpec
    loop: InnerLoop
    epochs: int

    def dream(
        self,
        id: str,
        sequences: Sequence[tuple[int, ...]],
        counted: Sequence[tuple[bool, ...]] | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
    ) -> LoraJob:
        """Return a dream that is learnt for as many steps as its sequences make."""
        steps = (self.epochs if epochs is None else epochs) * math.ceil(len(sequences) / self.loop.batch_size)
        return LoraJob(id, tuple(sequences), tuple(counted) if counted else None, steps, learning_rate)


_ATTENTION = ("q_proj", "v_proj")  # PEFT's own choice for Qwen and Llama, which SEAL leaves to it

SEAL_SQUAD = Preset(
    LoraSpec(32, 64.0, _ATTENTION),
    InnerLoop(learning_rate=1e-3, schedule="linear", batch_size=1, max_grad_norm=1.0),
    epochs=10,
)
"""One passage at a time (`scripts/query_server.sh`)."""

SEAL_SQUAD_MANY = Preset(
    LoraSpec(32, 64.0, _ATTENTION),
    InnerLoop(learning_rate=1e-3, schedule="linear", batch_size=8, max_grad_norm=1.0),
    epochs=3,
)
"""Many passages in one adapter (`scripts/CPT.sh`: batches of 4, accumulated twice)."""

SEAL_ARC = Preset(
    LoraSpec(128, 16.0, (*_ATTENTION, "gate_proj", "up_proj", "down_proj")),
    InnerLoop(schedule="cosine", warmup_steps=11, batch_size=2, max_grad_norm=1.0),
    epochs=1,
)
"""A few-shot task (`few-shot/self-edit.py`); the dream itself says the learning rate and how many epochs."""
