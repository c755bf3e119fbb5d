"""Prefixes that are read once give what reading every prompt gives."""

from __future__ import annotations

import itertools
import random
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sleep_trl.models.key_values import count_key_values
from sleep_trl.rollout import Sampling, TransformersEngine
from sleep_trl.rollout.in_process import ROUND
from sleep_trl.rollout.prefixes import SHORTEST, CacheRoom, estimate_cache_bytes, hidden_behind, plan_batches
from tests.tiny import ATTENTIVE, FORMS, RECURRENT, tiny_model, tiny_tokenizer

EXAMPLES = [1, *(4 + (7 * j) % 90 for j in range(20))]  # what every prompt begins with


def windows(count: int = 3, questions: int = 4) -> list[list[int]]:
    """Prompts of several windows behind the same examples, with tails of several lengths, in no order."""
    rng = random.Random(0)
    prompts = []
    for window in range(count):
        text = [rng.randrange(4, 97) for _ in range(15 + 9 * window)]
        prompts += [[*EXAMPLES, *text, *(rng.randrange(4, 97) for _ in range(1 + 2 * q))] for q in range(questions)]
    rng.shuffle(prompts)
    return [*prompts, prompts[0], prompts[0], [*EXAMPLES, 50]]


UNRELATED = [[1, 5], [9, *range(20, 60)], [7] * 9]


