"""Forward and backward pass of many adapters over one frozen model in one batch.

The `forward` of each target is replaced while a stack is installed. A forward hook would cost more: it sees the product
after autograd has recorded it, so the gradient of the input comes in two tensors, and adding them takes another pass
over memory. Here the adapter's part is accumulated by the matrix product itself (`baddbmm`), layers that read the
same input (query, key and value; gate and up) share one product with all their `A`, and one buffer holds the gradient
of that input. Gradients of frozen weights are never computed, nor those of inputs that need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .adapters import Adapter, Target
from .config import LoraSpec


@dataclass(frozen=True)
class Site:
    """Targets that read the same tensor, and where their weights are in the flat row of an adapter.

    A row holds, site by site, the `A` of every target of the site and then every `B`.
    """

    targets: tuple[Target, ...]
    start: int
    rank: int

    @property
    def in_features(self) -> int:
        return self.targets[0].in_features

    def downs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return all `A` of the site, `(n, targets * rank, in_features)`, a view of `rows`, `(n, size)`."""
        count = len(self.targets) * self.rank
        return rows[:, self.start : self.start + count * self.in_features].view(len(rows), count, self.in_features)

    def up(self, rows: torch.Tensor, place: int) -> torch.Tensor:
        """Return `B` of one target, `(n, out_features, rank)`, a view of `rows`."""
        start = self.start + len(self.targets) * self.rank * self.in_features
        start += self.rank * sum(target.out_features for target in self.targets[:place])
        out_features = self.targets[place].out_features
        return rows[:, start : start + self.rank * out_features].view(len(rows), out_features, self.rank)

    @property
    def stop(self) -> int:
        sizes = sum(target.out_features for target in self.targets) + len(self.targets) * self.in_features
        return self.start + self.rank * sizes


