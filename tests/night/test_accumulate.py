"""Levels that accumulate and update (Eq. 2), in chains of nights: when, by how much, and how it is undone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_trl.config.command_line import explain, parse
from sleep_trl.launch import sleep
from sleep_trl.memory import Memory, MemorySpec, attach, load_memory
from sleep_trl.memory.accumulated_gradients import Accumulated
from sleep_trl.planning.chain import nights_of, unfinished
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from sleep_trl.publish.unlearn import drop
from sleep_trl.runs.files import read_json
from sleep_trl.runs.finished import FinishedRun
from sleep_trl.runs.ledger import read_ledger
from tests.planning.test_chain import chain
from tests.tiny_runs import first_nights

RATE = 0.5
NIGHTS = ("one", "two", "three")  # of some 230 tokens each: level 1 is full in the third
OPTIONS = {"levels.chunks": "100,500,1000", "levels.learning_rate": RATE, "memory.max_experts": 7}
COMPARED = ("experts.safetensors", "memory.json", "prompts.jsonl", "accumulated.safetensors")


@pytest.fixture(scope="module")
def finished_chain(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lives") / "whole"
    assert sleep.main(chain(model, folder, *NIGHTS, **OPTIONS)) == 0
    return folder


def memory_of(model: Path, night: Path) -> Memory:
    return load_memory(AutoModelForCausalLM.from_pretrained(model), night / "adapter")


def fresh(model: Path) -> Memory:
    """Return the memory as the first night finds it."""
    memory = attach(AutoModelForCausalLM.from_pretrained(model), MemorySpec(width=8, max_experts=7, seed=42))
    for level in (1, 2):
        memory.add_block(level)
    return memory


def gradient(model: Path, memory: Memory, level: int, night: str, folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradient of the summed loss of a night's texts, by plain back-propagation, and their tokens."""
    tokenizer, count = AutoTokenizer.from_pretrained(model), 0
    memory.train_only(memory.blocks[level])
    for line in (folder / f"{night}.jsonl").read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], return_tensors="pt").input_ids
        for part in ids.split(128, dim=1):  # the model's context
            count += part.shape[1] - 1
            (memory.model(input_ids=part, labels=part).loss * (part.shape[1] - 1)).backward()
    return {name: p.grad for name, p in memory.expert_parameters(memory.blocks[level])}, count


def test_nothing_is_applied_between_boundaries(model, finished_chain):
    first = fresh(model)
    for number in (1, 2):
        memory = memory_of(model, finished_chain / f"night-00{number}")
        assert memory.blocks == first.blocks == {1: 0, 2: 1}
        for index in (0, 1):
            assert memory.fingerprint(index) == first.fingerprint(index)
        assert set(Accumulated.load(finished_chain / f"night-00{number}" / "adapter").tokens) == {1, 2}


def test_a_boundary_applies_what_plain_gradient_descent_over_the_chunk_would(model, finished_chain):
    """Each night's texts are read by the model as it was before that night."""
    before = [fresh(model), *(memory_of(model, finished_chain / f"night-00{number}") for number in (1, 2))]
    total, tokens = dict[str, torch.Tensor](), 0
    for memory, night in zip(before, NIGHTS, strict=True):
        gradients, count = gradient(model, memory, 1, night, finished_chain.parent)
        total = {name: total.get(name, 0) + value for name, value in gradients.items()}
        tokens += count
    mean = {name: value / tokens for name, value in total.items()}
    norm = torch.cat([value.flatten() for value in mean.values()]).norm()
    scale = RATE * min(1.0, 1.0 / norm.item())  # seeding.max_grad_norm is 1

    after = memory_of(model, finished_chain / "night-003")
    old, new = before[0].blocks[1], after.blocks[1]
    updated, moved = dict(after.expert_parameters(new)), 0.0
    for name, parameter in before[0].expert_parameters(old):
        assert (updated[name] - (parameter - scale * mean[name])).abs().max() <= 1e-6
        moved += (updated[name] - parameter).abs().sum().item()
    assert moved > 1e-2


def test_the_consolidation_took_the_old_block_with_its_senders(model, finished_chain):
    after = memory_of(model, finished_chain / "night-003")
    *_, promoted, own = read_ledger(finished_chain / "night-003" / "ledger.jsonl")
    assert promoted.holds == ("entry-001", "entry-002") and after.fingerprint(promoted.expert) == promoted.fingerprint
    blocks = set(after.blocks.values())
    assert set(after.records) == {promoted.expert, own.expert, *blocks} and len(blocks) == 2
    capacity = read_json(finished_chain / "night-003" / "results.json")["capacity"]
    assert capacity == {"max_experts": 7, "by_level": {"1": 1, "2": 1}, "blocks": 2}
    left = Accumulated.load(finished_chain / "night-003" / "adapter")
    earlier = Accumulated.load(finished_chain / "night-002" / "adapter")
    assert set(left.tokens) == {2} and left.tokens[2] > earlier.tokens[2]  # level 1 begins its next chunk
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        folded = AutoModelForCausalLM.from_pretrained(finished_chain / "night-003" / "model")(input_ids=ids).logits
        assert (after.model.eval()(input_ids=ids).logits - folded).abs().max() <= 1e-4


