"""Kill a chain of two nights with -9 at random moments, resume it, and compare it with an undisturbed chain.

    python benchmarks/crash.py --kills 50

Three passages are added to a wake buffer, the quickstart's model runs a night, three other passages are added, and it
runs a second night. The nights are short but have every phase. In one night of a chain, up to four processes are killed
at random moments within the duration of an undisturbed night, and the chain is resumed with `--resume` each time. In
the end the ledger (except dates), the experts and the folded model must be equal bit for bit, and every record must be
in exactly one entry. Processes are forked from one that has already imported the libraries, so that kills hit the
nights instead of the imports. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _report import argument_parser, environment, progress, report, rerun_with

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
KILLS = 4  # at most, per chain
DAYS = (QUICKSTART / "memories.jsonl", QUICKSTART / "memories_night2.jsonl")
RECORDS = 3  # per day
SHORT = {
    "config": QUICKSTART / "config.yaml",
    "model": QUICKSTART / "model",
    "memory.max_experts": 2,
    "dataset.samples_per_window": 1,
    "dataset.general_texts": QUICKSTART / "general.jsonl",
    "dataset.general_samples": 8,
    "seeding.steps": 4,
    "seeding.save_steps": 2,
    "seeding.logging_steps": 1,
    "seeding.prompts_per_step": 4,
    "evaluation.skill": QUICKSTART / "skill.jsonl",
    "evaluation.max_questions": 4,
}
COMPARED = (
    "adapter/experts.safetensors",
    "adapter/prompts.jsonl",
    "adapter/questions.jsonl",
    "model/model.safetensors",
)
PRELOADED = ["sleep_trl.launch.sleep", "sleep_trl.night.run", "sleep_trl.planning.preflight", "sleep_trl.report"]
PRELOADED += ["sleep_trl.trainers.knowledge_seeding.from_config", "sleep_trl.trainers.dreaming.from_config"]


def main() -> None:
    arguments = parse_arguments()
    rerun_with(environment(threads=1))  # one thread, so that sums have a fixed order
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    draws = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Chain(Path(folder, "whole"), context)
        whole.live()  # the first one also waits for the imports
        whole = Chain(Path(folder, "undisturbed"), context)
        seconds = whole.live()
        progress(f"Two undisturbed nights take {seconds:.1f} seconds")
        outcomes: list[dict[str, Any]] = []
        while (left := arguments.kills - sum(len(outcome["killed"]) for outcome in outcomes)) > 0:
            chain = Chain(Path(folder, "killed"), context)
            moments = [draws.uniform(0, seconds / 2) for _ in range(min(left, KILLS))]
            took = chain.live(1 + len(outcomes) % 2, moments)
            seconds = seconds if chain.killed else min(seconds, took)  # the machine is faster now
            outcomes.append({"killed": chain.killed, "difference": chain.difference(whole), "lost": chain.lost()})
            progress(json.dumps(outcomes[-1]))
            shutil.rmtree(chain.folder)
    places = Counter(place for outcome in outcomes for place in outcome["killed"])
    result = {
        "kills": places.total(),
        "identical": sum(len(outcome["killed"]) for outcome in outcomes if not outcome["difference"]),
        "lost_records": sum(outcome["lost"] for outcome in outcomes),
        "chains": len(outcomes),
        "killed": dict(sorted(places.items())),
        "differences": sorted({outcome["difference"] for outcome in outcomes if outcome["difference"]}),
    }
    rows = [("killed in", "times"), *((place, str(count)) for place, count in sorted(places.items()))]
    title = f"After {result['identical']} of {result['kills']} kills the chain ended as the undisturbed one"
    report(f"{title}; lost records: {result['lost_records']}", rows, result, arguments.json)


class Chain:
    """A chain of two nights about one wake buffer, which receives records before each night.

    Args:
        folder (`Path`): folder of the buffer and the nights.
        context: creates the processes.
    """

    def __init__(self, folder: Path, context: multiprocessing.context.ForkServerContext) -> None:
        self.folder, self.context = folder, context
        self.buffer = folder / "wake.db"
        self.killed: list[str] = []

    def live(self, doomed: int = 0, moments: Sequence[float] = ()) -> float:
        """Add records and run a night, twice, and return the seconds.

        Args:
            doomed (`int`, *optional*):
                The night in which processes are killed.
            moments (`Sequence[float]`, *optional*):
                After how many seconds to kill, one process after the other; further processes are not killed.
        """
        start = time.perf_counter()
        for day in (1, 2):
            add_records(self.buffer, day)
            exit_code = None
            while exit_code != 0:
                process = self.context.Process(target=sleep, args=(self.words(day, is_resumed=exit_code is not None),))
                process.start()
                is_doomed = day == doomed and len(self.killed) < len(moments)
                process.join(moments[len(self.killed)] if is_doomed else None)
                if process.is_alive():
                    process.kill()
                    process.join()
                if (exit_code := process.exitcode) == -signal.SIGKILL:
                    self.killed.append(self.place(day))
                elif exit_code != 0:
                    raise RuntimeError(f"Night {day} ended with exit code {exit_code}; see above.")
        return time.perf_counter() - start

    def words(self, nights: int, is_resumed: bool) -> list[str]:
        """Return the arguments of `launch/sleep.py` for the first nights of the chain."""
        given = SHORT | {"output_dir": self.folder / "chain"}
        nights_given = json.dumps([f"wake:{self.buffer}"] * nights)
        words = [*(f"--{name}={value}" for name, value in given.items()), f"--nights={nights_given}", "--no-report"]
        return [*words, "--resume"] if is_resumed else words

    def place(self, day: int) -> str:
        """Return the last thing that a killed night completed: the newest phase on disk."""
        night = self.folder / "chain" / f"night-{day:03}"
        if (night / "results.json").exists():
            return f"night {day}, after its end"
        phases = sorted((night / "phases").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        last = phases[-1].stem if phases else "its beginning" if (night / "config.json").exists() else "nothing"
        steps = len(list((night / "checkpoints").glob("checkpoint-*")))
        written = f" and {steps} checkpoints" if last == "agreement_before" and steps else ""
        return f"night {day}, after {last}{written}"

    def difference(self, other: Chain) -> str:
        """Return the first file in which the chain differs from another one, or an empty string."""
        from sleep_trl.runs.ledger import read_ledger

        for night in ("night-001", "night-002"):
            mine, others = (chain.folder / "chain" / night for chain in (self, other))
            for name in COMPARED:
                if (mine / name).read_bytes() != (others / name).read_bytes():
                    return f"{night}/{name}"
            entries = [
                [e.model_copy(update={"date": ""}) for e in read_ledger(f / "ledger.jsonl")] for f in (mine, others)
            ]
            if entries[0] != entries[1]:
                return f"{night}/ledger.jsonl"
        return ""

    def lost(self) -> int:
        """Return how many records are not in exactly one entry or are still pending."""
        from sleep_trl.runs.ledger import active_entries, read_ledger
        from sleep_trl.wake import WakeBuffer

        entries = active_entries(read_ledger(self.folder / "chain" / "night-002" / "ledger.jsonl"))
        learned = Counter(source.sha256 for entry in entries for source in entry.sources)
        with WakeBuffer(self.buffer) as buffer:
            records = list(buffer.records())
        wrong = sum(learned[record.sha256] != 1 or record.state != "consolidated" for record in records)
        return wrong + len(DAYS) * RECORDS - len(records)


def add_records(buffer: Path, day: int) -> None:
    """Add the records of a day to the buffer."""
    from sleep_trl.data.sources import read_memories
    from sleep_trl.wake import WakeBuffer, WakeRecord
    from sleep_trl.wake.records import now

    buffer.parent.mkdir(parents=True, exist_ok=True)
    with WakeBuffer(buffer) as opened:
        opened.add([WakeRecord(memory, now()) for memory in read_memories(str(DAYS[day - 1]))[:RECORDS]])


def sleep(words: list[str]) -> None:
    """Run `launch/sleep.py` in this process; its error messages go to standard error."""
    from sleep_trl.launch import sleep as launcher

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sys.exit(launcher.main(words))


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--seed", type=int, default=42, help="seed of the moments")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.kills = 2
    return arguments


if __name__ == "__main__":
    main()
