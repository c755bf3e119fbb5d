"""The weights of a grown model as an engine holds them, updated by regions.

An engine is created once, with slots for all experts it will need, and later receives only regions that have changed.
With dense routing it holds an ordinary model with wider MLPs: the slot of an expert is a slice of each layer of an MLP,
rows of an input layer and columns of the output layer. The output columns of an expert that is not in view are zero.
With routed experts it holds an architecture of its own, see [`sleep_trl.rollout.routed`].

The frozen base comes from its checkpoint, or from the model in this process (`sleep_trl.rollout.replica`). Either way
its digests have to equal the trainer's.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ..distributed.zero3 import gathered
from ..memory import Memory
from ..memory.experts import Expert
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


@dataclass(frozen=True)
class BaseLayout:
    """Where an engine holds the base's weights: the MLPs may be wider there, and the attention heads padded.

    Args:
        hosts (`Sequence[Host]`):
            The MLPs that host experts.
        room (`int`):
            Hidden units that each MLP has in addition.
        heads (`WiderHeads`, *optional*):
            Padding of the attention heads.
    """

    hosts: Sequence[Host]
    room: int
    heads: WiderHeads | None

    @cached_property
    def _linears(self) -> dict[str, tuple[Host, str]]:
        return {f"{host.name}.{role}": (host, role) for host in self.hosts for role in host.form.linears}

    def part(self, name: str, value: torch.Tensor) -> Values:
        """Return one of the base's weights as the engine holds it. Biases of the additional units are zero."""
        module, _, kind = name.rpartition(".")
        if module not in self._linears:
            return _whole(name, self.heads.fill(name, value) if self.heads else value)
        host, role = self._linears[module]
        if kind == "bias":
            if role == host.form.output:
                return _whole(name, value)
            zeros = value.new_zeros(self.room)
            return _whole(name, torch.cat([torch.cat([p, zeros]) for p in value.chunk(1 + host.form.is_fused)]))
        value = value.T if isinstance(getattr(host.module, role), Conv1D) else value  # (out, in)
        parts = value.chunk(2) if host.form.is_fused and role != host.form.output else (value,)
        values: Values = {}
        for (_, start), part in zip(self.roles(host, role), parts, strict=True):
            values |= self.slice_at(host, role, part, start)
        return values

    def roles(self, host: Host, role: str) -> Iterator[tuple[str, int]]:
        """Yield the expert weights in a layer of the host, with the number of rows before them in the wider layer."""
        if role == host.form.output:
            yield "down", 0
        elif host.form.is_fused:
            yield from (("gate", 0), ("up", host.intermediate_size + self.room))
        else:
            yield "gate" if host.form.is_gated and role == host.form.inputs[0] else "up", 0

    @staticmethod
    def slice_at(host: Host, role: str, value: torch.Tensor, start: int) -> Values:
        """Place a slice of a layer, `(out, in)`, at its first hidden unit."""
        dim = 1 if role == host.form.output else 0
        size = value.shape[dim]
        if isinstance(getattr(host.module, role), Conv1D):
            dim, value = 1 - dim, value.T
        return {Region(f"{host.name}.{role}.weight", dim, start, size): value}


class EngineWeights(ABC):
    """The weights that an engine of a model with a memory has to hold now.

    Sharded weights are gathered one expert, or one of the base's weights, at a time; all processes have to read them
    together.

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
        heads = WiderHeads.of(memory.model.config.get_text_config(), head_sizes)
        self.layout = BaseLayout(memory.hosts, self.room, heads)

    @property
    def room(self) -> int:
        """Hidden units that each MLP of the engine has in addition to the base's."""
        return 0

    def config(self) -> PretrainedConfig:
        """Return the config of the model that the engine holds."""
        config = copy.deepcopy(self.memory.model.config)
        if self.layout.heads:
            self.layout.heads.change(config.get_text_config())
        config.dtype = self.memory.model.dtype
        return config

    def base(self) -> Iterator[tuple[Region, torch.Tensor]]:
        """Yield the base's weights. Those that need no change for the engine share the model's storage, and sharded
        ones are only there until the next one is asked for."""
        for name, parameter in self.memory.base_parameters():
            with gathered([parameter]):
                yield from self.layout.part(name, parameter.detach()).items()

    def experts(self) -> Values:
        """Return the slots of all experts, for the current view."""
        values: Values = {}
        for place, index in enumerate(self.slots):
            with gathered(parameter for _, parameter in self.memory.expert_parameters(index)):
                for host, expert in self.memory.experts(index):
                    values |= self.slot(place, index, host, expert)
        return values

    @abstractmethod
    def slot(self, place: int, index: int, host: Host, expert: Expert) -> Values:
        """Return the part of an expert in one layer, for the current view. The values outlast the gathering.

        Args:
            place (`int`): place of the expert's slot among the slots.
            index (`int`): the expert.
            host (`Host`): the MLP that hosts this part.
            expert (`Expert`): the part.
        """


class GrownWeights(EngineWeights):
    """Weights of a memory with dense routing: an ordinary model with wider MLPs."""

    @property
    def room(self) -> int:
        return self.memory.spec.width * len(self.slots)

    def config(self) -> PretrainedConfig:
        config, hosts = super().config(), self.memory.hosts
        set_width(config, hosts, hosts[0].intermediate_size + self.room)
        return config

    def slot(self, place: int, index: int, host: Host, expert: Expert) -> Values:
        values: Values = {}
        start = host.intermediate_size + place * self.memory.spec.width
        for role in host.form.linears:
            for name, offset in self.layout.roles(host, role):
                weight = _kept(getattr(expert, name), self.memory.model.dtype)
                if name == "down" and index not in self.memory.in_view:
                    weight = torch.zeros_like(weight)
                values |= self.layout.slice_at(host, role, weight, offset + start)
        return values


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
        roles = torch.tensor([self._role(index) for index in self.slots])
        values = {Region(f"{host.name}.memory.router.roles", 0, 0, len(roles)): roles for host in self.memory.hosts}
        return values | super().experts()

    def slot(self, place: int, index: int, host: Host, expert: Expert) -> Values:
        values: Values = {}
        pool, width, dtype = f"{host.name}.memory", self.memory.spec.width, self.memory.model.dtype
        for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
            if (weight := getattr(expert, name)) is not None:
                values[Region(f"{pool}.{name}", dim, place * width, width)] = _kept(weight, dtype)
        row = cast(RoutedExpert, expert)
        values[Region(f"{pool}.router.weight", 0, place, 1)] = _kept(row.router_weight)[None]
        values[Region(f"{pool}.router.bias", 0, place, 1)] = _kept(row.router_bias)
        return values

    def _role(self, index: int) -> float:
        if index not in self.memory.in_view:
            return ABSENT
        return LEARNING if index == self.memory.learning else SETTLED


def _kept(parameter: nn.Parameter, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the value of a parameter, in another dtype if one is given; of a sharded one a copy, since it is only
    gathered for a moment."""
    return parameter.detach().to(dtype or parameter.dtype, copy=hasattr(parameter, "ds_id"))


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