@contextmanager
def replaced_forwards(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replace the `forward` of modules for a while.

    An MLP with a replaced linear layer does not take its settled experts into its own weights meanwhile (see
    [`sleep_trl.memory.wide`]), so that the layer keeps the shape that the adapters have.
    """
    before = [(module, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


@torch.no_grad()
def find_sites(model: PreTrainedModel, targets: list[Target], rank: int) -> list[Site]:
    """Find out which targets read the same input, and in which order, by one pass over two rows of three tokens.

    Raises:
        `ValueError`: if a target is not called exactly once in a pass, with an input `(batch, length, in_features)`.
    """
    calls: list[tuple[Target, torch.Tensor]] = []

    def read(target: Target, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        calls.append((target, x))
        return forward(x)

    with replaced_forwards([(t.module, partial(read, t, t.module.forward)) for t in targets]):
        model(input_ids=torch.zeros(2, 3, dtype=torch.long, device=model.device), use_cache=False)
    for target in targets:
        shapes = [tuple(x.shape) for called, x in calls if called is target]
        if shapes != [(2, 3, target.in_features)]:
            raise ValueError(
                f"{target.name} cannot be a target: a pass over 2 rows of 3 tokens must call it once with an input of "
                f"shape (2, 3, {target.in_features}), got {shapes or 'no call'}. Leave it out of `targets`."
            )
    sites: list[Site] = []
    previous = None
    for target, x in calls:
        if x is previous:
            last = sites.pop()
            sites.append(Site((*last.targets, target), last.start, rank))
        else:
            sites.append(Site((target,), sites[-1].stop if sites else 0, rank))
        previous = x
    return sites


def to_row(sites: list[Site], adapter: Adapter) -> torch.Tensor:
    """Return the weights of an adapter as one flat row, `(size,)`, float32."""
    row = torch.empty(1, sites[-1].stop)
    for site in sites:
        names = [target.name for target in site.targets]
        site.downs(row)[0].copy_(torch.cat([adapter.weights[name][0] for name in names]))
        for place, name in enumerate(names):
            site.up(row, place)[0].copy_(adapter.weights[name][1])
    return row[0]


def from_row(sites: list[Site], spec: LoraSpec, row: torch.Tensor) -> Adapter:
    """Return the adapter that a row holds, copied to the CPU."""
    copy = row.detach().to("cpu", torch.float32, copy=True)[None]
    weights = {}
    for site in sites:
        downs = site.downs(copy)[0].split(site.rank)
        for place, target in enumerate(site.targets):
            weights[target.name] = (downs[place], site.up(copy, place)[0])
    return Adapter(spec, dict(sorted(weights.items())))


@dataclass
class Window:
    """The adapters of one pass.

    Args:
        weights (`torch.Tensor` of shape `(n, size)`):
            One adapter a row, in the model's dtype.
        grads (`torch.Tensor` of shape `(n, size)`, *optional*):
            Gradients are written or added here.
        repeats (`int`):
            Rows of the batch for each adapter: row `b` belongs to adapter `b // repeats`.
        is_first (`bool`, *optional*, defaults to `False`):
            Whether gradients overwrite `grads` instead of being added to it.
    """

    weights: torch.Tensor
    grads: torch.Tensor | None
    repeats: int
    is_first: bool = False

    def accumulate(self, grad: torch.Tensor, value: torch.Tensor) -> None:
        """Write or add a gradient to `grad`, a view of `grads`."""
        if self.is_first:
            grad.copy_(value)
        else:
            grad.add_(value)


def layout(owners: Sequence[int]) -> tuple[slice | list[int], int]:
    """Return which adapters a pass needs, in order, and how many rows of the batch each has.

    Args:
        owners (`Sequence[int]`):
            For each row of the batch the index of its adapter.

    Returns:
        `tuple[slice | list[int], int]`: a slice if the adapters are adjacent, so that nothing is copied; if rows are
        not grouped evenly, one adapter for each row.
    """
    repeats = 1
    while repeats < len(owners) and owners[repeats] == owners[0]:
        repeats += 1
    distinct = list(owners[::repeats])
    if [owner for owner in distinct for _ in range(repeats)] != list(owners) or len(set(distinct)) < len(distinct):
        return list(owners), 1
    if distinct == list(range(distinct[0], distinct[0] + len(distinct))):
        return slice(distinct[0], distinct[0] + len(distinct)), repeats
    return distinct, repeats


class Stack:
    """The adapters of a model's targets. While installed, a pass uses those of the current window, see [`show`].

    Args:
        sites (`list[Site]`):
            From [`find_sites`].
        scale (`float`):
            `alpha / rank`.
    """

    def __init__(self, sites: list[Site], scale: float) -> None:
        self.sites, self.scale = sites, scale
        self.window: Window | None = None
        device = sites[0].targets[0].module.weight.device
        # Makes autograd record the targets of the first layer too, whose input needs no gradient.
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.open = 0  # target calls of a pass whose gradient has not arrived yet
        self._reads: dict[int, _Read] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Context manager that replaces the `forward` of the targets."""
        forwards = [
            (target.module, partial(self._forward, index, place))
            for index, site in enumerate(self.sites)
            for place, target in enumerate(site.targets)
        ]
        try:
            with replaced_forwards(forwards):
                yield
        finally:
            self._reads.clear()
            self.window = None

    def show(self, window: Window) -> None:
        """Take the adapters of the next passes from `window`."""
        self._reads.clear()
        self.window, self.open = window, 0

    def _forward(self, index: int, place: int, x: torch.Tensor) -> torch.Tensor:
        if place == 0:
            self._reads[index] = _Read(self, self.sites[index], x)
        read = self._reads[index]
        if place == len(read.site.targets) - 1:
            del self._reads[index]  # now only the graph keeps the activations
        if read.source is not x:
            raise RuntimeError(
                f"{read.site.targets[place].name} and {read.site.targets[0].name} read different inputs, but read the "
                f"same one in the first pass over this model. Name only one of the two in `targets`."
            )
        return _Adapted.apply(x, self.anchor, read, place)


class _Read:
    """The state of one site in one pass: its input, the product with `A`, and the gradients as they arrive."""

    def __init__(self, stack: Stack, site: Site, x: torch.Tensor) -> None:
        window = stack.window
        if window is None or x.dim() != 3 or x.shape[0] != len(window.weights) * window.repeats:
            rows = 0 if window is None else len(window.weights) * window.repeats
            raise ValueError(
                f"{site.targets[0].name}: the input has shape {tuple(x.shape)}, but adapters were given for {rows} "
                f"rows. Give an index for each row of the batch."
            )
        self.stack, self.site, self.window, self.source = stack, site, window, x
        self.x = x.detach().reshape(len(window.weights), -1, x.shape[-1])  # (n, tokens, in)
        self.hidden = torch.bmm(self.x, site.downs(window.weights).mT)  # (n, tokens, targets * rank)
        if stack.scale != 1:
            self.hidden *= stack.scale
        self.pending = 0
        self.hidden_grad: torch.Tensor | None = None
        self.x_grad: torch.Tensor | None = None

    def part(self, hidden: torch.Tensor, place: int) -> torch.Tensor:  # (n, tokens, rank)
        return hidden[..., place * self.site.rank : (place + 1) * self.site.rank]

    def forward(self, place: int, x: torch.Tensor) -> torch.Tensor:
        target, window = self.site.targets[place], self.window
        y = torch.nn.functional.linear(x, target.weight, target.module.bias)  # (batch, length, out)
        grouped = y.view(len(window.weights), -1, target.out_features)
        grouped.baddbmm_(self.part(self.hidden, place), self.site.up(window.weights, place).mT)
        self.pending += 1
        self.stack.open += 1
        return y

    def backward(self, place: int, y_grad: torch.Tensor, needs_input: bool) -> torch.Tensor | None:
        """Add the gradients of one target; the last one of the site returns the gradient of the shared input.

        Autograd runs the node that made the input only after all its readers, so the buffer that they fill together, in
        any order, is complete by then.
        """
        target, window, site = self.site.targets[place], self.window, self.site
        if window.grads is None:
            raise RuntimeError("using_adapters computes no gradients. Use train_adapters to train.")
        flat = y_grad.reshape(-1, target.out_features)
        grouped = flat.view(len(window.weights), -1, target.out_features)  # (n, tokens, out)
        window.accumulate(site.up(window.grads, place), torch.bmm(grouped.mT, self.part(self.hidden, place)))
        if self.hidden_grad is None:
            self.hidden_grad = torch.empty_like(self.hidden)
        torch.mul(
            torch.bmm(grouped, site.up(window.weights, place)),
            self.stack.scale,
            out=self.part(self.hidden_grad, place),
        )
        if needs_input and self.x_grad is None:
            self.x_grad = flat @ target.weight  # (batch * length, in)
        elif needs_input and self.x_grad is not None:
            self.x_grad.addmm_(flat, target.weight)
        self.pending -= 1
        self.stack.open -= 1
        if self.pending:
            return None
        window.accumulate(site.downs(window.grads), torch.bmm(self.hidden_grad.mT, self.x))
        x_grad, self.x_grad = self.x_grad, None
        if x_grad is None:
            return None
        x_grad.view_as(self.x).baddbmm_(self.hidden_grad, site.downs(window.weights))
        return x_grad.view(self.source.shape)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, read: _Read, place: int) -> torch.Tensor:
        ctx.read, ctx.place = read, place
        return read.forward(place, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        return ctx.read.backward(ctx.place, grads[0], ctx.needs_input_grad[0]), None, None, None
