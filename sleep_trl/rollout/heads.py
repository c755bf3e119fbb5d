"""Attention heads filled up with zeros, for engines that know only some sizes: vLLM on a CPU knows none below 32.

A head of size d becomes one of size D > d. Its queries are scaled by sqrt(D / d), as attention scales by the size.
Rotary positions turn entry i of a head with entry i + D / 2, by angles that fall as theta^(-2i / D): so each half of a
head is filled up, and theta becomes theta^(D / d). The model's outputs stay what they are, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

QUERY, ROWS, COLUMNS = "q_proj", ("q_proj", "k_proj", "v_proj"), ("o_proj",)
# Architectures whose heads are these four maps, rotary positions, and nothing else.
SUPPORTED = ("llama", "mistral", "qwen2")
LARGEST_THETA = 1e38  # in float32


@dataclass(frozen=True)
class WiderHeads:
    """How heads are filled up: from `size` to `wider` entries."""

    size: int
    wider: int

    @staticmethod
    def of(config: PretrainedConfig, sizes: Sequence[int]) -> WiderHeads | None:
        """Return what has to be done for an engine that knows heads of these sizes, or `None`.

        Raises:
            `ValueError`: if the heads are of another size and cannot be filled up.
        """
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if not sizes or size in sizes:
            return None
        wider = min((s for s in sizes if s > size), default=None)
        if wider is None or config.model_type not in SUPPORTED or not _has_plain_rotary(config, wider / size):
            raise ValueError(
                f"it knows attention heads of sizes {', '.join(map(str, sizes))}, those of this {config.model_type} "
                f"model have size {size}, and only those of {', '.join(SUPPORTED)} with plain rotary positions can be "
                f"filled up with zeros"
            )
        return WiderHeads(size, wider)

    def change(self, config: PretrainedConfig) -> None:
        """Give a config the wider heads."""
        config.head_dim = self.wider
        theta = config.rope_parameters["rope_theta"] ** (self.wider / self.size)
        config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}

    def fill(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Fill up one tensor of the model; those outside the heads come back as they are."""
        role = name.split(".")[-2] if "." in name else ""
        half, room = self.size // 2, (self.wider - self.size) // 2
        if role in COLUMNS and value.dim() == 2:  # (hidden, heads * size)
            return F.pad(value.unflatten(1, (-1, half)), (0, room)).flatten(1)
        if role in ROWS:  # (heads * size, hidden), or the bias, (heads * size,)
            halves = value.reshape(-1, half, *value.shape[1:])
            scale = math.sqrt(self.wider / self.size) if role == QUERY else 1.0
            zeros = halves.new_zeros(len(halves), room, *value.shape[1:])
            return torch.cat([halves * scale, zeros], dim=1).flatten(0, 1)
        return value


def _has_plain_rotary(config: PretrainedConfig, growth: float) -> bool:
    """Say whether all of a head is turned by plain rotary positions, and theta may become its power `growth`."""
    rope = config.rope_parameters
    is_plain = rope.get("rope_type") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    return is_plain and growth * math.log(rope["rope_theta"]) < math.log(LARGEST_THETA)
