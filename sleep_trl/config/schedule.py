"""Which level is consolidated after how many tokens of wake input (method 3.1; Eq. 1 and 2 of the paper).

Levels run from fast to slow: level 0 is the context, levels 1 to k are experts next to the MLPs. When a level's chunk
is full, the level is consolidated into the next one and emptied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

LADDER = (1_000, 5_000, 10_000)
"""The paper's chunk sizes (appendix B), in tokens of wake input, of levels 0, 1 and 2."""


@dataclass(frozen=True)
class Edge:
    """One step of the chain: a level and the slower one that it is consolidated into.

    Args:
        sender (`int`):
            Level that is consolidated and then emptied.
        receiver (`int`, *optional*):
            Level that activates an expert for it. `None` for the slowest level: its accumulated update is applied
            (Eq. 2), but nothing is consolidated.
        chunk (`int`):
            The sender's chunk size, in tokens.
    """

    sender: int
    receiver: int | None
    chunk: int


@dataclass(frozen=True)
class Schedule:
    """The chunk sizes of the levels, fast to slow, and what falls due when.

    Args:
        chunks (`tuple[int, ...]`, *optional*, defaults to the paper's `(1000, 5000, 10000)`):
            Tokens of wake input after which a level's chunk is full, level 0 (the context) first. Each divides the
            next, so that a boundary of a slow level is one of every faster level too.

    Raises:
        `ValueError`: if there are fewer than two levels, or a size is not a larger multiple of the one before.
    """

    chunks: tuple[int, ...] = LADDER

    def __post_init__(self) -> None:
        if len(self.chunks) < 2:
            raise ValueError(
                f"A schedule needs the chunk sizes of at least two levels, the context and a level of experts; "
                f"{len(self.chunks)} given. Give two or more, such as {_shown(LADDER)}."
            )
        if self.chunks[0] < 1:
            raise ValueError(f"A chunk holds at least 1 token, but {self.chunks[0]} was given. Give a larger number.")
        for fast, slow in pairwise(self.chunks):
            if slow <= fast or slow % fast:
                raise ValueError(
                    f"Chunk sizes must grow from level to level and each must divide the next, but {slow} follows "
                    f"{fast} in {_shown(self.chunks)}. Give sizes such as {_shown(LADDER)}."
                )

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, fast to slow; the last has no receiver."""
        receivers = [*range(1, len(self.chunks)), None]
        return tuple(Edge(level, receivers[level], chunk) for level, chunk in enumerate(self.chunks))

    def due(self, tokens: int) -> tuple[Edge, ...]:
        """Return the edges that fall due when exactly this many tokens have been ingested, slow to fast.

        Slow to fast, so that a level is emptied before a faster one is consolidated into it.

        Args:
            tokens (`int`):
                Tokens ingested since the beginning; nothing is due at 0.
        """
        return tuple(edge for edge in reversed(self.edges) if tokens > 0 and tokens % edge.chunk == 0)

    def between(self, ingested: int, until: int) -> Iterator[tuple[int, tuple[Edge, ...]]]:
        """Yield each boundary with the edges due there, in the order in which they are reached.

        Args:
            ingested (`int`):
                Tokens that have been ingested already; a boundary there has been passed.
            until (`int`):
                Tokens after the next input, boundary included.
        """
        step = self.chunks[0]
        for tokens in range(ingested // step * step + step, until + 1, step):
            yield tokens, self.due(tokens)

    def next_boundary(self, ingested: int) -> int:
        """Return the total number of tokens at which the next edge falls due."""
        return (ingested // self.chunks[0] + 1) * self.chunks[0]


def _shown(chunks: tuple[int, ...]) -> str:
    return ",".join(map(str, chunks))
