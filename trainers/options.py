"""Arguments that a trainer shares with a run: their defaults and help are written once, in `sleep_trl.config`."""

from __future__ import annotations

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


def shared_options(section: BaseModel, arguments: type) -> dict[str, Any]:
    """Return the options of a run that go by the same name in a trainer's arguments, with their values.

    Args:
        section (`BaseModel`):
            A part of the run's configuration.
        arguments (`type`):
            The trainer's arguments, a dataclass.
    """
    names = {argument.name for argument in fields(arguments)}
    return {name: value for name, value in section if name in names}
