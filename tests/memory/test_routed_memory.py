"""Routed experts as a memory: saved, loaded, refused where they do not fit, and used in other forms."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_trl.memory import Memory, MemorySpec, attach, fold, folded_config, load_experts, load_memory, save_memory
from tests.memory.routed import IDS, SPEC, fill, first_pool, grown, logits
from tests.tiny import tiny_model


def test_a_routed_memory_round_trips(tmp_path):
    memory = grown(3)
    save_memory(memory, tmp_path)
    other = tiny_model()
    loaded = load_memory(other, tmp_path, max_experts=7)
    assert torch.equal(logits(other), logits(memory.model))
    assert loaded.spec == MemorySpec(width=8, max_experts=7, routing="topk", top_k=2)
    assert [loaded.fingerprint(i) for i in range(3)] == [memory.fingerprint(i) for i in range(3)]


@pytest.mark.parametrize(
    ("saved", "attached"),
    [
        ({"routing": "topk", "top_k": 2}, {"routing": "dense"}),
        ({"routing": "dense"}, {"routing": "topk", "top_k": 2}),
        ({"routing": "topk", "top_k": 2}, {"routing": "topk", "top_k": 1}),
    ],
)
def test_experts_are_not_loaded_under_another_routing(tmp_path, saved, attached):
    save_memory(grown(1, spec=MemorySpec(width=8, max_experts=3, **saved)), tmp_path)
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=3, **attached))
    trained, has = (spec["routing"] for spec in (saved, attached))
    with pytest.raises(ValueError, match=rf"trained with routing='{trained}'.*has routing='{has}'"):
        load_experts(memory, tmp_path)


def test_routed_experts_do_not_fold(tmp_path):
    memory = grown(1)
    for refuse in (lambda: fold(memory, tmp_path / "model"), lambda: folded_config(memory)):
        with pytest.raises(ValueError, match=r"cannot be folded.*load_memory\(model, folder\)"):
            refuse()
    assert not (tmp_path / "model").exists()


def test_what_needs_a_router_is_refused_without_one():
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=2))
    with (
        pytest.raises(ValueError, match=r"with 'dense' every active expert takes part already"),
        memory.random_extra_expert(seed=0),
    ):
        pass
    for refuse in (memory.load, memory.counting().__enter__):
        with pytest.raises(ValueError, match="every token goes to every active expert"):
            refuse()


@pytest.mark.parametrize("top_k", [0, 4])
def test_top_k_is_from_one_to_all(top_k):
    with pytest.raises(ValueError, match=rf"top_k must be from 1 to max_experts \(3\), got {top_k}"):
        MemorySpec(max_experts=3, routing="topk", top_k=top_k)
    with pytest.raises(ValueError, match="'dense' or 'topk', got 'top'"):
        MemorySpec(routing="top")


def test_bfloat16_routes_in_float32():
    memory = attach(tiny_model().to(torch.bfloat16), SPEC)
    for _ in range(4):
        fill(memory, memory.activate())
    assert first_pool(memory).gates(torch.randn(3, 32, dtype=torch.bfloat16)).dtype is torch.float32
    assert logits(memory.model).dtype is torch.bfloat16


def test_generation_equals_one_pass_over_the_whole_text():
    memory = grown(4)
    output = memory.model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        again = memory.model(input_ids=output[:, :-1]).logits.argmax(-1)
    assert torch.equal(again[:, IDS.shape[1] - 1 :], output[:, IDS.shape[1] :])


def test_deep_copy_routes_by_its_own_view():
    memory = grown(4)
    twin = copy.deepcopy(memory.model)
    before = logits(memory.model)
    Memory.of(twin).activate()
    fill(Memory.of(twin), 4)
    assert torch.equal(logits(memory.model), before)
    assert (logits(twin) - before).abs().max() > 1e-3


def test_the_base_is_plain_again_in_its_view():
    plain = logits(tiny_model())
    memory = grown(3)
    with memory.as_base():
        assert torch.equal(logits(memory.model), plain)
    assert isinstance(memory.model, type(AutoModelForCausalLM.from_config(memory.model.config)))
