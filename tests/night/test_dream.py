"""A night that dreams, with the quickstart's model, which can read."""

import json
import shutil
from pathlib import Path

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_trl.config.command_line import parse
from sleep_trl.data.documents import MemoryText, Question
from sleep_trl.data.prompts import Prompter
from sleep_trl.data.samples import Window
from sleep_trl.launch import sleep
from sleep_trl.night.dream_tasks import find_tasks, write_tasks
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.ledger import read_ledger
from tests.tiny import tiny_tokenizer

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"

OPTIONS = {
    "dtype": "float32",  # on CPUs that are faster in bfloat16 too, where results would differ
    "model": QUICKSTART / "model",
    "memory.width": 32,
    "memory.max_experts": 2,
    "dataset.templates": '["question_answer"]',
    "dataset.window": 20,
    "dataset.window_overlap": 0,
    "dataset.samples_per_window": 4,
    "no-dataset.titles": True,
    "no-dataset.worked_examples": True,
    "dataset.max_new_tokens": 24,
    "dataset.temperature": 0.3,
    "dataset.general_samples": 8,
    "dataset.general_max_new_tokens": 8,
    "seeding.steps": 4,
    "seeding.learning_rate": 1e-2,
    "seeding.max_completion_length": 8,
    "seeding.logging_steps": 1,
    "evaluation.metric": "exact",
    "evaluation.max_new_tokens": 8,
    "dream.rounds": 2,
    "dream.dreams_per_task": 4,
    "dream.top_k": 2,
    "dream.max_new_tokens": 24,
    "dream.questions_per_task": 4,
    "dream.test": "sign",
    "dream.lora_learning_rate": 5e-3,
    "dream.learning_rate": 1e-2,
    "dream.steps": 4,
}


def arguments(folder: Path, **options: object) -> list[str]:
    memories = folder.parent / "town.jsonl"
    memories.write_text((QUICKSTART / "memories.jsonl").read_text("utf-8").splitlines()[0] + "\n")
    given = OPTIONS | {"memories": memories, "output_dir": folder}
    given |= {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in given.items() for word in (f"--{name}", *([] if value is True else [str(value)]))]


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dreams") / "run"
    assert sleep.main(arguments(folder)) == 0
    return folder


def test_dreams_are_tried_out_and_the_rewarded_ones_are_learned(night):
    results = read_json(night / "results.json")
    records = read_json(night / "phases" / "dream.json")["result"]
    first, last = results["dreams"]["rounds"]
    assert first["dreams"] == last["dreams"] == 6 * 4  # six sentences, four dreams each
    assert first["tried"] == last["tried"] == 6 * 3  # the best two and one by chance
    assert first["failed"] == last["failed"] == 0 and last["rewarded"] > 0
    rewarded = {(r["task_id"], r["dream"]) for r in records if r["rewarded"] and r["step"] == records[-1]["step"]}
    assert results["dreams"]["learnt"] == len(rewarded) <= last["rewarded"]
    assert any("sft/dream/reference" in row for row in results["dreams"]["history"])
    assert not any("sft/dream/reference" in row for row in results["history"])
    seeded, dreamt, learnt = (
        (night / "phases" / name / "experts.safetensors").read_bytes() for name in ("seeded", "dreamt", "learnt")
    )
    assert seeded != dreamt != learnt == (night / "adapter" / "experts.safetensors").read_bytes()


def test_every_dream_is_in_the_report(night):
    page = (night / "report.html").read_text("utf-8")
    records = read_json(night / "phases" / "dream.json")["result"]
    assert page.count('class="dream"') == len(records)


def test_an_interrupted_night_learns_the_same_dreams(night, tmp_path):
    again = tmp_path / "run"
    late = shutil.ignore_patterns("learn_dreams*", "learnt", "checkpoints-learnt", "*after*", "commit*", "results*")
    shutil.copytree(night, again, ignore=late)
    config = json.loads((again / "config.json").read_text())
    write_json(again / "config.json", config | {"output_dir": str(again)})
    memories = ["--memories", str(night.parent / "town.jsonl")]
    assert sleep.main([*arguments(again), *memories, "--resume"]) == 0
    once, twice = (read_ledger(folder / "ledger.jsonl")[0].fingerprint for folder in (night, again))
    assert once == twice


