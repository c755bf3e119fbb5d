"""Engines with weights of their own, kept in sync with the model: changed weights are sent before each generation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

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
    and receive their completions.

    Args:
        weights (`EngineWeights`):
            The weights that the engine has to hold.
        make_backend (`Callable[[], Backend]`):
            Creates the backend; called in the first process, on first use.
    """

    def __init__(self, weights: EngineWeights, make_backend: Callable[[], Backend]) -> None:
        self.weights = weights
        self._make_backend = make_backend
        self._backend: Backend | None = None
        self._sent: dict[Region, str] = {}
        self.sent_bytes = 0  # by all updates, including the first

    @property
    def backend(self) -> Backend:
        """The backend, created with all weights on first use."""
        if self._backend is None:
            values = self.weights.everything()  # may raise, and then there must be no backend without weights
            self._backend = self._make_backend()
            try:
                self._send(values)
            except BaseException:  # without all its weights it must not generate
                self._backend.close()
                self._backend = None
                raise
        return self._backend

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Completion]:
        shared: list[list[Completion]] = [[]]
        if PartialState().is_main_process:
            self.sync()
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
        """Send expert weights that have changed.

        Returns:
            `int`: number of bytes sent.

        Raises:
            `WeightMismatch`: if an engine's weights then differ from the trainer's.
        """
        self.backend  # noqa: B018 (sends everything the first time)
        before, experts = self.sent_bytes, self.weights.experts()
        digests = {region: digest(value) for region, value in experts.items()}
        if changed := {region: experts[region] for region, value in digests.items() if self._sent.get(region) != value}:
            self._send(changed, digests)
        return self.sent_bytes - before

    def check(self) -> None:
        """Compare all weights, including the base's, with the trainer's.

        Raises:
            `WeightMismatch`: if they differ.
        """
        if self._backend is not None:
            self.sync()
            self._send({}, {region: digest(value) for region, value in self.weights.everything().items()})

    def close(self) -> None:
        """Compare all weights a last time, and stop the engines."""
        if self._backend is not None:
            try:
                self.check()
            finally:
                self._backend.close()
                self._backend, self._sent = None, {}

    def _send(self, values: Values, digests: Mapping[Region, str] | None = None) -> None:
        expected = digests or {region: digest(value) for region, value in values.items()}
        self.backend.update(values, expected)
        self._sent |= expected
        self.sent_bytes += sum(value.numel() * value.element_size() for value in values.values())
