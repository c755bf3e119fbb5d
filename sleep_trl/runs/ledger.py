"""The ledger: one line for each night (what was learned, from which records, by which expert, with what effect) and one
for each consolidation of several experts into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .files import read_jsonl, write_jsonl


class Source(BaseModel):
    """One record of an entry: its id, its source, and the SHA-256 of its text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    source: str
    sha256: str


class LedgerEntry(BaseModel):
    """One consolidation: of records by a night, or of older entries into one expert.

    Args:
        id (`str`): `entry-001` and so on.
        date (`str`): UTC, ISO 8601.
        expert (`int`): index of the expert that holds it.
        level (`int`): memory level of the expert.
        fingerprint (`str`): SHA-256 of the expert's weights.
        base (`str`): fingerprint of the base model.
        parents (`tuple[str, ...]`): entries that were enabled when it was made.
        sources (`tuple[Source, ...]`): its records.
        metrics (`dict`): recall and base skill before and after its night; empty for a consolidation of entries.
        tokens (`int`): tokens of a night's records, which decide when levels fall due. 0 in old ledgers.
        holds (`tuple[str, ...]`): for a consolidation of entries, those whose experts became this one, and for a night
            that removes entries, those that it relearned; empty for other nights.
        dropped (`str`, *optional*): when the entry was dropped. Its line stays, its expert is reset.
        rolled_back (`str`, *optional*): why the night dropped its own entry.
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
    tokens: int = 0
    holds: tuple[str, ...] = ()
    dropped: str | None = None
    rolled_back: str | None = None

    @property
    def is_night(self) -> bool:
        """Whether it is that of a night, which measured it: of one that learned, or of one that removed entries."""
        return not self.holds or bool(self.metrics)


def active_entries(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the entries that were not dropped. What they learned is in an expert, enabled or not: their own, or
    that of the entry they were consolidated into."""
    return [entry for entry in entries if entry.dropped is None]


def standing_nights(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the entries of nights whose memories the model still holds, in their own expert or in another one."""
    return [entry for entry in active_entries(entries) if not entry.holds]


def measured_nights(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the entries of the nights that changed the model, also of those whose entry was dropped later."""
    return [entry for entry in entries if entry.is_night and entry.rolled_back is None]


def removed_by(entries: Iterable[LedgerEntry], night: LedgerEntry) -> list[LedgerEntry]:
    """Return the entries of nights that a `forget:` night removed from the model; empty for any other night."""
    if not (night.holds and night.is_night and night.rolled_back is None):
        return []
    return [entry for entry in entries if entry.dropped == night.date and not entry.holds]


def owners(entries: Iterable[LedgerEntry]) -> dict[str, LedgerEntry]:
    """Return for each active entry, by id, the entry whose expert holds what it learned: itself, or the one it was
    consolidated into. An entry that is its own owner owns an expert."""
    entries = active_entries(entries)
    into = {name: entry for entry in entries for name in entry.holds}

    def owner(entry: LedgerEntry) -> LedgerEntry:
        return owner(into[entry.id]) if entry.id in into else entry

    return {entry.id: owner(entry) for entry in entries}


def expert_owners(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the active entries with an expert of their own, oldest first."""
    entries = active_entries(entries)
    found = owners(entries)
    return [entry for entry in entries if found[entry.id] is entry]


def sharing_expert(entries: Iterable[LedgerEntry], names: Iterable[str]) -> set[str]:
    """Return these entries and those that share an expert with one of them."""
    found, names = owners(entries), set(names)
    shared = {found[name].id for name in names if name in found}
    return names | {name for name, owner in found.items() if owner.id in shared}


def with_held(entries: Sequence[LedgerEntry], names: Iterable[str]) -> set[str]:
    """Return these entries and all that they hold, directly or through other entries."""
    found = set(names)
    for entry in reversed(entries):  # what an entry holds is older
        if entry.id in found:
            found.update(entry.holds)
    return found


def dependents(entries: Sequence[LedgerEntry], names: Iterable[str]) -> set[str]:
    """Return the active entries that depend on one of these: those learned while it was enabled, those that share an
    expert with them, and in turn what depends on these."""
    names = set(names)
    found = set(names)
    while more := {entry.id for entry in active_entries(entries) if set(entry.parents) & found} - found:
        found |= sharing_expert(entries, more)
    return found - names


def tokens_ingested(entries: Iterable[LedgerEntry]) -> int:
    """Return the tokens of all nights except those that were rolled back, whose records are ingested again."""
    return sum(entry.tokens for entry in entries if entry.rolled_back is None)


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Read the entries of a ledger, oldest first.

    Raises:
        `ValueError`: if it is missing, damaged or empty: every night writes a line.
    """
    try:
        entries = [LedgerEntry.model_validate(row) for row in read_jsonl(path)]
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ValueError(f"{path} is damaged, or of another version ({reason}). Restore it from a copy.") from None
    if not entries:
        raise ValueError(f"{path} is empty, but every night writes a line. Restore it from a copy.")
    return entries


def write_ledger(path: Path, entries: list[LedgerEntry]) -> None:
    """Write a ledger by atomic rename."""
    write_jsonl(path, (entry.model_dump(mode="json") for entry in entries), is_checked=True)


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
