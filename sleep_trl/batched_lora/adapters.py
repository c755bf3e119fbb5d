"""An adapter: the linear layers of a model that it changes, its first weights, and the trained result."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..memory.hosts import linear_shape
from .config import ALL_LINEAR, LoraSpec


@dataclass(frozen=True)
class Target:
    """One linear layer that an adapter changes."""

    name: str
    module: nn.Linear | Conv1D
    in_features: int
    out_features: int

    @property
    def weight(self) -> torch.Tensor:  # (out_features, in_features)
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight


@dataclass(frozen=True)
class Adapter:
    """One trained LoRA.

    Args:
        spec (`LoraSpec`):
            What it was trained with.
        weights (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            For each target by name, `A` of shape `(rank, in_features)` and `B` of shape `(out_features, rank)`, float32
            on the CPU.
    """

    spec: LoraSpec
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]


def find_targets(model: PreTrainedModel, spec: LoraSpec) -> list[Target]:
    """Find the linear layers that a spec names, in the model's order.

    Raises:
        `ValueError`: if a name matches no plain linear layer, or if the layers differ in dtype or device.
    """
    linears = dict(_linears(model))
    output = model.get_output_embeddings()
    chosen: set[str] = set()
    for target in spec.targets:
        if target == ALL_LINEAR:
            found = {name for name, module in linears.items() if module is not output}
        else:
            found = {name for name in linears if name == target or name.endswith(f".{target}")}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(
                f"{type(model).__name__} has no linear layer whose name is or ends with {target!r}; it has layers "
                f"ending with {', '.join(ends)}. Name some of these in `targets`."
            )
        chosen |= found
    targets = [
        Target(name, linears[name], *reversed(linear_shape(linears[name]))) for name in linears if name in chosen
    ]
    kinds = {(target.module.weight.dtype, target.module.weight.device) for target in targets}
    if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
        raise ValueError(
            f"The targets must have one floating-point dtype and one device, got {sorted(map(str, kinds))}. Load the "
            f"model on one device without quantization, or name fewer targets."
        )
    return targets


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    for name, module in model.named_modules():
        # A subclass may compute something other than x W^T + b, which the kernels would not reproduce.
        if type(module) in (nn.Linear, Conv1D):
            yield name, module


def seeded(seed: int, job: str, purpose: str) -> torch.Generator:
    """Return a generator that depends on these three only, so not on a job's position in the call."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{job}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initial_adapter(targets: list[Target], spec: LoraSpec, seed: int, job: str) -> Adapter:
    """Draw the first weights of an adapter as PEFT does: `A` uniform within `1 / sqrt(in_features)`, `B` zero.

    Args:
        targets (`list[Target]`):
            From [`find_targets`].
        spec (`LoraSpec`):
            The adapter's size.
        seed (`int`):
            Seed of the training.
        job (`str`):
            Id of the job. Another id draws other weights; another position in the batch does not.
    """
    weights = {}
    for target in targets:
        down = torch.empty(spec.rank, target.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=seeded(seed, job, f"lora {target.name}"))
        weights[target.name] = (down, torch.zeros(target.out_features, spec.rank))
    return Adapter(spec, weights)
