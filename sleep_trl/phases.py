"""Phases of a run, each done once: its result lies on disk before the next begins, so that a run resumes where it
was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from .files import read_json, write_json


class Phases:
    """Results of finished phases, one JSON file each, under the run's folder.

    Args:
        folder (`Path`):
            Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}

    def is_done(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of a phase: from disk if it has been done, else by doing it now.

        Args:
            name (`str`):
                Name of the phase.
            work (`Callable[[], Any]`):
                Does it, on every process; returns plain data, of which the main process's is written.
        """
        path = self.folder / f"{name}.json"
        PartialState().wait_for_everyone()
        if not path.exists():
            start = time.perf_counter()
            result = work()
            if PartialState().is_main_process:
                write_json(path, {"seconds": round(time.perf_counter() - start, 3), "result": result})
            PartialState().wait_for_everyone()
        done = read_json(path)
        self.seconds[name] = done["seconds"]
        return done["result"]
