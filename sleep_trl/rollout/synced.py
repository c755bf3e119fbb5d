"""Engines with weights of their own, kept in sync with the model: changed weights are sent before each generation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..distributed.zero3 import takes_part_in_saving
from .engine import Completion, Progress, Sampling
from .prefixes import plan_batches
from .replica import Replica
from .weights import EngineWeights, Region, Values, digest, verify


class Backend(Protocol):
    """One or more replicas behind a [`SyncedEngine`]."""

    def update(self, values: Values, expected: Mapping[Region, str]) -> None:
        """Write weights into every replica, and verify what it then holds.

        Raises:
            `WeightMismatch`: if a replica's digests are not the expected ones.
        """
        ...

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: Progress | None
    ) -> list[Completion]:
        """Generate one completion per prompt, with a seed for each."""
        ...

    def close(self) -> None:
        """Release what was started."""
        ...


class InThisProcess:
    """One replica in this process."""

    def __init__(self, replica: Replica, name: str, batch_size: int) -> None:
        self.replica, self.name, self.batch_size = replica, name, batch_size

    def update(self, values: Values, expected: Mapping[Region, str]) -> None:
        verify(self.name, expected, self.replica.update(values, list(expected)))

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: Progress | None
    ) -> list[Completion]:
        completions: list[Completion] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            completions += self.replica.generate(prompts[part], sampling, seeds[part])
            if progress:
                progress(len(prompts[part]))
        return completions

    def close(self) -> None:
        """Nothing to do: the replica is freed with its last reference."""


class SyncedEngine:
    """An engine whose weights follow a model's memory.

    Before it generates, expert slots that have changed since the last update are sent, and the engine's fingerprint of
    all slots has to equal the trainer's. Only the first process drives the backend; the others send it their prompts
    and receive their completions. If weights are sharded, all processes gather them together, so all have to call every
    method.

    Args:
        weights (`EngineWeights`):
            The weights that the engine has to hold.
        make_backend (`Callable[[], Backend]`):
            Creates the backend; called in the first process, on first use.
        sends_base (`bool`, *optional*, defaults to `True`):
            Whether the first update brings the base too. Without it replicas load it from its checkpoint, and their
            digests of it have to equal the trainer's.
    """

    def __init__(self, weights: EngineWeights, make_backend: Callable[[], Backend], sends_base: bool = True) -> None:
        self.weights, self.sends_base = weights, sends_base
        self._make_backend = make_backend
        self._backend: Backend | None = None
        self._has_begun = False  # the same in all processes that take part
        self._sent: dict[Region, str] = {}
        self.sent_bytes = 0  # by all updates, including the first

    @property
    def backend(self) -> Backend:
        """The backend, which the first process has from its first [`sync`] on."""
        assert self._backend is not None, "sync() comes first, and only the first process has a backend"
        return self._backend

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        self.sync()
        shared: list[list[Completion]] = [[]]
        if PartialState().is_main_process:
            # Prompts that begin alike go to the same replica, which reads what they share once.
            _, batches = plan_batches(prompts, 64, float("inf"), sampling.max_new_tokens)
            order = [i for batch in batches for i in batch.rows]
            seeds = [random.Random(f"{sampling.seed}:{i}").getrandbits(31) for i in order]
            drawn = self.backend.generate([prompts[i] for i in order], sampling, seeds, progress)
            in_order = sorted(zip(order, drawn, strict=True), key=lambda pair: pair[0])
            shared = [[completion for _, completion in in_order]]
        broadcast_object_list(shared)
        return shared[0]

    def generate_each(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Generate for prompts that differ between the processes."""
        state = PartialState()
        everyone: list[tuple[int, list[list[int]]]] = gather_object([(state.process_index, list(prompts))])
        completions = iter(self.generate([p for _, own in everyone for p in own], sampling))
        return {rank: [next(completions) for _ in own] for rank, own in everyone}[state.process_index]

    def sync(self) -> int:
        """Send expert weights that have changed, and everything that is needed the first time.

        Returns:
            `int`: number of bytes sent.

        Raises:
            `WeightMismatch`: if an engine's weights then differ from the trainer's.
        """
        if not takes_part_in_saving(self.weights.memory.model):
            return 0
        before, values = self.sent_bytes, self.weights.experts()
        digests = self._digests(values.items())
        is_first = not self._has_begun
        if is_first:  # reading may raise, and then there must be no backend without weights
            base, base_digests = self._read_base()
            values, digests = base | values, base_digests | digests
        if PartialState().is_main_process:
            self._backend = self._make_backend() if is_first else self.backend
            try:
                changed = {
                    region: value for region, value in values.items() if self._sent.get(region) != digests[region]
                }
                if changed:
                    self._send(changed, digests)
            except BaseException:
                if is_first:  # without all its weights it must not generate
                    self._stop()
                raise
        self._has_begun = True
        return self.sent_bytes - before

    def check(self) -> None:
        """Compare all weights, including the base's, with the trainer's.

        Raises:
            `WeightMismatch`: if they differ.
        """
        if self._has_begun:
            self.sync()
            _, digests = self._read_base()
            digests |= self._digests(self.weights.experts().items())  # those that were not sent again included
            if PartialState().is_main_process:
                self._send({}, digests)

    def close(self) -> None:
        """Compare all weights a last time, and stop the engines."""
        try:
            self.check()
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._backend is not None:
            self._backend.close()
        self._backend, self._sent, self._has_begun = None, {}, False

    def _read_base(self) -> tuple[Values, dict[Region, str]]:
        """Return the weights of the base that are to be sent, and the digests of all."""
        values: Values = {}
        digests: dict[Region, str] = {}
        for region, value in self.weights.base():
            digests |= self._digests([(region, value)])
            if self.sends_base:
                values[region] = value
        return values, digests

    @staticmethod
    def _digests(values: Iterable[tuple[Region, torch.Tensor]]) -> dict[Region, str]:
        """Return the digests of weights, in the process that compares them."""
        return {region: digest(value) for region, value in values} if PartialState().is_main_process else {}

    def _send(self, values: Values, expected: Mapping[Region, str]) -> None:
        self.backend.update(values, expected)
        self._sent |= expected
        self.sent_bytes += sum(value.numel() * value.element_size() for value in values.values())
