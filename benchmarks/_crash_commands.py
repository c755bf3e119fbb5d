"""Commands for `crash.py` that are killed on a finished chain: `memory drop`, `wake forget`, `export`; and `wake tail`
beside a program that writes and rotates the log."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from _crash_nights import SHORT, Chain, CommandFailed, Outcome, command, memories_of, run_killed

DATE = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?(\+00:00)?)?")
SECONDS = re.compile(rb'"seconds": ?[\d.]+')
WITH_DATES = ("checksums.sha256", "tracker.json")  # files that hold hashes of dates, and names that are drawn
LOCK = ".lock"  # a killed process leaves its file; the lock itself ends with the process
LINES, PAUSE = 400, 0.01  # of a log: how many, and the seconds between two


class Unlearning(ABC):
    """Kills a command that unlearns on a chain of two nights, with a third night that was itself killed.

    Args:
        folder (`Path`):
            A folder of its own.
        processes:
            Creates the processes.
    """

    day: int
    """On which day the record was added that is forgotten. No earlier night has it."""

    def __init__(self, folder: Path, processes: ForkServerContext) -> None:
        self.folder, self.processes = folder, processes
        self.chain = Chain(folder / "work", processes, SHORT)
        self.forgotten = memories_of(self.day)[0]
        self.waiting: set[str] = set()  # hashes of records that are to wait for a fourth night
        self.states: dict[str, str] = {}

    @abstractmethod
    def words(self) -> list[str]:
        """Return the command."""

    @abstractmethod
    def place(self) -> str:
        """Say what a killed command had done."""

    def prepare(self) -> float:
        """Run the chain, and the command undisturbed; return the command's seconds."""
        self.chain.live()
        self.chain.begin(3)
        shutil.copytree(self.chain.folder, self.folder / "before")
        start = time.perf_counter()
        run_killed(self.processes, command, lambda _: self.words())
        seconds = time.perf_counter() - start
        self.states = self._states()
        self.chain.folder.rename(self.folder / "undisturbed")
        return seconds

    def attempt(self, moments: Sequence[float]) -> Outcome:
        """Kill the command at these moments, give it again until it ends, and then resume the third night."""
        shutil.rmtree(self.chain.folder, ignore_errors=True)
        shutil.copytree(self.folder / "before", self.chain.folder)
        outcome = Outcome(run_killed(self.processes, command, lambda _: self.words(), moments, self.place))
        if not outcome.killed:
            return outcome
        outcome.difference = difference(self.chain.folder, self.folder / "undisturbed")
        if not outcome.difference and self._states() != self.states:
            outcome.difference = "states of records in wake.db"
        outcome.returned = self._holding()
        try:
            self.chain.sleep(3, is_resumed=True)
        except CommandFailed as failed:
            outcome.difference = str(failed)
            return outcome
        self.chain.check_records(outcome, 3, [self.forgotten.sha256], self.waiting)
        outcome.returned += self._holding()
        return outcome

    def _states(self) -> dict[str, str]:
        from sleep_trl.wake import WakeBuffer

        with WakeBuffer(self.chain.buffer) as buffer:
            return {record.sha256: record.state for record in buffer.records()}

    def _holding(self) -> list[str]:
        """Return the files that hold a sentence of the forgotten text, or a question about it."""
        parts = [part.encode() for part in re.findall(r"[^.?]+[.?]", self.forgotten.text)]
        parts = [part.strip() for part in parts] + [question.question.encode() for question in self.forgotten.questions]
        paths = (path for path in sorted(self.chain.folder.rglob("*")) if path.is_file())
        contents = ((path, path.read_bytes()) for path in paths)
        holding = (path for path, content in contents if any(part in content for part in parts))
        return sorted((path.relative_to(self.chain.folder).as_posix() for path in holding), reverse=True)


