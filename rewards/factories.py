"""Factories registered by name, for rewards and for judges, with parameters checked before anything is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Factories(dict[str, Callable[..., Any]]):
    """Registered name -> factory: a function or class that takes `params` and returns what is named.

    Args:
        kind (`str`):
            What the factories make, for messages: "reward".
        hint (`str`, *optional*):
            What to do about an unknown name.
    """

    def __init__(self, kind: str, hint: str = "") -> None:
        super().__init__()
        self.kind, self.hint = kind, hint

    def register(self, name: str) -> Callable[[F], F]:
        """Return a decorator that registers a factory and returns it unchanged.

        Args:
            name (`str`):
                The name to use in a configuration: an identifier.

        Raises:
            `ValueError`: if the name is taken or is not an identifier.
        """
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot name a {self.kind}; use letters, digits and underscores.")

        def register(factory: F) -> F:
            if name in self:
                raise ValueError(f"A {self.kind} named {name!r} is registered already; choose another name.")
            self[name] = factory
            return factory

        return register

    def check_name(self, name: str) -> None:
        """Raise `ValueError` if there is no factory of a name."""
        if name not in self:
            known = f"There is no {self.kind} {name!r}; registered: {', '.join(sorted(self))}."
            raise ValueError(f"{known} {self.hint}".rstrip())

    def make(self, name: str, params: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Any:
        """Call the factory of a name.

        Args:
            name (`str`):
                The name.
            params (`Mapping[str, Any]`):
                The parameters given.
            defaults (`Mapping[str, Any]`, *optional*):
                Values of parameters that are not given; those that the factory does not take are left out.

        Raises:
            `ValueError`: if there is no such factory, or a parameter is unknown, missing or out of range.
        """
        self.check_name(name)
        return make_from(self[name], params, f"{self.kind.capitalize()} {name!r}", defaults)


def make_from(
    factory: Callable[..., Any], params: Mapping[str, Any], what: str, defaults: Mapping[str, Any] | None = None
) -> Any:
    """Call a factory with parameters that were checked against its signature.

    Args:
        factory (`Callable`):
            A function or class.
        params (`Mapping[str, Any]`):
            The parameters given.
        what (`str`):
            What the factory makes, for messages: "Reward 'imitation'".
        defaults (`Mapping[str, Any]`, *optional*):
            Values of parameters that are not given; those that the factory does not take are left out.

    Raises:
        `ValueError`: if a parameter is unknown, missing or out of range.
    """
    check_params(factory, params, what)
    parameters = inspect.signature(factory).parameters
    names = parameter_names(factory)
    given = {key: value for key, value in (defaults or {}).items() if key in names} | dict(params)
    if missing := [key for key in names if key not in given and parameters[key].default is inspect.Parameter.empty]:
        raise ValueError(f"{what} needs {', '.join(missing)}; set it in params.")
    try:
        return factory(**given)
    except SystemExit as error:
        raise ValueError(f"{what} ended the program as it was made: {error}. Let it raise an exception.") from None


def parameter_names(func: Callable[..., Any]) -> list[str]:
    """Return the names that a function takes by keyword, without `*args` and `**kwargs`."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(func).parameters.values() if p.kind in named]


def check_params(
    func: Callable[..., Any],
    params: Mapping[str, Any],
    what: str,
    reserved: Collection[str] = (),
    columns: Callable[[], Collection[str]] = tuple,
) -> None:
    """Raise if a parameter is not one that the function names.

    Args:
        func (`Callable`):
            The function that will get them. `**kwargs` in its signature does not make a name known.
        params (`Mapping[str, Any]`):
            The parameters given.
        what (`str`):
            What the function is, for the message: "Reward 'imitation'".
        reserved (`Collection[str]`, *optional*):
            Names that are filled in by the caller.
        columns (`Callable`, *optional*):
            Returns names that the data set fills in, which the message does not offer; called if there is one.

    Raises:
        `ValueError`: with the unknown names and the allowed ones.
    """
    names = [name for name in parameter_names(func) if name not in reserved]
    if unknown := [name for name in params if name not in names]:
        filled = columns()
        allowed = [name for name in names if name not in filled]
        takes = f"allowed: {', '.join(allowed)}" if allowed else "it takes none"
        raise ValueError(f"{what} has no parameter {', '.join(map(repr, unknown))}; {takes}.")
