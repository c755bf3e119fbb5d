"""Both protocols of SEAL end to end, on tiny models. Their scores mean nothing; that every part runs does."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]
PASSAGES = ROOT / "tests" / "data" / "squad" / "passages.jsonl"
SPECIAL = {"eos_token": "<eos>", "pad_token": "<pad>"}


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The folder of the scripts on the path, as when one of them is run."""
    sys.path.insert(0, str(ROOT / "examples" / "dreaming"))
    yield
    sys.path.remove(str(ROOT / "examples" / "dreaming"))


def script(name):
    return importlib.import_module(name)


def run(name, monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    script(name).main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def save(folder, texts, longest):
    """Write a tiny Qwen-form model and a tokenizer of these texts to a folder, and return both."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=600, special_tokens=list(SPECIAL.values()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, padding_side="left", **SPECIAL)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = tiny_model("qwen2", vocab_size=len(tokenizer), max_position_embeddings=longest, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """A model, and four passages in the form of SQuAD."""
    folder = tmp_path_factory.mktemp("squad")
    rows = [json.loads(line) for line in PASSAGES.read_text("utf-8").splitlines()][:4]
    passages = [{"id": r["id"], "title": r["source"], "context": r["text"], "questions": r["questions"]} for r in rows]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, passages)), encoding="utf-8")
    save(folder / "model", [row["text"] for row in rows], 512)
    return folder


def test_squad_one_passage_at_a_time(squad, monkeypatch, capsys):
    data = squad / "passages.jsonl"
    options = ["--model", squad / "model", "--passages", data, "--train-passages", data, "--rounds", 2]
    options += ["--limit", 2, "--train-limit", 1, "--dreams", 5, "--max-dream-tokens", 12, "--width", 8]
    options += ["--metric", "f1", "--output", squad / "out.json", "--seed", 1]
    result = run("seal_squad", monkeypatch, capsys, *options)
    assert (result["passages"], result["failed"], len(result["improving_by_round"])) == (2, 0, 2)
    assert all(0 <= result[key] <= 1 for key in ("as_it_is", "passage_alone", "dreams"))
    records = json.loads((squad / "out.json").read_text())["dreams"]
    assert sum("step" in r for r in records) == 2 * 1 * 5  # rounds x passages x dreams
    tried = [r for r in records if "scores" in r]
    assert len(tried) == 2 * 5
    by_passage = [[sum(r["scores"]) / len(r["scores"]) for r in tried[k : k + 5]] for k in (0, 5)]
    assert result["dreams"] == pytest.approx(sum(sum(means) / 5 for means in by_passage) / 2)


def test_squad_many_passages_in_one_adapter(squad, monkeypatch, capsys):
    options = ["--model", squad / "model", "--passages", squad / "passages.jsonl", "--n", 200, "--dreams", 2]
    result = run("seal_squad", monkeypatch, capsys, *options, "--max-dream-tokens", 12, "--metric", "f1")
    assert (result["n"], result["passages"], result["failed"]) == (200, 4, 0)
    assert result["improving_by_round"] == []


def test_what_an_adapter_learns_is_seals(squad):
    tokenizer = AutoTokenizer.from_pretrained(squad / "model")
    seal_squad, setup = script("seal_squad"), script("_protocol").Setup(None, tokenizer, None, None, None)
    passage = {"title": "Warsaw", "context": "A city. "}
    rows = seal_squad.sequences(setup, passage, "It has people.\n\n It is old. ")
    assert [tokenizer.decode(row) for row in rows] == [
        "Warsaw\nIt has people.",
        "Warsaw\nIt is old.",
        "Warsaw\nA city.",
    ]
    presets = script("seal_presets")
    assert presets.SEAL_SQUAD.job("a", rows).steps == 30  # ten passes, one sequence a step
    assert presets.SEAL_SQUAD_MANY.job("a", rows * 3).steps == 6  # three passes, eight a step


RECIPES = [
    '{"changes": ["basic"], "learn": "output", "learning_rate": 0.001, "epochs": 1}',
    '{"changes": [], "learn": "all", "learning_rate": 0.01, "epochs": 2}',
    '{"changes": ["size", "chain", "repeat"], "learn": "all", "learning_rate": 0.0001, "epochs": 1}',
    '{"changes": ["size"], "learn": "none"}',
]


@pytest.fixture(scope="module")
def arc(tmp_path_factory):
    """Three small tasks, and a model that has learned to write recipes, one of them invalid."""
    protocol, grids = script("arc"), script("arc_grids")
    folder = tmp_path_factory.mktemp("arc")
    pairs = [([[a, b], [c, d]], [[b, a], [d, c]]) for a, b, c, d in ((1, 2, 3, 4), (5, 0, 0, 6), (7, 7, 8, 0))]
    pairs = [{"input": given, "output": wanted} for given, wanted in pairs]
    tasks = [{"id": f"t{k}", "train": pairs[:k] + pairs[k + 1 :], "test": [pairs[k]]} for k in range(3)]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    read = protocol.read_tasks(folder / "tasks.jsonl", None)
    texts = [grids.write_task(tuple(task["train"]), task["test"][0][0]) + "\n" + protocol.ASK for task in read.values()]
    model, tokenizer = save(folder / "model", [*texts, *RECIPES], 512)
    rows = [(tokenizer(text)["input_ids"], tokenizer(f"{r}<eos>")["input_ids"]) for text in texts for r in RECIPES]
    longest = max(len(prompt) + len(recipe) for prompt, recipe in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for n, (prompt, recipe) in enumerate(rows):
        ids[n, : len(prompt) + len(recipe)] = torch.tensor(prompt + recipe)
        labels[n, len(prompt) : len(prompt) + len(recipe)] = torch.tensor(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    model.save_pretrained(folder / "model")
    return folder


def test_arc_from_dreams_to_solved_tasks(arc, monkeypatch, capsys):
    data = arc / "tasks.jsonl"
    options = ["--model", arc / "model", "--tasks", data, "--train-tasks", data, "--rounds", 1, "--epochs", 1]
    options += ["--limit", 2, "--dreams", 8, "--select-top-k", 2, "--select-random-k", 1]
    options += ["--eval-dreams", 4, "--width", 8]
    result = run("arc", monkeypatch, capsys, *options, "--output", arc / "out.json")
    assert (result["tasks"], result["dreams"]) == (2, 8)
    records = json.loads((arc / "out.json").read_text())["dreams"]
    dreamt = [r for r in records if "step" in r]
    assert len(dreamt) == 16 and sum(bool(r["selected"]) for r in dreamt) == 6  # 5 of each 8 are rejected
    tried = [r for r in records if "solved" in r]
    assert any(r["error"] is None for r in tried)
    assert all((r["solved"] is None) == (r["error"] is not None) for r in tried)
    assert result["failed"] == sum(r["error"] is not None for r in tried)


def test_a_task_is_multiplied_from_its_known_pairs_alone():
    grids = script("arc_grids")
    augment, read_grid = grids.augment, grids.read_grid
    grid = [[1, 2, 3], [4, 5, 6]]
    left, right = grids.BASIC[:2]
    assert left(grid) == [[3, 6], [2, 5], [1, 4]] and right(left(grid)) == grid
    assert grids.SIZE[0](grid) == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    pairs = [([[n, 0]], [[0, n]]) for n in (1, 2, 3)]
    tasks = augment(pairs, [], 99, 0)
    # three pairs to solve, given two others or one of them: 3 * (1 + 2), and all of these in other colors
    assert len(tasks) == 18 and all(len(known) in (1, 2) for known, _ in tasks)
    for known, (given, wanted) in tasks:
        assert all(b == [row[::-1] for row in a] for a, b in (*known, (given, wanted)))
    assert len(augment(pairs, ["basic", "size"], 20, 0)) == 20
    assert augment(pairs, ["basic"], 9, 5) == augment(pairs, ["basic"], 9, 5) != augment(pairs, ["basic"], 9, 6)
    assert augment([([[1] * 16], [[1] * 16])] * 2, ["size"], 99, 0)  # 32 cells are too many for some changes
    assert read_grid(grids.write_grid(grid)) == grid
    assert [read_grid(text) for text in ("", "1 2\n3", "1 12", "a")] == [None] * 4


@pytest.mark.parametrize("text", ["", "[]", '{"changes": ["odd"]}', RECIPES[3], RECIPES[0].replace("0.001", "NaN")])
def test_an_invalid_recipe_is_refused(text):
    recipe = script("arc").Recipe
    assert recipe.read(RECIPES[0]).epochs == 1
    with pytest.raises(ValueError):
        recipe.read(text)


def test_the_cost_is_arithmetic(monkeypatch, capsys):
    found = run("seal_squad", monkeypatch, capsys, "--estimate", "1e9", "--limit", "10", "--dreams", "2")
    assert found["flops_written"] == 2e9 * 10 * 2 * 500
    assert found["flops_learnt"] == 4e9 * 10 * (10 * 2 * 460 + 10 * 160)
