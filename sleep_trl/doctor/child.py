"""Python in a process of its own, for what takes long, crashes, or leaves traces: it has a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

IMPORT_WITHIN = 180.0  # seconds; the first import of vLLM compiles its files


class ChildFailed(RuntimeError):
    """A child raised, was killed, or did not end in time; the message is the last line of all that it `said`."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


def run_python(*command: str, deadline: float) -> str:
    """Run Python with this process's paths, and return what it printed.

    Args:
        command (`str`):
            Arguments, such as `"-c", "import ray"`.
        deadline (`float`):
            Seconds after which it is killed.

    Raises:
        `ChildFailed`: if it does not end well.
    """
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)  # `-P`: no folder that it starts in
    try:
        done = subprocess.run(
            [sys.executable, "-P", *command],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=deadline,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode(errors="replace")  # bytes, whatever was asked for
        raise ChildFailed(f"no end within {deadline:.0f} s", said) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ChildFailed(lines[-1] if lines else f"ended with exit code {done.returncode}", done.stderr)
    return done.stdout


def import_error(statement: str) -> str | None:
    """Return why an import fails in a process of its own, or `None` if it does not. Each is tried once."""
    return _import_error(statement, tuple(sys.path))


@cache
def _import_error(statement: str, paths: tuple[str, ...]) -> str | None:
    try:
        run_python("-c", statement, deadline=IMPORT_WITHIN)
    except ChildFailed as error:
        return str(error)
    return None
