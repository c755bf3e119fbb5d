"""The loop of `sleep-trl live`: wait, run a night, wait again. Progress is read from the chain's folder each time, so
that the loop continues where it stopped, whatever was killed."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import time as Hour
from pathlib import Path
from typing import Any

from ..config.exit_codes import DONE, TRY_AGAIN, USER_ERROR
from ..planning.chain import begun, is_finished, leaves_a_rest, quarantined_nights
from ..planning.night_source import began_with
from ..runs.folder import RunFolder, night_folder
from ..runs.ledger import read_ledger
from .clock import Alarm
from .pending import Pending, PendingRecords
from .subprocess_night import Launcher, chain_lock

LONGEST_PAUSE = 3600.0  # seconds between two attempts at a night

Report = Callable[[str, dict[str, Any]], None]
"""Called with each event and its fields."""


@dataclass(frozen=True)
class SleepPolicy:
    """When to sleep, and what to do when a night fails.

    Args:
        after_tokens (`int`, *optional*):
            Sleep as soon as this many tokens are pending.
        at (`datetime.time`, *optional*):
            Sleep at this local time each day, if any record is pending.
        nights (`int`, *optional*):
            Number of nights of the chain after which to stop, including earlier ones. Default: do not stop.
        check_every (`float`, *optional*, defaults to 10):
            Seconds between two checks of the buffer.
        tries (`int`, *optional*, defaults to 5):
            Attempts at a night before the loop gives up.
        pause (`float`, *optional*, defaults to 60):
            Seconds before a failed night is retried, doubled after each attempt, up to an hour.

    Raises:
        `ValueError`: if neither `after_tokens` nor `at` is given.
    """

    after_tokens: int | None = None
    at: Hour | None = None
    nights: int | None = None
    check_every: float = 10.0
    tries: int = 5
    pause: float = 60.0

    def __post_init__(self) -> None:
        if self.after_tokens is None and self.at is None:
            raise ValueError("No schedule is given. Give --after_tokens N, --at HH:MM, or both, or --levels.chunks.")


class Supervisor:
    """Waits and runs nights, each in its own process.

    Args:
        chain (`Path`):
            The chain's `output_dir`.
        memories (`str`):
            The memories of new nights: `wake:` and the buffer's path.
        arguments (`Sequence[str]`):
            Arguments of launch/sleep.py, without the memories.
        launcher (`Launcher`):
            Starts a night.
        pending (`PendingRecords`):
            Counts pending records.
        policy (`SleepPolicy`):
            When to sleep.
        report (`Report`):
            Called with each event.
    """

    def __init__(
        self,
        chain: Path,
        memories: str,
        arguments: Sequence[str],
        launcher: Launcher,
        pending: PendingRecords,
        policy: SleepPolicy,
        report: Report,
    ) -> None:
        self.chain, self.memories, self.arguments = chain, memories, arguments
        self.launcher, self.pending, self.policy, self.report = launcher, pending, policy, report
        self._alarm = Alarm(policy.at, _now()) if policy.at else None
        self._reported: Pending | None = None
        self._is_night = False  # whether the scheduled time has come and what was pending then is not learned yet
        self._unavailable = ""  # why the buffer could not be read

    def run(self) -> int:
        """Run nights until all are finished and return 0, or until one fails for good and return its exit code.

        Raises:
            `KeyboardInterrupt`: if interrupted. A night in progress has ended and will be resumed by the next call.
        """
        every = self.policy.check_every
        with chain_lock(self.chain, every, lambda: self.report("waiting_for_lock", {"chain": str(self.chain)})) as lock:
            while not self._is_done():
                if (why := self._why_now()) is None:
                    time.sleep(every)
                elif (code := self._sleep(why, lock)) != DONE:
                    return code
        self.report("done", {"nights": len(begun(self.chain))})
        return DONE

    def _is_done(self) -> bool:
        return self.policy.nights is not None and self._finished() >= self.policy.nights

    def _finished(self) -> int:
        """Return the number of finished nights: all that were started, or all but the last."""
        count = len(begun(self.chain))
        return count - (count > 0 and not is_finished(night_folder(self.chain, count)))

    def _why_now(self) -> str | None:
        """Return the reason to sleep now, or `None`."""
        if self._finished() < len(begun(self.chain)):
            return "resuming an interrupted night"
        if (pending := self._count()) is None:
            return None
        is_time = self._alarm is not None and self._alarm.rings(_now())
        if pending != self._reported:
            self.report("pending", {"records": pending.records, "tokens": pending.tokens})
            self._reported = pending
        if self.policy.after_tokens and (pending.tokens or 0) >= self.policy.after_tokens:
            return f"{pending.tokens:,} tokens pending"
        if is_time and not pending.records:
            self.report("nothing_new", {})
        self._is_night = bool(pending.records) and (is_time or (self._is_night and self._left_a_rest()))
        return "scheduled time" if self._is_night else None

    def _left_a_rest(self) -> bool:
        """Whether records wait because they did not fit the newest night: it is short by seeding.steps or
        levels.chunks."""
        count = self._finished()
        return count > 0 and leaves_a_rest(RunFolder(night_folder(self.chain, count)))

    def _count(self) -> Pending | None:
        """Return what is pending, or `None` if the buffer cannot be read for a while, such as on a full disk."""
        try:
            pending = self.pending.count()
        except (OSError, RuntimeError, ValueError, sqlite3.Error) as error:
            if self._reported is None:
                raise  # it never could be read
            if self._unavailable != (reason := str(error)):
                self.report("buffer_unavailable", {"reason": reason})
            self._unavailable = reason
            return None
        self._unavailable = ""
        return pending

    def _sleep(self, why: str, lock: int) -> int:
        """Run a night, retrying if it fails, and return its exit code. A quarantined night counts as success, and its
        records stay pending; so does one of which all records were forgotten."""
        number, quarantined = self._finished() + 1, quarantined_nights(self.chain)
        night, pause = night_folder(self.chain, number), self.policy.pause
        for attempt in range(1, self.policy.tries + 1):
            self.report("started", {"night": str(night), "why": why, "attempt": attempt})
            start = time.monotonic()
            code = self.launcher.run(self._arguments(number), lock)
            if code == DONE:
                self._report_finished(night, time.monotonic() - start)
                return DONE
            if (found := quarantined_nights(self.chain)) != quarantined:
                self.report("quarantined", {"night": str(found[-1]), "records": len(began_with(found[-1]))})
                return DONE
            if code == TRY_AGAIN and not RunFolder(night).is_begun and not self._has_pending():
                self.report("nothing_left", {"night": str(night)})
                return DONE
            retry_in = None if code == USER_ERROR or attempt == self.policy.tries else pause
            self.report("failed", {"night": str(night), "exit_code": code, "retry_in": retry_in})
            if retry_in is None:
                break
            time.sleep(retry_in)
            why, pause = "retrying after a failure", min(2 * pause, LONGEST_PAUSE)
        return code

    def _has_pending(self) -> bool:
        pending = self._count()
        return pending is None or pending.records > 0

    def _arguments(self, number: int) -> list[str]:
        """Return the arguments of launch/sleep.py for the next night. Earlier nights keep their memories."""
        nights = [*begun(self.chain), self.memories][:number]
        return [*self.arguments, f"--nights={json.dumps(nights)}", "--resume"]

    def _report_finished(self, night: Path, seconds: float) -> None:
        if not is_finished(night):
            raise RuntimeError(
                f"The launcher {' '.join(self.launcher.command)} ended with exit code 0, but {night} is not finished. "
                f"Give --launch a command that runs what is appended to it."
            )
        entry = read_ledger(RunFolder(night).ledger)[-1]
        fields = {"night": str(night), "entry": entry.id, "records": len(entry.sources)}
        self.report("finished", fields | {"seconds": round(seconds, 1), "rolled_back": entry.rolled_back})


def _now() -> datetime:
    return datetime.now().astimezone()
