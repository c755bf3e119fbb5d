"""What `real_night.py` measures with, and how its rivals learn; the whole of it, on the bundled tiny model."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from sleep_trl.config import RunConfig
from sleep_trl.data.samples import Sample
from sleep_trl.data.templates import Template
from sleep_trl.models.loading import load_model
from sleep_trl.planning.inputs import RunInputs
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

real_night, rivals = importlib.import_module("real_night"), importlib.import_module("_rivals")


class Inputs:
    """The part of a night's inputs that a rival reads."""

    def __init__(self) -> None:
        seeding = {"prompts_per_step": 4, "warmup_steps": 0, "max_completion_length": 8}
        self.config = RunConfig.model_validate({"model": "m", "memories": "x", "seeding": seeding})
        self.tokenizer = tiny_tokenizer()


def sample(part: str, number: int) -> Sample:
    return Sample(part, "m", "question_answer", "", [1, 4 + number], [1, 4 + number], "", [20 + number, 2])


SAMPLES = [*(sample("memory", k) for k in range(4)), *(sample("general", k) for k in range(4, 8))]


def loss_of(model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> float:
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        predicted = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        for position, is_learnt in enumerate(row["completion_mask"][1:]):
            if is_learnt:
                total, count = total - predicted[position, ids[0, position + 1]].item(), count + 1
    return total / count


def test_a_rival_learns_the_answers_in_as_many_steps_as_are_laid_out() -> None:
    inputs, model = Inputs(), tiny_model()
    rows = rivals.rival_rows(rivals.RIVALS["lora"], inputs, SAMPLES, steps=6)
    assert len(rows) == 24 and {row["input_ids"][1] for row in rows} == {4, 5, 6, 7}
    assert all(row["completion_mask"] == [0, 0, 1, 1] for row in rows)
    before = loss_of(model, rows)
    times = rivals.fine_tune(model, inputs, rivals.RIVALS["lora"], rows, 1e-2, "mlp")
    assert len(times) == 6 and min(times) > 0
    assert loss_of(model, rows) < 0.9 * before
    trained = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name}
    assert trained == {"gate_proj", "up_proj", "down_proj"}


def test_replay_has_sleeps_share_of_general_rows() -> None:
    rows = rivals.rival_rows(rivals.RIVALS["lora_replay"], Inputs(), SAMPLES, steps=5)
    general = sum(row["input_ids"][1] >= 8 for row in rows)
    assert general == 5 * round(4 * Inputs().config.dataset.general_share)


def test_self_distillation_sees_the_document_and_asks_without_it() -> None:
    town = {"model": "examples/quickstart/model", "memories": "examples/quickstart/memories.jsonl"}
    inputs = RunInputs(RunConfig.model_validate(town | {"seeding": {"prompts_per_step": 4, "num_generations": 2}}))
    respond, samples = Template.load("question_answer").respond, []
    for window in inputs.reading[:4]:
        request = f"Who is {window.memory_id}?"
        ids, text, _ = inputs.prompter(respond, source=window.source, request=request)
        samples.append(
            Sample("memory", window.memory_id, "question_answer", text, ids, ids, "me", [20], [], 0, None, request)
        )
    rows = rivals.rival_rows(rivals.RIVALS["sdft"], inputs, samples, steps=2)
    assert {(row["prompt"], row["privileged_context"]) for row in rows} == {
        (sample.prompt, window.text) for sample, window in zip(samples, inputs.reading, strict=False)
    }
    model = load_model(inputs.config)
    assert len(rivals.fine_tune(model, inputs, rivals.RIVALS["sdft"], rows, 1e-2, "mlp")) == 2
    trained = [weight for name, weight in model.named_parameters() if "lora_B" in name]  # begins at zero
    assert trained and all(weight.abs().max() > 0 for weight in trained)


def test_means_and_errors_go_key_by_key() -> None:
    seeds = [
        {"recall": {"after": 0.5}, "steps": 3, "missing": None, "text": "a"},
        {"recall": {"after": 0.7}, "steps": 5},
    ]
    seeds[1] |= {"missing": 1.0, "text": "b"}
    assert real_night.mean_of(seeds) == {"recall": {"after": pytest.approx(0.6)}, "steps": 4, "missing": None}
    errors = real_night.mean_of(seeds, real_night.standard_error)
    assert errors["recall"]["after"] == pytest.approx(0.1) and errors["steps"] == pytest.approx(1)  # sd / sqrt(2)
    assert real_night.mean_of(seeds[:1], real_night.standard_error)["steps"] is None


def test_settings_are_not_chosen_on_what_is_measured(capsys) -> None:
    for words in (["--learning-rates", "1e-3", "3e-3"], ["--options=--seeding.alpha=1"]):
        with pytest.raises(SystemExit):
            real_night.parse_arguments(["--model", "m", *words])
        assert "--split choose" in capsys.readouterr().err
        assert real_night.parse_arguments(["--model", "m", "--split", "choose", *words]).split == "choose"


def test_more_documents_than_there_are_is_an_error() -> None:
    arguments = real_night.parse_arguments(["--model", "m", "--documents", "1000"])
    with pytest.raises(ValueError, match="1000"):
        real_night.documents_of(arguments)
    arguments.documents = 3
    assert len(real_night.documents_of(arguments)) == 3


@pytest.mark.slow
def test_a_night_and_its_rivals_are_measured_and_resumed(tmp_path) -> None:
    from tests.benchmarks.test_scripts import answer

    town = ("--model", "examples/quickstart/model", "--set", "examples/quickstart/memories.jsonl")
    words = (*town, "--rivals", "--compare", "lora", "lora_text", "--folder", str(tmp_path))
    result = answer("real_night.py", *words)
    with_context = {"with_context", "other_words_with_context"}
    assert set(result["recall"]) == {"before", "after", "other_words", *with_context}
    assert all(0 <= value <= 1 for value in result["recall"].values())
    skill = result["skill"]
    assert set(skill) == {"reading_before", "reading_after", "perplexity_before", "perplexity_after"}
    assert skill["reading_before"] is skill["reading_after"] is None  # no shipped passage fits its context
    assert all(value is None or 1 < value < math.inf for value in skill.values())
    assert result["steps"] == 3 and result["seconds"] > 3 * result["seconds_per_step"] > 0
    assert result["step_in_sft_steps"] > 0 and result["peak_mib"] > 100 and result["plan_mib"] > 0
    assert result["rivals"]["lora"]["equal_steps"]["steps"] == 3
    assert set(result["rivals"]) == {"lora", "lora_text"}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert json.loads(json.dumps(answer("real_night.py", *words))) == result
    assert {path: path.stat().st_mtime_ns for path in files} == files  # nothing is done twice
    [night] = tmp_path.glob("*/seed-42/night")
    runs = answer("defaults.py", "--night", str(night))["runs"]
    assert set(runs) == {"defaults", "no rollouts", "lora"}
    for by_seed in runs.values():
        assert by_seed["42"]["steps"] == 2 and by_seed["42"]["seconds"] > 0 and 0 <= by_seed["42"]["after"] <= 1
