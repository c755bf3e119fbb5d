"""Who teaches which rows of a batch, and what comes of it for the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel
from trl.models import prepare_deepspeed

from sleep_trl.sharding import withdraw

from .ensemble import ensemble_divergence
from .loss import Head, divergence_per_token
from .parts import LEARNT


@dataclass(frozen=True)
class Teacher:
    """A model that teaches, as it is and as it is called: under DeepSpeed by way of an engine."""

    model: PreTrainedModel
    wrapped: Any

    def release(self) -> None:
        """Undo what DeepSpeed has done to the model."""
        if self.wrapped is not self.model:
            self.wrapped.destroy()


@dataclass(frozen=True)
class Lesson:
    """What some teachers have in mind where they read some rows of a batch.

    Args:
        rows (`torch.Tensor` of shape `(rows,)`):
            Their indices in the batch.
        taught (`list[tuple[torch.Tensor, Head]]`):
            Of each teacher the hidden states of shape `(rows, length, its hidden size)`, and the head.
        is_given (`bool`, *optional*, defaults to `True`):
            `False` if a row was only read because all processes have to make the same forward passes.
    """

    rows: torch.Tensor
    taught: list[tuple[torch.Tensor, Head]]
    is_given: bool = True

    def divergence(self, student: torch.Tensor, head: Head, mask: torch.Tensor, beta: float) -> torch.Tensor:
        """Return the divergence of each row of the batch, summed over its tokens; 0 where others teach.

        Args:
            student (`torch.Tensor` of shape `(batch, length, hidden)`):
                The student's hidden states.
            head (`Head`):
                The student's head.
            mask (`torch.Tensor` of shape `(batch, length)`):
                1 where a token counts.
            beta (`float`):
                Generalized Jensen-Shannon coefficient, see [`divergence_per_token`].
        """
        states, counts = student[self.rows], mask[self.rows]
        (taught, teacher), *others = self.taught
        if others or _vocabulary(teacher) != _vocabulary(head):
            per_token = ensemble_divergence(states, head, self.taught, counts, beta)
        else:
            per_token = divergence_per_token(states, taught, head, teacher, counts, beta)
        sums = per_token.sum(1) * float(self.is_given)
        return sums.new_zeros(mask.shape[0]).index_add(0, self.rows, sums)


def enrol(models: PreTrainedModel | Sequence[PreTrainedModel] | None, accelerator: Accelerator) -> list[Teacher]:
    """Freeze teachers and put them where the student is; under DeepSpeed ZeRO-3 their weights are sharded too."""
    models = [] if models is None else [models] if isinstance(models, nn.Module) else list(models)
    teachers = []
    for model in models:
        withdraw(model)
        model.requires_grad_(False).eval().to(accelerator.device)
        is_deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
        teachers.append(Teacher(model, prepare_deepspeed(model, accelerator) if is_deepspeed else model))
    return teachers


def share_out(part: torch.Tensor) -> tuple[tuple[torch.Tensor, bool], tuple[torch.Tensor, bool]]:
    """Divide the rows of a batch into those that separate teachers teach, and self-replay, which a student with a
    memory teaches itself: what it must not forget is its own.

    Args:
        part (`torch.Tensor` of shape `(batch,)`):
            Index into `PARTS`.

    Returns:
        two pairs of rows, `torch.Tensor` of shape `(rows,)`, and whether they are meant: no pair is ever without rows.
    """
    is_learnt = torch.isin(part, part.new_tensor(LEARNT))
    found = [chosen.nonzero()[:, 0] for chosen in (is_learnt, ~is_learnt)]
    first, second = ((rows, True) if len(rows) else (part.new_zeros(1), False) for rows in found)
    return first, second


def _vocabulary(head: Head) -> int:
    return int(getattr(head.weight, "ds_shape", head.weight.shape)[0])
