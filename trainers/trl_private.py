"""What the trainers use of TRL that is not part of its public interface. A new release of TRL is tried here first.

The rest of what they rely on are methods of `GRPOTrainer` that they override or extend, listed in `METHODS`, and the
attributes that `sleep_trl.rollout.in_trl` sets.
"""

from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.models import prepare_deepspeed, unwrap_model_for_generation
from trl.models.utils import _ForwardRedirection as ForwardRedirection
from trl.trainer.utils import create_model_from_path, get_config_model_id, maybe_gather_lm_head_ctx, pad

__all__ = [
    "LOGGER",
    "METHODS",
    "ChunkedDivergenceFunction",
    "ChunkedLogProbFunction",
    "ForwardRedirection",
    "create_model_from_path",
    "get_config_model_id",
    "maybe_gather_lm_head_ctx",
    "pad",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
]

LOGGER = "trl.trainer.grpo_trainer"
"""Logs a whole row when every reward abstains on it."""

METHODS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate_and_score_completions": ("inputs",),
    "_generate_single_turn": ("prompt_ids",),
    "_get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
    ),
    "_tokenize_prompts": ("prompts",),
}
"""Methods of TRL's own that our trainers override, with the first parameters that they count on."""
