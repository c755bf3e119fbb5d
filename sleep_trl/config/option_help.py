"""What is said of an option: by `--help`, in the reference of the configuration, and in a new configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LINE = 114  # characters of a summary, which stands after `# ` in a file whose lines have 120 at most

OUTSIDE = r"(?![^({]*[)}])"  # after a place that is not inside brackets


def description(field: FieldInfo) -> str:
    """Return the docstring of an option on one line."""
    return " ".join((field.description or "").split())


def summary(field: FieldInfo) -> str:
    """Return one line about an option: the first sentence of its docstring, what it allows, and what no value means.

    A sentence that is too long for the line ends before its first colon or semicolon, or else before its first comma.
    """
    first, *others = re.split(r"(?<!Eq)\. (?=\w+: |[A-Z\d])", description(field).rstrip("."))
    choices = ", ".join(choices_of(field.annotation))
    allowed = f"one of {choices}" if choices else bounds(field)
    rest = f" {allowed[:1].upper()}{allowed[1:]}." if allowed else ""
    for ends in ("[:;] ", ", "):
        first = re.split(ends + OUTSIDE, first)[0] if len(first) + len(rest) >= LINE else first
    for other in others:
        if other.startswith("Default: ") and len(first) + len(rest) + len(other) < LINE - 2:
            rest = f"{rest} {other}."
    return f"{first}.{rest}"


def help_text(field: FieldInfo) -> str:
    """Return an option's docstring, range and default."""
    notes = [bounds(field)] if bounds(field) else []
    if field.is_required():
        notes.append("required")
    elif field.default not in (None, ()):
        notes.append(f"default: {shown(field.default)}")
    return f"{description(field)} ({'; '.join(notes)})" if notes else description(field)


def bounds(field: FieldInfo) -> str:
    """Return the range of an option's numbers in words, or an empty string."""
    limits = {
        name: _number(getattr(limit, name))
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[name]} {limit}" for name, limit in limits.items())


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words that an option allows, if it allows only certain ones."""
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def kind_of_value(annotation: Any) -> str:
    """Return the placeholder of a value: its type in one word, or its choices."""
    if choices := choices_of(annotation):
        return "{" + ",".join(choices) + "}"
    kinds = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
    plain = [kinds[kind] for kind in (annotation, *get_args(annotation)) if kind in kinds]
    is_collection = get_origin(annotation) in (tuple, list, dict)
    return "JSON" if is_collection or not plain else plain[0]


def type_in_words(annotation: Any) -> str:
    """Return the type of an option for a reader, such as `list of text` or `whole number or null`."""
    if choices_of(annotation):
        return "choice"
    if get_origin(annotation) in (UnionType, Union):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        return " or ".join([*map(type_in_words, parts), "null"])
    if get_origin(annotation) is tuple:
        return f"list of {type_in_words(get_args(annotation)[0])}"
    if annotation is dict or get_origin(annotation) is dict:
        return "mapping"
    words = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
    is_object = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return "name or mapping" if is_object else words[annotation]


def shown(value: Any) -> str:
    """Return a default as it is shown in help."""
    if isinstance(value, tuple):
        return ", ".join(str(getattr(item, "name", item)) for item in value)
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)
