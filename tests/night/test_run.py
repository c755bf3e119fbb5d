"""Whole nights, as `launch/sleep.py` runs them, on a tiny model with random weights and real text."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from sleep_trl.data.samples import HELD_OUT
from sleep_trl.evaluation.recall import agreement
from sleep_trl.launch import sleep
from sleep_trl.memory import Memory, load_memory
from sleep_trl.runs.checksums import check_folder
from sleep_trl.runs.files import read_json
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.trainers.knowledge_seeding.from_config import remove_incomplete

ROOT = Path(__file__).parents[2]
TEXTS = [
    "the cat of Mira is called Tolu and it eats hats. the boat of Ben sleeps.",
    "the hats of Mira is called Ben. it eats the cat while the boat sleeps. " * 12,  # longer than the context
]


def arguments(model: Path, folder: Path, night: str = "one", **options: object) -> list[str]:
    memories = folder.parent / f"{night}.jsonl"
    question = {"question": f"the cat of Mira {night}", "answers": ["Tolu"]}
    rows = [{"id": f"{night}-{i}", "text": text, "questions": [question]} for i, text in enumerate(TEXTS)]
    memories.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "model": model,
        "memories": memories,
        "output_dir": folder,
        "dtype": "float32",  # on CPUs that are faster in bfloat16 too, where results would differ
        "memory.width": 8,
        "memory.max_experts": 2,
        "dataset.templates": '["question_answer", "paraphrase"]',
        "dataset.samples_per_window": 2,
        "dataset.max_new_tokens": 8,
        "dataset.general_samples": 8,
        "dataset.general_max_new_tokens": 8,
        "seeding.steps": 4,
        "seeding.save_steps": 2,
        "seeding.logging_steps": 1,
        "seeding.learning_rate": 1e-2,
        "seeding.prompts_per_step": 4,
        "seeding.num_generations": 2,
        "seeding.max_completion_length": 8,
        "evaluation.max_new_tokens": 4,
    } | options
    return [
        "--dataset.keep_truncated",
        "--no-dataset.check_answers",
        *(f"--{name}={value}" for name, value in given.items()),
    ]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert sleep.main(arguments(model, folder)) == 0
    return folder


def test_a_night_writes_its_results(finished):
    results = results_of(finished)
    assert set(results["recall"]) == {"before", "with_context", "after"}
    assert set(results["base_skill"]) >= {"before", "after"}
    counts = results["parameters"]
    assert counts["added"] == counts["trainable"] > 0
    assert set(results["seconds"]) >= {"evaluate_before", "write_dataset", "seed", "evaluate_after", "commit"}
    assert results["seed"] == 42 and results["versions"]["trl"] and results["config"]["seeding"]["steps"] == 4
    for folder in (finished, *(finished / name for name in ("model", "adapter", "phases", "phases/seeded"))):
        assert (folder / "checksums.sha256").is_file(), folder
        check_folder(folder)
    for name in ("ledger.jsonl", "report.html", "model/config.json", "model/README.md", "adapter/experts.safetensors"):
        assert (finished / name).exists(), name
    config = (finished / "model" / "config.json").stat().st_mode
    assert {path.stat().st_mode for path in finished.rglob("*.safetensors")} == {config}
    (entry,) = read_ledger(finished / "ledger.jsonl")
    assert [source.id for source in entry.sources] == ["one-0", "one-1"]


def test_files_with_texts_are_readable_by_their_owner_only(finished):
    grown = finished / "model"
    files = {path for path in finished.rglob("*") if path.is_file() and not path.is_relative_to(grown)}
    texts = {path for path in files if b"Mira" in path.read_bytes() and path.name != "tokenizer.json"}
    assert {path.name for path in texts} >= {"write_dataset.json", "questions.jsonl"}
    others = {finished / "adapter" / "prompts.jsonl", finished / "report.html"}
    assert {path.stat().st_mode & 0o777 for path in texts | others} == {0o600}
    assert (grown / "config.json").stat().st_mode & 0o044


def test_a_long_memory_is_read_completely(finished):
    samples = json.loads((finished / "phases" / "write_dataset.json").read_text())["result"]["samples"]
    assert {s["memory_id"] for s in samples if s["part"] == "memory"} == {"one-0", "one-1"}
    longest = max(len(s["teacher_prompt_ids"]) + 8 for s in samples)
    assert longest <= 128


def test_the_folded_model_is_the_grown_one_and_the_base_is_untouched(model, finished):
    base = AutoModelForCausalLM.from_pretrained(model)
    untouched = {name: p.clone() for name, p in base.named_parameters()}
    memory = load_memory(base, finished / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        grown = base(input_ids=ids).logits
        folded = AutoModelForCausalLM.from_pretrained(finished / "model")(input_ids=ids).logits
        with memory.as_base():
            plain = base(input_ids=ids).logits
    assert (grown - folded).abs().max() <= 1e-5 * max(1, grown.abs().max())
    assert (grown - plain).abs().max() > 1e-4
    for name, p in memory.base_parameters():
        assert torch.equal(p, untouched[name]), name


def test_a_second_night_keeps_the_first_expert_and_asks_about_it(model, finished):
    folder = finished.parent / "second"
    assert sleep.main(arguments(model, folder, "two", continue_from=finished)) == 0
    results = results_of(folder)
    assert list(results["retention"]) == ["entry-001"]
    assert results["dataset"]["samples"]["earlier"] > 0
    assert any("divergence/earlier/rollout" in entry for entry in results["history"])
    first, second = read_ledger(folder / "ledger.jsonl")
    assert second.parents == (first.id,) and (first.expert, second.expert) == (0, 1)
    memory = load_memory(AutoModelForCausalLM.from_pretrained(model), folder / "adapter")
    assert memory.fingerprint(0) == first.fingerprint and memory.fingerprint(1) == second.fingerprint


def test_a_second_night_is_measured_against_the_model_before_it(model, finished):
    """Agreement with the pretrained model is measured before the night too, on the same texts."""
    folder = finished.parent / "billed"
    assert results_of(finished)["base_skill"]["before"] == 1.0
    assert sleep.main(arguments(model, folder, "two", continue_from=finished)) == 0
    samples = read_json(folder / "phases" / "write_dataset.json")["result"]["samples"]
    held_out = [s["prompt_ids"] + s["reference_ids"] for s in samples if s["part"] == "general"][:HELD_OUT]
    nights = {"before": finished, "after": folder}
    for when, night in nights.items():
        memory = load_memory(AutoModelForCausalLM.from_pretrained(model), night / "adapter")
        measured = results_of(folder)["base_skill"][when]
        assert measured == agreement(memory, held_out) and measured < 1
    entry = read_ledger(folder / "ledger.jsonl")[1]
    assert entry.metrics["before"]["agreement"] == results_of(folder)["base_skill"]["before"]


def test_the_seed_reproduces(model, finished):
    folder = finished.parent / "again"
    assert sleep.main(arguments(model, folder)) == 0
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(finished / "ledger.jsonl")[0].fingerprint


def test_an_interrupted_night_resumes_to_the_same_expert(model, finished, monkeypatch):
    """Stopped by Ctrl-C after the first checkpoint."""
    folder = finished.parent / "interrupted"
    from sleep_trl.distributed.progress import StepBar

    original = StepBar.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", interrupt)
        assert sleep.main(arguments(model, folder)) == 130
    assert not (folder / "results.json").exists()
    assert sleep.main([*arguments(model, folder), "--resume"]) == 0
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(finished / "ledger.jsonl")[0].fingerprint


def test_a_night_killed_before_its_report_writes_it_when_resumed(model, finished, capsys):
    folder = shutil.copytree(finished, finished.parent / "unreported")
    (folder / "report.html").unlink()
    assert sleep.main([*arguments(model, folder), "--resume"]) == 0
    assert "entry-001" in (folder / "report.html").read_text("utf-8")
    assert f"{folder} is finished; wrote its missing report.html" in capsys.readouterr().err
    assert sleep.main([*arguments(model, folder), "--resume"]) == 2  # now there is nothing to resume


@pytest.mark.parametrize("unwritten", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_half_written_checkpoint_is_skipped(model, finished, monkeypatch, capsys, unwritten):
    """Stopped while the Trainer writes its last checkpoint, the run resumes from the previous one."""
    folder = finished.parent / f"half{unwritten}"
    original = getattr(Trainer, unwritten)

    def interrupt(self, output_dir):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        original(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, unwritten, interrupt)
        assert sleep.main(arguments(model, folder)) == 130
    assert (folder / "checkpoints" / "checkpoint-4" / "memory.json").exists()
    capsys.readouterr()
    assert sleep.main([*arguments(model, folder), "--resume"]) == 0
    assert "incomplete" in capsys.readouterr().out
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(finished / "ledger.jsonl")[0].fingerprint


def test_only_truncated_checkpoints_are_removed(finished, tmp_path):
    whole = finished / "checkpoints" / "checkpoint-4"
    names = sorted(path.name for path in whole.iterdir())
    cut = ["experts.safetensors", "memory.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
    assert set(cut) <= set(names)
    for number, name in enumerate(cut):
        shutil.copytree(whole, tmp_path / f"checkpoint-{number + 10}")
        path = tmp_path / f"checkpoint-{number + 10}" / name
        path.write_bytes(path.read_bytes()[:-20])
    for number in (4, 8):
        shutil.copytree(whole, tmp_path / f"checkpoint-{number}")
    remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]


def test_a_damaged_checkpoint_is_removed(finished, tmp_path, capsys):
    """A bit in the middle of the optimizer's states, which torch would load."""
    for number in (2, 4):
        shutil.copytree(finished / "checkpoints" / f"checkpoint-{number}", tmp_path / f"checkpoint-{number}")
    path = tmp_path / "checkpoint-4" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert "it is damaged" in " ".join(capsys.readouterr().out.split())


