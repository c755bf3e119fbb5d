"""A new configuration file: the settings that are changed most often, with help and with defaults as comments."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from .command_line import options
from .option_help import summary

OFTEN_CHANGED = (
    "model",
    "memories",
    "output_dir",
    "continue_from",
    "seed",
    "dtype",
    "max_context",
    "strict",
    "memory.width",
    "memory.max_experts",
    "dataset.samples_per_sentence",
    "dataset.general_samples",
    "dataset.general_texts",
    "seeding.passes",
    "seeding.steps",
    "seeding.learning_rate",
    "seeding.per_device_batch_size",
    "seeding.gradient_checkpointing",
    "seeding.extra",
    "dream.rounds",
    "rewards",
    "rollout.engine",
    "evaluation.skill",
    "evaluation.metric",
    "retention.max_forgetting",
    "retention.max_skill_loss",
)
"""Settings in a new file, in its order; those of a section stand together."""

HEADER = """\
# A night of sleep-trl. Settings that are commented out show their defaults; uncomment a setting of a section together
# with the section's name. `sleep-trl night --help` lists every option; the command line overrides this file.
"""


def new_file(given: Mapping[str, Any]) -> str:
    """Return the text of a configuration file.

    Args:
        given (`Mapping[str, Any]`):
            Values of top-level settings among [`OFTEN_CHANGED`]; the others are commented out.
    """
    fields, blocks = dict(options()), [HEADER]
    for section, names in groupby(OFTEN_CHANGED, key=lambda name: name.rpartition(".")[0]):
        if section:
            lines = [f"  # {summary(fields[name])}\n#  {_setting(name, _default(fields[name]))}\n" for name in names]
            blocks.append(f"#{section}:\n" + "".join(lines))
            continue
        for name in names:
            setting = _setting(name, given[name]) if name in given else f"#{_setting(name, _default(fields[name]))}"
            blocks.append(f"# {summary(fields[name])}\n{setting}\n")
    return "\n".join(blocks)


def _setting(name: str, value: Any) -> str:
    """Return a setting on one line."""
    last = name.rpartition(".")[2]
    if isinstance(value, list | dict):
        return f"{last}: {yaml.safe_dump(value, default_flow_style=True, width=10_000).rstrip()}"
    return yaml.safe_dump({last: value}, default_flow_style=False, width=10_000, allow_unicode=True).rstrip()


def _default(field: FieldInfo) -> Any:
    """Return a default as YAML writes it."""
    if isinstance(field.default, tuple):
        return [getattr(item, "name", item) for item in field.default]
    return str(field.default) if isinstance(field.default, Path) else field.default
