"""Trackers: the figures of a night arrive in its run, and a resumed night goes on in that run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.trainers import trackers
from sleep_trl.trainers.knowledge_seeding.from_config import seeding_arguments, track
from sleep_trl.trainers.trackers import figures, one_run, run_name
from tests.distributed.launching import launch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = {
    "recall": {"before": 0.0, "with_context": 1.0, "after": 0.75},
    "base_skill": {"before": 0.5, "after": None, "measure": "questions"},
    "perplexity": {"before": 9.0, "after": 9.5},
    "retention": {"entry-001": {"before": 1.0, "after": 0.5}},
    "chain": {"forgetting": 0.25},
    "dataset": {"coverage": {"sentences": 8, "covered": 6}},
    "dreams": {"rounds": [{"tried": 4, "rewarded": 1}]},
    "history": [{"step": 3, "loss": 0.5}, {"step": 4, "train_runtime": 1.0}],
}


def config_of(folder: Path, *trackers: str) -> RunConfig:
    extra = {"report_to": list(trackers)} if trackers else {}
    return RunConfig(model="m", memories="d.jsonl", output_dir=folder, seeding={"steps": 4, "extra": extra})


def test_figures_are_those_that_were_measured():
    assert figures(RESULTS) == {
        "recall_before": 0.0,
        "recall_with_context": 1.0,
        "recall": 0.75,
        "base_skill_before": 0.5,
        "perplexity_before": 9.0,
        "perplexity": 9.5,
        "forgetting": 0.25,
        "coverage": 0.75,
        "rolled_back": 0.0,
        "recall_of_entry-001": 0.5,
        "dreams_tried_1": 4.0,
        "dreams_that_helped_1": 1.0,
    }


def test_without_trackers_nothing_is_written(tmp_path):
    track(config_of(tmp_path), RESULTS)
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_run_is_drawn_once_and_given_names_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    name = run_name(tmp_path / "monday")
    assert name.startswith("monday-") and run_name(tmp_path / "monday") == name
    arguments = seeding_arguments(config_of(tmp_path / "monday", "tensorboard"), tmp_path)
    with one_run(arguments, tmp_path / "monday"):
        assert arguments.run_name == name and os.environ["WANDB_RUN_ID"] == "mine"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "monday" / "tensorboard")
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ and os.environ["WANDB_RUN_ID"] == "mine"


def test_other_processes_take_the_name_from_the_main_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(trackers, "broadcast_object_list", lambda _: ["monday-1"])
    arguments = SimpleNamespace(report_to=["tensorboard"], run_name=None)
    with one_run(arguments, tmp_path / "monday"):
        assert arguments.run_name == "monday-1"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_of_a_night_share_the_name_of_its_run(tmp_path):
    launch("ddp", "tests/trainers/named.py", tmp_path)
    names = (tmp_path / "0.txt").read_text().split()
    assert names == [run_name(tmp_path / f"night-{night}") for night in range(20)]
    assert names == (tmp_path / "1.txt").read_text().split()


def test_figures_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(config_of(tmp_path, "tensorboard"), RESULTS)
    track(config_of(tmp_path, "tensorboard"), RESULTS | {"recall": {"before": 0.0, "with_context": 1.0, "after": 1.0}})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/recall")] == [(4, 0.75), (4, 1.0)]
    assert events.Scalars("eval/coverage")[0].value == 0.75


def test_figures_reach_one_run_of_trackio(tmp_path):
    """In a process of its own, since trackio reads where to write when it is imported."""
    pytest.importorskip("trackio")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "tests.trainers.tracked", str(tmp_path / "night")]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    assert runs == {run_name(tmp_path / "night"): [0.75, 1.0]}  # the second as a resumed night
