"""A memory: the experts of a model, handled as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..distributed.zero3 import gathered, whole_size
from .experts import Expert
from .hosts import Host, find_hosts
from .pools import DensePool, ExpertPool, hook
from .routing import RoutedPool
from .spec import ExpertRecord, MemorySpec
from .views import Views


class Memory(Views):
    """Handle of the experts attached to a model. Created by [`attach`]; [`Memory.of`] returns it for a model.

    The model remains an ordinary `PreTrainedModel` with unchanged parameter names. Each MLP gets a child `memory`, and
    forward hooks through which the experts in view take part.
    """

    def __init__(self, model: PreTrainedModel, spec: MemorySpec) -> None:
        super().__init__(spec, find_hosts(model))
        self.model = model
        smallest = min(min(host.hidden_size, host.intermediate_size) for host in self.hosts)
        if spec.width >= smallest:
            raise ValueError(
                f"width {spec.width} is not low-rank for {type(model).__name__}: it must be less than {smallest}, the "
                f"hidden or the intermediate size. Choose a smaller width (the paper's is 64)."
            )
        for host in self.hosts:
            size = (spec.width, spec.max_experts, self._view)
            hook(RoutedPool(host, *size, spec.top_k) if spec.is_routed else DensePool(host, *size), host)
        self._draw(range(spec.max_experts))
        model.requires_grad_(False)

    @staticmethod
    def of(model: nn.Module) -> Memory | None:
        """Return the memory attached to `model`, or `None`."""
        return getattr(model, "sleep_memory", None)

    # -- growth ---------------------------------------------------------------------------------------------------

    def activate(self, level: int = 1, replacing: Sequence[int] = (), joining: Sequence[int] = ()) -> int:
        """Activate the next free expert and make it the only trainable part of the model (method 3.2).

        Args:
            level (`int`, *optional*, defaults to `1`):
                The memory level that receives the expert.
            replacing (`Sequence[int]`, *optional*):
                Active experts that it replaces (method 3.3): in view for the teacher, not for the student. [`commit`]
                resets them; resetting the new expert instead brings them back into view.
            joining (`Sequence[int]`, *optional*):
                Active experts that join it: in view for the student, not for the teacher. [`commit`] keeps them;
                resetting the new expert resets them too.

        Returns:
            `int`: the expert's index.

        Raises:
            `ValueError`: if all experts are in use, one to replace or join is not active, or others are still being
                replaced.
        """
        if unknown := [index for index in (*replacing, *joining) if index not in self.records]:
            raise ValueError(f"Expert {unknown[0]} is not active; active ones are {sorted(self.records)}.")
        if self.replacing:
            raise ValueError(
                f"Experts {list(self.replacing)} are still being replaced by expert {self.learning}. Commit "
                f"it (`commit()`) or reset it first."
            )
        index = self._free()
        self.records[index] = ExpertRecord(index, level)
        self.replacing, self.joining = tuple(replacing), tuple(joining)
        self._set_learning(index)
        return index

    def add_block(self, level: int) -> int:
        """Activate the next free expert as the block of a level, and return its index. It is not trained.

        Raises:
            `ValueError`: if all experts are in use.
        """
        index = self._free()
        self.records[index] = ExpertRecord(index, level, is_block=True)
        self._show()
        return index

    def _free(self) -> int:
        for index in range(self.spec.max_experts):
            if index not in self.records:
                return index
        raise ValueError(
            f"All {self.spec.max_experts} experts of this memory are taken. Attach it with a larger `max_experts`, or "
            f"load a saved one with `load_memory(model, folder, max_experts=...)`."
        )

    def register(self, records: Iterable[ExpertRecord]) -> None:
        """Activate experts whose weights are in place already, such as loaded ones."""
        self.records |= {record.index: record for record in records}
        self._set_learning(self.learning)

    def train_only(self, index: int) -> None:
        """Make one active expert the only trainable part of the model.

        With `routing="topk"` an expert that is being trained reads every token, in addition to the token's top k; once
        committed it competes with the others, which may change the output.

        Raises:
            `ValueError`: if the expert is not active.
        """
        if index not in self.records:
            raise ValueError(f"Expert {index} is not active; active ones are {sorted(self.records)}.")
        self._set_learning(index)

    def commit(self) -> None:
        """End learning: reset the experts that the new one replaces, and freeze everything."""
        replaced, self.replacing, self.joining = self.replacing, (), ()
        for index in replaced:
            self.reset(index)
        self._set_learning(None)

    def _set_learning(self, index: int | None) -> None:
        self.model.requires_grad_(False)
        if index is not None:
            for _, parameter in self.expert_parameters(index):
                parameter.requires_grad_(True)
        self.learning = self._view.learning = index
        self._show()

    @contextmanager
    def differentiating(self, experts: Sequence[int]) -> Iterator[None]:
        """Context manager: compute gradients for some of the experts in view, although they are not learning."""
        self._view.apart = tuple(experts)
        for index in experts:
            for _, parameter in self.expert_parameters(index):
                parameter.requires_grad_(True)
        try:
            yield
        finally:
            self._set_learning(self.learning)

    def reset(self, index: int) -> None:
        """Deactivate an expert and draw new first weights for it (synaptic pruning, method 3.3)."""
        self.records.pop(index, None)
        if self.learning == index:
            joined, self.replacing, self.joining = self.joining, (), ()
            for each in joined:
                self.reset(each)
            self._set_learning(None)
        self._draw([index])
        self._show()

    def _draw(self, indices: Iterable[int]) -> None:
        """Draw the first weights of experts, host by host: sharded weights are gathered for one host at a time."""
        for layer, host in enumerate(self.hosts):
            with gathered(getattr(host.module, name).weight for name in host.form.inputs):
                for index in indices:
                    generator = torch.Generator().manual_seed(1_000_003 * self.spec.seed + 1_009 * layer + index)
                    expert = self._expert(host, index)
                    with gathered(expert.parameters(), write=True):
                        expert.reset(host, generator, self.spec.init_scale)

    def enable(self, index: int, enabled: bool = True) -> None:
        """Enable an active expert, or disable it and keep its weights."""
        self.records[index] = replace(self.records[index], is_enabled=enabled)
        self._show()

    def forget_wide(self) -> None:
        """Free what settled experts are computed with inside their hosts; it is built again when it is needed."""
        for host in self.hosts:
            cast(ExpertPool, host.module.memory).forget()

    # -- weights --------------------------------------------------------------------------------------------------

    def _expert(self, host: Host, index: int) -> Expert:
        return cast(Expert, cast(ExpertPool, host.module.memory).experts[index])

    def experts(self, index: int) -> Iterator[tuple[Host, Expert]]:
        """Yield the part of an expert in each layer, with its host."""
        for host in self.hosts:
            yield host, self._expert(host, index)

    def expert_parameters(self, index: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `(name, parameter)` of one expert in all layers; names are `<host>.<gate|up|down>`."""
        for host, expert in self.experts(index):
            for name, parameter in expert.named_parameters():
                yield f"{host.name}.{name}", parameter

    def expert_tensors(self, host: Host, index: int, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of an expert in one layer from a state dict of the model, by `gate`, `up` and `down`."""
        names = (name for name, _ in self._expert(host, index).named_parameters())
        return {name: state[f"{host.name}.memory.experts.{index}.{name}"] for name in names}

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield `(name, parameter)` of the model without its experts."""
        prefixes = tuple(f"{host.name}.memory." for host in self.hosts)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(prefixes):
                yield name, parameter

    def count_parameters(self) -> dict[str, int]:
        """Count parameters: `base`, `added` (all active experts) and `trainable`."""
        return {
            "base": sum(whole_size(p) for _, p in self.base_parameters()),
            "added": sum(whole_size(p) for index in self.records for _, p in self.expert_parameters(index)),
            "trainable": sum(whole_size(p) for p in self.model.parameters() if p.requires_grad),
        }

    def fingerprint(self, index: int) -> str:
        """Return the SHA-256 of one expert's weights, a hexadecimal string."""
        digest = hashlib.sha256()
        for name, parameter in self.expert_parameters(index):
            digest.update(name.encode())
            with gathered([parameter]):
                digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return spec, records and any experts being replaced, as in `memory.json`."""
        described = {"spec": self.spec.describe(), "experts": [self.records[i].as_row() for i in sorted(self.records)]}
        return described | ({"replacing": list(self.replacing)} if self.replacing else {})
