"""Tokens and windows of memories, derived when they are first asked for, so that a night limited by its steps reads no
more of a long queue than it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..data.documents import MemoryText
from ..data.windows import CountAll, split_all

BLOCK = 2**20  # characters of consecutive memories that are split together


class Sizes(dict[str, int]):
    """Sizes of memories by id, each derived when it is first asked for."""

    def __init__(self, derive: Callable[[str], int]) -> None:
        super().__init__()
        self._derive = derive

    def __missing__(self, name: str) -> int:
        size = self[name] = self._derive(name)
        return size


class Splits:
    """Splits memories into windows and counts their tokens.

    Args:
        memories (`Sequence[MemoryText]`):
            The memories.
        count_all (`Callable[[Sequence[str]], Sequence[int]]`):
            Returns the lengths of texts in tokens.
        window (`int`):
            Maximum length of a window, in tokens.
        overlap (`int`):
            Maximum number of tokens that a window repeats from the previous one.
    """

    def __init__(self, memories: Sequence[MemoryText], count_all: CountAll, window: int, overlap: int) -> None:
        self._memories, self._count_all = memories, count_all
        self._window, self._overlap = window, overlap
        self._numbers = {memory.id: number for number, memory in enumerate(memories)}
        self._found: dict[str, tuple[int, list[str]]] = {}
        self.token_counts, self.window_counts = Sizes(self.tokens), Sizes(lambda name: len(self.windows(name)))

    def tokens(self, name: str) -> int:
        """Return the length of a memory in tokens."""
        return self._split(name)[0]

    def windows(self, name: str) -> list[str]:
        """Return the windows of a memory."""
        return self._split(name)[1]

    def _split(self, name: str) -> tuple[int, list[str]]:
        """Split a memory and those that follow it, as they are usually asked for in turn."""
        if name not in self._found:
            block, size = list[MemoryText](), 0
            for number in range(self._numbers[name], len(self._memories)):
                memory = self._memories[number]
                if block and (size + len(memory.text) > BLOCK or memory.id in self._found):
                    break
                block.append(memory)
                size += len(memory.text)
            texts = [memory.text for memory in block]
            totals = self._count_all(texts)
            windows = split_all(texts, self._count_all, self._window, self._overlap, totals)
            self._found.update(zip((m.id for m in block), zip(totals, windows, strict=True), strict=True))
        return self._found[name]
