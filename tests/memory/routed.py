"""A memory of routed experts, made small, and routing by a mask, which it has to equal."""

from typing import Any

import torch

from sleep_trl.memory import Memory, MemorySpec, attach
from tests.tiny import tiny_model

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
    memory.commit()
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
    parts = torch.stack([pool.experts[i](x) for i in experts], dim=-1)  # (..., hidden, experts)
    total = (parts * (gates * mask)[..., None, :]).sum(-1)
    if learning is not None:
        expert = pool.experts[learning]
        total = total + torch.sigmoid(x @ expert.router_weight + expert.router_bias)[..., None] * expert(x)
    return total
