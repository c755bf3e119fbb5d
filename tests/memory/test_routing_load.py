"""What routing costs, how its load is counted, and the random further expert."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.memory.routed import IDS, TOKENS, by_mask, first_pool, grown, logits


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
