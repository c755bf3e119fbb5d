"""Rollouts of a TRL trainer by an engine of ours, with TRL's own correction of the mismatch between engine and trainer.

TRL corrects only rollouts of its own vLLM. The place of that one is taken by an object with the same two methods.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from .engine import Sampling
from .synced import SyncedEngine


def roll_out_with(trainer: Any, engine: SyncedEngine) -> None:
    """Let a [`~trl.GRPOTrainer`] draw its completions from an engine.

    The engine has the weights of the present step before it draws. GRPO's loss, its divergence from a reference model
    included, is weighed by TRL's importance ratio between trainer and engine (`vllm_importance_sampling_correction`, on
    by default), whose mean, extremes and difference of log probabilities TRL logs; `KnowledgeSeedingTrainer` logs the
    share that was clipped. The divergence from a teacher is a mean over whatever text was drawn, and is not weighed.

    Args:
        trainer (`GRPOTrainer`):
            A trainer that was made without `use_vllm`.
        engine (`SyncedEngine`):
            The engine; its weights follow the trainer's model.

    Raises:
        `ValueError`: if the trainer truncates or bends its sampling distribution: the ratio would be wrong.
    """
    args = trainer.args
    plain = {"top_p": (1.0, None), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0, None)}
    if bent := [name for name, values in plain.items() if getattr(args, name) not in values]:
        raise ValueError(
            f"{', '.join(bent)} would cut or bend the distribution from which rollouts are drawn, and the importance "
            f"ratio between engine and trainer would be wrong. Leave them out, or use rollout.engine transformers."
        )
    trainer.vllm_generation = _EngineRollouts(trainer, engine)
    trainer.use_vllm, trainer.vllm_mode = True, "server"
    trainer._last_loaded_step = -1


def share_clipped(ratio: torch.Tensor, mask: torch.Tensor, args: Any) -> torch.Tensor:
    """Return the share of tokens whose importance ratio TRL has cut, which it does not log itself.

    Args:
        ratio (`torch.Tensor` of shape `(batch, length)` or `(batch, 1)`):
            As TRL has left it: at a bound where it was truncated, 0 where it was masked.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        args (`GRPOConfig`):
            Has the bounds, `vllm_importance_sampling_clip_min` and `vllm_importance_sampling_clip_max`.

    Returns:
        `torch.Tensor` of shape `()`, in [0, 1].
    """
    bounds = (0.0, args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max)
    is_cut = torch.stack([ratio == bound for bound in bounds if bound is not None]).any(0)
    return is_cut.expand_as(mask)[mask.bool()].float().mean()


class _EngineRollouts:
    """What TRL asks of its `VLLMGeneration`."""

    def __init__(self, trainer: Any, engine: SyncedEngine) -> None:
        self.trainer, self.engine = trainer, engine

    def sync_weights(self) -> None:
        """Weights are sent when the engine next generates."""

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        """Return `(prompt_ids, completion_ids, logprobs, None)`; each prompt comes once for each of its rollouts."""
        trainer = self.trainer
        drawn = f"{trainer.args.seed}:{trainer.state.global_step}:{trainer.model.training}:{hash(tuple(prompts[0]))}"
        sampling = Sampling(
            trainer.max_completion_length,
            temperature=trainer.temperature,
            seed=random.Random(drawn).getrandbits(31),
            logprobs=True,
        )
        with profiler:
            completions = self.engine.generate_each(prompts, sampling)
        logprobs = [[[value] for value in c.logprobs or ()] for c in completions]
        return prompts, [c.ids for c in completions], logprobs, None
