"""The ledger: one line a night, which says what was learnt, from what, by which expert, and with what effect."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from .files import read_jsonl, write_jsonl


class Source(BaseModel):
    """One memory of an entry: its id, where it came from, and the SHA-256 of its text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source: str
    sha256: str


class LedgerEntry(BaseModel):
    """One consolidation.

    Args:
        id (`str`): `entry-001` and so on.
        date (`str`): UTC, ISO 8601.
        expert (`int`): index of the expert that holds it.
        level (`int`): memory level of the expert.
        fingerprint (`str`): SHA-256 of the expert's weights.
        base (`str`): fingerprint of the base model.
        parents (`tuple[str, ...]`): entries that were active when it was made.
        sources (`tuple[Source, ...]`): the memories.
        metrics (`dict`): recall and base skill before and after.
        dropped (`str`, *optional*): when the entry was taken back. Its line stays, its expert is reset.
        rolled_back (`str`, *optional*): why the night itself took it back, at its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    date: str
    expert: int
    level: int
    fingerprint: str
    base: str
    parents: tuple[str, ...]
    sources: tuple[Source, ...]
    metrics: dict[str, Any]
    dropped: str | None = None
    rolled_back: str | None = None


def standing(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the entries that have not been dropped: each has an expert, enabled or not."""
    return [entry for entry in entries if entry.dropped is None]


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Read the entries of a ledger, oldest first."""
    return [LedgerEntry.model_validate(row) for row in read_jsonl(path)]


def write_ledger(path: Path, entries: list[LedgerEntry]) -> None:
    """Write a ledger by atomic rename."""
    write_jsonl(path, (entry.model_dump(mode="json") for entry in entries))


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
