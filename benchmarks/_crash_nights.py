"""Chains of nights for `crash.py`: killed at random moments, resumed, and compared with an undisturbed chain.

Processes are forked from one that has already imported the libraries, so that kills hit the work instead of the
imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
DAYS = (
    QUICKSTART / "memories.jsonl",
    QUICKSTART / "memories_night2.jsonl",
    QUICKSTART / "memories_night3.jsonl",
)
RECORDS = 3  # per day
SHORT = {
    "config": QUICKSTART / "config.yaml",
    "model": QUICKSTART / "model",
    "memory.max_experts": 4,
    "dataset.samples_per_window": 1,
    "dataset.general_texts": QUICKSTART / "general.jsonl",
    "dataset.general_samples": 8,
    "seeding.steps": 5,  # with 8 prompts each: as many as the records of a day need
    "seeding.save_steps": 2,
    "seeding.logging_steps": 1,
    "seeding.prompts_per_step": 8,
    "evaluation.skill": QUICKSTART / "skill.jsonl",
    "evaluation.max_questions": 4,
}
LEVELS_AND_DREAMS = {
    "memory.max_experts": 8,
    "levels.chunks": "230,460,920",
    "levels.learning_rate": 0.5,
    "levels.steps": 4,
    "dream.rounds": 1,
    "dream.dreams_per_task": 2,
    "dream.top_k": 1,
    "dream.max_new_tokens": 16,
    "dream.questions_per_task": 2,
    "dream.test": "sign",
    "dream.lora_steps": 2,
    "dream.steps": 2,
}
COMPARED = (
    "adapter/experts.safetensors",
    "adapter/accumulated.safetensors",
    "adapter/prompts.jsonl",
    "adapter/questions.jsonl",
    "model/model.safetensors",
)
PRELOADED = [
    "sleep_trl.cli.app",
    "sleep_trl.launch.sleep",
    "sleep_trl.night.run",
    "sleep_trl.planning.preflight",
    "sleep_trl.publish.export",
    "sleep_trl.publish.unlearn",
    "sleep_trl.report",
    "sleep_trl.trainers.dreaming.from_config",
    "sleep_trl.trainers.knowledge_seeding.from_config",
]


@dataclass
class Outcome:
    """What kills did.

    Args:
        killed (`list[str]`): for each kill, what had been done by then.
        difference (`str`): in what the end differs from that without kills, or an empty string.
        lost (`int`): records that are nowhere.
        twice (`int`): records that were learned, or stored, more than once.
        returned (`list[str]`): files that hold a text that was forgotten, and entries that learned it.
    """

    killed: list[str] = field(default_factory=list)
    difference: str = ""
    lost: int = 0
    twice: int = 0
    returned: list[str] = field(default_factory=list)

    @property
    def is_harmless(self) -> bool:
        return not (self.difference or self.lost or self.twice or self.returned)


class CommandFailed(RuntimeError):
    """A command that ended by itself with an error.

    Args:
        message (`str`): which one.
        killed (`list[str]`): where the kills before it hit.
    """

    def __init__(self, message: str, killed: list[str]) -> None:
        super().__init__(message)
        self.killed = killed


def run_killed(
    processes: ForkServerContext,
    work: Callable[[list[str]], None],
    words: Callable[[bool], list[str]],
    moments: Sequence[float] = (),
    place: Callable[[], str] = str,
) -> list[str]:
    """Run a command, kill it after each of these times and give it again, and return where each kill hit.

    Args:
        processes: creates the processes.
        work (`Callable[[list[str]], None]`): runs the command's arguments in a process.
        words (`Callable[[bool], list[str]]`): returns them; takes whether the command is given again.
        moments (`Sequence[float]`, *optional*): seconds. Once it ends by itself, it is not killed any more.
        place (`Callable[[], str]`, *optional*): says what a killed command had done.

    Raises:
        `CommandFailed`: if it fails.
    """
    killed: list[str] = []
    while True:
        process = processes.Process(target=work, args=(words(bool(killed)),))
        process.start()
        process.join(moments[len(killed)] if len(killed) < len(moments) else None)
        if process.is_alive():
            process.kill()
            process.join()
        if (code := process.exitcode) == -signal.SIGKILL:
            killed.append(place())
        elif code != 0:
            raise CommandFailed(f"{' '.join(words(bool(killed)))} ended with exit code {code}", killed)
        else:
            return killed


class Chain:
    """A chain of nights about one wake buffer, which receives records before each night.

    Args:
        folder (`Path`):
            Folder of the buffer and the nights.
        processes:
            Creates the processes.
        options (`dict`):
            Options of the nights.
    """

    def __init__(self, folder: Path, processes: ForkServerContext, options: dict[str, Any]) -> None:
        self.folder, self.processes, self.options = folder, processes, options
        self.buffer = folder / "wake.db"

    def night(self, day: int) -> Path:
        return self.folder / "chain" / f"night-{day:03}"

    def live(self, doomed: int = 0, moments: Sequence[float] = (), days: int = 2) -> list[str]:
        """Add records and run a night, as many times as there are days, and return where kills hit.

        Args:
            doomed (`int`, *optional*):
                The night in which processes are killed.
            moments (`Sequence[float]`, *optional*):
                After how many seconds to kill.
            days (`int`, *optional*, defaults to `2`):
                Number of nights.
        """
        killed = []
        for day in range(1, days + 1):
            self.add_records(day)
            killed += self.sleep(day, moments if day == doomed else ())
        return killed

    def sleep(self, day: int, moments: Sequence[float] = (), is_resumed: bool = False) -> list[str]:
        """Run the night of a day, and return where kills hit."""

        def words(is_again: bool) -> list[str]:
            return self.words(day, is_again or is_resumed)

        return run_killed(self.processes, sleep, words, moments, lambda: self.place(day))

    def begin(self, day: int) -> None:
        """Begin the night of a day, and kill it while it learns what its teacher wrote."""
        self.add_records(day)
        process = self.processes.Process(target=sleep, args=(self.words(day),))
        process.start()
        while process.is_alive() and not (self.night(day) / "phases" / "write_dataset.json").exists():
            time.sleep(0.01)
        process.kill()
        process.join()

    def words(self, nights: int, is_resumed: bool = False) -> list[str]:
        """Return the arguments of `launch/sleep.py` for the first nights of the chain."""
        given = self.options | {"output_dir": self.folder / "chain"}
        nights_given = json.dumps([f"wake:{self.buffer}"] * nights)
        words = [*(f"--{name}={value}" for name, value in given.items()), f"--nights={nights_given}", "--no-report"]
        return [*words, "--resume"] if is_resumed else words

    def add_records(self, day: int) -> None:
        """Add the records of a day to the buffer."""
        from sleep_trl.wake import WakeBuffer, WakeRecord
        from sleep_trl.wake.records import now

        self.folder.mkdir(parents=True, exist_ok=True)
        with WakeBuffer(self.buffer) as opened:
            opened.add([WakeRecord(memory, now()) for memory in memories_of(day)])

    def place(self, day: int) -> str:
        """Return the last thing that a killed night completed: the newest phase on disk."""
        night = self.night(day)
        if (night / "results.json").exists():
            return f"night {day}, after its end"
        written = [path for path in (night / "phases").glob("*.json") if path.stem != "given"]  # that is its beginning
        phases = sorted(written, key=lambda path: path.stat().st_mtime_ns)
        last = phases[-1].stem if phases else "its beginning" if (night / "config.json").exists() else "nothing"
        steps = len(list((night / "checkpoints").glob("checkpoint-*")))
        saved = f" and {steps} checkpoints" if last == "agreement_before" and steps else ""
        return f"night {day}, after {last}{saved}"

    def difference(self, other: Chain, days: int = 2) -> str:
        """Return the first file in which the chain differs from another one, or an empty string."""
        from sleep_trl.runs.ledger import read_ledger

        for day in range(1, days + 1):
            mine, others = self.night(day), other.night(day)
            for name in COMPARED:
                if _content(mine / name) != _content(others / name):
                    return f"{mine.name}/{name}"
            entries = [
                [e.model_copy(update={"date": ""}) for e in read_ledger(f / "ledger.jsonl")] for f in (mine, others)
            ]
            if entries[0] != entries[1]:
                return f"{mine.name}/ledger.jsonl"
        return ""

    def check_records(
        self, outcome: Outcome, days: int, forgotten: Sequence[str] = (), waiting: Collection[str] = ()
    ) -> None:
        """Count the records of these days that no night, or several, learned, and those that were forgotten and came
        back.

        Args:
            outcome (`Outcome`):
                Gets the counts.
            days (`int`):
                How many days there were.
            forgotten (`Sequence[str]`, *optional*):
                Hashes of records that were forgotten.
            waiting (`Collection[str]`, *optional*):
                Hashes of records that wait for the next night.
        """
        from sleep_trl.runs.ledger import read_ledger, standing_nights
        from sleep_trl.wake import WakeBuffer

        entries = standing_nights(read_ledger(self.night(days) / "ledger.jsonl"))
        learned = Counter(source.sha256 for entry in entries for source in entry.sources)
        with WakeBuffer(self.buffer) as buffer:
            states = {record.sha256: record.state for record in buffer.records()}
        wanted = {memory.sha256 for day in range(1, days + 1) for memory in memories_of(day)} - set(forgotten)
        outcome.lost += sum(
            (states.get(hash), learned[hash] > 0) != (("new", False) if hash in waiting else ("consolidated", True))
            for hash in wanted
        )
        outcome.twice += sum(count > 1 for count in learned.values())
        outcome.returned += [f"learned again: {hash[:12]}" for hash in forgotten if learned[hash]]


class Nights:
    """Kills the nights of a chain: `launch/sleep.py`, resumed with `--resume`.

    Args:
        folder (`Path`):
            A folder of its own.
        processes:
            Creates the processes.
        options (`dict`, *optional*):
            Options of the nights.
    """

    def __init__(self, folder: Path, processes: ForkServerContext, options: dict[str, Any] | None = None) -> None:
        self.folder, self.processes, self.options = folder, processes, SHORT | (options or {})
        self.whole, self.tries = Chain(folder / "undisturbed", processes, self.options), 0

    def prepare(self) -> float:
        """Run the undisturbed chain, and return the seconds of a night."""
        Chain(self.folder / "first", self.processes, self.options).live(days=1)  # also waits for the imports
        start = time.perf_counter()
        self.whole.live()
        return (time.perf_counter() - start) / 2

    def attempt(self, moments: Sequence[float]) -> Outcome:
        """Kill a chain at these moments, in its first or its second night."""
        chain, self.tries = Chain(self.folder / "killed", self.processes, self.options), self.tries + 1
        shutil.rmtree(chain.folder, ignore_errors=True)
        outcome = Outcome(chain.live(2 - self.tries % 2, moments))
        outcome.difference = chain.difference(self.whole)
        chain.check_records(outcome, 2)
        return outcome


def memories_of(day: int) -> list[Any]:
    """Return the memories of a day."""
    from sleep_trl.data.sources import read_memories

    return read_memories(str(DAYS[day - 1]))[:RECORDS]


def sleep(words: list[str]) -> None:
    """Run `launch/sleep.py` in this process; its error messages go to standard error."""
    from sleep_trl.launch import sleep as launcher

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sys.exit(launcher.main(words))


def command(words: list[str]) -> None:
    """Run `sleep-trl` in this process; its error messages go to standard error."""
    from sleep_trl.cli.app import main

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        main(words)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
