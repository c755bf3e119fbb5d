"""The estimate of a night's peak memory. benchmarks/plan_accuracy.py compares it with real nights."""

from dataclasses import replace

import pytest
import torch

from sleep_trl.config import RunConfig
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.models.head import REPLAY_BYTES
from sleep_trl.planning.peak_memory import VLLM_LIBRARIES, Asking, Texts, asking_bytes, estimate_peak, kept_bytes
from sleep_trl.planning.shape import MIB, Shape
from sleep_trl.rollout.prefixes import cache_bytes_per_token, estimate_cache_bytes
from tests.tiny import ATTENTIVE, tiny_model

SHAPE = Shape(
    architecture="",
    layers=2,
    hidden_size=32,
    intermediate_size=48,
    vocabulary=97,
    parameters=10**6,
    is_gated=True,
    bytes_per_weight=4,
    key_values=32,
)
TEXTS = [Texts(prompts=2, student=10, teacher=40, reference=8, rollouts=2, rollout=10)]
ROOM = 2**30
STEP = ("rollouts", "teacher's pass", "student's pass")


def config(**seeding: object) -> RunConfig:
    sizes = {"prompts_per_step": 2, "num_generations": 2, "max_completion_length": 10}
    return RunConfig.model_validate({"model": "m", "memories": "d", "seeding": {**sizes, **seeding}})


def estimate(run: RunConfig, **options: object):
    given = {"width": 8, "experts": 1, "max_experts": 5, "askings": [], "texts": TEXTS, "accumulation": 1}
    return estimate_peak(SHAPE, run, **{**given, "cache_room": ROOM, **options})


@pytest.mark.parametrize("form", ATTENTIVE)
def test_the_cache_of_a_token_is_what_the_engine_measures(form):
    model = tiny_model(form)
    memory = attach(model, MemorySpec(width=4, max_experts=1))
    shape = Shape.of(form, memory.hosts, model.config, 0, 4)
    assert shape.cache_bytes == cache_bytes_per_token(model, 1)
    assert shape.cache_bytes == estimate_cache_bytes(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "tokens"), [("llama", 16), ("llama", 100), ("qwen3", 60)])
def test_a_step_keeps_what_the_formula_says(form, tokens, dtype):
    model = tiny_model(form, hidden_size=128, intermediate_size=320, num_hidden_layers=8, head_dim=32).to(dtype)
    memory = attach(model, MemorySpec(width=16, max_experts=1))
    memory.activate()
    shape = Shape.of(form, memory.hosts, model.config, 0, dtype.itemsize)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.update({} if storage.data_ptr() in weights else {storage.data_ptr(): storage.nbytes()})
        return tensor

    ids = torch.randint(3, 97, (8, tokens))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    assert kept_bytes(shape, 16, 8, tokens) == pytest.approx(sum(kept.values()), rel=0.2)


def test_a_batch_takes_no_more_than_the_cache_may_have():
    prompts = [[row + 3, *range(40)] for row in range(8)]  # nothing in common
    token = SHAPE.cache_bytes
    reading = asking_bytes(SHAPE, Asking(prompts, 9), 8, ROOM) - 8 * 50 * token
    assert reading > 0
    half = asking_bytes(SHAPE, Asking(prompts, 9), 8, 8 * 50 * token)  # the engine reckons with a prefix for each
    assert half == pytest.approx(4 * 50 * token + reading / 2)
    alone = asking_bytes(SHAPE, Asking(prompts[:1], 9), 8, ROOM)
    assert (
        asking_bytes(SHAPE, Asking(prompts, 9), 8, 1) == alone < 50 * token + reading / 8
    )  # at least one row, unmasked
    assert asking_bytes(SHAPE, Asking([], 9), 8, ROOM) == 0


