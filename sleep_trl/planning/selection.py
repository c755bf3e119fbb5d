"""How much of what is there to learn fits a night, if `seeding.steps` limits it (ours)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ..data.documents import MemoryText
from ..runs.ledger import LedgerEntry, active_entries


def select_memories(
    memories: Sequence[MemoryText],
    windows: Mapping[str, Collection[str]],
    rows: int,
    earlier: Sequence[LedgerEntry] = (),
) -> tuple[list[MemoryText], list[MemoryText]]:
    """Take as many memories as get a row for each of their windows, in the order they arrived.

    If not all of them fit, those that the run has learned already are left out, unless there are no others, and those
    of nights that were rolled back come last. At least one memory is taken, however long it is.

    Args:
        memories (`Sequence[MemoryText]`):
            What there is to learn.
        windows (`Mapping[str, Collection[str]]`):
            The windows of each memory, by its id.
        rows (`int`):
            Rows about memories in all steps of the night.
        earlier (`Sequence[LedgerEntry]`, *optional*):
            The ledger of the run that is continued.

    Returns:
        `tuple[list[MemoryText], list[MemoryText]]`: the memories that the night learns, in their order, and those that
        wait for another night.
    """
    if sum(len(windows[memory.id]) for memory in memories) <= rows:
        return list(memories), []
    known = {source.sha256 for entry in active_entries(earlier) for source in entry.sources}
    tried = {source.sha256 for entry in earlier if entry.rolled_back for source in entry.sources}
    waiting = [memory for memory in memories if memory.sha256 not in known] or list(memories)
    taken: set[str] = set()
    for memory in sorted(waiting, key=lambda memory: memory.sha256 in tried):
        rows -= len(windows[memory.id])
        if rows < 0 and taken:
            break
        taken.add(memory.id)
    return [m for m in memories if m.id in taken], [m for m in waiting if m.id not in taken]


def count_nights(windows: Iterable[int], rows: int) -> int:
    """Return in how many nights memories with so many windows are learned in turn, each with `rows` rows about them and
    with one memory at least."""
    nights = left = 0
    for count in windows:
        if not nights or count > left:
            nights, left = nights + 1, rows
        left -= count
    return nights


def divide(count: int, parts: int, turn: int) -> list[int]:
    """Divide a count among parts as evenly as possible. If there is not one for each, `turn` determines whose turn it
    is."""
    return apportion([1] * parts, count, turn)


def apportion(weights: Sequence[int], count: int, turn: int) -> list[int]:
    """Divide a count among parts in proportion to their weights. What is left over goes to parts in turn, beginning
    with number `turn`."""
    total, parts = sum(weights), len(weights)
    shares = [count * weight // total for weight in weights]
    for number in range(count - sum(shares)):
        shares[(turn + number) % parts] += 1
    return shares
