"""The divergence from several teachers, or from one whose vocabulary is padded to another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from sleep_trl.models.head import Head

from ..trl_private import maybe_gather_lm_head_ctx
from .loss import positions_per_tile


def ensemble_divergence(
    student_hidden: torch.Tensor,
    student_head: Head,
    teachers: Sequence[tuple[torch.Tensor, Head]],
    mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """
    Divergence between the student's next-token distribution and the mean of its teachers', at each position.

    Tokens beyond the smallest vocabulary are left out, since models of one family pad the same tokenizer's vocabulary
    to different sizes. A tile's logits are recomputed in the backward pass and never kept.

    Args:
        student_hidden (`torch.Tensor` of shape `(batch, length, hidden)`):
            Last hidden states from which each token of the completion is predicted.
        student_head (`Head`):
            The student's LM head.
        teachers (`Sequence[tuple[torch.Tensor, Head]]`):
            The same of each teacher, of its own hidden size; no gradient flows to them.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        beta (`float`):
            Generalized Jensen-Shannon coefficient in [0, 1]; 0 is KL(teachers ‖ student), 1 is KL(student ‖ teachers).

    Returns:
        `torch.Tensor` of shape `(batch, length)`: the divergence in nats, 0 where the mask is 0.

    Source: GKD (arXiv 2306.13649), Eq. 1; the mean over teachers is ours.
    """
    counts = mask.bool()
    heads = [head for _, head in teachers]

    def divergence(student: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        with maybe_gather_lm_head_ctx(*(t for head in (student_head, *heads) for t in (head.weight, head.bias))):
            size = min(head.weight.shape[0] for head in (student_head, *heads))
            with torch.no_grad():
                each = [log_probs(hidden, head, size) for hidden, head in zip(states, heads, strict=True)]
                teacher = torch.stack(each).logsumexp(0) - math.log(len(each))
            return jensen_shannon(log_probs(student, student_head, size), teacher, beta)

    rows = positions_per_tile(student_head.weight)
    hidden = [states[counts].split(rows) for states in (student_hidden, *(states for states, _ in teachers))]
    tiles = [checkpoint(divergence, *tile, use_reentrant=False) for tile in zip(*hidden, strict=True)]
    found = torch.cat(tiles)
    return found.new_zeros(mask.shape).masked_scatter(counts, found)


def log_probs(hidden: torch.Tensor, head: Head, size: int) -> torch.Tensor:
    """Return the log-probabilities of the first `size` tokens in float32. Shape `(positions, size)`."""
    return head.logits(hidden, size).log_softmax(-1)


def jensen_shannon(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalized Jensen-Shannon divergence of log-probabilities, summed over the vocabulary."""
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first.exp() * (first - second)).sum(-1)