def test_a_shared_prefix_is_counted_once():
    shared = [[*range(40), row] for row in range(8)]
    apart = [[row, *range(40)] for row in range(8)]
    assert asking_bytes(SHAPE, Asking(shared, 9), 8, ROOM) < asking_bytes(SHAPE, Asking(apart, 9), 8, ROOM)
    one = [[*range(4000), row] for row in range(2)]  # reading the prefix takes more than what follows
    assert asking_bytes(SHAPE, Asking(one, 9), 8, ROOM) > 4000 * 2 * 48 * 3 * SHAPE.bytes_per_weight


def test_a_peak_is_what_is_held_and_the_largest_phase():
    peak = estimate(config())
    expert = SHAPE.expert_parameters(8)
    assert peak.held["weights"] == 4 * 10**6 and peak.held["experts"] == 5 * 4 * expert
    assert peak.phases["checking the folded model"] == 4 * (10**6 + expert)
    assert min(peak.phases[name] for name in STEP) > 3 * 4 * expert  # gradient and two moments
    assert peak.total == sum(peak.held.values()) + max(peak.phases.values())
    assert f"about {peak.total / MIB:,.0f} MiB per process" in str(peak)
    assert "not counted: dreaming" in str(estimate(config(), not_counted=("dreaming",)))
    assert estimate(config(), teacher_parameters=500).held["weights"] == 4 * (10**6 + 500)


def test_a_vllm_in_the_process_has_weights_a_cache_and_libraries():
    """1,582 MiB were measured for SmolLM2-135M in bfloat16 on a CPU, with a cache of 1 GiB."""
    with_it = estimate(config(), vllm_cache=2**30)
    assert with_it.held["vLLM"] == VLLM_LIBRARIES + 2**30 + 4 * 10**6
    assert "vLLM" not in estimate(config()).held


def test_what_saves_memory_lowers_the_estimate():
    training = estimate(config()).phases
    fewer = estimate(config(), texts=[replace(TEXTS[0], prompts=1)]).phases
    assert all(fewer[name] < training[name] for name in STEP)
    without = estimate(config(), texts=[replace(TEXTS[0], rollouts=0)]).phases
    assert all(without[name] < training[name] for name in ("rollouts", "student's pass"))
    long = [replace(TEXTS[0], prompts=8, reference=200)]
    saving = estimate(config(gradient_checkpointing=True), texts=long).phases["student's pass"]
    assert saving < estimate(config(), texts=long).phases["student's pass"]


def test_what_teachers_say_of_self_replay_is_counted_where_it_is_kept():
    general = Texts(prompts=1, student=30, teacher=30, reference=20, replayed=5)
    kept = 5 * 50 * 32 * 4  # texts, tokens, hidden, float32

    def training(run: RunConfig, **options: object) -> dict[str, int]:
        return {name: estimate(run, **options).phases[name] for name in STEP}

    without = training(config(), texts=[*TEXTS, replace(general, replayed=0)])
    assert training(config(), texts=[*TEXTS, general]) == {name: size + kept for name, size in without.items()}
    many = training(config(), texts=[*TEXTS, replace(general, replayed=10**6)])
    assert many == {name: size + REPLAY_BYTES for name, size in without.items()}
    assert training(config(expert_dropout=0.1), texts=[*TEXTS, general]) == without


def test_each_phase_has_what_it_is_asked():
    askings = [Asking([[1] * 50], 9), Asking([[1] * 80], 9), Asking([[1] * 20], 9, "writing")]
    phases = estimate(config(), askings=askings).phases
    assert phases["evaluation"] == asking_bytes(SHAPE, askings[1], 64, ROOM)
    assert phases["writing"] == asking_bytes(SHAPE, askings[2], 64, ROOM)


def test_shards_divide_weights():
    """Nothing is widened where weights are sharded, and the folded model is read back in shards."""
    whole, apart, held = estimate(config()), estimate(config(), shards=2), ("weights", "experts")
    assert [apart.held[name] for name in held] == [whole.held[name] // 2 for name in held]
    assert "wider MLPs" not in apart.held and apart.held["gathered layers"] == 4 * 10**6
    checking = "checking the folded model"
    assert apart.phases[checking] == whole.phases[checking] // 2
