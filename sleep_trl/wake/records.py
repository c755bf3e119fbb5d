"""Wake records, checked before they are stored. Nothing here accesses files.

A source is a label: stored and shown, but never used as a path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from ..data.documents import MemoryText, Row, check_row, parse_line
from ..data.files import InvalidDocument, decode_text, read_document

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
        left_out (`list[str]`): what in folders was not read, and why.
    """

    added: int = 0
    duplicates: int = 0
    forgotten: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Self:
        self.added += other.added
        self.duplicates += other.duplicates
        self.forgotten += other.forgotten
        self.rejected += other.rejected
        self.reasons = [*self.reasons, *other.reasons][:MAX_REASONS]
        self.left_out = [*self.left_out, *other.left_out]
        return self


@dataclass(frozen=True)
class Position:
    """How far a growing file has been read: path, device and inode, and the offset after its last whole line."""

    path: str
    file: str
    offset: int


def record_of_line(place: str, line: bytes, source: str) -> WakeRecord | Rejection:
    """Read one JSON line: an object with `text`, or with `messages` (a chat), and optionally `id`, `source`, `time`
    and `questions`; other keys are for rewards."""

    def read() -> WakeRecord:
        _check_length(line)
        return _record(place, parse_line(line), source)

    return _or_rejection(place, read)


def record_of_text(place: str, text: bytes, source: str) -> WakeRecord | Rejection:
    """Make a record of a whole text, such as a file or a line of a file."""

    def read() -> WakeRecord:
        _check_length(text)
        return _record(place, {"text": decode_text(text)}, source)

    return _or_rejection(place, read)


def record_of_document(path: Path, content: bytes, source: str) -> WakeRecord | Rejection:
    """Make a record of a file, whose name tells its form."""
    return _or_rejection(str(path), lambda: _record(str(path), {"text": read_document(path, content)}, source))


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
    except InvalidDocument as error:
        return rejection(place, error.kind, str(error))


def _check_length(content: bytes) -> None:
    if len(content) > MAX_BYTES:
        raise InvalidDocument("too long", f"longer than {MAX_BYTES / 2**20:g} MiB. Split it.")


def _record(place: str, values: Any, source: str) -> WakeRecord:
    time = ""
    if isinstance(values, dict):
        time = _time(values.get("time"))
        values = {key: value for key, value in values.items() if key != "time"}
    try:
        memory = check_row(Row(place, "", source, values))
    except ValueError as error:
        raise InvalidDocument("not a record", str(error).removeprefix(f"{place}: ")) from None
    _check_length(memory.text.encode())
    if "\0" in memory.text:
        raise InvalidDocument("not text", "`text` contains the character NUL. Convert it.")
    memory = memory if memory.id else replace(memory, id=memory.sha256[:ID_DIGITS])
    for key in ("id", "source"):
        _check_label(key, getattr(memory, key))
    return WakeRecord(memory, time)


def _check_label(key: str, label: str) -> None:
    if len(label) > MAX_LABEL:
        raise InvalidDocument("bad label", f"`{key}` has {len(label):,} characters, more than {MAX_LABEL}. Shorten it.")
    if not label.isprintable():
        raise InvalidDocument("bad label", f"`{key}` contains a character that cannot be printed. Remove it.")


def _time(given: Any) -> str:
    if given is None:
        return now()
    try:
        when = datetime.fromisoformat(given)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        raise InvalidDocument(
            "not a record", "`time` must be ISO 8601, such as 2026-07-10T08:00:00+00:00. Correct it, or leave it out."
        ) from None
