"""A night on named GPUs, from a model's config alone."""

from pathlib import Path

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.planning.gpus import GPUS, parse_gpus
from sleep_trl.planning.peak_memory import Texts
from sleep_trl.planning.scale import Corpus, check_fits, count_idle, count_step, plan_scale
from tests.planning.test_peak_memory import SHAPE
from tests.tiny import tiny_model

SHAPES = Path(__file__).parents[2] / "benchmarks" / "shapes"
CORPUS = Corpus(documents=200, tokens=5000)


def scale(gpus: str, model: str, **sections: object):
    config = RunConfig.model_validate({"model": str(SHAPES / model), "memories": "unread", **sections})
    return plan_scale(config, *parse_gpus(gpus), CORPUS)


def test_the_operations_of_a_step_are_counted():
    """One prompt of 2 tokens, 3 with its window; one reference and two rollouts of 1 token."""
    text = Texts(prompts=1, student=2, teacher=3, reference=1, rollouts=2, rollout=1)
    head = 97 * 32
    body = 10**6 - 2 * head

    def forward(rows: int, *attended: int) -> int:  # two operations a weight, four a layer, value and attended token
        return rows * sum(2 * body + 4 * 2 * 32 * n for n in attended)

    teacher = forward(1, 1, 2, 3) + forward(3, 4) + 3 * 2 * head
    student = forward(1, 1, 2) + forward(3, 3) + 3 * 2 * head
    rollouts = forward(1, 1, 2) + forward(2, 3) + 2 * 2 * head
    step = count_step(SHAPE, SHAPE.parameters, [text], passes=5)
    assert (step.read, step.written) == (5 * (teacher + 2 * student), 5 * rollouts)
    assert (step.decoded, step.weights) == (1, 4 * 10**6)


def test_a_token_leaves_out_the_experts_that_it_does_not_go_to():
    model = tiny_model("qwen2_moe")
    config = model.config
    share = 1 - config.num_experts_per_tok / config.num_experts
    an_expert = 3 * config.hidden_size * config.moe_intermediate_size
    assert 0 < share < 1
    assert count_idle(model) == config.num_hidden_layers * config.num_experts * an_expert * share
    assert count_idle(tiny_model("llama")) == 0


@pytest.mark.parametrize(
    ("model", "parameters"), [("qwen3-0.6b", 0.596e9), ("qwen3-1.7b", 1.72e9), ("qwen3-8b", 8.19e9)]
)
def test_two_hundred_long_documents_fit_80_gb(model, parameters):
    night = scale("1xH100", model)
    assert night.peak.held["weights"] == pytest.approx(2 * parameters, rel=0.01)
    assert (night.launch, night.engine, night.too_large) == ("single.yaml", "vllm", [])
    assert set(night.phases) == {"rollouts", "teacher's pass", "student's pass", "checking the folded model"}
    assert 5 * night.update_share <= 0.05  # all five experts, at a vocabulary of 152,000
    check_fits(night, GPUS["H100"])


def test_a_night_that_learns_from_rollouts_alone_has_them_in_every_step():
    night, alone = scale("1xH100", "qwen3-0.6b"), scale("1xH100", "qwen3-0.6b", seeding={"lmbda": 1.0})
    assert alone.night_seconds == pytest.approx(alone.steps * alone.rollout_seconds)
    assert night.steps == alone.steps and night.night_seconds < alone.night_seconds


def test_what_does_not_fit_is_sharded_and_refused_by_name():
    night = scale("8xH100", "llama3-70b")
    assert (night.launch, night.engine) == ("zero3.yaml", "transformers")
    assert night.peak.held["weights"] == pytest.approx(141.1e9 / 8, rel=0.01)
    assert night.gathered == pytest.approx(3 * 141.1e9 * 7 / 8, rel=0.01)  # by two forward passes and a backward one
    assert night.too_large == ["rollouts"] and night.gathers
    with pytest.raises(ValueError, match=r"rollouts .* GB. Give .*ds3_gather_for_gen"):
        check_fits(night, GPUS["H100"])
    sharded = {"extra": {"ds3_gather_for_generation": False}}
    fitting = scale("8xH100", "llama3-70b", seeding=sharded)
    check_fits(fitting, GPUS["H100"])
    assert fitting.phases["rollouts"] == pytest.approx(night.phases["rollouts"] - 141.1e9 * 7 / 8, rel=0.01)
    assert fitting.rollout_seconds > night.rollout_seconds  # every token gathers the model


def test_more_gpus_divide_the_reading_and_not_the_decoding():
    one, eight = scale("1xH100", "qwen3-0.6b"), scale("8xH100", "qwen3-0.6b")
    assert eight.launch == "ddp.yaml" and eight.engine == "ray, 8 x vllm"
    assert eight.seconds < one.seconds / 2 and eight.phases["student's pass"] < one.phases["student's pass"]
    # 50 tokens a rollout, 58 with the margin; each reads the weights once
    writing = eight.rollout_seconds - eight.seconds
    assert writing >= 50 * 1.19e9 / (0.6 * 3.35e12)
    assert one.steps == eight.steps == 200 * 200 * 6 * 4 // 6  # sentences, samples of each, passes, rows about memories


def test_a_larger_model_runs_at_float32_only_where_it_fits():
    assert scale("1xH100", "qwen3-0.6b", dtype="float32").peak.held["weights"] == pytest.approx(4 * 0.596e9, rel=0.01)
    assert scale("1xL4", "qwen3-8b").too_large
