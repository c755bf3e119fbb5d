"""How much of what is there to learn fits a night, if `seeding.steps` or `levels.chunks` limits it (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from ..data.documents import MemoryText
from ..runs.ledger import LedgerEntry, active_entries


def select_memories(
    memories: Sequence[MemoryText],
    sizes: Mapping[str, int],
    room: int,
    earlier: Sequence[LedgerEntry] = (),
    may_exceed: bool = False,
) -> tuple[list[MemoryText], list[MemoryText]]:
    """Take as many memories as there is room for, in the order they arrived.

    If not all of them fit, those that the run has learned already are left out, unless there are no others, and those
    of nights that were rolled back come last. At least one memory is taken, however long it is. Memories are not
    measured beyond the first that does not fit.

    Args:
        memories (`Sequence[MemoryText]`):
            What there is to learn.
        sizes (`Mapping[str, int]`):
            The size of each memory by its id: its windows, or its tokens.
        room (`int`):
            What fits: the rows about memories in all steps of the night, or the tokens until a chunk is full.
        earlier (`Sequence[LedgerEntry]`, *optional*):
            The ledger of the run that is continued.
        may_exceed (`bool`, *optional*, defaults to `False`):
            Whether the last memory may exceed the room, so that a chunk becomes full.

    Returns:
        `tuple[list[MemoryText], list[MemoryText]]`: the memories that the night learns, in their order, and those that
        wait for another night.
    """
    if len(memories) < 2 or all(total <= room for total in accumulate(sizes[memory.id] for memory in memories)):
        return list(memories), []
    known = {source.sha256 for entry in active_entries(earlier) for source in entry.sources}
    tried = {source.sha256 for entry in earlier if entry.rolled_back for source in entry.sources}
    waiting = [memory for memory in memories if memory.sha256 not in known] or list(memories)
    taken: set[str] = set()
    for memory in sorted(waiting, key=lambda memory: memory.sha256 in tried):
        if taken and (room <= 0 if may_exceed else sizes[memory.id] > room):
            break
        room -= sizes[memory.id]
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


def count_sleeps(tokens: Iterable[int], ingested: int, chunk: int) -> int:
    """Return in how many nights memories of so many tokens are learned, if a night ends with the memory that fills a
    chunk and `ingested` tokens were learned before."""
    nights, boundary = 0, ingested
    for count in tokens:
        if ingested >= boundary:
            nights, boundary = nights + 1, (ingested // chunk + 1) * chunk
        ingested += count
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
