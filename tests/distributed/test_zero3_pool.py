"""DeepSpeed ZeRO-3 with two processes whose text comes from a Ray pool: what one process does with the model itself.

Engines load the base from disk and receive the experts; their fingerprints are compared at every update, and those of
the base at the beginning and at the end.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sleep_trl.launch import sleep
from tests.distributed.launching import launch, needs_deepspeed
from tests.night.test_run import arguments, results_of

pytestmark = [needs_deepspeed, pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it")]
# What is drawn is what is most likely, so that it does not depend on who draws.
GREEDY = {"dataset.temperature": 1e-6, "dataset.ask_temperature": 1e-6}


def written(run: Path) -> list[dict]:
    """Samples about the memories; general ones are drawn from the whole distribution, with an engine's own seeds."""
    samples = json.loads((run / "phases" / "write_dataset.json").read_text())["result"]["samples"]
    return [sample for sample in samples if sample["part"] == "memory"]


@pytest.fixture(scope="module")
def shared(model, tmp_path_factory) -> Path:
    """Return the folder of a night of two processes and two engines."""
    folder = tmp_path_factory.mktemp("runs") / "shared"
    output = launch("zero3", "launch/sleep.py", *with_pool(model, folder))
    assert "Generating with 2 x transformers under Ray: asked for" in output
    return folder


def with_pool(model: Path, folder: Path) -> list[str]:
    return arguments(model, folder, **{"rollout.engine": "ray"} | GREEDY)


def test_a_night_by_a_pool_is_that_of_one_process(model, shared, tmp_path):
    alone = tmp_path / "alone"
    assert sleep.main(arguments(model, alone, **GREEDY)) == 0
    assert written(shared) == written(alone) != []
    theirs, ours = results_of(alone), results_of(shared)
    assert (theirs["processes"], ours["processes"]) == (1, 2)
    assert ours["recall"] == theirs["recall"] and ours["fold_difference"] <= 1e-5
    losses = [[row["loss"] for row in run["history"] if "loss" in row] for run in (theirs, ours)]
    assert len(losses[0]) == 4
    torch.testing.assert_close(*(torch.tensor(found[:2]) for found in losses), rtol=1e-3, atol=1e-4)  # no rollouts yet
    logs = [log for log in ours["history"] if "reward" in log]
    assert len(logs) == 1  # the last quarter of the steps
    assert logs[0]["sampling/sampling_logp_difference/max"] < 1e-4  # rollouts are of the experts as they are