def test_workers_get_the_same_results_as_one_process(night, tmp_path):
    again = tmp_path / "run"
    late = shutil.ignore_patterns("dream*", "learn*", "checkpoints-*", "*after*", "commit*", "results*")
    shutil.copytree(night, again, ignore=late)
    config = json.loads((again / "config.json").read_text())
    config |= {"output_dir": str(again), "dream": config["dream"] | {"chunk": 5, "workers": 2}}
    write_json(again / "config.json", config)
    given = ["--memories", str(night.parent / "town.jsonl"), "--dream.chunk", "5", "--dream.workers", "2"]
    try:
        assert sleep.main([*arguments(again), *given, "--resume"]) == 0
    finally:
        ray.shutdown()
    alone, shared = (read_json(folder / "phases" / "dream.json")["result"] for folder in (night, again))
    assert shared == alone


def test_dreams_can_be_learned_into_an_adapter(night, tmp_path):
    again = tmp_path / "run"
    late = shutil.ignore_patterns("learn_dreams*", "learnt", "checkpoints-learnt", "*after*", "commit*", "results*")
    shutil.copytree(night, again, ignore=late)
    config = json.loads((again / "config.json").read_text())
    config |= {"output_dir": str(again), "dream": config["dream"] | {"into": "lora", "steps": 20}}
    write_json(again / "config.json", config)
    given = ["--memories", str(night.parent / "town.jsonl"), "--dream.into", "lora", "--dream.steps", "20"]
    assert sleep.main([*arguments(again), *given, "--resume"]) == 0
    adapter = (again / "adapter" / "experts.safetensors").read_bytes()
    assert adapter == (night / "phases" / "seeded" / "experts.safetensors").read_bytes()
    grown = AutoModelForCausalLM.from_pretrained(again / "model")
    tokenizer = AutoTokenizer.from_pretrained(again / "dream_adapter")
    dream = next(r for r in read_json(night / "phases" / "dream.json")["result"] if r["rewarded"] and r["step"])
    ids = torch.tensor([[tokenizer.bos_token_id, *dream["ids"]]])
    with torch.no_grad():
        before = grown(input_ids=ids, labels=ids).loss.item()
        merged = PeftModel.from_pretrained(grown, again / "dream_adapter").merge_and_unload()
        assert merged(input_ids=ids, labels=ids).loss.item() < before - 0.5


def test_measuring_dreams_by_questions_needs_questions(tmp_path, capsys):
    folder = tmp_path / "run"
    given = arguments(folder, dream__measure="questions")
    (tmp_path / "town.jsonl").write_text(json.dumps({"text": "Robbin runs the inn Zora."}) + "\n")
    assert sleep.main(given) == 2
    assert "dream.measure: the memories come with no questions" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("measure", "measured"), [("heldout_loss", ["a 1"]), ("questions", ["b 1"]), ("math:hypot", ["a 1", "b 1"])]
)
def test_windows_are_dreamed_about_if_they_can_be_measured(measure, measured):
    config = parse(["--model", "m", "--memories", "d.jsonl", "--output_dir", "none", "--dream.measure", measure])
    question = Question("Who?", ("Ben",))
    memories = [MemoryText("a", "", "the cat of Mira", columns={"heldout": "it eats hats"})]
    memories += [MemoryText("b", "", "the boat of Ben", (question,))]
    windows = [Window(memory.id, "", memory.text) for memory in memories]
    rows = write_tasks(config, find_tasks(memories, windows), None, Prompter(tiny_tokenizer()), 0)
    assert [row["task_id"] for row in rows] == measured
    assert [row["heldout"] for row in rows if "heldout" in row] == (
        ["it eats hats"] if measure == "heldout_loss" else []
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dream__random_expert": True}, "dream.random_expert requires memory.routing topk"),
        ({"dream__into": "lora", "memory__routing": "topk"}, "dream.into lora requires memory.routing dense"),
        ({"dream__template": "question_answer"}, "first asks for a request"),
        ({"dream__max_new_tokens": 500}, "do not fit the context"),
        ({"dream__share": 0.9}, "leave no share for the memories"),
        ({"dream__workers": 2}, "workers (2) require chunk"),
        ({"dream__top_k": 4}, "select 5 of 4 dreams"),
        ({"dream__rewards": '["imitation"]'}, "needs reference"),
        ({"dream__measure": "heldout_loss"}, "no memory has one under the key heldout"),
        ({"dream__measure": "nowhere:scores"}, "Module nowhere does not import"),
        ({"dream__measure": "math:sqrt"}, "Write def f(task, ask) -> list[float]"),
        ({"dream__judge": "wise"}, "There is no judge 'wise'"),
        ({"dream__judge": "lexical", "dream__measure": "math:sqrt"}, "leave it out, or give measure quiz or questions"),
    ],
)
def test_mistakes_are_reported_before_anything_is_loaded(tmp_path, capsys, options, message):
    folder = tmp_path / "run"
    assert sleep.main(arguments(folder, **options)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not folder.exists()
