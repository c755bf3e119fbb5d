"""Low-rank experts and the pool of them that sits beside one MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .hosts import Host, unit_weights
from .wide import HostMaps


@dataclass
class View:
    """Which experts take part in a forward pass. One object is shared by all pools of a model, so that switching
    between teacher and student is one assignment and touches no weight.

    Args:
        experts (`tuple[int, ...]`): those in view.
        learning (`int`, *optional*): the one that is being trained, in view or not. Only a router asks.
        random (`torch.Generator`, *optional*): draws one further expert for each token. Only a router asks.
        is_counting (`bool`): whether routers count the tokens that go to each expert.
    """

    experts: tuple[int, ...] = ()
    learning: int | None = None
    random: torch.Generator | None = None
    is_counting: bool = False


class Expert(nn.Module):
    """A slice of an MLP of its host's form: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` beside a plain MLP.

    Weights are float32 whatever the model's dtype (they are what is trained, and they are few) and are cast to the
    input's dtype at use. The output matrix starts at zero, so that a new expert changes nothing (method 3.2; the zero
    start is ours).

    Args:
        host (`Host`):
            The MLP beside which the expert sits.
        width (`int`):
            Number of hidden units, the paper's d_low.
    """

    def __init__(self, host: Host, width: int) -> None:
        super().__init__()
        self.activation = host.activation
        shape, device = (width, host.hidden_size), next(host.module.parameters()).device

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))

        self.gate = weight(*shape) if host.form.is_gated else None
        self.up = weight(*shape)
        self.down = weight(*reversed(shape))

    @torch.no_grad()
    def reset(self, host: Host, generator: torch.Generator, scale: float) -> None:
        """Draw new input maps and set the output map to zero.

        Ours: an input map is made of random rows of the host's own, times `scale`; gate and up are drawn apart, so that
        their products are new. That puts the new units at the size which the host's inputs ask for, whatever the
        architecture: a normal draw of deviation 1/sqrt(hidden) is several times too small behind small norm weights.
        """
        for name, rows in unit_weights(host).items():
            chosen = torch.randperm(rows.shape[0], generator=generator)[: self.up.shape[0]]
            getattr(self, name).copy_(rows[chosen.to(rows.device)].float() * scale)
        self.down.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., hidden) -> (..., hidden)
        hidden = F.linear(x, self.up.to(x.dtype))  # (..., width)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(F.linear(x, self.gate.to(x.dtype))) * hidden
        return F.linear(hidden, self.down.to(x.dtype))


class ExpertPool(nn.Module):
    """All experts that one MLP may ever need, allocated at once and left out of the pass until they are in `view`
    (method 3.3, note on the implementation)."""

    expert_type: type[Expert] = Expert

    def __init__(self, host: Host, width: int, size: int, view: View) -> None:
        super().__init__()
        self.experts = nn.ModuleList(self.expert_type(host, width) for _ in range(size))
        self.view = view

    def begin(self) -> None:
        """Called before the host's forward pass."""

    def end(self) -> None:
        """Called after it, also if it failed."""

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Add what the experts in view say of `x` to the host's output."""
        raise NotImplementedError


class DensePool(ExpertPool):
    """`routing: dense`: every expert in view speaks. The settled ones do so inside their host, made wider by them, and
    the learning one is added to its output: activation changes no bit, nor does folding."""

    def __init__(self, host: Host, width: int, size: int, view: View) -> None:
        super().__init__(host, width, size, view)
        self.maps = HostMaps(host)
        self.apart = view.experts  # those that the host's own forward pass does not hold

    def begin(self) -> None:
        self.apart = self.view.experts
        settled = [index for index in self.view.experts if index != self.view.learning]
        if settled and self.maps.can_widen:
            self.maps.put_in({index: cast(Expert, self.experts[index]) for index in settled})
            self.apart = tuple(index for index in self.view.experts if index == self.view.learning)

    def end(self) -> None:
        self.maps.take_out()

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        for index in self.apart:
            output = output + self.experts[index](x)
        return output


def hook(pool: ExpertPool, host: Host) -> None:
    """Let a pool take part in its host's forward pass. The hooks are plain functions of the module, so that a deep copy
    of the model uses its own pool."""
    host.module.memory = pool
    host.module.register_forward_pre_hook(_begin)
    host.module.register_forward_hook(_end, always_call=True)


def _begin(module: nn.Module, _: tuple[torch.Tensor, ...]) -> None:
    cast(ExpertPool, module.memory).begin()


def _end(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor | None) -> torch.Tensor | None:
    pool = cast(ExpertPool, module.memory)
    pool.end()
    return None if output is None else cast(torch.Tensor, pool(args[0], output))
