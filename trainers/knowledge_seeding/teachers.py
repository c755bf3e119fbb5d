"""Which teacher is assigned to which rows of a batch, and what the student learns from its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from sleep_trl.data.parts import LEARNED, PARTS
from sleep_trl.distributed.zero3 import withdraw
from sleep_trl.memory import Memory
from sleep_trl.models.head import Head

from ..trl_private import create_model_from_path, prepare_deepspeed
from .ensemble import ensemble_divergence
from .loss import divergence_per_token


@dataclass(frozen=True)
class Teacher:
    """A teacher model, and the module to call for a forward pass: under DeepSpeed its engine, otherwise the model."""

    model: PreTrainedModel
    wrapped: Any

    def release(self) -> None:
        """Remove DeepSpeed's hooks from the model."""
        if self.wrapped is not self.model:
            self.wrapped.destroy()


@dataclass(frozen=True)
class TeacherOutput:
    """What the teachers of some rows of a batch predict there.

    Args:
        rows (`torch.Tensor` of shape `(rows,)`):
            Indices of the rows in the batch.
        states (`list[tuple[torch.Tensor, Head]]`):
            Each teacher's last hidden states, of shape `(rows, length, its hidden size)`, and its LM head.
        is_present (`bool`, *optional*, defaults to `True`):
            `False` if the batch has no such rows: one was read only because all processes must make the same number of
            forward passes, and counts nothing.
        is_student (`bool`, *optional*, defaults to `True`):
            Whether the teacher is the student itself, so that their hidden states can be compared.
    """

    rows: torch.Tensor
    states: list[tuple[torch.Tensor, Head]]
    is_present: bool = True
    is_student: bool = True

    def divergence(self, student: torch.Tensor, head: Head, mask: torch.Tensor, beta: float) -> torch.Tensor:
        """Return the divergence of each row of the batch, summed over its tokens; 0 in rows of other teachers.

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
        own, counts = student[self.rows], mask[self.rows]
        (states, teacher_head), *others = self.states
        if others or _vocabulary(teacher_head) != _vocabulary(head):
            per_token = ensemble_divergence(own, head, self.states, counts, beta)
        else:
            per_token = divergence_per_token(own, states, head, teacher_head, counts, beta)
        return self._by_row(per_token, mask)

    def drift(self, student: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return how far the student's hidden states are from its own as a teacher, for each row of the batch: squared
        distance divided by squared length, summed over the tokens.

        Hidden states show a change before a confident prediction does: its divergence stays near zero until the
        prediction tips over (feature distillation: FitNets, arXiv 1412.6550; applying it only to self-replay is ours).

        Args:
            student (`torch.Tensor` of shape `(batch, length, hidden)`):
                The student's hidden states.
            mask (`torch.Tensor` of shape `(batch, length)`):
                1 where a token counts.
        """
        [(states, _)] = self.states
        counts = mask[self.rows].bool()
        mine, theirs = student[self.rows][counts].float(), states[counts].float()
        distance = (mine - theirs).square().sum(-1) / theirs.square().sum(-1)
        return self._by_row(distance.new_zeros(counts.shape).masked_scatter(counts, distance), mask)

    def _by_row(self, per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sums = per_token.sum(1) * float(self.is_present)
        return sums.new_zeros(mask.shape[0]).index_add(0, self.rows, sums)


def prepare_teachers(
    models: str | PreTrainedModel | Sequence[str | PreTrainedModel] | None,
    accelerator: Accelerator,
    init_kwargs: dict[str, Any] | None = None,
) -> list[Teacher]:
    """Freeze teachers and move them to the student's device; under DeepSpeed ZeRO-3 their weights are sharded too.
    Names are loaded with `init_kwargs` as TRL loads models."""
    models = [] if models is None else [models] if isinstance(models, str | nn.Module) else list(models)
    if init_kwargs and not any(isinstance(model, str) for model in models):
        raise ValueError(
            "teacher_model_init_kwargs are for a teacher_model given by name, but it is loaded already. Leave them out."
        )
    teachers = []
    for given in models:
        if isinstance(given, str):  # each process places its own copy, so no device map
            model = create_model_from_path(given, **{"device_map": None, **(init_kwargs or {})})
        else:
            model = given
        withdraw(model)
        model.requires_grad_(False).eval().to(accelerator.device)
        is_deepspeed = getattr(accelerator.state, "deepspeed_plugin", None) is not None
        teachers.append(Teacher(model, prepare_deepspeed(model, accelerator) if is_deepspeed else model))
    return teachers


def assign_teachers(
    student: PreTrainedModel, itself: Teacher, others: list[Teacher]
) -> list[tuple[list[str], list[Teacher], bool]]:
    """Assign a teacher to each part of the dataset.

    Separate teachers, if any, teach the parts that are learned. Otherwise, and for replay of earlier nights, the
    student as it was before this night teaches. The pretrained model, which the student contains, teaches the general
    samples, so that the skill lost in one night is not handed down to the next (ours). A student without a memory
    cannot teach itself: separate teachers teach it everything.

    Args:
        student (`PreTrainedModel`):
            The model being trained.
        itself (`Teacher`):
            The student as a teacher.
        others (`list[Teacher]`):
            Separate teachers.

    Returns:
        `list[tuple[list[str], list[Teacher], bool]]`: for each group of parts their names, their teachers, and whether
        the teacher is the pretrained model.
    """
    memory = Memory.of(student)
    if memory is None or memory.learning is None:
        return [([*PARTS], others, False)]
    with memory.as_teacher():
        is_grown = not set(memory.in_view) <= set(memory.in_base)
    groups: dict[tuple[bool, bool], list[str]] = {}
    for name in PARTS:
        groups.setdefault((bool(others) and name in LEARNED, is_grown and name == "general"), []).append(name)
    return [(parts, others if are_others else [itself], is_base) for (are_others, is_base), parts in groups.items()]


def find_rows(part: torch.Tensor, names: list[str]) -> tuple[torch.Tensor, bool]:
    """Find the rows of some parts in a batch.

    Args:
        part (`torch.Tensor` of shape `(batch,)`):
            Index into `PARTS`.
        names (`list[str]`):
            The parts.

    Returns:
        `tuple[torch.Tensor, bool]`: the rows, of shape `(rows,)`, and whether there are any. If not, the first row of
        the batch stands in, since all processes must make the same number of forward passes.
    """
    rows = torch.isin(part, part.new_tensor([PARTS.index(name) for name in names])).nonzero()[:, 0]
    return (rows, True) if len(rows) else (part.new_zeros(1), False)


@contextmanager
def as_teacher(student: PreTrainedModel) -> Iterator[None]:
    """Turn the student into its own teacher: without the learning expert, and without dropout."""
    memory, was_training = Memory.of(student), student.training
    student.eval()
    try:
        with nullcontext() if memory is None else memory.as_teacher():
            yield
    finally:
        student.train(was_training)


def as_base(student: PreTrainedModel) -> AbstractContextManager[None]:
    """Turn a student with a memory into the pretrained model it contains."""
    memory = Memory.of(student)
    assert memory is not None, "only a student with a memory contains the pretrained model"
    return memory.as_base()


def _vocabulary(head: Head) -> int:
    return int(getattr(head.weight, "ds_shape", head.weight.shape)[0])
