"""`sleep-trl live` with nights that are slept: a tiny model hears, sleeps, is killed, goes on, and is served."""

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


def hear(path: Path, *texts: str) -> None:
    with WakeBuffer(path) as buffer:
        buffer.add([record_of_text("in", text.encode(), "s") for text in texts])


class LiveProcess:
    """A `sleep-trl live` in its own process, whose events are read as they come."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.heard = folder, folder.parent / "wake.db"
        given = {"memory.max_experts": 3, "seeding.steps": 6, "seeding.save_steps": 1, "evaluation.batch_size": 8}
        run = [word for word in arguments(folder.parent / "model", folder, **given) if "--memories" not in word]
        words = [*run, "--no-report", f"--buffer={self.heard}", "--check_every=0.2", "--json", *options]
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
        """Return the process of the night that is being slept."""
        _, night = self.all()
        return night

    def all(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]


@pytest.fixture
def begin(tmp_path):
    """Return a function that begins to live in `tmp_path / "life"`; nothing of it outlives the test."""
    chains = list[LiveProcess]()

    def begin(*options: str) -> LiveProcess:
        chains.append(LiveProcess(tmp_path / "life", *options))
        return chains[-1]

    yield begin
    for process in [p for chain in chains if chain.process.poll() is None for p in chain.all()]:
        process.kill()


def test_it_sleeps_when_enough_was_heard_and_goes_on_after_a_kill(tmp_path, begin):
    write_model(tmp_path / "model")
    folder, heard = tmp_path / "life", tmp_path / "wake.db"
    hear(heard, "the cat of Mira is called Tolu")
    chain = begin("--after_tokens=12", "--nights=2")
    assert chain.until("waiting")["tokens"] < 12
    time.sleep(1)
    assert not list(folder.glob("night-*"))
    hear(heard, "the hats of Ben and it eats the boat while Tolu sleeps")
    assert chain.until("night")["why"].endswith("tokens wait")

    wait_for(lambda: list(folder.glob("night-001/checkpoints/checkpoint-*")), 180)  # in the midst of learning
    night = chain.night()
    chain.process.kill()
    night.kill()
    chain.process.wait()
    hear(heard, "the boat of Ben sleeps")  # is for the next night
    assert not (folder / "night-001" / "results.json").exists()

    chain = begin("--after_tokens=12", "--nights=2")
    assert chain.until("night")["why"] == "a night was interrupted"
    told = chain.until("slept", "failed")
    assert (told["entry"], told["records"], told["rolled_back"]) == ("entry-001", 2, None)
    assert newest_model(folder).run.name == "night-001"  # what `sleep-trl serve` asks
    assert chain.until("waiting")["records"] == 1
    chain.process.send_signal(signal.SIGTERM)  # between two nights
    assert chain.until("stopped") and chain.process.wait(60) == 130

    hear(heard, "it eats hats while Mira sleeps and the cat of Ben eats")
    chain = begin("--after_tokens=12", "--nights=2")
    chain.until("night")
    wait_for(lambda: (folder / "night-002" / "phases" / "evaluate_before.json").exists(), 180)
    chain.process.send_signal(signal.SIGINT)
    assert chain.until("stopped") and chain.process.wait(90) == 130
    chain = begin("--after_tokens=12", "--nights=2")
    assert chain.until("slept", "failed")["entry"] == "entry-002"
    assert chain.until("over")["nights"] == 2 and chain.process.wait(60) == 0

    assert newest_model(folder).name == "night-002:entry-002"
    entries = read_ledger(folder / "night-002" / "ledger.jsonl")
    assert [len(entry.sources) for entry in entries] == [2, 2]
    assert set(Counter(s.sha256 for e in entries for s in e.sources).values()) == {1}, "a record was learnt twice"
    with WakeBuffer(heard) as buffer:
        assert buffer.counts()["consolidated"] == 4
    done = begin("--after_tokens=1", "--nights=2")  # nothing is left to do
    assert done.until("over")["nights"] == 2 and done.process.wait(60) == 0
