"""Unlearning on finished runs of a tiny model: what remains is exactly the model without the expert."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sleep_trl.cli import main
from sleep_trl.config import RunConfig
from sleep_trl.memory import fold, load_memory
from sleep_trl.planning.capacity import find_capacity
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from sleep_trl.publish.unlearn import drop, set_enabled
from sleep_trl.report import write_report
from sleep_trl.runs.files import read_json, read_jsonl, write_json, write_jsonl
from sleep_trl.runs.finished import FinishedRun, describe, newest_model
from sleep_trl.runs.lock import RunInUse, run_lock
from sleep_trl.wake import WakeBuffer
from tests.publish.three_nights import NIGHTS, filled, write_run
from tests.report.pages import Page, make_results
from tests.tiny import tiny_model

IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(1))
EXCHANGES = 18
"""Of files in a drop: plan, model out, ledger, prompts, questions, records, experts, records, hashes, model in. Ledger,
records and experts are exchanged between two exchanges of their hashes."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def model_of(experts: tuple[int, ...], folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the folded model that never had the other experts."""
    fold(filled(experts), folder)
    return weights(folder)


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names_in(run: FinishedRun) -> set[str]:
    return {path.name for path in run.folder.iterdir()}


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_dropped_entry_leaves_exactly_the_model_without_its_expert(run, base, tmp_path, dropped):
    kept = tuple(index for index in range(3) if index != dropped)
    name = f"entry-{dropped + 1:03}"
    drop(run, [name], later="keep")
    assert is_same(weights(run.folder / "model"), model_of(kept, tmp_path / "expected"))
    assert (run.folder / "model" / "tokenizer.json").is_file()
    card = (run.folder / "model" / "README.md").read_text("utf-8")
    assert [f"| entry-{index + 1:03} |" in card for index in range(3)] == [index != dropped for index in range(3)]
    after = FinishedRun.read(run.folder)
    assert [after.state(entry) == "dropped" for entry in after.entries] == [index == dropped for index in range(3)]
    assert list(after.enabled) == list(kept)
    for file in ("prompts.jsonl", "questions.jsonl"):
        assert name not in {row["entry"] for row in read_jsonl(run.folder / "adapter" / file)}
    assert not any(
        key.startswith(f"experts.{dropped}.") for key in load_file(run.folder / "adapter/experts.safetensors")
    )
    memory = load_memory(AutoModelForCausalLM.from_pretrained(base), run.folder / "adapter")
    assert memory.activate() == dropped, "the slot is free for a later night"
    assert memory.fingerprint(dropped) != run.entries[dropped].fingerprint


def test_dropping_an_entry_with_dependents_needs_a_choice(run, tmp_path):
    with pytest.raises(ValueError, match=r"depend on entry-001 in .*: entry-002, entry-003\. .*--later drop"):
        drop(run, ["entry-001"])
    assert is_same(weights(run.folder / "model"), model_of((0, 1, 2), tmp_path / "whole"))
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        done = drop(run, ["entry-002"], buffer, later="drop")
        assert (done.entries, done.queued) == (("entry-002", "entry-003"), ("c", "d", "e"))
    assert is_same(weights(run.folder / "model"), model_of((0,), tmp_path / "expected"))
    drop(FinishedRun.read(run.folder), ["entry-001"])  # no active entry depends on it any more
    assert is_same(weights(run.folder / "model"), model_of((), tmp_path / "base"))


def test_a_night_can_continue_a_run_of_which_every_entry_was_dropped(run, base, tmp_path):
    drop(run, ["entry-001"], later="drop")
    config = RunConfig(
        model=str(base),
        memories=run.config.memories,
        output_dir=tmp_path / "next",
        continue_from=run.folder,
        report=False,
        dataset={"max_new_tokens": 8, "general_max_new_tokens": 8},
        seeding={"max_completion_length": 8},
        evaluation={"max_new_tokens": 8},
    )
    plan = preflight(RunInputs(config))
    assert (plan.experts, plan.max_experts, plan.width) == (1, 3, 8)


def test_intermediate_files_with_dropped_texts_are_removed(run):
    drop(run, ["entry-001"], later="keep")
    assert names_in(run) == {"adapter", "checksums.sha256", "config.json", "ledger.jsonl", "model", "results.json"}
    for path in run.folder.rglob("*"):
        assert path.is_dir() or b"the boat of Ben" not in path.read_bytes(), path


