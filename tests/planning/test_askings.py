"""What a plan counts is what a night asks. benchmarks/phase_memory.py measures the memory that it takes."""

from pathlib import Path

import pytest

from sleep_trl.config import RunConfig
from sleep_trl.data.samples import HELD_OUT
from sleep_trl.planning.askings import find_askings, find_texts, lay_out_texts
from tests.planning.test_extent import inputs_of

SHORT = "the cat of Mira is called Tolu and it eats hats. "
LONG = "the cat of Mira is called Tolu and it eats hats and it eats the hats of Mira and of Tolu too. "
TEMPLATES = {"dataset__templates": "question_answer", "dataset__samples_per_sentence": 2}


def test_a_night_of_few_steps_writes_no_more_than_it_trains_on(model: Path, tmp_path: Path) -> None:
    options = TEMPLATES | {"seeding__steps": 2, "seeding__prompts_per_step": 4, "dataset__general_samples": 3}
    inputs = inputs_of(model, tmp_path, [SHORT * 40], **options)
    writing = [asking for asking in find_askings(inputs) if asking.phase == "writing"]
    [written] = inputs.sample_counts
    assert sum(written) == 20  # one about each window, in place of two about each of two sentences
    assert [len(asking.prompts) for asking in writing] == [sum(written), sum(written), HELD_OUT + 3]
    assert [asking.new_tokens for asking in writing] == [8, 8, 8]  # a request is in the prompt of its answer


def test_only_sentences_that_are_written_about_count(model: Path, tmp_path: Path) -> None:
    """The first ones of each window, as a night takes them."""
    document = [SHORT * 2 + LONG]
    size = {"dataset__window": 54, "dataset__max_new_tokens": 30}

    def learned(**options: object) -> int:
        inputs = inputs_of(model, tmp_path, document, **TEMPLATES | size | options)
        return find_texts(inputs, find_askings(inputs))[0].reference

    assert learned(seeding__steps=1, seeding__prompts_per_step=2) < learned()


@pytest.mark.parametrize(
    ("options", "rollouts"),
    [
        ({}, 4),
        ({"rollout_start": 1}, 0),
        ({"rollout_start": 1, "lmbda": 1}, 4),
        ({"rollout_start": 1, "alpha": 0}, 4),
        ({"rollout_start": 0, "alpha": 1, "lmbda": 0}, 0),
    ],
)
def test_rollouts_count_if_there_are_any(options: dict[str, float], rollouts: int) -> None:
    config = RunConfig.model_validate({"model": "m", "memories": "d", "seeding": {"num_generations": 4, **options}})
    parts = {"memory": 2, "earlier": 0, "general": 0}
    [texts] = lay_out_texts(config, parts, 4, student=1, teacher=1, sample=1, general=1)
    assert texts.rollouts == rollouts
