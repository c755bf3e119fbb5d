"""The loop of a life without end: wait, sleep, wait again. What has been slept is read from the life's folder each
time, so that it goes on where it was, whatever was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import time as Hour
from pathlib import Path
from typing import Any

from ..planning.chain import begun, is_finished, night_folder, quarantined_nights
from ..planning.night_source import began_with
from ..runs.ledger import read_ledger
from .clock import Alarm
from .pending import PendingRecords, Waiting
from .subprocess_night import Launcher, alone_with

DONE, MISTAKE = 0, 2
LONGEST_PAUSE = 3600.0  # seconds between two tries of a night

Tell = Callable[[str, dict[str, Any]], None]
"""Is told what happens: the kind of event, and its particulars."""


@dataclass(frozen=True)
class SleepPolicy:
    """When a life sleeps, and what it does when a night fails.

    Args:
        after_tokens (`int`, *optional*):
            Sleep as soon as so many tokens wait.
        at (`datetime.time`, *optional*):
            Sleep at this hour each day, in local time, if anything waits.
        nights (`int`, *optional*):
            Nights of the life after which it ends, those from before included. Default: it does not end.
        check_every (`float`, *optional*, defaults to 10):
            Seconds between two looks at the buffer.
        tries (`int`, *optional*, defaults to 5):
            How often a night is tried before the loop gives up.
        pause (`float`, *optional*, defaults to 60):
            Seconds before a failed night is tried again, twice as many after each further try, at most an hour.

    Raises:
        `ValueError`: if neither a number of tokens nor an hour is given.
    """

    after_tokens: int | None = None
    at: Hour | None = None
    nights: int | None = None
    check_every: float = 10.0
    tries: int = 5
    pause: float = 60.0

    def __post_init__(self) -> None:
        if self.after_tokens is None and self.at is None:
            raise ValueError("When to sleep is not said. Give --after_tokens N, --at HH:MM, or both.")


class Supervisor:
    """Waits and lets nights be slept, each in a process of its own.

    Args:
        life (`Path`):
            The life's `output_dir`.
        memories (`str`):
            `wake:` and the buffer's path, which the nights to come are about.
        arguments (`Sequence[str]`):
            Of launch/sleep.py, without what nights are about.
        launcher (`Launcher`):
            Starts a night.
        listener (`PendingRecords`):
            Counts what waits.
        habits (`SleepPolicy`):
            When to sleep.
        tell (`Tell`):
            Is told what happens.
    """

    def __init__(
        self,
        chain: Path,
        memories: str,
        arguments: Sequence[str],
        launcher: Launcher,
        pending: PendingRecords,
        policy: SleepPolicy,
        tell: Tell,
    ) -> None:
        self.chain, self.memories, self.arguments = chain, memories, arguments
        self.launcher, self.pending, self.policy, self.tell = launcher, pending, policy, tell
        self._alarm = Alarm(policy.at, _now()) if policy.at else None
        self._told: Waiting | None = None

    def run(self) -> int:
        """Live until all nights are slept, and return 0, or until one cannot be, and return its exit code.

        Raises:
            `KeyboardInterrupt`: if it was raised; a night that was being slept has ended, and goes on another time.
        """
        every = self.policy.check_every
        with alone_with(self.chain, every, lambda: self.tell("held", {"life": str(self.chain)})) as lock:
            while not self._is_over():
                if (why := self._why_now()) is None:
                    time.sleep(every)
                elif (code := self._sleep(why, lock)) != DONE:
                    return code
        self.tell("over", {"nights": len(begun(self.chain))})
        return DONE

    def _is_over(self) -> bool:
        return self.policy.nights is not None and self._finished() >= self.policy.nights

    def _finished(self) -> int:
        """Count the nights that were slept to their end: all that were begun, or all but the last."""
        count = len(begun(self.chain))
        return count - (count > 0 and not is_finished(night_folder(self.chain, count)))

    def _why_now(self) -> str | None:
        """Return why it is time to sleep, or `None` if it is not."""
        if self._finished() < len(begun(self.chain)):
            return "a night was interrupted"
        is_hour = self._alarm is not None and self._alarm.rings(_now())
        waiting = self.pending.waiting()
        if waiting != self._told:
            self.tell("waiting", {"records": waiting.records, "tokens": waiting.tokens})
            self._told = waiting
        if self.policy.after_tokens and (waiting.tokens or 0) >= self.policy.after_tokens:
            return f"{waiting.tokens:,} tokens wait"
        if is_hour and not waiting.records:
            self.tell("nothing new", {})
        return "the hour has come" if is_hour and waiting.records else None

    def _sleep(self, why: str, lock: int) -> int:
        """Let a night be slept, again if it fails, and return its exit code. One that is set aside is none, and what it
        was about waits on."""
        number, quarantined = self._finished() + 1, quarantined_nights(self.chain)
        night, pause = night_folder(self.chain, number), self.policy.pause
        for attempt in range(1, self.policy.tries + 1):
            self.tell("night", {"night": str(night), "why": why, "try": attempt})
            start = time.monotonic()
            code = self.launcher.run(self._arguments(number), lock)
            if code == DONE:
                self._tell_of(night, time.monotonic() - start)
                return DONE
            if (found := quarantined_nights(self.chain)) != quarantined:
                self.tell("aside", {"night": str(found[-1]), "records": len(began_with(found[-1]))})
                return DONE
            again = None if code == MISTAKE or attempt == self.policy.tries else pause
            self.tell("failed", {"night": str(night), "exit_code": code, "again_in": again})
            if again is None:
                break
            time.sleep(again)
            why, pause = "it failed", min(2 * pause, LONGEST_PAUSE)
        return code

    def _arguments(self, number: int) -> list[str]:
        """Return the arguments of launch/sleep.py for the next night: those before it stay what they were about."""
        nights = [*begun(self.chain), self.memories][:number]
        return [*self.arguments, f"--nights={json.dumps(nights)}", "--resume"]

    def _tell_of(self, night: Path, seconds: float) -> None:
        if not is_finished(night):
            raise RuntimeError(
                f"The launcher {' '.join(self.launcher.command)} ended with exit code 0, but {night} is not finished. "
                f"Give one to --launch that runs what is put behind it."
            )
        entry = read_ledger(night / "ledger.jsonl")[-1]
        told = {"night": str(night), "entry": entry.id, "records": len(entry.sources)}
        self.tell("slept", told | {"seconds": round(seconds, 1), "rolled_back": entry.rolled_back})


def _now() -> datetime:
    return datetime.now().astimezone()
