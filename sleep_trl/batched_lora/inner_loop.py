"""The inner loop of dreaming: how one dream is learnt, and what came of it (method 3.4, step 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .adapters import Adapter


@dataclass(frozen=True)
class InnerLoop:
    """How each dream is learnt: AdamW, as `torch.optim.AdamW` computes it.

    Args:
        steps (`int`, *optional*, defaults to `10`):
            Optimizer steps, at least 1, unless the dream names its own.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Highest learning rate, positive, unless the dream names its own.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or down to zero over the dream's own steps: `"linear"`, or `"cosine"`, half a wave.
        warmup_steps (`int`, *optional*, defaults to `0`):
            Steps in which the learning rate rises from zero, as transformers' schedules do.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`):
            AdamW's, each in [0, 1).
        eps (`float`, *optional*, defaults to `1e-8`):
            AdamW's.
        weight_decay (`float`, *optional*, defaults to `0.0`):
            AdamW's, not negative.
        batch_size (`int`, *optional*, defaults to `1`):
            Sequences of a dream in each step, at least 1.
        max_grad_norm (`float`, *optional*):
            Longest gradient of one adapter, over all its weights.
        patience (`int`, *optional*):
            End a dream when its training loss has not improved for this many steps.
        stop_loss (`float`, *optional*):
            End a dream when its training loss is at most this, in nats a token.
        seed (`int`, *optional*, defaults to `0`):
            Seed, together with the dream's id, of its first weights and data order.

    A step whose loss ends a dream makes no update.
    """

    steps: int = 10
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    batch_size: int = 1
    max_grad_norm: float | None = None
    patience: int | None = None
    stop_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}.")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"weight_decay must not be negative and betas lie in [0, 1), got {self.weight_decay} and {self.betas}."
            )
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule must be 'constant', 'linear' or 'cosine', got {self.schedule!r}.")

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate with which step `step`, from 0, of `steps` is made."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Outcome:
    """What became of one dream: an adapter, or the reason why there is none.

    Args:
        id (`str`):
            The dream's.
        adapter (`Adapter`, *optional*):
            The trained adapter; `None` if the dream failed.
        error (`str`, *optional*):
            Why it failed; `None` if it did not.
        losses (`tuple[float, ...]`):
            Training loss before each step, in nats a token.
        updates (`int`):
            Optimizer steps made.
    """

    id: str
    adapter: Adapter | None
    error: str | None
    losses: tuple[float, ...] = ()
    updates: int = 0
