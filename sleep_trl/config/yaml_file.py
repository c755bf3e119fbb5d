"""Reads a mapping from a YAML file."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML where a duplicate key is an error; PyYAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
        path (`Path`):
            The file.
        option (`str`, *optional*, defaults to `"--config"`):
            The option that names it, for messages.

    Raises:
        `ValueError`: if the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except FileNotFoundError:
        raise ValueError(f"{option}: {path} does not exist. Give the path of a YAML file.") from None
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}, column {place.column + 1}: " if place else ""
        reason = where + (getattr(error, "problem", None) or " ".join(str(error).split()))
        raise ValueError(f"{option}: {path} is not valid YAML: {reason}. Correct it.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(
            f"{option}: {path} holds a {type(content).__name__}, but must hold a mapping of options, such as "
            f"`model: NAME`."
        )
    return {str(key): value for key, value in content.items()}