def test_the_report_says_first_what_the_model_no_longer_holds(run):
    capacity = {"max_experts": 3, "by_level": {"1": 3}}
    parameters = {"base": 20_000, "added": 3_000, "trainable": 1_000}
    results = make_results(entry="entry-003", capacity=capacity, parameters=parameters)
    write_json(run.folder / "results.json", results)
    shutil.rmtree(run.folder / "dream_adapter")
    shutil.rmtree(run.folder / "phases")

    def page() -> str:
        text = Page(run.folder / "report.html").text.replace("\u00a0", " ")
        return " ".join(text.split()).removeprefix("Night report: ")

    write_report(run.folder)
    assert page().startswith("entry-003 Night report: entry-003 The model has learned the memories")
    assert "3,00015.0 % of" in page()
    set_enabled(run, run.entry("entry-003"), False)
    headline = "entry-003 (disabled) entry-003 is disabled: the model answers without it. At the end of the night:"
    assert headline in page() and "2,00010.0 % of" in page() and "kept, but disabled" in page()
    set_enabled(run, run.entry("entry-003"), True)
    assert "(disabled)" not in page() and "3,00015.0 % of" in page()
    drop(run, ["entry-001", "entry-003"], later="keep")
    assert "entry-003 (dropped) entry-001 was dropped by the user on 20" in page()
    assert "the model answers without them. At the end of the night: The model has learned" in page()
    assert "1,0005.0 % of" in page() and "1 of 3" in page()


def test_a_disabled_entry_has_no_effect_and_is_restored_bit_for_bit(run, tmp_path):
    before = weights(run.folder / "model")
    with pytest.raises(ValueError, match="dream_adapter fits only the model"):
        set_enabled(run, run.entry("entry-002"), False)
    (run.folder / "dream_adapter").rename(tmp_path / "dream_adapter")
    set_enabled(run, run.entry("entry-002"), False)
    assert is_same(weights(run.folder / "model"), model_of((0, 2), tmp_path / "expected"))
    disabled = FinishedRun.read(run.folder)
    assert [disabled.state(entry) for entry in disabled.entries] == ["enabled", "disabled", "enabled"]
    with pytest.raises(ValueError, match="entry-002 is already disabled"):
        set_enabled(disabled, disabled.entry("entry-002"), False)
    set_enabled(disabled, disabled.entry("entry-002"), True)
    assert is_same(weights(run.folder / "model"), before)
    assert names_in(run) >= {"checkpoints", "phases"}  # only a drop removes intermediate files


def test_the_fingerprint_of_answers_names_what_is_enabled(run):
    """It is the same again where the same experts are, although the model is written anew each time."""
    shutil.rmtree(run.folder / "dream_adapter")
    first, found = newest_model(run.folder), []
    for is_enabled in (False, True):
        read = FinishedRun.read(run.folder)
        set_enabled(read, read.entry("entry-002"), is_enabled)
        found.append(newest_model(run.folder))
    assert len({first.version, *(model.version for model in found)}) == 3
    assert first.fingerprint != found[0].fingerprint and first.fingerprint == found[1].fingerprint
    drop(FinishedRun.read(run.folder), ["entry-002"], later="keep")
    assert newest_model(run.folder).fingerprint == found[0].fingerprint


def test_entries_of_a_routed_memory_can_be_dropped(base, tmp_path):
    run = FinishedRun.read(write_run(tmp_path, base, routing="topk"))
    drop(run, ["entry-002"], later="keep")
    memory = load_memory(AutoModelForCausalLM.from_pretrained(base).eval(), run.folder / "adapter")
    expected = filled((0, 2), routing="topk")
    with torch.no_grad():
        assert torch.equal(memory.model(input_ids=IDS).logits, expected.model(input_ids=IDS).logits)
    assert not (run.folder / "model").exists()


