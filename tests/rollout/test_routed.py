import pickle
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sleep_trl.launch import sleep
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.rollout.replica import ReplicaSpec, TransformersReplica
from sleep_trl.rollout.routed import LEARNING, Router, routed_config
from sleep_trl.rollout.synced import InThisProcess, SyncedEngine
from sleep_trl.rollout.weights import Region, RoutedWeights, WeightMismatch
from tests.night.test_run import arguments as night
from tests.night.test_run import results_of
from tests.rollout.engines import (
    GREEDY,
    PROMPTS,
    assert_draws_from_nucleus,
    assert_equal,
    assert_equal_through_updates,
    routed_model,
    spec_of,
    teach,
    weights_of,
)
from tests.tiny import FORMS, tiny_model, tiny_tokenizer
from tests.tiny_runs import write_model

SHORT = torch.tensor([[1, 5, 7, 9, 11, 4], [1, 6, 6, 6, 8, 9]])


@pytest.fixture
def memory():
    return routed_model()


@pytest.fixture
def engine(memory):
    weights = weights_of(memory)
    return SyncedEngine(weights, lambda: InThisProcess(spec_of(memory).make(), "the replica", 64))


def test_greedy_is_transformers_own_before_and_after_updates(engine, memory):
    assert_equal_through_updates(engine, memory)
    engine.close()


def test_a_weight_that_changed_since_it_was_sent_is_caught(engine, memory):
    """The expert's own weights have not changed, so nothing is sent again."""
    engine.sync()
    region = Region("model.layers.1.mlp.memory.down", 1, 8, 8)
    right = weights_of(memory).experts()[region]
    engine.backend.update({region: right + 1e-3}, {})
    with pytest.raises(WeightMismatch, match=r"memory\.down"):
        engine.check()
    engine.backend.update({region: right}, {})
    engine.check()


def test_top_p_samples_from_the_nucleus(engine, memory):
    assert_draws_from_nucleus(engine, memory.model)


def test_an_update_changes_what_is_said(engine, memory):
    """The comparison above could not fail if no expert made a difference."""
    said = [engine.generate(PROMPTS, GREEDY)]
    teach(memory, memory.activate(), seed=4)
    said.append(engine.generate(PROMPTS, GREEDY))
    memory.commit()
    said.append(engine.generate(PROMPTS, GREEDY))
    with memory.as_base():
        said.append(engine.generate(PROMPTS, GREEDY))
    assert all(one != other for i, one in enumerate(said) for other in said[:i])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_mlp_takes_routed_experts(form):
    memory = attach(tiny_model(form), MemorySpec(width=8, max_experts=4, routing="topk", top_k=1))
    for seed in range(3):
        teach(memory, memory.activate(), seed)
    weights = RoutedWeights(memory, range(4))
    replica = TransformersReplica(ReplicaSpec("transformers", weights.config(), tiny_tokenizer(), (2,)))
    engine = SyncedEngine(weights, lambda: InThisProcess(replica, "the replica", 64))
    for view in (memory.as_student, memory.as_teacher):
        with view(), torch.no_grad():
            engine.sync()
            difference = replica.engine.model(input_ids=SHORT).logits - memory.model(input_ids=SHORT).logits
        assert difference.abs().max() < 1e-5


def test_only_what_changed_travels(engine, memory):
    engine.sync()
    roles = 4 * 4 * 2  # bytes: a role for each of four slots in two layers
    learning = memory.activate()
    assert engine.sync() == roles
    teach(memory, learning, seed=4)
    assert engine.sync() == sum(p.numel() * 4 for _, p in memory.expert_parameters(learning))
    with memory.as_teacher():
        assert engine.sync() == roles
    assert engine.sync() == roles and engine.sync() == 0