class Counting(TransformersEngine):
    """Counts forward passes, and the tokens that layers compute in them, padding included."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.read = self.passes = 0
        self.model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module, args, output) -> None:
        self.read += args[0].numel()
        self.passes += 1


def plainly(model, prompts, sampling):
    """One prompt at a time, which leaves nothing to share."""
    engine = TransformersEngine(model, tiny_tokenizer())
    return [engine.generate_batch([prompt], sampling)[0] for prompt in prompts]


def assert_the_same(found, expected, tolerance=1e-4) -> None:
    assert [c.ids for c in found] == [c.ids for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", [*FORMS, "gemma2 window", "mistral window"])
def test_greedy_tokens_are_those_of_each_prompt_alone(form) -> None:
    """Also where the window of attention is shorter than what is shared."""
    name, *window = form.split()
    model = tiny_model(name, **({"sliding_window": 7} if window else {}))
    prompts, sampling = [*windows(), *UNRELATED], Sampling(6, temperature=0.0, logprobs=True)
    engine = TransformersEngine(model, tiny_tokenizer(), batch_size=8)
    assert_the_same(engine.generate(prompts, sampling), plainly(model, prompts, sampling))
    assert engine.room.can_share == (name not in RECURRENT), "what can be shared was, and nothing else"


def test_each_shared_token_is_read_once() -> None:
    """The examples once, each window once, then tails of at most seven tokens."""
    engine, prompts = Counting(tiny_model(), tiny_tokenizer()), windows()[:12]
    engine.generate(prompts, Sampling(1))
    probe = 1
    assert engine.read == probe + len(EXAMPLES) + 3 * (15 + 18) + 12 * 7


@pytest.mark.parametrize("prompts", [windows(), [*windows(), *UNRELATED], UNRELATED, [*windows(1)[:4], [3, 3]]])
def test_all_processes_take_part_in_every_forward_pass(prompts) -> None:
    """With sharded weights they would wait for each other otherwise, also when one has nothing left to do."""
    sampling = Sampling(1, temperature=0.0, logprobs=True)
    engines = [Counting(tiny_model(), tiny_tokenizer(), batch_size=4) for _ in range(3)]
    shares = [engine.generate_share(prompts, sampling, rank, 3) for rank, engine in enumerate(engines)]
    assert engines[0].passes == engines[1].passes == engines[2].passes > 1
    found = [completion for _, completion in sorted(itertools.chain(*shares), key=lambda pair: pair[0])]
    assert_the_same(found, plainly(tiny_model(), prompts, sampling))


def test_rollouts_of_a_prompt_are_drawn_from_its_distribution() -> None:
    """Frequencies of the second token after a given first one, over 6000 rollouts of two prompts."""
    prompts = windows()[:2]
    engine = Counting(tiny_model(), tiny_tokenizer(), batch_size=6000)
    drawn = engine.generate(prompts * 3000, Sampling(2, temperature=0.4, seed=3))
    assert engine.read < 100 * len(prompts) + 4 * 6000
    for place, prompt in enumerate(prompts):
        with torch.no_grad():
            first = engine.model(input_ids=torch.tensor([prompt])).logits[0, -1].div(0.4).softmax(-1)
            token = int(first.argmax())
            second = engine.model(input_ids=torch.tensor([[*prompt, token]])).logits[0, -1].div(0.4).softmax(-1)
        mine = [c.ids for c in drawn[place::2]]
        counted = torch.bincount(torch.tensor([ids[0] for ids in mine]), minlength=97) / 3000
        assert (counted - first).abs().max() < 0.03
        followed = torch.tensor([ids[1] for ids in mine if ids[0] == token])
        counted = torch.bincount(followed, minlength=97) / len(followed)
        assert len(followed) > 300 and (counted - second).abs().max() < 4 * 0.5 / len(followed) ** 0.5


def test_a_model_whose_cache_cannot_be_shared_reads_each_prompt(caplog) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    engine, prompts = TransformersEngine(model, tiny_tokenizer()), [[*EXAMPLES, 5 + i] for i in range(4)]
    sampling = Sampling(4, temperature=0.0, logprobs=True)
    found = [engine.generate(prompts, sampling) for _ in range(2)]
    assert caplog.text.count("rows of a MambaForCausalLM cannot share its cache") == 1
    assert_the_same(found[0], plainly(model, prompts, sampling))
    assert found[0] == found[1]


def test_a_batch_fits_the_memory_that_its_cache_may_take() -> None:
    """16 values of 4 bytes in keys and values of 2 layers are 256 bytes a token: 1 KiB holds four tokens."""
    prompts, sampling = [*windows(), *UNRELATED], Sampling(4, temperature=0.0, logprobs=True)
    model = tiny_model()
    small = Counting(model, tiny_tokenizer(), room=CacheRoom(model, 0, 256 * 300 / 2**30))
    with patch.object(small, "generate_batch", wraps=small.generate_batch) as generate_batch:
        found = small.generate(prompts, sampling)
    seen = [call.args[0] for call in generate_batch.call_args_list]
    assert small.room.tokens() == 300
    assert len(seen) > 4 and all(len(texts) * (max(map(len, texts)) + 4) <= 300 for texts in seen)
    assert_the_same(found, TransformersEngine(tiny_model(), tiny_tokenizer()).generate(prompts, sampling))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_batch_fits_where_rows_cannot_share_a_cache(is_sharded) -> None:
    """ZeRO-3 marks its parameters with `ds_id`; layers with linear attention keep nothing of a token."""
    prompts, sampling = [*windows(), *UNRELATED], Sampling(4, temperature=0.0, logprobs=True)
    model = tiny_model() if is_sharded else tiny_model("lfm2")
    if is_sharded:
        next(model.parameters()).ds_id = 0
    attentive = 2 if is_sharded else sum(kind == "full_attention" for kind in model.config.layer_types)
    token_bytes = estimate_cache_bytes(model)
    assert token_bytes == attentive * count_key_values(model.config) * 4
    small = Counting(model, tiny_tokenizer(), room=CacheRoom(model, 0, token_bytes * 300 / 2**30))
    with patch.object(small, "generate_batch", wraps=small.generate_batch) as generate_batch:
        found = small.generate(prompts, sampling)
    seen = [call.args[0] for call in generate_batch.call_args_list]
    assert not small.room.can_share and small.room.tokens() == 300
    assert len(seen) > 4 and all(len(texts) * (max(map(len, texts)) + 4) <= 300 for texts in seen)
    assert_the_same(found, plainly(model, prompts, sampling))


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_every_prompt_once_and_shares_what_is_common(seed) -> None:
    rng = random.Random(seed)
    heads = [[rng.randrange(3) for _ in range(rng.randrange(30))] for _ in range(4)]
    prompts = [[*rng.choice(heads), *(rng.randrange(3) for _ in range(rng.randrange(1, 9)))] for _ in range(60)]
    everywhere, batches = plan_batches(prompts, 16, 500, 3)
    assert sorted(i for batch in batches for i in batch.rows) == list(range(60))
    for batch in batches:
        widest = max(len(prompts[i]) for i in batch.rows) + 3
        held = len({tuple(prompts[i][:n]) for i, n in zip(batch.rows, batch.shared, strict=True) if n > everywhere})
        assert len(batch.rows) <= 16 and (len(batch.rows) == 1 or (len(batch.rows) + held) * widest <= 500)
        for i, shared in zip(batch.rows, batch.shared, strict=True):
            assert shared < len(prompts[i]) and (shared == everywhere or shared >= everywhere + SHORTEST)


def test_the_plan_prefers_the_longer_prefix() -> None:
    """Two windows behind a common beginning are two runs, however alike their beginnings."""
    prompts = [[1] * 20 + [2 + w] * 30 + [7 + q] for w in range(2) for q in range(5)]
    assert plan_batches(prompts, 64, 1e9, 1)[0] == 20
    (batch,) = plan_batches(prompts, 64, 1e9, 1)[1]
    assert batch.shared == [50] * 10
    assert plan_batches([[1, 2, 3], [1, 2, 3]], 64, 1e9, 1)[1][0].shared == [0, 0]  # too short to be read alone


@pytest.mark.parametrize("form", [*FORMS, "mistral window"])
def test_completions_that_ended_leave_the_batch_and_the_others_go_on(form) -> None:
    """The tokens of each prompt alone, and no forward pass for completions that have ended since the last round."""
    name, *window = form.split()
    model = tiny_model(name, **({"sliding_window": 7} if window else {}))
    prompts = [*windows(), *UNRELATED]
    longest = [c.ids for c in plainly(model, prompts, Sampling(2 * ROUND, temperature=0.0))]
    ends = {ids[min(place, len(ids) - 1)] for ids, place in zip(longest, (1, 5, 9), strict=False)}
    engine = Counting(model, tiny_tokenizer(), batch_size=len(prompts))
    engine.eos_ids = sorted(ends)
    sampling = Sampling(3 * ROUND, temperature=0.0, logprobs=True)
    found = engine.generate(prompts, sampling)
    alone = TransformersEngine(model, tiny_tokenizer())
    alone.eos_ids = engine.eos_ids
    assert_the_same(found, [alone.generate_batch([prompt], sampling)[0] for prompt in prompts])
    assert any(c.stop_reason == "eos" and len(c.ids) <= ROUND for c in found)


def test_no_forward_pass_is_made_for_completions_that_have_ended() -> None:
    engine = Counting(tiny_model(), tiny_tokenizer())
    prompts = [[1, 4 + i] for i in range(12)]
    first = engine.generate_batch(prompts, Sampling(1, temperature=0.0))
    engine.eos_ids = sorted({c.ids[0] for c in first} - {first[0].ids[0]})
    on = sum(c.ids[0] == first[0].ids[0] for c in first)
    assert on < len(prompts), "every completion begins alike"
    before = engine.read
    found = engine.generate_batch(prompts, Sampling(4 * ROUND, temperature=0.0))
    longer = sum(len(c.ids) > ROUND for c in found)
    assert longer < len(prompts)
    assert engine.read - before <= 2 * 12 + 12 * (ROUND - 1) + longer * 3 * ROUND


def texts_behind_prompts() -> tuple[list[list[int]], list[list[int]]]:
    """Three windows behind common examples, three texts behind each, and prompts that share nothing."""
    rng = random.Random(0)
    behind = [[*EXAMPLES, *(rng.randrange(4, 97) for _ in range(13 + i))] for i in range(3)]
    prompts = [*(behind[i % 3] for i in range(9)), [5], [7, 8, 9], UNRELATED[1], [5]]
    return prompts, [[rng.randrange(4, 97) for _ in range(i % 7)] for i in range(len(prompts))]


@pytest.mark.parametrize("most_tokens", [1e9, 150, 1])
@pytest.mark.parametrize("form", [*ATTENTIVE, "gemma2 window", "mistral window"])
def test_hidden_states_behind_a_prompt_are_those_of_the_whole_text(form, most_tokens) -> None:
    name, *window = form.split()
    model = tiny_model(name, **({"sliding_window": 7} if window else {})).eval()
    prompts, texts = texts_behind_prompts()
    found = hidden_behind(model, prompts, texts, 0, most_tokens)
    for prompt, text, states in zip(prompts, texts, found, strict=True):
        with torch.no_grad():
            whole = model.base_model(input_ids=torch.tensor([prompt + text])).last_hidden_state[0]
        expected = whole[len(prompt) - 1 : len(prompt) + len(text) - 1]
        torch.testing.assert_close(states, expected.float(), rtol=1e-3, atol=1e-4)


def test_each_prompt_is_read_once_for_all_texts_behind_it() -> None:
    """The examples, what follows them in each prompt, and for each text as many tokens as the longest has."""
    engine = Counting(tiny_model(), tiny_tokenizer())
    prompts, _ = texts_behind_prompts()
    hidden_behind(engine.model, prompts[:9], [[4] * 6] * 9, 0, 1e9)
    assert engine.read == len(EXAMPLES) + 3 * 14 + 9 * 6
