"""The lock of a run's folder: whoever changes a run holds it alone, and a night that continues a run shares it.

The operating system releases a lock when its process ends, however it ends. This is `flock` itself, because several
nights that continue one run have to share its lock.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".lock"
MAX_COMMAND = 200  # characters of a command that are shown


class RunInUse(RuntimeError):
    """Another process works on the run."""


@contextmanager
def run_lock(folder: Path, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock of a run.

    A folder that cannot be written has no lock: nothing can be changed in it either.

    Args:
        folder (`Path`):
            The run's folder, created if it is missing, and removed again if nothing is written to it.
        is_shared (`bool`, *optional*, defaults to `False`):
            Whether others may share it, because the run is only read.

    Raises:
        `RunInUse`: if another process holds it.
    """
    is_new = not folder.exists()
    file = _open(folder / NAME)
    if file is None:
        yield
        return
    try:
        _acquire(file, folder, is_shared)
        try:
            yield
        finally:
            _remove(file, folder, is_new)
    finally:
        os.close(file)


def _open(path: Path) -> int | None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    return None


def _acquire(file: int, folder: Path, is_shared: bool) -> None:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        is_current = os.path.samestat(os.fstat(file), os.stat(folder / NAME))  # else its last holder has removed it
    except (BlockingIOError, FileNotFoundError):
        is_current = False
    if not is_current:
        holder = os.pread(file, 2 * MAX_COMMAND, 0).decode(errors="replace") or "another process"
        raise RunInUse(
            f"{folder} is in use by {holder}. Wait until it ends, or stop it, and try again. A night that was stopped "
            f"takes what was changed meanwhile into account when it is resumed."
        )
    command = "".join(c if c.isprintable() else "?" for c in " ".join(sys.argv))
    shown = command if len(command) <= MAX_COMMAND else f"{command[:MAX_COMMAND]}…"
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} ({shown})".encode(), 0)


def _remove(file: int, folder: Path, is_new: bool) -> None:
    """Remove the lock's file unless others share it, and the folder if it was made for it."""
    with suppress(OSError):  # also if others share it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(folder / NAME)):
            (folder / NAME).unlink()
        if is_new:
            folder.rmdir()
