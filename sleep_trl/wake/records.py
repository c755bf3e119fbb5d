"""What is heard by day: one record, checked before it is stored. Nothing here touches a file.

A source is a label. It is stored and shown, and never used as a path.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from ..data.documents import MemoryText, Row, check_row

MOST_BYTES = 8 * 2**20
"""Longest record that is taken, in bytes: some 1,500 pages. It bounds what a reader holds in memory."""

State = Literal["new", "consolidated", "failed", "forgotten"]
STATES: tuple[State, ...] = ("new", "consolidated", "failed", "forgotten")

MOST_REASONS = 20
MOST_LABEL = 512  # characters of an id or a source
ID_DIGITS = 16  # of the hash, for records that were given no id


@dataclass(frozen=True)
class WakeRecord:
    """A memory, and when it was heard.

    Args:
        memory (`MemoryText`):
            Id, source, text and questions.
        time (`str`):
            UTC, ISO 8601.
    """

    memory: MemoryText
    time: str


@dataclass(frozen=True)
class Rejection:
    """Input that was not taken.

    Args:
        kind (`str`):
            Why, in few words, by which rejections are counted.
        reason (`str`):
            Where and why, in a sentence that holds nothing of the input's text.
    """

    kind: str
    reason: str


@dataclass(frozen=True)
class Listed:
    """A record without its text.

    Args:
        id, time, source, sha256 (`str`): as they were heard first.
        copies (`int`): how often the text has been heard.
        state (`str`): `new`, `consolidated`, `failed` or `forgotten`.
        detail (`str`): the ledger entry that holds it, also if it was forgotten since, or why it failed.
    """

    id: str
    time: str
    source: str
    sha256: str
    copies: int
    state: State
    detail: str


@dataclass
class Tally:
    """What became of input, counted.

    Args:
        added (`int`): records stored.
        duplicates (`int`): texts that the buffer has; counted, not stored twice.
        forgotten (`int`): texts that were forgotten before, and are not taken in again.
        rejected (`Counter[str]`): input that was not taken, by kind.
        reasons (`list[str]`): why, of the first twenty; `WakeBuffer.rejections` has all.
    """

    added: int = 0
    duplicates: int = 0
    forgotten: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Self:
        self.added += other.added
        self.duplicates += other.duplicates
        self.forgotten += other.forgotten
        self.rejected += other.rejected
        self.reasons = [*self.reasons, *other.reasons][:MOST_REASONS]
        return self


@dataclass(frozen=True)
class Position:
    """How far a growing file has been read: its path, which file that was, and the byte behind the last whole line."""

    path: str
    file: str
    offset: int


class NotTaken(ValueError):
    """Says why input is rejected; `kind` is what it is counted under."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def record_of_line(place: str, line: bytes, source: str) -> WakeRecord | Rejection:
    """Read one JSON line: an object with `text`, or with `messages` (a chat), and optionally `id`, `source`, `time`
    and `questions`."""
    return _or_rejection(place, lambda: _record(place, _parse(_decode(line)), source))


def record_of_text(place: str, text: bytes, source: str) -> WakeRecord | Rejection:
    """Take a whole text, such as a file or a line of one, as a record."""
    return _or_rejection(place, lambda: _record(place, {"text": _decode(text)}, source))


def rejection(place: str, kind: str, reason: str) -> Rejection:
    """Return the rejection of what stands at `place`, in words that any terminal can show."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in place)
    return Rejection(kind, f"{shown}: {reason}")


def too_long(place: str) -> Rejection:
    """Return the rejection of what is longer than a record may be."""
    return rejection(place, "too long", f"longer than {MOST_BYTES / 2**20:g} MiB. Split it.")


def now() -> str:
    """Return the time in UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat()


def _or_rejection(place: str, make: Callable[[], WakeRecord]) -> WakeRecord | Rejection:
    try:
        return make()
    except NotTaken as error:
        return rejection(place, error.kind, str(error))


def _decode(content: bytes) -> str:
    if len(content) > MOST_BYTES:
        raise NotTaken("too long", f"longer than {MOST_BYTES / 2**20:g} MiB. Split it.")
    try:
        return content.decode("utf-8-sig")  # a byte order mark is no part of a text
    except UnicodeDecodeError as error:
        raise NotTaken(
            "not UTF-8", f"not UTF-8 text (byte {error.start}: {error.reason}). Convert it, for example with iconv."
        ) from None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise NotTaken("not JSON", f"not valid JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise NotTaken("not JSON", "JSON nested too deeply. A row has `text`, and nothing that is nested.") from None
    except ValueError:  # a number of more digits than Python converts
        raise NotTaken("not JSON", "JSON with a number of thousands of digits. Write it as a string.") from None


def _record(place: str, values: Any, source: str) -> WakeRecord:
    if isinstance(values, dict) and "messages" in values:
        values = _chat(values)
    time = _time(values.get("time")) if isinstance(values, dict) else ""
    try:
        memory = check_row(Row(place, "", source, values))
    except ValueError as error:
        raise NotTaken("not a record", str(error).removeprefix(f"{place}: ")) from None
    if len(memory.text.encode()) > MOST_BYTES:
        raise NotTaken("too long", f"longer than {MOST_BYTES / 2**20:g} MiB. Split it.")
    if "\0" in memory.text:
        raise NotTaken("not text", "`text` holds the character NUL, so it is no text. Convert it.")
    memory = memory if memory.id else replace(memory, id=memory.sha256[:ID_DIGITS])
    for key in ("id", "source"):
        _check_label(key, getattr(memory, key))
    return WakeRecord(memory, time)


def _check_label(key: str, label: str) -> None:
    if len(label) > MOST_LABEL:
        raise NotTaken("bad label", f"`{key}` has {len(label):,} characters, more than {MOST_LABEL}. Shorten it.")
    if not label.isprintable():
        raise NotTaken("bad label", f"`{key}` holds a character that cannot be printed. Take it out.")


def _time(given: Any) -> str:
    if given is None:
        return now()
    try:
        when = datetime.fromisoformat(given)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise NotTaken(
            "not a record", "`time` must be ISO 8601, such as 2026-07-10T08:00:00+00:00. Correct it, or leave it out."
        ) from None


def _chat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose text is the chat: a line `role: content` for each message."""
    if "text" in values:
        raise NotTaken("not a record", "has both `text` and `messages`. Give one of them.")
    messages = values["messages"]
    if not isinstance(messages, list) or not messages:
        raise NotTaken("not a record", "`messages` must be a list of objects with `role` and `content`.")
    rest = {key: value for key, value in values.items() if key != "messages"}
    return rest | {"text": "\n".join(_spoken(number, message) for number, message in enumerate(messages))}


def _spoken(number: int, message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role.isprintable() or not role:
        raise NotTaken("not a record", f"messages[{number}] must be an object with `role` and `content`.")
    content = message.get("content")
    parts = [content] if isinstance(content, str) else list(_parts(number, content))
    return f"{role}: {' '.join(parts)}"


def _parts(number: int, content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else [None]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise NotTaken("not a record", f"messages[{number}]: `content` must be text, or a list of parts of text.")
        yield part["text"]