def test_the_slowest_level_is_updated_without_a_receiver(model, tmp_path):
    options = OPTIONS | {"levels.chunks": "100,200"}
    assert sleep.main(chain(model, tmp_path / "life", "one", **options)) == 0
    after, before = memory_of(model, tmp_path / "life" / "night-001"), fresh(model)
    assert after.blocks == {1: 0} and after.fingerprint(0) != before.fingerprint(0)
    assert not (tmp_path / "life" / "night-001" / "adapter" / "accumulated.safetensors").exists()
    assert len(read_ledger(tmp_path / "life" / "night-001" / "ledger.jsonl")) == 1


@pytest.mark.parametrize("stop", ["accumulating", "consolidating", "after it"])
def test_an_interrupted_chain_resumes_to_the_same_bits(model, finished_chain, monkeypatch, stop):
    folder = first_nights(finished_chain, stop.replace(" ", "_"))
    words = chain(model, folder, *NIGHTS, **OPTIONS)
    places = {
        "accumulating": "sleep_trl.night.accumulate.Accumulated.save",
        "consolidating": "sleep_trl.night.consolidate.seed",
        "after it": "sleep_trl.night.consolidate.load_experts",
    }

    def never(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(places[stop], never)
        assert sleep.main(words) == 130
    assert sleep.main([*words, "--resume"]) == 0
    for name in COMPARED:
        assert (folder / "night-003/adapter" / name).read_bytes() == (
            finished_chain / "night-003/adapter" / name
        ).read_bytes()


def test_rolling_a_night_back_removes_its_gradients_too(model, finished_chain):
    folder = first_nights(finished_chain, "ruinous")
    ruinous = {"retention.max_skill_loss": 0.01, "seeding.learning_rate": 1.0}
    assert sleep.main(chain(model, folder, *NIGHTS, **OPTIONS, **ruinous)) == 0
    assert read_json(folder / "night-003" / "results.json")["rolled_back"]
    for name in COMPARED:
        assert (folder / "night-003/adapter" / name).read_bytes() == (
            finished_chain / "night-002/adapter" / name
        ).read_bytes()


def test_a_night_that_accumulates_nothing_keeps_earlier_gradients(model, finished_chain):
    folder = first_nights(finished_chain, "paused")
    options = OPTIONS | {"levels.learning_rate": 0, "levels.chunks": "[]"}
    assert sleep.main(chain(model, folder, *NIGHTS, **options)) == 0
    assert (folder / "night-003/adapter" / "accumulated.safetensors").read_bytes() == (
        finished_chain / "night-002/adapter" / "accumulated.safetensors"
    ).read_bytes()


def test_dropping_an_entry_leaves_no_gradient(model, finished_chain):
    folder = shutil.copytree(finished_chain, finished_chain.parent / "dropped")
    run = FinishedRun.read(folder / "night-003")
    assert set(run.enabled) == {entry.expert for entry in run.entries[-2:]}  # blocks belong to no entry
    drop(run, [run.entries[-1].id])
    memory = memory_of(model, folder / "night-003")
    assert memory.blocks == {} and list(memory.records) == [run.entries[-2].expert]
    assert not (folder / "night-003" / "adapter" / "accumulated.safetensors").exists()
    (night,) = unfinished(nights_of(parse(chain(model, folder, *NIGHTS, "four", **OPTIONS))))
    assert preflight(RunInputs(night)).experts == 1 + 2 + 1  # what is left, two new blocks, and its own


def test_options_that_blocks_do_not_support_are_rejected_before_loading(model, tmp_path):
    def refused(**options: object) -> str:
        with pytest.raises(ValueError) as error:
            (night,) = nights_of(parse(chain(model, tmp_path / "life", "one", **OPTIONS | options)))
            preflight(RunInputs(night))
        return explain(error.value)

    assert "give --levels.chunks, such as 1000,5000,10000" in refused(**{"levels.chunks": "[]"})
    assert "the experts are routed" in refused(**{"memory.routing": "topk"})
    assert "Give --memory.max_experts 3 or more" in refused(**{"memory.max_experts": 2})
