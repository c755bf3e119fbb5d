"""A memory: the experts of a whole model, seen as one thing that grows, teaches and learns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .experts import Expert, ExpertPool, View, add_experts
from .hosts import Host, find_hosts


@dataclass(frozen=True)
class MemorySpec:
    """The size of a memory, fixed when it is attached.

    Args:
        width (`int`, *optional*, defaults to `64`):
            Hidden units of one expert in each layer (the paper's d_low; 64 in appendix B).
        max_experts (`int`, *optional*, defaults to `8`):
            Experts allocated in each layer: the number of nights the memory can take in.
        routing (`str`, *optional*, defaults to `"dense"`):
            How experts are chosen for a token. `"dense"`: all active ones, which is what lets the grown model be folded
            into a standard checkpoint.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the experts' first weights.
        init_scale (`float`, *optional*, defaults to `2.0`):
            Factor on the rows of the host that become an expert's first input weights.
    """

    width: int = 64
    max_experts: int = 8
    routing: Literal["dense"] = "dense"
    seed: int = 0
    init_scale: float = 2.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.max_experts < 1:
            raise ValueError(f"width and max_experts must be at least 1, got {self.width} and {self.max_experts}.")
        if self.routing != "dense":
            raise ValueError(f"routing must be 'dense', got {self.routing!r}.")


@dataclass(frozen=True)
class ExpertRecord:
    """One activated expert: which slot, for which level, and whether it speaks."""

    index: int
    level: int = 1
    is_enabled: bool = True


class Memory:
    """Handle of the experts attached to a model; made by [`attach`], found again by [`Memory.of`].

    The model stays an ordinary `PreTrainedModel` with its parameter names unchanged: each MLP gains a child `memory`
    and a forward hook that adds the experts in view to its output.
    """

    def __init__(self, model: PreTrainedModel, spec: MemorySpec) -> None:
        self.model, self.spec = model, spec
        self.hosts: list[Host] = find_hosts(model)
        smallest = min(min(host.hidden_size, host.intermediate_size) for host in self.hosts)
        if spec.width >= smallest:
            raise ValueError(
                f"width {spec.width} is not low-rank for {type(model).__name__}: it must be smaller than the hidden "
                f"size, here {smallest}. Choose a smaller width (the paper's is 64)."
            )
        self.records: dict[int, ExpertRecord] = {}
        self.learning: int | None = None
        self._view = View()
        for host in self.hosts:
            host.module.memory = ExpertPool(host, spec.width, spec.max_experts, self._view)
            host.module.register_forward_hook(add_experts)
        for index in range(spec.max_experts):
            self.reset(index)
        model.requires_grad_(False)

    @staticmethod
    def of(model: nn.Module) -> Memory | None:
        """Return the memory attached to `model`, or `None`."""
        return getattr(model, "sleep_memory", None)

    # -- growth ---------------------------------------------------------------------------------------------------

    def activate(self, level: int = 1) -> int:
        """Activate the next free expert and make it the only trainable part of the model (method 3.2).

        Args:
            level (`int`, *optional*, defaults to `1`):
                The memory level that receives the expert.

        Returns:
            `int`: the expert's index.

        Raises:
            `ValueError`: if all experts are taken.
        """
        free = [index for index in range(self.spec.max_experts) if index not in self.records]
        if not free:
            raise ValueError(
                f"All {self.spec.max_experts} experts of this memory are taken. Attach it with a larger `max_experts` "
                f"(a saved memory may be loaded into a larger one)."
            )
        self.records[free[0]] = ExpertRecord(free[0], level)
        self.learn(free[0])
        return free[0]

    def learn(self, index: int | None) -> None:
        """Make one active expert the only trainable part of the model; with `None`, freeze everything."""
        if index is not None and index not in self.records:
            raise ValueError(f"Expert {index} is not active; active ones are {sorted(self.records)}.")
        self.model.requires_grad_(False)
        if index is not None:
            for _, parameter in self.expert_parameters(index):
                parameter.requires_grad_(True)
        self.learning = index
        self._show()

    def reset(self, index: int) -> None:
        """Take an expert out of use and draw its first weights anew (synaptic pruning, method 3.3)."""
        self.records.pop(index, None)
        if self.learning == index:
            self.learn(None)
        for layer, host in enumerate(self.hosts):
            generator = torch.Generator().manual_seed(1_000_003 * self.spec.seed + 1_009 * layer + index)
            self._expert(host, index).reset(host, generator, self.spec.init_scale)
        self._show()

    def enable(self, index: int, enabled: bool = True) -> None:
        """Let an active expert speak, or silence it and keep its weights."""
        self.records[index] = ExpertRecord(index, self.records[index].level, enabled)
        self._show()

    # -- views ----------------------------------------------------------------------------------------------------

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the experts that take part in the student's forward pass, in order of activation slot."""
        return tuple(index for index in sorted(self.records) if self.records[index].is_enabled)

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Show the model as it was before this night: every active expert but the one that is learning."""
        with self._showing(tuple(index for index in self.active if index != self.learning)):
            yield

    @contextmanager
    def as_student(self) -> Iterator[None]:
        """Show the model with every active expert, the learning one included. This is the state outside any view."""
        with self._showing(self.active):
            yield

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Show the pretrained model alone."""
        with self._showing(()):
            yield

    @contextmanager
    def _showing(self, experts: tuple[int, ...]) -> Iterator[None]:
        before, self._view.experts = self._view.experts, experts
        try:
            yield
        finally:
            self._view.experts = before

    def _show(self) -> None:
        self._view.experts = self.active

    # -- weights --------------------------------------------------------------------------------------------------

    def _expert(self, host: Host, index: int) -> Expert:
        return cast(Expert, cast(ExpertPool, host.module.memory).experts[index])

    def experts(self, index: int) -> Iterator[tuple[Host, Expert]]:
        """Yield one expert's part in each layer, with its host."""
        for host in self.hosts:
            yield host, self._expert(host, index)

    def expert_parameters(self, index: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `(name, parameter)` of one expert in all layers; names are `<host>.<gate|up|down>`."""
        for host, expert in self.experts(index):
            for name, parameter in expert.named_parameters():
                yield f"{host.name}.{name}", parameter

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `(name, parameter)` of the model without its experts."""
        prefixes = tuple(f"{host.name}.memory." for host in self.hosts)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(prefixes):
                yield name, parameter

    def count_parameters(self) -> dict[str, int]:
        """Count parameters: `base`, `added` (all active experts) and `trainable`."""
        return {
            "base": sum(p.numel() for _, p in self.base_parameters()),
            "added": sum(p.numel() for index in self.records for _, p in self.expert_parameters(index)),
            "trainable": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }

    def fingerprint(self, index: int) -> str:
        """Return the SHA-256 of one expert's weights, a hexadecimal string."""
        digest = hashlib.sha256()
        for name, parameter in self.expert_parameters(index):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return spec and records as plain data, as `memory.json` holds them."""
        return {"spec": asdict(self.spec), "experts": [asdict(self.records[i]) for i in sorted(self.records)]}


def attach(model: PreTrainedModel, spec: MemorySpec | None = None) -> Memory:
    """Put a pool of masked low-rank experts beside every MLP of a causal language model, and freeze the model.

    Args:
        model (`PreTrainedModel`):
            Any model whose MLPs have one of the forms in [`sleep_trl.memory.hosts.FORMS`].
        spec (`MemorySpec`, *optional*):
            Size of the memory.

    Returns:
        `Memory`: the handle; also kept as `model.sleep_memory`.

    Raises:
        `ValueError`: if the model has a memory already, or its MLPs have no known form, or the width is not low-rank.
    """
    if Memory.of(model) is not None:
        raise ValueError("This model has a memory already; use Memory.of(model).")
    memory = Memory(model, spec or MemorySpec())
    model.sleep_memory = memory
    return memory
