"""The dream farm: many isolated LoRA fine-tunings trained together over one frozen model, and scored together.

Each adapter comes out as if it had been trained alone: its own first weights, data order, optimizer state, number of
steps and early stop, and a loss normalized over its own tokens. A dream that fails is reported as such and disturbs no
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .adapters import Adapter, LoraSpec, find_targets, initial_adapter
from .batches import Dream, Pass, Row, data_order, defect, make_passes
from .stack import Site, Stack, Window, find_sites, from_row, layout, to_row


@dataclass(frozen=True)
class InnerLoop:
    """How each dream is learnt: AdamW, as `torch.optim.AdamW` computes it.

    Args:
        steps (`int`, *optional*, defaults to `10`):
            Optimizer steps, at least 1, unless the dream names its own.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            First learning rate, positive.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"linear"`: down to zero over the dream's own steps.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`):
            AdamW's, each in [0, 1).
        eps (`float`, *optional*, defaults to `1e-8`):
            AdamW's.
        weight_decay (`float`, *optional*, defaults to `0.0`):
            AdamW's, not negative.
        batch_size (`int`, *optional*, defaults to `1`):
            Sequences of a dream in each step, at least 1.
        max_grad_norm (`float`, *optional*):
            Longest gradient of one adapter, over all its weights.
        patience (`int`, *optional*):
            End a dream when its training loss has not improved for this many steps.
        stop_loss (`float`, *optional*):
            End a dream when its training loss is at most this, in nats a token.
        seed (`int`, *optional*, defaults to `0`):
            Seed, together with the dream's id, of its first weights and data order.

    A step whose loss ends a dream makes no update.
    """

    steps: int = 10
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    batch_size: int = 1
    max_grad_norm: float | None = None
    patience: int | None = None
    stop_loss: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"weight_decay must not be negative and betas lie in [0, 1), got {self.weight_decay} and {self.betas}."
            )
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"schedule must be 'constant' or 'linear', got {self.schedule!r}.")


@dataclass(frozen=True)
class Outcome:
    """What became of one dream: an adapter, or the reason why there is none.

    Args:
        id (`str`):
            The dream's.
        adapter (`Adapter`, *optional*):
            The trained adapter; `None` if the dream failed.
        error (`str`, *optional*):
            Why it failed; `None` if it did not.
        losses (`tuple[float, ...]`):
            Training loss before each step, in nats a token.
        updates (`int`):
            Optimizer steps made.
    """

    id: str
    adapter: Adapter | None
    error: str | None
    losses: tuple[float, ...] = ()
    updates: int = 0


def train_adapters(
    model: PreTrainedModel,
    dreams: Sequence[Dream],
    spec: LoraSpec,
    loop: InnerLoop,
    *,
    chunk: int | None = None,
    tokens: int | None = None,
) -> list[Outcome]:
    """Train one adapter for each dream, all together; the model itself stays as it is.

    What one dream comes to does not depend on the others in the call but for the last bits of its floating-point sums,
    so that dreams can be divided over workers in any way.

    Args:
        model (`PreTrainedModel`):
            A causal language model on one device, with or without a memory attached. It is read in evaluation mode.
        dreams (`Sequence[Dream]`):
            Dreams with distinct ids.
        spec (`LoraSpec`):
            Size and place of the adapters.
        loop (`InnerLoop`):
            How they are trained.
        chunk (`int`, *optional*):
            Adapters held on the device at a time, each with its gradient and two moments; by default all.
        tokens (`int`, *optional*):
            Most tokens in one pass through the model, which bounds the activations; by default what suits the device.

    Returns:
        `list[Outcome]`: one for each dream, in the order given.

    Raises:
        `ValueError`: if ids repeat, `chunk` or `tokens` is less than 1, or the spec does not fit the model.
    """
    if len({dream.id for dream in dreams}) < len(dreams):
        raise ValueError("Each dream needs an id of its own: first weights and data order are drawn from it.")
    if (chunk is not None and chunk < 1) or (tokens is not None and tokens < 1):
        raise ValueError(f"chunk and tokens must be at least 1, got {chunk} and {tokens}.")
    found: dict[str, Outcome] = {}
    with _frozen(model), torch.enable_grad():
        sites = find_sites(model, find_targets(model, spec), spec.rank)
        for dream in dreams:
            if problem := defect(dream, model):
                found[dream.id] = Outcome(dream.id, None, f"dream {dream.id!r} cannot be learnt: {problem}")
        # Longest first: dreams of like length then share passes, and their adapters lie side by side.
        ready = [dream for dream in dreams if dream.id not in found]
        ready.sort(key=lambda dream: -max(map(len, dream.sequences)))
        for start in range(0, len(ready), chunk or max(1, len(ready))):
            part = ready[start : start + (chunk or len(ready))]
            found |= _Chunk(model, sites, part, spec, loop, tokens).train()
    return [found[dream.id] for dream in dreams]


@contextmanager
def view(model: PreTrainedModel, adapters: Sequence[Adapter | None], rows: Sequence[int]) -> Iterator[None]:
    """Let `model(...)` and `model.generate(...)` use adapter `rows[b]` for row `b` of the batch.

    Args:
        model (`PreTrainedModel`):
            The model on which the adapters were trained.
        adapters (`Sequence[Adapter | None]`):
            Adapters of one spec; `None` stands for the model without any.
        rows (`Sequence[int]`):
            For each row of the batch an index into `adapters`. Rows of one adapter that lie side by side, equally many
            of each, cost the least memory.

    Raises:
        `ValueError`: if an index is out of range, the adapters differ in spec or targets, or there is none; and from
            the model, if a batch does not have `len(rows)` rows.
    """
    given = [adapter for adapter in adapters if adapter is not None]
    if not given or any(a.spec != given[0].spec or a.weights.keys() != given[0].weights.keys() for a in given):
        raise ValueError("A view needs at least one adapter, and all of one spec and with the same targets.")
    if not len(rows) or min(rows) < 0 or max(rows) >= len(adapters):
        raise ValueError(f"rows must be indices from 0 to {len(adapters) - 1}, one a row of the batch, got {rows}.")
    with torch.no_grad(), _frozen(model):
        sites = find_sites(model, find_targets(model, given[0].spec), given[0].spec.rank)
        if {target.name for site in sites for target in site.targets} != given[0].weights.keys():
            raise ValueError("These adapters were trained on a model with other targets than this one has.")
        index, repeats = layout(rows)
        chosen = list(adapters)[index] if isinstance(index, slice) else [adapters[i] for i in index]
        empty = torch.zeros(sites[-1].stop)
        weights = torch.stack([empty if adapter is None else to_row(sites, adapter) for adapter in chosen])
        stack = Stack(sites, given[0].spec.scale)
        with stack.installed():
            stack.show(Window(weights.to(model.device, model.dtype), None, repeats))
            yield


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no weight of the model ask for a gradient, and switch its dropout off."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        model.eval()
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


@dataclass
class _Learner:
    """A dream on its way."""

    dream: Dream
    rows: list[Row]
    order: Iterator[tuple[int, ...]]
    steps: int
    parameter: nn.Parameter  # (size,), a row of the stack
    losses: list[float] = field(default_factory=list)
    updates: int = 0

    def ends(self, loop: InnerLoop) -> bool:
        """Return whether the last loss ends the dream, without an update."""
        if loop.stop_loss is not None and self.losses[-1] <= loop.stop_loss:
            return True
        best = self.losses.index(min(self.losses))
        return loop.patience is not None and len(self.losses) - 1 - best >= loop.patience


class _Chunk:
    """Adapters that are on the device together.

    Weights and gradients of all adapters are two matrices, `(m, size)`, and each row is one parameter of an ordinary
    `torch.optim.AdamW`. So every adapter has its own step count, moments and learning rate, in one fused update; a
    tensor for each target, `(m, ...)`, would share one step count among all adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: list[Site],
        dreams: list[Dream],
        spec: LoraSpec,
        loop: InnerLoop,
        tokens: int | None,
    ) -> None:
        self.model, self.sites, self.spec, self.loop, self.tokens = model, sites, spec, loop, tokens
        targets = [target for site in sites for target in site.targets]
        self.weights = torch.empty(len(dreams), sites[-1].stop, device=model.device)
        for row, dream in zip(self.weights, dreams, strict=True):
            row.copy_(to_row(sites, initial_adapter(targets, spec, loop.seed, dream.id)))
        self.grads = torch.zeros_like(self.weights)
        self.learners = [
            _Learner(
                dream,
                dream.rows(),
                data_order(dream, loop.batch_size, loop.seed),
                dream.steps or loop.steps,
                nn.Parameter(row),
            )
            for dream, row in zip(dreams, self.weights, strict=True)
        ]
        self.optimizer = self._make_optimizer()
        self.outcomes: dict[str, Outcome] = {}
        self._planned: tuple[list[list[Row]], list[Pass]] = ([], [])

    def _make_optimizer(self) -> torch.optim.AdamW:
        by_steps: dict[int, list[nn.Parameter]] = {}
        for learner, grad in zip(self.learners, self.grads, strict=True):
            learner.parameter.grad = grad
            by_steps.setdefault(learner.steps, []).append(learner.parameter)
        loop = self.loop
        return torch.optim.AdamW(
            [{"params": parameters, "steps": steps} for steps, parameters in by_steps.items()],
            lr=loop.learning_rate,
            betas=loop.betas,
            eps=loop.eps,
            weight_decay=loop.weight_decay,
            fused=True,
        )

    def train(self) -> dict[str, Outcome]:
        stack = Stack(self.sites, self.spec.scale)
        step = 0
        with stack.installed(), _counted_logits(self.model, self.sites) as keep:
            while self.learners:
                self._end(self._step(stack, keep))
                if self.learners:
                    self._update(step)
                step += 1
                self._end([n for n, learner in enumerate(self.learners) if learner.updates == learner.steps])
        return self.outcomes

    def _step(self, stack: Stack, keep: _Kept) -> list[int]:
        """Compute losses and gradients of one step; return the learners that end without an update."""
        batches = [[learner.rows[n] for n in next(learner.order)] for learner in self.learners]
        if self._planned[0] != batches:
            self._planned = (batches, make_passes(self.model, batches, self.tokens))
        losses = torch.zeros(len(self.learners), device=self.model.device)
        # Where each adapter has its rows side by side in one pass, gradients are written once and need no zeros.
        layouts = [layout(rows.owners) for rows in self._planned[1]]
        is_single = sum(len(set(rows.owners)) for rows in self._planned[1]) == len(self.learners)
        is_first = is_single and all(isinstance(index, slice) for index, _ in layouts)
        if not is_first:
            self.grads.zero_()
        for rows, (index, repeats) in zip(self._planned[1], layouts, strict=True):
            weights, grads = self.weights[index], self.grads[index]
            stack.show(Window(weights.to(self.model.dtype), grads, repeats, is_first))
            logits = keep.logits(self.model, rows)  # (counted, vocabulary)
            terms = F.cross_entropy(logits.float(), rows.labels, reduction="none") * rows.weights  # (counted,)
            terms.sum().backward()
            if stack.open:
                raise RuntimeError(
                    f"{stack.open} targets got no gradient, so adapters would have learnt only in part. Name only "
                    f"targets on which the logits depend."
                )
            losses.index_add_(0, rows.label_owners, terms.detach())
            if not isinstance(index, slice):  # then `grads` is a copy
                self.grads.index_add_(0, torch.tensor(index, device=grads.device), grads)
        for learner, loss in zip(self.learners, losses.tolist(), strict=True):
            learner.losses.append(loss)
        return [n for n, a in enumerate(self.learners) if not math.isfinite(a.losses[-1]) or a.ends(self.loop)]

    def _update(self, step: int) -> None:
        if self.loop.max_grad_norm is not None:
            norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)  # (m, 1)
            self.grads.mul_((self.loop.max_grad_norm / (norms + 1e-6)).clamp(max=1))  # as clip_grad_norm_ does
        if self.loop.schedule == "linear":
            for group in self.optimizer.param_groups:
                group["lr"] = self.loop.learning_rate * max(0.0, 1 - step / group["steps"])
        self.optimizer.step()
        for learner in self.learners:
            learner.updates += 1

    def _end(self, ended: list[int]) -> None:
        """Report learners that are through, and close the gaps, so that they cost nothing from here on."""
        if not ended:
            return
        for n in ended:
            learner, adapter, error = self.learners[n], None, None
            if not math.isfinite(learner.losses[-1]):
                error = f"dream {learner.dream.id!r}: loss {learner.losses[-1]} in step {len(learner.losses)}"
            elif not math.isfinite(float(torch.linalg.vector_norm(learner.parameter.detach(), ord=torch.inf))):
                error = f"dream {learner.dream.id!r}: weights not finite after step {learner.updates}"
            else:
                adapter = from_row(self.sites, self.spec, learner.parameter)
            losses = tuple(learner.losses)
            self.outcomes[learner.dream.id] = Outcome(learner.dream.id, adapter, error, losses, learner.updates)
            self.optimizer.state.pop(learner.parameter, None)
        gone = {id(self.learners[n].parameter) for n in ended}
        self.learners = [learner for learner in self.learners if id(learner.parameter) not in gone]
        kept = [n for n in range(len(self.weights)) if n not in set(ended)]
        self.weights, self.grads = self.weights[kept], self.grads[kept]
        for learner, row, grad in zip(self.learners, self.weights, self.grads, strict=True):
            learner.parameter.data, learner.parameter.grad = row, grad
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]


class _Kept:
    """Reduces the output layer's input to the positions that are counted."""

    def __init__(self, is_target: bool) -> None:
        self.is_target, self.places = is_target, torch.empty(0)

    def select(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (args[0].flatten(0, 1).index_select(0, self.places)[None],)  # (1, counted, hidden)

    def logits(self, model: PreTrainedModel, rows: Pass) -> torch.Tensor:
        self.places = rows.places
        logits: torch.Tensor = model(input_ids=rows.ids, use_cache=False).logits
        return logits.flatten(0, 1).index_select(0, rows.places) if self.is_target else logits[0]


@contextmanager
def _counted_logits(model: PreTrainedModel, sites: list[Site]) -> Iterator[_Kept]:
    """Spend the output layer on counted positions only, unless it is a target itself and has to see all rows."""
    output = model.get_output_embeddings()
    kept = _Kept(any(target.module is output for site in sites for target in site.targets))
    handle = None if kept.is_target else output.register_forward_pre_hook(kept.select)
    try:
        yield kept
    finally:
        if handle is not None:
            handle.remove()
