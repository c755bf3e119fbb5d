"""Parameters from a configuration, held against a signature before anything is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def parameter_names(func: Callable[..., Any]) -> list[str]:
    """Return the names that a function takes by keyword, without `*args` and `**kwargs`."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(func).parameters.values() if p.kind in named]


def check_params(
    func: Callable[..., Any], params: Mapping[str, Any], what: str, reserved: Collection[str] = ()
) -> None:
    """Raise if a parameter is not one that the function names.

    Args:
        func (`Callable`):
            The function that will get them. That it takes `**kwargs` does not make a name known.
        params (`Mapping[str, Any]`):
            The parameters given.
        what (`str`):
            What the function is, for the message: "Reward 'imitation'".
        reserved (`Collection[str]`, *optional*):
            Names that somebody else fills.

    Raises:
        `ValueError`: with the unknown names and the allowed ones.
    """
    allowed = [name for name in parameter_names(func) if name not in reserved]
    if unknown := [name for name in params if name not in allowed]:
        raise ValueError(
            f"{what} has no parameter {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed) or 'none'}."
        )


def check_required(func: Callable[..., Any], params: Mapping[str, Any], what: str) -> None:
    """Raise if a parameter without a default is not given.

    Args:
        func (`Callable`):
            The function that will get them.
        params (`Mapping[str, Any]`):
            The parameters given.
        what (`str`):
            What the function is, for the message.

    Raises:
        `ValueError`: with the missing names.
    """
    parameters = inspect.signature(func).parameters
    missing = [
        name
        for name in parameter_names(func)
        if parameters[name].default is inspect.Parameter.empty and name not in params
    ]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}; set it in params.")
