"""Memories, made from rows that are checked. Messages name the file, the line and the key, never a memory's text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .files import InvalidDocument, decode

KEYS = ("id", "source", "text", "messages", "questions")  # of a row; others are for rewards


@dataclass(frozen=True)
class Question:
    """A question about a document, asked before and after the night, never trained on.

    Args:
        question (`str`):
            The question, as a user would ask it.
        answers (`tuple[str, ...]`):
            Accepted answers; at least one.
        form (`str`, *optional*, defaults to `"plain"`):
            Kind of question, by which results can be grouped.
    """

    question: str
    answers: tuple[str, ...]
    form: str = "plain"


@dataclass(frozen=True)
class MemoryText:
    """A memory to be learned: a text, its source, and questions about it.

    Args:
        id (`str`):
            Unique among the documents of a run.
        source (`str`):
            Human-readable origin of the text: a title, a URL, a file name.
        text (`str`):
            The text to learn.
        questions (`tuple[Question, ...]`, *optional*):
            Used for evaluation only.
        columns (`dict[str, Any]`, *optional*):
            What else its row has, for rewards.
    """

    id: str
    source: str
    text: str
    questions: tuple[Question, ...] = ()
    columns: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, a hexadecimal string."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def as_row(self) -> dict[str, Any]:
        """Return the row that it is read from."""
        row = asdict(self)
        return row.pop("columns") | row


class Row(NamedTuple):
    """A row before it is checked, with its place for messages and defaults for missing values."""

    place: str
    default_id: str
    default_source: str
    values: Any


def parse_line(line: bytes) -> Any:
    """Return the value of a JSON line.

    Raises:
        `InvalidDocument`: if it is not JSON in UTF-8.
    """
    try:
        return json.loads(decode(line))
    except json.JSONDecodeError as error:
        reason = f"not valid JSON: {error.msg} (column {error.colno}). Each line must be one JSON object."
    except RecursionError:
        reason = "JSON nested too deeply. A row is a flat object with `text`."
    except InvalidDocument:
        raise
    except ValueError:  # a number of more digits than Python converts
        reason = "JSON with a number of thousands of digits. Write it as a string."
    raise InvalidDocument("not JSON", reason)


def check_row(row: Row) -> MemoryText:
    """Turn a row into a memory. Of a chat (`messages`) the text has a line `role: content` for each message.

    Raises:
        `ValueError`: if the row is invalid; names its place and the key.
    """
    place, values = row.place, _mapping(row.place, row.values)
    if values.get("messages") is not None:
        values = values | {"text": _chat(place, values)}
    questions = [] if values.get("questions") is None else values["questions"]
    if not isinstance(questions, list):
        raise ValueError(f"{place}: `questions` must be a list of objects, not {_kind(questions)}.")
    return MemoryText(
        id=_id(place, values, row.default_id),
        source=_optional_text(place, values, "source", row.default_source),
        text=_text(place, values, "text"),
        questions=tuple(_question(f"{place}, questions[{i}]", q) for i, q in enumerate(questions)),
        columns={key: value for key, value in values.items() if key not in KEYS},
    )


def _id(place: str, values: dict[str, Any], default: str) -> str:
    """Return the id as text: those of most data sets are numbers."""
    if isinstance(given := values.get("id"), int) and not isinstance(given, bool):
        return str(given)
    return _optional_text(place, values, "id", default)


def _chat(place: str, values: dict[str, Any]) -> str:
    if values.get("text") is not None:
        raise ValueError(f"{place}: has both `text` and `messages`. Give only one of them.")
    messages = values["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: `messages` must be a list of objects with `role` and `content`.")
    return "\n".join(_message_line(f"{place}, messages[{i}]", message) for i, message in enumerate(messages))


def _message_line(place: str, message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role.isprintable() or not role:
        raise ValueError(f"{place}: must be an object with `role` and `content`.")
    content = message.get("content")
    parts = [content] if isinstance(content, str) else list(_parts(place, content))
    return f"{role}: {' '.join(parts)}"


def _parts(place: str, content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else [None]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{place}: `content` must be a string or a list of text parts.")
        yield part["text"]


def _question(place: str, question: Any) -> Question:
    values = _mapping(place, question)
    answers = values.get("answers")
    if answers is None or answers == []:
        raise ValueError(f"{place}: `answers` is missing or empty. Give a list of accepted answers.")
    if not isinstance(answers, list):
        raise ValueError(f"{place}: `answers` must be a list of strings, not {_kind(answers)}.")
    by_key = {f"answers[{i}]": answer for i, answer in enumerate(answers)}
    return Question(
        question=_text(place, values, "question"),
        answers=tuple(_text(place, by_key, key) for key in by_key),
        form=_optional_text(place, values, "form", Question.form),
    )


def _mapping(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: must be a JSON object, not {_kind(value)}.")
    return value


def _optional_text(place: str, values: dict[str, Any], key: str, default: str) -> str:
    return default if values.get(key) is None else _text(place, values, key)


def _text(place: str, values: dict[str, Any], key: str) -> str:
    if key not in values:
        found = ", ".join(f"`{name}`" for name in list(values)[:5])
        what = f"; found {found}. Add it, or rename one." if found else ". Add it."
        or_chat = " (or `messages`)" if key == "text" else ""
        raise ValueError(f"{place}: the required key `{key}`{or_chat} is missing{what}")
    value = values[key]
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{key}` must be a string, not {_kind(value)}.")
    if not value.strip():
        raise ValueError(f"{place}: `{key}` is empty. Fill it in, or leave out the row.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: `{key}` contains half a surrogate pair. Write it as UTF-8.") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
