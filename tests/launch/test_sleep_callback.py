"""Nights in the midst of ordinary runs: what they learn is saved with the run, and the run goes on as if alone."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from sleep_trl import SleepCallback, attach
from sleep_trl.config import RunConfig
from sleep_trl.distributed.progress import StepBar
from sleep_trl.memory import Memory, MemorySpec
from sleep_trl.runs.files import read_json
from sleep_trl.runs.folder import RunFolder
from sleep_trl.runs.ledger import read_ledger
from tests.tiny import tiny_model

TEXT = "the cat of Mira is called Tolu and it eats hats. the boat of Ben sleeps."
PROSE = "w30 w31 w32 w33 w34 w35"  # words of which neither the run nor a night sees one
ROWS = [{"text": text} for text in ("the cat eats hats.", "Ben sleeps.", "the boat of Mira is called Tolu.") * 4]
NIGHT: dict[str, Any] = {
    "memory": {"width": 8, "max_experts": 4},
    "dataset": {
        "templates": ["statement"],
        "general_samples": 8,
        "general_max_new_tokens": 8,
        "max_new_tokens": 8,
        "keep_truncated": True,
    },
    "seeding": {"steps": 2, "prompts_per_step": 4, "num_generations": 2, "max_completion_length": 8, "save_steps": 1},
    "evaluation": {"max_new_tokens": 4, "max_questions": 2},
    "report": False,
}
ROLLED_BACK: dict[str, Any] = NIGHT | {
    "dataset": NIGHT["dataset"] | {"general_share": 0.0},  # nothing protects the base skill
    "seeding": NIGHT["seeding"] | {"learning_rate": 2.0, "warmup_steps": 0},
    "retention": {"max_skill_loss": 0.0},
}


@pytest.fixture
def memories(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text(TEXT, "utf-8")
    row = {"text": TEXT, "questions": [{"question": "the cat of Mira is called", "answers": ["Tolu"]}]}
    (tmp_path / "skill.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (tmp_path / "prose.txt").write_text(PROSE, "utf-8")
    return tmp_path / "notes"


TRACKER = "tensorboard" if find_spec("tensorboard") else "none"


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def run(folder, model, callback=None, resume=None, trainer=SFTTrainer, tokenizer=None, rows=ROWS, **options):
    """Train for six steps, with a checkpoint every other step."""
    config = {SFTTrainer: SFTConfig, DPOTrainer: DPOConfig, GRPOTrainer: GRPOConfig}[trainer]
    given = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    done = trainer(
        model,
        args=config(str(folder), **given | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
        **({"reward_funcs": length} if config is GRPOConfig else {}),
    )
    done.train(resume_from_checkpoint=str(resume) if resume else None)
    return done


def callback(memories, every=3, night=NIGHT, **options):
    around = Path(memories).parent
    probes = {"skill": str(around / "skill.jsonl"), "perplexity": str(around / "prose.txt")}
    evaluation = night["evaluation"] | probes
    return SleepCallback(every, night | {"memories": str(memories), "evaluation": evaluation} | options)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".memory." not in name}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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


@pytest.fixture
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


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


# -- what is refused -----------------------------------------------------------------------------------------------


def trainer_arguments(**changed):
    usual = {"world_size": 1, "n_gpu": 1, "deepspeed": None, "fsdp": "", "torch_compile": False, "output_dir": "run"}
    return SimpleNamespace(**usual | {"push_to_hub": False} | changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"world_size": 2}, "several processes"),
        ({"n_gpu": 2}, "DataParallel"),
        ({"deepspeed": "zero3.json"}, "DeepSpeed"),
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"torch_compile": True}, "compiled"),
        ({"use_vllm": True}, "vLLM"),
    ],
)
def test_runs_in_which_no_night_can_take_place_are_refused(memories, changed, reason):
    with pytest.raises(ValueError, match=reason):
        callback(memories).on_init_end(trainer_arguments(**changed), None, None, tiny_model())


def test_models_that_no_night_can_grow_are_refused(memories, tmp_path, model, tokenizer):
    half, quantized, routed = (tiny_model() for _ in range(3))
    quantized.is_quantized = True
    attach(routed, MemorySpec(width=8, routing="topk"))
    for refused, reason in ((half.half(), "float16"), (quantized, "quantized"), (routed, "routing topk")):
        with pytest.raises(ValueError, match=reason):
            callback(memories).on_init_end(trainer_arguments(), None, None, refused)
    with pytest.raises(ValueError, match="adapters of PEFT"):
        SFTTrainer(
            str(model),
            args=SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=LoraConfig(),
            callbacks=[callback(memories)],
        )


def test_nights_are_not_uploaded(memories):
    inside = callback(memories, output_dir="run/nights")
    with pytest.raises(ValueError, match="push_to_hub uploads"):
        inside.on_init_end(trainer_arguments(push_to_hub=True), None, None, tiny_model())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"continue_from": "runs/one"}, "continue_from is not for SleepCallback"),
        ({"nights": ["a.jsonl", "b.jsonl"], "memories": "a.jsonl"}, "nights is not for SleepCallback"),
        ({"memories": "forget:entry-001"}, "memories is not for SleepCallback"),
        ({"dream": {"rounds": 1}}, "dream.rounds is not for SleepCallback"),
        ({"levels": {"when_full": "merge"}}, "levels is not for SleepCallback"),
        ({"memory": {"routing": "topk"}}, "memory.routing is not for SleepCallback"),
        ({"rollout": {"engine": "ray"}}, "rollout.engine is not for SleepCallback"),
        ({"seeding": {"extra": {"report_to": "wandb"}}}, "report_to would end"),
        ({"seeding": {"stepz": 1}}, "seeding.stepz is not an option"),
    ],
)
def test_options_that_nights_of_a_run_cannot_have_are_refused(options, reason):
    given: dict[str, Any] = {"memories": "notes"}
    with pytest.raises(ValueError, match=reason):
        SleepCallback(every=2, config=given | options)
    with pytest.raises(ValueError, match="at least 1 step"):
        SleepCallback(every=0, config=given)


def test_the_options_may_be_a_file_beside_its_memories(tmp_path, memories):
    (tmp_path / "night.yaml").write_text("memories: notes\nseeding: {steps: 3}\n", "utf-8")
    assert SleepCallback(2, tmp_path / "night.yaml").config.memories == str(memories)
    given = RunConfig(model="other", memories="notes")
    assert SleepCallback(2, given).config is given


def test_a_mistake_in_the_options_is_found_when_training_begins(tmp_path, memories, model, tokenizer):
    wide = callback(memories, night=NIGHT | {"seeding": NIGHT["seeding"] | {"lr_scheduler_type": "cosin"}})
    with pytest.raises(ValueError, match="cosin"):
        run(tmp_path / "run", str(model), wide, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="dtype: bfloat16 was given"):
        run(tmp_path / "run", str(model), callback(memories, dtype="bfloat16"), tokenizer=tokenizer)


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