# -- interruptions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(EXCHANGES + 1))
def test_an_interrupted_drop_is_finished_by_the_same_command(run, tmp_path, monkeypatch, step):
    """Interrupted before any exchange of files, the run never promises more than it holds."""
    left = step

    def stopping(original):
        def exchange(self, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return original(self, target)

        return exchange

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(Path, name, stopping(getattr(Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            drop(run, ["entry-002"], later="keep")
    if left < 0:
        cut = FinishedRun.read(run.folder)
        has_model = (run.folder / "model").is_dir()
        assert not (has_model and cut.entry("entry-002").dropped), "old model with the new ledger"
        load_memory(tiny_model(), run.folder / "adapter")  # it can be loaded at any moment
        drop(cut, ["entry-002"], later="keep")
    else:
        assert step == EXCHANGES
    assert is_same(weights(run.folder / "model"), model_of((0, 2), tmp_path / "expected"))
    after = FinishedRun.read(run.folder)
    assert after.state(after.entry("entry-002")) == "dropped" and list(after.enabled) == [0, 2]
    assert not names_in(run) & {"model.partial", "model.replaced"}


def test_a_leftover_old_model_is_removed_by_the_same_command(run):
    drop(run, ["entry-002"], later="keep")
    shutil.copytree(run.folder / "model", run.folder / "model.replaced")  # killed before it was removed
    drop(FinishedRun.read(run.folder), ["entry-002"], later="keep")
    assert not (run.folder / "model.replaced").exists()


def test_a_model_that_cannot_be_folded_changes_nothing(run, monkeypatch):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    def fail(*args: object) -> None:
        raise RuntimeError("differs")

    monkeypatch.setattr("sleep_trl.publish.unlearn.fold", fail)
    with pytest.raises(RuntimeError, match="differs"):
        drop(run, ["entry-001"], later="keep")
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_an_interrupted_drop_of_a_source_is_finished_by_the_same_command(run, tmp_path, monkeypatch):
    """Killed when the ledger says that it is dropped and the expert is still there. No night may continue this."""
    with monkeypatch.context() as patch:
        patch.setattr("sleep_trl.publish.unlearn.save_memory", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop(run, ["entry-001", "entry-002"], without="contract-17.pdf", later="keep")
    config = RunConfig(model="-", memories="-", continue_from=run.folder)
    with pytest.raises(ValueError, match=r"memory drop. was interrupted .* Finish it with the same command"):
        find_capacity(config)
    with pytest.raises(ValueError, match=r"interrupted\. Finish it first: .* --source 'contract-17.pdf'"):
        drop(run, ["entry-003"])
    command = ["memory", "drop", str(run.folder), "--source", "contract-17.pdf", "--later", "keep", "--yes"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    after = FinishedRun.read(run.folder)
    assert [after.state(entry) for entry in after.entries] == ["dropped", "dropped", "enabled"]
    assert list(after.enabled) == [2] and find_capacity(config).experts == 2
    assert is_same(weights(run.folder / "model"), model_of((2,), tmp_path / "expected"))


def test_a_drop_reaches_unfinished_nights_and_names_finished_ones(run, tmp_path):
    """A night that continues the run was killed, another was quarantined, a third is finished."""
    runs = tmp_path / "runs"
    for name in ("night4", "quarantined-001", "night5"):
        continued = read_json(run.folder / "config.json") | {"continue_from": str(run.folder)}
        write_json(runs / name / "config.json", continued)
        write_json(runs / name / "phases" / "write_dataset.json", {"result": "the boat of Ben"})
        rows = [{"id": m.id, "source": m.source, "text": m.text} for m in (NIGHTS[0][1], NIGHTS[2][0])]
        write_jsonl(runs / name / "phases" / "ingested.jsonl", rows)
        (runs / name / "checkpoints").mkdir()
    for file in ("ledger.jsonl", "results.json"):
        shutil.copy(run.folder / file, runs / "night5" / file)
    (runs / "aside-notes").mkdir()
    (runs / "aside-notes" / "x.partial").write_text("a folder of the user")
    done = drop(run, ["entry-001", "entry-002"], without="contract-17.pdf", later="keep")
    assert done.erased == (runs / "night4", runs / "quarantined-001") and done.also_in == (runs / "night5",)
    for night in done.erased:
        left = {path.relative_to(night).as_posix() for path in night.rglob("*") if path.is_file()}
        assert left == {"config.json", "phases/ingested.jsonl", "phases/checksums.sha256"}
        assert [row["id"] for row in read_jsonl(night / "phases" / "ingested.jsonl")] == ["e"]
    assert (runs / "aside-notes" / "x.partial").is_file()


def test_a_run_that_a_night_continues_is_not_changed(run):
    with run_lock(run.folder, is_shared=True), run_lock(run.folder, is_shared=True):
        for change in (lambda: drop(run, ["entry-003"]), lambda: set_enabled(run, run.entry("entry-003"), False)):
            with pytest.raises(RunInUse, match=rf"in use by process {os.getpid()} \(.*\)\. Wait until it ends"):
                change()
    assert drop(run, ["entry-003"]).entries == ("entry-003",)


# -- mistakes --------------------------------------------------------------------------------------


def test_mistakes_are_reported(run, tmp_path):
    with pytest.raises(ValueError, match="has no entry 'entry-009', but entry-001"):
        drop(run, ["entry-009"])
    drop(run, ["entry-001"], later="keep")
    after = FinishedRun.read(run.folder)
    with pytest.raises(ValueError, match="entry-001 was already dropped, on"):
        drop(after, ["entry-001"], later="keep")
    with pytest.raises(ValueError, match=r"was dropped on .* its expert is gone"):
        set_enabled(after, after.entry("entry-001"), True)
    config = read_json(run.folder / "config.json")
    write_json(run.folder / "config.json", config | {"model": str(tmp_path / "moved")})
    moved = FinishedRun.read(run.folder)
    with pytest.raises(ValueError, match=r"needs its base model.*does not exist.*Or give --model"):
        drop(moved, ["entry-002"], later="keep")
    drop(moved, ["entry-002"], later="keep", model=config["model"])
    with pytest.raises(ValueError, match=r"lacks config\.json, ledger\.jsonl, results\.json, adapter"):
        FinishedRun.read(tmp_path)


def test_another_base_is_refused(run, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="another base model"):
        drop(run, ["entry-001"], later="keep", model=str(tmp_path / "other"))


# -- looking ---------------------------------------------------------------------------------------


def test_an_entry_is_described_with_its_state_and_sources(run):
    drop(run, ["entry-002"], later="keep")
    after = FinishedRun.read(run.folder)
    row = describe(after, after.entries[1])
    assert (row["state"], row["records"], row["sources"]) == ("dropped", 2, ["contract-17.pdf", "letters"])
    assert row["metrics"]["recall"] == [0.0, 0.5]
