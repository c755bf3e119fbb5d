"""DeepSpeed ZeRO-3 with two processes whose text comes from a Ray pool: what one process does with the model itself.

Engines load the base from disk and receive the experts; their fingerprints are compared at every update, and those of
the base at the beginning and at the end.
"""

import json
import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from sleep_trl.launch import sleep
from sleep_trl.runs.ledger import read_ledger
from tests.distributed.launching import launch, needs_deepspeed, start
from tests.night.test_run import arguments, results_of

pytestmark = [needs_deepspeed, pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it")]
# What is drawn is what is most likely, so that it does not depend on who draws.
GREEDY = {"dataset.temperature": 1e-6, "dataset.ask_temperature": 1e-6}
NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
VLLM = pytest.param("vllm", marks=[NEEDS_VLLM, pytest.mark.slow])


def written(run: Path) -> list[dict]:
    """Samples about the memories; general ones are drawn from the whole distribution, with an engine's own seeds."""
    samples = json.loads((run / "phases" / "write_dataset.json").read_text())["result"]["samples"]
    return [sample for sample in samples if sample["part"] == "memory"]


@pytest.fixture(scope="module", params=["transformers", VLLM])
def replica(request) -> str:
    """What the engines of the pool are."""
    return request.param


@pytest.fixture(scope="module")
def shared(model, replica, tmp_path_factory) -> Path:
    """Return the folder of a night of two processes and two engines."""
    folder = tmp_path_factory.mktemp("runs") / "shared"
    output = launch("zero3", "launch/sleep.py", *with_pool(model, folder, replica))
    assert f"Generating with 2 x {replica} under Ray: asked for" in output
    return folder


def with_pool(model: Path, folder: Path, replica: str) -> list[str]:
    return arguments(model, folder, **{"rollout.engine": "ray", "rollout.inner_engine": replica} | GREEDY)


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


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["engine", "rank"])
def test_what_is_lost_in_the_middle_changes_nothing(model, replica, shared, lost):
    """A lost engine is replaced; a night that lost the rank which drives the engines is resumed. Two processes add up
    in one order, so that both end with the very same bits; vLLM's log probabilities depend on what it batches."""
    folder = shared.parent / f"lost-{lost}"
    process = start("zero3", "launch/sleep.py", *with_pool(model, folder, replica))
    wait_for(folder / "checkpoints" / "checkpoint-2" / "trainer_state.json", process)
    engines = engines_of(process)
    assert len(engines) == 2
    first_rank = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    os.kill(engines[0].pid if lost == "engine" else int(first_rank), signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    if lost == "engine":
        assert process.returncode == 0 and "replacing it" in output, output[-4000:]
    else:
        assert process.returncode != 0 and not (folder / "phases" / "seed.json").exists(), output[-4000:]
        assert not psutil.wait_procs(engines, timeout=60)[1]  # none survives who drove it
        launch("zero3", "launch/sleep.py", *with_pool(model, folder, replica), "--resume")
    assert written(folder) == written(shared)
    losses, undisturbed = (
        [row["loss"] for row in results_of(run)["history"] if "loss" in row] for run in (folder, shared)
    )
    assert losses == pytest.approx(undisturbed, rel=0 if replica == "transformers" else 1e-3) and len(losses) == 4
    if replica == "transformers":
        ledgers = [read_ledger(run / "ledger.jsonl")[0] for run in (folder, shared)]
        assert ledgers[0].fingerprint == ledgers[1].fingerprint


def test_the_demos_night_passes_its_gates(tmp_path, replica):
    """`make demo`, with two processes that hold a shard each and a pool of two engines. It takes four minutes, and is
    not marked slow: no other test has all parts in one whole night."""
    options = ["--config", "examples/quickstart/config.yaml", "--output_dir", tmp_path / "run", "--no-report"]
    options += ["--rollout.engine", "ray", "--rollout.inner_engine", replica]
    output = launch("zero3", "launch/sleep.py", *options, timeout=3600)
    assert f"Generating with 2 x {replica} under Ray" in output
    results = results_of(tmp_path / "run")
    assert results["processes"] == 2 and results["recall"]["after"] == 1.0
    assert results["base_skill"]["after"] >= 0.99 * results["base_skill"]["before"]


def wait_for(file: Path, process: subprocess.Popen[str], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def engines_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of the engines that a launch has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ReplicaActor" in " ".join(child.cmdline())]
