"""A night as a child process: launched, waited for, interrupted; and the lock that keeps two from the same life."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

LOCK = "live.lock"
GRACE = 60.0  # seconds that an interrupted night has to end; then it is killed, which costs it its last steps only
LOOK = 0.2  # seconds between two looks at what is left of a night


@dataclass(frozen=True)
class Launcher:
    """How a night is started.

    Args:
        command (`tuple[str, ...]`):
            What launch/sleep.py and its arguments are put behind, such as `("accelerate", "launch")`.
        output (`IO[str]`, *optional*):
            Where the night's standard output goes. Default: to this process's.
    """

    command: tuple[str, ...]
    output: IO[str] | None = None

    @staticmethod
    def read(words: str | None, output: IO[str] | None = None) -> Launcher:
        """Read a launcher as one writes it in a shell; by default it is this Python, in one process.

        Raises:
            `ValueError`: if it cannot be read, or there is no such program.
        """
        if words is None:
            return Launcher((sys.executable,), output)
        try:
            program, *rest = shlex.split(words)
        except ValueError as error:  # also if it is empty
            raise ValueError(
                f"--launch: {words!r} is no command ({error}). Give such as 'accelerate launch'."
            ) from None
        beside = Path(sys.executable).with_name(program)  # a virtual environment that was not activated
        if (found := shutil.which(program) or shutil.which(beside)) is None:
            raise ValueError(f"--launch: there is no program {program!r}. Give its path, or install it.")
        return Launcher((found, *rest), output)

    def run(self, arguments: Sequence[str], lock: int) -> int:
        """Run launch/sleep.py to its end and return its exit code, 128 and the signal's number if it was killed.

        It has a process group of its own, so that Ctrl-C reaches it through here alone. Nothing of the group outlives
        this call.

        Args:
            arguments (`Sequence[str]`):
                Of launch/sleep.py.
            lock (`int`):
                The life's lock, which the night holds too: if this process is killed, the night goes on to its end, and
                a new one waits for it.

        Raises:
            `KeyboardInterrupt`: if it was raised here; the night was interrupted likewise, and has ended.
        """
        script = find_spec("sleep_trl.launch.sleep")
        assert script and script.origin
        command = [*self.command, script.origin, *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, pass_fds=[lock], process_group=0
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _signal(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
        finally:
            _end(process)
        return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for what is left of a night, such as the workers of a launcher that has ended, and kill what stays."""
    end = time.monotonic() + GRACE
    with suppress(KeyboardInterrupt):  # who asks twice is not kept waiting
        while process.poll() is not None and _signal(process.pid, 0) and time.monotonic() < end:
            time.sleep(LOOK)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group, and tell whether there was one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def alone_with(folder: Path, check_every: float, told: Callable[[], None]) -> Iterator[int]:
    """Hold the lock of a life, waiting for it if another process has it, and yield its file descriptor.

    Args:
        folder (`Path`):
            Of the life; made if it is missing.
        check_every (`float`):
            Seconds between two tries.
        told (`Callable[[], None]`):
            Called once if the lock has to be waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        is_told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not is_told:
                    told()
                is_told = True
                time.sleep(check_every)
        yield file.fileno()
