"""A model with routed experts as a transformers architecture, for engines with weights of their own.

The architecture extends the base's: its config has three more entries, and its model classes add experts to each MLP.
The classes are created and registered with transformers when a config is created or unpickled, so that transformers'
auto classes and vLLM's transformers backend can use them without code from a checkpoint. The base's weights keep their
names.

Which experts are in view is a weight like the others (`roles`), so that updates change it too. All experts are computed
for every token, with weight zero if the router did not choose them: there are few, and compiled engines need shapes
that do not depend on the data.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from ..memory.hosts import Host, find_hosts
from ..memory.routing import choose_experts

ABSENT, SETTLED, LEARNING = 0.0, 1.0, 2.0  # roles of an expert
IN_FLOAT32 = (
    "memory.router."  # in names of weights that engines must keep in float32: rounding would change the routing
)
VLLM_BACKEND = "TransformersForCausalLM"  # vLLM's name for its transformers backend


def routed_config(base: PretrainedConfig, width: int, slots: int, top_k: int) -> PretrainedConfig:
    """
    Return the config of an architecture with routed experts, and register its classes with transformers.

    Args:
        base (`PretrainedConfig`):
            Config of the model without experts.
        width (`int`):
            Hidden units of an expert.
        slots (`int`):
            Experts of each MLP.
        top_k (`int`):
            Settled experts for each token.
    """
    config = copy.deepcopy(base)
    config.__class__ = _routed_class(base.__class__)
    config.expert_width, config.expert_slots, config.experts_per_token = width, slots, top_k
    config.architectures = [VLLM_BACKEND]
    return config


def obstacle_to_routed(base: PretrainedConfig) -> str | None:
    """Return why there is no such architecture for a base, or `None` if there is."""
    if type(base) in AutoModel._model_mapping and type(base) in AutoModelForCausalLM._model_mapping:
        return None
    return f"transformers has no model of its own for a {type(base).__name__} to which experts could be added"


def obstacle_to_backend(base: PretrainedConfig) -> str | None:
    """Return why vLLM's transformers backend cannot run the architecture, or `None` if it can."""
    if base.get_text_config() is base and AutoModel._model_mapping[type(base)].is_backend_compatible():
        return None
    return f"its transformers backend cannot run {base.model_type} models with routed experts"


class Router(nn.Module):
    """The gates of all experts of one MLP, zero for those not chosen, see [`sleep_trl.memory.routing`].

    Args:
        hidden_size (`int`): of the MLP.
        slots (`int`): experts.
        top_k (`int`): settled experts for each token.
    """

    def __init__(self, hidden_size: int, slots: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = _zeros(slots, hidden_size, dtype=torch.float32)
        self.bias = _zeros(slots, dtype=torch.float32)
        self.roles = _zeros(slots, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (tokens, hidden) -> (tokens, slots)
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        gates = torch.sigmoid(F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)))
        settled = self.roles == SETTLED
        chosen = choose_experts(gates.masked_fill(~settled, -1.0), self.top_k)
        is_enabled = torch.zeros_like(gates).scatter(1, chosen, 1.0) * settled + (self.roles == LEARNING)
        return (gates * is_enabled).to(x.dtype)


class RoutedExperts(nn.Module):
    """All experts of one MLP as one low-rank MLP, whose hidden units the router weights; those of an expert are
    adjacent.

    Args:
        host (`Host`): the MLP.
        width (`int`): hidden units of an expert.
        slots (`int`): experts.
        top_k (`int`): settled experts for each token.
    """

    def __init__(self, host: Host, width: int, slots: int, top_k: int) -> None:
        super().__init__()
        self.width, self.activation = width, host.activation
        self.gate = _zeros(slots * width, host.hidden_size) if host.form.is_gated else None
        self.up = _zeros(slots * width, host.hidden_size)
        self.down = _zeros(host.hidden_size, slots * width)
        self.router = Router(host.hidden_size, slots, top_k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., hidden) -> (..., hidden)
        flat = x.reshape(-1, x.shape[-1])  # (tokens, hidden)
        hidden = F.linear(flat, self.up)  # (tokens, slots * width)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(F.linear(flat, self.gate)) * hidden
        weights = self.router(flat).repeat_interleave(self.width, dim=-1)
        return F.linear(hidden * weights, self.down).view_as(x)


class _RoutedConfig:
    """Base class of the configs of such architectures."""

    def __reduce__(self) -> tuple[Any, ...]:  # the class is created again where the config is unpickled
        return _remake, (type(self).__bases__[1], self.__dict__)


class _RoutedModel:
    """Base class of their models, which adds experts to each MLP."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        size = config.expert_width, config.expert_slots, config.experts_per_token
        for host in find_hosts(self):
            host.module.memory = RoutedExperts(host, *size)
            host.module.register_forward_hook(_add_experts)


def _add_experts(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output + module.memory(args[0])  # type: ignore[operator]


@cache
def _routed_class(base: Any) -> Any:
    """Create and register the config class and model classes of a base's architecture with routed experts."""
    model_type = f"sleep_routed_{base.model_type}"
    config = type(f"SleepRouted{base.__name__}", (_RoutedConfig, base), {"model_type": model_type})
    AutoConfig.register(model_type, config)
    for auto in (AutoModel, AutoModelForCausalLM):
        parent = auto._model_mapping[base]
        own = {
            "config_class": config,
            "__module__": parent.__module__,  # transformers reads its source
            "_keep_in_fp32_modules_strict": {*(parent._keep_in_fp32_modules_strict or ()), IN_FLOAT32},
        }
        auto.register(config, type(f"SleepRouted{parent.__name__}", (_RoutedModel, parent), own))
    return config


def _remake(base: Any, entries: dict[str, Any]) -> PretrainedConfig:
    kind = _routed_class(base)
    config = kind.__new__(kind)
    config.__dict__.update(entries)
    return config


def _zeros(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
