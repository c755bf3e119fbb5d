"""The routed form of the memory, held to numbers worked out by hand and to a plain implementation with a mask."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sleep_trl.memory import MemorySpec, attach, choose_experts
from tests.memory.routed import IDS, SPEC, by_mask, fill, first_pool, grown, logits
from tests.tiny import FORMS, tiny_model


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
    memory.train_only(3)
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2], learning=3), atol=1e-6)
        with memory.as_teacher():
            assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2]), atol=1e-6)
        memory.commit()
        assert torch.allclose(pool(x, torch.zeros_like(x)), by_mask(pool, x, [0, 1, 2, 3]), atol=1e-6)


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
    memory.commit()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["llama", "gpt2"])  # with and without a gate
@pytest.mark.parametrize("experts", [2, 4])
def test_compiled_routing_is_one_graph_whatever_is_routed(experts, form, dtype):
    memory = grown(experts, form, replace(SPEC, width=6))  # padded to 8
    pool: Any = first_pool(memory)
    memory.train_only(memory.activate())
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="eager", dynamic=False)
    for number in range(3):
        x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(number)).to(dtype).requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            found = compiled(x, torch.zeros_like(x))
        expected = pool(x, torch.zeros_like(x))
        ours, plain = (torch.autograd.grad((y * x.detach()).sum(), x)[0] for y in (found, expected))
        for one, other in ((found, expected), (ours, plain)):
            size = other.abs().max()
            assert size > 0 and (one - other).abs().max() <= size * (0.02 if dtype == torch.bfloat16 else 1e-5)
