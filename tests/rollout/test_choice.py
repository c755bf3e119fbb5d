from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from transformers import LlamaConfig, StableLmConfig

from sleep_trl.config import RolloutConfig
from sleep_trl.launch import sleep
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.memory.hosts import find_hosts
from sleep_trl.rollout import TransformersEngine, choice
from sleep_trl.rollout.choice import choose, gpus_per_engine, make_engine
from sleep_trl.rollout.synced import SyncedEngine
from sleep_trl.rollout.weights import GrownWeights, RoutedWeights
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_runs import arguments, write_memories, write_model


@pytest.fixture
def installed(monkeypatch):
    """Say which packages are installed; all of them if nothing is said."""
    PartialState()  # made once in a process; it must not see the GPU that a test pretends to have
    missing = set()
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name in missing else object())
    monkeypatch.setattr(choice, "_engine_memory", lambda rollout: rollout.gpu_memory * 80 * 2**30)
    return missing


def chosen(form="llama", is_routed=False, scale=1, weight_bytes=0, **options):
    model = tiny_model(form)
    hosts = [replace(host, intermediate_size=scale * host.intermediate_size) for host in find_hosts(model)]
    return choose(RolloutConfig(**options), model.config, hosts, is_routed, weight_bytes)


def let_there_be(several, monkeypatch):
    """Pretend that there are several processes, or that one has the shards of ZeRO-3."""
    if several == "processes":
        monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    else:
        monkeypatch.setattr(choice, "is_sharding", lambda: True)


@pytest.mark.parametrize(
    ("case", "has_gpu", "engine", "reason"),
    [
        ({}, False, "transformers", "so small a model"),
        ({"scale": 10_000}, False, "vllm", "generates faster"),
        ({}, True, "vllm", "it is installed"),
        ({"form": "gpt2"}, True, "transformers", "gpt2 models differently"),
        ({"is_routed": True}, True, "transformers", "tokens of each expert are counted"),
        ({"weight_bytes": 40 * 2**30}, True, "transformers", "model's 40.0 GiB do not fit the 24.0 GiB of a GPU"),
        ({"weight_bytes": 40 * 2**30, "gpu_memory": 0.6}, True, "vllm", "it is installed"),
    ],
)
def test_auto_says_why(installed, monkeypatch, case, has_gpu, engine, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    found = chosen(**case)
    assert found.engine == engine and reason in found.reason


@pytest.mark.parametrize(
    ("missing", "has_gpu", "scale", "engine", "reason"),
    [
        (None, True, 1, "ray", "all processes share its engines"),
        ("ray", True, 1, "transformers", "Ray, through which several processes share engines, is not installed"),
        (None, False, 10_000, "transformers", "without a GPU, each of several processes writes its share"),
    ],
)
@pytest.mark.parametrize("several", ["processes", "shards"])
def test_auto_shares_a_pool_among_several_processes(
    installed, monkeypatch, several, missing, has_gpu, scale, engine, reason
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    let_there_be(several, monkeypatch)
    installed.add(missing)
    found = chosen(scale=scale)
    assert found.engine == engine and reason in found.reason


@pytest.mark.parametrize("several", ["processes", "shards"])
def test_vllm_in_one_of_several_processes_is_refused(installed, monkeypatch, several):
    let_there_be(several, monkeypatch)
    with pytest.raises(ValueError, match=r"one process with whole weights.* Give --rollout.engine ray"):
        chosen(engine="vllm")
    assert chosen(engine="ray").engine == "ray"


def test_sharded_weights_cannot_be_sent(monkeypatch):
    monkeypatch.setattr(choice, "is_sharded", lambda model: True)
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=3))
    with pytest.raises(ValueError, match=r"sharded, so engines have to load its base from a checkpoint"):
        make_engine(RolloutConfig(engine="ray"), memory, tiny_tokenizer(), 4)