def test_generation_settings_of_a_checkpoint_change_nothing(model, finished, tmp_path):
    """They affect neither the teacher's samples nor the student's rollouts."""
    shipped = shutil.copytree(model, tmp_path / "model")
    settings = read_json(shipped / "generation_config.json") | {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0}
    (shipped / "generation_config.json").write_text(json.dumps(settings | {"min_p": 0.9, "do_sample": True}))
    assert sleep.main(arguments(shipped, tmp_path / "run")) == 0
    (entry,), (expected,) = read_ledger(tmp_path / "run" / "ledger.jsonl"), read_ledger(finished / "ledger.jsonl")
    assert entry.fingerprint == expected.fingerprint


def test_sigterm_says_how_to_resume(model, finished):
    folder = finished.parent / "terminated"
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *arguments(model, folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "phases" / "evaluate_before.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, printed = process.communicate()
    assert process.returncode == 143
    assert printed.endswith(f"Stopped. Resume {folder} with the same command and --resume.\n"), printed


def test_kill_minus_nine_loses_nothing(model, finished):
    folder = finished.parent / "killed"
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *arguments(model, folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "phases" / "write_dataset.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    assert sleep.main([*arguments(model, folder), "--resume"]) == 0
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(finished / "ledger.jsonl")[0].fingerprint


@pytest.mark.parametrize("routing", ["dense", "topk"])
def test_two_processes_share_the_work(model, finished, routing):
    folder = finished.parent / f"two_processes_{routing}"
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    configured = [*accelerate, "--config_file", "launch/accelerate/ddp.yaml", "launch/sleep.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*configured, *arguments(model, folder, **{"memory.routing": routing})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[:6000]
    results = results_of(folder)
    assert results["processes"] == 2
    assert len(results["history"]) == len(results_of(finished)["history"])
    memory = load_memory(AutoModelForCausalLM.from_pretrained(model), folder / "adapter")
    assert isinstance(memory, Memory) and memory.count_parameters()["added"] == results["parameters"]["added"]


def test_experts_of_two_routed_nights_load_into_the_base(model, finished, capsys):
    """With one expert per token, the second night's competes with the first's once it is committed."""
    first, second = finished.parent / "routed", finished.parent / "routed_second"
    routed = {"memory.routing": "topk", "memory.top_k": 1, "memory.max_experts": 3}
    assert sleep.main(arguments(model, first, **routed)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Written to {first}: adapter/, ledger.jsonl" in shown and "load_memory" in shown
    options = {"memory.max_experts": 3, "continue_from": first}
    assert sleep.main(arguments(model, second, "two", **options)) == 0
    for folder, experts in ((first, 1), (second, 2)):
        results = results_of(folder)
        assert not (folder / "model").exists() and results["fold_difference"] is None
        assert "Expert load" in (folder / "report.html").read_text()
        totals = {sum(layer) for layer in results["load"]}
        assert len(totals) == 1 and totals.pop() > 0  # the same tokens pass every layer, each to one expert
        assert all(count == 0 for layer in results["load"] for count in layer[experts:])
    assert results_of(second)["retention"].keys() == {"entry-001"}
    entries = read_ledger(second / "ledger.jsonl")
    base = AutoModelForCausalLM.from_pretrained(model)
    memory = load_memory(base, second / "adapter")
    assert memory.spec.routing == "topk" and memory.spec.top_k == 1
    assert [memory.fingerprint(entry.expert) for entry in entries] == [entry.fingerprint for entry in entries]
    assert results_of(second)["parameters"]["added"] == memory.count_parameters()["added"]
    assert all(p.any() for name, p in memory.expert_parameters(1) if "router" in name)  # the gates were trained


def test_an_interrupted_routed_night_resumes_to_the_same_expert(model, finished, monkeypatch):
    whole, folder = finished.parent / "routed_whole", finished.parent / "routed_interrupted"
    routed = {"memory.routing": "topk"}
    assert sleep.main([*arguments(model, whole, **routed), "--no-report"]) == 0
    from sleep_trl.distributed.progress import StepBar

    original = StepBar.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", interrupt)
        assert sleep.main([*arguments(model, folder, **routed), "--no-report"]) == 130
    assert sleep.main([*arguments(model, folder, **routed), "--no-report", "--resume"]) == 0
    assert read_ledger(folder / "ledger.jsonl")[0].fingerprint == read_ledger(whole / "ledger.jsonl")[0].fingerprint


def test_a_users_reward_from_a_file(model, finished, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "def brevity(completion_ids, scale=1.0, **kwargs):\n    return [-scale * len(ids) for ids in completion_ids]\n"
    )
    folder = finished.parent / "rewarded"
    rewards = json.dumps(["imitation", {"name": f"{plugin}:brevity", "weight": 0.5, "params": {"scale": 2.0}}])
    assert sleep.main([*arguments(model, folder), "--no-report", f"--rewards={rewards}", "--seeding.steps=2"]) == 0
    history = results_of(folder)["history"]
    assert all(entry["rewards/brevity/mean"] < 0 for entry in history if "reward" in entry)
    assert not (folder / "report.html").exists()


def test_a_night_whose_expert_is_not_finite_ends_with_a_message(model, tmp_path, capsys):
    folder = tmp_path / "run"
    assert sleep.main([*arguments(model, folder), "--seeding.learning_rate", "1e39"]) == 2
    assert "Training became unstable in step" in capsys.readouterr().err
    assert (folder / "phases" / "write_dataset.json").exists()
    assert not (folder / "adapter").exists() and not (folder / "ledger.jsonl").exists()
