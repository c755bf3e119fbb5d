"""The divergence of Knowledge Seeding and the policy's log-probabilities, as functions of tensors."""

from __future__ import annotations

import sys

import torch

from sleep_trl.models import head as heads
from sleep_trl.models.head import Head

from ..trl_private import ChunkedDivergenceFunction, ChunkedLogProbFunction, maybe_gather_lm_head_ctx

TILE_COLUMNS = 32768  # of the vocabulary at a time, as in TRL


def positions_per_tile(weight: torch.Tensor) -> int:
    """Return the number of positions at which a head with this weight is applied at a time.

    A sharded head is gathered once per tile by all processes together, and their numbers of positions differ, so it is
    applied in one tile.
    """
    if hasattr(weight, "ds_id"):
        return sys.maxsize
    return heads.positions_per_tile(weight.device.type == "cpu", weight.dtype == torch.float32)


def log_probs_per_token(
    hidden: torch.Tensor, head: Head, ids: torch.Tensor, mask: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probability of each token, and the entropy of the distribution it was sampled from, computed in tiles and only
    at positions where the mask is 1.

    Args:
        hidden (`torch.Tensor` of shape `(batch, length, hidden)`):
            Last hidden states from which each token of the completion is predicted.
        head (`Head`):
            The LM head.
        ids (`torch.Tensor` of shape `(batch, length)`):
            The tokens.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        temperature (`float`):
            Divisor of the logits.

    Returns:
        two `torch.Tensor` of shape `(batch, length)`: log-probabilities and entropies in nats, 0 where the mask is 0.

    Source: what [`~trl.GRPOTrainer`] computes; the tiled kernel is TRL's.
    """
    counts = mask.bool()
    rows = positions_per_tile(head.weight)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        tiles = [
            ChunkedLogProbFunction.apply(
                states,
                head.weight,
                head.bias,
                targets,
                temperature,
                TILE_COLUMNS,
                head.softcap,
                head.scale,
                ("log_probs", "entropy"),
            )[:2]
            for states, targets in zip(hidden[counts].split(rows), ids[counts].split(rows), strict=True)
        ]
    log_probs, entropies = (torch.cat(values) for values in zip(*tiles, strict=True))
    return (
        log_probs.new_zeros(mask.shape).masked_scatter(counts, log_probs),
        entropies.new_zeros(mask.shape).masked_scatter(counts, entropies),
    )


def divergence_per_token(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    student_head: Head,
    teacher_head: Head,
    mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """
    Divergence between the student's and the teacher's next-token distribution, at each position. Full-vocabulary logits
    are never held: both heads are applied in tiles, and only at positions where the mask is 1.

    Args:
        student_hidden (`torch.Tensor` of shape `(batch, length, hidden)`):
            Last hidden states from which each token of the completion is predicted.
        teacher_hidden (`torch.Tensor` of shape `(batch, length, teacher_hidden)`):
            The same of the teacher; no gradient flows to it.
        student_head (`Head`):
            The student's LM head.
        teacher_head (`Head`):
            The teacher's LM head, of the same vocabulary.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        beta (`float`):
            Generalized Jensen-Shannon coefficient in [0, 1]; 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).

    Returns:
        `torch.Tensor` of shape `(batch, length)`: the divergence in nats, 0 where the mask is 0.

    Source: GKD (arXiv 2306.13649), Eq. 1; the tiled kernel is TRL's.
    """
    counts = mask.bool()
    rows = positions_per_tile(student_head.weight)
    pairs = zip(student_hidden[counts].split(rows), teacher_hidden[counts].split(rows), strict=True)
    tiles = [
        ChunkedDivergenceFunction.apply(
            student,
            student_head.weight,
            student_head.bias,
            teacher,
            teacher_head.weight,
            teacher_head.bias,
            beta,
            1.0,
            student_head.scale,
            student_head.softcap,
            teacher_head.scale,
            teacher_head.softcap,
        )[0]
        for student, teacher in pairs
    ]
    divergence = torch.cat(tiles)
    return divergence.new_zeros(mask.shape).masked_scatter(counts, divergence)
