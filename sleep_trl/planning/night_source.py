"""The memories of a night, and nights from a wake buffer: `--memories wake:PATH`.

Such a night stores the records it began with, so that it resumes with the same ones whatever arrives meanwhile, and
registers with the buffer. From then on the buffer's states follow the night's ledger, once there is one: a record is
learned exactly once, wherever the night is killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.memory_source import MemorySource
from ..data.documents import MemoryText
from ..data.sources import DatasetOptions, Reading, read_all, read_memories
from ..runs.checksums import check
from ..runs.files import read_json, write_jsonl
from ..runs.folder import RunFolder
from ..wake.buffer import WakeBuffer

if TYPE_CHECKING:
    from ..config import RunConfig


def check_buffer(path: Path) -> None:
    """Raise `ValueError` if there is no wake buffer."""
    if not path.is_file():
        raise ValueError(f"memories: there is no wake buffer {path}. Create one with `sleep-trl wake add`.")


def read_new(path: Path) -> list[MemoryText]:
    """Return the records of a buffer that are waiting for a night.

    Raises:
        `ValueError`: if there is no buffer, or nothing is waiting in it.
    """
    check_buffer(path)
    with WakeBuffer(path) as buffer:
        if not (memories := buffer.memories("new")):
            counts = ", ".join(f"{count} {state}" for state, count in buffer.counts().items())
            raise ValueError(f"memories: the wake buffer {path} holds nothing new ({counts}).")
    return memories


def dataset_options(config: RunConfig) -> DatasetOptions:
    """Return what a run reads of its memories if they are a data set."""
    return DatasetOptions(config.dataset_config, config.dataset_train_split, config.dataset_columns)


def night_memories(config: RunConfig) -> Reading:
    """Return the memories of a night. From a wake buffer: the records it began with, or those waiting now if it has not
    begun. None if it removes entries.

    Raises:
        `ValueError`: if nothing can be read, or with `strict` if any file or row cannot be read.
    """
    source = config.source
    if source.forget:
        return Reading(config.memories, [], [])
    if source.buffer is None:
        reading = read_all(config.memories, dataset_options(config))
        if config.strict:
            reading.check()
        return reading
    is_begun = RunFolder(config.output_dir).is_begun
    return Reading(config.memories, began_with(config.output_dir) if is_begun else read_new(source.buffer), [])


def begin_night(config: RunConfig, memories: list[MemoryText]) -> None:
    """Store the records of a night from a wake buffer, and register the night with the buffer. Idempotent; must come
    before config.json is written."""
    path = config.source.buffer
    if path is not None:
        write_jsonl(RunFolder(config.output_dir).ingested, (memory.as_row() for memory in memories), is_checked=True)
    elif config.source.forget:
        path = followed_by(config.continue_from)
    if path is None:
        return
    with WakeBuffer(path) as buffer:
        buffer.register(config.output_dir)


def followed_by(run: Path | None) -> Path | None:
    """Return the buffer that a run, or the newest of those it continues, took its records from."""
    while run is not None and RunFolder(run).is_begun:
        config = read_json(RunFolder(run).config)
        if (path := MemorySource.parse(config["memories"]).buffer) is not None:
            return path if path.is_file() else None
        run = Path(config["continue_from"]) if config["continue_from"] else None
    return None


def began_with(night: Path) -> list[MemoryText]:
    """Return the records that a night from a wake buffer began with, without those that were forgotten since."""
    path = RunFolder(night).ingested
    check(path)
    return read_memories(str(path)) if path.stat().st_size else []


def waiting_since_it_began(config: RunConfig) -> list[MemoryText]:
    """Return the records that wait in the buffer of a night that has begun, and are not the night's."""
    path = config.source.buffer
    if path is None or not path.is_file() or not RunFolder(config.output_dir).is_begun:
        return []
    taken = {memory.sha256 for memory in began_with(config.output_dir)}
    with WakeBuffer(path) as buffer:
        return [memory for memory in buffer.memories("new") if memory.sha256 not in taken]


def fail_unused(config: RunConfig, unused: Sequence[MemoryText]) -> None:
    """Mark records about which the teacher wrote nothing usable as failed: later nights skip them unless they are
    ingested again. For a night that has a ledger; idempotent."""
    if (path := config.source.buffer) is None or not unused:
        return
    with WakeBuffer(path) as buffer:
        buffer.fail((memory.id for memory in unused), f"nothing usable was written about it in {config.output_dir}")