def test_auto_knows_what_is_installed(installed):
    installed.add("vllm")
    assert chosen().reason == "vLLM is not installed"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"engine": "vllm", "form": "gpt2", "is_routed": True}, "gpt2 models differently"),
        ({"engine": "vllm", "form": "gpt_neox"}, "gpt_neox models differently"),
        ({"engine": "ray", "inner_engine": "vllm", "form": "qwen3"}, "those of this qwen3 model have size 8"),
    ],
)
def test_what_cannot_be_is_refused(installed, case, message):
    with pytest.raises(ValueError, match=message) as raised:
        chosen(**case)
    assert "Use rollout.engine transformers" in str(raised.value)


@pytest.mark.parametrize(("engine", "package"), [("vllm", "vllm"), ("ray", "ray")])
def test_what_is_not_installed_is_refused(installed, engine, package):
    installed.add(package)
    with pytest.raises(ValueError, match="is not installed"):
        chosen(engine=engine)


def test_a_pool_on_a_cpu_is_of_transformers(installed):
    found = chosen(engine="ray")
    assert (found.engine, found.replica) == ("ray", "transformers")


@pytest.mark.parametrize(
    ("options", "count", "share"),
    [
        ({}, 0, 0),
        ({}, 1, 0.3),  # both on the one
        ({}, 2, 0.51),  # one each
        ({}, 8, 0.51),
        ({"num_engines": 4}, 2, 0.3),
        ({"num_engines": 1}, 2, 0.3),
        ({"gpu_memory": 0.8}, 2, 0.8),
        ({"gpus_per_engine": 0.25}, 2, 0.25),
    ],
)
def test_engines_have_a_gpu_each_where_there_are_enough(monkeypatch, options, count, share):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus_per_engine(RolloutConfig(engine="ray", **options)) == share


@pytest.mark.parametrize("engine", ["vllm", "ray"])
def test_routed_experts_may_be_in_an_engine_of_their_own(installed, engine):
    assert chosen(engine=engine, is_routed=True).engine == engine


def test_vllm_takes_routed_experts_only_where_its_backend_runs_the_model(installed):
    hosts = find_hosts(tiny_model())
    with pytest.raises(ValueError, match=r"transformers backend cannot run stablelm models with routed experts"):
        choose(RolloutConfig(engine="vllm"), StableLmConfig(), hosts, True, 0)


def test_no_routed_experts_beside_a_model_that_transformers_does_not_know(installed):
    class RemoteConfig(LlamaConfig):
        model_type = "remote"

    hosts = find_hosts(tiny_model())
    with pytest.raises(ValueError, match=r"no model of its own for a RemoteConfig.* Use rollout.engine transformers"):
        choose(RolloutConfig(engine="ray"), RemoteConfig(), hosts, True, 0)


@pytest.mark.parametrize(("routing", "kind"), [("dense", GrownWeights), ("topk", RoutedWeights)])
def test_an_engine_has_room_for_the_next_expert(routing, kind):
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=3, routing=routing))
    memory.activate()
    memory.commit()
    engine, line = make_engine(RolloutConfig(engine="ray"), memory, tiny_tokenizer(), 4)
    assert isinstance(engine, SyncedEngine) and engine.weights.slots == (0, 1)
    assert type(engine.weights) is kind
    assert line == "Generating with 2 x transformers under Ray: asked for"
    engine, line = make_engine(RolloutConfig(), memory, tiny_tokenizer(), 4)
    assert isinstance(engine, TransformersEngine) and "transformers: " in line


def test_preflight_refuses_an_engine_before_anything_loads(tmp_path, capsys):
    model, memories = write_model(tmp_path / "model", "gpt2"), write_memories(tmp_path / "memories.jsonl")
    given = arguments(model=model, memories=memories, output_dir=tmp_path / "run", rollout__engine="vllm")
    assert sleep.main(given) == 2
    assert "rollout" in capsys.readouterr().err and not (tmp_path / "run").exists()
