"""Phases of a run, each done once: its result lies on disk before the next begins, so that a run resumes where it
was."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .files import read_json, write_json

EVERY = 5.0  # seconds after which a phase notes how long it has taken; a kill leaves no more uncounted


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
        path, is_writer = self.folder / f"{name}.json", PartialState().is_main_process
        [is_done] = broadcast_object_list([path.exists()])  # the first process says it, before any begins
        if not is_done:
            watch = Stopwatch(self.folder / f"{name}.seconds") if is_writer else None
            with watch or nullcontext():
                result = work()
            if watch:
                write_json(path, {"seconds": round(watch.seconds, 3), "result": result})
                watch.path.unlink()
            PartialState().wait_for_everyone()
        done = read_json(path)
        self.seconds[name] = done["seconds"]
        return done["result"]


class Stopwatch:
    """Counts the seconds of a phase, those of earlier sittings that were interrupted among them.

    Args:
        path (`Path`):
            Where they are noted while the phase is under way, so that a kill leaves [`EVERY`] seconds out at most.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: float = read_json(path) if path.exists() else 0.0

    def __enter__(self) -> None:
        self._since, self._is_over = time.perf_counter(), Event()
        self._thread = Thread(target=self._keep, name="stopwatch", daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if error is None:
            self._note()
        else:
            with suppress(OSError):  # what went wrong is worth more than how long it took
                self._note()

    def _keep(self) -> None:
        with suppress(OSError):  # a full disk, on which the phase itself will fail and say so
            while not self._is_over.wait(EVERY):
                self._note()

    def _note(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        write_json(self.path, self.seconds)
