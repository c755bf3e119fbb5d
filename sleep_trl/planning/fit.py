"""What a night takes of the memories that there are, and what waits for another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from ..config import RunConfig
from ..config.run import AUTO
from ..config.schedule import Schedule
from ..data.documents import MemoryText
from ..runs.ledger import LedgerEntry, tokens_ingested
from .extent import COUNTED, characters
from .former_runs import began_in_0_1
from .night_source import waiting_since_it_began
from .selection import count_nights, count_sleeps, select_memories
from .splits import Splits


class Fit:
    """What fits a night: everything, unless `seeding.steps` or the chunk of level 0 limits it.

    Args:
        config (`RunConfig`):
            The night.
        available (`list[MemoryText]`):
            What there is to learn.
        rows (`int`):
            Rows about memories in all steps of the night; counts only if `seeding.steps` is given, as the next one.
        rows_after (`int`):
            The same of a night that continues this one.
        read_earlier (`Callable[[], list[LedgerEntry]]`):
            Returns the ledger as the night begins. Called when it is first needed, as the next two.
        read_splits (`Callable[[], Splits]`):
            Returns what counts the tokens and windows of each memory.
        estimate_sizes (`Callable[[Sequence[MemoryText]], tuple[Mapping[str, int], Mapping[str, int]]]`):
            Returns the tokens and windows of memories by id, estimated, for a queue that takes long to count.
    """

    def __init__(
        self,
        config: RunConfig,
        available: list[MemoryText],
        *,
        rows: int,
        rows_after: int,
        read_earlier: Callable[[], list[LedgerEntry]],
        read_splits: Callable[[], Splits],
        estimate_sizes: Callable[[Sequence[MemoryText]], tuple[Mapping[str, int], Mapping[str, int]]],
    ) -> None:
        self.config, self.available = config, available
        self.rows, self.rows_after = rows, rows_after
        self._read_earlier, self._read_splits, self._estimate_sizes = read_earlier, read_splits, estimate_sizes

    @property
    def taken(self) -> list[MemoryText]:
        """The memories that the night learns."""
        return self._selection[0]

    @cached_property
    def tokens(self) -> int:
        """Tokens of the memories that the night learns."""
        return sum(self._tokens[memory.id] for memory in self.taken)

    @cached_property
    def queued(self) -> list[MemoryText]:
        """The memories that wait for another night, because they do not fit this one."""
        if self.config.seeding.steps is None and self.room is None:
            return []
        return self._selection[1] or waiting_since_it_began(self.config)

    @cached_property
    def nights_after(self) -> int:
        """Nights of the same length that it takes to learn what is queued, if each window gets its row. An estimate, if
        `is_estimated`."""
        waiting = self._selection[1]
        names, by_tokens = [memory.id for memory in waiting], 0
        tokens, windows = self._estimate_sizes(waiting) if self.is_estimated else (self._tokens, self._windows)
        if self.room is not None:
            ingested = tokens_ingested(self._earlier) + self.tokens
            by_tokens = count_sleeps([tokens[name] for name in names], ingested, self.config.levels.chunks[0])
        if self.config.seeding.steps is None:
            return by_tokens
        return max(by_tokens, count_nights([windows[name] for name in names], self.rows_after))

    @property
    def is_estimated(self) -> bool:
        """Whether so much is queued that `nights_after` is an estimate."""
        return characters(self._selection[1]) > COUNTED

    @cached_property
    def room(self) -> int | None:
        """Tokens until the chunk of level 0 is full, if it divides what arrives into nights: a wake buffer, or memories
        with `nights auto`. Otherwise `None`."""
        chunks, is_stream = self.config.levels.chunks, self.config.nights == AUTO or self.config.source.buffer
        if not (chunks and is_stream) or began_in_0_1(self.config):
            return None
        ingested = tokens_ingested(self._earlier)
        return Schedule(chunks).next_boundary(ingested) - ingested

    @property
    def limit(self) -> str:
        """What limits the night, in words."""
        if self.room is None:
            return "these steps"
        chunk = f"a chunk of {self.config.levels.chunks[0]:,} tokens"
        return chunk if self.config.seeding.steps is None else f"these steps and {chunk}"

    @cached_property
    def _earlier(self) -> list[LedgerEntry]:
        return self._read_earlier()

    @property
    def _tokens(self) -> Mapping[str, int]:
        return self._read_splits().token_counts

    @property
    def _windows(self) -> Mapping[str, int]:
        return self._read_splits().window_counts

    @cached_property
    def _selection(self) -> tuple[list[MemoryText], list[MemoryText]]:
        taken, waiting = self.available, list[MemoryText]()
        if self.room is not None:
            taken, waiting = select_memories(taken, self._tokens, self.room, self._earlier, may_exceed=True)
        if self.config.seeding.steps is None or began_in_0_1(self.config):
            return taken, waiting
        taken, more = select_memories(taken, self._windows, self.rows, self._earlier)
        return taken, [*more, *waiting]
