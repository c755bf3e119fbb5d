"""Paths in options: `~`, and names of files next to the configuration file in which they stand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .memory_source import WAKE

FOLDERS = ("model", "teacher_model", "memories", "nights", "continue_from")
FILES = (
    "dataset.templates",
    "dataset.general_texts",
    "dataset.plain_texts",
    "dream.template",
    "dream.rewards",
    "dream.rewards.name",
    "evaluation.skill",
    "evaluation.perplexity",
    "rewards",
    "rewards.name",
)
"""Options that may name a file to read. A word without a dot or a slash is no file: `statement`, `imitation`."""

PARAMETERS = ("rewards.params.", "dream.rewards.params.")
"""Beginnings of parameters of rewards, which may name files as well, such as the model of a judge."""

FUNCTION = re.compile(r"(?<=\.py):\w+$")  # of a reward, after the file in which it is


def with_paths(value: Any, folder: Path | None = None, name: str = "") -> Any:
    """Return options with their paths resolved.

    Args:
        value (`Any`):
            Options, nested as in a YAML file.
        folder (`Path`, *optional*):
            Folder of the file in which they stand. A relative path of something to read that is there is meant;
            otherwise it is relative to the working directory.
        name (`str`, *optional*):
            The dotted name of the option.
    """
    if isinstance(value, Mapping):
        return {key: with_paths(inner, folder, f"{name}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_paths(inner, folder, name) for inner in value]
    if isinstance(value, Path):
        return type(value)(os.path.expanduser(value))
    if not isinstance(value, str):
        return value
    prefix = WAKE if value.startswith(WAKE) else ""
    path = value.removeprefix(prefix)
    path = os.path.expanduser(path) if path.startswith("~") else path
    is_file = name in FILES or name.startswith(PARAMETERS)
    may_be_there = name in FOLDERS or (is_file and re.search(r"[./]", path))
    if folder is not None and may_be_there and path != "auto" and (folder / FUNCTION.sub("", path)).exists():
        path = str(folder / path)
    return prefix + path
