"""Completions as messages, for reward functions that want a conversation, such as TRL's `think_format_reward`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

ROLES = {"prompts": "user", "completions": "assistant"}


def wanted_as_messages(func: Callable[..., Any]) -> frozenset[str]:
    """Return which of `prompts` and `completions` a function wants as messages: those it annotates as lists of lists of
    `dict`, as TRL's functions do, and not also as texts."""
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return frozenset()
    wanted = set()
    for name in ROLES.keys() & parameters.keys():
        annotation = str(parameters[name].annotation).replace("typing.", "").lower()
        if "dict" in annotation and "list[str]" not in annotation:
            wanted.add(name)
    return frozenset(wanted)


def as_messages(texts: list[Any], name: str) -> list[Any]:
    """Return texts as conversations of one message each; conversations stay as they are.

    Args:
        texts (`list`):
            Prompts or completions.
        name (`str`):
            `"prompts"` or `"completions"`.
    """
    return [[{"role": ROLES[name], "content": text}] if isinstance(text, str) else text for text in texts]
