"""A reward or a judge in YAML or on the command line. Imports pydantic only."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def names_a_function(value: str) -> bool:
    """Return whether a name has the form package.module:function or path/to/file.py:function."""
    place, _, function = value.rpartition(":")
    return bool(place) and function.isidentifier()


def refuse_bare_file(value: str) -> None:
    """Raise `ValueError` for a name that is a Python file, without a function in it. Runs no code."""
    file = value.removesuffix(":")
    if not file.endswith(".py"):
        return
    found = _functions_of(Path(file).expanduser())
    defined = f". It defines: {', '.join(found)}" if found else ""
    raise ValueError(f"{value!r} is a file; name a function in it: {file}:function{defined}")


def _functions_of(file: Path) -> list[str]:
    """Return the names of a file's public functions, or none if it cannot be read."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function.name for function in functions if not function.name.startswith("_")]


class JudgeSpec(BaseModel):
    """A judge of meaning: its name and its parameters. A plain string is a name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """A registered name: lexical, sentence_transformer, classifier or lm."""

    params: dict[str, Any] = {}
    """Keyword arguments of the judge."""

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class RewardSpec(BaseModel):
    """One reward of a run: its name, its weight, its parameters, and what happens when it fails.

    A plain string is a name: `"imitation"` is the same as `{"name": "imitation"}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """A registered name, `package.module:function` or `path/to/file.py:function` (relative to the
    working directory), or a reward model: `org/name` on the Hub, or a folder such as `./model`."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """Factor of this reward in the sum. Negative turns it into a penalty."""

    params: dict[str, Any] = {}
    """Keyword arguments of the reward, checked against its signature."""

    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Time limit of one call (one batch), in seconds. None: no limit."""

    on_error: Literal["raise", "abstain"] = "raise"
    """When the reward fails: stop the run, or return None (not scored) and log a warning."""

    @property
    def is_model(self) -> bool:
        """Whether it names a reward model, not a function."""
        return "/" in self.name and ":" not in self.name

    @property
    def has_model(self) -> bool:
        """Whether it is known to load a model: its own, one given in `params`, or a judge's other than lexical."""
        judge = self.params.get("judge")
        name = judge.get("name") if isinstance(judge, dict) else judge
        return self.is_model or bool(self.params.get("model")) or name not in (None, "lexical")

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        refuse_bare_file(value)
        place, colon, function = value.rpartition(":")
        if not colon and "." in value and all(part.isidentifier() for part in value.split(".")):
            place, colon, function = value.rpartition(".")  # as for `trl grpo --reward_funcs`
            return f"{place}:{function}"
        if not colon and "/" in value:
            return value
        if names_a_function(value):
            return value
        if not colon and value.isidentifier():
            return value
        raise ValueError(
            f"{value!r} is not the name of a reward; give a registered name, package.module:function, "
            f"path/to/file.py:function, or a reward model as org/name or ./folder"
        )
