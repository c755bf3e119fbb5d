"""A memory: the experts of a model, handled as one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..distributed.zero3 import gathered, whole_size
from .experts import Expert
from .hosts import Host, find_hosts
from .pools import DensePool, ExpertPool, View, hook
from .routing import RoutedPool
from .spec import MemorySpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertRecord:
    """One activated expert.

    Args:
        index (`int`): its slot.
        level (`int`): its memory level.
        is_enabled (`bool`): whether it takes part in the forward pass.
        is_block (`bool`): whether it is the block of its level, which Eq. 2 updates and seeding does not train, see
            [`sleep_trl.memory.accumulated_gradients`].
    """

    index: int
    level: int = 1
    is_enabled: bool = True
    is_block: bool = False

    def as_row(self) -> dict[str, Any]:
        """Return it as plain data. `is_block` is left out if false, so that earlier versions can read it."""
        row = asdict(self)
        return row if self.is_block else {name: value for name, value in row.items() if name != "is_block"}


class Memory:
    """Handle of the experts attached to a model. Created by [`attach`]; [`Memory.of`] returns it for a model.

    The model remains an ordinary `PreTrainedModel` with unchanged parameter names. Each MLP gets a child `memory`, and
    forward hooks through which the experts in view take part.
    """

    def __init__(self, model: PreTrainedModel, spec: MemorySpec) -> None:
        self.model, self.spec = model, spec
        self.hosts: list[Host] = find_hosts(model)
        smallest = min(min(host.hidden_size, host.intermediate_size) for host in self.hosts)
        if spec.width >= smallest:
            raise ValueError(
                f"width {spec.width} is not low-rank for {type(model).__name__}: it must be less than {smallest}, the "
                f"hidden or the intermediate size. Choose a smaller width (the paper's is 64)."
            )
        self.records: dict[int, ExpertRecord] = {}
        self.learning: int | None = None
        self.replacing: tuple[int, ...] = ()
        self.joining: tuple[int, ...] = ()
        self._hidden: frozenset[int] = frozenset()
        self._view = View()
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

    # -- views ----------------------------------------------------------------------------------------------------

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the experts that take part in the student's forward pass, in ascending order."""
        return tuple(index for index in self._enabled() if index not in self.replacing)

    def _enabled(self) -> tuple[int, ...]:
        return tuple(index for index in sorted(self.records) if self.records[index].is_enabled)

    @property
    def in_view(self) -> tuple[int, ...]:
        """The experts that take part in a forward pass now."""
        return self._view.experts

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Context manager: the model as it was before the learning expert was activated, without it and those that join
        it, and with those that it replaces."""
        new = (self.learning, *self.joining)
        with self._showing(tuple(index for index in self._enabled() if index not in new)):
            yield

    @contextmanager
    def as_student(self) -> Iterator[None]:
        """Context manager: the model with all active experts, including the learning one. This is also the default."""
        with self._showing(self.active):
            yield

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Context manager: the pretrained model without experts."""
        with self._showing(()):
            yield

    @contextmanager
    def hiding(self, experts: Collection[int]) -> Iterator[None]:
        """Context manager: leave experts out of all views, the teacher's and the student's, as if they were dropped."""
        before, self._hidden = self._hidden, frozenset(experts)
        try:
            with self._showing(self._view.experts):
                yield
        finally:
            self._hidden = before

    @contextmanager
    def _showing(self, experts: tuple[int, ...]) -> Iterator[None]:
        before = self._view.experts
        self._view.experts = tuple(index for index in experts if index not in self._hidden)
        try:
            yield
        finally:
            self._view.experts = before

    def _show(self) -> None:
        self._view.experts, self._view.apart = self.active, (*self.replacing, *self.joining)

    @property
    def blocks(self) -> dict[int, int]:
        """The blocks: level -> expert."""
        return {self.records[i].level: i for i in self.active if self.records[i].is_block}

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

    # -- routing --------------------------------------------------------------------------------------------------

    @contextmanager
    def random_extra_expert(self, seed: int | torch.Generator) -> Iterator[None]:
        """Context manager: every router also activates one further expert at random, for sampling dreams (method 3.4).

        Ours: in each forward pass a router draws an order of the settled experts for each row of the batch. A token
        takes the first one that is not in its top k, weighted by that expert's gate. With `top_k` settled experts or
        fewer there is no further one, and a warning is logged.

        Args:
            seed (`int` or `torch.Generator`):
                Seed of the draws: the same seed gives the same draws for the same batches. Give each process its own.

        Raises:
            `ValueError`: with `routing="dense"`.
        """
        if not self.spec.is_routed:
            raise ValueError(
                "A random further expert needs routing 'topk': with 'dense' every active expert takes part already. "
                "Attach the memory with MemorySpec(routing='topk'), or dream without it."
            )
        settled = sum(index != self.learning for index in self.active)
        if settled <= self.spec.top_k:
            logger.warning("No random further expert: %d settled experts, top_k is %d.", settled, self.spec.top_k)
        before = self._view.random
        self._view.random = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        try:
            yield
        finally:
            self._view.random = before

    @property
    def is_random(self) -> bool:
        """Whether routers take a random further expert now."""
        return self._view.random is not None

    @contextmanager
    def counting(self, reset: bool = True) -> Iterator[None]:
        """Context manager: count the tokens routed to each expert, including padding; a recomputed pass counts again.

        Args:
            reset (`bool`, *optional*, defaults to `True`):
                Start at zero; otherwise continue counting.

        Raises:
            `ValueError`: with `routing="dense"`, where every token goes to every expert.
        """
        for pool in self._routers():
            pool.load = [0] * self.spec.max_experts if reset else pool.load
        before, self._view.is_counting = self._view.is_counting, True
        try:
            yield
        finally:
            self._view.is_counting = before

    def load(self) -> list[list[int]]:
        """Return how many tokens were routed to each expert since counting began, in this process.

        Returns:
            `list[list[int]]`: for each layer, a count for each of the `max_experts` slots. The counts of a layer sum to
            tokens times `top_k` (or the number of settled experts, if smaller), plus the tokens once more for a
            learning or a random expert.

        Raises:
            `ValueError`: with `routing="dense"`.
        """
        return [list(pool.load) for pool in self._routers()]

    def _routers(self) -> list[RoutedPool]:
        if not self.spec.is_routed:
            raise ValueError(
                "With routing 'dense' every token goes to every active expert, so there is nothing to count."
            )
        return [cast(RoutedPool, host.module.memory) for host in self.hosts]

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


def attach(model: PreTrainedModel, spec: MemorySpec | None = None) -> Memory:
    """Add a pool of inactive low-rank experts to every MLP of a causal language model, and freeze the model.

    Args:
        model (`PreTrainedModel`):
            A model whose MLPs have one of the forms in [`sleep_trl.memory.hosts.FORMS`].
        spec (`MemorySpec`, *optional*):
            Size and routing of the memory.

    Returns:
        `Memory`: the handle, also available as `Memory.of(model)`.

    Raises:
        `ValueError`: if the model has a memory already, its MLPs have an unknown form, or the width is not low-rank.
    """
    if Memory.of(model) is not None:
        raise ValueError("This model has a memory already; use Memory.of(model).")
    memory = Memory(model, spec or MemorySpec())
    model.sleep_memory = memory
    return memory