class Dropping(Unlearning):
    """`memory drop --source`, of a record of the second night."""

    day = 2

    def __init__(self, folder: Path, processes: ForkServerContext) -> None:
        super().__init__(folder, processes)
        self.waiting = {memory.sha256 for memory in memories_of(self.day)} - {self.forgotten.sha256}

    def words(self) -> list[str]:
        run, source = str(self.chain.night(2)), self.forgotten.source
        return ["memory", "drop", run, "--source", source, "--buffer", str(self.chain.buffer)]

    def place(self) -> str:
        night, begun = self.chain.night(2), self.chain.night(3)
        if not (night / "dropping.json").exists():
            is_folded = (night / "model.partial").exists()
            is_done = not (begun / "phases" / "write_dataset.json").exists()
            return "after its end" if is_done else "while the model is folded" if is_folded else "before anything"
        if (night / "model.replaced").exists():
            return "while files are exchanged"
        return "while the buffer and other nights are cleared"


class Forgetting(Unlearning):
    """`wake forget`, of a record that a night has begun to learn."""

    day = 3

    def words(self) -> list[str]:
        return ["wake", "forget", self.forgotten.source, "--buffer", str(self.chain.buffer)]

    def place(self) -> str:
        """Look at the files alone: to open the buffer would already repair it."""
        holding = self._holding()
        if not holding:
            return "after everything was erased"
        return "before the buffer was cleared" if holding[0].startswith("wake.db") else "before the night was cleared"


class Exporting:
    """Kills `export`, of a checkpoint and of the experts in turn.

    Args:
        folder (`Path`):
            A folder of its own.
        processes:
            Creates the processes.
    """

    def __init__(self, folder: Path, processes: ForkServerContext) -> None:
        self.folder, self.processes, self.to = folder, processes, "checkpoint"
        self.chain = Chain(folder / "work", processes, SHORT)
        self.output = folder / "out" / "grown"

    def prepare(self) -> float:
        """Run a night and export it undisturbed; return the seconds of one export."""
        self.chain.live(days=1)
        start = time.perf_counter()
        for self.to in ("adapter", "checkpoint"):
            run_killed(self.processes, command, lambda _: self.words())
            self.output.parent.rename(self.folder / self.to)
        shutil.copytree(self.chain.folder, self.folder / "before")
        return (time.perf_counter() - start) / 2

    def attempt(self, moments: Sequence[float]) -> Outcome:
        """Kill an export at these moments, and give it again until it ends or its folder is there."""
        self.to = "adapter" if self.to == "checkpoint" else "checkpoint"
        shutil.rmtree(self.output.parent, ignore_errors=True)
        outcome = Outcome()
        for moment in moments:
            process = self.processes.Process(target=command, args=(self.words(),))
            process.start()
            process.join(moment)
            if process.is_alive():
                process.kill()
                process.join()
                outcome.killed.append(self.place())
            if self.output.exists():
                break
        if self.output.exists():  # given again it is refused, and clears away what a killed one has left
            again = self.processes.Process(target=command, args=(self.words(),))
            again.start()
            again.join()
        else:
            run_killed(self.processes, command, lambda _: self.words())
        outcome.difference = difference(self.output.parent, self.folder / self.to)
        outcome.difference = outcome.difference or difference(self.chain.folder, self.folder / "before")
        return outcome

    def words(self) -> list[str]:
        return ["export", str(self.chain.night(1)), "--to", self.to, "--output", str(self.output)]

    def place(self) -> str:
        if self.output.exists():
            return f"{self.to}, after its end"
        has_begun = self.output.parent.is_dir() and any(self.output.parent.iterdir())
        return f"{self.to}, while it is written" if has_begun else f"{self.to}, before anything"


