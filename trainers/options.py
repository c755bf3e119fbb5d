"""Arguments that a trainer shares with a run: default, help and range are written once, in `sleep_trl.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from trl import GRPOConfig

_OPTIONS: dict[Field[Any], Any] = {}  # each argument's type with its range; metadata would be passed to argparse


def run_option(section: type[BaseModel], name: str, help_text: str | None = None) -> Any:
    """Return a dataclass field with the default, the help and the range of a run's option.

    Args:
        section (`type[BaseModel]`):
            A part of the run's configuration, such as `SeedingConfig`.
        name (`str`):
            The option.
        help_text (`str`, *optional*):
            Help, if that of the run speaks of what the trainer does not have.
    """
    option = section.model_fields[name]
    text = " ".join((help_text or option.description or "").split()).replace("%", "%%")  # argparse formats it
    argument = field(default=option.default, metadata={"help": text})
    _OPTIONS[argument] = Annotated[option.annotation, *option.metadata] if option.metadata else option.annotation
    return argument


def check_options(arguments: Any) -> None:
    """Check a trainer's arguments that are options of a run, by the types and ranges that these have.

    Text that stands for a number becomes one: YAML reads `1e-3` as text.

    Args:
        arguments (dataclass):
            The trainer's arguments.

    Raises:
        `ValueError`: if a value is not allowed.
    """
    for argument in fields(arguments):
        if argument not in _OPTIONS or hasattr(GRPOConfig, argument.name):  # TRL checks its own
            continue
        value = getattr(arguments, argument.name)
        try:
            setattr(arguments, argument.name, TypeAdapter(_OPTIONS[argument]).validate_python(value))
        except ValidationError as error:
            allowed = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise ValueError(f"{argument.name} {allowed}, got {value!r}.") from None


RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Arguments of a Trainer that newer releases of transformers call otherwise, by their names in older ones."""


def with_present_names(given: Mapping[str, Any], arguments: type) -> dict[str, Any]:
    """Return a trainer's arguments by the names that the installed transformers wants, also those that have a default
    by a former name in TRL, so that none of them is warned about.

    Args:
        given (`dict`):
            Arguments by name. Where both names are given, the new one counts.
        arguments (`type`):
            The trainer's arguments, a dataclass.
    """
    defaults = {argument.name: argument.default for argument in fields(arguments)}
    renamed = dict(given)
    for former, present in RENAMED.items():
        if present in defaults:
            value = renamed.pop(former, defaults[former])
            if value is not None:
                renamed.setdefault(present, value)
    return renamed


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
