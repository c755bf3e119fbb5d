"""Attention heads padded with zeros, for engines that support only some sizes: on a CPU vLLM supports none below 32.

A head of size d becomes one of size D > d. Queries are scaled by sqrt(D / d), because attention scales by the size.
Rotary position embeddings rotate entry i of a head with entry i + D / 2 by angles proportional to theta^(-2i / D). So
each half of a head is padded, and theta becomes theta^(D / d). Outputs do not change, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

QUERY, ROWS, COLUMNS = "q_proj", ("q_proj", "k_proj", "v_proj"), ("o_proj",)
# Architectures whose attention consists of these four layers and rotary positions only.
SUPPORTED = ("llama", "mistral", "qwen2")
LARGEST_THETA = 1e38  # in float32


@dataclass(frozen=True)
class WiderHeads:
    """Padding of heads from `size` to `wider` entries."""

    size: int
    wider: int

    @staticmethod
    def of(config: PretrainedConfig, sizes: Sequence[int]) -> WiderHeads | None:
        """Return the padding needed for an engine that supports these head sizes, or `None`.

        Raises:
            `ValueError`: if the heads have another size and cannot be padded.
        """
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if not sizes or size in sizes:
            return None
        wider = min((s for s in sizes if s > size), default=None)
        if wider is None or config.model_type not in SUPPORTED or not _has_plain_rotary(config, wider / size):
            raise ValueError(
                f"it supports attention heads of sizes {', '.join(map(str, sizes))}, those of this {config.model_type} "
                f"model have size {size}, and only those of {', '.join(SUPPORTED)} with plain rotary positions can be "
                f"padded with zeros"
            )
        return WiderHeads(size, wider)

    def change(self, config: PretrainedConfig) -> None:
        """Set the wider heads in a config."""
        config.head_dim = self.wider
        theta = config.rope_parameters["rope_theta"] ** (self.wider / self.size)
        config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}

    def fill(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Pad one tensor of the model; tensors outside the heads are returned unchanged."""
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
    """Return whether plain rotary positions apply to whole heads, and theta to the power of `growth` is finite."""
    rope = config.rope_parameters
    is_plain = rope.get("rope_type") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    return is_plain and growth * math.log(rope["rope_theta"]) < math.log(LARGEST_THETA)
