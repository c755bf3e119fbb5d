"""A pool of replicas as named Ray actors. Dead and hung ones are replaced, and others take over their prompts.

Every call has a deadline. Results do not depend on which engine generated what: prompts are divided before they are
sent, by the number of engines that the pool began with, and each part has its own seeds.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch

from ..distributed import ray as cluster
from .engine import Completion, Progress, Sampling
from .replica import ReplicaSpec
from .weights import Region, Values, verify

logger = logging.getLogger(__name__)

Shard = range  # of prompts


@dataclass
class Member:
    """One engine of the pool; `restarts` counts its predecessors in the same place."""

    place: int
    name: str
    actor: Any
    restarts: int = 0
    has_answered: bool = False


@dataclass
class Job:
    """One call of an engine."""

    member: Member
    phase: str  # as in "while it was generating"
    allowed: float  # seconds
    expected: Mapping[Region, str] = field(default_factory=dict)
    shard: Shard | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        return self.begun + self.allowed


class RayPool:
    """Several replicas in Ray actors.

    Args:
        spec (`ReplicaSpec`):
            Description of an engine.
        count (`int`):
            Number of engines. Fewer may be left at the end, which is logged.
        address (`str`, *optional*):
            Address of a Ray cluster; by default one is started on this machine.
        gpus (`float`, *optional*, defaults to `0`):
            GPUs per engine, at most 1; with a fraction several share one.
        batch_size (`int`, *optional*, defaults to `64`):
            Most prompts sent to an engine at once.
        timeout_s (`float`, *optional*, defaults to `600`):
            Seconds within which an engine has to answer.
        start_timeout_s (`float`, *optional*, defaults to `300`):
            Seconds within which an engine has to start and load its weights.
        max_restarts (`int`, *optional*, defaults to `2`):
            How often an engine is replaced before the pool continues without it.

    Raises:
        `ValueError`: if Ray does not have enough GPUs.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        count: int,
        *,
        address: str | None = None,
        gpus: float = 0,
        batch_size: int = 64,
        timeout_s: float = 600,
        start_timeout_s: float = 300,
        max_restarts: int = 2,
    ) -> None:
        if address is None:
            cluster.start()  # only this process uses the pool
        else:
            cluster.connect(address)
        import ray

        self._ray, self.id = ray, uuid4().hex[:8]
        self.count, self.batch_size, self.gpus = count, batch_size, gpus
        self.timeout_s, self.start_timeout_s, self.max_restarts = timeout_s, start_timeout_s, max_restarts
        self._spec = ray.put(spec)
        self._threads = max(1, torch.get_num_threads() // count)
        self._jobs: dict[Any, Job] = {}
        self._first_error: BaseException | None = None
        self._held: Values = {}  # what the engines were sent, for one that replaces another
        self._expected: dict[Region, str] = {}
        self._refuse_more_than_fits(count)
        self.members: list[Member] = []
        for place in range(count):
            self.members.append(self._start(place, 0))
            if 0 < gpus <= 0.5:  # vLLM measures its memory; another one starting on the same GPU would be counted too
                self._call(self.members[-1], "being created", "process_id")
                self._finish()

    def update(self, values: Values, expected: Mapping[Region, str]) -> None:
        sent = _to_host(values)
        self._held |= sent
        self._expected |= expected
        weights, regions = self._ray.put(sent), list(expected)
        for member in self.members:
            self._call(member, "loading weights", "update", weights, regions, expected=expected)
        self._finish()

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: Progress | None
    ) -> list[Completion]:
        count = len(prompts)
        size = min(self.batch_size, -(-count // self.count) or 1)  # so that all engines have work
        waiting = deque(range(start, min(start + size, count)) for start in range(0, count, size))
        done: dict[int, Completion] = {}
        while len(done) < count:
            busy = {job.member.name for job in self._jobs.values()}
            for member in self.members:
                if waiting and member.name not in busy:
                    shard = waiting.popleft()
                    part = [prompts[i] for i in shard], sampling, [seeds[i] for i in shard]
                    self._call(member, "generating", "generate", *part, shard=shard)
            jobs, result = self._next()
            for job in jobs:
                if job.shard is not None and result is None:
                    waiting.appendleft(job.shard)
                elif job.shard is not None:
                    done |= zip(job.shard, result, strict=True)
                    if progress:
                        progress(len(job.shard))
        return [done[i] for i in range(count)]

    def close(self) -> None:
        for member in self.members:
            self._ray.kill(member.actor)
        self.members, self._jobs = [], {}

    def process_ids(self) -> list[int]:
        """Return the process id of each engine."""
        return list(self._ray.get([m.actor.process_id.remote() for m in self.members], timeout=self.timeout_s))

    # -- calls ----------------------------------------------------------------------------------------------------

    def _refuse_more_than_fits(self, count: int) -> None:
        """Raise if Ray does not have enough GPUs: it would wait for them silently."""
        there = int(self._ray.cluster_resources().get("GPU", 0))
        if self.gpus and (room := there * int(1 / self.gpus)) < count:
            raise ValueError(
                f"rollout: {count} engines of {self.gpus:g} GPUs each were asked for, and this Ray has {there} GPUs, "
                f"which is room for {room}. Give a smaller rollout.num_engines, rollout.gpus_per_engine or "
                f"rollout.gpu_memory."
            )

    def _start(self, place: int, restarts: int) -> Member:
        name = f"sleep-engine-{self.id}-{place}" + (f"-{restarts}" if restarts else "")
        actor = self._ray.remote(num_cpus=0, num_gpus=self.gpus, max_concurrency=1)(ReplicaActor)
        options = actor.options(
            name=name,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._threads)}},
        )
        return Member(place, name, options.remote(self._spec), restarts)

    def _call(
        self,
        member: Member,
        phase: str,
        method: str,
        *args: Any,
        expected: Mapping[Region, str] | None = None,
        shard: Shard | None = None,
    ) -> None:
        allowed = self.timeout_s if member.has_answered else self.start_timeout_s
        phase = phase if member.has_answered else f"starting and {phase}"
        self._jobs[getattr(member.actor, method).remote(*args)] = Job(member, phase, allowed, expected or {}, shard)

    def _finish(self) -> None:
        """Wait for all calls."""
        while self._jobs:
            self._next()

    def _next(self) -> tuple[list[Job], Any]:
        """Wait until a call ends or exceeds its deadline.

        Returns:
            `tuple[list[Job], Any]`: the call and its result; or all calls of a lost engine, and `None`.

        Raises:
            `RuntimeError`: if an engine raised, or none is left.
        """
        errors = self._ray.exceptions
        remaining = min(job.deadline for job in self._jobs.values()) - time.monotonic()
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=max(0.0, remaining))
        if not ready:
            job = min(self._jobs.values(), key=lambda job: job.deadline)
            why = TimeoutError(f"{job.member.name} did not answer within {job.allowed:.0f} s while {job.phase}.")
            return self._lose(job, why), None
        job = self._jobs[ready[0]]
        try:
            result = self._ray.get(ready[0])
        except (errors.RayActorError, errors.ObjectLostError) as error:  # the second: its node went with the answer
            return self._lose(job, error), None
        except errors.RayTaskError as error:
            self._jobs.clear()  # later answers belong to a failed call
            raise RuntimeError(f"{job.member.name} failed while {job.phase}: {error}") from error
        del self._jobs[ready[0]]
        job.member.has_answered = True
        if job.expected:
            verify(job.member.name, job.expected, result)
        return [job], result

    def _lose(self, job: Job, why: BaseException) -> list[Job]:
        """Replace an engine that died or hung, or continue without it."""
        self._first_error = self._first_error or why
        member = job.member
        lost = {reference: other for reference, other in self._jobs.items() if other.member is member}
        self._jobs = {reference: other for reference, other in self._jobs.items() if reference not in lost}
        self.members.remove(member)
        self._ray.kill(member.actor)
        is_hopeless = getattr(why, "actor_init_failed", False)  # by an error of its own; a node's loss is none
        if member.restarts < self.max_restarts and not is_hopeless:
            logger.warning("Lost %s while %s; replacing it. %s", member.name, job.phase, why)
            new = self._start(member.place, member.restarts + 1)
            self.members.append(new)
            expected = dict(self._expected)
            weights = self._ray.put(self._held)
            self._call(new, "loading weights", "update", weights, list(expected), expected=expected)
        elif self.members:
            logger.warning(
                "Lost %s while %s; continuing with %d engines. %s",
                member.name, job.phase, len(self.members), why,
            )  # fmt: skip
        else:
            raise RuntimeError(f"No engine is left. The first error was: {self._first_error}") from self._first_error
        return list(lost.values())


class ReplicaActor:
    """A replica in a process of its own."""

    def __init__(self, spec: ReplicaSpec) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.replica = spec.make()

    def update(self, values: Values, regions: Sequence[Region]) -> list[str]:
        return self.replica.update(values, regions)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return self.replica.generate(prompts, sampling, seeds)

    def process_id(self) -> int:
        return os.getpid()


def _to_host(values: Values) -> Values:
    """Copy values out of larger tensors and off the GPU: pickling a view sends the whole storage."""
    return {region: value.detach().cpu().contiguous().clone() for region, value in values.items()}
