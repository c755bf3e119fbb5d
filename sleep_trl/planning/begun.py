"""What a night began with. If that changes before the night ends, what it has done so far is of no use: it starts over.

A night trains in the presence of the experts of the run that it continues, and repeats its prompts. If an entry of that
run is dropped, disabled or enabled, or one of the night's records is forgotten, a resumed night would bring it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..data.documents import MemoryText
from ..distributed.progress import echo
from ..runs import checksums
from ..runs.files import read_json, remove, write_json, write_jsonl
from ..runs.folder import RunFolder
from ..runs.lock import RunInUse, run_lock
from ..wake.buffer import WakeBuffer
from .chain import quarantined_nights
from .night_source import began_with

if TYPE_CHECKING:
    from ..config import RunConfig

IsGone = Callable[[MemoryText], bool]


class Changed(RuntimeError):
    """What a night began with has changed, so it has to start over."""


@contextmanager
def night_lock(config: RunConfig) -> Iterator[None]:
    """Hold the locks of a night on every process: its folder's, and a shared one of the run that it continues.

    A night that is resumed after a change starts over: see [`changes`].

    Raises:
        `RunInUse`: if another process works on one of the folders.
        `Changed`: if all records of the night were forgotten, so that nothing is left of it.
    """
    with ExitStack() as locks:
        error: RuntimeError | None = None
        if PartialState().is_main_process:
            try:
                locks.enter_context(run_lock(config.output_dir))
                if config.continue_from is not None and config.continue_from.is_dir():
                    locks.enter_context(run_lock(config.continue_from, is_shared=True))
                if config.resume:
                    _start_over_if_changed(config)
            except (RunInUse, Changed) as found:
                error = found
        [error] = broadcast_object_list([error])  # the others read the folder only now
        if error is not None:
            raise error
        yield


def record_beginning(config: RunConfig, memories: Iterable[MemoryText]) -> None:
    """Store what a night begins with, once.

    Raises:
        `ValueError`: if the night has begun with other memories.
    """
    path, hashes = RunFolder(config.output_dir).began, [memory.sha256 for memory in memories]
    if not path.is_file():
        write_json(path, {"continues": _state_of(config.continue_from), "memories": hashes}, is_checked=True)
    elif read_json(path)["memories"] != hashes:
        raise ValueError(
            f"memories: {config.memories} has changed since the night in {config.output_dir} began. Restore it to "
            f"resume, or start over in another --output_dir."
        )


def changes(config: RunConfig) -> str:
    """Return what has changed since a night began that makes it start over, or an empty string."""
    found, began = [], RunFolder(config.output_dir).began
    if began.is_file() and read_json(began)["continues"] != _state_of(config.continue_from):
        found.append(f"an entry of {config.continue_from} was dropped, disabled or enabled")
    if count := len(_forgotten(config)):
        found.append(f"{count} of its records {'was' if count == 1 else 'were'} forgotten")
    return " and ".join(found)


def start_over(folder: Path, is_gone: IsGone = lambda memory: False) -> None:
    """Remove what a night that has not ended, or was quarantined, has done and written. It keeps its options and the
    records that it took from a wake buffer.

    Args:
        folder (`Path`):
            The night's folder.
        is_gone (`Callable`, *optional*):
            Whether a record is to be removed too.
    """
    run = RunFolder(folder)
    taken = began_with(folder) if run.ingested.is_file() else []
    done = [*run.all_checkpoints, run.adapter.path, run.model, run.dream_adapter, run.report, *run.partial]
    kept = (run.ingested, run.given, run.began, run.phases / checksums.NAME)
    done += [path for path in run.phases.glob("*") if path not in kept]
    checksums.forget([*done, run.ledger, run.began])
    for path in done:
        remove(path)
    if run.ledger.is_file() and run.config.is_file() and (buffer := _buffer_of(folder)):
        with WakeBuffer(buffer) as opened:
            opened.requeue(memory.sha256 for memory in taken)
    remove(run.ledger)
    remove(run.began)
    if run.ingested.is_file():  # last: until then, what is gone is found again
        write_jsonl(run.ingested, (memory.as_row() for memory in taken if not is_gone(memory)), is_checked=True)


@dataclass
class Copies:
    """Where nights have copies of records.

    Args:
        erased (`list[Path]`): nights that were begun or quarantined, from which they were erased.
        kept (`list[Path]`): finished nights, which were not changed.
        in_use (`dict[Path, str]`): nights in progress, and who works on them. They start over without the records.
    """

    erased: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    in_use: dict[Path, str] = field(default_factory=dict)


def erase(nights: Iterable[Path], is_gone: IsGone) -> Copies:
    """Erase records from nights that took them from a wake buffer, and from the quarantined nights next to them."""
    nights = list(nights)
    beside = [
        night for parent in dict.fromkeys(night.parent for night in nights) for night in quarantined_nights(parent)
    ]
    copies = Copies()
    for night in dict.fromkeys([*nights, *beside]):
        run = RunFolder(night)
        is_held = run.ingested.is_file() and any(map(is_gone, began_with(night)))
        if run.is_committed:
            if is_held:
                copies.kept.append(night)
            continue
        unfinished = [*run.partial, *run.phases.glob("*.partial")]  # of killed writes; they may hold a record too
        if not is_held and not unfinished:
            continue
        try:
            with run_lock(night):
                if is_held:
                    start_over(night, is_gone)
                    copies.erased.append(night)
                for path in unfinished:
                    remove(path)
        except RunInUse as error:
            if is_held:
                copies.in_use[night] = str(error)
    return copies


def _start_over_if_changed(config: RunConfig) -> None:
    run = RunFolder(config.output_dir)
    if run.is_finished or not run.is_begun or not (why := changes(config)):
        return
    forgotten = _forgotten(config)
    start_over(config.output_dir, lambda memory: memory.sha256 in forgotten)
    if config.source.buffer is not None and not began_with(config.output_dir):
        remove(run.phases)
        remove(run.config)
        raise Changed(f"All records of the night in {config.output_dir} were forgotten, so it was removed.")
    echo(f"The night in {config.output_dir} starts over, because {why} since it began.")


def _state_of(run: Path | None) -> str:
    """Return a hash of what a night depends on of the run that it continues: its entries and their experts' states."""
    if run is None:
        return ""
    files = RunFolder(run)
    contents = [path.read_bytes() for path in (files.ledger, files.adapter.description) if path.is_file()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _forgotten(config: RunConfig) -> set[str]:
    """Return the hashes of those of a night's records that its wake buffer has forgotten since it began."""
    path, run = config.source.buffer, RunFolder(config.output_dir)
    if path is None or not path.is_file() or not run.ingested.is_file():
        return set()
    with WakeBuffer(path) as buffer:
        return buffer.forgotten() & {memory.sha256 for memory in began_with(config.output_dir)}


def _buffer_of(night: Path) -> Path | None:
    from ..config.memory_source import MemorySource

    path = MemorySource.parse(read_json(RunFolder(night).config)["memories"]).buffer
    return path if path and path.is_file() else None
