"""The divergence of Knowledge Seeding, as functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


@dataclass(frozen=True)
class Head:
    """An LM head with what its model does to the logits afterwards: the scale, then Gemma's soft cap."""

    weight: torch.Tensor  # (vocabulary, hidden)
    bias: torch.Tensor | None = None  # (vocabulary,)
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Read the head off a causal language model (Cohere multiplies its logits, Granite divides them)."""
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def divergence_per_token(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    student_head: Head,
    teacher_head: Head,
    mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """
    Divergence of the student's from the teacher's next-token distribution, position by position. Full-vocabulary logits
    are never held: both heads are applied in tiles, and only at positions that count.

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
    divergence, _ = ChunkedDivergenceFunction.apply(
        student_hidden[counts],
        student_head.weight,
        student_head.bias,
        teacher_hidden[counts],
        teacher_head.weight,
        teacher_head.bias,
        beta,
        1.0,
        student_head.scale,
        student_head.softcap,
        teacher_head.scale,
        teacher_head.softcap,
    )
    return divergence.new_zeros(mask.shape).masked_scatter(counts, divergence)


def weighted_mean(per_token: torch.Tensor, weights: torch.Tensor, normalizer: torch.Tensor | float) -> torch.Tensor:
    """
    Sum per-token values, each row times its weight, and divide by a given number of tokens.

    Args:
        per_token (`torch.Tensor` of shape `(batch, length)`):
            Values, 0 at positions that do not count.
        weights (`torch.Tensor` of shape `(batch,)`):
            Weight of each row.
        normalizer (`torch.Tensor` or `float`):
            Number of tokens of the whole optimizer step, so that accumulated micro-batches add up to one mean.
    """
    return (per_token * weights.unsqueeze(1)).sum() / normalizer


def tokens_per_process(
    items: torch.Tensor, processes: int, accumulation: int, steps_per_generation: int
) -> torch.Tensor:
    """
    Turn a token count of the whole generation batch into the normalizer of one micro-batch.

    Gradients are averaged over processes and summed over the accumulation window, and a generation batch may span
    several windows; this is GRPO's rule for its token-normalized losses.
    """
    return items.clamp(min=1.0) / processes * accumulation / steps_per_generation
