"""A YAML file with arguments of TRL's `GRPOConfig`, as it is, in `seeding.extra`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .sections import SeedingConfig

logger = logging.getLogger(__name__)

OPTIONS = {
    "output_dir": "output_dir",
    "seed": "seed",
    "chat_template_kwargs": "chat_template_kwargs",
    "max_steps": "seeding.steps",
    "num_train_epochs": "seeding.passes",
    "per_device_train_batch_size": "seeding.per_device_batch_size",
    **{name: f"seeding.{name}" for name in SeedingConfig.model_fields if name != "extra"},
}
"""Arguments that a run has an option for: they are taken as that option, unless it is given."""

DECIDED = {
    "gradient_accumulation_steps": "seeding.prompts_per_step",
    "generation_batch_size": "seeding.prompts_per_step",
    "steps_per_generation": "seeding.prompts_per_step",
    "reward_weights": "rewards",
    "bf16": "dtype",
    "fp16": "dtype",
    "shuffle_dataset": "seed",
    "resume_from_checkpoint": "resume",
}
"""Arguments that an option of another meaning decides. They have no effect."""


def is_grpo_file(extra: str) -> bool:
    """Whether a value of `seeding.extra` names a YAML file."""
    return extra.lower().endswith((".yaml", ".yml"))


def as_options(arguments: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the options of a run that arguments of `GRPOConfig` stand for, nested as in a YAML file.

    Args:
        arguments (`Mapping[str, Any]`):
            The arguments, by their names in TRL.
        place (`str`):
            The file in which they stand, for the log.

    Returns:
        `dict`: the options; what no option stands for is in `seeding.extra`, where it is checked as if it had been
        given there.
    """
    given = {name: value for name, value in arguments.items() if value is not None or name not in OPTIONS}
    options: dict[str, Any] = {"rollout": {"engine": "vllm"}} if given.pop("use_vllm", False) else {}
    if (given.get("max_steps") or 0) > 0:
        given.pop("num_train_epochs", None)
    else:
        given.pop("max_steps", None)  # -1, TRL's default
    seeding = options["seeding"] = dict[str, Any]()
    for name in [name for name in given if name in OPTIONS]:
        section, _, option = OPTIONS[name].rpartition(".")
        (seeding if section else options)[option] = given.pop(name)
    if unused := [name for name, value in given.items() if name in DECIDED and value not in (None, False)]:
        decide = dict.fromkeys(DECIDED[name] for name in unused)
        logger.warning("%s: %s has no effect in a night; %s decides.", place, ", ".join(unused), ", ".join(decide))
    seeding["extra"] = {name: value for name, value in given.items() if name not in DECIDED}
    return options


def beside(extra: str, folder: Path | None) -> Path:
    """Return the file that `seeding.extra` names: next to the configuration in which it stands, if it is there."""
    path = Path(extra).expanduser()
    return folder / path if folder is not None and (folder / path).exists() else path
