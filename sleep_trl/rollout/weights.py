"""The weights of a grown model as an engine holds them, updated by regions.

An engine is created once, with slots for all experts it will need, and later receives only regions that have changed.
With dense routing it holds an ordinary model with wider MLPs: the slot of an expert is a slice of each layer of an MLP,
rows of an input layer and columns of the output layer. The output columns of an expert that is not in view are zero.
With routed experts it holds an architecture of its own, see [`sleep_trl.rollout.routed`].
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ..memory import Memory
from ..memory.fold import set_width
from ..memory.hosts import Host
from ..memory.routing import RoutedExpert
from .heads import WiderHeads
from .routed import ABSENT, LEARNING, SETTLED, routed_config


@dataclass(frozen=True)
class Region:
    """A slice of a tensor of a state dict: `size` entries along dimension `dim`, beginning at `start`."""

    name: str
    dim: int
    start: int
    size: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the region as a view of the whole tensor."""
        return tensor.narrow(self.dim, self.start, self.size)


Values = dict[Region, torch.Tensor]


class WeightMismatch(RuntimeError):
    """The weights of an engine differ from the trainer's."""


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's values, row by row, in its own dtype."""
    values = tensor.detach().to("cpu").contiguous().view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()


def verify(engine: str, expected: Mapping[Region, str], found: Sequence[str]) -> None:
    """Compare the digests of an engine's regions with the trainer's.

    Raises:
        `WeightMismatch`: if they differ, with both fingerprints and the first region that differs.
    """
    if list(expected.values()) == list(found):
        return
    wrong = [region for (region, value), other in zip(expected.items(), found, strict=True) if value != other]
    prints = [hashlib.sha256("".join(values).encode()).hexdigest() for values in (expected.values(), found)]
    raise WeightMismatch(
        f"{engine} does not hold the trainer's weights: its fingerprint is {prints[1]}, the trainer's {prints[0]}. "
        f"{len(wrong)} of {len(expected)} parts differ, the first is {wrong[0]}. Do not trust what it generated. "
        f"Continue with --resume; if it happens again, use rollout.engine transformers."
    )


class EngineWeights(ABC):
    """The weights that an engine of a model with a memory has to hold now.

    Args:
        memory (`Memory`):
            The memory.
        slots (`Sequence[int]`):
            Experts for which the engine has slots, in order, including the learning one.
        head_sizes (`Sequence[int]`, *optional*):
            Sizes of attention heads that the engine supports; smaller heads are padded with zeros to the next size.

    Raises:
        `ValueError`: if the heads cannot be padded.
    """

    def __init__(self, memory: Memory, slots: Sequence[int], head_sizes: Sequence[int] = ()) -> None:
        self.memory, self.slots = memory, tuple(slots)
        self.heads = WiderHeads.of(memory.model.config.get_text_config(), head_sizes)

    def config(self) -> PretrainedConfig:
        """Return the config of the model that the engine holds."""
        config = copy.deepcopy(self.memory.model.config)
        if self.heads:
            self.heads.change(config.get_text_config())
        config.dtype = self.memory.model.dtype
        return config

    def everything(self) -> Values:
        """Return all weights. Those that need no change for the engine share the model's storage."""
        values: Values = {}
        for name, parameter in self.memory.base_parameters():
            values |= self.base_part(name, parameter.detach())
        return values | self.experts()

    def base_part(self, name: str, value: torch.Tensor) -> Values:
        """Return one of the base's weights as the engine holds it."""
        return _whole(name, self.heads.fill(name, value) if self.heads else value)

    @abstractmethod
    def experts(self) -> Values:
        """Return the slots of all experts, for the current view."""


