"""DeepSpeed ZeRO-3 with two processes over gloo: what one process does, and no process holds the model."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sleep_trl.memory import load_memory
from sleep_trl.runs.ledger import read_ledger
from tests.distributed.launching import launch, needs_deepspeed, start
from tests.distributed.sleeps import IDS, three_sleeps
from tests.night.test_run import arguments, results_of
from tests.tiny_runs import write_model

pytestmark = needs_deepspeed


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory) -> Path:
    """Return the folder of three sleeps of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    launch("zero3", "tests/distributed/sleeps.py", model, folder)
    return folder


def seen(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen-*.json"))]


def test_three_sleeps_are_those_of_one_process(model, sharded, tmp_path):
    alone, (first, second) = three_sleeps(model, tmp_path), seen(sharded)
    assert (alone["processes"], first["processes"]) == (1, 2)
    assert not alone["is_sharded"] and first["is_sharded"] and second["is_sharded"]
    for same in ("base", "first_weights", "parameters"):
        assert alone[same] == first[same] == second[same]
    for close in ("losses", "resumed_losses", "logits", "grown_logits"):
        # Two processes sum in another order, and three nights of Adam's steps make the rounding larger.
        torch.testing.assert_close(torch.tensor(first[close]), torch.tensor(alone[close]), rtol=1e-3, atol=1e-4)
    theirs, ours = (load_file(folder / "adapter" / "experts.safetensors") for folder in (tmp_path, sharded))
    assert len(theirs) == 18
    for name, value in theirs.items():  # Adam makes as large a step along a gradient of rounding as along any other
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=5e-4, msg=name)


def test_each_process_holds_its_part_of_the_base(sharded):
    first, second = seen(sharded)
    total = first["parameters"]["base"]
    assert total / 2 <= first["values_here"] == second["values_here"] <= 0.51 * total


def test_a_sleep_resumes_to_the_last_bit(sharded):
    for process in seen(sharded):
        assert process["resumed_losses"] == process["losses"][2]
        assert process["resumed_fingerprint"] == process["fingerprint"] == process["read_back"]
    names = {path.name for path in (sharded / "night2" / "checkpoint-2").iterdir()}
    assert {"experts.safetensors", "optimizer-00001-of-00002.safetensors", "rng_state_1.pth"} <= names
    written = sum(path.stat().st_size for path in (sharded / "night2" / "checkpoint-2").glob("*.safetensors"))
    assert written < 2 * process["parameters"]["base"]  # bytes: half of what the frozen base alone would take


def test_the_folded_checkpoint_is_an_ordinary_one(model, sharded):
    first, _ = seen(sharded)
    folded = AutoModelForCausalLM.from_pretrained(sharded / "model")
    with torch.no_grad():
        logits = folded(input_ids=IDS).logits[0, -1]
    torch.testing.assert_close(logits, torch.tensor(first["grown_logits"]), rtol=1e-5, atol=1e-5)
    assert first["fold_difference"] <= 1e-5 and folded.config.architectures == ["LlamaForCausalLM"]
    base = AutoModelForCausalLM.from_pretrained(model)
    assert load_memory(base, sharded / "adapter").fingerprint(2) == first["fingerprint"]


@pytest.fixture(scope="module")
def night(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    launch("zero3", "launch/sleep.py", *arguments(model, folder))
    return folder


def test_a_night_of_two_processes_leaves_what_it_promises(model, night):
    results = results_of(night)
    assert results["processes"] == 2 and results["fold_difference"] <= 1e-5
    assert results["versions"]["deepspeed"]
    for name in ("ledger.jsonl", "report.html", "model/config.json", "model/tokenizer.json"):
        assert (night / name).exists(), name
    base = AutoModelForCausalLM.from_pretrained(model)
    memory = load_memory(base, night / "adapter")
    (entry,) = read_ledger(night / "ledger.jsonl")
    assert memory.fingerprint(0) == entry.fingerprint
    with torch.no_grad():
        grown, folded = (m(input_ids=IDS).logits for m in (base, AutoModelForCausalLM.from_pretrained(night / "model")))
    torch.testing.assert_close(grown, folded, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "configuration",
    ["zero2 dense float32", "zero3_offload dense float32", "zero3 topk float32", "zero3 dense bfloat16"],
)
def test_other_forms_sleep_and_resume_too(model, tmp_path, configuration):
    name, *form = configuration.split()
    launch(name, "tests/distributed/sleeps.py", model, tmp_path, *form)
    for process in seen(tmp_path):
        assert process["is_sharded"] == (name != "zero2")
        assert process["resumed_losses"] == process["losses"][2]
        assert process["resumed_fingerprint"] == process["fingerprint"] == process["read_back"]


@pytest.mark.slow
def test_a_rank_killed_in_the_middle_changes_nothing(model, night):
    """Two processes add up in one order, so that the resumed run ends with the very same bits."""
    folder = night.parent / "killed"
    process = start("zero3", "launch/sleep.py", *arguments(model, folder))
    checkpoint = folder / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and not (folder / "phases" / "seed.json").exists(), output[-2000:]
    launch("zero3", "launch/sleep.py", *arguments(model, folder), "--resume")
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(night / "ledger.jsonl")[0].fingerprint
    losses, undisturbed = ([row.get("loss") for row in results_of(run)["history"]] for run in (folder, night))
    assert losses == undisturbed and len([loss for loss in losses if loss is not None]) == 4
