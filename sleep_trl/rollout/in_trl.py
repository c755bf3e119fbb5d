"""Rollouts of a TRL trainer by one of our engines, with TRL's correction of the mismatch between engine and trainer.

TRL corrects only rollouts of its own vLLM, so an object with the same two methods takes its place.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from .engine import Sampling
from .synced import SyncedEngine


def roll_out_with(trainer: Any, engine: SyncedEngine) -> None:
    """Let a [`~trl.GRPOTrainer`] generate its completions with an engine.

    The engine always generates with the weights of the current step. GRPO's loss, including its divergence from a
    reference model, is weighted by TRL's importance ratio between trainer and engine
    (`vllm_importance_sampling_correction`, on by default). TRL logs the ratio's mean and extremes and the difference of
    log probabilities; `KnowledgeSeedingTrainer` logs the share that was clipped. The divergence from a teacher is a
    mean over the sampled text and is not weighted.

    Args:
        trainer (`GRPOTrainer`):
            A trainer created without `use_vllm`.
        engine (`SyncedEngine`):
            The engine; its weights follow the trainer's model.

    Raises:
        `ValueError`: if the trainer changes its sampling distribution: the ratio would be wrong.
    """
    if changed := changed_sampling(trainer.args):
        raise ValueError(
            f"{', '.join(changed)} would change the distribution that rollouts are sampled from, so the importance "
            f"ratio between engine and trainer would be wrong. Leave them out, or use rollout.engine transformers."
        )
    trainer.vllm_generation = EngineRollouts(trainer, engine)
    trainer.use_vllm, trainer.vllm_mode = True, "server"
    trainer._last_loaded_step = -1


def changed_sampling(args: Any) -> list[str]:
    """Return the options of a `GRPOConfig` that change the distribution that rollouts are sampled from."""
    plain: dict[str, tuple[Any, ...]] = {
        "top_p": (1.0, None),
        "top_k": (0, None),
        "min_p": (None, 0.0),
        "repetition_penalty": (1.0, None),
        "generation_kwargs": (None, {}),
    }
    return [name for name, values in plain.items() if getattr(args, name) not in values]


def share_clipped(ratio: torch.Tensor, mask: torch.Tensor, args: Any) -> torch.Tensor:
    """Return the share of tokens whose importance ratio TRL has clipped, which it does not log itself.

    Args:
        ratio (`torch.Tensor` of shape `(batch, length)` or `(batch, 1)`):
            TRL's ratio: at a bound where it was clipped, 0 where it was masked.
        mask (`torch.Tensor` of shape `(batch, length)`):
            1 where a token counts.
        args (`GRPOConfig`):
            Holds the bounds, `vllm_importance_sampling_clip_min` and `vllm_importance_sampling_clip_max`.

    Returns:
        `torch.Tensor` of shape `()`, in [0, 1].
    """
    bounds = (0.0, args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max)
    is_clipped = torch.stack([ratio == bound for bound in bounds if bound is not None]).any(0)
    return is_clipped.expand_as(mask)[mask.bool()].float().mean()


class EngineRollouts:
    """The part of `VLLMGeneration` that TRL uses."""

    def __init__(self, trainer: Any, engine: SyncedEngine) -> None:
        self.trainer, self.engine = trainer, engine

    def sync_weights(self) -> None:
        """Weights are sent when the engine next generates."""

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        """Return `(prompt_ids, completion_ids, logprobs, None)`; prompts are repeated for each of their rollouts."""
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
