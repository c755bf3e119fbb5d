"""Runs a night as a child process, and holds the lock that keeps two processes from working on the same chain."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

LOCK = "live.lock"
GRACE = 60.0  # seconds an interrupted night has to end before it is killed, which only loses its last steps
POLL = 0.2  # seconds between two checks for remaining processes of a night


@dataclass(frozen=True)
class Launcher:
    """How a night is started.

    Args:
        command (`tuple[str, ...]`):
            Command that launch/sleep.py and its arguments are appended to, such as `("accelerate", "launch")`.
        output (`IO[str]`, *optional*):
            Where the night's standard output goes. Default: this process's.
    """

    command: tuple[str, ...]
    output: IO[str] | None = None

    @staticmethod
    def parse(command: str | None, output: IO[str] | None = None) -> Launcher:
        """Parse a launcher as written in a shell. Default: this Python, in one process.

        Raises:
            `ValueError`: if it cannot be parsed, or there is no such program.
        """
        if command is None:
            return Launcher((sys.executable,), output)
        try:
            program, *rest = shlex.split(command)
        except ValueError as error:  # also if the command is empty
            raise ValueError(
                f"--launch: {command!r} is not a command ({error}). Give, for example, 'accelerate launch'."
            ) from None
        nearby = Path(sys.executable).with_name(program)  # in a virtual environment that was not activated
        if (found := shutil.which(program) or shutil.which(nearby)) is None:
            raise ValueError(f"--launch: there is no program {program!r}. Give its path, or install it.")
        return Launcher((found, *rest), output)

    def run(self, arguments: Sequence[str], lock: int) -> int:
        """Run launch/sleep.py and return its exit code: 128 plus the signal's number if it was killed.

        The night runs in its own process group, so that Ctrl-C reaches it only through this process. No process of the
        group outlives this call.

        Args:
            arguments (`Sequence[str]`):
                Arguments of launch/sleep.py.
            lock (`int`):
                File descriptor of the chain's lock, which the night also holds. If this process is killed, the night
                continues to its end, and another process waits for it.

        Raises:
            `KeyboardInterrupt`: if this process was interrupted; the night was interrupted too, and has ended.
        """
        script = find_spec("sleep_trl.launch.sleep")
        assert script and script.origin
        command = [*self.command, script.origin, *arguments]
        with _deferred_interrupts() as raise_deferred:  # one inside Popen would leave a night that nobody waits for
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self.output, pass_fds=[lock], process_group=0
            )
        try:
            raise_deferred()
            code = process.wait()
        except KeyboardInterrupt:
            _signal(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
        finally:
            _end(process)
        return code if code >= 0 else 128 - code


@contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Note SIGINT and SIGTERM, and yield a function that raises the first that came, for the handlers of before."""
    received: list[int] = []

    def raise_deferred() -> None:
        if received:
            signal.raise_signal(received[0])

    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield raise_deferred
        return
    former = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield raise_deferred
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for remaining processes of a night, such as the workers of a launcher that has ended, then kill them."""
    end = time.monotonic() + GRACE
    with suppress(KeyboardInterrupt):  # second Ctrl-C: kill now
        while process.poll() is not None and _signal(process.pid, 0) and time.monotonic() < end:
            time.sleep(POLL)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group, and return whether it exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def chain_lock(folder: Path, check_every: float, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the lock of a chain, waiting if another process has it, and yield its file descriptor.

    Args:
        folder (`Path`):
            The chain's folder, created if it is missing.
        check_every (`float`):
            Seconds between two tries.
        on_wait (`Callable[[], None]`):
            Called once if another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        is_waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not is_waiting:
                    on_wait()
                is_waiting = True
                time.sleep(check_every)
        yield file.fileno()