class GrownWeights(EngineWeights):
    """Weights of a memory with dense routing: an ordinary model with wider MLPs."""

    def __init__(self, memory: Memory, slots: Sequence[int], head_sizes: Sequence[int] = ()) -> None:
        super().__init__(memory, slots, head_sizes)
        self._hosts = {f"{host.name}.{role}": host for host in memory.hosts for role in host.form.linears}

    def config(self) -> PretrainedConfig:
        config = super().config()
        set_width(config, self.memory.hosts, self._width(self.memory.hosts[0]))
        return config

    def base_part(self, name: str, value: torch.Tensor) -> Values:
        module, _, kind = name.rpartition(".")
        host = self._hosts.get(module)
        return super().base_part(name, value) if host is None else self._host_part(host, module, kind, value)

    def experts(self) -> Values:
        values: Values = {}
        in_view = self.memory.in_view
        width, dtype = self.memory.spec.width, self.memory.model.dtype
        for place, index in enumerate(self.slots):
            for host, expert in self.memory.experts(index):
                start = host.intermediate_size + place * width
                for role in host.form.linears:
                    for name, offset in self._roles(host, role):
                        weight = getattr(expert, name).detach().to(dtype)
                        if name == "down" and index not in in_view:
                            weight = torch.zeros_like(weight)
                        values |= self._slice(host, role, weight, offset + start)
        return values

    def _host_part(self, host: Host, module: str, kind: str, value: torch.Tensor) -> Values:
        """Return the base's own part of one layer; biases of the slots are zero."""
        role = module.rpartition(".")[2]
        if kind == "bias":
            if role == host.form.output:
                return _whole(f"{module}.bias", value)
            room = value.new_zeros(self._width(host) - host.intermediate_size)
            whole = torch.cat([torch.cat([part, room]) for part in value.chunk(2 if host.form.is_fused else 1)])
            return _whole(f"{module}.bias", whole)
        linear = getattr(host.module, role)
        value = value.T if isinstance(linear, Conv1D) else value  # (out, in)
        values: Values = {}
        parts = value.chunk(2) if host.form.is_fused and role != host.form.output else (value,)
        for (_, offset), part in zip(self._roles(host, role), parts, strict=True):
            values |= self._slice(host, role, part, offset)
        return values

    def _roles(self, host: Host, role: str) -> Iterator[tuple[str, int]]:
        """Yield the expert weights in a layer of the host, with the number of rows before them in the wider layer."""
        if role == host.form.output:
            yield "down", 0
        elif host.form.is_fused:
            yield from (("gate", 0), ("up", self._width(host)))
        else:
            yield "gate" if host.form.is_gated and role == host.form.inputs[0] else "up", 0

    def _slice(self, host: Host, role: str, value: torch.Tensor, start: int) -> Values:
        """Place a slice of a layer, `(out, in)`, at its first hidden unit."""
        dim = 1 if role == host.form.output else 0
        size = value.shape[dim]
        if isinstance(getattr(host.module, role), Conv1D):
            dim, value = 1 - dim, value.T
        return {Region(f"{host.name}.{role}.weight", dim, start, size): value}

    def _width(self, host: Host) -> int:
        return host.intermediate_size + self.memory.spec.width * len(self.slots)


class RoutedWeights(EngineWeights):
    """Weights of a memory with routing topk: the base's, and for each MLP those of
    [`~sleep_trl.rollout.routed.RoutedExperts`]. An expert has rows of `gate` and `up`, columns of `down`, a row of the
    router, and a role."""

    def config(self) -> PretrainedConfig:
        spec = self.memory.spec
        return routed_config(super().config(), spec.width, len(self.slots), spec.top_k)

    def experts(self) -> Values:
        """Return the slots of all experts, for the current view.

        Raises:
            `ValueError`: while routers take a random further expert, which engines do not support.
        """
        if self.memory.is_random:
            raise ValueError(
                "A random further expert is drawn by the routers of the model itself, which an engine with weights of "
                "its own does not have. Dream with rollout.engine transformers."
            )
        values: Values = {}
        for host in self.memory.hosts:
            values |= _whole(f"{host.name}.memory.router.roles", torch.tensor([self._role(i) for i in self.slots]))
        width, dtype = self.memory.spec.width, self.memory.model.dtype
        for place, index in enumerate(self.slots):
            for host, expert in self.memory.experts(index):
                pool = f"{host.name}.memory"
                for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
                    if (weight := getattr(expert, name)) is not None:
                        region = Region(f"{pool}.{name}", dim, place * width, width)
                        values[region] = weight.detach().to(dtype)
                row = cast(RoutedExpert, expert)
                values[Region(f"{pool}.router.weight", 0, place, 1)] = row.router_weight.detach()[None]
                values[Region(f"{pool}.router.bias", 0, place, 1)] = row.router_bias.detach()
        return values

    def _role(self, index: int) -> float:
        if index not in self.memory.in_view:
            return ABSENT
        return LEARNING if index == self.memory.learning else SETTLED


def _whole(name: str, value: torch.Tensor) -> Values:
    """Place a whole tensor."""
    return {Region(name, 0, 0, value.shape[0]): value}


def write_regions(tensors: Mapping[str, torch.Tensor], values: Values) -> None:
    """Copy values into the regions of an engine's tensors.

    Raises:
        `ValueError`: if the engine has no such tensor, or its shape differs.
    """
    for region, value in values.items():
        tensor = tensors.get(region.name)
        shape = None if tensor is None else list(tensor.shape)
        fits = shape is not None and len(shape) == value.dim() and region.start + region.size <= shape[region.dim]
        if not fits or list(region.of(tensors[region.name]).shape) != list(value.shape):
            raise ValueError(
                f"The engine has no place for {region} of shape {list(value.shape)}: its {region.name} has shape "
                f"{shape}. It stores this architecture differently; use rollout.engine transformers."
            )
        with torch.no_grad():
            region.of(tensors[region.name]).copy_(value)
