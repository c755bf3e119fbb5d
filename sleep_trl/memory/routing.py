"""Routing: each token goes to a few experts, however many there are.

Each expert of an MLP has a gate, `sigmoid(w · x + b)`. A token's output is the sum of gate times expert over the
`top_k` settled experts with the largest gates, so that the cost of a token does not grow with the number of experts
(method 3.2). Sigmoid gates are ours: unlike the gates of a softmax they are independent, so that a new expert cannot
change those of older ones.

**The learning expert comes in addition to the top k (ours).** If it competed from the start, it would displace an older
expert while its own output is still zero, and activation would change the model's output; if its gate were too low to
win, it would never learn. So while it learns it reads every token, weighted by its gate. Once committed
(`Memory.commit`) it competes like the others, and all metrics after a night are measured in that state.

**A gate starts at one half (ours)**: weight and bias are zero. The sigmoid is steepest there, so training can move the
gate either way equally easily, for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .experts import Expert
from .hosts import Host
from .pools import ExpertPool, View

ALIGNED = 8  # units: on a GPU a row of a grouped product begins at a multiple of 16 bytes


class RoutedExpert(Expert):
    """An expert with its row of the router, so that the two are trained, saved, counted, fingerprinted and reset
    together.

    Args:
        host (`Host`):
            The MLP that the expert is added to.
        width (`int`):
            Number of hidden units, the paper's d_low.
    """

    def __init__(self, host: Host, width: int) -> None:
        super().__init__(host, width)
        self.router_weight = nn.Parameter(self.up.new_zeros(host.hidden_size))
        self.router_bias = nn.Parameter(self.up.new_zeros(1))

    @torch.no_grad()
    def reset(self, host: Host, generator: torch.Generator, scale: float) -> None:
        super().reset(host, generator, scale)
        self.router_weight.zero_()
        self.router_bias.zero_()


class RoutedPool(ExpertPool):
    """The experts of one MLP with their router (`routing: topk`).

    Every expert in view is called in every pass, with zero rows if no token goes to it. In sharded and distributed
    training (ZeRO-3, DDP), the parameters that a pass uses must not depend on the data. Under `torch.compile` and in
    a CUDA graph no shape may depend on it either. There the products of all experts are grouped in bfloat16, and in
    other dtypes each expert reads every token, times a mask; see `benchmarks/routing.py`.

    Args:
        host (`Host`):
            The MLP.
        width (`int`):
            Hidden units of an expert.
        size (`int`):
            Number of experts allocated.
        view (`View`):
            Which experts take part, shared by all pools of a model.
        top_k (`int`):
            Settled experts for each token.
    """

    expert_type = RoutedExpert

    def __init__(self, host: Host, width: int, size: int, view: View, top_k: int) -> None:
        super().__init__(host, width, size, view)
        self.top_k = top_k
        self.load = [0] * size  # tokens per expert, while view.is_counting

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gates of all allocated experts, in float32 or better.

        The router's shape never changes, so that adding an expert does not change an older gate by a bit.

        Args:
            x (`torch.Tensor` of shape `(tokens, hidden)`):
                Input of the MLP.

        Returns:
            `torch.Tensor` of shape `(tokens, max_experts)`, in (0, 1).
        """
        experts = [cast(RoutedExpert, expert) for expert in self.experts]
        weight = torch.stack([expert.router_weight for expert in experts])  # (max_experts, hidden)
        bias = torch.cat([expert.router_bias for expert in experts])  # (max_experts,)
        dtype = torch.promote_types(x.dtype, weight.dtype)
        return torch.sigmoid(F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype)))

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if not self.view.experts:
            return output
        rows = x.shape[0] if x.dim() > 2 else 1
        flat = x.reshape(-1, x.shape[-1])  # (tokens, hidden)
        gates = self.gates(flat)  # (tokens, max_experts)
        weights = gates.to(x.dtype)
        if needs_fixed_shapes(x):
            return output + self._add_in_fixed_shapes(flat, weights, gates.detach(), rows).view_as(output)
        added = torch.zeros_like(flat)
        for index, tokens in self._route(gates.detach(), rows):
            read = flat if tokens is None else flat[tokens]
            weight = weights[:, index, None] if tokens is None else weights[tokens, index, None]
            part = weight * self.experts[index](read)
            added = added + part if tokens is None else added.index_add_(0, tokens, part)
            if self.view.is_counting:
                self.load[index] += read.shape[0]
        return output + added.view_as(output)

    def _route(self, gates: torch.Tensor, rows: int) -> Iterator[tuple[int, torch.Tensor | None]]:
        """Yield each expert in view with the tokens that go to it, `(n,)`, or `None` for all; the learning one last."""
        settled, chosen = self._choose(gates, rows)
        if chosen is None:
            yield from ((index, None) for index in settled)
        else:
            order = chosen.flatten().argsort(stable=True)  # pairs of token and expert, by expert
            counts = torch.bincount(chosen.flatten(), minlength=len(settled)).tolist()
            yield from zip(settled, (order // chosen.shape[1]).split(counts), strict=True)
        if self.view.learning in self.view.experts:
            yield self.view.learning, None

    def _add_in_fixed_shapes(
        self, flat: torch.Tensor, weights: torch.Tensor, gates: torch.Tensor, rows: int
    ) -> torch.Tensor:
        """Return what the experts in view add, `(tokens, hidden)`, in shapes that do not depend on the routing."""
        settled, chosen = self._choose(gates, rows)
        added = torch.zeros_like(flat)
        if chosen is not None and flat.dtype == torch.bfloat16:  # the only one in which torch compiles grouped products
            pairs, order = chosen.flatten().sort(stable=True)  # of token and expert, by expert
            tokens = order // chosen.shape[1]
            ends = (pairs[None] <= torch.arange(len(settled), device=pairs.device)[:, None]).sum(1, dtype=torch.int32)
            part = expert_outputs([cast(Expert, self.experts[index]) for index in settled], flat[tokens], ends)
            added = added.index_add(0, tokens, part * weights[:, settled][tokens, pairs, None])
        else:
            for place, index in enumerate(settled):
                goes = 1 if chosen is None else (chosen == place).any(dim=1)[:, None]
                added = added + goes * weights[:, index, None] * self.experts[index](flat)
        if self.view.learning in self.view.experts:
            added = added + weights[:, self.view.learning, None] * self.experts[self.view.learning](flat)
        return added

    def _choose(self, gates: torch.Tensor, rows: int) -> tuple[list[int], torch.Tensor | None]:
        """Return the settled experts in view, and those of each token as positions among them, `(tokens, top_k)`, or
        `None` if all tokens go to all."""
        settled = [index for index in self.view.experts if index != self.view.learning]
        if len(settled) <= self.top_k:
            return settled, None
        priority = None
        if self.view.random is not None:
            drawn = torch.rand((rows, len(settled)), generator=self.view.random)
            priority = drawn.to(gates.device).repeat_interleave(gates.shape[0] // rows, dim=0)
        return settled, choose_experts(gates[:, settled], self.top_k, priority)  # (tokens, top_k [+ 1])


def expert_outputs(experts: Sequence[Expert], x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return what experts of one form say of their own rows, by [`~torch.nn.functional.grouped_mm`].

    Args:
        experts (`Sequence[Expert]`):
            The experts.
        x (`torch.Tensor` of shape `(rows, hidden)`):
            Inputs: those of the first expert, of the second, and so on.
        ends (`torch.Tensor` of shape `(experts,)`, int32):
            Where the rows of each expert end.

    Returns:
        `torch.Tensor` of shape `(rows, hidden)`.
    """
    room = -experts[0].up.shape[0] % ALIGNED

    def stacked(matrices: Sequence[torch.Tensor]) -> torch.Tensor:  # each (width, hidden) -> (experts, hidden, width)
        return F.pad(torch.stack(list(matrices)).to(x.dtype), (0, 0, 0, room)).transpose(1, 2)

    hidden = F.grouped_mm(x, stacked([expert.up for expert in experts]), offs=ends)
    gates = [expert.gate for expert in experts if expert.gate is not None]
    if gates:
        hidden = experts[0].activation(F.grouped_mm(x, stacked(gates), offs=ends)) * hidden
    else:
        hidden = experts[0].activation(hidden)
    down = stacked([expert.down.T for expert in experts]).transpose(1, 2)  # (experts, width, hidden)
    return F.grouped_mm(hidden, down, offs=ends)


def needs_fixed_shapes(x: torch.Tensor) -> bool:
    """Whether shapes must not depend on data: under `torch.compile`, and while a CUDA graph is captured."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def choose_experts(gates: torch.Tensor, top_k: int, priority: torch.Tensor | None = None) -> torch.Tensor:
    """Choose the experts of each token.

    Args:
        gates (`torch.Tensor` of shape `(tokens, experts)`):
            Gates of the experts to choose from, more than `top_k`.
        top_k (`int`):
            Number of experts with the largest gates to take; of equal gates the older expert's wins.
        priority (`torch.Tensor` of shape `(tokens, experts)`, *optional*):
            Numbers in [0, 1). Each token also takes the expert with the largest number among those that are not in its
            top k: one *further* expert for every token (method 3.4; the draw is ours).

    Returns:
        `torch.Tensor` of shape `(tokens, top_k)`, or `(tokens, top_k + 1)` with `priority`: distinct positions in each
        row, the largest gate first and the further expert last.
    """
    chosen = gates.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    if priority is None:
        return chosen
    further = priority.scatter(1, chosen, -1.0).argmax(dim=-1, keepdim=True)
    return torch.cat([chosen, further], dim=-1)
