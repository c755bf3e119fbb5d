"""What a model's name says, without looking for the model: a folder, a name on the Hub, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

GGUF = ".gguf"
MAIN = "main"
"""The revision of a model on the Hub that is used unless another is named."""


def is_gguf(name: str) -> bool:
    """Return whether a model's name is that of a GGUF file."""
    return name.casefold().endswith(GGUF)


def hub_repository(name: str) -> str | None:
    """Return the repository on the Hugging Face Hub that a name stands for, or `None` if it is a path.

    Args:
        name (`str`):
            `ORGANIZATION/REPOSITORY` (or a former name without an organization), or
            `ORGANIZATION/REPOSITORY/NAME.gguf`. What exists on this machine is a path.
    """
    if name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    repository = name.rpartition("/")[0] if is_gguf(name) else name
    if is_gguf(name) and (repository.count("/") != 1 or Path(repository).is_dir()):
        return None
    return repository if repository.count("/") <= 1 else None


def check_exists(name: str, option: str = "model") -> None:
    """Raise if a name can only be a path, and nothing is there.

    Args:
        name (`str`):
            The name of a model.
        option (`str`, *optional*, defaults to `"model"`):
            The option that gives it, for the message.

    Raises:
        `ValueError`: if it is missing.
    """
    if not Path(name).exists() and hub_repository(name) is None:
        what = "file" if is_gguf(name) else "folder"
        raise ValueError(f"{option}: the {what} {name} does not exist. Check the path.")
