"""The dtype of a run: fixed when it begins, and kept by whatever resumes or continues it."""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..models.dtype import DtypeChoice, choose_dtype, dtype_without_measuring
from ..runs.files import read_json
from ..runs.folder import RunFolder


def choose_run_dtype(config: RunConfig) -> DtypeChoice:
    """Choose the dtype of a run's frozen base: as asked for, or with `auto` that of the run that is resumed or
    continued, or else whatever suits this machine."""
    if config.resume and RunFolder(config.output_dir).is_begun:
        then = recorded_dtype(config.output_dir)
        if config.dtype in ("auto", then):  # another one is refused, see `check_output`
            return DtypeChoice(then, "with which the run was begun")
    if config.dtype != "auto":
        return choose_dtype(config.dtype)
    if config.continue_from is not None and RunFolder(config.continue_from).is_begun:
        return DtypeChoice(recorded_dtype(config.continue_from), f"as in {config.continue_from}")
    return choose_dtype("auto")


def recorded_dtype(run: Path) -> str:
    """Return the dtype of a run that was begun: what its config.json says, or its model. A run with `auto` in its
    config.json is of a version that measured no CPU."""
    folder = RunFolder(run)
    for file in (folder.config, folder.model / "config.json"):
        if file.is_file() and (name := read_json(file).get("dtype", "auto")) != "auto":
            return str(name)
    return dtype_without_measuring()
