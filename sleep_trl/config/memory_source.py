"""What `--memories` names: documents, a wake buffer, or entries to take back. Parsed here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WAKE = "wake:"
FORGET = "forget:"
BETWEEN = "+"  # entries; a comma separates nights


@dataclass(frozen=True)
class MemorySource:
    """The parsed value of `--memories`. Of the three fields one is set.

    Args:
        documents (`str`, *optional*):
            A file, a folder or the name of a data set.
        buffer (`Path`, *optional*):
            A wake buffer, from `wake:PATH`.
        forget (`tuple[str, ...]`, *optional*):
            Ledger entries to take back, from `forget:ENTRY+ENTRY`.
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
