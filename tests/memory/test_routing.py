"""The routed form of the memory, held to numbers worked out by hand and to a plain implementation with a mask."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from sleep_trl.memory import (
    Memory,
    MemorySpec,
    attach,
    choose_experts,
    fold,
    folded_config,
    load_experts,
    load_memory,
    save_memory,
)
from tests.tiny import FORMS, tiny_model

SPEC = MemorySpec(width=8, max_experts=5, routing="topk", top_k=2)
IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(1))
TOKENS = IDS.numel()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def fill(memory: Memory, index: int) -> None:
    """Give an expert and its gate weights that matter, as a night would."""
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for _, parameter in memory.expert_parameters(index):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def grown(experts: int, form: str = "llama", spec: MemorySpec = SPEC) -> Memory:
    """Return a memory with this many committed experts."""
    memory = attach(tiny_model(form), spec)
    for _ in range(experts):
        fill(memory, memory.activate())
    memory.learn(None)
    return memory


def first_pool(memory: Memory) -> Any:
    """Return the `RoutedPool` of the first layer."""
    return memory.hosts[0].module.memory


def by_mask(pool: Any, x: torch.Tensor, experts: list[int], learning: int | None = None) -> torch.Tensor:
    """Every expert on every token, times a mask: what routing has to equal."""
    gate = [torch.sigmoid(x @ pool.experts[i].router_weight + pool.experts[i].router_bias) for i in experts]
    gates = torch.stack(gate, dim=-1)  # (..., experts)
    limit = gates.topk(min(pool.top_k, len(experts)), dim=-1).values[..., -1:]
    mask = (gates >= limit).to(x.dtype)
    said = torch.stack([pool.experts[i](x) for i in experts], dim=-1)  # (..., hidden, experts)
    total = (said * (gates * mask)[..., None, :]).sum(-1)
    if learning is not None:
        expert = pool.experts[learning]
        total = total + torch.sigmoid(x @ expert.router_weight + expert.router_bias)[..., None] * expert(x)
    return total


# -- gates and choice ----------------------------------------------------------------------------------------------


def test_a_gate_is_the_sigmoid_of_its_own_row():
    pool = first_pool(grown(3))
    with torch.no_grad():
        for expert, (weight, bias) in zip(pool.experts, [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5)], strict=False):
            expert.router_weight.zero_()
            expert.router_weight[0] = weight
            expert.router_bias.fill_(bias)
    x = torch.zeros(2, 32)
    x[:, 0] = torch.tensor([1.0, 3.0])
    expected = [[1 / (1 + math.exp(-z)) for z in row] for row in ([0.0, 0.0, -1.5], [0.0, 2.0, -5.5])]
    assert torch.allclose(pool.gates(x)[:, :3], torch.tensor(expected), atol=1e-6)


def test_the_largest_gates_are_chosen_and_the_older_expert_wins_a_tie():
    gates = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.5, 0.5, 0.5, 0.5], [0.2, 0.1, 0.3, 0.2]])
    assert choose_experts(gates, 2).tolist() == [[1, 3], [0, 1], [2, 0]]
    assert choose_experts(gates, 1).tolist() == [[1], [0], [2]]


def test_the_further_expert_is_the_first_in_the_draw_that_is_not_chosen():
    gates = torch.tensor([[0.1, 0.9, 0.5, 0.7]] * 2)
    priority = torch.tensor([[0.3, 0.99, 0.2, 0.8], [0.0, 0.5, 0.0, 0.6]])
    assert choose_experts(gates, 2, priority).tolist() == [[1, 3, 0], [1, 3, 0]]
    assert choose_experts(gates, 3, priority).tolist() == [[1, 3, 2, 0], [1, 3, 2, 0]]


def test_an_expert_speaks_by_its_gate():
    memory = grown(1)
    pool = first_pool(memory)
    x, output = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    with torch.no_grad():
        pool.experts[0].router_weight.zero_()
        pool.experts[0].router_bias.fill_(math.log(3))  # a gate of 3/4
        assert torch.allclose(pool(x, output), output + 0.75 * pool.experts[0](x), atol=1e-6)


@pytest.mark.parametrize("experts", range(1, 6))
def test_routed_output_and_gradients_are_those_of_a_mask(experts):
    """In float64, where the two orders of summation agree to the last digits that matter."""
    memory = grown(experts)
    pool: Any = first_pool(memory).double()
    shown = list(range(experts))
    x = torch.randn(2, 7, 32, dtype=torch.float64, requires_grad=True)
    parameters = [p for i in shown for p in pool.experts[i].parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    direction = torch.randn(2, 7, 32, dtype=torch.float64)
    found = pool(x, torch.zeros_like(x))
    expected = by_mask(pool, x, shown)
    assert torch.allclose(found, expected, atol=1e-12)
    inputs = [x, *parameters]
    for ours, plain in zip(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs, materialize_grads=True),
        strict=True,
    ):
        assert torch.allclose(ours, plain, atol=1e-12)


def test_the_learning_expert_comes_in_addition():
    memory = grown(4)
    pool = first_pool(memory)
    memory.learn(3)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2], learning=3), atol=1e-6)
        with memory.as_teacher():
            assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2]), atol=1e-6)
        memory.learn(None)
        assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2, 3]), atol=1e-6)


# -- growth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("older", range(4))
def test_activation_changes_no_logit(form, older):
    memory = grown(older, form)
    before = logits(memory.model)
    memory.activate()
    assert torch.equal(logits(memory.model), before)


def test_a_fresh_expert_learns_and_leaves_the_gates_of_the_old_ones():
    memory = grown(3)
    pool = first_pool(memory)
    x = torch.randn(50, 32)
    gates, kept = pool.gates(x)[:, :3], [memory.fingerprint(i) for i in range(3)]
    new = memory.activate()
    assert torch.equal(pool.gates(x)[:, new], torch.full((50,), 0.5))
    before = {name: p.detach().clone() for name, p in memory.expert_parameters(new)}
    optimizer = torch.optim.AdamW([p for p in memory.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        memory.model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None for _, p in memory.expert_parameters(new))
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(pool.gates(x)[:, :3], gates)
    assert [memory.fingerprint(i) for i in range(3)] == kept
    assert all(not torch.equal(p, before[name]) for name, p in memory.expert_parameters(new))


def test_silencing_a_night_restores_the_logits_before_it():
    memory = grown(3)
    before = logits(memory.model)
    fill(memory, new := memory.activate())
    memory.learn(None)
    assert (logits(memory.model) - before).abs().max() > 1e-3
    memory.enable(new, False)
    assert torch.equal(logits(memory.model), before)


def test_an_experts_gate_is_counted_fingerprinted_and_reset_with_it():
    memory = attach(tiny_model(), SPEC)
    first = memory.fingerprint(0)
    memory.activate()
    counts = memory.count_parameters()
    assert counts["added"] == counts["trainable"] == 2 * (3 * 32 * 8 + 32 + 1)
    with torch.no_grad():
        first_pool(memory).experts[0].router_bias.fill_(1.0)
    assert memory.fingerprint(0) != first
    memory.reset(0)
    assert memory.fingerprint(0) == first


def test_dense_experts_have_no_gate():
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=2))
    assert {name.rsplit(".", 1)[1] for name, _ in memory.expert_parameters(0)} == {"gate", "up", "down"}
    assert "top_k" not in memory.describe()["spec"]


# -- cost and load -------------------------------------------------------------------------------------------------


def test_operations_stay_the_same_as_experts_are_added():
    def operations(experts: int) -> int:
        memory = grown(experts)
        with FlopCounterMode(display=False) as counter:
            logits(memory.model)
        return counter.get_total_flops()

    assert operations(2) == operations(3) == operations(5) > operations(1)


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_load_adds_up_to_tokens_times_k(experts):
    memory = grown(experts)
    logits(memory.model)  # not counted
    with memory.counting():
        logits(memory.model)
        logits(memory.model)
    logits(memory.model)  # nor this
    load = memory.load()
    assert len(load) == 2 and all(len(layer) == 5 and sum(layer) == 2 * TOKENS * 2 for layer in load)
    assert all(count == 0 for layer in load for count in layer[experts:])
    with memory.counting():
        pass
    assert sum(map(sum, memory.load())) == 0


def test_load_of_a_layer_is_what_its_gates_choose():
    memory = grown(4)
    seen: list[torch.Tensor] = []
    memory.hosts[0].module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with memory.counting():
        logits(memory.model)
    gates = first_pool(memory).gates(seen[0].reshape(-1, 32))[:, :4]
    expected = torch.bincount(gates.topk(2).indices.flatten(), minlength=5).tolist()
    assert memory.load()[0] == expected
    with memory.counting(reset=False):
        logits(memory.model)
    assert memory.load()[0] == [2 * count for count in expected]


def test_the_learning_expert_is_counted_for_every_token():
    memory = grown(3)
    new = memory.activate()
    with memory.counting():
        logits(memory.model)
    assert all(layer[new] == TOKENS and sum(layer) == TOKENS * 3 for layer in memory.load())


def test_an_expert_that_no_token_chooses_is_no_error_and_has_a_gradient_of_zero():
    memory = grown(3)
    with torch.no_grad():
        for name, parameter in memory.expert_parameters(0):
            if "router" in name:
                parameter.fill_(-100.0 if "bias" in name else 0.0)
    for _, parameter in memory.expert_parameters(0):
        parameter.requires_grad_(True)
    with memory.counting():
        memory.model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(layer[0] == 0 for layer in memory.load())
    assert all(p.grad is not None and not p.grad.any() for _, p in memory.expert_parameters(0))


# -- the random further expert -------------------------------------------------------------------------------------


def test_the_further_expert_is_there_inside_its_context_only_and_by_its_seed():
    memory = grown(5)
    before = logits(memory.model)
    with memory.random_extra_expert(seed=3):
        first = logits(memory.model)
        second = logits(memory.model)
    with memory.random_extra_expert(torch.Generator().manual_seed(3)):
        again = logits(memory.model)
    with memory.random_extra_expert(seed=4):
        other = logits(memory.model)
    assert torch.equal(first, again)
    assert all((other - x).abs().max() > 1e-3 for x in (before, first, second))
    assert torch.equal(logits(memory.model), before)


def test_every_token_takes_one_further_expert_and_rows_draw_apart():
    memory = grown(5)
    with memory.counting(), memory.random_extra_expert(seed=0):
        logits(memory.model)
    assert all(sum(layer) == TOKENS * 3 for layer in memory.load())
    pool = first_pool(memory)
    with torch.no_grad():
        for index, expert in enumerate(pool.experts):  # every token chooses experts 3 and 4
            expert.router_weight.zero_()
            expert.router_bias.fill_(float(index))
        x = torch.randn(1, 6, 32).expand(40, 6, 32)
        with memory.random_extra_expert(seed=0):
            added = pool(x, torch.zeros_like(x))
        chosen = by_mask(pool, x, [0, 1, 2, 3, 4])
        further = torch.stack([pool.gates(x[0])[:, i, None] * pool.experts[i](x[0]) for i in range(3)])
        difference = (added - chosen)[None] - further[:, None]  # (further, rows, tokens, hidden)
    matches = difference.abs().amax((2, 3)) < 1e-5  # a whole row goes to one further expert
    assert (matches.sum(0) == 1).all()
    assert all(5 <= count <= 25 for count in matches.sum(1).tolist())  # 40 rows over 3


def test_no_further_expert_while_few_are_settled(caplog):
    memory = grown(2)
    before = logits(memory.model)
    with memory.random_extra_expert(seed=0):
        assert torch.equal(logits(memory.model), before)
    assert "No random further expert: 2 settled experts, top_k is 2." in caplog.text


# -- saving and refusals -------------------------------------------------------------------------------------------


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
    learnt, has = (spec["routing"] for spec in (saved, attached))
    with pytest.raises(ValueError, match=rf"learnt with routing='{learnt}'.*has routing='{has}'"):
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


# -- forms of models and numbers -----------------------------------------------------------------------------------


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