class Following:
    """Kills `wake tail` on a log that another program writes and rotates, by renaming it, or by copying and truncating
    it.

    Args:
        folder (`Path`):
            A folder of its own.
        processes:
            Creates the processes.
    """

    def __init__(self, folder: Path, processes: ForkServerContext) -> None:
        self.folder, self.processes, self.tries = folder, processes, 0
        self.buffer, self.log = folder / "wake.db", folder / "logs" / "chat.log"

    def prepare(self) -> float:
        """Follow a log undisturbed, and return the seconds for which it is written."""
        outcome = self.attempt(())
        if not outcome.is_harmless:
            raise RuntimeError(f"Without kills, {outcome.lost} lines were lost, and {outcome.twice} were read twice.")
        return LINES * PAUSE

    def attempt(self, moments: Sequence[float]) -> Outcome:
        """Write a log, kill what follows it at these moments, and let it end when the log does."""
        self.tries += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.parent.mkdir(parents=True)
        self.log.write_text(line_of(0))
        run_killed(self.processes, command, lambda _: self.words("0"))  # so that the rotated files are known
        writer = threading.Thread(target=self._write, args=(random.Random(self.tries),))
        writer.start()
        try:
            killed = run_killed(self.processes, command, lambda _: self.words("2"), moments, self.place)
        finally:
            writer.join()
        run_killed(self.processes, command, lambda _: self.words("0.5"))
        outcome = Outcome(killed)
        stored = Counter(dict(self._stored()))
        written = {line_of(number).strip() for number in range(LINES)}
        outcome.lost, outcome.twice = len(written - set(stored)), sum(count > 1 for count in stored.values())
        if strange := set(stored) - written:
            outcome.difference = f"{len(strange)} texts that are no line"
        return outcome

    def words(self, idle: str) -> list[str]:
        return ["wake", "tail", str(self.log), "--buffer", str(self.buffer), "--idle", idle]

    def place(self) -> str:
        rotations = len(list(self.log.parent.iterdir())) - 1
        return ("before any rotation", "after one rotation", "after several rotations")[min(rotations, 2)]

    def _stored(self) -> Iterator[tuple[str, int]]:
        from sleep_trl.wake import WakeBuffer

        with WakeBuffer(self.buffer) as buffer:
            for record in buffer.records():
                yield buffer.text(record.id), record.copies

    def _write(self, draws: random.Random) -> None:
        """Write the lines, in pieces that end anywhere, and rotate the log after some of them."""
        ways = draws.sample((rename, copy_and_truncate), 2)
        rotations = {draws.randrange(50, 150): ways[0], draws.randrange(200, 350): ways[1]}
        file = self.log.open("a")
        for number in range(1, LINES):
            line, cut = line_of(number), draws.randrange(1, 20)
            for part in (line[:cut], line[cut:]):
                file.write(part)
                file.flush()
                time.sleep(PAUSE / 2)
            if number in rotations:
                file.close()
                rotations[number](self.log)
                file = self.log.open("a")
        file.close()


def rename(log: Path) -> None:
    """Rotate a log as logrotate does: number the former ones, and rename it."""
    _make_room(log)
    log.rename(f"{log}.1")


def copy_and_truncate(log: Path) -> None:
    """Rotate a log as logrotate does with `copytruncate`."""
    _make_room(log)
    shutil.copy2(log, f"{log}.1")
    with log.open("r+") as file:
        file.truncate()


def _make_room(log: Path) -> None:
    for number in sorted((int(path.suffix[1:]) for path in log.parent.glob(f"{log.name}.*")), reverse=True):
        Path(f"{log}.{number}").rename(f"{log}.{number + 1}")


def line_of(number: int) -> str:
    """Return a line of a log, unlike all others."""
    return f"{number:05} the boat number {number * 7919 % 10007} was seen at the pier\n"


def difference(folder: Path, other: Path) -> str:
    """Return the first file in which two folders differ, apart from dates and seconds, or an empty string. Hashes of
    files are compared with the files."""
    mine, others = (dict(_files(each)) for each in (folder, other))
    for name in sorted({*mine, *others}):
        if name not in mine or name not in others:
            return f"{name} is {'missing' if name not in mine else 'left'}"
        if mine[name]() != others[name]():
            return name
    return _damaged(folder)


def _files(folder: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for path in folder.rglob("*"):
        if path.is_dir():
            yield f"{path.relative_to(folder)}/", bytes
        elif path.name not in (*WITH_DATES, LOCK) and not path.name.startswith("wake.db"):
            yield str(path.relative_to(folder)), lambda path=path: _without_dates(path.read_bytes())  # type: ignore[misc]


def _without_dates(content: bytes) -> bytes:
    return SECONDS.sub(b"", DATE.sub(b"", content))


def _damaged(folder: Path) -> str:
    """Return the first file that does not fit its hash, or an empty string."""
    from sleep_trl.runs.checksums import NAME, Damaged, check_folder

    for path in sorted(folder.rglob(NAME)):
        try:
            check_folder(path.parent)
        except Damaged as error:
            return json.dumps(str(error))
    return ""
