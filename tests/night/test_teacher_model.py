"""Nights in which another model teaches, as `launch/sleep.py` runs them."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sleep_trl.data.samples import Window
from sleep_trl.data.templates import Template
from sleep_trl.data.writing import tasks_of
from sleep_trl.launch import sleep
from sleep_trl.memory import load_memory
from sleep_trl.night.generate_data import deal_out
from tests.night.test_run import arguments, results_of
from tests.tiny_runs import write_model

LARGER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "seed": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {f"teacher{seed}": write_model(folder / f"teacher{seed}", seed=seed) for seed in (0, 1)}
    return found | {"student": write_model(folder / "student", **LARGER)}


def options(models: dict[str, Path], *teachers: str) -> dict[str, object]:
    names = [str(models[name]) for name in teachers]
    return {"teacher_model": names[0] if len(names) == 1 else json.dumps(names), "seeding.steps": 20}


def test_teachers_share_the_sentences_of_a_window():
    """Each sentence has one of them; and where there are two samples of each, each teacher has one."""
    sentences = tuple(f"The ferry number {number} leaves for Oden." for number in range(5))
    window = Window("m", "Ferries", " ".join(sentences), 0, sentences)
    given = deal_out([tasks_of(window, 5, Template.load("statement"))] * 2, 2)
    assert [len(tasks) for tasks in given] == [5, 5]
    assert sorted(task.sentence or "" for tasks in given for task in tasks) == sorted(sentences * 2)
    asked = deal_out([tasks_of(window, 10, Template.load("question_answer"))], 2)
    assert all([task.sentence for task in tasks] == list(sentences) for tasks in asked)


@pytest.mark.parametrize("teachers", [("teacher0",), ("teacher0", "teacher1")])
def test_a_larger_model_learns_from_smaller_ones(models, tmp_path, teachers):
    folder = tmp_path / "run"
    assert sleep.main(arguments(models["student"], folder, **options(models, *teachers))) == 0
    history = [entry for entry in results_of(folder)["history"] if "divergence/memory/reference" in entry]
    losses = [entry["divergence/memory/reference"] for entry in history]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert history[0]["divergence/general/reference"] < 0.2 * losses[0]  # it teaches itself what it must not forget
    base = AutoModelForCausalLM.from_pretrained(models["student"])
    before = {name: p.clone() for name, p in base.named_parameters()}
    memory = load_memory(base, folder / "adapter")
    assert all(torch.equal(p, before[name]) for name, p in memory.base_parameters())
    assert results_of(folder)["fold_difference"] <= 1e-5


def test_a_teacher_with_another_tokenizer_is_rejected(models, tmp_path, capsys):
    stranger = write_model(tmp_path / "stranger")
    vocabulary = {
        f"x{i}" if i > 3 else token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *"a" * 93])
    }
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(stranger)
    given = arguments(models["student"], tmp_path / "run", teacher_model=stranger)
    assert sleep.main(given) == 2
    message = capsys.readouterr().err
    assert "teacher_model" in message and "186 of 190 tokens differ" in message and "same family" in message
    assert not (tmp_path / "run").exists()


def test_a_missing_teacher_is_named(models, tmp_path, capsys):
    assert sleep.main(arguments(models["student"], tmp_path / "run", teacher_model=tmp_path / "nobody")) == 2
    assert "nobody" in capsys.readouterr().err
