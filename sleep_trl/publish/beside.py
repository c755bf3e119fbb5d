"""Other folders that know what is dropped from a run: nights next to it, and runs before and after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ..planning.begun import start_over
from ..planning.chain import quarantined_nights
from ..runs.files import read_json
from ..runs.finished import FinishedRun
from ..runs.folder import RunFolder
from ..runs.ledger import active_entries, read_ledger
from ..runs.lock import run_lock


def erase_beside(run: FinishedRun, source: str | None) -> list[Path]:
    """Remove what nights next to a run have done that were begun or quarantined, and return their folders.

    None of those that continue the run is in progress, because it would share the run's lock.

    Args:
        run (`FinishedRun`):
            The run, from which entries are dropped.
        source (`str`, *optional*):
            A source whose records are removed too.
    """
    chain, erased = run.folder.parent, []
    unfinished = [night for night in _beside(run.folder) if not RunFolder(night).is_finished]
    quarantined = set(quarantined_nights(chain))
    for night in unfinished:
        if RunFolder(night).phases.is_dir() and (night in quarantined or _continues(night, run.folder)):
            with run_lock(night):
                start_over(night, lambda memory: memory.source == source)
            erased.append(night)
    return erased


def related_runs(run: FinishedRun) -> Iterator[Path]:
    """Yield the finished runs that a run continues, and those next to it that continue it, directly or through
    others."""
    yield from (one.folder for one in run.earlier())
    finished, found = [path for path in _beside(run.folder) if RunFolder(path).is_committed], [run.folder]
    for folder in found:  # grows
        found += [path for path in finished if path not in found and _continues(path, folder)]
    yield from found[1:]


def may_hold(folder: Path, names: Collection[str]) -> bool:
    """Return whether a run holds one of these entries, as far as its ledger can be read."""
    try:
        return any(entry.id in names for entry in active_entries(read_ledger(RunFolder(folder).ledger)))
    except (ValueError, OSError):
        return True


def _beside(run: Path) -> list[Path]:
    """Return the folders next to a run in which a night was begun."""
    return sorted(path for path in run.parent.iterdir() if path != run and RunFolder(path).is_begun)


def _continues(night: Path, run: Path) -> bool:
    before = read_json(RunFolder(night).config).get("continue_from")
    return before is not None and Path(before).resolve() == run.resolve()
