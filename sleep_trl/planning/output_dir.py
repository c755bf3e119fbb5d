"""The folder of a run before it starts: is it free, resumable, or in use?"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import RunConfig
from ..runs import checksums
from ..runs.files import read_json
from ..runs.folder import RunFolder
from .shape import MIB

MAY_CHANGE = {"resume", "dry_run", "output_dir", "report", "seeding.logging_steps"}
"""Options that may differ when a run is resumed, since they do not change any result."""

OF_A_LAUNCH = {".log", ".out", ".err", ".yaml", ".yml"}
"""Extensions of what may be in the folder before a run begins: a log of the launch, or its configuration."""

OF_A_DISK = "lost+found"  # in the root of a volume

SHOWN = 3  # names that a message lists

BEFORE_SEEDING = {f"seeding.{name}" for name in ("max_completion_length", "passes", "steps", "prompts_per_step")}
"""The options of `seeding` that affect phases before the seeding: the windows of memories, and how much is written."""


def check_output(config: RunConfig) -> None:
    """Raise if `output_dir` cannot be written, or if its content and `--resume` do not agree."""
    folder = config.output_dir
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "is not writable" if parent.is_dir() else "is a file"
        raise ValueError(f"output_dir: {folder} cannot be created: {parent} {reason}. Give another --output_dir.")
    run = RunFolder(folder)
    if run.is_finished:
        raise ValueError(
            f"output_dir: {folder} holds a finished run (results.json). Give another --output_dir; "
            f"to build on that run, --continue_from {folder}."
        )
    if config.resume and not run.is_begun:
        raise ValueError(
            f"--resume: {folder} does not hold an interrupted run (config.json is missing). Leave out --resume, or "
            f"give the run's folder as --output_dir."
        )
    if run.is_begun and not config.resume:
        raise ValueError(
            f"output_dir: {folder} holds an unfinished run. Resume it with --resume, or give another --output_dir."
        )
    foreign = [path.name for path in _written_by_runs(run) if path.exists()]
    if foreign and not run.is_begun and not (foreign == [run.phases.name] and _was_about_to_begin(run)):
        raise ValueError(
            f"output_dir: {folder} holds {', '.join(foreign)}, which a run would overwrite. Give another --output_dir."
        )
    if not run.is_begun and (foreign := _foreign(folder)):
        more = f" and {len(foreign) - SHOWN:,} more" if len(foreign) > SHOWN else ""
        raise ValueError(
            f"output_dir: {folder} holds {', '.join(foreign[:SHOWN])}{more}, and no run. Give a new or empty folder as "
            f"--output_dir; only hidden files, logs (.log, .out, .err) and configurations (.yaml, .yml) may be there."
        )
    if config.resume and (changed := changed_options(config, run.config)):
        raise ValueError(
            f"--resume: the run in {folder} was begun with other options: {'; '.join(changed)}. Leave them out "
            f"to keep those, or start over in another --output_dir."
        )


def changed_options(config: RunConfig, earlier: Path) -> list[str]:
    """Return the options that differ from those a run was begun with, one phrase each."""
    from .run_dtype import recorded_dtype  # imports torch

    then = dict(_flat(_complete(read_json(earlier)))) | {"dtype": recorded_dtype(earlier.parent)}
    now = dict(_flat(config.model_dump(mode="json")))
    names = [name for name in {**then, **now} if name not in MAY_CHANGE]
    if config.dtype == "auto":  # keeps what the run was begun with
        names.remove("dtype")
    if not _seeding_has_begun(RunFolder(earlier.parent)):
        names = [n for n in names if n in BEFORE_SEEDING or n.split(".")[0] not in ("rewards", "seeding")]
    return [
        f"{name} (then {then.get(name)!r}, now {now.get(name)!r})" for name in names if then.get(name) != now.get(name)
    ]


def _complete(begun: dict[str, Any]) -> dict[str, Any]:
    """Add the options that are new since the version that wrote a configuration, at their defaults."""
    try:
        return RunConfig.model_validate(begun).model_dump(mode="json")
    except ValidationError:
        return begun


def _written_by_runs(run: RunFolder) -> tuple[Path, ...]:
    return (run.adapter.path, run.model, run.phases, run.checkpoints, run.ledger, run.report)


def _foreign(folder: Path) -> list[str]:
    """Return what a folder without a run holds that neither a launch has left there, nor a run that was killed before
    it had begun, or whose records were all forgotten."""
    run, found = RunFolder(folder), sorted(folder.iterdir()) if folder.is_dir() else []
    own = {run.phases.name, run.tensorboard.name, checksums.NAME, OF_A_DISK}
    others = (path for path in found if path.name not in own and path.suffix not in {*OF_A_LAUNCH, ".partial"})
    return [path.name for path in others if not path.name.startswith(".")]


def _was_about_to_begin(run: RunFolder) -> bool:
    """Whether a night was killed after it had stored its records and before it wrote anything else."""
    names = {run.ingested.name, run.began.name, run.before.name, checksums.NAME}
    return run.phases.is_dir() and {path.name.removesuffix(".partial") for path in run.phases.iterdir()} <= names


def _seeding_has_begun(run: RunFolder) -> bool:
    """Whether anything on disk depends on the rewards and the options of `seeding`: the night's own seeding, or that of
    a consolidation before it."""
    return any(run.phases.glob("seed*.json")) or any(any(folder.glob("checkpoint-*")) for folder in run.all_checkpoints)


def check_disk(folder: Path, needed: int) -> None:
    """Raise if the disk has less free space than a run needs, in bytes."""
    free = shutil.disk_usage(_existing_parent(folder)).free
    if free < needed:
        raise ValueError(
            f"output_dir: {folder} needs about {needed / MIB:,.0f} MiB, but its disk has {free / MIB:,.0f} MiB left. "
            f"Free some space, or give another --output_dir."
        )


def disk_trouble(folder: Path, error: Exception) -> str | None:
    """Return why a folder can no longer be written, and what to do, or `None` if the error has another cause.

    Libraries report a full disk in different ways, so the disk itself is checked too.
    """
    place = _existing_parent(folder)
    if not os.access(place, os.W_OK):
        return f"{folder} can no longer be written: {place} is read-only. Make it writable"
    is_reported = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if is_reported or shutil.disk_usage(place).free < MIB:
        return f"The disk of {folder} is full. Free some space"
    return None


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by dotted names; free-form mappings stay whole."""
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("extra", "chat_template_kwargs"):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
