"""Which arguments of TRL's `GRPOConfig` may stand in `seeding.extra`."""

from __future__ import annotations

from dataclasses import fields

from ..config import SeedingConfig
from .inputs import RunInputs

NOT_WITH_EXPERTS = {
    "use_vllm": "would sample from a vLLM that does not know the expert",
    "beta": "would hold the model to a reference without the experts of earlier nights; what holds it is the "
    "divergence to the teacher",
    "load_best_model_at_end": "needs an evaluation during training, which a night does not have",
}
SET_BY_THE_RUN = {
    "output_dir": "output_dir",
    "seed": "seed",
    "max_steps": "seeding.steps",
    "num_train_epochs": "seeding.steps",
    "per_device_train_batch_size": "seeding.per_device_batch_size",
    "gradient_accumulation_steps": "seeding.prompts_per_step",
    "generation_batch_size": "seeding.prompts_per_step",
    "steps_per_generation": "seeding.prompts_per_step",
    "reward_weights": "rewards",
    "expert_width": "memory.width",
    "chat_template_kwargs": "chat_template_kwargs",
    "bf16": "dtype",
    "fp16": "dtype",
    "shuffle_dataset": "seed",
    "resume_from_checkpoint": "resume",
}
"""Arguments that may not stand there, and the option to use in their place."""


def check_grpo_arguments(inputs: RunInputs) -> None:
    """Raise if `seeding.extra` holds an argument that `GRPOConfig` does not have or that the run sets itself."""
    if not (extra := inputs.config.seeding.extra):
        return
    from trl import GRPOConfig  # the slowest import of all

    known = {field.name for field in fields(GRPOConfig)}
    for key in extra:
        own = f"seeding.{key}" if key in SeedingConfig.model_fields else SET_BY_THE_RUN.get(key)
        if own:
            raise ValueError(f"seeding.extra: {key!r} is set by the run itself. Take it out and use --{own}.")
        if key in NOT_WITH_EXPERTS and extra[key]:
            raise ValueError(f"seeding.extra: {key!r} {NOT_WITH_EXPERTS[key]}. Take it out.")
        if key not in known:
            raise ValueError(
                f"seeding.extra: {key!r} is not an argument of TRL's GRPOConfig. Correct the name or take it out."
            )
