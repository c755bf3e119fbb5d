"""The parts of the data set within a batch: what a row weighs, and which references have to be read."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from sleep_trl.data.parts import LEARNED, PARTS

Tensors = dict[str, torch.Tensor]


def count_copies(rows: list[dict[str, Any]]) -> list[int]:
    """Count how often each row comes in a run of equal rows: at its first place the length of the run, then 0.

    A prompt comes once for each of its rollouts, its reference needs to be read but once.
    """
    copies = [0] * len(rows)
    first = 0
    for i, row in enumerate(rows):
        first = first if row == rows[first] else i
        copies[first] += 1
    return copies


def weigh_rows(
    part: torch.Tensor, copies: torch.Tensor, mask: torch.Tensor, replay_weight: float, accelerator: Accelerator
) -> torch.Tensor:
    """
    Weigh the tokens of each row so that the weighted sum over the whole batch, all processes together, is the mean per
    token, those of self-replay times `replay_weight`.

    Args:
        part (`torch.Tensor` of shape `(batch,)`):
            Index into `PARTS`.
        copies (`torch.Tensor` of shape `(batch,)`):
            How many rows each row stands for.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        replay_weight (`float`):
            Weight of self-replay, the parts `"general"` and `"earlier"`.
        accelerator (`Accelerator`):
            Sums over the processes.

    Returns:
        `torch.Tensor` of shape `(batch,)`: what a token of the row counts.
    """
    tokens = accelerator.reduce((copies * mask.sum(1)).sum().float())
    return copies * torch.where(is_replay(part), replay_weight, 1.0) / tokens.clamp(min=1)


def is_replay(part: torch.Tensor) -> torch.Tensor:
    """Tell which rows are self-replay and not learnt from. Shape of `part`."""
    return ~torch.isin(part, part.new_tensor([PARTS.index(name) for name in LEARNED]))


def spread_references(inputs: Tensors, passes: int) -> list[Tensors]:
    """
    Divide the references of a batch into as many smaller batches, by length, each padded no further than it needs.

    Rows of weight 0 are left out. No batch is ever empty, so that all processes make the same number of forward passes:
    where there are too few references, one of weight 0 is read instead.

    Args:
        inputs (`dict` of `torch.Tensor`):
            The batch: ids and masks of `prompt`, `teacher_prompt` and `reference`, `part` and `reference_weight`.
        passes (`int`):
            Number of batches.

    Returns:
        `list[dict]`: batches with the same keys.
    """
    weight = inputs["reference_weight"]
    lengths = inputs["teacher_prompt_mask"].sum(1) + inputs["reference_mask"].sum(1)
    by_length = lengths.argsort(stable=True)
    chunks = by_length[weight[by_length] > 0].tensor_split(passes)
    return [
        _take(inputs, rows, weight[rows]) if len(rows) else _take(inputs, by_length[:1], weight.new_zeros(1))
        for rows in chunks
    ]


def _take(inputs: Tensors, rows: torch.Tensor, weight: torch.Tensor) -> Tensors:
    batch = {"part": inputs["part"][rows], "reference_weight": weight}
    for name in ("prompt", "teacher_prompt", "reference"):
        ids, mask = inputs[f"{name}_ids"][rows], inputs[f"{name}_mask"][rows]
        width = max(1, int(mask.sum(1).max()))
        kept = slice(0, width) if name == "reference" else slice(-width, None)  # prompts are padded on the left
        batch |= {f"{name}_ids": ids[:, kept], f"{name}_mask": mask[:, kept]}
    return batch
