"""Runs with nights in their midst that are interrupted: the night goes on, or is done again if the run has changed."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sleep_trl import attach
from sleep_trl.distributed.progress import StepBar
from sleep_trl.memory import Memory, MemorySpec
from sleep_trl.runs.files import read_json
from sleep_trl.runs.ledger import read_ledger
from tests.launch.ordinary_runs import ROWS, callback, losses, run, same, weights


@pytest.mark.parametrize("has_own_expert", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_its_night_and_ends_as_if_it_had_not_been(
    tmp_path, memories, model, tokenizer, monkeypatch, has_own_expert
):
    """Stopped in the second night; then resumed from a checkpoint of before that night, and from one of after it."""

    def make():
        made = AutoModelForCausalLM.from_pretrained(model)
        if has_own_expert:
            attach(made, MemorySpec(width=8, max_experts=4)).activate()
        return made

    class Arrival(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                (memories / "two.txt").write_text("Ben eats the boat. the hats of Tolu sleeps.", "utf-8")

    def go(folder, resume=None):
        sleeping = callback(memories, every=2)
        trainer = SFTTrainer(
            made := make(),
            args=SFTConfig(
                str(tmp_path / folder),
                **{"max_steps": 6, "save_steps": 1, "learning_rate": 1e-2, "logging_steps": 1},
                **{"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True},
            ),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            callbacks=[Arrival(), sleeping],
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / folder / resume))
        memory = Memory.of(made)
        return weights(trainer), {index: memory.fingerprint(index) for index in memory.records}, losses(trainer)

    whole = go("whole")
    nights = tmp_path / "whole-nights"
    assert read_json(nights / "steps.json") == {"night-001": 2, "night-002": 4}
    assert len(whole[1]) == 2 + has_own_expert
    (memories / "two.txt").unlink()

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 2 and "night-002" in args.output_dir:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            go("run")
    written = tmp_path / "run-nights" / "night-002" / "phases" / "write_dataset.json"
    began = written.stat().st_mtime_ns
    resumed = go("run", "checkpoint-3")
    assert written.stat().st_mtime_ns == began  # what was finished of the night was not done again
    assert same(resumed[0], whole[0]) and resumed[1:] == whole[1:]
    results = (tmp_path / "run-nights" / "night-002" / "results.json").stat().st_mtime_ns
    for checkpoint in ("checkpoint-3", "checkpoint-5"):  # the second night is taken over; it is in the checkpoint
        again = go("run", checkpoint)
        assert same(again[0], whole[0]) and again[1:] == whole[1:]
    assert (tmp_path / "run-nights" / "night-002" / "results.json").stat().st_mtime_ns == results


@pytest.mark.slow
def test_a_run_that_is_no_longer_the_same_sleeps_anew(tmp_path, memories, model, tokenizer, capsys):
    """Resumed from before a night with another learning rate, it cannot take that night over."""
    options = {"tokenizer": tokenizer, "save_steps": 1, "max_steps": 3}
    run(tmp_path / "run", str(model), callback(memories), **options)
    first = read_ledger(tmp_path / "run-nights" / "night-001" / "ledger.jsonl")[0]
    with pytest.raises(ValueError, match="holds the nights of an earlier run"):
        run(tmp_path / "run", str(model), callback(memories), **options)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "optimizer.pt").unlink()
    trainer = run(tmp_path / "run", str(model), callback(memories), checkpoint, **options | {"learning_rate": 3e-2})
    shown = " ".join(capsys.readouterr().out.split())
    assert "is removed: it began from other weights" in shown
    (second,) = read_ledger(tmp_path / "run-nights" / "night-001" / "ledger.jsonl")
    assert second.fingerprint != first.fingerprint
    assert Memory.of(trainer.model).fingerprint(second.expert) == second.fingerprint
