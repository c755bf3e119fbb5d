"""Phases of a run. A result is on disk before the next phase starts, so an interrupted run resumes where it stopped."""

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
from .host_memory import give_back

SAVE_EVERY = 5.0  # seconds between two saves of a phase's elapsed time; a kill loses no more than this


class Phases:
    """Runs each phase of a run once, keeping its result in a JSON file.

    Args:
        folder (`Path`):
            Folder of the files.
        check (`Callable[[], None]`, *optional*):
            Called on the main process before a phase is run; what it raises is raised on every process.
    """

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self.folder, self.check = folder, check
        self.seconds: dict[str, float] = {}

    def is_done(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of a phase, from disk if it is done, else by running it.

        Args:
            name (`str`):
                Name of the phase.
            work (`Callable[[], Any]`):
                Runs the phase on every process and returns JSON data; that of the main process is written.
        """
        path, is_writer = self.folder / f"{name}.json", PartialState().is_main_process
        [is_done, problem] = broadcast_object_list(self._start(path))  # the main process decides, before any starts
        if problem:
            raise problem
        if not is_done:
            watch = Stopwatch(self.folder / f"{name}.seconds") if is_writer else None
            with watch or nullcontext():
                result = work()
            give_back()  # else what a phase has freed counts against the next
            if watch:
                write_json(path, {"seconds": round(watch.seconds, 3), "result": result}, is_checked=True)
                watch.path.unlink()
            PartialState().wait_for_everyone()
        done = read_json(path)
        self.seconds[name] = done["seconds"]
        return done["result"]

    def _start(self, path: Path) -> list[Any]:
        """Return whether a phase is done, and what keeps it from being run, if anything."""
        if path.exists() or not PartialState().is_main_process:
            return [path.exists(), None]
        try:
            self.check()
        except Exception as error:
            return [False, error]
        return [False, None]


class Stopwatch:
    """Measures the seconds of a phase, including earlier attempts that were interrupted.

    Args:
        path (`Path`):
            File they are saved to while the phase runs, so that a kill loses at most [`SAVE_EVERY`] seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: float = read_json(path) if path.exists() else 0.0

    def __enter__(self) -> None:
        self._since, self._is_done = time.perf_counter(), Event()
        self._thread = Thread(target=self._save_regularly, name="stopwatch", daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_done.set()
        self._thread.join()
        if error is None:
            self._save()
        else:
            with suppress(OSError):  # the phase's own error matters more
                self._save()

    def _save_regularly(self) -> None:
        with suppress(OSError):  # on a full disk the phase itself fails with a message
            while not self._is_done.wait(SAVE_EVERY):
                self._save()

    def _save(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        write_json(self.path, self.seconds)
