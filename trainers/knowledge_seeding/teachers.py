"""Who teaches which rows of a batch, and what comes of it for the student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel
from trl.models import prepare_deepspeed

from sleep_trl.data.parts import LEARNED, PARTS
from sleep_trl.distributed.zero3 import withdraw
from sleep_trl.memory import Memory

from .ensemble import ensemble_divergence
from .loss import Head, divergence_per_token


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
class TeacherOutput:
    """What some teachers have in mind where they read some rows of a batch.

    Args:
        rows (`torch.Tensor` of shape `(rows,)`):
            Their indices in the batch.
        taught (`list[tuple[torch.Tensor, Head]]`):
            Of each teacher the hidden states of shape `(rows, length, its hidden size)`, and the head.
        is_given (`bool`, *optional*, defaults to `True`):
            `False` if a row was only read because all processes have to make the same forward passes.
        is_own (`bool`, *optional*, defaults to `True`):
            Whether the student teaches itself here, so that hidden states can be compared.
    """

    rows: torch.Tensor
    taught: list[tuple[torch.Tensor, Head]]
    is_given: bool = True
    is_own: bool = True

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
        return self._by_row(per_token, mask)

    def drift(self, student: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return how far the student's hidden states are from its own as a teacher, for each row of the batch: squared
        distance by squared length, summed over the tokens. Hidden states show what a confident prediction hides: the
        divergence is near zero until the prediction tips over (feature distillation: FitNets, arXiv 1412.6550; on
        self-replay alone, ours).

        Args:
            student (`torch.Tensor` of shape `(batch, length, hidden)`):
                The student's hidden states.
            mask (`torch.Tensor` of shape `(batch, length)`):
                1 where a token counts.
        """
        [(taught, _)] = self.taught
        apart = (student[self.rows].float() - taught.float()).square().sum(-1)
        return self._by_row(apart / taught.float().square().sum(-1) * mask[self.rows], mask)

    def _by_row(self, per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sums = per_token.sum(1) * float(self.is_given)
        return sums.new_zeros(mask.shape[0]).index_add(0, self.rows, sums)


def prepare_teachers(
    models: PreTrainedModel | Sequence[PreTrainedModel] | None, accelerator: Accelerator
) -> list[Teacher]:
    """Freeze teachers and put them where the student is; under DeepSpeed ZeRO-3 their weights are sharded too."""
    models = [] if models is None else [models] if isinstance(models, nn.Module) else list(models)
    teachers = []
    for model in models:
        withdraw(model)
        model.requires_grad_(False).eval().to(accelerator.device)
        is_deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
        teachers.append(Teacher(model, prepare_deepspeed(model, accelerator) if is_deepspeed else model))
    return teachers


def assign_teachers(
    student: PreTrainedModel, itself: Teacher, others: list[Teacher]
) -> list[tuple[list[str], list[Teacher], bool]]:
    """Say who teaches which parts of the data set: separate teachers, if any, what is learnt; the student as it was
    before this night what it has learnt in earlier ones; and the pretrained model, which is in it, the general samples,
    so that what a night costs of its skill is not passed on to the next (ours). A student without a memory has no
    other self, and separate teachers teach it everything.

    Returns:
        of each class the names of its parts, its teachers, and whether they are the pretrained model.
    """
    memory = Memory.of(student)
    if memory is None or memory.learning is None:
        return [([*PARTS], others, False)]
    with memory.as_teacher():
        is_grown = bool(memory.in_view)
    classes: dict[tuple[bool, bool], list[str]] = {}
    for name in PARTS:
        classes.setdefault((bool(others) and name in LEARNED, is_grown and name == "general"), []).append(name)
    return [(parts, others if are_others else [itself], is_base) for (are_others, is_base), parts in classes.items()]


def find_rows(part: torch.Tensor, names: list[str]) -> tuple[torch.Tensor, bool]:
    """Find the rows of some parts in a batch.

    Args:
        part (`torch.Tensor` of shape `(batch,)`):
            Index into `PARTS`.
        names (`list[str]`):
            The parts.

    Returns:
        the rows, `torch.Tensor` of shape `(rows,)`, and whether they are meant: where there are none, it is the first
        row of the batch, since all processes have to make the same forward passes.
    """
    rows = torch.isin(part, part.new_tensor([PARTS.index(name) for name in names])).nonzero()[:, 0]
    return (rows, True) if len(rows) else (part.new_zeros(1), False)


def as_base(student: PreTrainedModel) -> AbstractContextManager[None]:
    """Show the pretrained model that is in a student with a memory."""
    memory = Memory.of(student)
    assert memory is not None, "only a student with a memory has the pretrained model in it"
    return memory.as_base()


def _vocabulary(head: Head) -> int:
    return int(getattr(head.weight, "ds_shape", head.weight.shape)[0])
