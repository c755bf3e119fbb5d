"""A causal language model without its head, and the head, to apply to a few hidden states at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# The factor of the logits in the configurations of Cohere, Muse Glimmer and Falcon-H1. `logits_scaling` is a divisor in
# Granite and MiniCPM3, and a factor in HyperCLOVA X.
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


REPLAY_BYTES = 256 * 2**20
"""What a process keeps of teachers' hidden states on texts of self-replay; the rest is read in each step."""


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the model without its head; of a PEFT model the inner one, whose layers hold the adapters."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


def positions_per_tile(is_cpu: bool, is_float32: bool) -> int:
    """Return the number of positions at which a head is applied at a time.

    TRL uses 4096, so that an ordinary batch is one tile. Without Triton its kernels hold about ten float32 tiles at
    once, and the head alone would determine the memory use of a step. On a CPU they also copy a weight that is not
    float32 for each tile, so that small ones are slow (benchmarks/head_tiles.py).
    """
    if not is_cpu:
        return 1024
    return 24 if is_float32 else 128


@dataclass(frozen=True)
class Head:
    """An LM head and how its model transforms the logits: a scale, then Gemma's soft cap."""

    weight: torch.Tensor  # (vocabulary, hidden)
    bias: torch.Tensor | None = None  # (vocabulary,)
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Return the head of a causal language model."""
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = next((s for name in SCALES if (s := getattr(config, name, None)) is not None), 1.0)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1.0 / divisor
        return cls(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Return the float32 logits of the first `size` tokens (default: all). Shape `(..., size)`."""
        bias = None if self.bias is None else self.bias[:size]
        return self.transformed(F.linear(hidden.to(self.weight.dtype), self.weight[:size], bias))

    def transformed(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the model makes of its output layer's logits, in float32. The shape stays the same."""
        logits = logits.float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
