"""A phase runs once; its result and the seconds of all attempts are kept."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sleep_trl.runs.files import read_json
from sleep_trl.runs.phases import Phases

KILLED = """
import os, sys, time
from pathlib import Path
import sleep_trl.runs.phases as phases
phases.SAVE_EVERY = 0.05
def work():
    print("started", flush=True)
    time.sleep(60)
phases.Phases(Path(sys.argv[1])).once("seed", work)
"""


def interrupted() -> None:
    time.sleep(0.3)
    raise KeyboardInterrupt


def test_a_phase_runs_once(tmp_path) -> None:
    assert [Phases(tmp_path).once("seed", lambda value=value: value) for value in (1, 2)] == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} == {"seed.json", "checksums.sha256"}


def test_seconds_of_interrupted_attempts_count(tmp_path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Phases(tmp_path).once("seed", interrupted)
    phases = Phases(tmp_path)
    phases.once("seed", lambda: None)
    assert 0.6 <= phases.seconds["seed"] < 3
    assert read_json(tmp_path / "seed.json")["seconds"] == phases.seconds["seed"]


def test_seconds_before_a_kill_count(tmp_path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    time.sleep(1)
    process.kill()
    process.communicate()
    phases = Phases(tmp_path)
    phases.once("seed", lambda: None)
    assert 0.5 <= phases.seconds["seed"] < 5


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch) -> None:
    import sleep_trl.runs.phases as module

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(KeyboardInterrupt):
        Phases(tmp_path).once("seed", interrupted)
    with pytest.raises(OSError, match="No space left"):
        Phases(tmp_path).once("seed", lambda: None)
