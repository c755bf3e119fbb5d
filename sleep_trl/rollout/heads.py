"""Attention heads filled up with zeros, for engines that know only some sizes: vLLM on a CPU knows none below 32.

A head of size d becomes one of size D > d. Its queries are scaled by sqrt(D / d), as attention scales by the size, and
rotary positions turn the first d entries only, as they did. The model's outputs stay what they are, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

QUERY, ROWS, COLUMNS = "q_proj", ("q_proj", "k_proj", "v_proj"), ("o_proj",)
# Architectures whose heads are these four maps, rotary positions, and nothing else.
SUPPORTED = ("llama", "mistral", "qwen2")


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
        if wider is None or config.model_type not in SUPPORTED or config.rope_parameters.get("rope_type") != "default":
            raise ValueError(
                f"it knows attention heads of sizes {', '.join(map(str, sizes))}, those of this {config.model_type} "
                f"model have size {size}, and only those of {', '.join(SUPPORTED)} with plain rotary positions can be "
                f"filled up with zeros"
            )
        return WiderHeads(size, wider)

    def change(self, config: PretrainedConfig) -> None:
        """Give a config the wider heads."""
        config.head_dim = self.wider
        turned = config.rope_parameters.get("partial_rotary_factor", 1.0) * self.size / self.wider
        config.rope_parameters = {**config.rope_parameters, "partial_rotary_factor": turned}

    def fill(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Fill up one tensor of the model; those outside the heads come back as they are."""
        role = name.split(".")[-2] if "." in name else ""
        if role in COLUMNS and value.dim() == 2:  # (hidden, heads * size)
            heads = value.unflatten(1, (-1, self.size))
            return torch.nn.functional.pad(heads, (0, self.wider - self.size)).flatten(1)
        if role in ROWS:  # (heads * size, hidden), or the bias, (heads * size,)
            heads = value.unflatten(0, (-1, self.size))
            room = heads.new_zeros(heads.shape[0], self.wider - self.size, *heads.shape[2:])
            scale = math.sqrt(self.wider / self.size) if role == QUERY else 1.0
            return torch.cat([heads * scale, room], dim=1).flatten(0, 1)
        return value
