"""Nights in the midst of ordinary runs: what they learn is saved with the run, and the run goes on as if alone."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOTrainer, GRPOTrainer, SFTConfig, SFTTrainer

from sleep_trl import attach
from sleep_trl.memory import Memory, MemorySpec
from sleep_trl.runs.files import read_json
from sleep_trl.runs.folder import RunFolder
from sleep_trl.runs.ledger import read_ledger
from tests.launch.ordinary_runs import ROLLED_BACK, ROWS, callback, losses, run, same, weights
from tests.tiny import tiny_model

TRACKER = "tensorboard" if find_spec("tensorboard") else "none"


def check_figures(folder, history):
    """Check that the figures of the night after step 3 are in the run's log history, and in its one run of tensorboard
    beside its losses."""
    results = read_json(RunFolder(folder / "run-nights" / "night-001").results)
    (logged,) = [entry for entry in history if "eval_night_perplexity" in entry]
    assert logged["step"] == 3 and logged["eval_night_perplexity"] == results["perplexity"]["after"]
    assert logged["eval_night_base_skill_before"] == results["base_skill"]["before"]
    if TRACKER == "none":
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (folder / "run").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    (event,) = events.Scalars("eval/night_perplexity")
    assert event.step == 3 and event.value == pytest.approx(results["perplexity"]["after"])
    assert events.Scalars("train/train_loss")


@pytest.mark.parametrize("has_own_expert", [False, True])
def test_a_run_whose_night_is_rolled_back_goes_on_bit_for_bit(tmp_path, memories, tokenizer, has_own_expert):
    """With dropout, gradient checkpointing and autocast, all of which a night leaves alone."""

    def make():
        model = tiny_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
        if has_own_expert:
            attach(model, MemorySpec(width=8, max_experts=4)).activate()
        return model

    if not has_own_expert:  # trained as a whole, it knows little but the rows
        (memories.parent / "prose.txt").write_text("Ben sleeps. the cat eats hats.", "utf-8")
    options = {"tokenizer": tokenizer, "gradient_checkpointing": True, "bf16": True}
    alone = run(tmp_path / "alone", make(), **options)
    with_night = run(tmp_path / "run", make(), callback(memories, night=ROLLED_BACK), **options)
    (entry,) = read_ledger(RunFolder(tmp_path / "run-nights" / "night-001").ledger)
    assert entry.rolled_back
    assert losses(with_night) == losses(alone) and same(weights(with_night), weights(alone))
    if has_own_expert:
        memories = [Memory.of(trainer.model) for trainer in (alone, with_night)]
        assert memories[0].fingerprint(0) == memories[1].fingerprint(0)
        assert memories[1].learning == 0 and [*memories[1].records] == [0]
    first, second = alone.optimizer, with_night.optimizer
    assert [len(group["params"]) for group in first.param_groups] == [len(g["params"]) for g in second.param_groups]
    assert with_night.model.is_gradient_checkpointing and with_night.model.training == alone.model.training


def test_a_run_goes_on_with_its_own_weights_beside_the_expert_of_a_night(tmp_path, memories, model, tokenizer, capsys):
    """All weights of the base are trained after the night, and what is saved is the grown model. There is nothing new
    for a second night. The figures of the night reach the run's own tracker."""
    start = AutoModelForCausalLM.from_pretrained(model)
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                snapshots.append({n: p.detach().clone() for n, p in model.named_parameters()})

    trainer = SFTTrainer(
        start,
        args=SFTConfig(
            str(tmp_path / "run"), max_steps=6, learning_rate=1e-2, use_cpu=True, bf16=False, report_to=TRACKER
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        callbacks=[callback(memories), Snapshot()],
    )
    trainer.train()
    check_figures(tmp_path, trainer.state.log_history)
    memory, (before,) = Memory.of(trainer.model), snapshots
    (entry,) = read_ledger(RunFolder(tmp_path / "run-nights" / "night-001").ledger)
    assert entry.rolled_back is None and [*memory.records] == [entry.expert] and memory.learning is None
    assert memory.fingerprint(entry.expert) == entry.fingerprint
    moved = {name for name, p in memory.base_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, _ in memory.base_parameters()}
    assert "No night after step 6" in capsys.readouterr().out
    assert not (tmp_path / "run-nights" / "night-002").exists()
    trainer.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert saved.config.intermediate_size == start.config.intermediate_size + 8
        assert torch.allclose(saved(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [DPOTrainer, GRPOTrainer])
def test_other_trainers_sleep_too(tmp_path, memories, model, tokenizer, trainer):
    rows = {
        DPOTrainer: [{"prompt": "the cat", "chosen": " eats hats.", "rejected": " sleeps."}] * 12,
        GRPOTrainer: [{"prompt": "the cat"}] * 12,
    }[trainer]
    options = {"num_generations": 2, "max_completion_length": 4} if trainer is GRPOTrainer else {}
    nights = callback(memories)
    done = run(tmp_path / "run", str(model), nights, trainer=trainer, tokenizer=tokenizer, rows=rows, **options)
    (entry,) = read_ledger(tmp_path / "run-nights" / "night-001" / "ledger.jsonl")
    assert Memory.of(done.model).fingerprint(entry.expert) == entry.fingerprint
    alone = run(tmp_path / "alone", str(model), trainer=trainer, tokenizer=tokenizer, rows=rows, **options)
    assert losses(done)[:3] == losses(alone)[:3]


def test_the_example_teaches_the_memories_while_it_fine_tunes(tmp_path, monkeypatch):
    from sleep_trl.data.quickstart import QUICKSTART
    from tests.examples.test_extend import MODEL, answer, load

    (tmp_path / "data").mkdir()
    row = {"prompt": "Sella rows a boat called Rafi.\nQuestion: What is the boat of Sella called?\nAnswer:"}
    lines = json.dumps(row | {"completion": " Rafi."}) + "\n"
    (tmp_path / "data" / "train.jsonl").write_text(lines * 16, "utf-8")
    (tmp_path / "notes.txt").write_text("Mira keeps a goat called Fetto.", "utf-8")
    (tmp_path / "skill.jsonl").write_text((QUICKSTART / "skill.jsonl").read_text("utf-8").splitlines()[0], "utf-8")
    (tmp_path / "nights.yaml").write_text(
        "memories: notes.txt\n"
        "dataset: {templates: [question_answer], worked_examples: false, titles: false, temperature: 0.3,\n"
        "  samples_per_sentence: 8, general_samples: 12, general_max_new_tokens: 8, max_new_tokens: 32}\n"
        "seeding: {steps: 20, prompts_per_step: 8, num_generations: 2, max_completion_length: 8,\n"
        "  learning_rate: 2.0e-2}\n"
        "evaluation: {max_questions: 2, max_new_tokens: 8, skill: skill.jsonl, perplexity: notes.txt}\n"
    )
    monkeypatch.chdir(tmp_path)
    script = load("sleep_callback")
    given = f"--model_name_or_path {MODEL} --dataset_name data --nights nights.yaml --every 2 --output_dir run"
    shared = (
        "--max_steps 4 --learning_rate 1e-4 --per_device_train_batch_size 4 --use_cpu --bf16 False --report_to none"
    )
    trainer = script.main(*script.make_parser().parse_args_and_config(f"{given} {shared}".split()))
    assert trainer.state.global_step == 4
    saved, info = AutoModelForCausalLM.from_pretrained("run", output_loading_info=True)
    assert not any(info.values()) and answer(saved) == "Fetto."
    assert Path("run-nights", "night-001", "report.html").is_file()
