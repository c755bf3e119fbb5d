"""The pool of experts of one MLP, and which of them take part in a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from .experts import Expert
from .hosts import Host
from .wide import HostMaps


@dataclass
class View:
    """Which experts take part in a forward pass. All pools of a model share one object, so that switching between
    teacher and student is a single assignment and touches no weight.

    Args:
        experts (`tuple[int, ...]`): those in view.
        learning (`int`, *optional*): the one that is being trained, in view or not.
        apart (`tuple[int, ...]`): others that are computed outside the host, because teacher and student differ in
            them, or because they need gradients.
        random (`torch.Generator`, *optional*): draws one further expert for each token; used by routers only.
        is_counting (`bool`): whether routers count the tokens that go to each expert.
    """

    experts: tuple[int, ...] = ()
    learning: int | None = None
    apart: tuple[int, ...] = ()
    random: torch.Generator | None = None
    is_counting: bool = False


class ExpertPool(nn.Module, ABC):
    """All experts that one MLP may ever need, allocated in advance and skipped until they are in view (method 3.3, note
    on the implementation)."""

    expert_type: type[Expert] = Expert

    def __init__(self, host: Host, width: int, size: int, view: View) -> None:
        super().__init__()
        self.experts = nn.ModuleList(self.expert_type(host, width) for _ in range(size))
        self.view = view

    def begin(self) -> None:
        """Called before the host's forward pass."""

    def end(self) -> None:
        """Called after the host's forward pass, even if it failed."""

    def forget(self) -> None:
        """Free what was kept for later forward passes."""

    @abstractmethod
    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add the outputs of the experts in view for `x` to the host's output."""


class DensePool(ExpertPool):
    """`routing: dense`: all experts in view take part.

    The settled ones are computed inside their host, whose layers are widened by them. The learning one is added to the
    host's output, so that neither activation nor folding changes a bit. So are those that join or are replaced by it:
    switching between teacher and student then does not rebuild the wide layers.
    """

    def __init__(self, host: Host, width: int, size: int, view: View) -> None:
        super().__init__(host, width, size, view)
        self.maps = HostMaps(host)
        self.apart = view.experts  # those that the host's own forward pass does not include

    def begin(self) -> None:
        self.apart = self.view.experts
        passing = (self.view.learning, *self.view.apart)
        settled = [index for index in self.view.experts if index not in passing]
        if settled and self.maps.can_widen:
            self.maps.put_in({index: cast(Expert, self.experts[index]) for index in settled})
            self.apart = tuple(index for index in self.view.experts if index in passing)

    def end(self) -> None:
        self.maps.take_out()

    def forget(self) -> None:
        self.maps.forget()

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        for index in self.apart:
            output = output + self.experts[index](x)
        return output


def hook(pool: ExpertPool, host: Host) -> None:
    """Hook a pool into its host's forward pass. The hooks are plain functions of the module, so that a deep copy of the
    model uses its own pool."""
    host.module.memory = pool
    host.module.register_forward_pre_hook(_begin)
    host.module.register_forward_hook(_end, always_call=True)


def _begin(module: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
    cast(ExpertPool, module.memory).begin()


def _end(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | None) -> torch.Tensor | None:
    pool = cast(ExpertPool, module.memory)
    pool.end()
    return None if output is None else cast(torch.Tensor, pool(args[0], output))
