"""What an adapter is and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSpec:
    """Size and targets of an adapter: `W x + alpha / rank * B A x` for each target (LoRA, arXiv 2106.09685, 4.1).

    There is no dropout: training a job twice must give the same adapter, whatever shares its batch.

    Args:
        rank (`int`, *optional*, defaults to `8`):
            Rows of `A` and columns of `B`, at least 1.
        alpha (`float`, *optional*, defaults to `16.0`):
            Numerator of the scale.
        targets (`tuple[str, ...]`, *optional*, defaults to `("all-linear",)`):
            Names of linear layers, or the ends of their names, as in PEFT's `target_modules`. `"all-linear"` means
            every linear layer but the output layer.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (ALL_LINEAR,)

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets or isinstance(self.targets, str):
            raise ValueError(
                f"rank must be at least 1 and targets a tuple of at least one name, got {self.rank} and "
                f"{self.targets!r}."
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be a positive number, got {self.alpha}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoraTraining:
    """How each adapter is trained: with AdamW, as `torch.optim.AdamW` computes it.

    A step whose loss stops a job early (`patience`, `stop_loss`) makes no update.

    Args:
        steps (`int`, *optional*, defaults to `10`):
            Optimizer steps, at least 1, unless the job has its own.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Peak learning rate, positive, unless the job has its own.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or a decay to zero over the job's own steps: `"linear"`, or `"cosine"` (half a period).
        warmup_steps (`int`, *optional*, defaults to `0`):
            Steps over which the learning rate rises from zero, as in the schedules of transformers.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`):
            AdamW's, each in [0, 1).
        eps (`float`, *optional*, defaults to `1e-8`):
            AdamW's.
        weight_decay (`float`, *optional*, defaults to `0.0`):
            AdamW's, not negative.
        batch_size (`int`, *optional*, defaults to `1`):
            Sequences of a job in each step, at least 1.
        max_grad_norm (`float`, *optional*):
            Gradient norm of one adapter, over all its weights, above which the gradient is clipped.
        patience (`int`, *optional*):
            Stop a job when its training loss has not improved for this many steps.
        stop_loss (`float`, *optional*):
            Stop a job when its training loss is at most this, in nats per token.
        seed (`int`, *optional*, defaults to `0`):
            Seed, together with the job's id, of its first weights and data order.
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
                f"weight_decay must not be negative and betas must be in [0, 1), got {self.weight_decay} and "
                f"{self.betas}."
            )
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule must be 'constant', 'linear' or 'cosine', got {self.schedule!r}.")

    def factor(self, step: int, steps: int) -> float:
        """Return the fraction of the peak learning rate used in step `step`, counted from 0, of `steps`."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