@pytest.mark.parametrize("name", ["gate", "down", "router.weight", "router.bias", "router.roles"])
def test_a_wrong_weight_shows_both_fingerprints(engine, memory, name):
    engine.generate(PROMPTS[:2], GREEDY)
    name = f"model.layers.1.mlp.memory.{name}"
    tensor = engine.backend.replica.tensors[name]
    with torch.no_grad():
        tensor.view(-1)[1] += 1e-6 if tensor.dim() == 2 else 1.0  # in the first expert's slot, or the second's
    teach(memory, 2, seed=9)
    with pytest.raises(WeightMismatch, match=r"fingerprint is [0-9a-f]{64}, the trainer's [0-9a-f]{64}") as raised:
        engine.generate(PROMPTS[:2], GREEDY)
    assert name in str(raised.value)


def test_a_router_chooses_as_the_memory_does():
    """Of equal gates the older expert's wins, the learning one comes in addition, an absent one never speaks."""
    router = Router(hidden_size=4, slots=5, top_k=2)
    router.bias[:] = torch.tensor([0.5, 1.0, 1.0, 1.0, 9.0])
    router.roles[:] = 1
    router.roles[4] = 0
    chosen = [0, 1, 1, 0, 0]
    assert (router(torch.zeros(1, 4)) > 0).tolist() == [[bool(c) for c in chosen]]
    router.roles[0] = LEARNING
    assert (router(torch.zeros(1, 4)) > 0).tolist() == [[True, True, True, False, False]]
    router.roles[1:] = 0
    assert (router(torch.zeros(1, 4)) > 0).tolist() == [[True, False, False, False, False]]


def test_a_config_survives_the_way_to_an_engine(tmp_path):
    config = routed_config(tiny_model().config, width=8, slots=3, top_k=2)
    assert config.model_type == "sleep_routed_llama"
    sent = pickle.loads(pickle.dumps(config))
    config.save_pretrained(tmp_path)
    for found in (sent, AutoConfig.from_pretrained(tmp_path)):
        assert type(found) is type(config)
        assert (found.expert_width, found.expert_slots, found.experts_per_token) == (8, 3, 2)
        model = AutoModelForCausalLM.from_config(found)
        assert type(model).__name__ == "SleepRoutedLlamaForCausalLM"
    assert not hasattr(tiny_model().model.layers[0].mlp, "memory")  # the base's own classes are as they were


def test_routers_stay_in_float32():
    model = tiny_model().to(torch.bfloat16)
    memory = attach(model, MemorySpec(width=8, max_experts=4, routing="topk", top_k=1))
    for seed in range(3):
        teach(memory, memory.activate(), seed)
    memory.commit()
    replica = TransformersReplica(spec_of(memory))
    SyncedEngine(weights_of(memory), lambda: InThisProcess(replica, "the replica", 64)).sync()
    dtypes = {name.split("memory.")[1]: t.dtype for name, t in replica.tensors.items() if "memory" in name}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "router.weight",
        "router.bias",
        "router.roles",
    }
    with torch.no_grad():
        difference = replica.engine.model(input_ids=SHORT).logits - memory.model(input_ids=SHORT).logits
    assert difference.abs().max() < 5e-2


def test_a_random_further_expert_is_the_models_own(engine, memory):
    with (
        memory.random_extra_expert(seed=1),
        pytest.raises(ValueError, match="further expert is drawn by the routers of the"),
    ):
        engine.generate(PROMPTS[:1], GREEDY)
    assert_equal(engine, memory)


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make setup installs it")
def test_a_routed_night_by_a_pool(tmp_path, capsys):
    import ray

    folder = tmp_path / "run"
    options = {"memory.routing": "topk", "rollout.engine": "ray", "rollout.num_engines": 1}
    try:
        assert sleep.main(night(write_model(tmp_path / "model"), folder, **options)) == 0
    finally:
        ray.shutdown()
    shown = capsys.readouterr().out
    assert "Generating with 1 x transformers under Ray: asked for" in shown
    assert "The load of the experts is not counted" in shown
    results = results_of(folder)
    logs = [log for log in results["history"] if "reward" in log]
    assert len(logs) == 1 and all(log["sampling/sampling_logp_difference/max"] < 1e-4 for log in logs)
    assert "load" not in results and (folder / "report.html").is_file()
