"""Dimensions of a model, which every estimate of a plan is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.key_values import count_key_values

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..memory.hosts import Host

MIB, GIB = 2**20, 2**30
FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """Model dimensions used by the estimates, read from a model on the meta device."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    parameters: int
    is_gated: bool
    bytes_per_weight: int
    key_values: int
    """Keys and values of a token in one layer."""
    is_routed: bool = False
    is_tied: bool = False
    """Whether the head is the embedding."""

    @staticmethod
    def of(
        architecture: str,
        hosts: Sequence[Host],
        config: PretrainedConfig,
        parameters: int,
        bytes_per_weight: int,
        is_routed: bool = False,
    ) -> Shape:
        """Read the dimensions from the MLPs that host experts, and from the model's config."""
        first = hosts[0]
        return Shape(
            architecture=architecture,
            layers=len(hosts),
            hidden_size=first.hidden_size,
            intermediate_size=first.intermediate_size,
            vocabulary=int(config.get_text_config().vocab_size),
            parameters=parameters,
            is_gated=first.form.is_gated,
            bytes_per_weight=bytes_per_weight,
            key_values=count_key_values(config),
            is_routed=is_routed,
            is_tied=bool(config.get_text_config().tie_word_embeddings),
        )

    def expert_parameters(self, width: int) -> int:
        """Return the parameters of one expert in all layers: gate (if gated), up and down, its row of the router."""
        router = self.hidden_size + 1 if self.is_routed else 0
        return self.layers * ((3 if self.is_gated else 2) * self.hidden_size * width + router)

    @property
    def cache_bytes(self) -> int:
        """Bytes of a token in the KV cache."""
        return self.layers * self.key_values * self.bytes_per_weight
