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
            First learning rate, positive.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"linear"`: down to zero over the dream's own steps.
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
    schedule: Literal["constant", "linear"] = "constant"
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
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"weight_decay must not be negative and betas lie in [0, 1), got {self.weight_decay} and {self.betas}."
            )
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"schedule must be 'constant' or 'linear', got {self.schedule!r}.")


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
