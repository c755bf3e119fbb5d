"""The folder of a run before it starts: free, resumable, or somebody else's."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import RunConfig
from ..runs.files import read_json
from ..runs.folder import RunFolder
from .plan import MIB

OURS = ("adapter", "model", "phases", "checkpoints", "ledger.jsonl", "report.html")
MAY_CHANGE = {"resume", "dry_run", "output_dir", "report", "seeding.logging_steps"}
"""Options that may differ when a run is resumed: they change nothing that is computed."""

WINDOWS = "seeding.max_completion_length"
"""The one option of the seeding by which memories are cut, so that what was done before the seeding depends on it."""


def check_output(config: RunConfig) -> None:
    """Raise if `output_dir` cannot be written, or if what is there and `--resume` do not agree."""
    folder = config.output_dir
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "may not be written to" if parent.is_dir() else "is a file"
        raise ValueError(f"output_dir: {folder} cannot be made, since {parent} {reason}. Give another --output_dir.")
    is_begun, is_done = (folder / "config.json").is_file(), (folder / "results.json").is_file()
    if is_done:
        raise ValueError(
            f"output_dir: {folder} holds a finished run (results.json). Give another --output_dir; "
            f"to build on that run, --continue_from {folder}."
        )
    if config.resume and not is_begun:
        raise ValueError(
            f"--resume: {folder} holds no interrupted run (config.json is missing). Leave out "
            f"--resume, or give the run's folder as --output_dir."
        )
    if is_begun and not config.resume:
        raise ValueError(
            f"output_dir: {folder} holds an unfinished run. Go on with it by --resume, or give another --output_dir."
        )
    foreign = [name for name in OURS if (folder / name).exists()]
    if foreign and not is_begun and not (foreign == ["phases"] and _was_about_to_begin(folder / "phases")):
        raise ValueError(
            f"output_dir: {folder} holds {', '.join(foreign)}, which a run would overwrite. Give another --output_dir."
        )
    if config.resume and (changed := changed_options(config, folder / "config.json")):
        raise ValueError(
            f"--resume: the run in {folder} was begun with other options: {'; '.join(changed)}. "
            f"Give the same, or begin anew in another --output_dir."
        )


def changed_options(config: RunConfig, earlier: Path) -> list[str]:
    """Return what differs from the configuration that a run was begun with, one phrase an option."""
    then = dict(_flat(_complete(read_json(earlier))))
    now = dict(_flat(config.model_dump(mode="json")))
    names = [name for name in {**then, **now} if name not in MAY_CHANGE]
    if not _seeding_has_begun(earlier.parent):
        names = [name for name in names if name == WINDOWS or name.split(".")[0] not in ("rewards", "seeding")]
    return [
        f"{name} (then {then.get(name)!r}, now {now.get(name)!r})" for name in names if then.get(name) != now.get(name)
    ]


def _complete(begun: dict[str, Any]) -> dict[str, Any]:
    """Give a configuration that an earlier version wrote the options that are new since, at their defaults."""
    try:
        return RunConfig.model_validate(begun).model_dump(mode="json")
    except ValidationError:
        return begun


def _was_about_to_begin(phases: Path) -> bool:
    """Tell whether a night was killed when it had kept what it is about, and written nothing else."""
    name = RunFolder(phases.parent).ingested.name
    return phases.is_dir() and {path.name for path in phases.iterdir()} <= {name, f"{name}.partial"}


def _seeding_has_begun(folder: Path) -> bool:
    """Tell whether anything on disk was made with the rewards and the options of the seeding: a night's own, or that of
    a consolidation before it."""
    return any((folder / "phases").glob("seed*.json")) or any(folder.glob("checkpoints*/checkpoint-*"))


def check_disk(folder: Path, needed: int) -> None:
    """Raise if the disk has less room than a run needs, in bytes."""
    free = shutil.disk_usage(_existing_parent(folder)).free
    if free < needed:
        raise ValueError(
            f"output_dir: {folder} needs about {needed / MIB:,.0f} MiB, but its disk has "
            f"{free / MIB:,.0f} MiB left. Make room, or give another --output_dir."
        )


def disk_trouble(folder: Path, error: Exception) -> str | None:
    """Return in words why a folder can no longer be written, and what to do, or `None` if the error is another one.

    Libraries tell of a full disk each in their own way, so the disk itself is asked too.
    """
    place = _existing_parent(folder)
    if not os.access(place, os.W_OK):
        return f"{folder} can no longer be written: {place} is read-only. Make it writable"
    is_told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if is_told or shutil.disk_usage(place).free < MIB:
        return f"The disk of {folder} is full. Make room"
    return None


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the single values of nested mappings by dotted names; free-form ones stay whole."""
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("extra", "chat_template_kwargs"):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
