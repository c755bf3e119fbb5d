"""Wake records, checked before they are stored. Nothing here accesses files.

A source is a label: stored and shown, but never used as a path.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from ..data.documents import MemoryText, Row, check_row

MAX_BYTES = 8 * 2**20
"""Longest record accepted, in bytes (about 1,500 pages). It bounds the memory of a reader."""

State = Literal["new", "consolidated", "failed", "forgotten"]
STATES: tuple[State, ...] = ("new", "consolidated", "failed", "forgotten")

MAX_REASONS = 20
MAX_LABEL = 512  # characters of an id or a source
ID_DIGITS = 16  # of the hash, as the id of a record that has none


@dataclass(frozen=True)
class WakeRecord:
    """A memory, and when it arrived.

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
    """Input that was not accepted.

    Args:
        kind (`str`):
            The kind of problem, by which rejections are counted.
        reason (`str`):
            Where and why, without any of the input's text.
    """

    kind: str
    reason: str


@dataclass(frozen=True)
class RecordInfo:
    """A record without its text, apart from an excerpt.

    Args:
        id, time, source, sha256 (`str`): as they first arrived.
        copies (`int`): how often the text has arrived.
        state (`str`): `new`, `consolidated`, `failed` or `forgotten`.
        detail (`str`): the ledger entry that holds it, even if it was forgotten since, or why it failed.
        excerpt (`str`): the beginning of its text, if that was asked for and is still there.
    """

    id: str
    time: str
    source: str
    sha256: str
    copies: int
    state: State
    detail: str
    excerpt: str = ""


@dataclass
class Tally:
    """Counts of what happened to input.

    Args:
        added (`int`): stored records.
        duplicates (`int`): texts that the buffer already has.
        forgotten (`int`): texts that were forgotten earlier, which are not stored again.
        rejected (`Counter[str]`): rejected items, by kind.
        reasons (`list[str]`): reasons of the first twenty rejections; `WakeBuffer.rejections` has all.
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
        self.reasons = [*self.reasons, *other.reasons][:MAX_REASONS]
        return self


@dataclass(frozen=True)
class Position:
    """How far a growing file has been read: path, device and inode, and the offset after its last whole line."""

    path: str
    file: str
    offset: int


class InvalidRecord(ValueError):
    """Raised to reject input; `kind` is what it is counted under."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def record_of_line(place: str, line: bytes, source: str) -> WakeRecord | Rejection:
    """Read one JSON line: an object with `text`, or with `messages` (a chat), and optionally `id`, `source`, `time`
    and `questions`; other keys are for rewards."""
    return _or_rejection(place, lambda: _record(place, _parse(_decode(line)), source))


def record_of_text(place: str, text: bytes, source: str) -> WakeRecord | Rejection:
    """Make a record of a whole text, such as a file or a line of a file."""
    return _or_rejection(place, lambda: _record(place, {"text": _decode(text)}, source))


def rejection(place: str, kind: str, reason: str) -> Rejection:
    """Return the rejection of the input at `place`, safe to print in a terminal."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in place)
    return Rejection(kind, f"{shown}: {reason}")


def too_long(place: str) -> Rejection:
    """Return the rejection of input that is longer than a record may be."""
    return rejection(place, "too long", f"longer than {MAX_BYTES / 2**20:g} MiB. Split it.")


def now() -> str:
    """Return the time in UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat()


def _or_rejection(place: str, make: Callable[[], WakeRecord]) -> WakeRecord | Rejection:
    try:
        return make()
    except InvalidRecord as error:
        return rejection(place, error.kind, str(error))


def _decode(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise InvalidRecord("too long", f"longer than {MAX_BYTES / 2**20:g} MiB. Split it.")
    try:
        return content.decode("utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError as error:
        raise InvalidRecord(
            "not UTF-8", f"not UTF-8 text (byte {error.start}: {error.reason}). Convert it, for example with iconv."
        ) from None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRecord("not JSON", f"not valid JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise InvalidRecord("not JSON", "JSON nested too deeply. A row is a flat object with `text`.") from None
    except ValueError:  # a number of more digits than Python converts
        raise InvalidRecord("not JSON", "JSON with a number of thousands of digits. Write it as a string.") from None


def _record(place: str, values: Any, source: str) -> WakeRecord:
    if isinstance(values, dict) and "messages" in values:
        values = _chat(values)
    time = ""
    if isinstance(values, dict):
        time = _time(values.get("time"))
        values = {key: value for key, value in values.items() if key != "time"}
    try:
        memory = check_row(Row(place, "", source, values))
    except ValueError as error:
        raise InvalidRecord("not a record", str(error).removeprefix(f"{place}: ")) from None
    if len(memory.text.encode()) > MAX_BYTES:
        raise InvalidRecord("too long", f"longer than {MAX_BYTES / 2**20:g} MiB. Split it.")
    if "\0" in memory.text:
        raise InvalidRecord("not text", "`text` contains the character NUL. Convert it.")
    memory = memory if memory.id else replace(memory, id=memory.sha256[:ID_DIGITS])
    for key in ("id", "source"):
        _check_label(key, getattr(memory, key))
    return WakeRecord(memory, time)


def _check_label(key: str, label: str) -> None:
    if len(label) > MAX_LABEL:
        raise InvalidRecord("bad label", f"`{key}` has {len(label):,} characters, more than {MAX_LABEL}. Shorten it.")
    if not label.isprintable():
        raise InvalidRecord("bad label", f"`{key}` contains a character that cannot be printed. Remove it.")


def _time(given: Any) -> str:
    if given is None:
        return now()
    try:
        when = datetime.fromisoformat(given)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise InvalidRecord(
            "not a record", "`time` must be ISO 8601, such as 2026-07-10T08:00:00+00:00. Correct it, or leave it out."
        ) from None


def _chat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose text is the chat, with a line `role: content` for each message."""
    if "text" in values:
        raise InvalidRecord("not a record", "has both `text` and `messages`. Give only one of them.")
    messages = values["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidRecord("not a record", "`messages` must be a list of objects with `role` and `content`.")
    rest = {key: value for key, value in values.items() if key != "messages"}
    return rest | {"text": "\n".join(_message_line(number, message) for number, message in enumerate(messages))}


def _message_line(number: int, message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not role.isprintable() or not role:
        raise InvalidRecord("not a record", f"messages[{number}] must be an object with `role` and `content`.")
    content = message.get("content")
    parts = [content] if isinstance(content, str) else list(_parts(number, content))
    return f"{role}: {' '.join(parts)}"


def _parts(number: int, content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else [None]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            reason = f"messages[{number}]: `content` must be a string or a list of text parts."
            raise InvalidRecord("not a record", reason)
        yield part["text"]
