"""The training loop of the adapters that are on the device together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from .adapters import Adapter, initial_adapter
from .batches import LoraJob, Pass, Row, data_order, make_passes
from .config import LoraSpec, LoraTraining
from .head import Head, installed_head
from .kernels import Site, Stack, Window, from_row, layout, to_row


@dataclass(frozen=True)
class LoraResult:
    """The result of one job: an adapter, or the reason why there is none.

    Args:
        id (`str`):
            Id of the job.
        adapter (`Adapter`, *optional*):
            The trained adapter; `None` if the job failed.
        error (`str`, *optional*):
            Why it failed; `None` if it did not.
        losses (`tuple[float, ...]`):
            Training loss before each step, in nats per token.
        updates (`int`):
            Number of optimizer steps made.
    """

    id: str
    adapter: Adapter | None
    error: str | None
    losses: tuple[float, ...] = ()
    updates: int = 0


@dataclass
class _Learner:
    """A job in training."""

    job: LoraJob
    rows: list[Row]
    order: Iterator[tuple[int, ...]]
    steps: int
    learning_rate: float
    parameter: nn.Parameter  # (size,), a row of the stack
    losses: list[float] = field(default_factory=list)
    updates: int = 0

    def stops_early(self, training: LoraTraining) -> bool:
        """Return whether the last loss ends the job, without an update."""
        if training.stop_loss is not None and self.losses[-1] <= training.stop_loss:
            return True
        best = self.losses.index(min(self.losses))
        return training.patience is not None and len(self.losses) - 1 - best >= training.patience


class Chunk:
    """Adapters that are on the device together.

    Weights and gradients of all adapters are two matrices, `(m, size)`, and each row is one parameter of an ordinary
    `torch.optim.AdamW`. So every adapter has its own step count, moments and learning rate, in one fused update. With a
    tensor for each target, `(m, ...)`, all adapters would share one step count.

    Args:
        model (`PreTrainedModel`):
            The frozen model.
        sites (`list[Site]`):
            From [`~sleep_trl.batched_lora.kernels.find_sites`].
        jobs (`list[LoraJob]`):
            What to train.
        spec (`LoraSpec`):
            Size and targets of the adapters.
        training (`LoraTraining`):
            How they are trained.
        max_tokens (`int`, *optional*):
            Maximum number of tokens in one forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: list[Site],
        jobs: list[LoraJob],
        spec: LoraSpec,
        training: LoraTraining,
        max_tokens: int | None,
    ) -> None:
        self.model, self.sites, self.spec = model, sites, spec
        self.training, self.max_tokens = training, max_tokens
        targets = [target for site in sites for target in site.targets]
        self.weights = torch.empty(len(jobs), sites[-1].stop, device=model.device)
        for row, job in zip(self.weights, jobs, strict=True):
            row.copy_(to_row(sites, initial_adapter(targets, spec, training.seed, job.id)))
        self.grads = torch.zeros_like(self.weights)
        self.learners = [
            _Learner(
                job,
                job.rows(),
                data_order(job, training.batch_size, training.seed),
                job.steps or training.steps,
                job.learning_rate or training.learning_rate,
                nn.Parameter(row),
            )
            for job, row in zip(jobs, self.weights, strict=True)
        ]
        self.optimizer = self._make_optimizer()
        self.results: dict[str, LoraResult] = {}
        self._planned: tuple[list[list[Row]], list[Pass]] = ([], [])

    def _make_optimizer(self) -> torch.optim.AdamW:
        alike: dict[tuple[int, float], list[nn.Parameter]] = {}
        for learner, grad in zip(self.learners, self.grads, strict=True):
            learner.parameter.grad = grad
            alike.setdefault((learner.steps, learner.learning_rate), []).append(learner.parameter)
        training = self.training
        return torch.optim.AdamW(
            [{"params": alike[steps, rate], "steps": steps, "lr": rate, "highest": rate} for steps, rate in alike],
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def train(self) -> dict[str, LoraResult]:
        """Train all adapters, and return the results by job id."""
        stack = Stack(self.sites, self.spec.scale)
        step = 0
        output = self.model.get_output_embeddings()
        is_target = any(target.module is output for site in self.sites for target in site.targets)
        with installed_head(self.model, is_target) as head, stack.installed():
            while self.learners:
                self._end(self._step(stack, head))
                if self.learners:
                    self._update(step)
                step += 1
                self._end([n for n, learner in enumerate(self.learners) if learner.updates == learner.steps])
        return self.results

    def _step(self, stack: Stack, head: Head) -> list[int]:
        """Compute losses and gradients of one step; return the learners that stop without an update."""
        batches = [[learner.rows[n] for n in next(learner.order)] for learner in self.learners]
        if self._planned[0] != batches:
            self._planned = (batches, make_passes(self.model, batches, self.max_tokens))
        losses = torch.zeros(len(self.learners), device=self.model.device)
        # If the rows of each adapter are adjacent in one pass, gradients are written once and need no zeroing.
        layouts = [layout(rows.owners) for rows in self._planned[1]]
        is_single = sum(len(set(rows.owners)) for rows in self._planned[1]) == len(self.learners)
        is_first = is_single and all(isinstance(index, slice) for index, _ in layouts)
        if not is_first:
            self.grads.zero_()
        for rows, (index, repeats) in zip(self._planned[1], layouts, strict=True):
            weights = self.weights[index]
            grads = self.grads[index] if isinstance(index, slice) else torch.zeros_like(weights)
            stack.show(Window(weights.to(self.model.dtype), grads, repeats, is_first))
            terms = head.forward_backward(rows)  # (counted,)
            if stack.open:
                raise RuntimeError(
                    f"{stack.open} targets got no gradient, so adapters would be trained only in part. Name only "
                    f"targets on which the logits depend."
                )
            losses.index_add_(0, rows.label_owners, terms)
            if not isinstance(index, slice):  # then `grads` is of this pass alone, and an owner may occur twice
                self.grads.index_add_(0, torch.tensor(index, device=grads.device), grads)
        for learner, loss in zip(self.learners, losses.tolist(), strict=True):
            learner.losses.append(loss)
        return [
            n for n, a in enumerate(self.learners) if not math.isfinite(a.losses[-1]) or a.stops_early(self.training)
        ]

    def _update(self, step: int) -> None:
        if self.training.max_grad_norm is not None:
            norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)  # (m, 1)
            self.grads.mul_((self.training.max_grad_norm / (norms + 1e-6)).clamp(max=1))  # as clip_grad_norm_ does
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * self.training.factor(step, group["steps"])
        self.optimizer.step()
        for learner in self.learners:
            learner.updates += 1

    def _end(self, ended: list[int]) -> None:
        """Record the results of learners that have ended, and remove their rows."""
        if not ended:
            return
        for n in ended:
            learner, adapter, error = self.learners[n], None, None
            if not math.isfinite(learner.losses[-1]):
                error = f"job {learner.job.id!r}: loss {learner.losses[-1]} in step {len(learner.losses)}"
            elif not math.isfinite(float(torch.linalg.vector_norm(learner.parameter.detach(), ord=torch.inf))):
                error = f"job {learner.job.id!r}: weights not finite after step {learner.updates}"
            else:
                adapter = from_row(self.sites, self.spec, learner.parameter)
            losses = tuple(learner.losses)
            self.results[learner.job.id] = LoraResult(learner.job.id, adapter, error, losses, learner.updates)
            self.optimizer.state.pop(learner.parameter, None)
        gone = {id(self.learners[n].parameter) for n in ended}
        self.learners = [learner for learner in self.learners if id(learner.parameter) not in gone]
        kept = [n for n in range(len(self.weights)) if n not in set(ended)]
        self.weights, self.grads = self.weights[kept], self.grads[kept]
        for learner, row, grad in zip(self.learners, self.weights, self.grads, strict=True):
            learner.parameter.data, learner.parameter.grad = row, grad
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
