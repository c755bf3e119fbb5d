"""The messages of a chat: what is wrong with them, and the form that the transformers server reads."""

from __future__ import annotations

import json
from typing import Any

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and the field that has it."""


def find_message_fault(messages: Any) -> str | None:
    """Return what is wrong with `messages` for any model server, without their text, or `None`."""
    if not isinstance(messages, list) or not messages:
        return "`messages` must be a list of objects with `role` and `content`."
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not _is_content(message):
            return f"messages[{number}] must be an object with `role` and `content`, a string or a list of parts."
        parts = message["content"] if isinstance(message.get("content"), list) else []
        for place, part in enumerate(parts):
            field = TEXT_PARTS.get(part["type"])
            if field and not isinstance(part.get(field), str):
                return f"messages[{number}].content[{place}] must have `{field}`, a string."
        if not _are_calls(message.get("tool_calls")):
            return (
                f"messages[{number}].tool_calls must be a list of objects with `function`: its `name`, a string, and "
                "its `arguments`, an object or the JSON of one."
            )
    return None


def find_part_without_text(messages: list[dict[str, Any]]) -> str | None:
    """Return the place of the first content part that is no text, such as an image, or `None`."""
    return next(
        (
            f"messages[{number}].content[{place}]"
            for number, message in enumerate(messages)
            if isinstance(message.get("content"), list)
            for place, part in enumerate(message["content"])
            if part["type"] not in TEXT_PARTS
        ),
        None,
    )


def as_plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose contents are strings: the texts of parts, joined by spaces as in a wake record. Fields
    without a value (`null`, no calls), which clients send back with an answer, are left out."""
    plain = []
    for message in messages:
        kept = {field: value for field, value in message.items() if value is not None and value != []}
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(part[TEXT_PARTS[part["type"]]] for part in content)
        plain.append(kept | {"content": content})
    return plain


def _is_content(message: dict[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content)
    return content is None or isinstance(content, str)


def _are_calls(calls: Any) -> bool:
    if calls is None:
        return True
    if not isinstance(calls, list):
        return False
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    return all(
        isinstance(function, dict) and isinstance(function.get("name"), str) and _is_object(function.get("arguments"))
        for function in functions
    )


def _is_object(arguments: Any) -> bool:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return False
    return isinstance(arguments, dict)
