"""What `--memories` names: documents, a wake buffer, or entries to unlearn. Parsed here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WAKE = "wake:"
FORGET = "forget:"
BETWEEN = "+"  # separates entries; a comma separates nights


@dataclass(frozen=True)
class MemorySource:
    """The parsed value of `--memories`. Exactly one of the fields is set.

    Args:
        documents (`str`, *optional*):
            A file, a folder or the name of a data set.
        buffer (`Path`, *optional*):
            A wake buffer, from `wake:PATH`.
        forget (`tuple[str, ...]`, *optional*):
            Ledger entries to unlearn, from `forget:ENTRY+ENTRY`.
    """

    documents: str | None = None
    buffer: Path | None = None
    forget: tuple[str, ...] = ()

    @staticmethod
    def parse(memories: str) -> MemorySource:
        """Parse the value of `--memories`."""
        if memories.startswith(WAKE):
            return MemorySource(buffer=Path(memories.removeprefix(WAKE)))
        if memories.startswith(FORGET):
            return MemorySource(forget=tuple(memories.removeprefix(FORGET).split(BETWEEN)))
        return MemorySource(documents=memories)

    def __str__(self) -> str:
        if self.buffer is not None:
            return f"{WAKE}{self.buffer}"
        return FORGET + BETWEEN.join(self.forget) if self.forget else str(self.documents)
