"""`sleep-trl live` with real nights of a tiny model: it is killed, continues, and its model can be served."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from sleep_trl.runs.finished import newest_model
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer, record_of_text
from tests.daemon.test_supervisor import wait_for
from tests.night.test_run import arguments
from tests.tiny_runs import write_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def ingest(path: Path, *texts: str) -> None:
    with WakeBuffer(path) as buffer:
        buffer.add([record_of_text("in", text.encode(), "s") for text in texts])


class LiveProcess:
    """A `sleep-trl live` in its own process, whose events are read as they are printed."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.buffer = folder, folder.parent / "wake.db"
        given = {"memory.max_experts": 3, "seeding.steps": 6, "seeding.save_steps": 1, "evaluation.batch_size": 8}
        run = [word for word in arguments(folder.parent / "model", folder, **given) if "--memories" not in word]
        words = [*run, "--no-report", f"--buffer={self.buffer}", "--check_every=0.2", "--json", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sleep_trl.cli", "live", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def until(self, *kinds: str) -> dict:
        """Return the next event of one of these kinds."""
        return next(event for event in map(json.loads, self.process.stdout) if event["event"] in kinds)

    def night(self) -> psutil.Process:
        """Return the process of the night in progress."""
        _, night = self.all()
        return night

    def all(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]


@pytest.fixture
def start(tmp_path):
    """Return a function that starts `sleep-trl live` in `tmp_path / "chain"`; no process outlives the test."""
    chains = list[LiveProcess]()

    def start(*options: str) -> LiveProcess:
        chains.append(LiveProcess(tmp_path / "chain", *options))
        return chains[-1]

    yield start
    for process in [p for chain in chains if chain.process.poll() is None for p in chain.all()]:
        process.kill()


def test_it_sleeps_when_enough_is_pending_and_continues_after_a_kill(tmp_path, start):
    write_model(tmp_path / "model")
    folder, buffer_path = tmp_path / "chain", tmp_path / "wake.db"
    ingest(buffer_path, "the cat of Mira is called Tolu")
    chain = start("--after_tokens=12", "--nights=2")
    assert chain.until("pending")["tokens"] < 12
    time.sleep(1)
    assert not list(folder.glob("night-*"))
    ingest(buffer_path, "the hats of Ben and it eats the boat while Tolu sleeps")
    assert chain.until("started")["why"].endswith("tokens pending")

    wait_for(lambda: list(folder.glob("night-001/checkpoints/checkpoint-*")), 180)  # while it trains
    night = chain.night()
    chain.process.kill()
    night.kill()
    chain.process.wait()
    ingest(buffer_path, "the boat of Ben sleeps")  # for the next night
    assert not (folder / "night-001" / "results.json").exists()

    chain = start("--after_tokens=12", "--nights=2")
    assert chain.until("started")["why"] == "resuming an interrupted night"
    event = chain.until("finished", "failed")
    assert (event["entry"], event["records"], event["rolled_back"]) == ("entry-001", 2, None)
    assert newest_model(folder).run.name == "night-001"  # what `sleep-trl serve` serves
    assert chain.until("pending")["records"] == 1
    chain.process.send_signal(signal.SIGTERM)  # between two nights
    assert chain.until("stopped") and chain.process.wait(60) == 143

    ingest(buffer_path, "it eats hats while Mira sleeps and the cat of Ben eats")
    chain = start("--after_tokens=12", "--nights=2")
    chain.until("started")
    wait_for(lambda: (folder / "night-002" / "phases" / "evaluate_before.json").exists(), 180)
    chain.process.send_signal(signal.SIGINT)
    assert chain.until("stopped") and chain.process.wait(90) == 130
    chain = start("--after_tokens=12", "--nights=2")
    assert chain.until("finished", "failed")["entry"] == "entry-002"
    assert chain.until("done")["nights"] == 2 and chain.process.wait(60) == 0

    assert newest_model(folder).name == "night-002:entry-002"
    entries = read_ledger(folder / "night-002" / "ledger.jsonl")
    assert [len(entry.sources) for entry in entries] == [2, 2]
    assert set(Counter(s.sha256 for e in entries for s in e.sources).values()) == {1}, "a record was learned twice"
    with WakeBuffer(buffer_path) as buffer:
        assert buffer.counts()["consolidated"] == 4
    done = start("--after_tokens=1", "--nights=2")  # nothing left to do
    assert done.until("done")["nights"] == 2 and done.process.wait(60) == 0
