import pytest
import torch

from sleep_trl.config import RolloutConfig
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.rollout.choice import make_engine
from sleep_trl.rollout.heads import WiderHeads
from sleep_trl.rollout.replica import ReplicaSpec
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.rollout.vllm import CPU_HEAD_SIZES
from sleep_trl.rollout.weights import Region, WeightMismatch, digest, verify, write_regions
from tests.rollout.engines import (
    GREEDY,
    PROMPTS,
    assert_equal,
    assert_equal_through_a_consolidation,
    grown_model,
    routed_model,
    teach,
    weights_of,
)
from tests.tiny import FORMS, tiny_model, tiny_tokenizer

SHORT = [[1, 5, 7, 9], [1, 6]]


def synced(memory, weights=None):
    weights = weights or weights_of(memory)
    replica = ReplicaSpec("transformers", weights.config(), tiny_tokenizer(), (2,)).make()
    return SyncedEngine(weights, lambda: InThisProcess(replica, "the replica", 64)), replica


@pytest.mark.parametrize("form", FORMS)
def test_an_ordinary_model_with_these_weights_is_the_grown_one(form):
    memory = attach(tiny_model(form), MemorySpec(width=8, max_experts=3))
    for seed in (1, 2):
        teach(memory, memory.activate(), seed)
    engine, replica = synced(memory)
    engine.sync()
    ids = torch.tensor([SHORT[0]])
    for view in (memory.as_student, memory.as_teacher):
        with view(), torch.no_grad():
            engine.sync()
            difference = replica.engine.model(input_ids=ids).logits - memory.model(input_ids=ids).logits
        assert difference.abs().max() < 1e-5


def test_only_what_changed_travels():
    memory = grown_model()
    engine, _ = synced(memory)
    assert engine.sync() > 0  # everything, and the first expert with it
    assert engine.sync() == 0
    learning = memory.activate()
    assert engine.sync() == 0  # and so did the slot of the next, whose output is zero
    teach(memory, learning, seed=2)
    assert engine.sync() == sum(p.numel() * 4 for _, p in memory.expert_parameters(learning))
    assert_equal(engine, memory)
    with memory.as_teacher():
        down = sum(p.numel() * 4 for name, p in memory.expert_parameters(learning) if name.endswith("down"))
        assert engine.sync() == down
        assert_equal(engine, memory)
    engine.check()


@pytest.mark.parametrize("routing", ["dense", "topk"])
def test_pruned_experts_fall_silent_and_their_slots_are_used_again(routing):
    memory = grown_model() if routing == "dense" else routed_model()
    if routing == "dense":
        teach(memory, memory.activate(), seed=2)
        memory.commit()
    engine = make_engine(RolloutConfig(engine="ray"), memory, tiny_tokenizer(), 4, new_experts=2)[0]
    replica = ReplicaSpec("transformers", engine.weights.config(), tiny_tokenizer(), (2,)).make()
    synced = SyncedEngine(engine.weights, lambda: InThisProcess(replica, "the replica", 64))
    assert_equal_through_a_consolidation(synced, memory)


def test_a_wrong_weight_shows_both_fingerprints():
    memory = grown_model()
    engine, replica = synced(memory)
    engine.generate(PROMPTS[:2], GREEDY)
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        replica.tensors[name][50, 3] += 1e-6  # in the first expert's slot
    teach(memory, memory.activate(), seed=2)
    with pytest.raises(WeightMismatch, match=r"fingerprint is [0-9a-f]{64}, the trainer's [0-9a-f]{64}") as raised:
        engine.generate(PROMPTS[:2], GREEDY)
    assert name in str(raised.value) and "1 of 12 parts" in str(raised.value)


def test_a_wrong_weight_of_the_base_is_found_at_the_end():
    engine, replica = synced(grown_model())
    engine.generate(PROMPTS[:2], GREEDY)
    with torch.no_grad():
        replica.tensors["model.norm.weight"][0] *= -1
    with pytest.raises(WeightMismatch, match=r"'model\.norm\.weight'"):
        engine.close()


def test_an_engine_that_could_not_be_filled_never_writes():
    """Later calls would send the experts alone, beside a base of random weights."""
    weights = weights_of(grown_model())
    config = weights.config()
    config.num_attention_heads = 5  # of 32 hidden units
    replica = ReplicaSpec("transformers", config, tiny_tokenizer(), (2,)).make()
    engine = SyncedEngine(weights, lambda: InThisProcess(replica, "the replica", 64))
    for _ in range(2):
        with pytest.raises(ValueError, match="no place for"):
            engine.generate(PROMPTS[:2], GREEDY)


def test_digests_see_order_and_sign():
    values = torch.tensor([0.0, 1.0, 2.0])
    assert len({digest(v) for v in (values, values.flip(0), -values, values.double())}) == 4
    assert digest(torch.arange(6.0).view(2, 3).T) == digest(torch.arange(6.0).view(2, 3).T.contiguous())
    region = Region("a", 0, 0, 3)
    verify("it", {region: "x"}, ["x"])
    with pytest.raises(WeightMismatch, match="it does not hold"):
        verify("it", {region: "x"}, ["y"])


@pytest.mark.parametrize(("name", "shape"), [("b", (2, 3)), ("a", (2, 4)), ("a", (9, 3)), ("a", (2,))])
def test_weights_without_a_place_are_refused(name, shape):
    value = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"no place for .*'{name}'.*engine transformers"):
        write_regions({"a": torch.zeros(4, 3)}, {Region(name, 0, 1, shape[0]): value})


def test_small_heads_are_filled_up_with_zeros():
    config = tiny_model().config  # heads of 8
    heads = WiderHeads.of(config, CPU_HEAD_SIZES)
    assert heads == WiderHeads(8, 32) and WiderHeads.of(config, (8, 16)) is None
    query = torch.randn(32, 32)
    filled = heads.fill("model.layers.0.self_attn.q_proj.weight", query).view(4, 2, 16, 32)  # each half of each head
    assert torch.equal(filled[:, :, :4], query.view(4, 2, 4, 32) * 2) and not filled[:, :, 4:].any()  # 2 = sqrt(32 / 8)
    heads.change(config)
    assert config.head_dim == 32 and config.rope_parameters["rope_theta"] == 10_000.0**4
    with pytest.raises(ValueError, match="qwen3 model have size 8"):
        WiderHeads.of(tiny_model("qwen3").config, CPU_HEAD_SIZES)
