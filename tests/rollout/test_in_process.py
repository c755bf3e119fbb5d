import pytest
import torch

from sleep_trl.rollout import Sampling, TransformersEngine
from tests.rollout.engines import assert_draws_from_nucleus
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 4 + i] + [5] * (i % 4) for i in range(10)]


def engine(batch_size=64):
    return TransformersEngine(tiny_model(), tiny_tokenizer(), batch_size)


def test_greedy_completions_do_not_depend_on_batching():
    sampling = Sampling(12, temperature=0.0)
    assert engine(64).generate(PROMPTS, sampling) == engine(3).generate(PROMPTS, sampling)


def test_greedy_is_the_models_own_argmax():
    e = engine()
    (completion,) = e.generate([PROMPTS[3]], Sampling(6, temperature=0.0))
    ids = list(PROMPTS[3])
    for token in completion.ids:
        with torch.no_grad():
            assert int(e.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_the_seed_decides_and_the_outside_is_left_alone():
    e, sampling = engine(), Sampling(12, seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = e.generate(PROMPTS, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert e.generate(PROMPTS, sampling) == first
    assert e.generate(PROMPTS, Sampling(12, seed=6)) != first


def test_sampling_is_from_the_untruncated_distribution():
    """Frequencies of the first token over 4000 draws follow the model's own probabilities."""
    e = engine(4000)
    drawn = [c.ids[0] for c in e.generate([PROMPTS[0]] * 4000, Sampling(1, seed=2))]
    with torch.no_grad():
        p = e.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    counted = torch.bincount(torch.tensor(drawn), minlength=97) / 4000
    assert (counted - p).abs().max() < 0.03
    assert (counted > 0).sum() > 50  # top-k of 50, transformers' default, would stop there


def test_top_p_samples_from_the_nucleus():
    e = engine(4000)
    assert_draws_from_nucleus(e, e.model)


@pytest.mark.parametrize("top_p", [0.0, 1.1, -0.5])
def test_a_top_p_that_keeps_nothing_is_refused(top_p):
    with pytest.raises(ValueError, match=f"top_p must be above 0 and at most 1 .*got {top_p}"):
        Sampling(1, top_p=top_p)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_settings_of_a_checkpoint_do_not_leak(temperature):
    """A checkpoint may ship penalties and truncation; the teacher and the questions are drawn without them."""
    sampling = Sampling(12, temperature=temperature, seed=3)
    plain = engine().generate(PROMPTS, sampling)
    e = engine()
    shipped = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": plain[0].ids[:1], "min_p": 0.9}
    e.model.generation_config.update(**shipped, do_sample=True, top_k=1, typical_p=0.1, min_new_tokens=12, num_beams=3)
    declared = e.model.generation_config
    assert e.generate(PROMPTS, sampling) == plain
    assert e.model.generation_config is declared and declared.repetition_penalty == 5.0


def test_stop_reasons():
    e = engine()
    completions = e.generate(PROMPTS * 20, Sampling(20, seed=1))
    assert {c.stop_reason for c in completions} == {"eos", "length"}
    for c in completions:
        assert (c.ids[-1] == 2) == (c.stop_reason == "eos") and 2 not in c.ids[:-1]
        assert len(c.ids) == 20 or c.stop_reason == "eos"


def test_stop_strings_end_a_completion_before_them():
    e = engine()
    free = e.generate(PROMPTS, Sampling(12, temperature=0.0))
    word = free[0].text.split()[4]
    for before, after in zip(free, e.generate(PROMPTS, Sampling(12, temperature=0.0, stop=(word,))), strict=True):
        assert word not in after.text
        if word in before.text:
            assert after.stop_reason == "stop" and after.text == before.text[: before.text.index(word)].strip()
            assert e.tokenizer.decode(after.ids, skip_special_tokens=True).strip() == after.text


def test_progress_counts_every_prompt_and_training_mode_is_kept():
    e, done = engine(3), []
    e.model.train()
    e.generate(PROMPTS, Sampling(2), done.append)
    assert sum(done) == len(PROMPTS) and e.model.training
