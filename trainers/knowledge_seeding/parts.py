"""The parts of the dataset within a batch: the weight of each row, and which references have to be read."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from sleep_trl.data.parts import LEARNED, PARTS

Tensors = dict[str, torch.Tensor]


def count_copies(rows: list[dict[str, Any]]) -> list[int]:
    """Return the length of each run of equal rows at its first row, and 0 at the others.

    A prompt is repeated for each of its rollouts, but its reference needs to be read only once.
    """
    copies = [0] * len(rows)
    first = 0
    for i, row in enumerate(rows):
        first = first if row == rows[first] else i
        copies[first] += 1
    return copies


def weigh_rows(
    part: torch.Tensor,
    copies: torch.Tensor,
    mask: torch.Tensor,
    replay_weight: float,
    accelerator: Accelerator,
    per_row: bool = False,
) -> torch.Tensor:
    """
    Weight the tokens of each row so that the weighted sum over the batch of all processes is the mean per token, with
    those of self-replay multiplied by `replay_weight`.

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
        per_row (`bool`, *optional*, defaults to `False`):
            Whether it is the mean over rows of the mean per token, so that long rows do not outweigh short ones.

    Returns:
        `torch.Tensor` of shape `(batch,)`: the weight of a token in each row.
    """
    tokens = mask.sum(1)
    total = accelerator.reduce((copies if per_row else copies * tokens).sum().float())
    weight = copies * torch.where(is_replay(part), replay_weight, 1.0) / total.clamp(min=1)
    return weight / tokens.clamp(min=1) if per_row else weight


def is_replay(part: torch.Tensor) -> torch.Tensor:
    """Return a mask of the rows that are self-replay. Same shape as `part`; rows of part -1 are of none."""
    return (part >= 0) & ~torch.isin(part, part.new_tensor([PARTS.index(name) for name in LEARNED]))


def spread_references(inputs: Tensors, passes: int) -> list[Tensors]:
    """
    Divide the references of a batch into smaller batches by length, each padded only as far as it needs.

    Rows of weight 0 are left out. No batch is empty, so that all processes make the same number of forward passes:
    where there are too few references, one with weight 0 takes their place.

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


def written_mask(inputs: Tensors) -> torch.Tensor:
    """Return the mask of the completion tokens that the student wrote, without those that tools wrote."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
