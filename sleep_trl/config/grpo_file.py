"""A YAML file with arguments of TRL's `GRPOConfig`, as it is, in `seeding.extra`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
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

SCRIPT = {
    "model_name_or_path": "model",
    "model_revision": "model_revision",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "dataset_name": "memories",
    "dataset_config": "dataset_config",
    "dataset_train_split": "dataset_train_split",
    **dict.fromkeys(("dataset_test_split", "dataset_streaming"), "memories"),
    **dict.fromkeys(("reward_funcs", "reward_model_name_or_path"), "rewards"),
    **dict.fromkeys(("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"), "memory.width"),
    **dict.fromkeys(("lora_target_parameters", "lora_modules_to_save", "lora_task_type"), "memory.width"),
    **dict.fromkeys(("use_rslora", "use_dora"), "memory.width"),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"), "dtype"),
    "bnb_4bit_quant_storage": "dtype",
    "max_prompt_length": "max_context",
}
"""Arguments of TRL's scripts, and of older versions of `GRPOConfig`, and the options in their place."""

DECIDED = {
    **SCRIPT,
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


PUSHES = ("push_to_hub", "hub_token")
"""Arguments that are left out, since they would push experts without their base, or be written into the run's files."""


def is_grpo_file(extra: str) -> bool:
    """Whether a value of `seeding.extra` names a YAML file."""
    return extra.lower().endswith((".yaml", ".yml"))


def check_is_no_grpo_file(options: Mapping[str, Any], place: str, own: Collection[str]) -> None:
    """Raise if a file of options holds arguments of TRL, at least three or one of a script, and no options of a run.

    Args:
        options (`Mapping[str, Any]`):
            What the file holds.
        place (`str`):
            The file.
        own (`Collection[str]`):
            The options of a run.

    Raises:
        `ValueError`: with the option that takes the file.
    """
    of_trl = [name for name in options if name in OPTIONS or name in DECIDED]
    foreign = [name for name in of_trl if name not in own]
    if any(name in own for name in options if name not in of_trl):
        return
    if len(foreign) > 2 or not SCRIPT.keys().isdisjoint(foreign):
        shown = ", ".join(foreign[:4]) + (", …" if len(foreign) > 4 else "")
        model = options.get("model_name_or_path") or "MODEL"
        raise ValueError(
            f"{place} holds arguments of TRL ({shown}), not options of a night. Give it with --seeding.extra in place "
            f"of --config: --seeding.extra {place} --model {model} --memories MEMORIES."
        )


def as_options(arguments: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the options of a run that arguments of `GRPOConfig` stand for, nested as in a YAML file.

    Args:
        arguments (`Mapping[str, Any]`):
            The arguments, by their names in TRL.
        place (`str`):
            The file in which they stand, for the log.

    Returns:
        `dict`: the options; what no option stands for is in `seeding.extra`, where it is checked as if it had been
        given there, but for `DECIDED` and `PUSHES`.
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
    if any(given.get(name) for name in PUSHES):
        logger.warning("%s: a night pushes nothing to the Hub; `sleep-trl export --push_to_hub` does.", place)
    if unused := [name for name, value in given.items() if name in DECIDED and value not in (None, False)]:
        decide = list(dict.fromkeys(DECIDED[name] for name in unused))
        have = "has" if len(unused) == 1 else "have"
        ending = "s" if len(decide) == 1 else ""
        message = "%s: %s %s no effect in a night; %s decide%s."
        logger.warning(message, place, ", ".join(unused), have, ", ".join(decide), ending)
    seeding["extra"] = {name: value for name, value in given.items() if name not in (*DECIDED, *PUSHES)}
    return options


def beside(extra: str, folder: Path | None) -> Path:
    """Return the file that `seeding.extra` names: next to the configuration in which it stands, if it is there."""
    path = Path(extra).expanduser()
    return folder / path if folder is not None and (folder / path).exists() else path
