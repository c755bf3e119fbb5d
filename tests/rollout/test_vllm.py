import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sleep_trl.rollout import Sampling
from sleep_trl.rollout.ray_pool import RayPool
from sleep_trl.rollout.synced import SyncedEngine
from sleep_trl.rollout.weights import Region, WeightMismatch
from tests.rollout.engines import (
    LONG,
    PROMPTS,
    assert_draws_from_nucleus,
    assert_equal,
    assert_equal_through_updates,
    grown_model,
    on_the_model_itself,
    routed_model,
    send_while_generating,
    spec_of,
    teach,
    weights_of,
)

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm installs its CPU build"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it"),
]


@pytest.fixture(scope="module")
def engine_of():
    """Makes a vLLM in a Ray actor, since vLLM makes itself at home in its process."""
    started = []

    def start(memory):
        weights, spec = weights_of(memory, "vllm"), spec_of(memory, "vllm")
        started.append(SyncedEngine(weights, lambda: RayPool(spec, 1)))
        started[-1].sync()
        return started[-1]

    yield start
    for engine in started:
        engine.close()
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of(grown_model())


@pytest.fixture
def memory(engine):
    return engine.weights.memory


@pytest.fixture(scope="module")
def routed(engine_of):
    """Routed experts, which vLLM runs on its transformers backend."""
    return engine_of(routed_model())


def plant(engine, region, value):
    """Write a value into the one engine of a pool, past what the trainer knows of."""
    (member,) = engine.backend.members
    engine.backend._ray.get(member.actor.update.remote({region: value}, []))


def test_greedy_is_transformers_before_and_after_an_update(engine, memory):
    """Prompts longer than a block would show a prefix cache that was kept."""
    assert_equal(engine, memory)
    teach(memory, memory.activate(), seed=2)
    assert_equal(engine, memory)
    with memory.as_teacher():
        assert_equal(engine, memory)


def test_a_planted_weight_is_caught(engine, memory):
    region = Region("model.layers.0.mlp.gate_proj.weight", 0, 48, 8)  # rows of vLLM's fused gate_up_proj
    right = weights_of(memory).experts()[region]
    plant(engine, region, right.flip(0))
    with pytest.raises(WeightMismatch, match=r"fingerprint is [0-9a-f]{64}, the trainer's [0-9a-f]{64}.*gate_proj"):
        engine.check()
    plant(engine, region, right)
    engine.check()


def test_routed_greedy_is_transformers_before_and_after_updates(routed):
    assert_equal_through_updates(routed, routed.weights.memory)


@pytest.mark.parametrize(
    "region",
    [
        Region("model.layers.1.mlp.memory.down", 1, 8, 8),
        Region("model.layers.0.mlp.memory.router.weight", 0, 1, 1),
        Region("model.layers.0.mlp.memory.router.roles", 0, 0, 4),
    ],
    ids=lambda region: region.name,
)
def test_a_planted_routed_weight_is_caught(routed, region):
    right = weights_of(routed.weights.memory).experts()[region]
    plant(routed, region, right + 1e-3)
    with pytest.raises(WeightMismatch, match=r"fingerprint is [0-9a-f]{64}, the trainer's [0-9a-f]{64}") as raised:
        routed.check()
    assert region.name in str(raised.value)
    plant(routed, region, right)
    routed.check()


def test_seeds_are_ours_and_a_prompts_own(engine):
    sampling = Sampling(12, seed=5)
    drawn = engine.generate(PROMPTS, sampling)
    assert drawn == engine.generate(PROMPTS, sampling)
    assert drawn != engine.generate(PROMPTS, Sampling(12, seed=6))
    same = engine.generate([PROMPTS[2]] * 20, sampling)
    assert len({tuple(c.ids) for c in same}) > 10


def test_prompts_that_do_not_fit_one_pass_are_drawn_with_their_seeds(engine):
    """18,000 tokens of prompts, which vLLM would read in parts."""
    prompts = [[1, *(4 + (3 * j + k) % 90 for j in range(300))] for k in range(60)]
    sampling = Sampling(3, seed=7)
    assert engine.generate(prompts, sampling) == engine.generate(prompts, sampling)


def test_a_temperature_near_zero_is_greedy(engine):
    """vLLM itself would sample at 0.01, at which these near ties are drawn."""
    near, zero = (engine.generate(PROMPTS, Sampling(20, temperature=t, seed=3)) for t in (1e-6, 0.0))
    assert near == zero


def test_sampling_is_from_the_untruncated_distribution(engine, memory):
    """Frequencies of the first token over 4000 draws follow the model's own probabilities."""
    drawn = engine.generate([PROMPTS[0]] * 4000, Sampling(1, seed=2, logprobs=True))
    with torch.no_grad():
        p = memory.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    counted = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=97) / 4000
    assert (counted - p.exp()).abs().max() < 0.03
    assert (counted > 0).sum() > 50
    assert all(abs(c.logprobs[0] - p[c.ids[0]]) < 1e-5 for c in drawn)


def test_top_p_samples_from_the_nucleus(engine, routed, memory):
    assert_draws_from_nucleus(engine, memory.model)
    assert_draws_from_nucleus(routed, routed.weights.memory.model)


def test_stop_strings_and_reasons(engine, memory):
    free = on_the_model_itself(memory).generate(PROMPTS, Sampling(20, temperature=0.0))
    sampling = Sampling(20, temperature=0.0, stop=(free[1].text.split()[4],))
    found = engine.generate(PROMPTS, sampling)
    assert found == on_the_model_itself(memory).generate(PROMPTS, sampling)
    assert {c.stop_reason for c in found} >= {"stop", "length"}


def test_a_completion_that_has_no_room_is_refused(engine):
    with pytest.raises(RuntimeError, match="room for sequences of 512 tokens, but a prompt of 500 tokens and 13 new"):
        engine.generate([[1, *[5] * 499]], Sampling(13, temperature=0.0))
    (whole,) = engine.generate([[1, *[5] * 499]], Sampling(12, temperature=0.0))
    assert len(whole.ids) == 12 or whole.stop_reason == "stop"


def test_a_killed_vllm_loses_no_prompt(engine, memory, caplog):
    (before,) = engine.backend.process_ids()
    send_while_generating(engine.backend, before, signal.SIGKILL)
    assert engine.generate(PROMPTS * 3, LONG) == on_the_model_itself(memory).generate(PROMPTS * 3, LONG)
    assert "while generating; replacing it" in caplog.text
    assert_equal(engine, memory)
    assert engine.backend.process_ids() != [before]


def test_a_hung_vllm_is_replaced_at_its_deadline(engine, memory, caplog):
    (hung,) = engine.backend.process_ids()
    engine.backend.timeout_s = 5.0
    os.kill(hung, signal.SIGSTOP)
    assert engine.generate(PROMPTS, LONG) == on_the_model_itself(memory).generate(PROMPTS, LONG)
    engine.backend.timeout_s = 600.0
    assert "did not answer within 5 s while generating" in caplog.text
    assert engine.backend.process_ids() != [hung]


@pytest.mark.parametrize("routing", ["dense", "topk"])
def test_rollouts_in_a_trainers_process(routing):
    """Steps with a vLLM in the process, in a process of their own: the ratio to the trainer is one."""
    script = Path(__file__).with_name("in_process_rollouts.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), "vllm", routing], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
