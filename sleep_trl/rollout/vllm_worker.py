"""Extension of vLLM's worker that writes and reads weights by their names in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .weights import Region, Values, digest, write_regions


class WeightAccess:
    """Mixed into vLLM's worker (`worker_extension_cls`)."""

    model_runner: Any

    def write_weights(self, values: Values) -> None:
        """Copy values into the model's weights."""
        write_regions(self._tensors(), values)

    def read_digests(self, regions: Sequence[Region]) -> list[str]:
        """Return the digest of each region of the weights that the model computes with."""
        tensors = self._tensors()
        return [digest(region.of(tensors[region.name])) for region in regions]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return checkpoint_tensors(self.model_runner.model)


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return views of a vLLM model's weights by the names in a Hugging Face checkpoint.

    vLLM fuses some layers (`q_proj`, `k_proj`, `v_proj` into `qkv_proj`) and pads the embedding beyond the vocabulary.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        parent, _, role = module.rpartition(".")
        layer = model.get_submodule(module)
        if len(parts := packed.get(role, [])) > 1:
            pieces = parameter.data.split(list(layer.output_sizes))
            tensors |= {f"{parent}.{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
        else:
            tensors[name] = parameter.data[: getattr(layer, "org_vocab_size", None)]
    return tensors
