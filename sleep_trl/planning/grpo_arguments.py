"""Which arguments of TRL's `GRPOConfig` may stand in `seeding.extra`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..config.grpo_file import DECIDED, OPTIONS
from .inputs import RunInputs

logger = logging.getLogger(__name__)

NOT_WITH_EXPERTS = {
    "use_vllm": "would sample from a vLLM that does not know the expert",
    "beta": "would hold the model to a reference without the experts of earlier nights; what holds it is the "
    "divergence to the teacher",
    "sync_ref_model": "needs a reference model, which a night does not have",
    "load_best_model_at_end": "needs an evaluation during training, which a night does not have",
    "eval_strategy": "needs an evaluation set, which a night does not have",
    "eval_on_start": "needs an evaluation set, which a night does not have",
    **dict.fromkeys(("fsdp", "fsdp_config"), "shards the model, and a night has no FSDP; launch with zero3.yaml"),
    "num_iterations": "would repeat batches within the night's steps, and later memories would not be trained on; "
    "seeding.passes trains more often",
    "ignore_data_skip": "would repeat rows after a resume, and later memories would not be trained on",
    "remove_unused_columns": "would remove the columns that a night trains on",
    "cast_lm_head_to_fp32": "would change the dtype of the model's own weights, so that experts could not be folded",
    "push_to_hub": "would push experts without their base; `sleep-trl export --push_to_hub` pushes the grown model",
    "hub_token": "would be written into the run's files as it is; set HF_TOKEN, or log in with `hf auth login`",
    "deepspeed": "would begin DeepSpeed after the launch; give accelerate launch a configuration such as zero3.yaml",
}
"""Arguments that are refused, unless they are off or have TRL's default."""

SET_BY_THE_RUN = OPTIONS | DECIDED | {"expert_width": "memory.width"}
"""Arguments that may not stand there, and the option to use in their place."""

WITHOUT_EFFECT = {
    "there is no evaluation during training": (
        *("eval_steps", "eval_delay", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("per_device_eval_batch_size", "num_generations_eval", "prediction_loss_only", "include_for_metrics"),
        *("batch_eval_metrics", "metric_for_best_model", "greater_is_better", "bf16_full_eval", "fp16_full_eval"),
    ),
    "the run loads the model itself": ("model_init_kwargs", "trust_remote_code"),
    "there is no reference model": ("ref_model_mixup_alpha", "ref_model_sync_steps", "use_bias_correction_kl"),
    "rollout.engine starts vLLM, not TRL": (
        *("vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
        *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
    ),
    "a night has no tools": ("max_tool_calling_iterations",),
    "a night does not push to the Hub": (
        "hub_model_id",
        "hub_private_repo",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ),
    "scripts read it, not trainers": ("do_train", "do_eval", "do_predict", "local_rank"),
}
"""Arguments that a `GRPOConfig` written for TRL may hold and that change nothing in a night, by the reason."""


def check_grpo_arguments(inputs: RunInputs) -> None:
    """Raise if `seeding.extra` holds arguments that `GRPOConfig` does not have or that the run sets itself."""
    if not (extra := inputs.config.seeding.extra):
        return
    from trl import GRPOConfig  # the slowest import of all

    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    if problems := [problem for key in extra if (problem := _problem(key, extra[key], defaults))]:
        raise ValueError("\n".join(f"seeding.extra: {problem}" for problem in problems))
    for reason, names in WITHOUT_EFFECT.items():
        if given := [name for name in names if name in extra]:
            have = "has" if len(given) == 1 else "have"
            logger.warning(f"seeding.extra: {', '.join(given)} {have} no effect in a night: {reason}.")


def _problem(key: str, value: Any, defaults: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an argument, if anything."""
    if own := SET_BY_THE_RUN.get(key):
        return f"{key!r} is set by the run itself. Take it out and use --{own}."
    if key in NOT_WITH_EXPERTS and not (value in (None, "no", "") or value is False or value == defaults.get(key)):
        return f"{key!r} {NOT_WITH_EXPERTS[key]}. Take it out."
    if key not in defaults:
        return f"{key!r} is not an argument of TRL's GRPOConfig. Correct the name or take it out."
    return None
