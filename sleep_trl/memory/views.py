"""Which experts of a memory take part in a forward pass, and how many tokens routers send to each."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import cast

import torch

from .hosts import Host
from .pools import View
from .routing import RoutedPool
from .spec import ExpertRecord, MemorySpec

logger = logging.getLogger(__name__)


class Views:
    """The views of a memory: teacher, student and base. Base class of [`~sleep_trl.memory.Memory`].

    Args:
        spec (`MemorySpec`):
            Size and routing of the memory.
        hosts (`list[Host]`):
            The MLPs that have experts.

    Attributes:
        in_base (`tuple[int, ...]`):
            Active experts that count as part of the pretrained model, such as the one that an ordinary run trains, in
            the midst of which a night takes place.
    """

    def __init__(self, spec: MemorySpec, hosts: list[Host]) -> None:
        self.spec, self.hosts = spec, hosts
        self.records: dict[int, ExpertRecord] = {}
        self.learning: int | None = None
        self.replacing: tuple[int, ...] = ()
        self.joining: tuple[int, ...] = ()
        self.in_base: tuple[int, ...] = ()
        self._hidden: frozenset[int] = frozenset()
        self._view = View()

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
        """Context manager: the pretrained model without experts, except those that count as part of it."""
        with self._showing(tuple(index for index in self.in_base if index in self._enabled())):
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
