"""Engines with weights of their own, kept in step with the model: what changed travels before the next text is
generated."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .engine import Completion, Progress, Sampling
from .replica import Replica
from .weights import EngineWeights, Region, Values, digest, verify


class Backend(Protocol):
    """One replica or several, as a [`SyncedEngine`] sees them."""

    def update(self, values: Values, expected: Mapping[Region, str]) -> None:
        """Write weights into every replica, and compare what each then holds.

        Raises:
            `WeightMismatch`: if a replica's digests are not the expected ones.
        """
        ...

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: Progress | None
    ) -> list[Completion]:
        """Generate one completion a prompt, with a seed for each."""
        ...

    def close(self) -> None:
        """End what was started."""
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
        """The replica goes with its last reference."""


class SyncedEngine:
    """An engine whose weights follow a model's memory.

    Before it generates, the slots of the experts are compared with what the engine got last; those that changed are
    sent, and the engine's fingerprint of all slots has to equal the trainer's. The first process alone drives the
    backend; the others give it their prompts and get their completions.

    Args:
        weights (`EngineWeights`):
            What the engine has to hold.
        make_backend (`Callable[[], Backend]`):
            Makes the backend; called in the first process, when it is needed first.
    """

    def __init__(self, weights: EngineWeights, make_backend: Callable[[], Backend]) -> None:
        self.weights = weights
        self._make_backend = make_backend
        self._backend: Backend | None = None
        self._sent: dict[Region, str] = {}
        self.sent_bytes = 0  # by all updates, the first one included

    @property
    def backend(self) -> Backend:
        """The backend, with the weights that it was given first."""
        if self._backend is None:
            values = self.weights.everything()  # may refuse, and then there must be no backend that lacks them
            self._backend = self._make_backend()
            try:
                self._send(values)
            except BaseException:  # without all its weights it must never write
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
            by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i), reverse=True)
            seeds = [random.Random(f"{sampling.seed}:{i}").getrandbits(31) for i in by_length]
            drawn = self.backend.generate([prompts[i] for i in by_length], sampling, seeds, progress)
            in_order = sorted(zip(by_length, drawn, strict=True), key=lambda pair: pair[0])
            shared = [[completion for _, completion in in_order]]
        broadcast_object_list(shared)
        return shared[0]

    def generate_each(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Generate for prompts that are each process's own."""
        state = PartialState()
        everyone: list[tuple[int, list[list[int]]]] = gather_object([(state.process_index, list(prompts))])
        completions = iter(self.generate([p for _, own in everyone for p in own], sampling))
        return {rank: [next(completions) for _ in own] for rank, own in everyone}[state.process_index]

    def sync(self) -> int:
        """Send the experts' weights that have changed.

        Returns:
            `int`: the bytes that were sent.

        Raises:
            `WeightMismatch`: if an engine then holds other weights than the trainer.
        """
        self.backend  # noqa: B018 (sends everything the first time)
        before, experts = self.sent_bytes, self.weights.experts()
        digests = {region: digest(value) for region, value in experts.items()}
        if changed := {region: experts[region] for region, value in digests.items() if self._sent.get(region) != value}:
            self._send(changed, digests)
        return self.sent_bytes - before

    def check(self) -> None:
        """Compare all weights, the base's too, with the trainer's.

        Raises:
            `WeightMismatch`: if they differ.
        """
        if self._backend is not None:
            self.sync()
            self._send({}, {region: digest(value) for region, value in self.weights.everything().items()})

    def close(self) -> None:
        """Compare all weights a last time, and end the engines."""
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
