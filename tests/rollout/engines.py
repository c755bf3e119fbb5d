"""What the tests of engines with weights of their own begin with."""

from __future__ import annotations

import os
import threading
import time

import torch

from sleep_trl.memory import Memory, MemorySpec, attach
from sleep_trl.rollout import Sampling, TransformersEngine
from sleep_trl.rollout.replica import ReplicaKind, ReplicaSpec
from sleep_trl.rollout.stopping import end_tokens
from sleep_trl.rollout.vllm import CPU_HEAD_SIZES
from sleep_trl.rollout.weights import EngineWeights, GrownWeights, RoutedWeights
from tests.tiny import tiny_model, tiny_tokenizer

GREEDY = Sampling(24, temperature=0.0, logprobs=True)
LONG = Sampling(120, temperature=0.0)
# Lengths from 2 to 350 tokens: more than two blocks of vLLM's prefix cache, and several with the same beginning.
PROMPTS = [[1, *(4 + (7 * j) % 90 for j in range(1 + i * i))] for i in range(19)] + [[1, 5, 9 + i] for i in range(21)]


def grown_model(**overrides: object) -> Memory:
    """A model with one settled expert that changes the output, and room for more."""
    memory = attach(tiny_model(max_position_embeddings=512, **overrides), MemorySpec(width=8, max_experts=3))
    teach(memory, memory.activate(), seed=1)
    memory.commit()
    return memory


def routed_model(**overrides: object) -> Memory:
    """A model with three settled experts, of which each token takes two, and room for more."""
    size = MemorySpec(width=8, max_experts=5, routing="topk", top_k=2)
    memory = attach(tiny_model(max_position_embeddings=512, **overrides), size)
    for seed in (1, 2, 3):
        teach(memory, memory.activate(), seed)
    memory.commit()
    return memory


@torch.no_grad()
def teach(memory: Memory, expert: int, seed: int) -> None:
    """Give an expert other weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in memory.expert_parameters(expert):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)


def weights_of(memory: Memory, kind: ReplicaKind = "transformers") -> EngineWeights:
    """What an engine with room for one more expert than there is at first has to hold."""
    head_sizes = CPU_HEAD_SIZES if kind == "vllm" else ()
    if memory.spec.is_routed:
        return RoutedWeights(memory, range(4), head_sizes)
    return GrownWeights(memory, (0, 1), head_sizes)


def spec_of(memory: Memory, kind: ReplicaKind = "transformers") -> ReplicaSpec:
    tokenizer = tiny_tokenizer()
    return ReplicaSpec(kind, weights_of(memory, kind).config(), tokenizer, tuple(end_tokens(memory.model, tokenizer)))


def on_the_model_itself(memory: Memory) -> TransformersEngine:
    return TransformersEngine(memory.model, tiny_tokenizer())


def assert_equal(engine, memory: Memory, tolerance: float = 1e-5) -> None:
    """An engine's greedy tokens and their log probabilities are those of transformers on the trainer's model."""
    found, expected = engine.generate(PROMPTS, GREEDY), on_the_model_itself(memory).generate(PROMPTS, GREEDY)
    assert [c.ids for c in found] == [c.ids for c in expected]
    assert [(c.text, c.stop_reason) for c in found] == [(c.text, c.stop_reason) for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), rtol=0, atol=tolerance)


def assert_draws_from_nucleus(engine, model) -> None:
    """With top-p, first tokens and their log probabilities are those of the nucleus, worked out from the model's own
    logits; those of greedy decoding are not affected."""
    with torch.no_grad():
        probabilities = (model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.8).softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    size = int((ordered.cumsum(0) < 0.6).sum()) + 1  # the smallest set that adds up to 0.6
    expected = torch.zeros_like(probabilities).scatter(0, tokens[:size], ordered[:size] / ordered[:size].sum())
    assert 3 < size < 60
    drawn = engine.generate([PROMPTS[0]] * 4000, Sampling(1, temperature=0.8, top_p=0.6, seed=2, logprobs=True))
    counted = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=97) / 4000
    assert set(counted.nonzero()[:, 0].tolist()) <= set(tokens[:size].tolist())
    assert (counted - expected).abs().max() < 0.03
    assert all(abs(c.logprobs[0] - expected.log()[c.ids[0]]) < 1e-5 for c in drawn)
    greedy = [Sampling(4, temperature=0.0, top_p=top_p) for top_p in (0.6, 1.0)]
    assert engine.generate(PROMPTS, greedy[0]) == engine.generate(PROMPTS, greedy[1])


def assert_equal_through_updates(engine, memory: Memory) -> None:
    """The same for routed experts: before and after an update, in all views, and when the new expert has settled."""
    assert_equal(engine, memory)
    learning = memory.activate()
    assert_equal(engine, memory)
    teach(memory, learning, seed=4)
    assert_equal(engine, memory)
    for view in (memory.as_teacher, memory.as_base):
        with view():
            assert_equal(engine, memory)
    memory.commit()  # now the new expert competes with the others
    assert_equal(engine, memory)


def assert_equal_through_a_consolidation(engine, memory: Memory) -> None:
    """An expert takes the place of the settled ones, is committed, and a slot of theirs is used again."""
    assert_equal(engine, memory)
    pruned = memory.active
    teach(memory, memory.activate(level=2, replacing=pruned), seed=5)
    for view in (memory.as_student, memory.as_teacher):
        with view():
            assert_equal(engine, memory)
    memory.commit()
    assert_equal(engine, memory)
    again = memory.activate()
    assert again in pruned
    teach(memory, again, seed=6)
    assert_equal(engine, memory)
    engine.check()


def send_while_generating(pool, process: int, what: int) -> None:
    """Send a signal to an engine in the middle of its work."""

    def wait_and_send() -> None:
        while not any(job.phase == "generating" for job in list(pool._jobs.values())):
            time.sleep(0.001)
        time.sleep(0.02)
        os.kill(process, what)

    threading.Thread(target=wait_and_send, daemon=True).start()
