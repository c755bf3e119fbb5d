"""What the teachers say of the texts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from sleep_trl.models.head import Head

from .parts import Tensors, is_replay
from .replay_states import ReplayStates
from .shared_prompts import SharedPrompts
from .teachers import Teacher, TeacherOutput, as_base, as_teacher, assign_teachers, find_rows

Text = tuple[Tensors, torch.Tensor, torch.Tensor]  # a batch, and ids and mask of a continuation of each row


class Taught(SharedPrompts):
    """A [`~trl.GRPOTrainer`] with `teachers`, separate frozen models; without any, the student without its learning
    expert teaches. What they say of self-replay is kept while they stay the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.teachers: list[Teacher] = []
        self._replay_states = ReplayStates()
        super().__init__(*args, **kwargs)

    def release(self) -> None:
        super().release()
        for teacher in self.teachers:
            teacher.release()
        self.teachers, self._replay_states = [], ReplayStates()

    def _teacher_outputs(self, references: list[Text], rollouts: Sequence[Text] = ()) -> list[list[TeacherOutput]]:
        """Run the teachers on texts behind the teacher's prompts, each on the rows that are assigned to it.

        Args:
            references (`list[tuple[dict, torch.Tensor, torch.Tensor]]`):
                Batches with their teacher prompts, and ids and mask of the reference of each row.
            rollouts (`Sequence[tuple[dict, torch.Tensor, torch.Tensor]]`, *optional*):
                The same of rollouts.

        Returns:
            `list[list[TeacherOutput]]`: for each batch, the outputs of its groups of rows.
        """
        student = self.accelerator.unwrap_model(self.model)
        texts = [*references, *rollouts]

        def run(parts: list[str], teachers: list[Teacher], is_base: bool) -> list[TeacherOutput]:
            found = [find_rows(batch["part"], parts) for batch, _, _ in texts]
            chosen = [
                ((batch["teacher_prompt_ids"][rows], batch["teacher_prompt_mask"][rows]), (ids[rows], mask[rows]))
                for (rows, _), (batch, ids, mask) in zip(found, texts, strict=True)
            ]
            comes_back = [self._keeps_replay] * len(references) + [False] * len(rollouts)
            replayed = [
                is_replay(batch["part"][rows]).nonzero()[:, 0].tolist() if comes else []
                for (rows, _), (batch, _, _), comes in zip(found, texts, comes_back, strict=True)
            ]
            with as_base(student) if is_base else nullcontext():
                read = [
                    self._replay_states.read(teacher, is_base, chosen, replayed, partial(self._read_behind, teacher))
                    for teacher in teachers
                ]
            heads = [Head.of(teacher.model) for teacher in teachers]
            is_student = teachers is not self.teachers
            return [
                TeacherOutput(rows, list(zip(states, heads, strict=True)), is_present, is_student)
                for (rows, is_present), states in zip(found, zip(*read, strict=True), strict=True)
            ]

        with torch.no_grad(), self.accelerator.autocast(), as_teacher(student):
            assignments = assign_teachers(student, Teacher(student, self.model_wrapped), self.teachers)
            groups = [run(*assignment) for assignment in assignments]
        return [list(outputs) for outputs in zip(*groups, strict=True)]

    @property
    def _keeps_replay(self) -> bool:
        """Whether teachers say the same of a text in every step, and a process can read it by itself."""
        return self._is_whole and not self.args.expert_dropout
