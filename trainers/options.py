"""Arguments that a trainer shares with a run: their defaults and help are written once, in `sleep_trl.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from pydantic import BaseModel


def run_option(section: type[BaseModel], name: str) -> Any:
    """Return a dataclass field with the default and the help of a run's option.

    Args:
        section (`type[BaseModel]`):
            A part of the run's configuration, such as `SeedingConfig`.
        name (`str`):
            The option.
    """
    option = section.model_fields[name]
    help_text = " ".join((option.description or "").split()).replace("%", "%%")  # argparse formats it
    return field(default=option.default, metadata={"help": help_text})


def shared_options(section: BaseModel, arguments: type, renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the options of a run that a trainer's arguments have too, with their values, by the arguments' names.

    Args:
        section (`BaseModel`):
            A part of the run's configuration.
        arguments (`type`):
            The trainer's arguments, a dataclass.
        renamed (`Mapping[str, str]`, *optional*):
            Arguments of options whose own name means something else in TRL.
    """
    names = {argument.name for argument in fields(arguments)}
    given = {(renamed or {}).get(name, name): value for name, value in section}
    return {name: value for name, value in given.items() if name in names}
