"""SIGTERM, by which service managers and schedulers stop a process, ends a night as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_as_interrupt() -> Iterator[Callable[[], bool]]:
    """Raise `KeyboardInterrupt` at the first SIGTERM, and yield a function that says whether it came. The second one
    ends the process at once, and so does the first in a forked child.

    Nothing changes if there is a handler already, or in one of several launched processes: when one of them fails, the
    launcher ends the others by SIGTERM, and one that waits for it in a collective would not run a handler.
    """
    received, process = list[int](), os.getpid()

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:
            signal.raise_signal(number)
        received.append(number)
        raise KeyboardInterrupt

    if not _applies():
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: bool(received)
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:  # and not of another library meanwhile
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _applies() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and int(os.environ.get("WORLD_SIZE", 1)) == 1
    )
