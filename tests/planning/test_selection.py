"""What fits a night, and how it is divided."""

import pytest

from sleep_trl.data.documents import MemoryText
from sleep_trl.data.rows import count_steps, take_turns
from sleep_trl.planning.selection import apportion, count_nights, count_sleeps, divide, select_memories
from sleep_trl.runs.ledger import LedgerEntry, Source

MEMORIES = [MemoryText(name, "in", f"text {name}") for name in "abcd"]
WINDOWS = {"a": 1, "b": 2, "c": 1, "d": 1}


def entry(*memories: MemoryText, rolled_back: str | None = None) -> LedgerEntry:
    place = {"expert": 0, "level": 1, "fingerprint": "", "base": "", "parents": ()}
    sources = tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in memories)
    dropped = "2026-01-01" if rolled_back else None
    return LedgerEntry(id="e", date="", sources=sources, metrics={}, dropped=dropped, rolled_back=rolled_back, **place)


def ids(selection: tuple[list[MemoryText], list[MemoryText]]) -> tuple[str, str]:
    taken, queued = selection
    return "".join(m.id for m in taken), "".join(m.id for m in queued)


def test_memories_are_taken_as_far_as_their_windows_get_rows() -> None:
    assert ids(select_memories(MEMORIES, WINDOWS, 5)) == ("abcd", "")
    assert ids(select_memories(MEMORIES, WINDOWS, 4)) == ("abc", "d")
    assert ids(select_memories(MEMORIES, WINDOWS, 2)) == ("a", "bcd")
    assert ids(select_memories(MEMORIES[1:], WINDOWS, 1)) == ("b", "cd")  # one at least


def test_memories_that_are_known_are_left_out_and_those_rolled_back_come_last() -> None:
    assert ids(select_memories(MEMORIES, WINDOWS, 4, [entry(*MEMORIES[:2])])) == ("cd", "")
    assert ids(select_memories(MEMORIES, WINDOWS, 4, [entry(*MEMORIES)])) == ("abc", "d")
    assert ids(select_memories(MEMORIES, WINDOWS, 3, [entry(MEMORIES[0], rolled_back="why")])) == ("bc", "ad")


def test_a_count_is_divided_evenly_and_in_turn() -> None:
    assert divide(16, 4, 3) == [4, 4, 4, 4]
    assert sum(divide(5, 4, 0)) == 5
    assert sorted(tuple(divide(1, 3, turn)) for turn in range(3)) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_windows_and_documents_take_turns() -> None:
    samples = ["a1", "a1", "a1", "a2", "b1", "b1"]
    ordered = take_turns(samples, lambda s: s, lambda s: s[0])
    assert ordered[:2] == ["a1", "b1"] and sorted(ordered[:3]) == ["a1", "a2", "b1"]
    assert sorted(ordered) == sorted(samples)


def test_passes_become_steps() -> None:
    assert count_steps(1, 4, 6) == 1 and count_steps(100, 4, 6) == 67 and count_steps(0, 4, 6) == 1
    assert apportion([8, 1], 9, 0) == [8, 1] and apportion([8, 1], 4, 1) == [3, 1] and apportion([3, 3], 3, 0) == [2, 1]


@pytest.mark.parametrize(
    ("windows", "rows", "nights"),
    [([], 5, 0), ([1] * 10, 5, 2), ([3, 3, 3], 5, 3), ([9, 1], 5, 2), ([2, 2, 1, 4], 5, 2)],
)
def test_nights_are_counted_as_they_are_filled(windows, rows, nights):
    assert count_nights(windows, rows) == nights


def test_a_chunk_ends_with_the_memory_that_fills_it() -> None:
    tokens = {"a": 300, "b": 600, "c": 200, "d": 900}
    assert ids(select_memories(MEMORIES, tokens, 1000, may_exceed=True)) == ("abc", "d")
    assert ids(select_memories(MEMORIES, tokens, 900, may_exceed=True)) == ("ab", "cd")
    assert ids(select_memories(MEMORIES[3:], tokens, 100, may_exceed=True)) == ("d", "")


@pytest.mark.parametrize(
    ("tokens", "ingested", "sleeps"),
    [([], 0, 0), ([300, 600, 200, 900], 0, 2), ([250] * 12, 0, 3), ([250] * 12, 500, 4), ([5000, 1], 0, 2)],
)
def test_sleeps_are_the_boundaries_that_the_schedule_has(tokens, ingested, sleeps) -> None:
    assert count_sleeps(tokens, ingested, 1000) == sleeps
