"""What Sleep is compared with learns as it is said to."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from sleep_trl.config import RunConfig
from sleep_trl.data.samples import Sample
from tests.tiny import tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

baselines = importlib.import_module("_baselines")
Importance, Baseline, reference_loss, train = (
    baselines.Importance,
    baselines.Baseline,
    baselines.reference_loss,
    baselines.train,
)

ROWS = [
    {"prompt_ids": [1, 5, 6], "reference_ids": [7, 2]},
    {"prompt_ids": [1, 8], "reference_ids": [9, 10, 11, 2]},
]
CONFIG = RunConfig.model_validate(
    {"model": "m", "memories": "x", "seeding": {"steps": 3, "prompts_per_step": 2, "warmup_steps": 0}}
)


def sample(part: str, number: int) -> Sample:
    ids = [1, 4 + number]
    return Sample(part, "m", "question_answer", "", ids, ids, "", [20 + number, 2])


def test_loss_is_of_the_references_alone():
    model = tiny_model()
    total = torch.zeros(())
    for row in ROWS:
        ids = torch.tensor([row["prompt_ids"] + row["reference_ids"]])
        predicted = model(input_ids=ids).logits.log_softmax(-1)[0, len(row["prompt_ids"]) - 1 : -1]
        total -= predicted.gather(-1, torch.tensor(row["reference_ids"])[:, None]).sum()
    torch.testing.assert_close(reference_loss(model, ROWS), total / 6)


def test_importance_is_the_mean_square_of_gradients_and_holds_what_matters():
    model, samples = tiny_model(), [sample("memory", k) for k in range(3)]
    importance = Importance.measure(model, samples, None)
    expected = torch.zeros_like(model.lm_head.weight)
    for one in samples:
        model.zero_grad()
        reference_loss(model, [{"prompt_ids": one.prompt_ids, "reference_ids": one.reference_ids}]).backward()
        expected += model.lm_head.weight.grad.square() / 3
    torch.testing.assert_close(importance.fisher["lm_head.weight"], expected)
    assert importance.penalty(model) == 0
    with torch.no_grad():
        model.lm_head.weight += 0.5
    assert importance.penalty(model).item() == pytest.approx(0.25 * expected.sum().item(), rel=1e-4)


def test_importance_adds_up_and_is_read_back(tmp_path):
    model = tiny_model()
    first = Importance.measure(model, [sample("general", 1)], None)
    both = Importance.measure(model, [sample("memory", 2)], first)
    both.save(tmp_path / "ewc.safetensors")
    read = Importance.load(tmp_path / "ewc.safetensors", model)
    alone = Importance.measure(model, [sample("memory", 2)], None)
    for name, value in read.fisher.items():
        torch.testing.assert_close(value, first.fisher[name] + alone.fisher[name])
        assert torch.equal(read.anchor[name], model.get_parameter(name))


@pytest.mark.parametrize("baseline", [Baseline(1e-2), Baseline(1e-2, lora_rank=4)], ids=["sft", "lora"])
def test_a_night_lowers_the_loss_and_leaves_a_plain_model(baseline):
    model = tiny_model()
    names, before = set(model.state_dict()), reference_loss(model, ROWS).item()
    trained = train(baseline, CONFIG, model, ROWS * 3, None)
    assert set(trained.state_dict()) == names
    assert reference_loss(trained, ROWS).item() < before


def test_a_stiff_model_moves_less():
    moved = []
    for ewc_lambda in (0.0, 1e6):
        model = tiny_model()
        start = model.lm_head.weight.detach().clone()
        importance = Importance.measure(model, [sample("general", k) for k in range(3)], None)
        train(Baseline(1e-2, ewc_lambda=ewc_lambda), CONFIG, model, ROWS * 3, importance)
        moved.append((importance.fisher["lm_head.weight"].sqrt() * (model.lm_head.weight - start)).norm().item())
    assert moved[1] < 0.9 * moved[0]


def test_replay_takes_sleeps_shares():
    samples = [*(sample("memory", k) for k in range(4)), *(sample("general", k) for k in range(4, 8))]
    config = CONFIG.model_copy(update={"seeding": CONFIG.seeding.model_copy(update={"prompts_per_step": 8})})
    plain = baselines.night_rows(config, tiny_tokenizer(), samples, None)
    assert {row["part"] for row in plain} == {"memory"}
    replayed = baselines.night_rows(config, tiny_tokenizer(), samples, [sample("memory", 9), sample("general", 10)])
    counts = [sum(row["part"] == part for row in replayed) for part in ("memory", "general", "earlier")]
    assert counts == [12, 6, 6]
    assert all(row["prompt_ids"][1] == 13 for row in replayed if row["part"] == "earlier")


def test_a_configuration_without_steps_is_refused(tmp_path):
    config = RunConfig(model="m", memories="x")
    with pytest.raises(ValueError, match=r"give the configuration seeding\.steps"):
        baselines.live(Baseline(1e-2), config, [], tmp_path, tmp_path)
